"""Long runs: parts as they come, killed and resumed, any number of workers, and the command."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import Command
from knowshift.cli.mastery import mastery
from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import ModelFiles
from knowshift.models.loading import LoadedModel, load_model
from knowshift.probing import engines, run
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Protocol
from knowshift.probing.run import Outcome, facts_digest, run_mastery
from knowshift.probing.stopping import ERROR
from knowshift.records import MASTERY, read_table

PROTOCOL = Protocol(draws_per_prompt=2, max_new_tokens=6, seed=1)


@pytest.fixture
def facts(small_world: Path) -> list[Fact]:
    return list(load_facts(f"world:{small_world}").facts[:24])


@pytest.fixture
def spec(small_world: Path) -> EngineSpec:
    return EngineSpec(str(small_world), threads=1)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PART", 5)


def _clean(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_leaves_one_record_and_says_what_it_found(facts: list[Fact], spec: EngineSpec, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    outcome = run_mastery(spec, facts, tmp_path / "m.parquet", PROTOCOL, progress=lambda *at: told.append(at))
    assert _clean(tmp_path) == ["m.parquet"]
    table, about = read_table(tmp_path / "m.parquet", MASTERY, "mastery")
    assert table["fact"].to_pylist() == [fact.id for fact in facts]
    assert outcome == Outcome(24, outcome.levels, 24 * 21 * 2, about["positions"])
    assert sum(outcome.levels) == 24
    assert [at[:2] for at in told] == [(0, 24), (5, 24), (10, 24), (15, 24), (20, 24), (23, 24), (24, 24)]
    assert told[0][2] == 0
    assert told[-1][2] == about["positions"]
    assert (about["engine"], about["seed"], about["stopping"]) == ("transformers", 1, "full")
    assert about["facts"] == facts_digest(facts)


def test_parts_workers_and_resuming_make_no_difference(facts: list[Fact], spec: EngineSpec, tmp_path: Path) -> None:
    run_mastery(spec, facts, tmp_path / "whole.parquet", PROTOCOL)
    whole = (tmp_path / "whole.parquet").read_bytes()

    class Stop(Exception):
        pass

    def stop(done: int, total: int, positions: int) -> None:
        if done > 10:
            raise Stop

    with pytest.raises(Stop):
        run_mastery(spec, facts, tmp_path / "again.parquet", PROTOCOL, progress=stop)
    parts = tmp_path / "again.parquet.parts"
    assert _clean(parts) == ["about.json", "lock", "part-000000000.parquet", "part-000000005.parquet"]
    told: list[int] = []
    run_mastery(spec, facts, tmp_path / "again.parquet", PROTOCOL, workers=2, progress=lambda d, t, p: told.append(d))
    assert told[0] == 10
    assert (tmp_path / "again.parquet").read_bytes() == whole
    assert not parts.exists()
    # A finished record is left alone.
    before = (tmp_path / "again.parquet").stat().st_mtime_ns
    outcome = run_mastery(spec, facts, tmp_path / "again.parquet", PROTOCOL)
    assert outcome.facts == 24
    assert (tmp_path / "again.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(("light", "times"), [(0, 5), (run.LIGHT, 0)])
def test_a_large_model_has_its_memory_back_before_each_part(
    light: int, times: int, facts: list[Fact], spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(run, "LIGHT", light)
    monkeypatch.setattr(run, "give_back", lambda: given.append(1))
    run_mastery(spec, facts, tmp_path / "m.parquet", PROTOCOL)
    assert len(given) == times


def test_a_worker_that_fails_says_why_and_parts_stay(
    spec: EngineSpec, facts: list[Fact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last fact has an answer that samples cannot be searched for; the check before a run is passed by."""
    monkeypatch.setattr(run, "check_facts", lambda facts: None)
    blank = replace(facts[7], answer=" ")
    for workers in (1, 2):
        with pytest.raises(InputError, match="an accepted answer is empty"):
            run_mastery(spec, [*facts[:7], blank], tmp_path / "m.parquet", PROTOCOL, workers=workers)
        assert (tmp_path / "m.parquet.parts" / "part-000000000.parquet").exists()
        assert not (tmp_path / "m.parquet").exists()


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(
    spec: EngineSpec, facts: list[Fact], tmp_path: Path
) -> None:
    long = replace(facts[7], id="long", prompts=("word " * 600,))
    with pytest.raises(InputError, match=r"fact long: prompt .* does not fit into the model's context of 512"):
        run_mastery(spec, [*facts[:7], long], tmp_path / "m.parquet", PROTOCOL)
    assert _clean(tmp_path) == []


