"""docs/strategies.md is what the registry says, and has every strategy with every setting."""

from __future__ import annotations

import importlib.util
from dataclasses import fields

from knowshift.tuning.registry import STRATEGIES
from pages import ROOT, tables


def test_the_page_of_strategies_is_written_from_the_registry() -> None:
    spec = importlib.util.spec_from_file_location("write_strategies", ROOT / "docs" / "write_strategies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert written == module.page(), "python docs/write_strategies.py writes it anew"


def test_every_strategy_has_a_row_with_its_settings_source_and_cost() -> None:
    rows = {}
    for head, *those in tables("docs/strategies.md"):
        assert head == ["name", "what it does", "settings", "rate", "cost", "source"]
        rows.update({row[0].strip("`"): row for row in those})
    assert set(rows) == set(STRATEGIES)
    for name, kind in STRATEGIES.items():
        _, about, settings, rate, cost, source = rows[name]
        assert (about, float(rate), cost, source) == (kind.about, kind.rate, kind.cost, kind.source)
        assert all(f"{field.name}={str(field.default).lower()}" in settings.lower() for field in fields(kind))
