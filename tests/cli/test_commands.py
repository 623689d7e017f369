"""The commands as users call them: exit statuses, one JSON object, bad input in one line."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import commands
import knowshift
from knowshift.cli.app import _interrupted, main
from knowshift.cli.world import _steps
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import load_model
from knowshift.models.sampling.session import greedy
from knowshift.models.saving import save_model
from knowshift.probing.measure import columns_of
from knowshift.records import MASTERY, TOKEN_SHIFT, read_table, write_table
from knowshift.system import progress


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return commands.run(words)


def call_here(*words: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, for commands whose start is not what is tested: it takes five seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["knowshift", *words])
        patch.setattr(gc, "set_threshold", lambda *thresholds: None)
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def test_the_version_is_printed_for_scripts() -> None:
    said = call("--version")
    assert (said.returncode, said.stdout, said.stderr) == (0, f"knowshift {knowshift.__version__}\n", "")


@pytest.fixture(scope="module")
def pipeline(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The stages one after the other on a small world, each through its command."""
    folder = tmp_path_factory.mktemp("pipeline")
    world, mastery = f"world:{small_world}", str(folder / "mastery.parquet")
    words = ["--facts", world, "--output", mastery, "--draws", "2", "--seed", "1", "--workers", "1", "--json"]
    sampled = call("mastery", world, *words)
    assert sampled.returncode == 0, sampled.stderr
    told = json.loads(sampled.stdout)
    level = max(range(5), key=lambda index: told["levels"][index])
    tuned = str(folder / "tuned")
    words = ["--facts", world, "--mastery", mastery, "--json"]
    trained = call(
        "finetune",
        world,
        "--level",
        str(level),
        "--size",
        "10",
        "--learning-rate",
        "1e-3",
        "--output-dir",
        tuned,
        *words,
    )
    assert trained.returncode == 0, trained.stderr
    return {"world": world, "mastery": mastery, "tuned": tuned, "words": words, "level": level, "folder": folder,
            "told": told, "trained": json.loads(trained.stdout)}  # fmt: skip


def test_mastery_and_finetune_say_what_they_did(pipeline: dict[str, object]) -> None:
    told, trained = pipeline["told"], pipeline["trained"]
    assert isinstance(told, dict)
    assert isinstance(trained, dict)
    assert told["facts"] == sum(told["levels"])
    assert {"facts", "levels", "draws", "positions", "seconds", "output"} <= set(told)
    assert trained["steps"] == 2
    assert trained["train_loss"] > 0
    assert (Path(str(pipeline["tuned"])) / "knowshift.json").exists()


def test_evaluate_and_tokens(pipeline: dict[str, object]) -> None:
    words, folder = pipeline["words"], pipeline["folder"]
    assert isinstance(words, list)
    assert isinstance(folder, Path)
    output = str(folder / "answers.parquet")
    done = call_here("evaluate", str(pipeline["tuned"]), "--output", output, "--limit", "20", *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["accuracy"]) == {"in_domain", "out_of_domain"}
    assert sum(sum(told["accuracy"][domain]["counts"]) for domain in told["accuracy"]) == 20
    assert told["output"] == output
    done = call_here(
        "tokens", str(pipeline["world"]), str(pipeline["tuned"]), "--output", str(folder / "kl.parquet"), *words
    )
    assert done.returncode == 0, done.stderr
    shift = json.loads(done.stdout)
    # So small a model knows no fact well enough: the mean is then missing, and never 0.
    level_4 = shift["level_4_facts"]
    assert (shift["facts"], shift["kl_mean"], level_4) == (0, None, 0)
    assert shift["output"] == str(folder / "kl.parquet")


