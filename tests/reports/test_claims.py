"""Verdicts by hand: what is shown, what is not; Holm; and how numbers are written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowshift.html.table import Table, bounds
from knowshift.html.words import interval_words, listed, percent, signed
from knowshift.reports.evidence.evidence import read_evidence
from knowshift.reports.findings import level as finding_level
from knowshift.reports.findings import weights as finding_weights
from knowshift.reports.findings.claims import (
    Claim,
    Finding,
    adjusted,
    brackets,
    caution,
    from_highest,
    judge,
    mean_of,
    more_or_less,
    nats,
    plain,
    points,
    three_ways,
)
from knowshift.reports.findings.level import level_finding
from knowshift.reports.findings.rows import FINDING_COLUMNS, finding_rows
from knowshift.reports.published import published, published_concentration
from knowshift.reports.tables.build import Tables, to_csv
from knowshift.statistics.estimates import MISSING, Estimate, without_interval

NAN = math.nan


def estimate(value: float, low: float, high: float, p: float = 0.01) -> Estimate:
    return Estimate(value, low, high, 0.01, 4.0, p, 3)


def claim(name: str, low: float, high: float, *, core: bool = True, p: float = 0.01) -> Claim:
    value = estimate((low + high) / 2, low, high, p)
    return Claim(name, f"{name} is so", "everywhere", "points", value, f"{name}.", core=core)


SHOWN, NOT_SHOWN, OPEN = claim("a", 0.01, 0.03), claim("b", -0.03, 0.009), claim("c", -0.03, 0.03)


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "verdict"),
    [
        (0.001, 0.2, NAN, "shown"),
        (0.001, 0.005, NAN, "shown"),  # above 0, if smaller than the margin
        (0.0, 0.2, NAN, "undecided"),
        (-0.1, 0.2, NAN, "undecided"),
        (-0.1, 0.0099, NAN, "not shown"),
        (-0.1, 0.01, NAN, "undecided"),
        (-0.2, -0.1, NAN, "not shown"),
        (NAN, NAN, NAN, "undecided"),
        (0.001, 0.2, 0.05, "shown"),
        (0.001, 0.2, 0.0501, "undecided"),  # looked at with others: its interval alone does not show it
        (0.001, 0.005, 0.2, "not shown"),
        (-0.1, 0.2, 0.001, "undecided"),
        (-0.2, -0.1, 0.001, "not shown"),  # sure, and the other way round
    ],
)
def test_a_verdict_by_hand(low: float, high: float, p_holm: float, verdict: str) -> None:
    assert judge(estimate(0.0, low, high), 0.01, p_holm) == verdict
    one = Claim("a", "a", "", "points", estimate(0.0, low, high), "a.", margin=0.01, p_holm=p_holm)
    assert one.verdict == verdict
    assert judge(estimate(0.0, 10 * low, 10 * high), 0.1, p_holm) == verdict


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 1))
def test_holm_takes_away_and_never_adds(one: float, other: float, margin: float, p_holm: float) -> None:
    value = estimate(0.0, min(one, other), max(one, other))
    alone, together = judge(value, margin), judge(value, margin, p_holm)
    assert together == alone or (alone == "shown" and p_holm > 0.05)
    assert together != "shown" or value.low > 0


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        ((SHOWN, SHOWN), "shown"),
        ((SHOWN, NOT_SHOWN), "shown in part"),
        ((SHOWN, OPEN), "shown in part"),
        ((NOT_SHOWN, OPEN), "not shown"),
        ((NOT_SHOWN, NOT_SHOWN), "not shown"),
        ((OPEN, OPEN), "undecided"),
        ((SHOWN, replace(NOT_SHOWN, core=False)), "shown"),
        ((replace(SHOWN, core=False), OPEN), "undecided"),
    ],
)
def test_a_finding_is_what_its_core_claims_are(claims: tuple[Claim, ...], verdict: str) -> None:
    assert Finding(1, "t", "p", "s", claims).verdict == verdict
    assert Finding(1, "t", "p", "s", claims, controls=(NOT_SHOWN, SHOWN)).verdict == verdict


def test_claims_asked_together_are_adjusted_by_holm() -> None:
    together = adjusted([claim("a", 0.01, 0.02, p=p) for p in (0.04, 0.01, 0.03)])
    assert [c.p_holm for c in together] == [pytest.approx(p) for p in (0.06, 0.03, 0.06)]
    assert [c.verdict for c in together] == ["undecided", "shown", "undecided"]


def test_a_contrast_taken_the_other_way_round() -> None:
    other = estimate(0.2, 0.1, 0.4, 0.03).negated()
    assert (other.value, other.low, other.high, other.p) == (-0.2, -0.4, -0.1, 0.03)
    assert (other.error, other.freedom, other.draws) == (0.01, 4.0, 3)


def test_a_contrast_three_ways(hand_tables: Tables) -> None:
    evidence = hand_tables.evidence
    found = three_ways(evidence, lambda scores: scores)  # type: ignore[arg-type, return-value]
    assert found["estimate"] is evidence.substring
    assert found["word"] is evidence.word
    assert found["by_relation"] is evidence.by_relation
    assert (evidence.substring.values == evidence.answers.substring).all()
    assert (evidence.word.values == evidence.answers.word).all()
    assert (evidence.by_relation.values == evidence.answers.substring).all()
    assert evidence.substring.cluster is evidence.word.cluster is None
    names = sorted(set(evidence.answers.relation))
    assert evidence.by_relation.cluster is not None
    assert [names[i] for i in evidence.by_relation.cluster] == list(evidence.answers.relation)


def test_numbers_in_words() -> None:
    known = estimate(0.1234, -0.0049, 0.25)
    assert points(known) == "+12.3 points [−0.5 to +25.0]"
    assert points(known, 2) == "+12.34 points [−0.49 to +25.00]"
    assert nats(known) == "+0.12 nats [0.00 to +0.25]"
    assert plain(known) == "+0.12 [0.00 to +0.25]"
    assert brackets(known) == "[−0.5 to +25.0]"
    assert brackets(known, 1, 3) == "[−0.005 to +0.250]"
    assert interval_words(known) == "−0.5 to +25.0"
    assert interval_words(replace(known, low=NAN)) == interval_words(replace(known, high=NAN)) == "no interval"
    assert points(MISSING) == nats(MISSING) == plain(MISSING) == "not measured"
    assert points(without_interval(0.5, 1)) == "+50.0 points [no interval]"
    assert [more_or_less(v) for v in (0.031, 0.0, -0.004, NAN)] == [
        "3.1 points more",
        "0.0 points more",
        "0.4 points less",
        "an unknown amount more",
    ]
    assert [signed(v) for v in (0.1, -0.1, 0.0, -0.0, -0.0004, 0.0006)] == [
        "+10.0",
        "−10.0",
        "0.0",
        "0.0",
        "0.0",
        "+0.1",
    ]
    assert (signed(-1.234, 1, 2), signed(0.5, 10, 0)) == ("−1.23", "+5")
    assert (percent(0.417), percent(0.417, 0), percent(0.0), percent(NAN)) == ("41.7%", "42%", "0.0%", "missing")
    assert [listed(w) for w in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert mean_of([0.1, 0.2, 0.6]) == pytest.approx(0.3)
    assert math.isnan(mean_of([]))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.2, ""),
        (-0.2, -0.1, ""),
        (-0.1, 0.2, " (may be chance)"),
        (0.0, 0.2, " (may be chance)"),
        (-0.2, 0.0, " (may be chance)"),
        (NAN, NAN, " (may be chance)"),
    ],
)
def test_a_headline_says_where_chance_may_have_done_it(low: float, high: float, said: str) -> None:
    assert caution(estimate(0.1, low, high)) == said


def test_bounds_cut_an_interval_where_the_quantity_cannot_go() -> None:
    wide = estimate(0.5, -0.1, 1.2)
    assert bounds(wide) == (0.5, -0.1, 1.2)
    assert bounds(wide, 0.0) == (0.5, 0.0, 1.2)
    assert bounds(wide, 0.0, 1.0) == (0.5, 0.0, 1.0)
    assert all(math.isnan(value) for value in bounds(MISSING))


def test_claims_as_rows() -> None:
    full = replace(SHOWN, word=estimate(0.5, 0.4, 0.6), by_relation=estimate(0.02, -0.3, 0.3), p_holm=0.02, margin=0.5)
    finding = Finding(3, "t", "p", "s", (full, replace(OPEN, core=False)), controls=(NOT_SHOWN,))
    rows = [dict(zip(FINDING_COLUMNS, row, strict=True)) for row in finding_rows([finding]).rows]
    assert [(row["finding"], row["claim"], row["role"], row["verdict"]) for row in rows] == [
        (3, "a", "core", "shown"),
        (3, "c", "detail", "undecided"),
        (3, "b", "control", "not shown"),
    ]
    first = rows[0]
    assert [first[k] for k in ("estimate", "low", "high", "p", "p_holm", "draws", "margin")] == [
        *(0.02, 0.01, 0.03, 0.01),
        *(0.02, 3, 0.5),
    ]
    assert [first[k] for k in ("word_estimate", "word_low", "word_high")] == [0.5, 0.4, 0.6]
    assert [first[k] for k in ("relation_low", "relation_high")] == [-0.3, 0.3]
    assert [first[k] for k in ("scope", "statement", "unit", "sentence")] == ["everywhere", "a is so", "points", "a."]
    assert [rows[1][k] for k in ("word_estimate", "word_low", "word_high", "relation_low", "relation_high")] == [
        None
    ] * 5


def test_claims_as_json_have_no_nan() -> None:
    missing = Claim("a", "a", "", "points", MISSING, "a.", core=True)
    told = Finding(1, "t", "p", "s", (missing,)).to_json()["claims"][0]
    assert json.loads(json.dumps(told, allow_nan=False))["estimate"] is None
    assert (told["interval"], told["p"], told["p_holm"]) == ([None, None], None, None)
    assert (told["draws"], told["word_boundary"], told["by_relation"]) == (0, None, None)
    exact = Claim("a", "a", "", "nats", estimate(1 / 3, -math.inf, 2 / 3), "a.", word=estimate(0.5, 0.4, NAN))
    told = Finding(1, "t", "p", "s", (exact,)).to_json()["claims"][0]
    assert (told["estimate"], told["interval"], told["unit"]) == (0.333333, [None, 0.666667], "nats")
    assert told["word_boundary"] == {"value": 0.5, "low": 0.4, "high": None}


def test_cells_of_csv_files() -> None:
    row = (1, 0.5, -0.0000001, NAN, None, True, False, 'a,"b"', 1e-7, 1.2345674)
    text = to_csv(Table("t", tuple("abcdefghij"), (row,)))
    assert text == 'a,b,c,d,e,f,g,h,i,j\n1,0.500000,0.000000,,,yes,no,"a,""b""",0.000000,1.234567\n'


