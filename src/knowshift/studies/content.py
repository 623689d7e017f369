"""What each kind of cell holds: functions of models, facts and earlier records, and of settings; no files.

``settings`` are the fields of the configuration that :data:`knowshift.studies.plan.CONTENT` declares for the kind, by
name ("mastery.temperature"): the cell's digest covers them, and no other field is given. ``known`` are all
probed facts with their mastery. Whatever is changed here so that equal inputs give another content needs
another :data:`knowshift.studies.plan.CONTENT_VERSION`.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from knowshift.errors import InputError
from knowshift.evaluation import Answers, Ask, evaluate, few_shot, plain_question
from knowshift.facts.fact import DOMAINS, LEVELS, Fact, tuning_prompt
from knowshift.files import digest
from knowshift.known_facts import KnownFacts
from knowshift.models.finding import ModelFiles
from knowshift.models.loading import LoadedModel, load_found
from knowshift.models.logits import next_logits
from knowshift.models.saving import save_beside
from knowshift.models.stored import stored_weights
from knowshift.parameters.change import WeightChange, measure_change
from knowshift.parameters.loaded import as_reader, as_tensor, model_region, parameters_of
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.slices import slices_of
from knowshift.parameters.tensors import TensorReader
from knowshift.probing.measure import Engine, MasteryRecord, Protocol, measure_mastery
from knowshift.system import group
from knowshift.tasks.measured import Measured, Task
from knowshift.token_shift import renormalised_kl
from knowshift.training.strategy import Draw, Strategy
from knowshift.tuning.registry import strategy_of
from knowshift.tuning.run import tune as tune_by

if TYPE_CHECKING:
    from knowshift.training.strategy import Weights

#: Fractions at which the concentration of change is measured (paper, Table 3).
CONCENTRATION = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)

Settings = Mapping[str, Any]


def seed_of(*parts: object) -> int:
    """A seed of 31 bits that is derived from these parts."""
    return int(digest([str(part) for part in parts]), 16) % (1 << 31)


def mastery(engine: LoadedModel | Engine, facts: Sequence[Fact], settings: Settings) -> MasteryRecord:
    """The base model's mastery of one part of the probed facts; ``engine`` is that model, or servers that have it."""
    return measure_mastery(engine, facts, protocol_of(settings))


def protocol_of(settings: Settings) -> Protocol:
    """How a mastery cell measures."""
    return Protocol(
        draws_per_prompt=settings["mastery.draws_per_prompt"],
        temperature=settings["mastery.temperature"],
        max_new_tokens=settings["mastery.max_new_tokens"],
        seed=settings["seed"],
        stopping=settings["mastery.stopping"],
        estimate=settings["mastery.estimate"],
        texts=settings["mastery.texts"],
        least_weight=settings.get("mastery.least_weight"),
    )


def asked_facts(known: KnownFacts, settings: Settings) -> list[Fact]:
    """The test facts that every model answers: at most so many of each domain and level asked, seeded."""
    levels = settings.get("evaluation.levels")
    groups: dict[tuple[str, int], list[Fact]] = {}
    for fact in known.of("test"):
        groups.setdefault((fact.domain, known.levels[fact.id]), []).append(fact)
    chosen: list[Fact] = []
    for domain in DOMAINS:
        for level in range(LEVELS) if levels is None else sorted(set(levels)):
            members = groups.get((domain, level), [])
            rng = np.random.default_rng([settings["seed"], 6, DOMAINS.index(domain), level])
            chosen += _some(members, settings["evaluation.facts_per_level"], rng)
    return chosen


def _some(facts: Sequence[Fact], most: int | None, rng: np.random.Generator) -> list[Fact]:
    """At most so many facts at random, in their order; all where ``most`` is None."""
    return [facts[index] for index in sorted(rng.permutation(len(facts))[:most].tolist())]