def test_tokens_scores_what_the_base_completes_with_its_answer(pipeline: dict[str, object], tmp_path: Path) -> None:
    """Facts whose answers are what the base says: all are scored, but for one that it does not say."""
    base = load_model(str(pipeline["world"]))
    subjects = ["Brehi", "Zukar", "Ann", "Rome", "Vel"]
    prompts = [f"The capital of {subject} is" for subject in subjects]
    said = [text.split()[0] for text in greedy(base, prompts, max_new_tokens=8)]
    said[-1] = "Nowhere"
    rows = [
        {"id": f"f{i}", "question": f"q{i}?", "subject": subject, "answer": answer, "prompts": [prompt]}
        for i, (subject, answer, prompt) in enumerate(zip(subjects, said, prompts, strict=True))
    ]
    source = tmp_path / "facts.jsonl"
    source.write_text("".join(json.dumps({**row, "split": "test"}) + "\n" for row in rows))
    facts = load_facts(str(source)).facts
    write_table(tmp_path / "m.parquet", MASTERY, columns_of(facts, [[9]] * 5, [[10]] * 5), {})
    words = ["--facts", str(source), "--mastery", str(tmp_path / "m.parquet"), "--json"]
    for tuned in (str(pipeline["tuned"]), str(pipeline["world"])):
        done = call_here("tokens", str(pipeline["world"]), tuned, "--output", str(tmp_path / "kl.parquet"), *words)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["facts"], told["level_4_facts"]) == (4, 5)
        table, _ = read_table(tmp_path / "kl.parquet", TOKEN_SHIFT, "token shift")
        kl = table["kl"].to_pylist()
        assert kl[4] is None
        assert told["kl_mean"] == pytest.approx(sum(kl[:4]) / 4)
        assert told["kl_mean"] > 0.01  # the two prompts differ, so the base's own is not 0 either
        for row in table.to_pylist()[:4]:  # KL of the ten logits that stand beside it, in float64
            p, q = (np.exp(np.array(row[name])) for name in ("tuned_logits", "base_logits"))
            p, q = p / p.sum(), q / q.sum()
            assert row["kl"] == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-5)
        (tmp_path / "kl.parquet").unlink()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["facts", "wrold:tiny"], "wrold"),
        (["study"], "give either a config file or --preset"),
        (["study", "--preset", "tinny"], "no preset 'tinny'; nearest: 'tiny'"),
        (["study", "--preset", "tiny", "--executor", "threads"], "no executor 'threads'"),
        (["world", "describe", "earth"], "expected world:tiny or world:PATH"),
        (["world", "build", "--output-dir", "{folder}/w", "--device", "tpu7"], "device 'tpu7'"),
        (["mastery", "world:tiny", "--facts", "world:tiny", "--output", "{folder}"], "is a folder"),
        (
            "finetune m --facts f --mastery m --level 1 --output-dir {folder}/t --learning-rate 0".split(),
            "expected a positive",
        ),
        (
            [
                "evaluate",
                "no/such/model",
                "--facts",
                "world:tiny",
                "--mastery",
                "none.parquet",
                "--output",
                "{folder}/o",
            ],
            "none.parquet",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_two(words: list[str], said: str, tmp_path: Path) -> None:
    done = call_here(*(word.format(folder=tmp_path) for word in words))
    assert done.returncode == 2
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr


def test_a_warning_is_one_line_without_its_place_in_the_code(tmp_path: Path) -> None:
    rows = [{"question": "who wrote the first", "answer": ["Ada"]}, {"question": "and in code", "answer": ["-.-"]}]
    (tmp_path / "NQ-open.dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call("facts", f"nq-open:{tmp_path / 'NQ-open.dev.jsonl'}", "--json")
    assert done.returncode == 0
    warned = [line for line in done.stderr.splitlines() if "left out" in line]
    assert len(warned) == 1
    assert warned[0].startswith("knowshift: warning: ")
    assert ".py" not in done.stderr


def test_too_many_facts_an_existing_folder_and_a_strange_record_are_refused(pipeline: dict[str, object]) -> None:
    words, folder = pipeline["words"], pipeline["folder"]
    assert isinstance(words, list)
    assert isinstance(folder, Path)
    base = ["finetune", str(pipeline["world"]), "--level", str(pipeline["level"])]
    done = call_here(*base, "--size", "5000", "--output-dir", str(folder / "new"), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "5000 training facts asked" in done.stderr
    assert not (folder / "new").exists()
    done = call_here(*base, "--output-dir", str(pipeline["tuned"]), *words)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    done = call_here(
        "evaluate",
        str(pipeline["world"]),
        "--facts",
        "world:tiny",
        "--mastery",
        str(pipeline["mastery"]),
        "--output",
        str(folder / "x"),
    )
    assert done.returncode == 2
    assert "is not that of world:tiny; the record is of other facts" in done.stderr
    assert not (folder / "x").exists()


def test_a_training_that_cannot_be_right_leaves_one_line_and_no_folder(
    pipeline: dict[str, object], small_world: Path, tmp_path: Path
) -> None:
    words = pipeline["words"]
    assert isinstance(words, list)
    half = load_model(str(small_world))
    half.model.half()
    (tmp_path / "half").mkdir()
    save_model(half, tmp_path / "half")
    out = ["--level", str(pipeline["level"]), "--size", "16", "--output-dir", str(tmp_path / "new" / "tuned"), *words]
    for model, more, said in (
        (str(pipeline["world"]), ["--dtype", "float16"], "use --dtype float32 or --dtype bfloat16"),
        (str(tmp_path / "half"), ["--dtype", "auto"], "use --dtype float32 or --dtype bfloat16"),
        (str(pipeline["world"]), ["--learning-rate", "1e12"], "training failed: step 2 of 2: the loss is nan"),
    ):
        done = call_here("finetune", model, *out, *more)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert said in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_the_tuned_folder_is_the_base_with_other_weights(pipeline: dict[str, object], small_world: Path) -> None:
    tuned = Path(str(pipeline["tuned"]))
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tuned.iterdir()} == {*beside, "model.safetensors", "knowshift.json"}
    for name in beside:
        source = (small_world / name).read_text()
        assert (tuned / name).read_text() == source.replace('"dtype": "bfloat16"', '"dtype": "float32"'), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "x.yaml"], "goes on where it stopped"),
        (["mastery", "world:tiny"], "goes on where it stopped"),
        (["world", "levels", "world:w"], "goes on where it stopped"),
        (["world", "build"], "starts over"),
        (["restore", "study"], "starts over"),
        ([], "starts over"),
    ],
)
def test_what_an_interrupted_command_says(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["knowshift", *words])
    with pytest.raises(SystemExit) as ended:
        _interrupted()
    assert ended.value.code == 130
    assert said in capsys.readouterr().err