def test_the_papers_numbers_are_those_of_its_tables() -> None:
    """What the findings cite of the paper, from the transcribed tables."""
    shares = published_concentration(1920)
    assert (percent(shares["0.01"], 0), percent(shares["0.2"], 0)) == ("71%", "92%")
    assert published_concentration(240) != shares
    assert published_concentration(7) == {}
    rows = [r for r in published("update_concentration") if (r["model"], r["train_size"]) == ("LLaMA-3-8B", "1920")]
    mine = [float(r["share_of_relative_change_percent"]) for r in rows if r["top_fraction"] == "0.01"]
    assert len(mine) == 5
    assert shares["0.01"] == pytest.approx(sum(mine) / 500)

    def accuracy(table: str, column: str, **values: str) -> float:
        found = [r for r in published(table) if all(r[name] == value for name, value in values.items())]
        assert len(found) == 1
        return float(found[0][column])

    one = {"model": "LLaMA-3-8B", "train_size": "1920", "domain": "in_domain"}
    level_0, level_2 = (
        accuracy("accuracy_1920", "accuracy_percent", **one, test_level="mean", train_level=level) for level in "02"
    )
    assert f"{level_2 - level_0:.2f} points between level-0 and level-2 data" in finding_level.LEVEL_FINDING.paper
    before, after, most = (
        accuracy("restoration", "accuracy_percent", **one, train_level="0", restored_fraction=f)
        for f in ("0", "0.2", "0.6")
    )
    assert f"level 0: +{after - before:.2f} points" in finding_weights.WEIGHT_FINDING.paper
    assert "about 71% of summed relative change, the top 20% about 92%" in finding_weights.WEIGHT_FINDING.paper
    assert f"at 60% accuracy collapses to about {most:.0f}%" in finding_weights.WEIGHT_FINDING.paper


@given(st.dictionaries(st.integers(0, 2000), st.integers(0, 40), max_size=6), st.data())
def test_equal_means_are_ordered_by_what_they_are_of(tenths: dict[int, int], data: st.DataObject) -> None:
    """Whatever the last digits of the means, which come from the order of adding."""
    rounding = {name: data.draw(st.floats(-1e-12, 1e-12)) for name in tenths}
    means = {name: value / 40 + rounding[name] for name, value in tenths.items()}
    assert from_highest(means) == sorted(tenths, key=lambda name: (-tenths[name], name))


@pytest.mark.parametrize("rounding", [-1e-13, 1e-13])
def test_equal_training_levels_are_told_in_their_order(rounding: float, hand_run: Path) -> None:
    evidence = read_evidence(hand_run)
    scores = evidence.substring
    for draw in range(3):
        two, four = (scores.column(evidence.main[level, 1920], draw) for level in (2, 4))
        scores.means[four] = scores.means[two] + rounding
    assert "With 1,920 samples: level 2 60.0%, level 4 60.0% and level 0 10.0%." in level_finding(evidence).sentence
