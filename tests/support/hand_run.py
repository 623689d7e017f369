"""A study small enough to work out by hand: a model answers whole test levels or none of them, so facts add no noise.

Every accuracy is a tenth (levels answered in-domain and out-of-domain, of five each), every mean KL a multiple of 1/8,
and every interval is Student's over draws. Levels have different numbers of facts, so that the mean over levels is not
the mean over facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from knowshift.files import digest, write_json
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT, write_table

LEVELS, SIZES, FRACTIONS = (0, 2, 4), (60, 240, 1920), (0.01, 0.2, 0.6)
RATE, SMALLER_RATE = 3e-4, 1e-4

#: Test facts of each level; relations alternate.
FACTS = {"in_domain": (4, 4, 4, 4, 6), "out_of_domain": (4, 4, 4, 4, 2)}
RELATIONS = {"in_domain": ("P17", "P19"), "out_of_domain": ("P26", "P40")}

NO_VARIANCE = 1e-24  # of values that are equal but for rounding

Right = int | frozenset[int]  # how many test levels are answered, the highest; or which
Draws = Sequence[tuple[Right, Right]]  # in-domain and out-of-domain, of each draw

#: The main grid: (training level, size) to the levels answered.
TUNED: dict[tuple[int, int], Draws] = {
    (0, 60): ((1, 1), (1, 1), (2, 1)),  # 0.2, 0.2, 0.3
    (0, 240): ((3, 2), (3, 2), (2, 2)),  # 0.5, 0.5, 0.4
    (0, 1920): ((1, 0), (1, 1), (0, 0)),  # 0.1, 0.2, 0.0
    (2, 60): ((3, 3), (3, 2), (3, 2)),  # 0.6, 0.5, 0.5
    (2, 240): ((5, 4), (5, 4), (4, 4)),  # 0.9, 0.9, 0.8
    (2, 1920): ((4, 2), (3, 2), (4, 3)),  # 0.6, 0.5, 0.7
    (4, 60): ((2, 1), (3, 3), (4, 4)),  # 0.3, 0.6, 0.8
    (4, 240): ((4, 3), (4, 3), (3, 3)),  # 0.7, 0.7, 0.6
    (4, 1920): ((2, 2), (3, 2), (2, 1)),  # 0.4, 0.5, 0.3
}
#: The largest size at the smaller rate, in two of the draws.
CONTROL: dict[int, Draws] = {
    0: ((2, 1), (2, 2)),  # 0.3, 0.4
    2: ((4, 3), (4, 4)),  # 0.7, 0.8
    4: ((4, 3), (3, 3)),  # 0.7, 0.6
}
#: The largest size restored: (criterion, training level, fraction).
RESTORED: dict[tuple[str, int, float], Draws] = {
    ("relative", 0, 0.01): ((1, 0), (1, 1), (0, 0)),  # 0.1, 0.2, 0.0
    ("relative", 0, 0.2): ((2, 1), (2, 2), (1, 2)),  # 0.3, 0.4, 0.3
    ("relative", 0, 0.6): ((0, 0), (0, 0), (0, 0)),  # 0.0, 0.0, 0.0
    ("relative", 2, 0.01): ((4, 2), (3, 3), (4, 3)),  # 0.6, 0.6, 0.7
    ("relative", 2, 0.2): ((5, frozenset({1, 2, 3})), (4, 3), (4, 4)),  # 0.8, 0.7, 0.8
    ("relative", 2, 0.6): ((1, 0), (0, 0), (1, 1)),  # 0.1, 0.0, 0.2
    ("relative", 4, 0.01): ((2, 2), (3, 2), (2, 2)),  # 0.4, 0.5, 0.4
    ("relative", 4, 0.2): ((3, 3), (3, 3), (3, 2)),  # 0.6, 0.6, 0.5
    ("relative", 4, 0.6): ((0, 0), (1, 0), (0, 0)),  # 0.0, 0.1, 0.0
    ("random", 0, 0.01): ((1, 0), (1, 1), (0, 0)),  # 0.1, 0.2, 0.0
    ("random", 0, 0.2): ((1, 1), (1, 1), (0, 1)),  # 0.2, 0.2, 0.1
    ("random", 0, 0.6): ((1, 0), (0, 0), (0, 0)),  # 0.1, 0.0, 0.0
    ("random", 2, 0.01): ((4, 2), (3, 2), (4, 3)),  # 0.6, 0.5, 0.7
    ("random", 2, 0.2): ((4, 3), (3, 3), (4, 3)),  # 0.7, 0.6, 0.7
    ("random", 2, 0.6): ((2, 2), (2, 1), (3, 2)),  # 0.4, 0.3, 0.5
    ("random", 4, 0.01): ((2, 1), (3, 2), (2, 1)),  # 0.3, 0.5, 0.3
    ("random", 4, 0.2): ((2, 2), (3, 2), (2, 2)),  # 0.4, 0.5, 0.4
    ("random", 4, 0.6): ((1, 1), (1, 0), (1, 0)),  # 0.2, 0.1, 0.1
}
#: The base model: the fine-tuning prompt, after solved examples, asked plainly.
BASE: dict[str, tuple[Right, Right]] = {"": (0, 1), "_few_shot": (2, 1), "_plain": (3, 0)}

#: KL in-domain, nats; out-of-domain it is 0.75 more. Of the common facts 4 are in-domain and 2 are not: + 0.25.
KL: dict[tuple[int, int], Sequence[float]] = {
    (0, 60): (1.0, 1.0, 1.125),
    (0, 240): (0.5, 0.5, 0.75),
    (0, 1920): (2.0, 2.5, 2.0),
    (2, 60): (0.5, 0.75, 0.625),
    (2, 240): (0.25, 0.25, 0.5),
    (2, 1920): (1.0, 1.25, 1.0),
    (4, 60): (0.75, 0.5, 0.75),
    (4, 240): (0.5, 0.625, 0.5),
    (4, 1920): (1.5, 2.0, 1.25),
}
#: Of the summed relative change in one draw, by top fraction: the run's share, its null's, by absolute change.
SHARES: dict[float, tuple[Sequence[float], Sequence[float], Sequence[float]]] = {
    0.01: ((0.70, 0.72, 0.74), (0.60, 0.61, 0.65), (0.05, 0.06, 0.07)),
    0.2: ((0.90, 0.92, 0.91), (0.91, 0.92, 0.93), (0.40, 0.42, 0.44)),
    0.6: ((0.97, 0.98, 0.99), (0.96, 0.97, 0.98), (0.85, 0.86, 0.87)),
}
#: Training facts: mastery level, how often the corpus states the fact, hits of 210 draws.
TRAIN: tuple[tuple[int, int | None, int], ...] = (
    (0, 0, 0),
    (1, 0, 21),
    (1, 1, 42),
    (1, 2, 63),
    (2, 3, 84),
    (2, 4, 105),
    (2, 5, 84),
    (2, 7, 126),
    (3, 8, 126),
    (3, 12, 147),
    (3, 13, 147),
    (3, 20, 168),
    (4, 21, 189),
    (4, 50, 210),
    (4, 51, 210),
    (4, 1000, 189),
    (0, None, 0),
)


@dataclass(frozen=True)
class Fact:
    """One test fact."""

    name: str
    relation: str
    domain: str
    level: int

    @property
    def columns(self) -> dict[str, Any]:
        return {
            "fact": self.name,
            "relation": self.relation,
            "split": "test",
            "domain": self.domain,
            "level": self.level,
        }


TEST = tuple(
    Fact(f"{domain}.{level}.{i}", RELATIONS[domain][i % 2], domain, level)
    for domain, counts in FACTS.items()
    for level, count in enumerate(counts)
    for i in range(count)
)


def answered(right: Right) -> frozenset[int]:
    return right if isinstance(right, frozenset) else frozenset(range(5 - right, 5))


def accuracy(pair: tuple[Right, Right]) -> float:
    """Both domains together, 0..1."""
    return (len(answered(pair[0])) + len(answered(pair[1]))) / 10


def word_lost(level: int, size: int) -> bool:
    """Whether the word-boundary grader refuses the lowest in-domain level that the other grader takes."""
    return size == 240 or level == 4


def over_draws(strata: Sequence[Sequence[float]], factor: float = 1.0) -> list[float]:
    """Value, low, high and p of the mean over strata of the mean over draws: Student's t after Satterthwaite."""
    count = len(strata)
    value = math.fsum(float(np.mean(draws)) for draws in strata) / count
    parts = [float(np.var(draws, ddof=1)) / len(draws) / count**2 for draws in strata]
    if sum(parts) < NO_VARIANCE:
        return t_interval(value, 0.0, math.inf)
    freedom = sum(parts) ** 2 / sum(p**2 / (len(d) - 1) for p, d in zip(parts, strata, strict=True))
    return t_interval(value, factor * math.sqrt(sum(parts)), freedom)


