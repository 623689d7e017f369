"""The whole study on the shipped world, small: facts to report, resumed after a kill, the same tables either way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from commands import Command
from knowshift.errors import InputError
from knowshift.models.finding import find_model
from knowshift.models.loading import load_model
from knowshift.studies import run as study_run
from knowshift.studies.config import load_config, parse_config
from knowshift.studies.folder import check_folder
from knowshift.studies.plan import make_plan, probed_facts
from knowshift.studies.run import describe_model, plan_of, run_study

SMALL = """
name: small
model: world:tiny
facts: world:tiny
levels: [0, 4]
sizes: [8, 16]
draws: 2
keep_checkpoints: false
mastery: {draws_per_prompt: 2, train_facts: 160, test_facts: 60, facts_per_cell: 150, max_new_tokens: 8}
training: {learning_rate: 3.0e-4}
evaluation: {facts_per_level: 6, few_shot: 1}
restoration: {fractions: [0.2, 0.6]}
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


def _study(config: Path, run: Path, *more: str) -> Command:
    return Command(["study", str(config), "--output-dir", str(run), "--json", *more])


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole_run(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = _study(config_file, run, "--executor", "here")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["report"] == str(run / "report.html")
    return run


def test_the_study_ends_in_records_tables_figures_and_a_report(whole_run: Path) -> None:
    manifest = json.loads((whole_run / "manifest.json").read_text())
    for cell in manifest["cells"]:
        assert (whole_run / "cells" / cell["kind"] / cell["digest"]).is_dir()
    kinds = [cell["kind"] for cell in manifest["cells"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "mastery": 2,
        "base": 1,
        "tuned": 12,  # 2 levels x (2 sizes + the largest at a third of the rate) x 2 draws
        "evaluation": 12,
        "token_shift": 12,
        "weight_change": 12,
        "restoration": 4,
        "train_set": 4,
        "layer_groups": 4,
    }
    assert manifest["packages"]["torch"]
    assert manifest["model"]["dtype"] == "float32"
    page = (whole_run / "report.html").read_text()
    assert "<svg" in page
    # Nothing is loaded from anywhere: addresses stand in namespaces and in links to read on, never where a page loads.
    assert not re.search(r"""(?:src|srcset|poster|data)\s*=|@import|url\((?!#)|<link|<iframe""", page)
    assert list((whole_run / "figures").glob("*.svg"))
    assert list((whole_run / "tables").glob("*.csv"))


#: In the middle of the first cell, between cells of the second stage, and while the report is written. Who does the
#: work may change from start to start; starting workers is most of a start's time.
MOMENTS = {
    "cells/mastery/.*": ("here",),
    "cells/evaluation/[0-9a-f]*": ("processes", "--workers", "2"),
    "tables/*.csv": ("here",),
}


def test_killed_at_any_moment_and_run_again_it_ends_in_the_same_tables(
    config_file: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    done: dict[Path, int] = {}
    for moment, executor in MOMENTS.items():
        process = _study(config_file, run, "--executor", *executor)
        deadline = time.monotonic() + 240
        while not list(run.glob(moment)):
            assert process.poll() is None, process.communicate(60)[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(60)
        assert all(path.stat().st_mtime_ns == when for path, when in done.items())
        done = {path: path.stat().st_mtime_ns for path in run.glob("cells/*/*") if not path.name.startswith(".")}

    again = _study(config_file, run, "--executor", "here")
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert _files(run / "tables") == _files(whole_run / "tables")
    assert _files(run / "figures") == _files(whole_run / "figures")
    for file in sorted((whole_run / "cells").glob("*/*/*")):
        assert (run / file.relative_to(whole_run)).read_bytes() == file.read_bytes(), file
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert not list(run.glob("cells/*/.*"))


def test_a_ray_cluster_gives_the_same_tables(config_file: Path, whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "ray"
    process = _study(config_file, run, "--executor", "ray")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert _files(run / "tables") == _files(whole_run / "tables")


def test_interrupting_ends_in_130_and_says_how_to_go_on(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "interrupted"
    process = _study(config_file, run, "--executor", "here")
    deadline = time.monotonic() + 120
    while not (run / "manifest.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on where it stopped" in err.splitlines()[-1]


def test_a_run_that_ends_badly_lets_others_into_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(study_run, "write_manifest", full)
    with pytest.raises(OSError, match="disk full"):
        study_run.run_study(parse_config(SMALL, "small"), tmp_path / "run", executor="here")
    FileLock(tmp_path / ".run.lock").acquire(blocking=False)


def test_a_dry_run_prints_the_plan_and_writes_nothing(config_file: Path, tmp_path: Path) -> None:
    process = _study(config_file, tmp_path / "dry", "--dry-run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["missing"]["tuned"] == 12
    assert "mastery: 2 cells, 0 done" in err
    assert not (tmp_path / "dry").exists()


def test_a_digest_follows_what_a_cell_depends_on_and_nothing_else() -> None:
    config = parse_config(SMALL, "small")
    plan, about = plan_of(config)
    from knowshift.facts.sources.load import load_facts

    facts = load_facts("world:tiny")
    identity = about["model"]["identity"]

    def digests(text: str) -> dict[tuple[str, str], str]:
        its = make_plan(parse_config(text, "x"), facts.facts, facts.digest(), identity)
        return {(cell.kind, json.dumps(cell.coordinates, sort_keys=True)): cell.digest for cell in its.cells}

    before = digests(SMALL)
    assert len(set(before.values())) == len(plan.cells)
    assert digests(SMALL.replace("name: small", "name: other")) == before
    fractions = digests(SMALL.replace("[0.2, 0.6]", "[0.2, 0.4]"))
    assert {key[0] for key in before if fractions[key] != before[key]} == {"restoration"}
    seeds = digests(SMALL + "seed: 5\n")
    assert not set(seeds.values()) & set(before.values())
    assert len(probed_facts(facts.facts, config)) == 160 + 60 + 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("draw: 3", "unknown key 'draw'; nearest: 'draws'"),
        ("training: {learning_rates: 1}", "unknown key 'training.learning_rates'; nearest: 'learning_rate'"),
        ("levels: [5]", "levels.0: Input should be less than or equal to 4"),
        ("sizes: [8, 8]", "distinct"),
        ("sizes: []", "sizes: Tuple should have at least 1 item"),
        ("levels: []", "levels: Tuple should have at least 1 item"),
        ("name: " + "x" * 101, "at most 100 characters"),
        ("name: ../up", "name"),
        ("restoration: {sizes: [7]}", "7 is not among the sizes"),
        ("- a list", "not YAML"),
        ("restoration: {fractions: [1.5]}", "restoration.fractions.0"),
        ("restoration: {train_set_fractions: [0.2, 0.05]}", "train_set_fractions: expected ascending values"),
        ("restoration: {layer_group: -1}", "restoration.layer_group"),
        ("restoration: {criteria: [same-nor]}", "'same-nor' is not known; nearest: 'same-norm'"),
        ("mastery: {estimate: guess}", "mastery.estimate: Input should be 'hits' or 'expected'"),
        ("mastery: {estimate: expected, stopping: exact}", "mastery: stopping rule 'exact' counts hits"),
        ("mastery: {texts: 2}", "mastery: 2 texts: expected with --estimate expected only"),
        ("mastery: {estimate: expected, texts: 1}", "mastery.texts: Input should be greater than or equal to 2"),
        ("restoration: {criteria: [dg-hard]}", "'dg-hard' sets its own threshold and takes no fraction"),
    ],
)
def test_a_config_that_is_off_is_refused_in_one_line(change: str, said: str) -> None:
    kept = [line for line in SMALL.splitlines() if line.split(":")[0] != change.split(":")[0]]
    with pytest.raises(InputError) as failure:
        parse_config("\n".join([*kept, change]), "small.yaml")
    assert said in str(failure.value)
    assert "small.yaml" in str(failure.value)


def test_more_facts_than_a_level_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="160 training facts are probed, 161 asked"):
        run_study(parse_config(SMALL.replace("[8, 16]", "[8, 161]"), "x"), tmp_path / "run", executor="here")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_config_or_of_something_else_is_left_alone(tmp_path: Path) -> None:
    config = parse_config(SMALL, "small")
    (tmp_path / "run").mkdir()
    check_folder(tmp_path / "run", config)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"config": {**config.as_record(), "seed": 3}}))
    with pytest.raises(InputError, match=r"another config.*seed: 3 there, 0 asked"):
        check_folder(tmp_path / "run", config)
    earlier = config.as_record()
    del earlier["instruct"], earlier["restoration"]["tasks"]  # of a version that had no such fields
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"config": earlier}))
    (tmp_path / "run" / "cells" / "tuned").mkdir(parents=True)
    check_folder(tmp_path / "run", config)
    more = {"restoration.tasks": ["text_loss"], "restoration.tasks_limit": 5, "instruct": "world:tiny"}
    check_folder(tmp_path / "run", parse_config(SMALL, "small", more))  # they add cells and change none
    with pytest.raises(InputError, match=r"another config.*restoration"):
        check_folder(tmp_path / "run", parse_config(SMALL, "small", {"restoration.region": "mlp"}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a run"):
        check_folder(tmp_path / "full", config)


def test_sizes_that_levels_cannot_fill_are_refused_and_may_then_be_changed(tmp_path: Path) -> None:
    small = SMALL.replace("levels: [0, 4]", "levels: [3]").replace("draws: 2", "draws: 1", 1)
    config = parse_config(small.replace("[8, 16]", "[8, 150]"), "small")
    with pytest.raises(InputError, match=r"level 3 has \d+ training facts among the 160 probed, 150 asked"):
        run_study(config, tmp_path / "run", executor="here")
    check_folder(tmp_path / "run", parse_config(small, "small"))
    with pytest.raises(InputError, match="another config"):
        check_folder(tmp_path / "run", parse_config(small + "seed: 4\n", "small"))
    (tmp_path / "run" / "cells" / "tuned").mkdir()
    with pytest.raises(InputError, match="another config"):
        check_folder(tmp_path / "run", parse_config(small, "small"))


def test_a_tuned_model_measures_the_same_from_memory_and_from_its_checkpoint(tmp_path: Path) -> None:
    text = SMALL.replace("[0, 4]", "[0]").replace("[8, 16]", "[8]").replace("draws: 2", "draws: 1", 1)
    text = text.replace("train_facts: 160, test_facts: 60", "train_facts: 60, test_facts: 20")
    text = text.replace("keep_checkpoints: false", "control_rate: null").replace("3.0e-4}", "3.0e-4, bfloat16: true}")
    text = text.replace("max_new_tokens: 8}", "max_new_tokens: 8, estimate: expected}")
    config, run = parse_config(text, "small"), tmp_path / "run"
    run_study(config, run, executor="here")
    (record,) = run.glob("cells/mastery/*/mastery.parquet")
    assert "variance" in pq.read_schema(record).names
    (tuned,) = run.glob("cells/tuned/*/model")
    tiny = load_model("world:tiny").folder
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tuned.iterdir()} == {*beside, "model.safetensors"}
    for name in beside - {"config.json"}:
        assert (tuned / name).read_bytes() == (tiny / name).read_bytes()
    measures = ("evaluation", "token_shift", "weight_change", "restoration", "train_set", "layer_groups")
    before = {path: path.read_bytes() for kind in measures for path in run.glob(f"cells/{kind}/*/*")}
    for path in before:
        shutil.rmtree(path.parent, ignore_errors=True)
    run_study(config, run, executor="processes", workers=1)  # another process: nothing is in memory
    assert {path: path.read_bytes() for path in before} == before


def test_a_plan_describes_the_model_that_workers_load(small_world: Path) -> None:
    told = describe_model(find_model(str(small_world)), dtype="float32", device="cpu")
    loaded = load_model(str(small_world))
    assert told["identity"] == loaded.identity
    assert told["weights"] == sum(p.numel() for p in loaded.model.parameters())
    with pytest.raises(InputError, match="device 'cuda:99'"):
        describe_model(find_model(str(small_world)), dtype="float32", device="cuda:99")


def test_a_missing_config_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")
