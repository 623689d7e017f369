"""A small run folder with planted effects, written through the real record writers: what the report's tests read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.files import digest, write_json
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT, write_table

FRACTIONS = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)
RELATIONS = {"in_domain": ("P17", "P19", "P20", "P36"), "out_of_domain": ("P26", "P40", "P50")}
RATE = 3e-4


@dataclass(frozen=True)
class Planted:
    """The truth of a made-up study: how accuracy and KL depend on what was done. Accuracy is 0..1, KL in nats."""

    base_level_accuracy: tuple[float, ...] = (0.02, 0.25, 0.5, 0.7, 0.9)
    by_size: tuple[float, ...] = (0.75, 1.0, 0.9, 0.7)  # factor on accuracy at each size
    by_level: tuple[float, ...] = (0.4, 0.8, 1.0, 0.95, 0.9)  # factor at each training level
    kl: tuple[float, ...] = (0.9, 0.4, 0.8, 1.6)  # mean at each size
    restored: tuple[float, ...] = (1.0, 1.02, 1.04, 1.08, 1.2, 1.1, 0.05)  # factor at each fraction
    random: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9)
    control: float = 1.3  # factor of the smaller learning rate
    excess_concentration: float = 0.0  # relative minus null
    draw_noise: float = 0.02


@dataclass(frozen=True)
class Shape:
    """The size of a made-up study."""

    facts_per_level: int = 60  # in each domain
    sizes: tuple[int, ...] = (60, 240, 960, 1920)
    levels: tuple[int, ...] = (0, 1, 2, 3, 4)
    draws: int = 2
    tested: tuple[int, ...] = (0, 1, 2, 3, 4)  # levels of the test facts


def build_run(path: Path, planted: Planted | None = None, shape: Shape | None = None, seed: int = 0) -> Path:
    """Write runs/NAME with every kind of cell; returns its path."""
    planted, shape = planted or Planted(), shape or Shape()
    rng = np.random.default_rng(seed)
    facts: list[dict[str, Any]] = []
    for domain, relations in RELATIONS.items():
        for level in shape.tested:
            for i in range(shape.facts_per_level):
                relation = relations[i % len(relations)]
                name = f"{relation}.test.{domain}.{level}.{i}"
                facts.append({"fact": name, "relation": relation, "split": "test", "domain": domain, "level": level})
    count = len(facts)
    luck = rng.random(count)  # a fact that is easy for one model is easy for the next
    level = np.asarray([f["level"] for f in facts])
    cells: list[dict[str, Any]] = []

    def cell(kind: str, key: dict[str, Any]) -> Path:
        name = digest([kind, key])
        cells.append({"kind": kind, "digest": name, "key": key})
        return path / "cells" / kind / name

    def answers(file: Path, factor: float) -> None:
        chance = np.clip(np.asarray(planted.base_level_accuracy)[level] * factor, 0, 1)
        luck_here = np.where(rng.random(count) < 0.7, luck, rng.random(count))
        hit = luck_here < chance
        word = hit & (rng.random(count) < 0.95)
        text = [f" answer <b>{i}</b> & more" if h or i % 7 else "" for i, h in enumerate(hit)]
        rows = {k: [f[k] for f in facts] for k in ("fact", "relation", "split", "domain", "level")}
        graded = {"text": text, "substring_hit": hit.tolist(), "word_hit": word.tolist(), "reason": [None] * count}
        asked = {"question": [f"Who is {i}?" for i in range(count)], "answer": [f"<b>{i}</b>" for i in range(count)]}
        write_table(file, ANSWERS, {**rows, **asked, **graded}, {"seed": seed})

    _mastery(cell, facts, rng)
    folder = cell("base", {})
    answers(folder / "answers.parquet", 0.04)
    answers(folder / "answers_few_shot.parquet", 0.9)
    answers(folder / "answers_plain.parquet", 0.97)
    for train_level in shape.levels:
        for position, size in enumerate(shape.sizes):
            for draw in range(shape.draws):
                wobble = 1 + planted.draw_noise * rng.standard_normal()
                grown = planted.by_size[position] * planted.by_level[train_level] * wobble
                for control in (None, "learning_rate") if size == shape.sizes[-1] else (None,):
                    rate = RATE / 3 if control else RATE
                    key = {"level": train_level, "size": size, "draw": draw, "learning_rate": rate, "control": control}
                    write_json(
                        cell("tuned", key) / "record.json",
                        {"facts": [], "steps": size // 8, "train_loss": 1.0},
                    )
                    factor = grown * (planted.control if control else 1)
                    answers(cell("evaluation", key) / "answers.parquet", factor)
                    if control:
                        continue
                    _token_shift(
                        cell("token_shift", key), facts, planted.kl[position] / planted.by_level[train_level], rng
                    )
                    _change(cell("weight_change", key), planted.excess_concentration, rng)
                    if size == shape.sizes[-1]:
                        folder = cell("restoration", key)
                        for criterion, factors in (("relative", planted.restored), ("random", planted.random)):
                            for fraction, restored in zip(FRACTIONS, factors, strict=True):
                                answers(folder / f"answers-{criterion}-{fraction:g}.parquet", factor * restored)
                        put_back = {f"{f:g}": int(1000 * f) for f in FRACTIONS}
                        write_json(
                            folder / "restored.json",
                            {"eligible": 1000, "criteria": {"relative": put_back, "random": put_back}},
                        )
    write_json(path / "manifest.json", _manifest(path.name, shape, cells))
    return path


def _manifest(name: str, shape: Shape, cells: list[dict[str, Any]]) -> dict[str, Any]:
    config = {
        "levels": list(shape.levels),
        "sizes": list(shape.sizes),
        "draws": shape.draws,
        "fractions": list(FRACTIONS),
        "training": {"learning_rate": RATE},
    }
    return {
        "knowshift": "0.1.0",
        "name": name,
        "config": config,
        "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        "git_revision": None,
        "model": {"name": "world:<tiny>", "identity": "abc", "dtype": "float32"},
        "cells": cells,
        "timings": {"mastery": 12.5, "tuned": 200.0},
    }


def _mastery(
    cell: Callable[[str, dict[str, Any]], Path], facts: list[dict[str, Any]], rng: np.random.Generator
) -> None:
    """Test facts as they are and as many training facts, in two parts; exposures rise with the level."""
    both = facts + [
        {**f, "fact": f["fact"].replace("test", "train"), "split": "train"} for f in facts if f["domain"] == "in_domain"
    ]
    for part, rows in enumerate((both[::2], both[1::2])):
        hits = [int(np.clip(52 * f["level"] - 25, 0, 210)) if f["level"] else 0 for f in rows]
        columns: dict[str, list[Any]] = {
            k: [f[k] for f in rows] for k in ("fact", "relation", "split", "domain", "level")
        }
        columns["exposures"] = [int(rng.integers(0, 2) + (0, 1, 4, 9, 40)[f["level"]]) for f in rows]
        columns["hits"], columns["draws"] = list(hits), [210] * len(rows)
        columns["rate"] = [h / 210 for h in hits]
        columns["prompt_hits"] = [[h // 21] * 21 for h in hits]
        columns["prompt_draws"] = [[10] * 21 for _ in hits]
        write_table(cell("mastery", {"part": part}) / "mastery.parquet", MASTERY, columns, {"part": part})


def _token_shift(folder: Path, facts: list[dict[str, Any]], mean: float, rng: np.random.Generator) -> None:
    rows = [f for f in facts if f["level"] == 4]
    scorable = [i % 5 != 0 for i in range(len(rows))]
    kl = mean * rng.gamma(4.0, 0.25, len(rows))
    columns: dict[str, list[Any]] = {k: [f[k] for f in rows] for k in ("fact", "relation", "split", "domain")}
    columns["prompt"] = ["A prompt"] * len(rows)
    columns["kl"] = [float(v) if ok else None for v, ok in zip(kl, scorable, strict=True)]
    columns["ids"] = [list(range(10)) if ok else None for ok in scorable]
    columns["tuned_logits"] = [[0.0] * 10 if ok else None for ok in scorable]
    columns["base_logits"] = [[0.0] * 10 if ok else None for ok in scorable]
    columns["reason"] = [None if ok else "the base does not complete with the answer" for ok in scorable]
    write_table(folder / "token_shift.parquet", TOKEN_SHIFT, columns, {})


def _change(folder: Path, excess: float, rng: np.random.Generator) -> None:
    null = dict(zip((f"{f:g}" for f in FRACTIONS), (0.7, 0.78, 0.82, 0.87, 0.915, 0.962, 0.985), strict=True))
    noise = 0.001 * rng.standard_normal()
    relative = {name: min(1.0, share + (excess + noise) * (1 - share) * 3) for name, share in null.items()}
    absolute = dict(zip(null, (0.05, 0.11, 0.16, 0.26, 0.42, 0.67, 0.85), strict=True))
    squared = dict(zip(null, (0.12, 0.25, 0.34, 0.5, 0.71, 0.92, 0.98), strict=True))
    record = {
        "eligible": 1000,
        "changed_share": 1.0,
        "concentration": {"relative": relative, "absolute": absolute, "squared": squared},
        "null": {"relative": null, "absolute": absolute, "squared": squared},
        "layers": {"0": 0.3, "1": 0.7},
        "modules": {"mlp.up": 0.6, "attn.q": 0.4},
        "null_layers": {"0": 0.3 + noise, "1": 0.7 - noise},
        "null_modules": {"mlp.up": 0.55 + noise, "attn.q": 0.45 - noise},
        "layer_weights": {"0": 0.5, "1": 0.5},
        "module_weights": {"mlp.up": 0.75, "attn.q": 0.25},
    }
    write_json(folder / "change.json", record)
