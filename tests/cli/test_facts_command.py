"""`knowshift facts`: its JSON object, its table, and the option that leaves leaks out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from knowshift.cli.facts import register
from knowshift.errors import InputError
from small_questions import OFFICIAL, small_rows, write_zip

app = typer.Typer()
app.callback()(lambda: None)  # so that the one command keeps its name
register(app)


def told(*words: str) -> dict[str, Any]:
    """The one JSON object of the command."""
    done = CliRunner().invoke(app, ["facts", *words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


@pytest.fixture
def leaky(tmp_path: Path) -> str:
    """All relations in small, one in-domain test question asked in training too."""
    rows = small_rows()
    rows["dataset/test/P17.test.json"][0] = rows["dataset/train/P17.train.json"][0]
    return f"entity-questions:{write_zip(tmp_path / 'dataset.zip', rows)}"


def test_the_json_object(leaky: str) -> None:
    counts = told(leaky)
    assert counts["train_in_domain"] == counts["test_in_domain"] == 20
    assert counts["test_out_of_domain"] == 28
    assert counts["relations"]["P17"] == {"train": 2, "test": 2}
    assert counts["relations"]["P26"] == {"train": 0, "test": 2}
    assert len(counts["relations"]) == 24
    assert counts["leaked_test_questions"] == counts["leaked_test_facts"] == 1
    assert counts["answer_overlap"] == 1.0


def test_without_leaks(leaky: str) -> None:
    counts = told(leaky, "--without-leaks")
    assert counts["test_in_domain"] == 19
    assert counts["relations"]["P17"] == {"train": 2, "test": 1}
    assert counts["leaked_test_questions"] == 0
    assert counts["dropped_test_facts"] == 1


def test_people_get_a_table(leaky: str) -> None:
    done = CliRunner().invoke(app, ["facts", leaky], catch_exceptions=False)
    assert "place of birth" in done.stdout
    assert "--without-leaks leaves out 1 test facts" in " ".join(done.stdout.split())


def test_a_table_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("question,subject,answer,split\nq1,s,a,train\nq2,s,b,train\n")
    counts = told(str(path))
    assert counts["relations"] == {"none": {"train": 2, "test": 0}}
    assert counts["answer_overlap"] is None
    assert CliRunner().invoke(app, ["facts", str(path)], catch_exceptions=False).exit_code == 0


def test_bad_input_is_left_to_the_caller(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        CliRunner().invoke(app, ["facts", str(tmp_path / "none.csv")], catch_exceptions=False)


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="the official zip is not here")
def test_the_official_zip() -> None:
    counts = told(f"entity-questions:{OFFICIAL}")
    assert [counts[key] for key in ("train_in_domain", "test_in_domain", "test_out_of_domain")] == [75944, 9555, 11613]
    assert counts["leaked_test_questions"] == 130
    assert counts["leaked_test_facts"] == 133
    assert sum(sum(splits.values()) for splits in counts["relations"].values()) == 97_112
