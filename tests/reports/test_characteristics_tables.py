"""Series of a bench: which labels are one, and a small bench by hand through tables, figures and page."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hand_run import Right, accuracy, build_hand_run, t_interval, write_answers
from knowshift.files import digest, write_json
from knowshift.html.words import signed
from knowshift.reports.evidence.series import series_of
from knowshift.reports.page.characteristics import characteristic_figures, characteristic_sentences
from knowshift.reports.page.figures import build_figures
from knowshift.reports.page.page import compose
from knowshift.reports.tables.bench.characteristics import CHARACTERISTICS, ENDS
from knowshift.reports.tables.build import Tables, build_tables

RATES = (1e-5, 3e-5)
#: Of each label: the settings; levels answered in-domain and out-of-domain, of three draws, at each rate.
BENCH: dict[str, tuple[dict[str, Any], list[list[tuple[Right, Right]]]]] = {
    "sft": ({}, [[(3, 3), (3, 2), (3, 3)], [(1, 1), (1, 0), (1, 1)]]),
    "forms-8": ({"strategy": "paraphrases", "count": 8}, [[(5, 2), (5, 1), (4, 2)], [(0, 0), (0, 0), (0, 0)]]),
    "forms-2": ({"strategy": "paraphrases", "count": 2}, [[(0, 0), (0, 0), (0, 0)], [(2, 2), (1, 1), (1, 2)]]),
    "repeated-2": ({"strategy": "paraphrases", "count": 2, "same": True}, [[(1, 1)] * 3, [(1, 1)] * 3]),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The run by hand with a bench of its own."""
    run = build_hand_run(tmp_path_factory.mktemp("runs") / "bench")
    manifest = json.loads((run / "manifest.json").read_text())
    for label, (settings, by_rate) in BENCH.items():
        for rate, pairs in zip(RATES, by_rate, strict=True):
            for draw, pair in enumerate(pairs):
                key = {"level": None, "size": 240, "draw": draw, "learning_rate": rate, "control": f"{label}@{rate:g}"}
                key["training"] = {"levels": [0, 2, 4]}
                kinds = ["tuned", "evaluation", "learned", *(["learned_own"] if settings else [])]
                for kind in kinds:
                    folder = run / "cells" / kind / digest([kind, key])
                    manifest["cells"].append({"kind": kind, "digest": folder.name, "key": key})
                    if kind == "tuned":
                        strategy = {"strategy": settings.get("strategy", label), "kind": "data"}
                        write_json(folder / "record.json", {"facts": ["a"], "steps": 1, "train_loss": 1.0, **strategy})
                        continue
                    # Of its own facts all are right, of those of plain fine-tuning what it says to test facts.
                    write_answers(folder / "answers.parquet", (5, 5) if kind == "learned_own" else pair, lost=False)
                    if kind == "learned":
                        write_json(folder / "learned.json", {"kl": 1.0, "moved": 0.1, "text_loss": None})
    manifest["config"]["bench"] = {"strategies": {label: settings for label, (settings, _) in BENCH.items()}}
    write_json(run / "manifest.json", manifest)
    return build_tables(run)


def test_every_label_of_a_series_stands_at_its_best_rate_beside_plain_fine_tuning(tables: Tables) -> None:
    found = tables["characteristics"]
    assert found.columns == CHARACTERISTICS
    rows = found.where()
    assert [(row["series"], row["label"], row["value"]) for row in rows] == [
        (0, "sft", None),
        (1, "forms-2", 2.0),
        (1, "forms-8", 8.0),
    ]
    assert [row["learning_rate"] for row in rows] == ["1e-05", "3e-05", "1e-05"]
    for row, best in zip(rows, (0, 1, 0), strict=True):
        pairs = BENCH[row["label"]][1][best]
        for place, domain in enumerate(("in_domain", "out_of_domain")):
            values = [float(pair[place]) / 5 for pair in pairs]  # type: ignore[arg-type]
            assert row[domain] == pytest.approx(np.mean(values))
            if np.ptp(values):
                assert row[f"{domain}_low"] < row[domain] < row[f"{domain}_high"]
    by = {row["label"]: row for row in rows}
    # The best rate is the same in every fold, so the difference is that of the best rates, paired by draw.
    for label, best in (("forms-2", 1), ("forms-8", 0)):
        differences = [
            accuracy(a) - accuracy(b) for a, b in zip(BENCH[label][1][best], BENCH["sft"][1][0], strict=True)
        ]
        assert by[label]["difference"] == pytest.approx(np.mean(differences))
    assert by["sft"]["difference"] is None or np.isnan(by["sft"]["difference"])
    assert (by["forms-2"]["learned_own"], by["forms-8"]["learned_own"]) == (1.0, 1.0)
    assert by["sft"]["learned_own"] is None or np.isnan(by["sft"]["learned_own"])
    assert by["forms-8"]["learned"] > by["forms-2"]["learned"]


