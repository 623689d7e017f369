"""A damaged run folder ends in one line that names the file, what was found and what was expected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hand_run import build_hand_run
from knowshift.errors import InputError
from knowshift.reports.evidence.checking import (
    check_change,
    check_coordinates,
    check_manifest,
    check_restored,
    check_scores,
    check_texts,
)
from knowshift.reports.page.page import write_report

FILE = Path("record.json")
TUNED = {"level": 4, "size": 60, "draw": 0, "learning_rate": 1e-4, "control": None}


SCORE = {
    "criterion": "",
    "fraction": "0",
    "restored": 0,
    "task": "t",
    "metric": "m",
    "higher_is_better": True,
    "items": 3,
    "score": 0.5,
}


def scores(**fields: Any) -> dict[str, Any]:
    return {"eligible": 5, "scores": [SCORE, {**SCORE, **fields}]}


def change(**fields: Any) -> dict[str, Any]:
    return {"concentration": {"relative": {"0.01": 0.7, "1e-05": None, "1": 1.0}}, "layers": {"0": 1.0}, **fields}


def test_what_a_study_writes_is_taken() -> None:
    kinds = ("tuned", "evaluation", "token_shift", "weight_change", "restoration", "train_set", "layer_groups", "tasks")
    for kind in kinds:
        check_coordinates(FILE, kind, TUNED)
        check_coordinates(FILE, kind, {**TUNED, "level": 0, "draw": 0, "control": "learning_rate"})
    check_coordinates(FILE, "mastery", {"part": 3})
    check_manifest(FILE, {"config": {"training": {"learning_rate": 1e-5}}, "timings": {"a": 1, "b": 2.5}})
    check_manifest(FILE, {})
    check_change(FILE, change())
    check_change(FILE, {})
    check_restored(FILE, {"eligible": 5, "criteria": {"relative": {"0.01": 2, "0.2": None}}})
    check_scores(FILE, scores(criterion="random", fraction="1e-05", score=-3))
    check_scores(FILE, {"eligible": None, "scores": [{**SCORE, "fraction": "", "restored": None}]})
    check_texts(FILE, {"a": ["\U0001f600", "\u2028", "\0"]})


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: check_coordinates(FILE, "tuned", {**TUNED, "level": 5}),
            "level of a cell of kind 'tuned' is 5; expected one of",
        ),
        (lambda: check_coordinates(FILE, "tuned", {**TUNED, "level": -1}), "is -1; expected a whole number"),
        (lambda: check_coordinates(FILE, "tuned", {**TUNED, "size": True}), "size of a cell of kind 'tuned' is True"),
        (lambda: check_coordinates(FILE, "tuned", {**TUNED, "draw": None}), "draw of a cell of kind 'tuned' is None"),
        (lambda: check_coordinates(FILE, "mastery", {"part": 0.5}), "part of a cell of kind 'mastery' is 0.5"),
        (
            lambda: check_coordinates(FILE, "tuned", {**TUNED, "learning_rate": None}),
            "learning_rate of a cell of kind 'tuned'",
        ),
        (
            lambda: check_coordinates(FILE, "other", {"learning_rate": "x"}),
            "learning_rate of a cell of kind 'other' is 'x'",
        ),
        (
            lambda: check_coordinates(FILE, "tuned", {**TUNED, "control": 3}),
            "control of a cell of kind 'tuned' is 3; expected a",
        ),
        (lambda: check_scores(FILE, {}), "scores is None; expected a list"),
        (lambda: check_scores(FILE, {"eligible": -1, "scores": []}), "eligible is -1; expected a whole number"),
        (lambda: check_scores(FILE, {"scores": [3]}), "a score is 3; expected an object"),
        (lambda: check_scores(FILE, scores(task=None)), "task of a score is None; expected a text"),
        (lambda: check_scores(FILE, scores(items=0.5)), "items and restored of a score are no whole numbers"),
        (lambda: check_scores(FILE, scores(restored="3")), "items and restored of a score are no whole numbers"),
        (lambda: check_scores(FILE, scores(score=float("nan"))), "expected a number, and whether more is better"),
        (lambda: check_scores(FILE, scores(higher_is_better=1)), "expected a number, and whether more is better"),
        (lambda: check_scores(FILE, scores(fraction="1.5")), "fraction of a score is '1.5'; expected one in 0 to 1"),
        (lambda: check_manifest(FILE, {"config": []}), "config is []; expected an object"),
        (lambda: check_manifest(FILE, {"config": {"learning_rate": "x"}}), "learning_rate is 'x'; expected a number"),
        (
            lambda: check_manifest(FILE, {"config": {"training": {"learning_rate": []}}}),
            "learning_rate is []; expected",
        ),
        (lambda: check_manifest(FILE, {"timings": {"a": 10**400}}), "timing of 'a' is 1000"),
        (lambda: check_manifest(FILE, {"timings": {"a": float("inf")}}), "timing of 'a' is inf; expected a number"),
        (lambda: check_manifest(FILE, {"timings": [1.5]}), "timings is [1.5]; expected an object"),
        (lambda: check_change(FILE, change(concentration=3)), "concentration is 3; expected an object"),
        (lambda: check_change(FILE, change(null={"relative": None})), "null of 'relative' is None; expected an object"),
        (
            lambda: check_change(FILE, change(null={"squared": {"x": 1}})),
            "has a share at 'x'; expected a fraction in 0",
        ),
        (
            lambda: check_change(FILE, change(null={"squared": {"0": 1}})),
            "has a share at '0'; expected a fraction in 0",
        ),
        (
            lambda: check_change(FILE, change(null={"squared": {"nan": 1}})),
            "a share at 'nan'; expected a fraction in 0",
        ),
        (
            lambda: check_change(FILE, change(null={"squared": {"1.5": 1}})),
            "a share at '1.5'; expected a fraction in 0",
        ),
        (
            lambda: check_change(FILE, change(null={"squared": {"0.1": "x"}})),
            "'squared' at '0.1' is 'x'; expected a num",
        ),
        (lambda: check_change(FILE, change(layers={"0": [1]})), "layers at '0' is [1]; expected a number"),
        (lambda: check_change(FILE, change(module_weights=[])), "module_weights is []; expected an object"),
        (lambda: check_restored(FILE, {"eligible": -1}), "eligible is -1; expected a whole number"),
        (lambda: check_restored(FILE, {"criteria": {"random": 1}}), "random is 1; expected an object"),
        (
            lambda: check_restored(FILE, {"criteria": {"random": {"0.1": 0.5}}}),
            "random at 0.1 is 0.5; expected a whole",
        ),
        (lambda: check_restored(FILE, {"layers": {"0-3": "x"}}), "layers at 0-3 is 'x'; expected a whole number"),
        (lambda: check_texts(FILE, {"a": ["\ud800"]}), "holds a text with a lone surrogate; expected Unicode"),
        (lambda: check_texts(FILE, {"\udfff": 1}), "holds a text with a lone surrogate; expected Unicode"),
    ],
)
def test_what_no_report_can_use_is_refused(check: Callable[[], None], message: str) -> None:
    with pytest.raises(InputError) as told:
        check()
    said = str(told.value)
    assert message in said
    assert said.startswith("record.json: ")
    assert "\n" not in said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_hand_run(tmp_path_factory.mktemp("runs") / "damaged", draws=1)


@pytest.mark.parametrize(
    ("pattern", "place", "value"),
    [
        ("manifest.json", ("name",), "\ud800"),
        ("manifest.json", ("timings", "mastery"), 10**400),
        ("manifest.json", ("cells", -1, "key", "level"), 7),
        ("manifest.json", ("cells", -1, "digest"), "x" * 65),
        ("manifest.json", ("cells", -1, "digest"), "x" * 5000),
        ("cells/weight_change/*/change.json", ("concentration", "relative"), None),
        ("cells/weight_change/*/change.json", ("null", "relative"), {"half": 0.5}),
        ("cells/weight_change/*/change.json", ("layers",), {"\ud800": 0.5}),
        ("cells/restoration/*/restored.json", ("criteria", "relative", "0.2"), "many"),
    ],
)
def test_every_file_is_checked_where_it_is_read(run: Path, pattern: str, place: tuple[Any, ...], value: Any) -> None:
    file = sorted(run.glob(pattern))[0]
    kept = file.read_bytes()
    content = json.loads(kept)
    inner = content
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    file.write_text(json.dumps(content))
    try:
        with pytest.raises(InputError) as told:
            write_report(run)
    finally:
        file.write_bytes(kept)
    assert str(told.value).startswith(f"{file}: ")
    assert len(str(told.value)) < len(str(file)) + 300
    assert not (run / "report.html").exists()


def test_restored_answers_of_a_model_that_was_not_evaluated_as_tuned_are_passed_over(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    content = json.loads((copy / "manifest.json").read_text())
    cell = next(cell for cell in content["cells"] if cell["kind"] == "restoration")
    cell["key"]["learning_rate"] = 0
    (copy / "manifest.json").write_text(json.dumps(content))
    write_report(copy)
    table = [line.split(",") for line in (copy / "tables" / "accuracy_summary.csv").read_text().splitlines()]
    assert table[0][2] == "learning_rate"
    assert not [line for line in table if line[2] == "0"]