def base_answers(
    base: LoadedModel, asked: Sequence[Fact], known: KnownFacts, settings: Settings
) -> Iterator[tuple[str, Answers, dict[str, Any]]]:
    """The untuned model's answers to each form of the question: (name of the record, answers, metadata)."""
    rng = np.random.default_rng([settings["seed"], 7])
    examples = _some(known.of("train", level=4), settings["evaluation.few_shot"], rng)
    asks: dict[str, Ask] = {"answers": tuning_prompt, "answers_plain": plain_question}
    if examples:
        asks["answers_few_shot"] = few_shot(examples)
    for name, ask in asks.items():
        shown = len(examples) if name == "answers_few_shot" else 0
        answers = evaluate(base, asked, known.levels, ask=ask, first_line=shown > 0)
        yield name, answers, {"prompt": ask("QUESTION"), "shown": shown}


def instruct_answers(
    instruct: LoadedModel, asked: Sequence[Fact], known: KnownFacts, settings: Settings
) -> Iterator[tuple[str, Answers, dict[str, Any]]]:
    """As :func:`base_answers`, of another model, whose own chat template is one form more where it has one."""
    yield from base_answers(instruct, asked, known, settings)
    if getattr(instruct.tokenizer, "chat_template", None):
        chat = instruct.encoder.chat
        about = {"prompt": chat("QUESTION"), "shown": 0}
        yield "answers_chat", evaluate(instruct, asked, known.levels, ask=chat), about


def tune(
    base: LoadedModel,
    known: KnownFacts,
    coordinates: Mapping[str, Any],
    settings: Settings,
    *,
    name: str = "the tuned model",
    report_to: str = "none",
    in_place: bool = False,
    files: ModelFiles | None = None,
    weights: Weights | None = None,
) -> tuple[LoadedModel, dict[str, Any]]:
    """A copy of the base model, fine-tuned on one training set, and its record: fact ids, steps, losses.

    ``in_place``: the base itself is trained, and is gone then, also where the training fails. ``files`` are where the
    base lies, for the processes of a training that is divided among several; a base that is divided is always gone.
    ``weights`` are the base's, for strategies that go back to them; where not given, those in memory.
    """
    from knowshift.training import sft, sharded  # TRL takes seconds to import

    members = _training_set(known, coordinates, settings)
    divided = slices_of(base.model) is not None
    in_place = in_place or divided
    tuned = replace(base, model=base.model if in_place else copy.deepcopy(base.model), name=name)
    strategy = _strategy(coordinates)
    changed = dict(coordinates.get("training", {}))
    dtype = changed.pop("dtype", None)
    for said in ("levels", "distinct_facts", "lora", "strategy", "settings"):
        changed.pop(said, None)
    chosen = {field.removeprefix("training."): value for field, value in settings.items() if field != "seed"}
    chosen = {**chosen, **changed}
    shards = chosen.pop("shards", 1)
    # Fewer distinct facts are seen so many times more often: as many updates as the size makes.
    chosen["epochs"] *= coordinates["size"] // len(members)
    recipe = sft.TrainingRecipe(
        **chosen,
        learning_rate=coordinates["learning_rate"],
        report_to=report_to,
    )
    # One seed for a draw at every size and rate: the cells of a draw differ in nothing else.
    seed = seed_of(settings["seed"], "training", coordinates["level"], coordinates["draw"])
    if divided:
        assert files is not None
        tuned, record = _tune_together(base, files, members, recipe, seed, name, strategy)
    elif shards > 1 and type(strategy) is Strategy:  # adapters need no gradients and moments of the weights
        assert files is not None
        record = sharded.finetune(tuned, files, members, recipe, seed=seed, shards=shards)
    elif dtype is None:
        held = None if in_place else base
        own = parameters_of(base.model) if weights is None else weights
        held = held if strategy.needs_base else None
        record = tune_by(tuned, members, recipe, strategy, own, seed=seed, base=held, known=known)
    else:
        stored = [parameter.dtype for parameter in tuned.model.parameters()]
        rounded = _rounded_share(tuned, getattr(torch, dtype))
        _cast(tuned, repeat(getattr(torch, dtype)))
        record = sft.finetune(replace(tuned, dtype=dtype), members, recipe, seed=seed, strategy=strategy)
        record["rounded_share"] = rounded
        _cast(tuned, stored)  # its answers are computed like those of all models
    named = "strategy" in coordinates.get("training", {})
    told = {"strategy": strategy.name, "kind": strategy.kind} if named else {}
    return tuned, {"facts": [fact.id for fact in members], **record, **told}


