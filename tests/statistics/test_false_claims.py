"""Studies in which nothing has an effect: how often the report's claims say "shown"."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_claims_without_an_effect_are_rarely_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both intervals are to miss upwards in 2.5 of 100; of so few studies 5 are allowed for all claims together."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from claims import false_claims

    counts = false_claims(studies=25, facts=200, draws=3, seed=1)
    assert len(counts) == 29
    asked, shown = (sum(getattr(count, name) for count in counts.values()) for name in ("asked", "shown"))
    clustered, above = (sum(getattr(count, name) for count in counts.values()) for name in ("clustered", "above"))
    assert asked > clustered > 500
    assert 0 < shown / asked <= 0.05
    assert 0 < above / clustered <= 0.05
