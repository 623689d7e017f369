"""Every claim of the hand-made run: its estimate by an independent formula, its sentence and its verdict as written."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hand_claims import EXPECTED
from hand_run import KL, LEVELS, SIZES, TUNED, accuracy, build_hand_run, over_draws
from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.evidence import read_evidence
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.evidence.scores import Scores
from knowshift.reports.findings.build import findings_of
from knowshift.reports.findings.claims import Claim, Finding
from knowshift.reports.findings.size import size_finding
from knowshift.reports.findings.tokens import against_accuracy, token_finding
from knowshift.reports.findings.weights import _excess
from knowshift.reports.tables.build import Tables
from knowshift.statistics import crossed

ALL = [(number, name) for number, claims in EXPECTED.items() for name in claims]
#: The claims whose bootstrap has no closed form; a test of their own.
CORRELATIONS = {"kl_against_accuracy", "kl_against_accuracy_within"}


def claims_of(finding: Finding) -> dict[str, Claim]:
    return {claim.name: claim for claim in (*finding.claims, *finding.controls)}


@pytest.mark.parametrize(("number", "name"), ALL)
def test_a_claim_by_hand(number: int, name: str, hand_tables: Tables) -> None:
    claim, expected = claims_of(hand_tables.findings[number - 1])[name], EXPECTED[number][name]
    estimate = claim.estimate
    found = [estimate.value, estimate.low, estimate.high, estimate.p]
    # Six digits: replicates are float32.
    assert found == [pytest.approx(number, abs=2e-6) for number in expected.estimate]
    assert estimate.draws == expected.draws
    assert claim.sentence == expected.sentence
    assert (claim.verdict, claim.scope, claim.unit) == (expected.verdict, expected.scope, expected.unit)
    assert claim.p_holm == pytest.approx(expected.p_holm, abs=1e-6, nan_ok=True)
    assert claim.core == expected.core
    if expected.word is None:
        assert claim.word is claim.by_relation is None
    else:
        assert claim.word is not None
        assert claim.by_relation is not None
        word = [claim.word.value, claim.word.low, claim.word.high, claim.word.p]
        assert word == [pytest.approx(number, abs=2e-6) for number in expected.word]
        # Facts of a level are all right or all wrong: resampling relations changes nothing here.
        assert claim.by_relation.value == pytest.approx(estimate.value)
        assert claim.by_relation.high == pytest.approx(estimate.high, abs=2e-6)


def test_findings_hold_these_claims_in_this_order(hand_tables: Tables) -> None:
    controls = {
        1: {"smaller_rate_helps", "hurts_at_smaller_rate"},
        2: {"level_matters_at_smaller_rate"},
        3: {"smaller_rate_lowers_kl", "kl_rises_at_smaller_rate"},
        4: {
            "concentration_0.01",
            "concentration_0.2",
            "random_restoring_helps",
            "relative_beats_random",
            "smaller_rate_beats_restoring",
            "collapse_stays_above_base",
        },
    }
    for finding in hand_tables.findings:
        names = [claim.name for claim in (*finding.claims, *finding.controls) if claim.name not in CORRELATIONS]
        assert names == list(EXPECTED[finding.number])
        assert {claim.name for claim in finding.controls} == controls[finding.number]
        assert finding.verdict == "shown"
        assert finding.sentence == finding.claims[0].sentence
    said = {finding.number: finding.short for finding in hand_tables.findings}
    assert said == {
        1: "Tuned on 1,920 facts, the models answer 36.7% of the test, 25.6 points less than on the best smaller set",
        2: "",
        3: "",
        4: "putting the most changed weights back gives 18.9 points more",
    }
    assert [finding.notes for finding in hand_tables.findings] == [
        (),
        (),
        ("Up to 2 facts of a model could not be scored and are left out everywhere (no such text; no such token).",),
        (),
    ]


def test_margins_are_one_point_a_twentieth_of_mean_kl_and_a_tenth_of_a_correlation(hand_tables: Tables) -> None:
    mean_kl = float(np.mean([np.mean(values) + 0.25 for values in KL.values()]))
    for finding in hand_tables.findings:
        for claim in (*finding.claims, *finding.controls):
            margin = {"points": 0.01, "nats": 0.05 * mean_kl, "correlation": 0.1}[claim.unit]
            assert claim.margin == pytest.approx(margin), claim.name


def test_correlations_against_every_resampling_of_the_draws(hand_tables: Tables) -> None:
    """Two of three draws, each weighing 3/2, drawn anew at every training level, alike for KL and for accuracy."""
    claims = claims_of(hand_tables.findings[2])
    accuracies = np.asarray([[accuracy(pair) for pair in pairs] for pairs in TUNED.values()])
    kl = np.asarray([KL[key] for key in TUNED])

    def correlate(weights: np.ndarray, groups: Sequence[slice]) -> float:
        # Rounded: 0.6 is 0.6, whichever tenths it is the mean of.
        x, y = (np.round((values * weights).mean(axis=1), 9) for values in (kl, accuracies))
        return float(np.mean([stats.spearmanr(x[part], y[part]).statistic for part in groups]))

    drawn = [np.bincount(pair, minlength=3) * 1.5 for pair in itertools.product(range(3), repeat=2)]
    overall, within = [slice(0, 9)], [slice(0, 3), slice(3, 6), slice(6, 9)]
    for name, groups, scope, core in (
        ("kl_against_accuracy", overall, "9 settings", True),
        ("kl_against_accuracy_within", within, "mean of training levels", False),
    ):
        estimate = claims[name].estimate
        assert estimate.value == pytest.approx(-correlate(np.ones((9, 3)), groups))
        found = [
            -correlate(np.asarray([levels[LEVELS.index(level)] for level, _ in TUNED]), groups)
            for levels in itertools.product(drawn, repeat=3)
        ]
        low, high = np.quantile(found, [0.025, 0.975])
        # Ties of accuracies fall either way in the last bit of a float, which moves a correlation by up to 0.05.
        assert (estimate.low, estimate.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))
        assert estimate.p == pytest.approx(2 / 1001)  # no replicate beyond 0
        assert estimate.draws == 3
        assert (claims[name].verdict, claims[name].scope, claims[name].core) == ("shown", scope, core)
    assert claims["kl_against_accuracy"].sentence.startswith(
        "Over the 9 settings the rank correlation of KL with accuracy is −0.73 [−0.8"
    )
    assert claims["kl_against_accuracy_within"].sentence.startswith(
        "Over sizes within a training level, the mean rank correlation is −0.83 [−0.9"
    )


def test_findings_as_json_hold_the_same_numbers(hand_run: Path, hand_tables: Tables) -> None:
    told = json.loads(json.dumps(findings_of(hand_run), allow_nan=False))
    for finding, plain in zip(hand_tables.findings, told, strict=True):
        assert plain["finding"] == finding.number
        assert (plain["title"], plain["paper"], plain["sentence"]) == (finding.title, finding.paper, finding.sentence)
        assert plain["verdict"] == finding.verdict
        assert plain["notes"] == list(finding.notes)
        for part, claims in (("claims", finding.claims), ("controls", finding.controls)):
            for claim, value in zip(claims, plain[part], strict=True):
                assert value["estimate"] == round(claim.estimate.value, 6)
                assert value["interval"] == [round(claim.estimate.low, 6), round(claim.estimate.high, 6)]
                assert value["p"] == round(claim.estimate.p, 6)
                assert value["p_holm"] == (None if math.isnan(claim.p_holm) else round(claim.p_holm, 6))
                assert (value["draws"], value["margin"]) == (claim.estimate.draws, claim.margin)
                assert (value["core"], value["verdict"], value["unit"]) == (claim.core, claim.verdict, claim.unit)
                assert (value["name"], value["scope"]) == (claim.name, claim.scope)
                assert (value["statement"], value["sentence"]) == (claim.statement, claim.sentence)
                for key, other in (("word_boundary", claim.word), ("by_relation", claim.by_relation)):
                    expected = other and {name: round(getattr(other, name), 6) for name in ("value", "low", "high")}
                    assert value[key] == expected


def without(run: Path, folder: Path, *kinds: str) -> Path:
    shutil.copytree(run, folder)
    for kind in kinds:
        shutil.rmtree(folder / "cells" / kind)
    return folder


def keep_cells(run: Path, folder: Path, **values: object) -> Path:
    """A copy whose manifest has only the tuned models' cells whose coordinates have these values."""
    shutil.copytree(run, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cells"] = [
        cell
        for cell in manifest["cells"]
        if "level" not in cell["key"] or all(cell["key"][name] == value for name, value in values.items())
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_is_not_there_is_not_measured(hand_run: Path, tmp_path: Path) -> None:
    part = findings_of(without(hand_run, tmp_path / "part", "token_shift", "weight_change", "restoration", "base"))
    assert [f["verdict"] for f in part] == ["shown", "shown", "undecided", "undecided"]
    assert [f["sentence"] for f in part[2:]] == [
        "Not measured: no scored token shifts.",
        "Not measured: nothing restored.",
    ]
    assert [[c["name"] for c in f["claims"]] for f in part[2:]] == [["kl_rises"], ["restoring_helps"]]
    assert part[3]["controls"] == []
    assert part[2]["claims"][0]["estimate"] is None
    assert part[2]["claims"][0]["interval"] == [None, None]


def test_one_size_and_one_level_compare_nothing(hand_run: Path, tmp_path: Path) -> None:
    size = findings_of(keep_cells(hand_run, tmp_path / "size", size=1920, control=None))
    assert [f["sentence"] for f in (size[0], size[2])] == ["Not measured: one size."] * 2
    assert [f["verdict"] for f in size] == ["undecided", "shown", "undecided", "shown"]
    assert not {"smaller_rate_beats_restoring"} & {c["name"] for c in size[3]["controls"]}
    level = findings_of(keep_cells(hand_run, tmp_path / "level", level=2))
    assert level[1]["sentence"] == "Not measured: one training level."
    assert [c["name"] for c in level[1]["claims"]] == ["level_matters"]
    assert "kl_most_for_low_levels" not in {c["name"] for c in level[2]["claims"]}
    assert "kl_against_accuracy_within" in {c["name"] for c in level[2]["claims"]}


def test_what_stands_beside_restoring_where_less_was_measured(hand_run: Path, tmp_path: Path) -> None:
    folder = without(hand_run, tmp_path / "run", "base", "weight_change")
    for file in (folder / "cells/restoration").glob("*/answers-random-*.parquet"):
        file.unlink()
    assert [c["name"] for c in findings_of(folder)[3]["controls"]] == ["smaller_rate_beats_restoring"]


def test_the_largest_size_is_no_inner_one(hand_run: Path, tmp_path: Path) -> None:
    """Sizes 240 and 1,920 changed places: the largest is the best of all, and claims name the inner one."""
    shutil.copytree(hand_run, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    for cell in manifest["cells"]:
        size = cell["key"].get("size")
        if cell["kind"] in ("evaluation", "token_shift") and not cell["key"]["control"]:
            cell["key"]["size"] = {240: 1920, 1920: 240}.get(size, size)
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    evidence = read_evidence(tmp_path / "run")
    claims = claims_of(size_finding(evidence)) | claims_of(token_finding(evidence))
    rises = over_draws([[-0.1, 0.0, -0.3], [0.0, 0.0, 0.2], [0.1, -0.1, -0.5]])
    found = claims["rises_first"].estimate
    assert [found.value, found.low, found.high, found.p] == [pytest.approx(number, abs=2e-6) for number in rises]
    assert claims["rises_first"].verdict == "undecided"
    assert claims["kl_falls_first"].estimate.value == pytest.approx(-(1.125 + 11 / 24 + 11 / 12) / 3)
    assert claims["kl_falls_first"].verdict == "not shown"


def test_the_main_grid_has_one_learning_rate(hand_run: Path, tmp_path: Path) -> None:
    """Models of another rate that no control names are no part of the grid; without a configuration, the smallest."""
    shutil.copytree(hand_run, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    for cell in manifest["cells"]:
        if cell["key"].get("level") == 2 and not cell["key"]["control"]:
            cell["key"]["learning_rate"] = 0.5
    expected = {0.5: {(2, size) for size in SIZES}, 3e-4: {(level, size) for level in (0, 4) for size in SIZES}}
    for config, rate in (
        ({"training": {"learning_rate": 0.5}}, 0.5),
        ({"training": {"learning_rate": 3e-4}}, 3e-4),
        ({"learning_rate": 0.5}, 0.5),
        ({}, 3e-4),
        (None, 3e-4),
    ):
        manifest["config"] = config
        (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
        evidence = read_evidence(tmp_path / "run")
        assert evidence.run.learning_rate == rate
        assert {*evidence.main} == expected[rate]
        assert {*evidence.controlled} == {(level, 1920) for level in LEVELS}


def test_kl_is_the_mean_over_facts_where_it_is_set_against_accuracy(hand_tables: Tables) -> None:
    """Three facts in-domain, and one out-of-domain with twice the opposite slope: the mean over facts ascends."""
    evidence = hand_tables.evidence
    columns = [Column(model.setting, draw) for model in evidence.main.values() for draw in range(3)]
    rank = np.repeat([accuracy(pairs[0]) for pairs in TUNED.values()], 3)
    values = np.outer([1, 1, 1, -2], rank)
    kl = Scores(values, np.asarray([0, 0, 0, 1]), np.full(4, 4), columns)
    overall, _ = against_accuracy(evidence, kl, evidence.main)
    assert overall.value > 0.5


def test_kl_is_read_to_24_bits(tmp_path: Path) -> None:
    run = build_hand_run(tmp_path / "run", draws=1)
    fine = 0.1 + 2.0**-20
    for file in (run / "cells/token_shift").glob("*/token_shift.parquet"):
        table = pq.read_table(file)
        kl = [None if value is None else fine for value in table["kl"].to_pylist()]
        pq.write_table(table.set_column(table.schema.get_field_index("kl"), "kl", pa.array(kl, pa.float64())), file)
    shifts = read_evidence(run).token_shifts
    assert shifts is not None
    assert shifts.scores.values == pytest.approx(np.full(shifts.scores.values.shape, fine), abs=2.0**-25)
    assert (shifts.scores.values * 2**24 % 1 == 0).all()


@given(st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=4), min_size=1, max_size=3), st.integers(1, 3))
def test_a_draw_s_concentration_is_one_unit_at_all_its_sizes(excess: list[list[float]], sizes: int) -> None:
    """Training sets are nested: what a draw has at every size is seen once, and does not narrow the interval."""
    held = [
        (Setting(level, 60 * 2**size, 1e-3, ""), draw, value)
        for level, values in enumerate(excess)
        for size in range(sizes)
        for draw, value in enumerate(values)
    ]
    one = crossed.over_draws(
        [level for level, values in enumerate(excess) for _ in values], [v for vs in excess for v in vs]
    )
    found = _excess(held)
    assert found.value == pytest.approx(sum(sum(v) / len(v) for v in excess) / len(excess), abs=1e-12)
    ends = [(found.low, found.high), (one.low, one.high)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-9, nan_ok=True)
    # A draw that one size lacks: still the mean over settings of the mean over their draws.
    left = held[:-1] if len(excess[-1]) > 1 and sizes > 1 else held
    settings = {setting for setting, _, _ in left}
    means = [[value for setting, _, value in left if setting == each] for each in settings]
    assert _excess(left).value == pytest.approx(sum(sum(m) / len(m) for m in means) / len(means), abs=1e-12)