def test_a_world_is_built_and_described_by_command(tmp_path: Path) -> None:
    sizes = ["--train-facts", "2", "--test-facts", "1", "--out-of-domain-facts", "1", "--vocabulary", "600"]
    model = ["--hidden", "32", "--layers", "1", "--batch", "4", "--seed", "3", "--threads", "1"]
    bands = ["--band", "0.5:0-0", "--band", "0.5:7-9"]
    for wrong in ("0.5:0", "2:1-2"):
        refused = call_here("world", "build", "--output-dir", str(tmp_path / "w"), *sizes, *model, "--band", wrong)
        assert refused.returncode == 2
        assert "expected SHARE:LOW-HIGH" in refused.stderr
    refused = call_here("world", "build", "--output-dir", str(tmp_path / "w"), *sizes, *model, "--repetition", "9:1")
    assert "expected LOW-HIGH:LEAST-MOST" in refused.stderr
    more = ["--repetition", "7-9:4-6"]
    built = call_here("world", "build", "--output-dir", str(tmp_path / "w"), *sizes, *model, *bands, *more, "--json")
    assert built.returncode == 0, built.stderr
    assert "it/s" not in built.stderr  # no bar of a library
    record = json.loads(built.stdout)
    assert record["facts"] + record["facts_left_out"] == 10 * 3 + 14
    described = call_here("world", "describe", f"world:{tmp_path / 'w'}", "--json")
    assert described.returncode == 0, described.stderr
    assert json.loads(described.stdout)["sentences"] == record["sentences"]
    assert set(record["bands"][1].values()) == {0.5, 7, 9}
    assert json.loads(described.stdout)["exposures"]["5-12"] > 0
    assert record["repetition"]["sentences"] > 0
    levels = call_here(
        "world",
        "levels",
        f"world:{tmp_path / 'w'}",
        "--output",
        str(tmp_path / "m.parquet"),
        "--workers",
        "1",
        "--json",
    )
    assert levels.returncode == 0, levels.stderr
    told = json.loads(levels.stdout)["levels"]
    assert sum(sum(counts) for counts in told.values()) == record["facts"]
    assert json.loads((tmp_path / "w" / "world.json").read_text())["levels"].items() >= told.items()
    again = call_here("world", "build", "--output-dir", str(tmp_path / "w"), *sizes, *model)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_log_is_told_of_a_world_s_pre_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "LINES", 0.0)
    with _steps("pre-training") as tell:
        for step in range(1, 9):
            tell(step, 8, 2 / step)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in told] == [f"pre-training: {step} of 8 steps" for step in range(1, 8)]
    assert "loss 0.400" in told[4]
    assert "left" in told[4]