def test_one_output_has_one_writer(spec: EngineSpec, facts: list[Fact], tmp_path: Path) -> None:
    def again(done: int, total: int, positions: int) -> None:
        with pytest.raises(InputError, match="another process is writing there"):
            run_mastery(spec, facts, tmp_path / "m.parquet", PROTOCOL)

    run_mastery(spec, facts, tmp_path / "m.parquet", PROTOCOL, progress=again)
    assert _clean(tmp_path) == ["m.parquet"]


def test_an_output_that_cannot_be_written_is_refused_before_any_work(facts: list[Fact], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = EngineSpec("/no/such/model")
    with pytest.raises(InputError, match="is a folder; expected a file"):
        run_mastery(nowhere, facts, tmp_path, PROTOCOL)
    with pytest.raises(InputError, match="file is a file, not a folder"):
        run_mastery(nowhere, facts, tmp_path / "file" / "m.parquet", PROTOCOL)


def test_devices_are_dealt_out_to_the_workers_in_turn(spec: EngineSpec) -> None:
    """With names that no machine has: the one a worker is refused is the one it asked for."""
    several = replace(spec, devices=("cuda:70", "cuda:71"))
    for worker, device in enumerate(["cuda:70", "cuda:71", "cuda:70"]):
        with pytest.raises(InputError, match=f"device '{device}'"):
            several.open(worker)


GPUS = [
    # --device, --workers, GPUs, facts, megabytes -> devices, processes, threads of each
    ("cpu", None, 0, 1000, 4, ("cpu",), 4, 1),
    ("cpu", None, 2, 1000, 4, ("cpu",), 4, 1),
    ("auto", None, 0, 1000, 4, ("cpu",), 4, 1),
    ("cpu", None, 0, 300, 4, ("cpu",), 2, 1),  # two parts
    ("cpu", None, 0, 1000, 2000, ("cpu",), 1, None),
    ("cpu", 3, 0, 1000, 2000, ("cpu",), 3, None),
    ("auto", None, 2, 1000, 4, ("cuda:0", "cuda:1"), 2, None),
    ("cuda", None, 2, 1000, 2000, ("cuda:0", "cuda:1"), 2, None),
    ("cuda", None, 2, 200, 4, ("cuda:0", "cuda:1"), 1, None),  # one part
    ("cuda", 4, 2, 1000, 4, ("cuda:0", "cuda:1"), 4, None),
    ("cuda:1", None, 2, 1000, 4, ("cuda:1",), 1, None),
    ("cuda:1", 2, 2, 1000, 4, ("cuda:1",), 2, None),
    ("cuda:1", None, 2, 1000, 2000, ("cuda:1",), 1, None),
    ("mps", None, 0, 1000, 4, ("mps",), 1, None),
]


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "facts", "megabytes", "devices", "processes", "threads"), GPUS, ids=str
)
def test_a_gpu_gets_one_process_and_a_small_model_on_a_cpu_one_a_core(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    workers: int | None,
    gpus: int,
    facts: int,
    megabytes: int,
    devices: tuple[str, ...],
    processes: int,
    threads: int | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(ModelFiles, "bytes", megabytes << 20)
    monkeypatch.setattr(engines, "PART", 256)
    placed = EngineSpec("world:tiny", dtype="bfloat16").placed(device, workers, facts)
    heavy = megabytes > 64
    told = EngineSpec("world:tiny", dtype="bfloat16", devices=devices, threads=threads, heavy=heavy)
    assert placed == (told, processes)
    assert placed[0].part == (32 if heavy else engines.PART)


@pytest.mark.parametrize(
    ("megabytes", "free", "workers", "processes"),
    [
        (270, 24, None, 4),
        (270, 8, None, 2),  # 2.8 GB each
        (270, 2, None, 1),
        (900, 8, None, 1),
        (270, 2, 3, 3),  # who says how many gets them
        (4, 1, None, 4),
    ],
)
def test_no_more_processes_than_free_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, megabytes: int, free: int, workers: int | None, processes: int
) -> None:
    import psutil

    memory = psutil.virtual_memory()._replace(available=free << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(ModelFiles, "bytes", megabytes << 20)
    assert EngineSpec("world:tiny").placed("cpu", workers, 10_000)[1] == processes


def test_the_process_that_starts_workers_takes_no_gpu_and_says_why_a_worker_cannot(
    facts: list[Fact], spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs that only this process believes in: it never loads on one, and its workers are refused them."""
    opened: list[str] = []

    def load(name: str, *, device: str, **more: Any) -> LoadedModel:
        opened.append(device)
        return load_model(name, device="cpu", **more)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("knowshift.probing.engines.load_model", load)
    two = replace(spec, devices=("cuda:0", "cuda:1"))
    with pytest.raises(InputError, match=r"device 'cuda:[01]': this machine has 0 usable GPUs"):
        run_mastery(two, facts, tmp_path / "m.parquet", PROTOCOL, workers=2)
    assert opened == ["cpu"]
    assert json.loads((tmp_path / "m.parquet.parts" / "about.json").read_text())["device"] == "cuda:0"
    run_mastery(two, facts, tmp_path / "alone.parquet", PROTOCOL)
    assert opened == ["cpu", "cuda:0"]
    with pytest.raises(InputError, match="device 'cuda:2': this machine has 2 usable GPUs"):
        run_mastery(replace(spec, devices=("cuda:1", "cuda:2")), facts, tmp_path / "x.parquet", PROTOCOL, workers=2)
    assert opened == ["cpu", "cuda:0"]


def test_no_model_stays_in_a_process_whose_workers_have_their_own(
    facts: list[Fact], small_world: Path, tmp_path: Path
) -> None:
    copy = str(shutil.copytree(small_world, tmp_path / "model"))
    held: dict[int, set[int]] = {1: set(), 2: set()}
    for workers, counts in held.items():

        def look(done: int, total: int, positions: int, counts: set[int] = counts) -> None:
            gc.collect()
            counts.add(sum(type(one) is LoadedModel and one.name == copy for one in gc.get_objects()))

        spec = EngineSpec(copy, threads=1)
        run_mastery(spec, facts[:10], tmp_path / f"{workers}.parquet", PROTOCOL, workers=workers, progress=look)
    assert held == {1: {1}, 2: {0}}
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    # One part is left: it is made in this process.
    again = tmp_path / "again.parquet"

    def stop(done: int, total: int, positions: int) -> None:
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_mastery(EngineSpec(copy, threads=1), facts[:10], again, PROTOCOL, progress=stop)
    run_mastery(EngineSpec(copy, threads=1), facts[:10], again, PROTOCOL, workers=2)
    assert again.read_bytes() == (tmp_path / "1.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 2}, r"recorded with another seed \(seed 1, now 2\)"),
        ({"stopping": "exact"}, "recorded with another stopping"),
        ({"draws_per_prompt": 3}, "recorded with another draws_per_prompt"),
        ({"grading": "word"}, r"recorded with another grading \(grading 'substring', now 'word'\)"),
    ],
)
def test_records_of_another_run_are_refused_and_stay(
    facts: list[Fact], spec: EngineSpec, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    run_mastery(spec, facts, tmp_path / "m.parquet", PROTOCOL)
    before = (tmp_path / "m.parquet").read_bytes()
    other = Protocol(**{**PROTOCOL.__dict__, **change})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=says):
        run_mastery(spec, facts, tmp_path / "m.parquet", other)
    with pytest.raises(InputError, match="another facts, prompts or answers"):
        run_mastery(spec, facts[1:], tmp_path / "m.parquet", PROTOCOL)
    assert (tmp_path / "m.parquet").read_bytes() == before


def test_parts_of_another_run_are_refused_and_stay(facts: list[Fact], spec: EngineSpec, tmp_path: Path) -> None:
    parts = tmp_path / "m.parquet.parts"
    parts.mkdir()
    with pytest.raises(InputError, match="holds no parts of a mastery run"):
        run_mastery(spec, facts, tmp_path / "m.parquet", PROTOCOL)
    (parts / "about.json").write_text(json.dumps({"engine": "transformers", "identity": "other"}))
    with pytest.raises(InputError, match="recorded with another model"):
        run_mastery(spec, facts, tmp_path / "m.parquet", PROTOCOL)
    assert _clean(parts) == ["about.json"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([], "no facts to measure"),
        ([Fact("f", "P0", "test", "in_domain", "s", "q", "a")], "fact f: relation 'P0' has no completion prompts"),
        ([Fact("f", "P19", "test", "in_domain", "s", "q", "?!")], r"fact f: answer '\?!' is empty after normalisation"),
        ([Fact("f", "P19", "test", "in_domain", "s", "q", "a")] * 2, "fact f occurs twice"),
    ],
)
def test_facts_that_cannot_be_asked_write_nothing(bad: list[Fact], says: str, spec: EngineSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run_mastery(spec, bad, tmp_path / "m.parquet", PROTOCOL)
    assert _clean(tmp_path) == []


def _command(small_world: Path, output: Path, *more: str) -> list[str]:
    return [
        *("mastery", str(small_world), "--facts", f"world:{small_world}"),
        *("--output", str(output), "--json", "--draws", "3", *more),
    ]


#: Of one dtype: where a processor is fast in bfloat16, its sums depend on which texts are read together.
FEW = ("--limit", "48", "--dtype", "float32")


def _call(command: list[str]) -> dict[str, Any]:
    """The command in this process: a start takes five seconds."""
    from typer.testing import CliRunner

    from knowshift.cli.app import app

    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_killed_at_any_moment_and_run_again_the_record_is_the_same(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL as soon as a first part is there; then SIGINT; then to the end: byte for byte the undisturbed record."""
    monkeypatch.setattr(engines, "PART", 4)
    result = _call(_command(small_world, tmp_path / "a.parquet", *FEW, "--workers", "1"))
    assert set(result) >= {"facts", "levels", "draws", "positions", "seconds", "output"}
    assert result["facts"] == 48
    assert sum(result["levels"]) == 48
    assert result["draws"] == 48 * 21 * 3
    small = _command(small_world, tmp_path / "b.parquet", *FEW, "--workers")
    for how, workers in ((signal.SIGKILL, "2"), (signal.SIGINT, "1")):
        process = Command([*small, workers], before=SMALL_PARTS)
        parts = tmp_path / "b.parquet.parts"
        had = len(list(parts.glob("part-*"))) if parts.exists() else 0
        until = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < until:
            if parts.exists() and len(list(parts.glob("part-*"))) > had:
                process.send_signal(how)
                break
            time.sleep(0.01)
        _, told = process.communicate(timeout=60)
        assert process.returncode == (130 if how == signal.SIGINT else -9), told
    assert "goes on where it stopped" in told
    assert _call([*small, "1"])["facts"] == 48
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()
    assert not (tmp_path / "b.parquet.parts").exists()


#: Parts of four facts, so that a small world has some to lose.
SMALL_PARTS = """
from knowshift.probing import engines
engines.PART = 4
"""


def test_the_folder_of_parts_is_there_with_its_label_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_json", full)
    with pytest.raises(KeyboardInterrupt):
        run._check_parts(tmp_path / "a.parquet.parts", {"seed": 0}, [])
    assert list(tmp_path.iterdir()) == []


def _refused(arguments: list[str]) -> str:
    """The one line of a command that refuses its input."""
    from typer.testing import CliRunner

    from knowshift.cli.app import app

    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError), result.output
    assert result.stdout == ""
    assert "\n" not in str(result.exception)
    return str(result.exception)


def _table(folder: Path, **cells: object) -> str:
    row = {"subject": "Brehi", "question": "What is Brehi?", "answer": "Zukar", **cells}
    (folder / "facts.jsonl").write_text(json.dumps(row) + "\n")
    return str(folder / "facts.jsonl")


@pytest.mark.parametrize(
    ("cells", "more", "says"),
    [
        ({"answer": "?!"}, (), "?!"),
        ({"prompts": ["{subject} " + "word " * 600]}, (), "does not fit into the model's context of 512"),
        ({"prompts": ["Brehi is"]}, ("--max-new-tokens", "510"), "with 510 new ones it does not fit"),
        ({"prompts": [""]}, (), "prompt"),
        ({"prompts": ["Brehi is"]}, ("--stopping", "some"), "stopping rule 'some' is unknown"),
        ({"prompts": ["Brehi is"]}, ("--grading", "words"), "grading 'words' is unknown; nearest: 'word'"),
        ({"prompts": ["Brehi is"]}, ("--stopping", "sequential", "--error", "0"), "error rate 0.0"),
        ({"prompts": ["Brehi is"]}, ("--compare", "none.parquet"), "none.parquet: no such mastery record"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    small_world: Path, tmp_path: Path, cells: dict[str, object], more: tuple[str, ...], says: str
) -> None:
    facts = _table(tmp_path, **cells)
    output = str(tmp_path / "m.parquet")
    told = _refused(["mastery", str(small_world), "--facts", facts, "--output", output, "--workers", "1", *more])
    assert says in told
    assert _clean(tmp_path) == ["facts.jsonl"]


def test_another_model_and_no_tokenizer_are_refused_and_the_record_stays(small_world: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_world, tmp_path / "model"))
    output = tmp_path / "m.parquet"
    words = ["--facts", _table(tmp_path, prompts=["Brehi is"]), "--output", str(output), "--workers", "1"]
    words += ["--dtype", "float32"]
    run_mastery(EngineSpec(str(small_world), threads=1), _facts_of(tmp_path), output, Protocol())
    before = output.read_bytes()
    config = json.loads((copy / "generation_config.json").read_text()) | {"eos_token_id": [2, 5]}
    (copy / "generation_config.json").write_text(json.dumps(config))
    assert "recorded with another model (identity" in _refused(["mastery", str(copy), *words])
    (copy / "tokenizer.json").unlink()
    assert "no tokenizer in" in _refused(["mastery", str(copy), *words])
    _table(tmp_path, prompts=["Brehi was"])
    assert "another facts, prompts or answers" in _refused(["mastery", str(small_world), *words])
    assert output.read_bytes() == before


def _facts_of(folder: Path) -> list[Fact]:
    return list(load_facts(str(folder / "facts.jsonl")).facts)


def test_the_default_error_rate_is_one() -> None:
    assert signature(mastery).parameters["error"].default == ERROR


def test_the_command_compares_and_explains(small_world: Path, tmp_path: Path) -> None:
    def call(name: str, *more: str) -> dict[str, Any]:
        return _call(_command(small_world, tmp_path / name, "--limit", "12", "--workers", "1", *more))

    assert call("a.parquet")["facts"] == 12
    more = ["--compare", str(tmp_path / "a.parquet"), "--certainty", str(tmp_path / "c.parquet")]
    found = call("b.parquet", *more, "--prompts", str(tmp_path / "p"), "--stopping", "sequential")
    assert found["agreement"]["facts"] == 12
    assert found["draws"] < 12 * 21 * 3
    assert _clean(tmp_path) == ["a.parquet", "b.parquet", "c.parquet", "p"]
