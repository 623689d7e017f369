"""The page's section on the paper's tables: each in its form, this run beside the published numbers.

The numbers beside are those of the run's own model, where it is one of the paper's and the table has them, else those
of :data:`PAPER_MODEL`; one model in each table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.html.grid import Entry, Grid, number
from knowshift.html.table import Table, is_missing
from knowshift.html.words import DOMAIN_WORDS, exact_percent, in_percent
from knowshift.reports.evidence.restored import RANDOM
from knowshift.reports.evidence.run_folder import ALL
from knowshift.reports.page.places import PAPER_MODEL, departure, model_beside, places_grid
from knowshift.reports.tables.other import AS_TUNED
from knowshift.reports.tables.paper import BY_LEVEL, FRACTIONS, RELATIVE

_WORDS = {
    "run": "this run",
    "null": "null",
    "train_in_domain": "training",
    "test_in_domain": "test, in-domain",
    "test_out_of_domain": "test, out-of-domain",
    AS_TUNED: "as tuned",
    RELATIVE: "most changed",
    "random": "at random",
    "base": "the base model",
    **DOMAIN_WORDS,
}
_BY_LEVEL = {name: f"level {level}" for level, name in enumerate(BY_LEVEL)}


@dataclass(frozen=True)
class Section:
    """One table of the paper: its title, what its numbers are, and the table; ``name`` is that of its CSV."""

    name: str
    title: str
    note: str
    grid: Grid


def introduction(own: str | None) -> str:
    """Whose published numbers stand beside the run's; ``own`` is the paper's model that the run's is, if any."""
    if own is None:
        return (
            "Each with its rows and columns: this run, and beside it what Ye et al. (2025) print of LLaMA models, "
            "which are larger, know other facts and were tuned at another learning rate."
        )
    others = "" if own == PAPER_MODEL else f", and of {PAPER_MODEL} where they print nothing of it"
    return (
        f"Each with its rows and columns: this run, whose model is {own}, and beside it what Ye et al. (2025) print of "
        f"that model{others}."
    )


def sections(tables: Mapping[str, Table], own: str | None = None) -> list[Section]:
    """Every table of the paper that this run has rows of, in the order of the paper's numbers.

    ``own`` is the paper's model that the run's is, if any.
    """

    def beside(name: str) -> str:
        model = model_beside(tables[name], own)
        return f"small: {model}{f', as the paper has none of {own} here' if own not in (None, model) else ''}."

    whole = (
        "Size all: every training fact of the level, whose number is small behind it; the paper draws it and prints "
        "no numbers."
        if tables["paper_accuracy"].where(size=ALL)
        else ""
    )
    chance = (
        "Share, in %, of the top 20% by relative change, mean of training levels. The null pairs each tensor's own "
        "weights and changes at random; small: 95% intervals over draws."
    )
    known = [
        Section(
            "paper_mastery",
            "Tables 1 and 8: how many facts are known how well",
            "Facts by the base model's mastery level; small: their share. This run's are those that were probed.",
            mastery_grid(tables["paper_mastery"], own),
        ),
        Section(
            "paper_accuracy",
            "Table 2, Figures 2 and 6: accuracy by training level, size and test level",
            f"In %, mean over training draws; {beside('paper_accuracy')} The paper prints test levels at 1,920 samples "
            f"alone. {whole}".rstrip(),
            beside_grid(
                tables["paper_accuracy"],
                {
                    "size": "samples",
                    "domain": "test facts",
                    "level": "trained on",
                    **{f"test_{level}": f"test {level}" for level in range(LEVELS)},
                    "mean": "mean",
                },
                own,
            ),
        ),
        Section(
            "paper_concentration",
            "Table 3: how far the change is concentrated",
            "Share, in %, of the summed relative change in the most changed weights; "
            f"{beside('paper_concentration')} The null pairs each tensor's own weights and changes at random.",
            beside_grid(
                tables["paper_concentration"],
                {
                    "size": "samples",
                    "level": "level",
                    "source": "",
                    **{f"top_{round(100 * float(name))}": f"top {exact_percent(float(name))}" for name in FRACTIONS},
                },
                own,
            ),
        ),
        Section(
            "paper_restoration",
            "Table 4: accuracy after restoring, on test facts",
            "In %, by mastery level of the training facts, mean of test levels and of draws; "
            f"{beside('paper_restoration')}",
            beside_grid(
                tables["paper_restoration"],
                {
                    "size": "samples",
                    "domain": "test facts",
                    "criterion": "restored",
                    "fraction": "of weights",
                    **_BY_LEVEL,
                },
                own,
            ),
        ),
        Section(
            "paper_other_tasks",
            "Table 5: other tasks after restoring",
            "Mean of training levels and of draws, in %, but for losses, which are in nats a token; "
            f"{beside('paper_other_tasks')} The paper does not say what its model was tuned on, nor how it was asked.",
            other_tasks_grid(tables["paper_other_tasks"], own),
        ),
        Section(
            "paper_train_set",
            "Table 6: accuracy after restoring, on the training facts",
            "In %, by mastery level of the training facts, mean of draws; random weights are a control; "
            f"{beside('paper_train_set')}",
            beside_grid(
                tables["paper_train_set"],
                {"size": "samples", "criterion": "restored", "fraction": "of weights", **_BY_LEVEL},
                own,
            ),
        ),
        Section(
            "paper_strategies",
            "Table 7: strategies",
            "Accuracy in %, of each strategy's best model, chosen on the facts it is measured on, as in the paper: too "
            "high by luck; an instruct model's is the form of the question that it answers best. Mixed data are "
            "variants of a study's config.",
            strategies_grid(tables["paper_strategies"]),
        ),
        Section(
            "layers",
            "Table 9: where the most changed weights sit, by layer",
            f"{departure(tables['layers'])} {chance}",
            places_grid(tables["layers"], own),
        ),
        Section(
            "modules",
            "Table 10: where the most changed weights sit, by module",
            f"{departure(tables['modules'])} {chance}",
            places_grid(tables["modules"], own),
        ),
        Section(
            "paper_layer_groups",
            "Table 11: accuracy with whole groups of layers restored",
            "In %, on in-domain test facts, by mastery level of the training facts, mean of test levels and draws. "
            "As a control, as many weights at random as the largest group of layers has.",
            layer_groups_grid(tables["paper_layer_groups"]),
        ),
    ]
    return [section for section in known if section.grid.rows]


