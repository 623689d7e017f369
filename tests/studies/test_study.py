"""The whole study on the shipped world, small: facts to report, resumed after a kill, the same tables either way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from commands import Command
from knowshift.api.studies import plan_study, report, study
from knowshift.errors import InputError, KnowshiftWarning
from knowshift.models.finding import find_model
from knowshift.models.loading import load_model
from knowshift.records import read_about
from knowshift.studies import memory
from knowshift.studies import run as study_run
from knowshift.studies.config import StudyConfig, load_config, parse_config
from knowshift.studies.folder import alone, check_folder, no_longer_asked, remove_leftovers
from knowshift.studies.plan import Cell, Unit, make_plan, probed_facts
from knowshift.studies.run import describe_model, plan_of, run_study
from knowshift.studies.work import Worker

SMALL = """
name: small
model: world:tiny
facts: world:tiny
levels: [0, 4]
sizes: [8, 16]
draws: 2
keep_checkpoints: false
mastery: {draws_per_prompt: 1, train_facts: 120, test_facts: 30, facts_per_cell: 100, max_new_tokens: 6}
training: {learning_rate: 3.0e-4}
evaluation: {facts_per_level: 3, few_shot: 1}
restoration: {fractions: [0.2, 0.6], train_set_fractions: [0.2]}
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


def _cells(run: Path, kind: str) -> int:
    return len(list(run.glob(f"cells/{kind}/[0-9a-f]*")))


