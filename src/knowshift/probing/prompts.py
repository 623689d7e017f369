"""Which completion prompts reach what a model knows, and which do not: a table and a figure by relation."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from knowshift.errors import border
from knowshift.facts.relations import RELATIONS
from knowshift.files import file_beside

Counts = NDArray[np.float32]  # expected hits are no whole numbers


def prompt_rates(batches: Iterable[pa.RecordBatch]) -> list[dict[str, Any]]:
    """How well each prompt of each relation reaches the facts: one row a (relation, prompt number).

    ``rate`` is the mean hit rate over facts, ``facts`` how many were asked, ``correlation`` that of the prompt's rate
    with the mean over the fact's other prompts (None where either does not vary): a prompt that does not go with the
    others measures something else. Of each record only its counts are held, eight bytes a prompt.
    """
    rows: list[dict[str, Any]] = []
    for relation, counts in sorted(_by_relation(batches).items()):
        hits, draws = (_stacked(blocks).astype(float) for blocks in zip(*counts, strict=True))
        others = draws.sum(axis=1)[:, None] - draws
        for prompt in range(hits.shape[1]):
            asked = draws[:, prompt] > 0
            both = asked & (others[:, prompt] > 0)
            own = hits[both, prompt] / draws[both, prompt]
            rest = (hits[both].sum(axis=1) - hits[both, prompt]) / others[both, prompt]
            varies = len(own) > 2 and own.std() > 0 and rest.std() > 0
            rows.append(
                {
                    "relation": relation,
                    "prompt": prompt,
                    "facts": int(asked.sum()),
                    "rate": float((hits[asked, prompt] / draws[asked, prompt]).mean()) if asked.any() else None,
                    "correlation": float(np.corrcoef(own, rest)[0, 1]) if varies else None,
                }
            )
    return rows


def _by_relation(batches: Iterable[pa.RecordBatch]) -> dict[str, list[tuple[Counts, Counts]]]:
    """Hits and draws [facts, prompts] of every relation, in blocks; no draws where a fact has fewer prompts."""
    found: dict[str, list[tuple[Counts, Counts]]] = {}
    for batch in batches:
        groups: dict[str, list[tuple[list[int], list[int]]]] = {}
        for row in batch.select(["relation", "prompt_hits", "prompt_draws"]).to_pylist():
            if row["prompt_hits"]:
                groups.setdefault(row["relation"], []).append((row["prompt_hits"], row["prompt_draws"]))
        for relation, pairs in groups.items():
            blocks = [np.zeros((len(pairs), max(len(hits) for hits, _ in pairs)), dtype=np.float32) for _ in range(2)]
            for which, block in enumerate(blocks):
                for line, pair in zip(block, pairs, strict=True):
                    line[: len(pair[which])] = pair[which]
            found.setdefault(relation, []).append((blocks[0], blocks[1]))
    return found


def _stacked(blocks: Sequence[Counts]) -> Counts:
    width = max(block.shape[1] for block in blocks)
    return np.concatenate([np.pad(block, ((0, 0), (0, width - block.shape[1]))) for block in blocks])


def write_prompts(record: Path, folder: Path) -> tuple[Path, Path]:
    """Write ``prompts.csv`` and ``prompts.svg`` for a mastery record into ``folder``; returns both paths."""
    with border(f"{record}: not a mastery record"):
        rows = prompt_rates(
            pq.ParquetFile(record).iter_batches(1 << 14, columns=["relation", "prompt_hits", "prompt_draws"])
        )
    table, figure = folder / "prompts.csv", folder / "prompts.svg"
    with file_beside(table) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["relation", "prompt", "facts", "rate", "correlation", "template"])
        writer.writeheader()
        writer.writerows({**row, "template": _template(row["relation"], row["prompt"])} for row in rows)
    _plot(rows, figure)
    return table, figure


def _template(relation: str, prompt: int) -> str:
    known = RELATIONS.get(relation)
    return known.completions[prompt] if known and prompt < len(known.completions) else ""


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A grid: one line a relation, one cell a prompt from best to worst, its hit rate as shade, its number as text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_relation: dict[str, list[tuple[float, int]]] = {}
    facts: dict[str, int] = {}
    for row in rows:
        if row["rate"] is not None:
            by_relation.setdefault(row["relation"], []).append((row["rate"], row["prompt"]))
            facts[row["relation"]] = max(facts.get(row["relation"], 0), row["facts"])
    names = sorted(by_relation, key=lambda name: (len(name), name))
    width = max((len(cells) for cells in by_relation.values()), default=1)
    grid = np.full((max(len(names), 1), width), np.nan)
    for line, name in enumerate(names):
        grid[line, : len(by_relation[name])] = [rate for rate, _ in sorted(by_relation[name], key=_best_first)]
    # To the tenth above the best prompt, so that shades tell prompts apart where all rates are low.
    top = max(0.1, float(np.ceil(10 * np.nanmax(grid)) / 10)) if names else 1.0
    with pyplot.rc_context({"svg.hashsalt": "knowshift", "font.size": 7}):
        plot, axes = pyplot.subplots(figsize=(0.3 * width + 3.4, 0.22 * len(names) + 1.0))
        image = axes.imshow(grid, vmin=0, vmax=top, cmap="Blues", aspect="auto")
        for line, name in enumerate(names):
            for cell, (rate, prompt) in enumerate(sorted(by_relation[name], key=_best_first)):
                ink = "white" if rate > 0.6 * top else "#333333"
                axes.text(cell, line, str(prompt), ha="center", va="center", color=ink)
        labels = [f"{_title(name)} ({facts[name]:,})" for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set_xticks([])
        axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
        axes.grid(axis="y", which="minor", color="white", lw=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("prompts of the relation (facts asked), best first; numbers as in prompts.csv")
        scale = plot.colorbar(image, ax=axes, label="mean hit rate", fraction=0.03, pad=0.02)
        scale.outline.set_visible(False)
        with file_beside(path) as beside:
            plot.savefig(beside, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(plot)


def _best_first(cell: tuple[float, int]) -> tuple[float, int]:
    rate, prompt = cell
    return -rate, prompt


def _title(relation: str) -> str:
    if relation not in RELATIONS:
        return relation
    name = RELATIONS[relation].name
    return f"{relation} {name if len(name) <= 32 else name[:31] + '…'}"