def _tune_together(
    base: LoadedModel,
    files: ModelFiles,
    members: Sequence[Fact],
    recipe: Any,
    seed: int,
    name: str,
    strategy: Strategy,
) -> tuple[LoadedModel, dict[str, Any]]:
    """:func:`tune` by the processes of a group, which hold the base together, and then the tuned model.

    Its checkpoint lies in a folder for temporary files as long as the first process has the model.
    """
    from knowshift.training import sharded

    scratch = tempfile.TemporaryDirectory(prefix="knowshift-tuned-") if group.is_first() else None
    folder = Path(group.decided("" if scratch is None else scratch.name))
    record = sharded.finetune_together(base, files, members, recipe, seed=seed, folder=folder, strategy=strategy)
    if scratch is not None:
        save_beside(base, folder / "tuned")
    group.decided(None)  # the others wait until all is written
    tuned = load_found(
        ModelFiles(name, folder / "tuned"), dtype=base.dtype, device=base.device.split(":")[0], divided=True
    )
    return replace(tuned, scratch=scratch), record


def _rounded_share(loaded: LoadedModel, dtype: torch.dtype) -> float:
    """The share of weights that the dtype alone changes."""
    parameters = [parameter.detach() for parameter in loaded.model.parameters()]
    changed = sum(int((one.to(dtype).to(one.dtype) != one).sum()) for one in parameters)
    return changed / sum(int(one.numel()) for one in parameters)


def _cast(loaded: LoadedModel, dtypes: Iterable[torch.dtype]) -> None:
    """Give a model's weights other dtypes; buffers keep theirs, since rotary frequencies in bfloat16 are others."""
    for parameter, dtype in zip(loaded.model.parameters(), dtypes, strict=False):
        parameter.data = parameter.data.to(dtype)


def whole_weights(tuned: LoadedModel) -> TensorReader | None:
    """What reads the whole tensors of a tuned model of which this process holds slices; None where it has all."""
    return None if slices_of(tuned.model) is None else stored_weights(tuned)


def weight_change(
    base: Weights, tuned: torch.nn.Module, own_digest: str, settings: Settings, stored: TensorReader | None = None
) -> WeightChange:
    """What a fine-tuning did to the weights; the null's seed is the cell's own, so that nulls are independent.

    ``stored`` as :func:`whole_weights`.
    """
    return measure_change(
        base,
        tuned,
        CONCENTRATION,
        seed=seed_of(settings["seed"], "null", own_digest),
        scope=Scope(settings["restoration.region"]),
        stored=stored,
    )


def restored_answers(
    base: Weights,
    tuned: LoadedModel,
    asked: Sequence[Fact],
    levels: Mapping[str, int],
    coordinates: Mapping[str, Any],
    settings: Settings,
) -> Iterator[tuple[str, float, int, int, Answers]]:
    """Answers after each restoration: (criterion, fraction, weights restored, weights eligible, answers).

    The tuned model is changed meanwhile; at the end it has its tuned weights again, bit for bit.
    """
    for criterion in settings["restoration.criteria"]:
        sweep = _sweep(base, tuned, criterion, coordinates, settings)
        for fraction, count in sweep.run(settings["restoration.fractions"]):
            yield criterion, fraction, count, sweep.eligible, evaluate(tuned, asked, levels)
        sweep.undo()


def restored_tasks(
    base: Weights,
    tuned: LoadedModel,
    tasks: Sequence[Task],
    coordinates: Mapping[str, Any],
    settings: Settings,
) -> Iterator[tuple[str, float, int, int, list[Measured]]]:
    """Other tasks of a model as tuned (fraction 0, no criterion) and after each restoration; paper, Table 5.

    Yields (criterion, fraction, weights restored, weights eligible, what is measured), as :func:`restored_answers`.
    """
    for number, criterion in enumerate(settings["restoration.criteria"]):
        sweep = _sweep(base, tuned, criterion, coordinates, settings)
        if not number:
            yield "", 0.0, 0, sweep.eligible, ask_tasks(tuned, tasks)
        for fraction, count in sweep.run(settings["restoration.fractions"]):
            yield criterion, fraction, count, sweep.eligible, ask_tasks(tuned, tasks)
        sweep.undo()


