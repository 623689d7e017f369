"""What each kind of cell holds: functions of models, facts and earlier records, and of settings; no files.

``settings`` are the fields of the configuration that :data:`knowshift.studies.plan.CONTENT` declares for the kind, by
name ("mastery.temperature"): they are what the cell's digest is over, and no other field is given. ``rows`` are those
of all mastery records. Whatever is changed here so that equal inputs give another content needs another
:data:`knowshift.studies.plan.CONTENT_VERSION`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from knowshift.evaluation import Answers, Ask, evaluate, few_shot, plain_question
from knowshift.facts.fact import DOMAINS, Fact, tuning_prompt
from knowshift.files import digest
from knowshift.models.loading import LoadedModel
from knowshift.parameters.change import WeightChange, measure_change
from knowshift.parameters.restore import RestorationSweep
from knowshift.probing.measure import MasteryRecord, Protocol, measure_mastery
from knowshift.token_shift import ShiftItems, best_prompts, select_items
from knowshift.training.draws import draw_training_set

#: Fractions at which the concentration of change is told (paper, Table 3).
CONCENTRATION = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)

#: Columns of the mastery record that later cells read.
COLUMNS = ("fact", "relation", "split", "domain", "prompt_hits", "prompt_draws", "level")

Settings = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
Facts = Mapping[str, Fact]  # by id


def seed_of(*parts: object) -> int:
    """A seed that belongs to these parts and no others: 31 bits."""
    return int(digest([str(part) for part in parts]), 16) % (1 << 31)


def levels_of(rows: Rows) -> dict[str, int]:
    """The base model's mastery level by fact id."""
    return {row["fact"]: row["level"] for row in rows}


def mastery(base: LoadedModel, facts: Sequence[Fact], settings: Settings) -> MasteryRecord:
    """The base model's mastery of one part of the probed facts."""
    protocol = Protocol(
        draws_per_prompt=settings["mastery.draws_per_prompt"],
        temperature=settings["mastery.temperature"],
        max_new_tokens=settings["mastery.max_new_tokens"],
        seed=settings["seed"],
        stopping=settings["mastery.stopping"],
    )
    return measure_mastery(base, facts, protocol)


def asked_facts(rows: Rows, facts: Facts, settings: Settings) -> list[Fact]:
    """The test facts that every model answers: at most so many of each domain and level, seeded."""
    groups: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        if row["split"] == "test":
            groups.setdefault((row["domain"], row["level"]), []).append(row["fact"])
    chosen: list[Fact] = []
    for domain in DOMAINS:
        for level in range(5):
            members = groups.get((domain, level), [])
            rng = np.random.default_rng([settings["seed"], 6, DOMAINS.index(domain), level])
            picked = sorted(rng.permutation(len(members))[: settings["evaluation.facts_per_level"]].tolist())
            chosen.extend(facts[members[index]] for index in picked)
    return chosen


def base_answers(
    base: LoadedModel, asked: Sequence[Fact], rows: Rows, facts: Facts, settings: Settings
) -> Iterator[tuple[str, Answers, dict[str, Any]]]:
    """The untuned model's answers to each form of the question: (name of the record, answers, what to say of them)."""
    rng = np.random.default_rng([settings["seed"], 7])
    known = [row["fact"] for row in rows if row["split"] == "train" and row["level"] == 4]
    picked = sorted(rng.permutation(len(known))[: settings["evaluation.few_shot"]].tolist())
    examples = [facts[known[index]] for index in picked]
    asks: dict[str, Ask] = {"answers": tuning_prompt, "answers_plain": plain_question}
    if examples:
        asks["answers_few_shot"] = few_shot(examples)
    for name, ask in asks.items():
        shown = len(examples) if name == "answers_few_shot" else 0
        answers = evaluate(base, asked, levels_of(rows), ask=ask, first_line=shown > 0)
        yield name, answers, {"prompt": ask("QUESTION"), "shown": shown}


def tune(
    base: LoadedModel,
    rows: Rows,
    facts: Facts,
    key: Mapping[str, Any],
    settings: Settings,
    *,
    name: str = "the tuned model",
    report_to: str = "none",
) -> tuple[LoadedModel, dict[str, Any]]:
    """A copy of the base model, fine-tuned on one training set, and its record: fact ids, steps, losses."""
    from knowshift.training import sft  # TRL takes seconds to import

    train = [row for row in rows if row["split"] == "train"]
    members = draw_training_set(
        levels_of(train),
        {row["fact"]: row["relation"] for row in train},
        level=key["level"],
        size=key["size"],
        draw=key["draw"],
        seed=settings["seed"],
    )
    tuned = replace(base, model=copy.deepcopy(base.model), name=name)
    chosen = {field.removeprefix("training."): value for field, value in settings.items() if field != "seed"}
    recipe = sft.TrainingRecipe(**chosen, learning_rate=key["learning_rate"], report_to=report_to)
    # One seed for a draw at every size and rate: what differs between cells is what was meant to differ.
    seed = seed_of(settings["seed"], "training", key["level"], key["draw"])
    record = sft.finetune(tuned, [facts[fact] for fact in members], recipe, seed=seed)
    return tuned, {"facts": members, **record}


def shift_items(base: LoadedModel, asked: Sequence[Fact], rows: Rows, facts: Facts) -> ShiftItems:
    """The asked facts of level 4, each with the completion prompt that is best for its relation's test facts."""
    tests = [row for row in rows if row["split"] == "test"]
    best = best_prompts(
        [facts[row["fact"]] for row in tests],
        {row["fact"]: row["prompt_hits"] for row in tests},
        {row["fact"]: row["prompt_draws"] for row in tests},
    )
    levels = levels_of(rows)
    return select_items(base, [fact for fact in asked if levels[fact.id] == 4], best)


def weight_change(
    base: Mapping[str, torch.Tensor], tuned: torch.nn.Module, own_digest: str, settings: Settings
) -> WeightChange:
    """What a fine-tuning did to the weights; the null's seed belongs to the cell, so that no two share their luck."""
    return measure_change(
        base,
        tuned,
        CONCENTRATION,
        seed=seed_of(settings["seed"], "null", own_digest),
        region=settings["restoration.region"],
    )


def restored_answers(
    base: Mapping[str, torch.Tensor],
    tuned: LoadedModel,
    asked: Sequence[Fact],
    levels: Mapping[str, int],
    key: Mapping[str, Any],
    settings: Settings,
) -> Iterator[tuple[str, float, int, int, Answers]]:
    """Answers after each restoration: (criterion, fraction, weights restored, weights eligible, answers).

    The tuned model is changed meanwhile, and is itself again, bit for bit, at the end.
    """
    for criterion in settings["restoration.criteria"]:
        sweep = RestorationSweep(
            tuned.model,
            base,
            criterion=criterion,
            region=settings["restoration.region"],
            seed=seed_of(settings["seed"], "restore", key["level"], key["size"], key["draw"]),
        )
        for fraction, count in sweep.run(settings["restoration.fractions"]):
            yield criterion, fraction, count, sweep.eligible, evaluate(tuned, asked, levels)
        sweep.undo()
