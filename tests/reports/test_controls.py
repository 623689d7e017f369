"""Trainings beside the grid in a report: the difference is that of the accuracies, by hand, over the draws of both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knowshift.errors import InputError
from knowshift.reports.page.grids import controls_tables, variant_words
from knowshift.reports.page.page import compose
from knowshift.reports.tables.build import Tables, build_tables
from knowshift.reports.tables.controls import mixed_trainings

VARIANTS: dict[str, Any] = {
    "mixed": {"levels": "mixed", "sizes": None},
    "lora-mixed": {"levels": "mixed", "lora": {"rank": 8, "alpha": 16.0}},
    "longer": {"epochs": 4, "levels": [2]},
}


def with_variants(run: Path, folder: Path, kinds: tuple[str, ...] = ("evaluation", "tuned")) -> Path:
    """The run with three variants, whose records are those of models of the grid: of level 4 the mixed ones, of level 2
    (draw 0 alone) the other."""
    shutil.copytree(run, folder)
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["config"]["variants"] = VARIANTS
    added: list[tuple[str, int | None, int, Callable[[int], bool], dict[str, Any]]] = [
        ("mixed", None, 4, lambda draw: True, {"levels": [0, 2, 4]}),
        ("lora-mixed", None, 0, lambda draw: True, {"levels": [0, 2, 4], "lora": VARIANTS["lora-mixed"]["lora"]}),
        ("longer", 2, 2, lambda draw: draw == 0, {"epochs": 4}),
    ]
    for cell in list(manifest["cells"]):
        key = cell["key"]
        for name, level, source, wanted, training in added:
            of_source = not key.get("control") and (key.get("size"), key.get("level")) == (240, source)
            if cell["kind"] in kinds and of_source and wanted(key["draw"]):
                digest, place = f"{name}-{key['draw']}", folder / "cells" / cell["kind"]
                shutil.copytree(place / cell["digest"], place / digest)
                new = {**key, "level": level, "control": name, "training": training}
                manifest["cells"].append({"kind": cell["kind"], "digest": digest, "key": new})
    file.write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def tables(hand_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return build_tables(with_variants(hand_run, tmp_path_factory.mktemp("variants") / "run"))


def mean_accuracy(tables: Tables, draws: set[int], **where: Any) -> float:
    rows = [r for r in tables["accuracy"].where(test_level="mean", **where) if r["draw"] in draws]
    assert len(rows) == len(draws)
    return sum(r["accuracy"] for r in rows) / len(rows)


@pytest.mark.parametrize("domain", ["in_domain", "out_of_domain"])
def test_mixed_levels_stand_beside_the_mean_of_all_levels(tables: Tables, domain: str) -> None:
    (row,) = tables["controls"].where(control="mixed", domain=domain)
    draws = {r["draw"] for r in tables["accuracy"].where(control="mixed")}
    grid = [mean_accuracy(tables, draws, control="", level=lv, size=240, domain=domain) for lv in (0, 2, 4)]
    assert (row["level"], row["size"], row["draws"]) == ("mixed", 240, len(draws))
    assert row["accuracy"] == pytest.approx(sum(grid) / 3)
    assert row["control_accuracy"] == pytest.approx(grid[2])
    assert row["difference"] == pytest.approx(grid[2] - sum(grid) / 3)
    assert row["low"] <= row["difference"] <= row["high"]


def test_a_variant_of_the_grid_itself_differs_by_nothing(tables: Tables) -> None:
    """Its records are those of the grid's models: 0 over the draws of both, whatever the grid's other draws."""
    rows = tables["controls"].where(control="longer")
    assert [(r["level"], r["domain"], r["draws"]) for r in rows] == [("2", "in_domain", 1), ("2", "out_of_domain", 1)]
    assert [r["difference"] for r in rows] == [0, 0]
    grids = controls_tables(tables["controls"], tables["accuracy"], {"variants": VARIANTS})
    captions = [grid.caption for grid in grids]
    assert len(grids) == 4
    assert captions[0].startswith("The learning-rate control")
    assert "longer (epochs 4, levels [2])" in captions[1]
    for row in grids[1].rows:
        assert row[2].text == row[3].text


def test_the_grid_is_as_without_variants(tables: Tables, hand_tables: Tables) -> None:
    for name in ("accuracy_summary", "controls", "token_shift_summary", "findings", "paper_accuracy"):
        columns = hand_tables[name].columns
        assert tables[name].columns == columns
        mine = [r for r in tables[name].rows if not {"mixed", "lora-mixed", "longer"} & set(map(str, r))]
        assert [[str(v) for v in row] for row in mine] == [[str(v) for v in row] for row in hand_tables[name].rows]


def test_mixed_data_in_the_table_of_strategies(tables: Tables) -> None:
    assert mixed_trainings(tables.evidence) == {"mixed": False, "lora-mixed": True}
    rows = {r["strategy"]: r for r in tables["paper_strategies"].where(source="run")}
    for strategy, name in (("SFT mixed", "mixed"), ("LoRA mixed", "lora-mixed")):
        (row,) = tables["controls"].where(control=name, domain="in_domain")
        assert rows[strategy]["chosen"] == f"{name}, 240"
        assert rows[strategy]["in_domain"] == pytest.approx(row["control_accuracy"])


def test_trainings(tables: Tables) -> None:
    (row,) = tables["trainings"].where(control="longer")
    assert (row["level"], row["updates"], row["draws"]) == (2, 30, 1)
    assert {r["level"] for r in tables["trainings"].where(control="mixed")} == {"mixed"}


def test_the_page_names_every_variant(tables: Tables) -> None:
    page = compose(tables, {})
    for text in ("Trained otherwise, mixed", "Trained otherwise, lora-mixed", "mixed levels"):
        assert text in page


@pytest.mark.parametrize("config", [{}, {"variants": None}, {"variants": {"longer": 3}}, {"variants": []}])
def test_a_config_that_does_not_tell(config: dict[str, Any]) -> None:
    assert variant_words(config, "longer") == ""


@pytest.mark.parametrize("training", [{}, {"levels": 3, "x": 1}, "text"])
def test_a_cell_without_a_level(training: Any, hand_run: Path, tmp_path: Path) -> None:
    """Only one that names its levels has none of its own."""
    folder = with_variants(hand_run, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    for cell in manifest["cells"]:
        if cell["key"].get("control") == "mixed":
            cell["key"]["training"] = training
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if training == {"levels": 3, "x": 1}:
        assert build_tables(folder)["controls"].where(control="mixed")
        return
    with pytest.raises(InputError, match=r"level of a cell|training of a cell"):
        build_tables(folder)
