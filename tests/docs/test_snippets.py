"""Every command and snippet of the Markdown files is run here, small, or listed here with the reason why not."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from knowshift.cli.app import app
from knowshift.lm_eval_tasks import names
from knowshift.models.loading import load_model
from knowshift.models.saving import save_model
from knowshift.studies.config import StudyConfig, parse_config
from pages import NAMES, ROOT, blocks, command_lines, commands, snippets, tables

#: Commands that are only parsed (tests/docs/test_commands.py), and why.
NOT_RUN = {
    "knowshift study my-study.yaml": "minutes; tests/studies/test_study.py runs studies",
    "knowshift study --preset tiny": "ten minutes; its plan is made by --dry-run",
    "knowshift study --preset strategies": "an hour; tests/studies/test_values.py has a bench",
    "knowshift study --preset gemma-3": "a cluster and an object store; tests/studies has both, local",
    "knowshift report s3://BUCKET/runs/gemma-3": "an object store; tests/studies/test_object_store.py",
    "knowshift study --preset qwen3": "servers; tests/models/server/test_transformers_serve.py has a study with one",
    "knowshift facts entity-questions": "a download; tests/facts/test_fetching.py fetches from a server on loopback",
    "knowshift audit BASE TUNED --facts SOURCE --output-dir audit-3": "downloads; tests/audits/test_guard.py",
    "knowshift audit ADAPTER": "an adapter; tests/audits/test_audit.py has one",
    "knowshift audit BASE TUNED --facts SOURCE --output-dir audit --keep questions.csv --push-to-hub OWNER/NAME": (
        "a hub; tests/audits/test_pushing.py has one on loopback"
    ),
    "knowshift world build --output-dir my-world": "24 minutes; tests/cli/test_commands.py builds a small world",
    "knowshift world build --facts entity-questions:dataset.zip": "81 minutes",
    "knowshift mastery http://127.0.0.1:8000": "a server; tests/models/server/test_transformers_serve.py starts one",
    "knowshift mastery --server http://127.0.0.1:8000": "servers; tests/models/server/test_several_servers.py",
}
#: Programs that are not run; what they are given is looked at in `test_other_programs`.
OTHER = ("make", "python", ".venv/bin/python", "lm_eval")

#: A thousand facts take a minute; what is printed has the same form for fewer.
SMALLER = {
    "--limit 1000": "--limit 250 --draws 1",
    "--size 120": "--size 16",
    "--size 1920": "--size 4",
    "--level 2 --size 240": "--level 0 --size 4",
}

#: What commands are given on pages other than the tutorial.
FEWER = {
    "knowshift mastery": ("--draws", "1", "--limit", "60"),
    "knowshift audit": ("--budget", "none", "--limit", "40", "--workers", "1"),
}

#: What may stand between words that are printed: the borders of tables.
BORDERS = str.maketrans(dict.fromkeys("┏━┳┓┃┡╇┩│└┴┘", " "))


def reason(line: str) -> str | None:
    """Why a command is not run."""
    return next((NOT_RUN[start] for start in NOT_RUN if line == start or line.startswith(f"{start} --")), None) or (
        "another program" if line.split()[0] in OTHER else None
    )


def run_here(line: str) -> bool:
    return line.startswith("knowshift ") and ("--dry-run" in line or reason(line) is None)


PAGES = [page for page in NAMES if page != "docs/tutorial.md" and any(map(run_here, commands(page)))]
KEYS = {row[0].strip("`"): row[1] for row in tables("docs/records.md")[-1][1:]}


def call(line: str, *more: str) -> str:
    """Run a command in this process; what it says to people. Its one JSON object has the keys of docs/records.md."""
    words = [*shlex.split(line)[1:], *more, "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (line, done.output, done.exception)
    told = json.loads(done.stdout)
    name = " ".join(words[:2]) if words[0] == "world" else words[0]
    always, _, dry = KEYS[name].partition(";")
    documented = dry.partition("`--dry-run`")[2] if "--dry-run" in words else always
    outermost = re.sub(r"\{(?:[^{}]|\{[^{}]*\})*\}", "", documented)
    assert set(re.findall(r"`(\w+)`", outermost)) <= set(told), line
    return done.stderr


@pytest.fixture(scope="module")
def tuned(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world's model with every weight moved a little."""
    loaded = load_model(str(small_world))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    folder.mkdir()
    save_model(loaded, folder)
    return folder


