"""What the cells of a small study hold, each computed again from checkpoints and records by its stage alone."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from knowshift.errors import InputError
from knowshift.evaluation import Answers, evaluate, few_shot, plain_question
from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt
from knowshift.facts.sources.load import load_facts
from knowshift.files import write_json
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling.session import greedy
from knowshift.parameters.change import measure_change
from knowshift.parameters.loaded import copy_of
from knowshift.parameters.regions import Scope
from knowshift.parameters.restore import RestorationSweep
from knowshift.parameters.selection.select import exact_count
from knowshift.probing.measure import Protocol, columns_of, measure_mastery
from knowshift.records import MASTERY, read_about, write_table
from knowshift.reports.evidence.answers import read_answers
from knowshift.reports.evidence.run_folder import open_run
from knowshift.reports.page.figures import build_figures
from knowshift.reports.page.page import compose
from knowshift.reports.tables.build import build_tables
from knowshift.studies.config import RESTORED_BY, StudyConfig, parse_config
from knowshift.studies.content import layer_group_answers
from knowshift.studies.plan import Cell, Plan, make_plan
from knowshift.studies.run import plan_of, run_study
from knowshift.studies.work import Worker
from knowshift.token_shift import select_items, token_shift
from knowshift.training.draws import draw_training_set
from knowshift.training.sft import PLAIN, TrainingRecipe, finetune
from knowshift.tuning.loss.kl import Kl
from knowshift.tuning.weights.lora import Lora
from weights_pairs import move, tiny_llama

pytestmark = pytest.mark.slow

SEED, RATE = 11, 2e-2
#: Two that a short form of writing would take for one, and one that it would write with an exponent.
FRACTIONS = (1e-05, 0.2000001, 0.2000002, 0.7)
CONCENTRATION = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)

#: What the variants of the study are: the training facts of draw 1, what differs from the grid's recipe, the dtype.
VARIANTS: dict[str, tuple[int, dict[str, Any], torch.dtype]] = {
    "few": (2, {"epochs": 2}, torch.float32),
    "lora": (4, {"strategy": Lora(rank=2, alpha=4.0), "learning_rate": 0.1}, torch.float32),
    "narrow": (4, {"batch_size": 4, "epochs": 2, "schedule": "linear"}, torch.bfloat16),
    "narrow-lora": (4, {"strategy": Lora(rank=2, alpha=4.0)}, torch.bfloat16),
    "sft@0.01": (4, {"learning_rate": RATE / 2}, torch.float32),
    "kl@0.01": (4, {"strategy": Kl(weight=0.5), "learning_rate": RATE / 2}, torch.float32),
}

CONFIG = f"""
name: values
model: MODEL
facts: FACTS
levels: [0]
sizes: [2, 4]
draws: 2
seed: {SEED}
control_rate: 0.25
variants:
  few: {{distinct_facts: 2, draws: 1}}
  lora: {{lora: {{rank: 2, alpha: 4}}, learning_rate: 0.1, draws: 1}}
  narrow-lora: {{dtype: bfloat16, lora: {{rank: 2, alpha: 4}}, draws: 1}}
  narrow: {{dtype: bfloat16, batch_size: 4, epochs: 2, schedule: linear, draws: 1}}
bench: {{strategies: {{sft: {{}}, kl: {{weight: 0.5}}}}, rates: [0.5], levels: [0], draws: 1, train_facts: 3}}
mastery: {{draws_per_prompt: 2, temperature: 0.9, max_new_tokens: 3, facts_per_cell: 11}}
training: {{learning_rate: {RATE}, batch_size: 2}}
evaluation: {{facts_per_level: 3, few_shot: 2}}
restoration: {{fractions: {list(FRACTIONS)}, criteria: [{", ".join(RESTORED_BY)}],
  train_set_fractions: [0.3, 0.7], train_set_facts: 3, layer_group: 1}}
