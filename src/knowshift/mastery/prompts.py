"""Which completion prompts reach what a model knows, and which do not: a table and a figure by relation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from knowshift.facts.relations import RELATIONS

Floats = NDArray[np.float64]


def prompt_rates(table: pa.Table) -> list[dict[str, Any]]:
    """How well each prompt of each relation reaches the facts: one row a (relation, prompt number).

    ``rate`` is the mean hit rate over facts, ``facts`` how many were asked, ``correlation`` that of the prompt's rate
    with the mean over the fact's other prompts (None where either does not vary): a prompt that does not go with the
    others measures something else.
    """
    groups: dict[str, list[tuple[Floats, Floats]]] = {}
    for row in table.select(["relation", "prompt_hits", "prompt_draws"]).to_pylist():
        if row["prompt_hits"]:
            pair = (np.array(row["prompt_hits"], dtype=float), np.array(row["prompt_draws"], dtype=float))
            groups.setdefault(row["relation"], []).append(pair)
    rows: list[dict[str, Any]] = []
    for relation in sorted(groups):
        for prompt in range(max(len(hits) for hits, _ in groups[relation])):
            own, others = [], []
            for hits, draws in groups[relation]:
                if prompt >= len(hits) or draws[prompt] == 0:
                    continue
                rest = draws.sum() - draws[prompt]
                own.append(hits[prompt] / draws[prompt])
                others.append((hits.sum() - hits[prompt]) / rest if rest else np.nan)
            x, y = np.array(own), np.array(others)
            varies = len(x) > 2 and np.isfinite(y).all() and x.std() > 0 and y.std() > 0
            rows.append(
                {
                    "relation": relation,
                    "prompt": prompt,
                    "facts": len(own),
                    "rate": float(x.mean()) if len(own) else None,
                    "correlation": float(np.corrcoef(x, y)[0, 1]) if varies else None,
                }
            )
    return rows


def write_prompts(record: Path, folder: Path) -> tuple[Path, Path]:
    """Write ``prompts.csv`` and ``prompts.svg`` for a mastery record into ``folder``; returns both paths."""
    rows = prompt_rates(pq.read_table(record, columns=["relation", "prompt_hits", "prompt_draws"]))
    folder.mkdir(parents=True, exist_ok=True)
    table, figure = folder / "prompts.csv", folder / "prompts.svg"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["relation", "prompt", "facts", "rate", "correlation", "template"])
        writer.writeheader()
        writer.writerows({**row, "template": _template(row["relation"], row["prompt"])} for row in rows)
    _draw(rows, figure)
    return table, figure


def _template(relation: str, prompt: int) -> str:
    known = RELATIONS.get(relation)
    return known.completions[prompt] if known and prompt < len(known.completions) else ""


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A grid: one line a relation, one cell a prompt from best to worst, its hit rate as shade and number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_relation: dict[str, list[tuple[float, int]]] = {}
    for row in rows:
        if row["rate"] is not None:
            by_relation.setdefault(row["relation"], []).append((row["rate"], row["prompt"]))
    names = sorted(by_relation, key=lambda name: (len(name), name))
    width = max((len(cells) for cells in by_relation.values()), default=1)
    grid = np.full((max(len(names), 1), width), np.nan)
    with pyplot.rc_context({"svg.hashsalt": "knowshift", "font.size": 7}):
        drawing, axes = pyplot.subplots(figsize=(0.42 * width + 2.4, 0.3 * len(names) + 1.2))
        for line, name in enumerate(names):
            for cell, (rate, prompt) in enumerate(sorted(by_relation[name], reverse=True)):
                grid[line, cell] = rate
                shade = "white" if rate < 0.5 else "black"
                axes.text(cell, line, str(prompt), ha="center", va="center", color=shade)
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        labels = [f"{name} {RELATIONS[name].name}" if name in RELATIONS else name for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set_xticks([])
        axes.set_xlabel("prompts of the relation, best first (numbers as in prompts.csv)")
        drawing.colorbar(image, ax=axes, label="mean hit rate", fraction=0.03, pad=0.02)
        drawing.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(drawing)