def _until(reached: Callable[[], bool], process: Command) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, process.communicate(60)[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _ray_worker(address: str) -> psutil.Process:
    """A process that does a unit on a node of the cluster with this address."""
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            node = process.parent()
            if process.info["name"] == "ray::_on_node" and node and f"--gcs-address={address}" in node.cmdline():
                return process
    raise AssertionError(address)


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_worker_a_node_and_its_head_gives_the_same_tables(
    config_file: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "20")  # for which nodes wait for their head
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node, run, address = cluster.add_node(num_cpus=1), tmp_path / "ray", cluster.address
        monkeypatch.setenv("RAY_ADDRESS", address)
        process = _study(config_file, run, "--executor", "ray")
        _until(lambda: _cells(run, "evaluation") >= 1, process)
        _ray_worker(address).kill()
        _until(lambda: _cells(run, "layer_groups") + _cells(run, "evaluation") >= 5, process)
        cluster.remove_node(node, allow_graceful=False)
        done = _cells(run, "evaluation")
        _until(lambda: _cells(run, "evaluation") >= done + 2, process)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        _, err = process.communicate(timeout=120)
    finally:
        cluster.shutdown()
    said = [line for line in err.splitlines() if not re.match(r"\[\d+/15\] |it may be interrupted", line)]
    assert process.returncode == 2, err
    assert said[-1].startswith(f"knowshift: Ray at {address}: ended")
    assert "what is done stays, the same command goes on" in said[-1]
    # What was running was lost, once each, and at most one unit that Ray gave the node before it saw that it had gone.
    assert 1 <= len(said[:-1]) == len(set(said[:-1])) <= 3, err
    assert all(re.fullmatch(r"knowshift: warning: .*: its worker was .*; it is done again", line) for line in said[:-1])
    before = {path: path.stat().st_mtime_ns for path in run.glob("cells/*/[0-9a-f]*")}
    monkeypatch.delenv("RAY_ADDRESS")
    again = _study(config_file, run, "--executor", "processes", "--workers", "2")
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
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


#: Mastery of 30 facts, after which the study is refused: a level does not have so many.
PROBED = """
name: probed
model: world:tiny
facts: world:tiny
levels: [0]
sizes: [19]
draws: 1
mastery: {draws_per_prompt: 1, train_facts: 20, test_facts: 5, facts_per_cell: 16, max_new_tokens: 4}
"""


def test_two_runs_of_one_folder_do_cells_twice_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system cannot lock, the second one begins, and ends a cell first that the first one has begun."""
    config, run = parse_config(PROBED, "probed"), tmp_path / "run"
    first, second = Worker(run, config), Worker(run, config)
    unit = first.plan.probes[0]
    begun = first._mastery

    def meanwhile(cell: Cell, its: Unit, folder: Path) -> None:
        remove_leftovers(run)
        second.do(its)
        begun(cell, its, folder)

    monkeypatch.setattr(first, "_mastery", meanwhile)
    first.do(unit)
    (cell,) = unit.cells
    assert [path.name for path in cell.folder(run).parent.iterdir()] == [cell.digest]
    made = cell.folder(run) / "mastery.parquet"
    before = made.read_bytes()
    made.unlink()
    cell.folder(run).rmdir()
    second.do(unit)
    assert made.read_bytes() == before


def test_a_file_system_without_locks_is_told_and_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with alone(tmp_path / "run"), pytest.raises(InputError, match="another process"), alone(tmp_path / "run"):
        pass
    monkeypatch.setattr(FileLock, "acquire", cannot)
    with (
        pytest.warns(KnowshiftWarning, match="cannot lock; a second run in it would do cells twice"),
        alone(tmp_path / "run"),
    ):
        pass


#: In a process of its own: as on a disk that is full, or fills up while the first cell is made.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))"
FILLS_UP = f"""
from knowshift.studies.work import Worker
whole = Worker._mastery
def mastery(*given):
    {FULL}
    whole(*given)
Worker._mastery = mastery
"""
#: In a process of its own, of root: a folder that cannot be written to.
READ_ONLY = """
import ctypes, subprocess
assert ctypes.CDLL(None).unshare(0x00020000) == 0  # mounts of its own
for words in (["--make-rprivate", "/"], ["--bind", "{0}", "{0}"], ["-o", "remount,ro,bind", "{0}"]):
    subprocess.run(["mount", *words], check=True)
"""


def test_a_full_and_a_read_only_run_folder_are_one_line_and_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "probed.yaml").write_text(PROBED)
    run = tmp_path / "run"
    words = ["study", str(tmp_path / "probed.yaml"), "--output-dir", str(run), "--executor", "here"]
    for before, file in ((FULL, "manifest.json"), (FILLS_UP, r"cells/mastery/\S+")):
        _, err = (full := Command(words, before=before)).communicate(timeout=120)
        assert full.returncode == 2, err
        assert re.fullmatch(rf"knowshift: {run}/{file}: File too large; nothing was written", err.strip())
        assert not [path for path in run.rglob("*") if path.is_file() and path.name != "manifest.json"]
    _, err = (again := Command(words)).communicate(timeout=120)
    assert (again.returncode, "19 asked" in err) == (2, True), err
    held = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len([path for path in held if path.name == "mastery.parquet"]) == 2
    if os.geteuid() == 0:
        closed = Command(words, before=READ_ONLY.format(run))
    else:
        run.chmod(0o555)
        closed = Command(words)
    _, err = closed.communicate(timeout=120)
    run.chmod(0o755)
    assert closed.returncode == 2, err
    assert re.fullmatch(rf"knowshift: {run}/\S+: the folder {run}.* cannot be written to \(.*\)", err.strip())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == held


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
    assert len(probed_facts(facts.facts, config)) == 120 + 30 + 30


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
    with pytest.raises(InputError, match="120 training facts are probed, 121 asked"):
        run_study(parse_config(SMALL.replace("[8, 16]", "[8, 121]"), "x"), tmp_path / "run", executor="here")
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
    del earlier["training"]["shards"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"config": earlier}))
    (tmp_path / "run" / "cells" / "tuned" / "abc").mkdir(parents=True)
    check_folder(tmp_path / "run", config)
    more = {"restoration.tasks": ["text_loss"], "restoration.tasks_limit": 5, "instruct": "world:tiny"}
    more["variants"] = {"longer": {"epochs": 2}}
    check_folder(tmp_path / "run", parse_config(SMALL, "small", more))  # they add cells and change none
    for other in ({"restoration.region": "mlp"}, {"training.shards": 2}):
        with pytest.raises(InputError, match=rf"another config.*{next(iter(other)).partition('.')[0]}"):
            check_folder(tmp_path / "run", parse_config(SMALL, "small", other))
    earlier = config.as_record()  # of a version that had fewer fields
    del earlier["control_draws"], earlier["mastery"]["servers"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"config": earlier}))
    check_folder(tmp_path / "run", config)
    asking = parse_config(SMALL.replace("mastery: {", "mastery: {servers: ['http://here'], "), "small")
    (tmp_path / "run" / "cells" / "base" / "abc").mkdir(parents=True)
    with pytest.raises(InputError, match="another config"):
        check_folder(tmp_path / "run", asking)
    elsewhere = json.loads(json.dumps({"config": asking.as_record()}).replace("here", "there"))
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(elsewhere))
    check_folder(tmp_path / "run", asking)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a run"):
        check_folder(tmp_path / "full", config)


def test_sizes_that_levels_cannot_fill_are_refused_and_may_then_be_changed(tmp_path: Path) -> None:
    small = SMALL.replace("levels: [0, 4]", "levels: [3]").replace("draws: 2", "draws: 1", 1)
    small = small.replace("train_facts: 120, test_facts: 30", "train_facts: 50, test_facts: 5")
    config = parse_config(small.replace("[8, 16]", "[8, 45]"), "small")
    with pytest.raises(InputError, match=r"level 3 has \d+ training facts among the 50 probed, 45 asked"):
        run_study(config, tmp_path / "run", executor="here")
    enough = small.replace("levels: [3]", "levels: [0]")
    large = parse_config(enough + "bench: {strategies: {sft: {}}, sizes: [60]}\n", "small")
    with pytest.raises(InputError, match=r"all levels together has \d+ training facts among the 50 probed, 60 asked"):
        run_study(large, tmp_path / "run", executor="here")
    none = parse_config(enough.replace("facts_per_level: 3", "facts_per_level: 3, levels: [3]"), "small")
    with pytest.raises(InputError, match=r"no test fact is of levels \[3\], which evaluation.levels asks for"):
        run_study(none, tmp_path / "run", executor="here")
    check_folder(tmp_path / "run", parse_config(small, "small"))
    with pytest.raises(InputError, match="another config"):
        check_folder(tmp_path / "run", parse_config(small + "seed: 4\n", "small"))
    (tmp_path / "run" / "cells" / "tuned" / "abc").mkdir(parents=True)
    with pytest.raises(InputError, match="another config"):
        check_folder(tmp_path / "run", parse_config(small, "small"))


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Path]:
    """One tuned model with its checkpoint and all its measures."""
    text = SMALL.replace("[0, 4]", "[0]").replace("[8, 16]", "[8]").replace("draws: 2", "draws: 1", 1)
    text = text.replace("train_facts: 120, test_facts: 30", "train_facts: 60, test_facts: 20")
    text = text.replace("keep_checkpoints: false", "control_rate: null").replace("3.0e-4}", "3.0e-4, bfloat16: true}")
    text = text.replace(
        "max_new_tokens: 6}", "max_new_tokens: 6, estimate: expected, dtype: bfloat16, least_weight: 0.5}"
    )
    config, run = parse_config(text, "small"), tmp_path_factory.mktemp("kept") / "run"
    run_study(config, run, executor="here")
    return config, run


MEASURES = ("evaluation", "token_shift", "weight_change", "restoration", "train_set", "layer_groups")


@pytest.mark.slow
def test_a_tuned_model_measures_the_same_however_models_are_held(
    kept_run: tuple[StudyConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and tuned model in memory, the tuned one from its checkpoint, and one at a time."""
    config, run = kept_run
    (record,) = run.glob("cells/mastery/*/mastery.parquet")
    assert "variance" in pq.read_schema(record).names
    about = read_about(record, "mastery")
    assert (about["dtype"], about["part"]) == ("bfloat16", 0)
    (base,) = run.glob("cells/base/*/answers.parquet")
    assert read_about(base, "answers")["dtype"] == "float32"
    (tuned,) = run.glob("cells/tuned/*/model")
    tiny = load_model("world:tiny").folder
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tuned.iterdir()} == {*beside, "model.safetensors"}
    for name in beside - {"config.json"}:
        assert (tuned / name).read_bytes() == (tiny / name).read_bytes()
    before = {path: path.read_bytes() for kind in MEASURES for path in run.glob(f"cells/{kind}/*/*")}
    for path in before:
        shutil.rmtree(path.parent, ignore_errors=True)
    run_study(config, run, executor="processes", workers=1)  # another process: nothing is in memory
    assert {path: path.read_bytes() for path in before} == before

    def made(folder: Path) -> dict[Path, bytes]:
        files = [path for kind in ("tuned", *MEASURES) for path in (folder / "cells" / kind).rglob("*")]
        return {path.relative_to(folder): path.read_bytes() for path in files if path.is_file()}

    turns = tmp_path / "turns"
    shutil.copytree(run, turns)
    monkeypatch.setattr(memory, "planned_room", lambda config: 0)
    worker = Worker(turns, config)
    probed = {path: path.read_bytes() for path in turns.glob("cells/mastery/*/*")}
    for _ in range(2):  # the second time the base has become the tuned model, and is read again
        for kind in ("tuned", *MEASURES):
            shutil.rmtree(turns / "cells" / kind)
        for unit in worker.plan.tuned:
            worker.do(unit)
        assert made(turns) == made(run)
        # Mastery is measured on the base again, not on the object that has become a tuned model.
        shutil.rmtree(turns / "cells" / "mastery")
        for unit in worker.plan.probes:
            worker.do(unit)
        assert {path: path.read_bytes() for path in turns.glob("cells/mastery/*/*")} == probed
    assert no_longer_asked(run, worker.plan) == []
    fewer = config.model_copy(update={"restoration": config.restoration.model_copy(update={"layer_group": 0})})
    assert no_longer_asked(run, plan_of(fewer)[0]) == ["1 of layer_groups"]


