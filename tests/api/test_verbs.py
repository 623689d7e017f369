"""The verbs in Python: folders and loaded models give the same, results are tables, nothing is printed."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import knowshift
from knowshift.api.measures import Mastery
from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import known_facts
from knowshift.models.loading import load_model
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.records import read_about
from knowshift.system.progress import bar, is_watched
from knowshift.training.sft import TrainingRecipe, finetune
from knowshift.training.strategy import Draw
from knowshift.tuning.weights.corda import Corda

QUICK = {"draws": 2, "max_new_tokens": 4, "workers": 1}


@pytest.fixture(scope="module")
def world(small_world: Path) -> str:
    return f"world:{small_world}"


@pytest.fixture(scope="module")
def known(world: str, small_world: Path) -> Mastery:
    """Mastery of the small world; its levels are planted, so that every level has facts to tune on."""
    record = knowshift.mastery(world, world, limit=120, **QUICK)
    levels = [number % 5 for number in range(record.table.num_rows)]
    column = record.table.schema.get_field_index("level")
    planted = record.table.set_column(
        column, record.table.schema.field(column), pa.chunked_array([pa.array(levels, pa.int8())])
    )
    return Mastery(planted, None, record.levels, record.draws, record.positions, record.seconds)


def loaded(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_mastery_is_kept_in_memory_or_in_a_file_and_a_loaded_model_gives_the_same(
    world: str, small_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = loaded(small_world)
    capfd.readouterr()
    kept = knowshift.mastery(world, world, output=tmp_path / "m.parquet", limit=8, **QUICK)
    again = knowshift.mastery(world, world, output=tmp_path / "m.parquet", limit=8, **QUICK)
    memory = knowshift.mastery(model, knowshift.load_facts(world), limit=8, **QUICK)
    assert kept.output == tmp_path / "m.parquet"
    assert (kept.resumed, again.resumed, memory.output) == (0, 8, None)
    assert pq.read_table(kept.output).to_pydict() == kept.table.to_pydict() == memory.table.to_pydict()
    assert kept.levels == [kept.table["level"].to_pylist().count(level) for level in range(5)]
    assert kept.draws == memory.draws == sum(kept.table["draws"].to_pylist())
    assert list(kept.to_pandas().columns) == kept.table.column_names
    assert capfd.readouterr() == ("", "")


def test_facts_of_ones_own(small_world: Path) -> None:
    facts = [Fact("a", "own", "test", "in_domain", "s", "Who?", "Ann", prompts=("It is", "She is"))]
    frame = knowshift.load_facts(facts).to_pandas()
    assert frame.loc[0, "answer"] == "Ann"
    found = knowshift.mastery(small_world, facts, **QUICK)
    assert found.table["prompt_draws"].to_pylist() == [[2, 2]]


def test_from_mastery_to_a_restored_model(world: str, small_world: Path, known: Mastery, tmp_path: Path) -> None:
    """All verbs one after the other, once on disk and once in memory."""
    base = loaded(small_world)
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    options = {"level": 2, "size": 8, "learning_rate": 1e-2, "batch_size": 4}
    on_disk = knowshift.finetune(world, world, known, output_dir=tmp_path / "tuned", **options)
    in_memory = knowshift.finetune(base, world, known, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.named_parameters())  # a copy was trained
    assert on_disk.facts == in_memory.facts
    assert on_disk.record["losses"] == pytest.approx(in_memory.record["losses"], rel=1e-5)
    levels = dict(zip(known.table["fact"].to_pylist(), known.table["level"].to_pylist(), strict=True))
    assert {levels[fact] for fact in on_disk.facts} == {2}

    asked = knowshift.evaluate(tmp_path / "tuned", world, known, output=tmp_path / "a.parquet")
    held = knowshift.evaluate(on_disk.model, world, known)
    assert asked.table.equals(held.table)
    assert asked.accuracy == held.accuracy
    assert pq.read_table(asked.output).num_rows == asked.table.num_rows > 0

    shift = knowshift.tokens(world, on_disk.model, world, known, output=tmp_path / "t.parquet")
    values = [value for value in shift.table["kl"].to_pylist() if value is not None]
    assert (shift.facts, shift.level_4_facts) == (len(values), shift.table.num_rows)
    assert shift.kl_mean == (pytest.approx(np.mean(values)) if values else None)

    files = knowshift.weights(small_world, tmp_path / "tuned", fraction=[0.1, "0.20"], output=tmp_path / "w.parquet")
    modules = knowshift.weights(base, on_disk.model, fraction=[0.1, 0.2])
    mixed = knowshift.weights(small_world, on_disk.model.model, fraction=[0.1, 0.2])
    assert files.change == mixed.change
    assert files.change.rounding is not None  # the base is stored in bfloat16, and loaded in float32
    unrounded = [replace(tensor, rounded=None) for tensor in files.change.tensors]
    assert modules.change == replace(files.change, rounding=None, tensors=unrounded)
    assert list(files.change.concentration["relative"]) == ["0.1", "0.2"]
    frame = files.to_pandas()
    assert frame["size"].sum() == files.change.eligible
    assert isinstance(frame, pd.DataFrame)

    done = knowshift.restore(small_world, tmp_path / "tuned", fraction=[0.25, 1.0], output_dir=tmp_path / "restored")
    assert list(done.output) == ["0.25", "1"]
    place = knowshift.restore(base, in_memory.model, fraction=0.25)
    assert place.output == {}
    assert place.restored["0.25"] == done.restored["0.25"] == round(0.25 * done.eligible)
    quarter = StoredTensors(done.output["0.25"])
    for name, tensor in in_memory.model.model.named_parameters():
        stored = torch.from_numpy(np.array(quarter.read(name, 0, tensor.numel())))
        assert torch.allclose(tensor.detach().flatten(), stored, atol=1e-6), name


def test_what_a_loaded_model_cannot_do_is_refused(
    world: str, small_world: Path, known: Mastery, tmp_path: Path
) -> None:
    base, tuned = loaded(small_world), loaded(small_world)
    with pytest.raises(InputError, match="a loaded model is restored in place"):
        knowshift.restore(base, tuned, fraction=0.1, output_dir=tmp_path / "out")
    with pytest.raises(InputError, match="a loaded model is restored to one fraction"):
        knowshift.restore(base, tuned, fraction=[0.1, 0.2])
    with pytest.raises(InputError, match="output_dir is missing"):
        knowshift.restore(small_world, small_world, fraction=0.1)
    with pytest.raises(InputError, match="a model of type Linear; expected a folder"):
        knowshift.evaluate(torch.nn.Linear(2, 2), world, known)
    tuned.name_or_path = "nowhere"
    tuned.config._name_or_path = "nowhere"
    with pytest.raises(InputError, match=r"nowhere: no folder with a tokenizer; give load_model\(model, tokenizer="):
        knowshift.evaluate(tuned, world, known)
    model = knowshift.load_model(tuned, tokenizer=AutoTokenizer.from_pretrained(small_world))
    assert knowshift.evaluate(model, world, known, limit=3).table.num_rows == 3
    assert list(tmp_path.iterdir()) == []


def test_two_models_in_memory_are_told_apart(small_world: Path) -> None:
    one, other = (knowshift.load_model(loaded(small_world)) for _ in range(2))
    assert one.identity == other.identity
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    assert knowshift.load_model(other.model).identity != one.identity


def test_a_record_says_of_a_loaded_model_what_its_weights_are_now(
    world: str, small_world: Path, known: Mastery, tmp_path: Path
) -> None:
    """Not what they were when it was loaded: else a changed model would be given the record of the one before."""
    base, tuned = knowshift.load_model(small_world), knowshift.load_model(small_world)
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            parameter += 0.1
    tuned.model.train()
    output = tmp_path / "m.parquet"
    kept = knowshift.mastery(tuned, world, output=output, limit=4, **QUICK)
    assert knowshift.mastery(tuned, world, output=output, limit=4, **QUICK).table.equals(kept.table)
    assert not tuned.model.training
    knowshift.restore(base, tuned, fraction=0.5)
    with pytest.raises(InputError, match="recorded with another model"):
        knowshift.mastery(tuned, world, output=output, limit=4, **QUICK)

    done = knowshift.finetune(base, world, known, level=2, size=4, learning_rate=1e-2)
    said = []
    for model in (base, done.model, knowshift.load_model(small_world)):
        knowshift.evaluate(model, world, known, limit=2, output=tmp_path / "a.parquet")
        said.append(read_about(tmp_path / "a.parquet", "answers"))
    assert said[0]["identity"] == said[2]["identity"] != said[1]["identity"]
    assert done.model.name == f"{said[0]['model']}, fine-tuned"


def test_a_model_that_was_tuned_in_memory_is_written_as_it_is(
    world: str, small_world: Path, known: Mastery, tmp_path: Path
) -> None:
    done = knowshift.finetune(
        loaded(small_world), world, known, level=2, size=4, learning_rate=1e-2, output_dir=tmp_path / "tuned"
    )
    again = knowshift.load_model(tmp_path / "tuned")
    ours, theirs = (dict(model.model.named_parameters()) for model in (done.model, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert again.stop_ids() == done.model.stop_ids() == knowshift.load_model(small_world).stop_ids()
    texts = ["Who is it?", "<|question|> Who? <|answer|>"]
    assert again.encoder.prompts(texts) == knowshift.load_model(small_world).encoder.prompts(texts)
    held, read = (knowshift.evaluate(model, world, known) for model in (done.model, tmp_path / "tuned"))
    assert held.table.equals(read.table)


def test_records_of_other_facts_are_refused(world: str, known: Mastery, small_world: Path) -> None:
    with pytest.raises(InputError, match=r"^the mastery record: fact .* is not that of world:tiny"):
        knowshift.evaluate(small_world, "world:tiny", known)


def test_a_study_is_planned(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give either a config file or --preset"):
        knowshift.plan_study()
    plan = knowshift.plan_study(preset="tiny", output_dir=tmp_path / "run")
    assert plan.cells == plan.missing
    assert set(plan.cells) >= {"mastery", "tuned", "restoration"}
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_its_page_its_findings_and_its_tables(hand_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(hand_run, run)
    found = knowshift.report(run)
    assert found.output == run / "report.html"
    assert [finding.number for finding in found.findings] == [1, 2, 3, 4]
    frame = found.to_pandas("accuracy")
    rows = list(csv.DictReader((run / "tables" / "accuracy.csv").read_text().splitlines()))
    assert frame["facts"].tolist() == [int(row["facts"]) for row in rows]
    assert set(found.tables) == {file.stem for file in (run / "tables").glob("*.tex")} >= {"accuracy", "paper_accuracy"}
    with pytest.raises(InputError, match="no table 'acuracy'; nearest: 'accuracy'"):
        found.to_pandas("acuracy")


def test_bars_are_for_people_who_watch(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_watched()
    for shown, seen in ((None, False), (False, False), (True, True)):
        with bar("facts", 2, "fact", shown) as advance:
            advance(1)
            advance(1)
        assert ("facts" in capsys.readouterr().err) == seen


def test_a_strategy_is_given_the_facts_that_the_base_knows(world: str, small_world: Path, known: Mastery) -> None:
    options = {"level": 2, "size": 4, "learning_rate": 1e-2, "seed": 3}
    done = knowshift.finetune(world, world, known, strategy="corda", settings={"texts": 5, "rank": 2}, **options)
    strategy = Corda(texts=5, rank=2)
    mastered = known_facts(knowshift.load_facts(world).facts, known.table, world)
    draw = Draw(mastered, level=2, size=4, draw=0, seed=3)
    model = load_model(str(small_world))
    recipe = TrainingRecipe(learning_rate=1e-2)
    finetune(model, draw.members, recipe, seed=3, strategy=strategy, known=mastered)
    expected = model.model.state_dict()
    assert done.facts == [fact.id for fact in draw.members]
    assert all(torch.equal(weight, expected[name]) for name, weight in done.model.model.state_dict().items())