def pooled(own: Sequence[float], strata: Sequence[Sequence[float]], factor: float = 1.0) -> list[float]:
    """The same of one stratum, its variance that of the draws of all ``strata`` round their means."""
    freedom = sum(len(draws) - 1 for draws in strata)
    variance = sum(float(np.var(draws)) * len(draws) for draws in strata) / freedom
    return t_interval(float(np.mean(own)), factor * math.sqrt(variance / len(own)), freedom)


def t_interval(value: float, error: float, freedom: float) -> list[float]:
    """Value, low, high and p of a value with its standard error; where all draws agree, the value alone."""
    if error**2 < NO_VARIANCE:
        return [value, value, value, float(value == 0)]
    low, high = stats.t.interval(0.95, freedom, loc=value, scale=error)
    return [value, float(low), float(high), float(2 * stats.t.sf(abs(value) / error, freedom))]


def build_hand_run(path: Path, draws: int = 3) -> Path:
    """Write the run folder; returns its path. ``draws`` keeps the first draws alone."""
    cells: list[dict[str, Any]] = []

    def cell(kind: str, key: dict[str, Any]) -> Path:
        name = digest([kind, key])
        cells.append({"kind": kind, "digest": name, "key": key})
        return path / "cells" / kind / name

    for part, rows in enumerate((_mastery_rows()[::2], _mastery_rows()[1::2])):
        columns = {name: [row[name] for row in rows] for name in MASTERY.names}
        write_table(cell("mastery", {"part": part}) / "mastery.parquet", MASTERY, columns, {})
    folder = cell("base", {})
    for prompt, pair in BASE.items():
        write_answers(folder / f"answers{prompt}.parquet", pair, lost=False)
    grid = [((level, size), draw, None) for level, size in TUNED for draw in range(draws)]
    slow = [((level, SIZES[-1]), draw, "learning_rate") for level in LEVELS for draw in range(min(draws, 2))]
    for (level, size), draw, control in (*grid, *slow):
        rate = SMALLER_RATE if control else RATE
        key = {"level": level, "size": size, "draw": draw, "learning_rate": rate, "control": control}
        pair = CONTROL[level][draw] if control else TUNED[level, size][draw]
        write_json(cell("tuned", key) / "record.json", {"facts": [], "steps": key["size"] // 8, "train_loss": 1.0})
        write_answers(cell("evaluation", key) / "answers.parquet", pair, word_lost(level, size))
        _token_shift(cell("token_shift", key), 0.5 if control else KL[level, size][draw], (level, size) == (2, 60))
        _change(cell("weight_change", key), draw, bool(control))
        if size == SIZES[-1] and not control:
            folder = cell("restoration", key)
            for (criterion, its_level, fraction), pairs in RESTORED.items():
                if its_level == level:
                    file = folder / f"answers-{criterion}-{fraction:g}.parquet"
                    write_answers(file, pairs[draw], word_lost(level, size))
            put_back = {f"{f:g}": int(1000 * f) for f in FRACTIONS}
            write_json(folder / "restored.json", {"eligible": 1000, "criteria": {"relative": put_back}})
    manifest = {
        "knowshift": "0.1.0",
        "name": path.name,
        "config": {"levels": list(LEVELS), "training": {"learning_rate": RATE}},
        "packages": {"transformers": "5.23.0", "torch": "2.13.0"},
        "git_revision": "0123abc",
        "model": {"name": "a/model", "dtype": "float32"},
        "source": {"name": "world:tiny", "facts": 57},
        "cells": cells,
        "timings": {"mastery": 12.5, "tuned": 1200.25},
    }
    write_json(path / "manifest.json", manifest)
    return path


def _mastery_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for fact in TEST:
        rows.append({**fact.columns, "exposures": None, "hits": 0})
    for number, (level, exposures, hits) in enumerate(TRAIN):
        about = {"fact": f"train.{number}", "relation": "P17", "split": "train", "domain": "in_domain"}
        rows.append({**about, "level": level, "exposures": exposures, "hits": hits})
    for row in rows:
        row.update(draws=210, rate=row["hits"] / 210, prompt_hits=[row["hits"]], prompt_draws=[210])
    return rows


def write_answers(file: Path, pair: tuple[Right, Right], lost: bool) -> None:
    """One model's answers; what it does not know of test level 0 it leaves empty."""
    right = dict(zip(FACTS, (answered(pair[0]), answered(pair[1])), strict=True))
    hits = [fact.level in right[fact.domain] for fact in TEST]
    lowest = min(right["in_domain"], default=-1) if lost else -1
    words = [hit and (fact.domain, fact.level) != ("in_domain", lowest) for hit, fact in zip(hits, TEST, strict=True)]
    columns: dict[str, list[Any]] = {name: [fact.columns[name] for fact in TEST] for name in TEST[0].columns}
    columns["question"] = [f"Who is {fact.name}?" for fact in TEST]
    columns["answer"] = [f"gold {fact.name}" for fact in TEST]
    columns["text"] = [
        (" right" if hit else " " if fact.level == 0 else " wrong") for hit, fact in zip(hits, TEST, strict=True)
    ]
    columns["substring_hit"], columns["word_hit"], columns["reason"] = hits, words, [None] * len(TEST)
    write_table(file, ANSWERS, columns, {})


def _token_shift(folder: Path, kl: float, one_less: bool) -> None:
    """Eight facts; the first cannot be scored in any cell, the second not in those with ``one_less``."""
    facts = [fact for fact in TEST if fact.level == 4]
    values = [kl + 0.75 * (fact.domain == "out_of_domain") for fact in facts]
    reasons = ["no such token", "no such text" if one_less else None, *[None] * (len(facts) - 2)]
    columns: dict[str, list[Any]] = {
        name: [fact.columns[name] for fact in facts] for name in ("fact", "relation", "split", "domain")
    }
    columns["prompt"] = ["A prompt"] * len(facts)
    columns["kl"] = [None if why else value for value, why in zip(values, reasons, strict=True)]
    columns["ids"] = columns["tuned_logits"] = columns["base_logits"] = [None] * len(facts)
    columns["reason"] = reasons
    write_table(folder / "token_shift.parquet", TOKEN_SHIFT, columns, {})


def _change(folder: Path, draw: int, control: bool) -> None:
    def by_fraction(which: int) -> Mapping[str, float]:
        return {f"{f:g}": 0.5 if control else shares[which][draw] for f, shares in SHARES.items()}

    record = {
        "concentration": {"relative": by_fraction(0), "absolute": by_fraction(2), "squared": by_fraction(2)},
        "null": {"relative": by_fraction(1), "absolute": by_fraction(2), "squared": by_fraction(2)},
        "layers": {"0": 0.25 + draw / 100, "1": 0.75 - draw / 100},
        "modules": {"mlp.up": 0.6, "attn.q": 0.4},
        "null_layers": {"0": 0.25 + draw / 200, "1": 0.75 - draw / 200},
        "null_modules": {"mlp.up": 0.5, "attn.q": 0.5},
        "layer_weights": {"0": 0.5, "1": 0.5},
        "module_weights": {"mlp.up": 0.75, "attn.q": 0.25},
    }
    write_json(folder / "change.json", record)