def mastery_grid(table: Table, own: str | None = None) -> Grid:
    """Splits and models down, levels across: facts, and small their share. The run's own model follows the run."""
    rows, found = [], table.where()
    splits = list(dict.fromkeys(row["split"] for row in found))
    for row in sorted(found, key=lambda row: (splits.index(row["split"]), row["source"] not in ("run", own))):
        shown = [number(row["facts"], "{:,}".format)]
        for level in range(LEVELS):
            share = row[f"share_{level}"]
            note = "" if is_missing(share) else f"{100 * share:.0f}%"
            shown.append(number(row[f"level_{level}"], "{:,}".format, note=note))
        rows.append([Entry(_WORDS[row["split"]]), Entry(_WORDS.get(row["source"], row["source"])), *shown])
    return Grid("", ["facts of", "model", "all", *_BY_LEVEL.values()], rows, "dense")


def beside_grid(table: Table, heads: Mapping[str, str], own: str | None = None) -> Grid:
    """The run's rows of a table in the paper's form, the number of the paper's model of the same place behind each.

    ``heads`` are the words over the columns that are shown, ``own`` as in :func:`model_beside`. Other models of the
    paper, and places that the run has not, stand in the CSV alone.
    """
    places = table.columns[: table.columns.index("source")]
    paper = {tuple(row[name] for name in places): row for row in table.where(source=model_beside(table, own))}
    rows = []
    for row in table.where():
        if row["source"] in ("run", "null"):
            beside = paper.get(tuple(row[name] for name in places), {}) if row["source"] == "run" else {}
            entries = [_entry(name, row[name], beside.get(name), name in table.percent) for name in heads]
            if row.get("size") == ALL:
                entries[list(heads).index("size")] = Entry(ALL, f"{row['samples']:,}")
            rows.append(entries)
    return Grid("", list(heads.values()), rows, "dense")


def strategies_grid(table: Table) -> Grid:
    """Strategies of the run and of the paper's model; what the run has not, is the paper's alone."""
    found = table.where()
    rows = []
    for row in found if any(row["source"] == "run" for row in found) else ():
        about = [row["strategy"], _WORDS.get(row["source"], row["source"]), row["chosen"]]
        rows.append([*map(Entry, about), *(number(row[domain], in_percent) for domain in DOMAINS)])
    return Grid("", ["strategy", "model", "the best", *(DOMAIN_WORDS[domain] for domain in DOMAINS)], rows, "dense")


def other_tasks_grid(table: Table, own: str | None = None) -> Grid:
    """The base model, then models as tuned and restored down, the tasks that the run asked across."""
    runs = table.where(source="run")
    paper = {(row["criterion"], row["fraction"]): row for row in table.where(source=model_beside(table, own))}
    names = [name for name in table.columns[4:] if any(not is_missing(row[name]) for row in runs)]
    rows = []
    for row in runs:
        beside = paper.get((row["criterion"], row["fraction"]), {})
        about = ["" if row["size"] is None else f"{row['size']:,}", _WORDS.get(row["criterion"], row["criterion"])]
        about.append(exact_percent(float(row["fraction"])) if row["fraction"] else "")
        scores = [_score(row[name], beside.get(name), name in table.percent) for name in names]
        rows.append([*map(Entry, about), *scores])
    heads = ["samples", "restored", "of weights", *(name.replace("_", " ") for name in names)]
    return Grid("", heads, rows, "dense")


def _score(value: Any, published: Any, percent: bool) -> Entry:
    form = in_percent if percent else "{:.3f}".format
    return number(value, form, note="" if is_missing(published) else f"({form(published)})")


_LAYERS = {"": "none, as tuned", RANDOM: "as many weights at random"}


def layer_groups_grid(table: Table) -> Grid:
    """Groups of layers down, training levels across; the paper's model, which has other layers, below."""
    found = table.where()
    rows = []
    for row in found if any(row["source"] == "run" for row in found) else ():
        restored = _LAYERS.get(row["layers"], row["layers"])
        about = [_WORDS.get(row["source"], row["source"]), f"{row['size']:,}", restored]
        rows.append([*map(Entry, about), *(number(row[name], in_percent) for name in BY_LEVEL)])
    return Grid("", ["model", "samples", "layers restored", *_BY_LEVEL.values()], rows, "dense")


def _entry(name: str, value: Any, published: Any, percent: bool) -> Entry:
    if isinstance(value, str):
        return Entry(exact_percent(float(value)) if name == "fraction" else _WORDS.get(value, value))
    if not percent:
        return Entry(f"{value:,}")
    return number(value, in_percent, note="" if is_missing(published) else f"({in_percent(published)})")