def ask_tasks(loaded: LoadedModel, tasks: Sequence[Task]) -> list[Measured]:
    """One model on every task."""
    return [one for task in tasks for one in task.measure(loaded)]


def _sweep(
    base: Weights,
    tuned: LoadedModel,
    criterion: str,
    coordinates: Mapping[str, Any],
    settings: Settings,
) -> RestorationSweep:
    return RestorationSweep(
        tuned.model,
        base,
        criterion=criterion,
        scope=Scope(settings["restoration.region"]),
        seed=seed_of(settings["seed"], "restore", coordinates["level"], coordinates["size"], coordinates["draw"]),
        tuned=whole_weights(tuned),
    )


def trained_facts(known: KnownFacts, coordinates: Mapping[str, Any], settings: Settings) -> list[Fact]:
    """The facts of a training set that are asked after restoring: all, or so many of a seeded draw, in its order."""
    rng = np.random.default_rng([settings["seed"], 8, coordinates["level"], coordinates["draw"]])
    return _some(_training_set(known, coordinates, settings), settings["restoration.train_set_facts"], rng)


def check_training_sets(known: KnownFacts, cells: Iterable[tuple[Mapping[str, Any], Settings]]) -> None:
    """Refuse a strategy that has too few facts to choose from, before the first training.

    Args:
        cells: coordinates and settings of tuned models.

    Raises:
        InputError: names the training and its draw.
    """
    for coordinates, settings in cells:
        if not _strategy(coordinates).has_own_facts():
            continue
        try:
            _training_set(known, coordinates, settings)
        except InputError as error:
            raise InputError(f"{coordinates['control']}, draw {coordinates['draw'] + 1}: {error}") from None


def _training_set(known: KnownFacts, coordinates: Mapping[str, Any], settings: Settings) -> list[Fact]:
    return _strategy(coordinates).facts(_drawn(known, coordinates, settings))


def _drawn(known: KnownFacts, coordinates: Mapping[str, Any], settings: Settings) -> Draw:
    changed = coordinates.get("training", {})
    return Draw(
        known,
        level=coordinates["level"],
        size=changed.get("distinct_facts", coordinates["size"]),
        draw=coordinates["draw"],
        seed=settings["seed"],
        levels=tuple(changed.get("levels", (0, 1, 2, 3, 4))),
    )


def _strategy(coordinates: Mapping[str, Any]) -> Strategy:
    """The strategy of a training: plain, where its coordinates say nothing else."""
    changed = coordinates.get("training", {})
    if "lora" in changed:
        return strategy_of("lora", changed["lora"])
    return strategy_of(changed.get("strategy", Strategy.name), changed.get("settings"))


#: What is restored before a model is asked its own training facts: the paper's criterion, and its control.
TRAIN_SET_CRITERIA = ("relative", "random")


def restored_train_answers(
    base: Weights,
    tuned: LoadedModel,
    known: KnownFacts,
    coordinates: Mapping[str, Any],
    settings: Settings,
) -> Iterator[tuple[str, float, int, int, Answers]]:
    """Answers to the model's own training questions, as tuned (fraction 0) and restored; paper, Table 6.

    The most changed weights are restored, as in the paper, and as a control as many that are drawn at random. Yields
    (criterion, fraction, weights restored, weights eligible, answers), as :func:`restored_answers`.
    """
    asked = trained_facts(known, coordinates, settings)
    for criterion in TRAIN_SET_CRITERIA:
        sweep = _sweep(base, tuned, criterion, coordinates, settings)
        if criterion == TRAIN_SET_CRITERIA[0]:
            yield criterion, 0.0, 0, sweep.eligible, evaluate(tuned, asked, known.levels)
        for fraction, count in sweep.run(settings["restoration.train_set_fractions"]):
            yield criterion, fraction, count, sweep.eligible, evaluate(tuned, asked, known.levels)
        sweep.undo()


@dataclass(frozen=True)
class Learned:
    """What a training taught, and what it moved besides; see :func:`learned`."""

    answers: Answers
    kl: float  # KL(tuned || base) of the first token behind the prompt, mean over the facts asked, in nats
    text_loss: float | None  # of held-out texts, in nats a token
    moved: float  # Euclidean norm of the change of all weights, over that of the base

    def as_record(self) -> dict[str, Any]:
        return {"kl": self.kl, "text_loss": self.text_loss, "moved": self.moved}