def test_the_ends_of_a_series_are_compared_over_draws(tables: Tables) -> None:
    found = tables["characteristics_ends"]
    assert found.columns == ENDS
    rows = {row["scope"]: row for row in found.where()}
    assert list(rows) == ["in_domain", "out_of_domain", "both"]
    last, first = BENCH["forms-8"][1][0], BENCH["forms-2"][1][1]
    for place, scope in enumerate(("in_domain", "out_of_domain")):
        own = [(int(a[place]) - int(b[place])) / 5 for a, b in zip(last, first, strict=True)]  # type: ignore[arg-type]
        error = float(np.std(own, ddof=1)) / 3**0.5
        expected = t_interval(float(np.mean(own)), error, 2)
        row = rows[scope]
        assert (row["first"], row["last"]) == (2.0, 8.0)
        assert [row[name] for name in ("difference", "low", "high", "p_holm")] == pytest.approx(expected)


def test_the_page_has_a_figure_and_a_sentence_for_the_series(tables: Tables) -> None:
    figures = build_figures(tables)
    page = compose(tables, figures)
    assert [name for name in figures if name.startswith("characteristic")] == ["characteristic_1"]
    caption = re.search(r'<figure id="characteristic_1">.*?<figcaption>(.*?)</figcaption>', page, re.DOTALL)
    assert caption is not None
    told = unescape(caption[1])
    assert told.startswith("<b>Accuracy by paraphrases: count</b> From count 2 to 8, in-domain accuracy rises: +")
    rows = {row["scope"]: row for row in tables["characteristics_ends"].where()}
    assert f"{signed(rows['in_domain']['difference'])} points" in told
    assert "no change of out-of-domain accuracy is shown: " in told
    assert ">forms-8<" in page.replace("<td>", ">").replace("</td>", "<")
    assert ">plain fine-tuning<" in figures["characteristic_1"]
    assert ">2<" in figures["characteristic_1"]
    assert ">8<" in figures["characteristic_1"]
    assert characteristic_figures(None) == characteristic_sentences(None) == {}


def series(strategies: object, there: list[str]) -> list[tuple[str, str, str, list[str]]]:
    found = series_of({"bench": {"strategies": strategies}}, there)
    return [(one.strategy, one.setting, one.others, list(one.labels.values())) for one in found]


def test_labels_are_a_series_where_one_number_alone_differs() -> None:
    told = {
        "kl": {"weight": 0.1},
        "strong": {"strategy": "kl", "weight": 1},
        "strong-again": {"strategy": "kl", "weight": 1.0},
        "top": {"strategy": "kl", "weight": 0.5, "top": 10},
        "lora": {"rank": 2, "alpha": 4.0},
        "lora-4": {"strategy": "lora", "rank": 4, "alpha": 4.0},
        "lora-8": {"strategy": "lora", "rank": 4, "alpha": 8.0},
        "sft": {"size": 2},
        "sft-4": {"strategy": "sft", "size": 4},
        "small": {"strategy": "lora", "rank": 8, "alpha": 4.0, "size": 2},
        "up": {"strategy": "frozen-layers", "upper": True},
        "down": {"strategy": "frozen-layers", "upper": False},
    }
    assert series(told, list(told)) == [
        ("kl", "weight", "", ["kl", "strong"]),
        ("lora", "rank", "alpha 4.0", ["lora", "lora-4"]),
        ("lora", "alpha", "rank 4", ["lora-4", "lora-8"]),
    ]
    assert series(told, ["kl", "lora"]) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), JSON | st.dictionaries(st.sampled_from("xyz"), JSON, max_size=3)) | JSON)
def test_a_damaged_config_has_no_series_or_ones_of_several_labels(told: object) -> None:
    assert all(len(labels) > 1 for *_, labels in series(told, list("abc")))


def test_rates_of_ones_own_are_no_setting() -> None:
    told = {"kl": {"weight": 0.1}, "kl-strong": {"strategy": "kl", "weight": 1.0, "rates": [0.1, 0.3]}}
    (found,) = series_of({"bench": {"strategies": told}}, list(told))
    assert (found.setting, found.others, found.labels) == ("weight", "", {0.1: "kl", 1.0: "kl-strong"})