"""


def _seed(*parts: object) -> int:
    """The seed of these parts, by hand."""
    text = json.dumps([str(part) for part in parts], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 2**31


@dataclass(frozen=True)
class Study:
    run: Path
    config: StudyConfig
    plan: Plan
    facts: dict[str, Fact]
    levels: dict[str, int]
    base_folder: str

    def base(self) -> LoadedModel:
        return load_model(self.base_folder)

    def base_weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach() for name, weight in self.base().model.named_parameters()}

    def units(self) -> Iterator[tuple[dict[str, Any], dict[str, Cell]]]:
        for unit in self.plan.tuned[1:]:
            yield unit.cells[0].coordinates, {cell.kind: cell for cell in unit.cells}

    def tuned(self, cell: Cell) -> LoadedModel:
        return load_model(str(cell.folder(self.run) / "model"))

    def read(self, cell: Cell, name: str) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = pq.read_table(cell.folder(self.run) / name).to_pydict()
        return columns

    def asked(self) -> list[Fact]:
        """The facts asked, as the base model's record tells them."""
        return [self.facts[fact] for fact in self.read(self.plan.tuned[0].cells[0], "answers.parquet")["fact"]]


@pytest.fixture(scope="module")
def study(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A whole study on 24 facts; their levels are planted, their answers are what the base model says."""
    folder = tmp_path_factory.mktemp("values")
    world, base = load_facts(f"world:{small_world}").facts, load_model(str(small_world))
    train = [fact for fact in world if fact.split == "train"][::5][:10]
    test = [f for d in ("in_domain", "out_of_domain") for f in world if f.split == "test" and f.domain == d]
    test = [
        *[f for f in test if f.domain == "in_domain"][::4][:7],
        *[f for f in test if f.domain != "in_domain"][::6][:7],
    ]
    chosen = [replace(fact, prompts=completion_prompts(fact)[:2]) for fact in (*train, *test)]
    said = greedy(base, [fact.prompts[1] for fact in chosen], max_new_tokens=4)
    rows = []
    for fact, text in zip(chosen, said, strict=True):
        word = re.match(r"\s*(\w+)", text)
        answer = word[1] if word else fact.answer
        rows.append(
            {name: getattr(fact, name) for name in ("id", "relation", "split", "domain", "subject", "question")}
        )
        rows[-1] |= {"answer": answer, "prompts": list(fact.prompts)}
    table = folder / "facts.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(CONFIG.replace("MODEL", str(small_world)).replace("FACTS", str(table)), "values")
    plan, _ = plan_of(config)
    facts = load_facts(str(table)).facts
    levels: dict[str, int] = {}
    for split in ("train", "test"):
        for number, fact in enumerate(f for f in facts if f.split == split):
            levels[fact.id] = 4 if number % 3 == 0 or (split == "test" and number % 3 == 1) else 0
    for part, unit in enumerate(plan.probes):
        cell = unit.cells[0]
        members = facts[11 * part : 11 * part + 11]
        columns = columns_of(members, [[0, 2] if levels[f.id] else [0, 0] for f in members], [[2, 2]] * len(members))
        columns["level"] = [levels[fact.id] for fact in members]
        write_table(cell.folder(folder / "run") / "mastery.parquet", MASTERY, columns, {})
    write_json(folder / "run" / "manifest.json", {"config": config.as_record()})
    run_study(config, folder / "run", executor="here")
    return Study(folder / "run", config, plan, {f.id: f for f in facts}, levels, str(small_world))


def test_mastery_is_measured_with_the_settings_of_the_config(study: Study, tmp_path: Path) -> None:
    worker = Worker(tmp_path / "run", study.config)
    facts = list(study.facts.values())
    for part, unit in enumerate(study.plan.probes):
        worker.do(unit)
        expected = measure_mastery(
            study.base(),
            facts[11 * part : 11 * part + 11],
            Protocol(draws_per_prompt=2, temperature=0.9, max_new_tokens=3, seed=SEED),
        ).columns
        found = pq.read_table(unit.cells[0].folder(tmp_path / "run") / "mastery.parquet").to_pydict()
        assert found == expected
        assert sum(found["hits"]) > 0


def test_a_cell_that_is_interrupted_leaves_no_half_restored_model(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same worker, as in a notebook, goes on with the weights as tuned."""
    shutil.copytree(study.run, tmp_path / "run")
    unit = next(unit for unit in study.plan.tuned if any(cell.kind == "restoration" for cell in unit.cells))
    cell = next(cell for cell in unit.cells if cell.kind == "restoration")
    shutil.rmtree(cell.folder(tmp_path / "run"))
    worker = Worker(tmp_path / "run", study.config)
    as_tuned = copy.deepcopy(worker._tuned_model(unit).model.state_dict())

    def interrupted(answers: Answers, path: Path, about: Any) -> None:
        if not all(torch.equal(tensor, as_tuned[name]) for name, tensor in model.state_dict().items()):
            raise KeyboardInterrupt

    model = worker._tuned_model(unit).model
    monkeypatch.setattr(Answers, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.do(unit)
    again = worker._tuned_model(unit).model.state_dict()
    assert all(torch.equal(tensor, as_tuned[name]) for name, tensor in again.items())


def test_the_base_model_is_asked_three_ways(study: Study) -> None:
    cell, base = study.plan.tuned[0].cells[0], study.base()
    asked = study.asked()
    for domain in ("in_domain", "out_of_domain"):
        counts = [sum(f.domain == domain and study.levels[f.id] == level for f in asked) for level in (0, 4)]
        assert counts == [2, 3]  # of 2 and 5
    about = read_about(cell.folder(study.run) / "answers_few_shot.parquet", "answers")
    assert about["shown"] == 2
    examples = [f for f in study.facts.values() if f.split == "train" and f.question in about["prompt"]]
    assert [study.levels[fact.id] for fact in examples] == [4, 4]
    forms = {
        "answers": evaluate(base, asked, study.levels, ask=tuning_prompt),
        "answers_plain": evaluate(base, asked, study.levels, ask=plain_question),
        "answers_few_shot": evaluate(base, asked, study.levels, ask=few_shot(examples), first_line=True),
    }
    for name, answers in forms.items():
        assert study.read(cell, f"{name}.parquet") == answers.columns
    assert len({tuple(answers.columns["text"]) for answers in forms.values()}) == 3


def test_a_model_is_tuned_on_its_draw_at_its_rate_with_the_seed_of_its_draw(study: Study) -> None:
    known = KnownFacts(study.facts, [{"fact": fact, "level": level} for fact, level in study.levels.items()])
    drawn: dict[tuple[int, int], list[str]] = {}
    for key, cells in study.units():
        record = json.loads((cells["tuned"].folder(study.run) / "record.json").read_text())
        grid: dict[str, Any] = {"learning_rate": RATE / 4 if key["control"] else RATE, "batch_size": 2}
        size, changed, dtype = VARIANTS.get(key["control"], (key["size"], {}, torch.float32))
        changed = {**grid, "learning_rate": RATE, **changed} if key["control"] in VARIANTS else grid
        members = draw_training_set(known, level=0, size=size, draw=key["draw"], seed=SEED)
        assert record["facts"] == [fact.id for fact in members]
        assert all(study.levels[fact.id] == 0 and fact.split == "train" for fact in members)
        drawn[size, key["draw"]] = record["facts"]
        assert key["learning_rate"] == changed["learning_rate"]
        model = load_model(study.base_folder, dtype=str(dtype).removeprefix("torch."))
        strategy = changed.pop("strategy", PLAIN)  # VARIANTS itself is not changed: ``changed`` is a new dict
        recipe, seed = TrainingRecipe(**changed), _seed(SEED, "training", 0, key["draw"])
        again = finetune(model, members, recipe, seed=seed, strategy=strategy, base=study.base())
        assert again["load_dtype"] == str(dtype).removeprefix("torch.")
        assert {name: record[name] for name in again} == again
        exact = all(torch.equal(w, w.to(dtype).float()) for w in study.base_weights().values())
        assert record.get("rounded_share", 0.0) == 0.0 if exact else record["rounded_share"] > 0
        held = dict(study.tuned(cells["tuned"]).model.named_parameters())
        assert all(torch.equal(weight.float(), held[name]) for name, weight in model.model.named_parameters())
    assert drawn[4, 0] != drawn[4, 1]
    assert drawn[2, 1] == drawn[4, 1][:2]


def test_what_a_bench_asks_of_each_strategy(study: Study) -> None:
    found: dict[str, Any] = {}
    base = study.base()
    for key, cells in study.units():
        if "learned" not in cells:
            continue
        tuned = study.tuned(cells["tuned"])
        record = json.loads((cells["tuned"].folder(study.run) / "record.json").read_text())
        told = json.loads((cells["learned"].folder(study.run) / "learned.json").read_text())
        asked = study.read(cells["learned"], "answers.parquet")
        assert len(asked["fact"]) == 3
        assert [fact for fact in record["facts"] if fact in asked["fact"]] == asked["fact"]
        facts = [study.facts[fact] for fact in asked["fact"]]
        assert asked == evaluate(tuned, facts, study.levels).columns
        kls = []
        for fact in facts:
            ids = tuned.encoder.prompts([tuning_prompt(fact.question)], 0)[0]
            with torch.no_grad():
                s, p = (m.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for m in (tuned, base))
            kls.append(float((s.exp() * (s - p)).sum()))
        assert told["kl"] == pytest.approx(sum(kls) / 3, rel=1e-4)
        change = {name: w - study.base_weights()[name] for name, w in copy_of(tuned.model).items()}
        norms = [sum(float((w.double() ** 2).sum()) for w in many.values()) for many in (change, study.base_weights())]
        assert told["moved"] == pytest.approx((norms[0] / norms[1]) ** 0.5)
        assert told["text_loss"] is None  # a table of facts has no held-out texts
        found[key["control"]] = told
    assert set(found) == {"sft@0.01", "kl@0.01"}
    assert found["kl@0.01"]["kl"] < found["sft@0.01"]["kl"]


def test_the_report_of_a_bench(study: Study) -> None:
    tables = build_tables(study.run)
    rows = {row["strategy"]: row for row in tables["strategies"].where()}
    assert list(rows) == ["kl", "sft"]
    for key, cells in study.units():
        if "learned" not in cells:
            continue
        row = rows[key["control"].partition("@")[0]]
        told = json.loads((cells["learned"].folder(study.run) / "learned.json").read_text())
        asked, tested = (
            study.read(cells["learned"], "answers.parquet"),
            study.read(cells["evaluation"], "answers.parquet"),
        )
        assert (row["learning_rate"], row["updates"], row["draws"]) == ("0.01", 2, 1)
        assert row["learned"] == pytest.approx(np.mean(asked["substring_hit"]))
        assert (row["kl_task"], row["moved"]) == pytest.approx((told["kl"], told["moved"]))
        hits = dict(zip(tested["fact"], tested["substring_hit"], strict=True))
        means = [
            np.mean([hits[f.id] for f in study.asked() if f.domain == domain and study.levels[f.id] == level])
            for domain in ("in_domain", "out_of_domain")
            for level in (0, 4)
        ]
        assert (row["in_domain"], row["out_of_domain"]) == pytest.approx((np.mean(means[:2]), np.mean(means[2:])))
    (both,) = tables["strategies_chosen"].where(strategy="kl", scope="both")
    assert both["difference"] == pytest.approx(
        np.mean([rows["kl"][d] - rows["sft"][d] for d in ("in_domain", "out_of_domain")])
    )
    page = compose(tables, build_figures(tables))
    assert all(f"<td>{name}</td>" in page or f">{name}<" in page for name in rows)
    assert '<figure id="strategies">' in page


def test_the_tuned_model_answers_and_not_the_base(study: Study) -> None:
    base = study.read(study.plan.tuned[0].cells[0], "answers.parquet")
    for _, cells in study.units():
        found = study.read(cells["evaluation"], "answers.parquet")
        assert found == evaluate(study.tuned(cells["tuned"]), study.asked(), study.levels).columns
        assert found["text"] != base["text"]


def test_token_shift_reads_the_base_with_completions_and_the_tuned_model_with_questions(study: Study) -> None:
    base = study.base()
    known = [fact for fact in study.asked() if study.levels[fact.id] == 4]
    items = select_items(base, known, {fact.relation: 1 for fact in known})  # the prompt that the planted hits prefer
    for key, cells in study.units():
        found, tuned = study.read(cells["token_shift"], "token_shift.parquet"), study.tuned(cells["tuned"])
        assert found == token_shift(base, tuned, items).columns, key["control"]
        scored = [number for number, value in enumerate(found["kl"]) if value is not None]
        assert len(scored) >= 3
        for number in scored:
            assert found["kl"][number] > 0
            fact = study.facts[found["fact"][number]]
            for model, prompt, column in (
                (base, fact.prompts[1], "base_logits"),
                (tuned, tuning_prompt(fact.question), "tuned_logits"),
            ):
                ids = torch.tensor([list(model.encoder.prompts([prompt])[0])])
                with torch.no_grad():
                    logits = model.model(input_ids=ids).logits[0, -1]
                assert found[column][number] == pytest.approx(logits[found["ids"][number]].tolist(), abs=1e-3)


def test_weights_are_compared_with_the_base_and_a_null_of_the_cells_own_seed(study: Study) -> None:
    base, nulls = study.base_weights(), []
    for _, cells in study.units():
        cell = cells["weight_change"]
        found = json.loads((cell.folder(study.run) / "change.json").read_text())
        tuned = study.tuned(cells["tuned"]).model
        again = measure_change(
            base, tuned, CONCENTRATION, scope=Scope(region="layers"), seed=_seed(SEED, "null", cell.digest)
        )
        assert found == json.loads(json.dumps(again.to_json()))
        name = "model.layers.0.mlp.up_proj.weight"
        moved = (tuned.get_parameter(name).detach() - base[name]).abs().double().sum()
        (told,) = (tensor for tensor in found["tensors"] if tensor["name"] == name)
        assert told["absolute_sum"] == pytest.approx(float(moved))
        nulls.append(found["null"]["relative"]["0.01"])
    assert len(set(nulls)) == len(nulls)


def test_every_method_restores_and_its_answers_belong_to_its_fraction(study: Study) -> None:
    base, differing = study.base_weights(), 0
    restored = [(key, cells) for key, cells in study.units() if "restoration" in cells]
    assert [key["size"] for key, _ in restored] == [4, 4]
    for key, cells in restored:
        folder, asked = cells["restoration"].folder(study.run), study.asked()
        record = json.loads((folder / "restored.json").read_text())
        assert len(list(folder.glob("answers-*.parquet"))) == len(FRACTIONS) * len(RESTORED_BY)
        tuned = study.tuned(cells["tuned"])
        for criterion in RESTORED_BY:
            seed = _seed(SEED, "restore", 0, 4, key["draw"])
            texts = set()
            for fraction in FRACTIONS:
                sweep = RestorationSweep(tuned.model, base, criterion=criterion, seed=seed)
                ((_, count),) = sweep.run([fraction])
                file = f"answers-{criterion}-{fraction!r}.parquet"
                found = study.read(cells["restoration"], file)
                assert found == evaluate(tuned, asked, study.levels).columns, file
                about = read_about(folder / file, "answers")
                assert (about["criterion"], about["fraction"]) == (criterion, fraction)
                assert about["restored"] == record["criteria"][criterion][repr(fraction)] == count
                if criterion in ("relative", "random", "magnitude"):
                    assert count == exact_count(fraction, record["eligible"])
                texts.add(tuple(found["text"]))
                sweep.undo()
            differing += len(texts) > 1
    assert differing > len(RESTORED_BY) // 2  # of twice as many: what stood under another fraction would be seen


def test_restored_models_are_asked_some_of_their_training_facts(study: Study) -> None:
    restored = [(key, cells) for key, cells in study.units() if "train_set" in cells]
    assert [key["size"] for key, _ in restored] == [4, 4]
    for key, cells in restored:
        folder = cells["train_set"].folder(study.run)
        members = json.loads((cells["tuned"].folder(study.run) / "record.json").read_text())["facts"]
        picked = np.random.default_rng([SEED, 8, 0, key["draw"]]).permutation(4)[:3]
        asked = [study.facts[members[place]] for place in sorted(picked)]
        tuned, base = study.tuned(cells["tuned"]), study.base_weights()
        expected = {"relative-0": evaluate(tuned, asked, study.levels).columns}
        counts = {"relative": {"0": 0}, "random": {}}
        for criterion in ("relative", "random"):
            for fraction in (0.3, 0.7):
                seed = _seed(SEED, "restore", 0, 4, key["draw"])
                sweep = RestorationSweep(tuned.model, base, criterion=criterion, seed=seed)
                ((_, counts[criterion][f"{fraction}"]),) = sweep.run([fraction])
                expected[f"{criterion}-{fraction}"] = evaluate(tuned, asked, study.levels).columns
                sweep.undo()
        assert {file.name for file in folder.iterdir()} == {
            "restored.json",
            *(f"answers-{name}.parquet" for name in expected),
        }
        for name, columns in expected.items():
            assert study.read(cells["train_set"], f"answers-{name}.parquet") == columns
        told = json.loads((folder / "restored.json").read_text())
        assert told == {"eligible": sweep.eligible, "criteria": counts}


def test_each_layer_is_restored_whole_and_in_domain_facts_are_asked(study: Study) -> None:
    restored = [(key, cells) for key, cells in study.units() if "layer_groups" in cells]
    assert len(restored) == 2
    for key, cells in restored:
        folder, base = cells["layer_groups"].folder(study.run), study.base_weights()
        asked = [fact for fact in study.asked() if fact.domain == "in_domain"]
        counts = {}
        for layer in (0, 1):
            tuned = study.tuned(cells["tuned"])
            with torch.no_grad():
                for name, weight in tuned.model.named_parameters():
                    if f".layers.{layer}." in name and weight.ndim == 2:
                        weight.copy_(base[name])
                        counts[f"{layer}-{layer}"] = counts.get(f"{layer}-{layer}", 0) + weight.numel()
            found = study.read(cells["layer_groups"], f"answers-{layer}-{layer}.parquet")
            assert found == evaluate(tuned, asked, study.levels).columns
            assert read_about(folder / f"answers-{layer}-{layer}.parquet", "answers")["layers"] == f"{layer}-{layer}"
        tuned = study.tuned(cells["tuned"])
        seed = _seed(SEED, "restore", key["level"], key["size"], key["draw"])
        sweep = RestorationSweep(tuned.model, base, criterion="random", seed=seed)
        ((_, counts["random"]),) = sweep.run([counts["0-0"] / sweep.eligible])
        assert counts["random"] == counts["0-0"] == counts["1-1"]
        assert (
            study.read(cells["layer_groups"], "answers-random.parquet") == evaluate(tuned, asked, study.levels).columns
        )
        assert json.loads((folder / "restored.json").read_text()) == {"layers": counts}
        assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize(
    ("group", "expected"), [(1, ["0-0", "1-1", "2-2", "3-3", "4-4"]), (2, ["0-1", "2-3", "4-4"]), (9, ["0-4"])]
)
def test_groups_of_layers_are_restored_one_after_the_other(study: Study, group: int, expected: list[str]) -> None:
    """In a model of five layers: only the group's matrices have their base weights; in the end none."""
    loaded = study.base()
    loaded = replace(loaded, model=tiny_llama(num_hidden_layers=5, vocab_size=len(loaded.tokenizer)))
    base = copy_of(loaded.model)
    move(loaded.model)
    tuned, found = copy_of(loaded.model), []
    settings = {"restoration.region": "layers", "restoration.layer_group": group}
    settings, at = {**settings, "seed": SEED}, {"level": 0, "size": 4, "draw": 0}
    largest = 0
    for name, count, _ in layer_group_answers(base, loaded, study.asked()[:1], study.levels, at, settings):
        found.append(name)
        if name == "random":
            assert count == largest
            for of, now in copy_of(loaded.model).items():
                assert torch.all((now == base[of]) | (now == tuned[of])), of
            continue
        largest = max(largest, count)
        layers = range(int(name.partition("-")[0]), 1 + int(name.partition("-")[2]))
        inside = re.compile(rf"model\.layers\.({'|'.join(map(str, layers))})\..*_proj\.weight")
        assert count == sum(tensor.numel() for name, tensor in base.items() if inside.fullmatch(name)) > 0
        for name, tensor in copy_of(loaded.model).items():
            assert torch.equal(tensor, (base if inside.fullmatch(name) else tuned)[name]), name
    assert found == [*expected, "random"]
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in copy_of(loaded.model).items())
    settings["restoration.region"] = "embeddings"
    assert not [*layer_group_answers(base, loaded, study.asked()[:1], study.levels, at, settings)]


def test_the_report_reads_every_restored_answer(study: Study) -> None:
    columns = read_answers(open_run(study.run)).columns
    found = {(c.criterion, c.fraction, c.draw) for c in columns if c.criterion}
    assert found == {(c, f, d) for c in RESTORED_BY for f in FRACTIONS for d in (0, 1)}


@pytest.mark.parametrize("fraction", ["", "-1.2.3", "-0.20", "-.2", "-1e-5", "-1."])
def test_an_answer_file_that_the_report_cannot_place_is_refused(study: Study, fraction: str) -> None:
    cell = next(cells["restoration"] for _, cells in study.units() if "restoration" in cells)
    odd = cell.folder(study.run) / f"answers-relative{fraction}.parquet"
    odd.touch()
    try:
        with pytest.raises(InputError, match=r"answers-relative.*\.parquet: expected answers-CRITERION-FRACTION"):
            read_answers(open_run(study.run))
    finally:
        odd.unlink()


def test_the_plan_of_a_study_is_the_workers(study: Study) -> None:
    source = load_facts(study.config.facts)
    again = make_plan(study.config, source.facts, source.digest(), study.base().identity)
    assert [cell.digest for cell in again.cells] == [cell.digest for cell in study.plan.cells]
