"""Where the most changed weights sit, by layer and module: beside the no-signal null, chance and the paper's model."""

from __future__ import annotations

from typing import Any

from knowshift.html.grid import Entry, Grid, number
from knowshift.html.table import Table, is_missing
from knowshift.html.words import in_percent, percent, signed

#: The paper's model that all of its tables are about: its numbers stand beside a run's, where a table has none of the
#: run's own model.
PAPER_MODEL = "LLaMA-3-8B"
#: Holm's p below which a share is said to depart from the null's.
SIGNIFICANT = 0.05


def model_beside(table: Table, own: str | None) -> str:
    """The paper's model beside a run whose model is ``own`` in the paper: that one, where the table has its numbers."""
    return own if own and table.where(source=own) else PAPER_MODEL


def places_grid(table: Table, own: str | None = None) -> Grid:
    """Layers or modules down: the run's largest size beside its null, the share of weights, and the paper's model.

    Where one model has layers that the other lacks, the other's share is missing. The paper's "mlp." and "attn." do
    not count where modules are matched. ``own`` as in :func:`model_beside`.
    """
    one, found, model = _one(table), _largest(table), model_beside(table, own)
    paper = {_last(row[one]): row["share"] for row in table.where(source=model)}
    rows = []
    for row in found:
        apart = number(row["difference"], signed, row["difference_low"], row["difference_high"])
        shown = [number(row[key], in_percent) for key in ("share", "null_share")]
        beside = [number(value, in_percent) for value in (row["share_of_weights"], paper.pop(_last(row[one]), None))]
        rows.append([Entry(row[one]), *shown, apart, *beside])
    for name, share in paper.items() if rows else ():
        rows.append([Entry(name), *(number(value, in_percent) for value in (*[None] * 4, share))])
    size = found[0]["size"] if found else 0
    head = [one, f"this run, {size:,} samples", "null", "minus null, points", "share of weights", model]
    return Grid("", head, rows, "dense")


def departure(table: Table) -> str:
    """Whether the top-ranked weights of the run's largest size sit elsewhere than the null's, in words."""
    one, found = _one(table), _largest(table)
    told = [row for row in found if not is_missing(row["difference"])]
    if not told:
        return (
            f"This run's cells of weight change are of before the null was told by {one}: knowshift study with the "
            "same configuration makes them again, and trains again each model whose checkpoint was not kept."
            if found
            else ""
        )
    elsewhere = sum(abs(row["difference"]) for row in told) / 2
    start = f"Of the top-ranked weights {percent(elsewhere)} sit in other {one}s than the null's"
    most = max(told, key=lambda row: abs(row["difference"]))
    largest = f"{one} {most[one]}, {signed(most['difference'], digits=2)} points"
    if is_missing(most["p_holm"]):
        return f"{start}; the largest difference is {largest}. With one draw there is no interval."
    ends = (most["difference_low"], most["difference_high"])
    largest += f" [{' to '.join(signed(end, digits=2) for end in ends)}]"
    apart = [row for row in told if row["p_holm"] < SIGNIFICANT]
    if apart:
        ones = one if len(told) == 1 else f"{one}s"
        return (
            f"{start}: the share departs from the null's in {len(apart)} of {len(told)} {ones} (Holm's p below "
            f"{SIGNIFICANT:g}), the largest difference being {largest}."
        )
    reach = max(abs(end) for row in told for end in (row["difference_low"], row["difference_high"]))
    return (
        f"{start}, which chance explains: in no {one} does the share depart from the null's (Holm's p {SIGNIFICANT:g} "
        f"or more; largest difference: {largest}). Differences of more than {100 * reach:.2f} points are excluded."
    )


def _one(table: Table) -> str:
    return table.columns[table.columns.index("control") + 1]


def _largest(table: Table) -> list[dict[str, Any]]:
    """The rows of the grid's largest size, mean of training levels."""
    runs = table.where(source="run", level="mean")
    size = max((row["size"] for row in runs), default=0)
    return [row for row in runs if row["size"] == size]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