@pytest.mark.slow
def test_a_run_at_a_url_has_the_same_cells_and_report_on_every_machine(
    kept_run: tuple[StudyConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = kept_run
    report(run)
    expected = {path.relative_to(run): path.read_bytes() for path in run.rglob("*.*") if path.suffix != ".lock"}
    store, url = tmp_path / "store", f"file://{tmp_path}/store"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    told = study(config, output_dir=url, executor="here", progress=False)
    assert (told.run, told.report.output) == (url, f"{url}/report.html")
    # Another machine, which has no copy, makes measures again whose marks are gone, from the checkpoint at the URL.
    for kind in MEASURES:
        shutil.rmtree(store / "cells" / kind)
    trained = {path: path.stat().st_mtime_ns for path in store.glob("cells/tuned/*/*/*")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    plan = plan_study(config, output_dir=url)
    assert (plan.run, sum(plan.missing.values())) == (url, len(MEASURES))
    study(config, output_dir=url, executor="processes", workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in store.glob("cells/tuned/*/*/*")} == trained
    # A third one reads it, and does not fetch the checkpoint.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    (store / "report.html").unlink()
    report(url)
    (copy,) = (tmp_path / "three" / "knowshift" / "runs").iterdir()
    found = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.*") if "marks" not in path.parts}
    timed = (Path("manifest.json"), Path("report.html"))  # seconds differ
    without = {name: content for name, content in expected.items() if "model" not in name.parts and name not in timed}
    assert {name: content for name, content in found.items() if name not in timed} == without
    for folder in ("tables", "figures"):
        assert _files(store / folder) == _files(run / folder)
    assert "<svg" in (store / "report.html").read_text()
    with pytest.raises(InputError, match=f"^{url}: holds the run of another config"):
        study(config, overrides={"seed": 5}, output_dir=url)
    with pytest.raises(InputError, match=f"^file://{tmp_path}: is not empty and is not a run"):
        study(config, output_dir=f"file://{tmp_path}")


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


def test_a_worker_does_not_say_again_what_the_plan_has_said(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(find_model("world:tiny").weights, copy)
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"pad_token": tokenizer["eos_token"]}))
    config = parse_config(SMALL.replace("model: world:tiny", f"model: {copy}"), "small")
    with pytest.warns(KnowshiftWarning, match="the pad token equals"):
        plan_of(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worker = Worker(tmp_path / "run", config)
        assert worker.base.name == str(copy)
        assert worker._load(str(copy)).name == str(copy)