def test_every_command_is_run_or_listed() -> None:
    lines = [line for page in NAMES for line in commands(page)]
    assert [line for line in lines if not run_here(line) and reason(line) is None] == []
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), f"no page has {start!r} any more"
    assert sum(map(run_here, lines)) > 25


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(
    page: str, small_world: Path, tuned: Path, hand_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.csv").write_text("question,answer\nWho?,Ann\nWhere?,Rome\n", encoding="utf-8")
    (tmp_path / "run").mkdir()
    for name in ("cells", "manifest.json"):
        (tmp_path / "run" / name).symlink_to(hand_run / name)
    world = f"world:{small_world}"
    stands_for = {"MODEL": world, "SOURCE": world, "BASE": str(small_world), "TUNED": str(tuned)}
    for line in filter(run_here, commands(page)):
        for word, thing in {**stands_for, "report runs/tiny": "report run", **SMALLER}.items():
            line = re.sub(rf"(?<!\S){re.escape(word)}(?!\S)", thing, line)
        call(line, *next((more for start, more in FEWER.items() if line.startswith(start)), ()))


def shape(text: str) -> str:
    """What was printed with # for its numbers, one blank between words."""
    text = re.sub(r"mean \S+ of the \d levels with facts", "mean 0", text.translate(BORDERS))
    return " ".join(re.sub(r"(?<![\w.-])-?[\d.,]*\d%?(?![\w:])|(?<= )-(?= )", "#", text).split())


def test_the_tutorial_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = [block for block in blocks("docs/tutorial.md") if block.language in ("sh", "python", "text")]
    compared = 0
    for block, shown in zip(page[::2], page[1::2], strict=True):
        assert shown.language == "text"
        if block.language == "python":
            exec(block.text, {})
            printed = capsys.readouterr().out
        else:
            printed = ""
            for line in command_lines(block):
                for large, small in SMALLER.items():
                    line = line.replace(large, small)
                printed += call(line)
        place, whole = 0, shape(printed)
        for part in re.split(r"^ *\.\.\.$", shown.text, flags=re.M):
            found = whole.find(shape(part), place)
            assert found >= 0, (block.text, part, printed)
            place = found + len(shape(part))
        compared += 1
    assert compared == 10


def test_python_snippets_of_the_guides(
    small_world: Path,
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [(page, text) for page in NAMES if page != "docs/tutorial.md" for text in snippets(page, "python")]
    assert [page for page, _ in found] == ["docs/api.md", "docs/audit.md", "docs/weights.md"]
    monkeypatch.chdir(tmp_path)
    exec(found[0][1].replace("limit=300", "limit=100").replace("size=8", "size=2"), {})
    assert "question" in capsys.readouterr().out
    exec(found[1][1], {})
    assert "'knowledge/known': 1.0" in capsys.readouterr().out
    model, base = load_model(str(tuned)).model, load_model(str(small_world)).model
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    exec(found[2][1], {"model": model, "base": base})
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_the_config_of_a_study_shows_every_field_with_its_default() -> None:
    text, variants, bench = snippets("docs/study.md", "yaml")
    assert (
        len(parse_config(f"name: n\nmodel: m\nfacts: f\n{bench}", "docs/study.md").benched) == 5 * 3 + 4
    )  # one has rates of its own
    assert len(parse_config(f"name: n\nmodel: m\nfacts: f\n{variants}", "docs/study.md").variants) == 6
    written = parse_config(text, "docs/study.md").as_record()
    ours = {name: written[name] for name in ("name", "model", "facts")}
    defaults = StudyConfig(**ours).as_record()
    assert written.pop("control_rate") == pytest.approx(defaults.pop("control_rate"), abs=1e-4)
    assert written == defaults
    for section in (None, *(name for name, value in defaults.items() if isinstance(value, dict))):
        for field in defaults if section is None else defaults[section]:
            assert re.search(rf"^ *{field}:|^base_revision: .*`{field}`", text, re.M), field


@pytest.mark.parametrize("page", [page for page in NAMES if page != "docs/study.md" and snippets(page, "yaml")])
def test_configs_of_other_pages_are_read(page: str) -> None:
    for text in snippets(page, "yaml"):
        parse_config(text, page)


def test_other_programs() -> None:
    """Targets of make exist, scripts have the options that they are given, and -k names tests of the file."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in (line for page in NAMES for line in commands(page) if not line.startswith("knowshift ")):
        program, *words = shlex.split(line)
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.M), line
            continue
        assert program in OTHER, line
        if program == "lm_eval":
            assert words[words.index("--tasks") + 1] in names(), line
            continue
        (script,) = [word for word in words if word.endswith(".py")]
        source = (ROOT / script).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--")]
        assert all(f'"{option}"' in source for option in options), line
        if "-k" in words:
            assert re.search(rf"def test_\w*{words[words.index('-k') + 1]}", source), line
