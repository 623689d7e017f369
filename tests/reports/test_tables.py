"""Every table of the hand-made run, row by row, from the levels that its models answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hand_run import (
    BASE,
    CONTROL,
    FACTS,
    FRACTIONS,
    KL,
    LEVELS,
    RESTORED,
    SHARES,
    SIZES,
    TUNED,
    Right,
    answered,
    over_draws,
    pooled,
    word_lost,
)
from knowshift.reports.published import published, published_concentration
from knowshift.reports.tables.answers import EXPOSURE_BINS
from knowshift.reports.tables.build import Tables

DOMAINS = tuple(FACTS)
LARGEST = SIZES[-1]
NAN = math.nan
Row = Mapping[str, Any]


def near(values: Sequence[float | None]) -> list[Any]:
    return [None if value is None else pytest.approx(value, abs=2e-6, nan_ok=True) for value in values]


def cut(estimate: Sequence[float], low: float = 0.0, high: float = math.inf) -> list[float]:
    return [estimate[0], max(estimate[1], low), min(estimate[2], high)]


def of(row: Row, *names: str) -> list[Any]:
    return [row[name] for name in names]


def right(pair: tuple[Right, Right], domain: str, test_level: str, lost: bool = False) -> float:
    """The accuracy of a model that answers whole levels."""
    levels = answered(pair[DOMAINS.index(domain)])
    if lost and domain == "in_domain" and levels:
        levels = levels - {min(levels)}
    return len(levels) / 5 if test_level == "mean" else float(int(test_level) in levels)


def count_row(pair: tuple[Right, Right], domain: str, test_level: str, lost: bool) -> list[Any]:
    """facts, correct, accuracy, word_correct, word_accuracy, empty_rate."""
    levels = range(5) if test_level == "mean" else [int(test_level)]
    facts = sum(FACTS[domain][level] for level in levels)
    hits, words = (
        sum(int(right(pair, domain, str(level), which)) * FACTS[domain][level] for level in levels)
        for which in (False, lost)
    )
    empty = 0 if right(pair, domain, "0") or 0 not in levels else FACTS[domain][0]
    return [facts, hits, right(pair, domain, test_level), words, right(pair, domain, test_level, lost), empty / facts]


COUNTED = ("facts", "correct", "accuracy", "word_correct", "word_accuracy", "empty_rate")


def test_mastery(hand_tables: Tables) -> None:
    found = {(r["split"], r["domain"], r["level"]): of(r, "facts", "share") for r in hand_tables["mastery"].where()}
    expected = {}
    for split, domain, counts in (
        ("train", "in_domain", (2, 3, 4, 4, 4)),
        ("test", "in_domain", (4, 4, 4, 4, 6)),
        ("test", "out_of_domain", (4, 4, 4, 4, 2)),
    ):
        for level, count in enumerate(counts):
            expected[split, domain, str(level)] = [count, pytest.approx(count / sum(counts))]
    assert found == expected
    assert list(found) == list(expected)


def test_exposures(hand_tables: Tables) -> None:
    """Sixteen training facts whose exposures are known, two a bin but for the second and third."""
    rows = hand_tables["exposures"].where()
    assert [(r["exposures"], r["facts"]) for r in rows] == [
        ("never", 2),
        ("1", 1),
        ("2", 1),
        ("3-4", 2),
        ("5-7", 2),
        ("8-12", 2),
        ("13-20", 2),
        ("21-50", 2),
        (">50", 2),
    ]
    rates = [[0.0, 0.1], [0.2], [0.3], [0.4, 0.5], [0.4, 0.6], [0.6, 0.7], [0.7, 0.8], [0.9, 1.0], [1.0, 0.9]]
    levels = [[0, 1], [1], [1], [2, 2], [2, 2], [3, 3], [3, 3], [4, 4], [4, 4]]
    for row, its, has in zip(rows, rates, levels, strict=True):
        low, high = stats.t.interval(0.95, 1, loc=np.mean(its), scale=stats.sem(its)) if len(its) > 1 else (NAN, NAN)
        expected = [float(np.mean(its)), max(low, 0.0), min(high, 1.0)]
        assert of(row, "mean_rate", "low", "high") == near(expected)
        assert [row[f"share_level_{level}"] for level in range(5)] == near(
            [has.count(lv) / len(has) for lv in range(5)]
        )
    # Every count has one bin.
    edges = [(first, last) for _, first, last in EXPOSURE_BINS]
    assert [first for first, _ in edges] == [0, *(last + 1 for _, last in edges[:-1])]
    assert edges[-1][1] == math.inf


def test_base(hand_tables: Tables) -> None:
    rows = hand_tables["base"].where()
    names = {"zero_shot": "", "few_shot": "_few_shot", "plain": "_plain"}
    tests = (*"01234", "mean")
    assert [tuple(of(r, "prompt", "domain", "test_level")) for r in rows] == [
        (prompt, domain, level) for prompt in names for domain in DOMAINS for level in tests
    ]
    for row in rows:
        pair, domain, level = BASE[names[row["prompt"]]], row["domain"], row["test_level"]
        assert of(row, *COUNTED) == near(count_row(pair, domain, level, False))
        if level == "mean":
            assert of(row, "low", "high") == near([NAN, NAN])
        else:
            interval = stats.binomtest(row["correct"], row["facts"]).proportion_ci(method="wilson")
            assert of(row, "low", "high") == near([interval.low, interval.high])
    assert rows[5]["empty_rate"] == pytest.approx(4 / 22)
    assert rows[11]["accuracy"] == pytest.approx(1 / 5)


GRID = [(level, size, "") for level in LEVELS for size in SIZES]
SLOW = [(level, LARGEST, "learning_rate") for level in LEVELS]


def pairs_of(level: int, size: int, control: str) -> Sequence[tuple[Right, Right]]:
    return CONTROL[level] if control else TUNED[level, size]


def rate_of(control: str) -> str:
    return "0.0001" if control else "0.0003"


def test_accuracy(hand_tables: Tables) -> None:
    rows = hand_tables["accuracy"].where()
    assert len(rows) == (9 * 3 + 3 * 2) * 2 * 6
    assert len({tuple(row.values())[:7] for row in rows}) == len(rows)
    for row in rows:
        key = (row["level"], row["size"], row["control"])
        assert key in (*GRID, *SLOW)
        assert row["learning_rate"] == rate_of(row["control"])
        pair = pairs_of(*key)[row["draw"]]
        expected = count_row(pair, row["domain"], row["test_level"], word_lost(*key[:2]))
        assert of(row, *COUNTED) == near(expected)


def test_accuracy_summary(hand_tables: Tables) -> None:
    rows = hand_tables["accuracy_summary"].where()
    assert [tuple(of(r, "level", "size", "control", "domain", "test_level")) for r in rows] == [
        (*key, domain, level) for key in (*GRID, *SLOW) for domain in DOMAINS for level in (*"01234", "mean")
    ]
    for row in rows:
        level, size, control = key = row["level"], row["size"], row["control"]
        domain, test = row["domain"], row["test_level"]
        assert (row["learning_rate"], row["draws"]) == (rate_of(control), len(pairs_of(*key)))
        facts = FACTS[domain] if test == "mean" else FACTS[domain][int(test) : int(test) + 1]
        assert row["facts"] == sum(facts)
        for which, names in ((False, ("accuracy", "low", "high")), (True, ("word_accuracy", "word_low", "word_high"))):
            # The draws of all three training levels tell how noisy a draw is.
            each = [
                [right(pair, domain, test, which and word_lost(other, size)) for pair in pairs_of(other, size, control)]
                for other in LEVELS
            ]
            estimate = cut(pooled(each[LEVELS.index(level)], each), 0.0, 1.0)
            if (domain, test) == ("out_of_domain", "4"):  # one fact in each half: its part of the noise is not known
                estimate[1:] = [NAN, NAN]
            assert of(row, *names) == near(estimate)
        plain = [right(pair, domain, test) for pair in pairs_of(*key)]
        empties = [count_row(pair, domain, test, False)[-1] for pair in pairs_of(*key)]
        assert of(row, "deviation", "empty_rate") == near([float(np.std(plain, ddof=1)), float(np.mean(empties))])


def test_controls(hand_tables: Tables) -> None:
    """The control minus the grid, in the control's two draws; above it is the smaller rate's accuracy."""
    rows = hand_tables["controls"].where()
    assert [tuple(of(r, "level", "domain")) for r in rows] == [
        (level, domain) for level in ("0", "2", "4", "mean") for domain in DOMAINS
    ]
    for row in rows:
        levels = LEVELS if row["level"] == "mean" else (int(row["level"]),)
        domain = row["domain"]
        grid = {lv: [right(pair, domain, "mean") for pair in TUNED[lv, LARGEST]] for lv in LEVELS}
        slow = {lv: [right(pair, domain, "mean") for pair in CONTROL[lv]] for lv in LEVELS}
        each = {lv: [s - g for s, g in zip(slow[lv], grid[lv][:2], strict=True)] for lv in LEVELS}
        alone = len(levels) == 1
        expected = pooled(each[levels[0]], list(each.values())) if alone else over_draws([each[lv] for lv in levels])
        assert of(row, "difference", "low", "high", "p") == near(expected)
        assert of(row, "size", "draws", "learning_rate", "control_learning_rate") == [1920, 2, "0.0003", "0.0001"]
        means = [float(np.mean([np.mean(side[lv]) for lv in levels])) for side in (grid, slow)]
        assert of(row, "accuracy", "control_accuracy") == near(means)
    level_0 = rows[0]
    assert of(level_0, "accuracy", "control_accuracy", "difference") == near([2 / 15, 2 / 5, 1 / 5])


def test_token_shift(hand_tables: Tables) -> None:
    rows = hand_tables["token_shift"].where()
    assert len(rows) == (9 * 3 + 3 * 2) * 3
    for row in rows:
        kl = 0.5 if row["control"] else KL[row["level"], row["size"]][row["draw"]]
        inside = 4 if (row["level"], row["size"]) == (2, 60) else 5  # of 6 in-domain facts
        values = {"in_domain": [kl] * inside, "out_of_domain": [kl + 0.75] * 2}
        values["both"] = values["in_domain"] + values["out_of_domain"]
        facts = {"in_domain": 6, "out_of_domain": 2, "both": 8}[row["domain"]]
        its = values[row["domain"]]
        assert of(row, "facts", "scored", "unscored") == [facts, len(its), facts - len(its)]
        assert of(row, "kl_mean", "kl_median") == near([float(np.mean(its)), float(np.median(its))])
        assert row["learning_rate"] == rate_of(row["control"])


def test_token_shift_summary(hand_tables: Tables) -> None:
    """Six facts that all cells score: four in-domain, and two out-of-domain with 0.75 nats more."""
    rows = hand_tables["token_shift_summary"].where()
    domains = {"both": (6, 0.25), "in_domain": (4, 0.0), "out_of_domain": (2, 0.75)}
    assert [tuple(of(r, "level", "size", "control", "domain")) for r in rows] == [
        (*key, domain) for key in (*GRID, *SLOW) for domain in domains
    ]
    for row in rows:
        facts, more = domains[row["domain"]]
        values = [0.5, 0.5] if row["control"] else KL[row["level"], row["size"]]
        assert of(row, "facts", "draws", "learning_rate") == [facts, len(values), rate_of(row["control"])]
        expected = cut(over_draws([[value + more for value in values]]))
        if row["domain"] == "out_of_domain":  # one fact in each half
            expected[1:] = [NAN, NAN]
        assert of(row, "kl_mean", "low", "high") == near(expected)


def test_concentration(hand_tables: Tables) -> None:
    table = hand_tables["concentration"]
    rows = [row for row in table.where() if row["source"] != "LLaMA-3-8B"]
    measures = ("relative", "absolute", "squared")
    assert [tuple(of(r, "source", "level", "size", "control", "measure", "top_fraction")) for r in rows] == [
        (source, *key, measure, f"{fraction:g}")
        for source in ("run", "null")
        for key in (*GRID, *SLOW)
        for measure in measures
        for fraction in FRACTIONS
    ]
    for row in rows:
        share, null, absolute = SHARES[float(row["top_fraction"])]
        values = absolute if row["measure"] != "relative" else share if row["source"] == "run" else null
        if row["control"]:
            values = [0.5, 0.5]
        assert row["draws"] == len(values)
        assert row["learning_rate"] == rate_of(row["control"])
        assert of(row, "share", "low", "high") == near(cut(over_draws([values]), 0.0, 1.0))
    paper = table.where(source="LLaMA-3-8B")
    assert [tuple(of(r, "size", "top_fraction")) for r in paper] == [
        (size, fraction) for size in (240, 1920) for fraction in published_concentration(size)
    ]
    for row in paper:
        assert row["share"] == published_concentration(row["size"])[row["top_fraction"]]
        assert of(row, "level", "measure", "learning_rate", "low", "high") == ["mean", "relative", "1e-05", None, None]


def test_layers_and_modules(hand_tables: Tables) -> None:
    for table, column, expected in (
        (
            "layers",
            "layer",
            {
                "0": ([0.25, 0.26, 0.27], [0.25, 0.255, 0.26], 0.5),
                "1": ([0.75, 0.74, 0.73], [0.75, 0.745, 0.74], 0.5),
            },
        ),
        ("modules", "module", {"attn.q": ([0.4] * 3, [0.5] * 3, 0.25), "mlp.up": ([0.6] * 3, [0.5] * 3, 0.75)}),
    ):
        rows = hand_tables[table].where(source="run")
        means = [("mean", size, "") for size in SIZES]
        assert [tuple(of(r, "level", "size", "control", column)) for r in rows] == [
            (*key, name) for key in (*GRID, *SLOW, *means) for name in expected
        ]
        for row in rows:
            values, nulls, chance = expected[row[column]]
            strata = 3 if row["level"] == "mean" else 1
            its, null = (x[:2] if row["control"] else x for x in (values, nulls))
            assert row["draws"] == len(its)
            assert of(row, "share", "low", "high") == near(cut(over_draws([its] * strata), 0.0, 1.0))
            assert row["null_share"] == pytest.approx(sum(null) / len(null))
            difference = over_draws([[a - b for a, b in zip(its, null, strict=True)]] * strata)
            assert of(row, "difference", "difference_low", "difference_high", "p") == near(difference)
            # Both places of a table differ alike, so Holm doubles the p of each.
            assert row["p_holm"] == pytest.approx(min(1.0, 2 * row["p"]))
            assert row["share_of_weights"] == chance
        paper = [row for row in hand_tables[table].where() if row["source"] != "run"]
        printed = [(r["model"], r[column], float(r["share_percent"])) for r in published(f"redundancy_by_{column}")]
        assert [(r["source"], r[column], pytest.approx(100 * r["share"])) for r in paper] == printed


def test_restoration(hand_tables: Tables) -> None:
    rows = hand_tables["restoration"].where()
    assert len(rows) == 3 * 3 * 2 * 3 * 2 * 6  # levels, draws, criteria, fractions, domains, test levels
    for row in rows:
        criterion, fraction = row["criterion"], float(row["fraction"])
        pair = RESTORED[criterion, row["level"], fraction][row["draw"]]
        expected = count_row(pair, row["domain"], row["test_level"], word_lost(row["level"], LARGEST))
        assert of(row, *COUNTED) == near(expected)
        assert of(row, "restored", "eligible") == [round(1000 * fraction) if criterion == "relative" else None, 1000]
        assert of(row, "size", "learning_rate", "control") == [1920, "0.0003", ""]


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p times how many are no smaller, and no less than that of a smaller p."""
    order = np.argsort(p_values, kind="stable")
    out = np.empty(len(p_values))
    out[order] = np.maximum.accumulate([min(1.0, p_values[i] * (len(order) - k)) for k, i in enumerate(order)])
    return out.tolist()


