"""docs/every_strategy.md is what registry and measurements say, and has every strategy with every setting."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from knowshift.tuning.registry import STRATEGIES
from pages import ROOT, tables


def writer() -> Any:
    spec = importlib.util.spec_from_file_location("write_strategies", ROOT / "docs" / "write_strategies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_strategies_is_written_from_the_registry_and_what_was_measured() -> None:
    written = (ROOT / "docs" / "every_strategy.md").read_text(encoding="utf-8")
    assert written == writer().page(), "python docs/write_strategies.py writes it anew"


def test_every_strategy_has_a_row_with_its_settings_source_and_cost() -> None:
    rows = {}
    for head, *those in tables("docs/every_strategy.md"):
        assert head == ["name", "what it does", "settings", "rate", "cost", "time", "memory", "source"]
        rows.update({row[0].strip("`"): row for row in those})
    assert set(rows) == set(STRATEGIES)
    measured = {
        column: json.loads((ROOT / "docs" / "measured" / f"strategies_{column}.json").read_text(encoding="utf-8"))
        for column in ("time", "memory")
    }
    for name, kind in STRATEGIES.items():
        _, about, settings, rate, cost, time, memory, source = rows[name]
        assert (about, float(rate), cost, source) == (kind.about, kind.rate, kind.cost, kind.source)
        assert all(f"{field.name}={str(field.default).lower()}" in settings.lower() for field in fields(kind))
        assert abs(float(memory) - measured["memory"]["strategies"][name]["memory"]) <= 0.051
        if name not in measured["time"]["strategies"]:
            assert time == ""
            continue
        clock = measured["time"]["strategies"][name]["processor"]
        median, least, _, most = (float(part.strip("();")) if part != "to" else 0 for part in time.split()[:4])
        assert [median, least, most] == [round(clock["ratio"][part], 2) for part in ("median", "least", "most")]
        assert ("before" in time) == (clock["before"] >= 0.1)
        assert ("after" in time) == (clock["after"] >= 0.1)


def test_a_page_without_measurements_has_no_columns_for_them(tmp_path: Path) -> None:
    """A strategy that is new has empty cells until it is measured."""
    module = writer()
    assert "| rate | cost | source |" in module.page(tmp_path)
    assert "**Memory**" not in module.page(tmp_path)
    told = json.loads((module.MEASURED / "strategies_memory.json").read_text(encoding="utf-8"))
    del told["strategies"]["osf"]
    (tmp_path / "strategies_memory.json").write_text(json.dumps(told), encoding="utf-8")
    page = module.page(tmp_path)
    assert "| rate | cost | memory | source |" in page
    assert f"| {STRATEGIES['osf'].cost} |  |" in page