def learned_facts(known: KnownFacts, coordinates: Mapping[str, Any], settings: Settings) -> list[Fact]:
    """Of the training facts of plain fine-tuning, at most so many of a seeded draw: every strategy is asked these."""
    rng = np.random.default_rng([settings["seed"], 9, coordinates["draw"]])
    return _some(_drawn(known, coordinates, settings).members, settings["bench.train_facts"], rng)


def own_learned_facts(known: KnownFacts, coordinates: Mapping[str, Any], settings: Settings) -> list[Fact]:
    """Of the facts that a strategy trained on, each once, at most so many of a seeded draw."""
    distinct = {fact.id: fact for fact in _training_set(known, coordinates, settings)}
    rng = np.random.default_rng([settings["seed"], 10, coordinates["draw"]])
    return _some(list(distinct.values()), settings["bench.train_facts"], rng)


def learned(
    weights: Weights,
    before: Tensor,
    tuned: LoadedModel,
    asked: Sequence[Fact],
    levels: Mapping[str, int],
    texts: Task | None,
) -> Learned:
    """Answers to training questions, the distance to the base on these, and the loss of held-out texts.

    KL on the new task is what "RL's Razor" (Shenfeld et al. 2025, arXiv 2509.04259) predicts forgetting from; here of
    the answer's first token, over the whole vocabulary.

    Args:
        before: the base's logits behind the questions, in their order (:func:`first_logits`).
    """
    kl = renormalised_kl(first_logits(tuned, asked), before)
    reader, change, size = as_reader(weights), 0.0, 0.0
    for name, parameter in parameters_of(tuned.model).items():
        old = as_tensor(reader.read(name, 0, parameter.numel())).double()
        change += float(((parameter.detach().flatten().cpu().double() - old) ** 2).sum())
        size += float((old**2).sum())
    loss = None if texts is None else texts.measure(tuned)[0].score
    return Learned(evaluate(tuned, asked, levels), float(kl.mean()), loss, math.sqrt(change / size))


def first_logits(loaded: LoadedModel, facts: Sequence[Fact]) -> Tensor:
    """Logits of the token behind each fact's fine-tuning prompt, float32 [facts, V], of ids that name a token."""
    found: dict[int, Tensor] = {}
    for batch, logits in next_logits(loaded, [tuning_prompt(fact.question) for fact in facts]):
        found.update(zip(batch, logits.cpu(), strict=True))
    rows = torch.stack([found[index] for index in range(len(facts))])
    return rows[:, rows.isfinite().all(0)]


def layer_group_answers(
    base: Weights,
    tuned: LoadedModel,
    asked: Sequence[Fact],
    levels: Mapping[str, int],
    coordinates: Mapping[str, Any],
    settings: Settings,
) -> Iterator[tuple[str, int, Answers]]:
    """Answers to the in-domain test questions with one group of layers restored: (layers, weights restored, answers).

    Layers are named as "0-3". As a control, "random", as many weights of all layers as the largest group has. A region
    without layers has no groups. At the end the tuned model has its tuned weights again, bit for bit. Paper, Table 11,
    which is in-domain.
    """
    questions = [fact for fact in asked if fact.domain == "in_domain"]
    region, group = settings["restoration.region"], settings["restoration.layer_group"]
    places = model_region(tuned.model, Scope(region))
    count = 1 + max((place.layer for place in places if place.layer is not None), default=-1)
    most = 0
    for first in range(0, count, group):
        last = min(first + group, count) - 1
        sweep = RestorationSweep(tuned.model, base, scope=Scope(region, (first, last)), tuned=whole_weights(tuned))
        for _, restored in sweep.run([1.0]):
            most = max(most, restored)
            yield f"{first}-{last}", restored, evaluate(tuned, questions, levels)
        sweep.undo()
    if most:
        sweep = _sweep(base, tuned, "random", coordinates, settings)
        for _, restored in sweep.run([most / sweep.eligible]):
            yield "random", restored, evaluate(tuned, questions, levels)
        sweep.undo()