def test_restoration_summary(hand_tables: Tables) -> None:
    rows = hand_tables["restoration_summary"].where()
    expected: list[tuple[list[Any], list[float]]] = []
    for criterion in ("relative", "random"):
        for domain in DOMAINS:

            def accuracies(level: int, kind: str = "", fraction: float = 0.0, where: str = domain) -> np.ndarray:
                pairs = RESTORED[kind, level, fraction] if kind else TUNED[level, LARGEST]
                return np.asarray([right(pair, where, "mean") for pair in pairs])

            for levels in (LEVELS, ("mean",)):
                batch: list[tuple[list[Any], list[float]]] = []
                for level in levels:
                    for f in FRACTIONS:
                        put = [accuracies(lv, criterion, f) for lv in LEVELS]
                        tuned = [accuracies(lv) for lv in LEVELS]
                        random = [accuracies(lv, "random", f) for lv in LEVELS]
                        found: list[float] = []
                        for each in (put, *([a - b for a, b in zip(put, x, strict=True)] for x in (tuned, random))):
                            one = over_draws(each) if level == "mean" else pooled(each[LEVELS.index(level)], each)
                            found += cut(one, 0.0, 1.0) if each is put else one
                        if criterion == "random":
                            found[7:] = [NAN] * 4
                        batch.append(([str(level), criterion, str(f), domain], found))
                adjusted = holm([values[6] for _, values in batch])
                expected += [(names, [*v[:7], p, *v[7:]]) for (names, v), p in zip(batch, adjusted, strict=True)]
    assert [of(r, "level", "criterion", "fraction", "domain") for r in rows] == [names for names, _ in expected]
    columns = ("accuracy", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm")
    columns += ("minus_random", "minus_random_low", "minus_random_high", "minus_random_p")
    for row, (names, values) in zip(rows, expected, strict=True):
        assert of(row, *columns) == near(values), names
        assert of(row, "size", "draws", "learning_rate", "control") == [1920, 3, "0.0003", ""]
    best = hand_tables["restoration_summary"].where(level="mean", criterion="relative", fraction="0.2")
    # In-domain, of 45 levels in three draws at three training levels: 27 restored, 20 as tuned, 20 at random.
    assert of(best[0], "accuracy", "difference", "minus_random") == near([27 / 45, 7 / 45, 7 / 45])
