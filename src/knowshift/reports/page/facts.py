"""Fact by fact: every test fact, the base's own answer and the tuned models', for the list in the page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.facts.relations import RELATIONS
from knowshift.html.facts import MOVES, Answered, AnswerRow, Column, FactList, packed
from knowshift.html.grid import DASH, Entry, Grid
from knowshift.html.table import Table
from knowshift.html.words import DOMAIN_WORDS, exact_percent, signed
from knowshift.reports.evidence import answers as recorded
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.run_folder import ALL, RATE_CONTROL
from knowshift.reports.tables.answers import EXPOSURE_BINS
from knowshift.reports.tables.moves import before, exposure_bins, exposures_of
from knowshift.reports.tables.settings import level_of, level_words, rate_name

#: How the base was asked, in words.
PROMPT_WORDS = {"plain": "asked plainly", "few_shot": "after solved examples", "zero_shot": "fine-tuning prompt"}
#: Texts of answers that a page keeps at most, over all facts and models: some 2 MB.
TEXTS = 150_000
#: Shares of the tuned models that a fact is right in: up to these, and above the one before.
SHARES = {"none": 0.0, "up to 1/4": 0.25, "up to 1/2": 0.5, "up to 3/4": 0.75, "more": 1.0}


@dataclass(frozen=True)
class FactByFact:
    """What the section shows: the list, its tables without a script, and how the base was asked."""

    facts: FactList
    grids: tuple[Grid, ...]
    before: str
    right: dict[str, int]
    models: int
    without_texts: int

    @property
    def data(self) -> str:
        """The list, packed."""
        return packed(self.facts)


def fact_by_fact(evidence: Evidence, moves: Table) -> FactByFact | None:
    """The section of a run; None where the base or every tuned model is not asked yet."""
    prompt = before(evidence)
    if prompt is None or not moves.rows:
        return None
    chosen = _chosen(evidence, prompt)
    hits = evidence.answers.substring
    tuned = _of_grid(evidence, chosen)
    right_in = hits[:, tuned].sum(axis=1)
    texts = _with_texts(evidence, chosen)
    rows = []
    for index in chosen:
        answered = Answered(hits[:, index].tolist())
        if index in texts:
            named = evidence.answers.rows(index, list(evidence.answers.facts))
            answered = replace(answered, texts=[named[fact]["text"] for fact in evidence.answers.facts])
        name, group = _named(evidence.answers.columns[index], evidence.run.learning_rate)
        rows.append(AnswerRow(name, [answered], group))
    columns = _columns(evidence, right_in, len(tuned))
    keys = {column.key for column in columns}
    written = ", written {written} times" if "written" in keys else ""
    asked = evidence.answers.rows(chosen[0], list(evidence.answers.facts))
    facts = FactList(
        question=[asked[fact]["question"] for fact in evidence.answers.facts],
        answer=[asked[fact]["answer"] for fact in evidence.answers.facts],
        columns=columns,
        filters=[key for key in ("move", "level", "relation", "domain", "times") if key in keys],
        heads=("model", "answer"),
        rows=rows,
        said=(
            f"{{answer}}. {{relation}}, {{domain}}; level {{level}}, R {{rate}}{written}. "
            f"Right in {{right}} of {len(tuned):,} model{'s' * (len(tuned) != 1)} of the grid; {{move}}. Fact {{id}}."
        ),
        sort="move",
        compared=(0, chosen.index(_first_after(evidence, chosen))),
        groups=[key for key in ("level", "domain", "times", "relation") if key in keys],
    )
    return FactByFact(
        facts=facts,
        grids=(*moves_grids(moves, rate_name(evidence.run.learning_rate)), right_grid(evidence, right_in, len(tuned))),
        before=PROMPT_WORDS[prompt],
        right={
            words: int(hits[:, column].sum())
            for name, words in PROMPT_WORDS.items()
            if (column := evidence.base_column(name)) is not None
        },
        models=len(chosen),
        without_texts=len(chosen) - len(texts),
    )


def _is_tuned(column: recorded.Column) -> bool:
    return column.setting is not None and not column.criterion


def _of_grid(evidence: Evidence, chosen: list[int]) -> list[int]:
    """The models as tuned of the main grid, without controls and variants, which may be added later; else all tuned."""
    columns = evidence.answers.columns
    tuned = [i for i in chosen if _is_tuned(columns[i])]
    return [i for i in tuned if not columns[i].setting.control] or tuned  # type: ignore[union-attr]


def _chosen(evidence: Evidence, prompt: str) -> list[int]:
    """Columns that can be compared: the base, the best form first; every model as tuned; the first draw restored."""
    columns = evidence.answers.columns
    base = [evidence.base_column(name) for name in (prompt, *(name for name in PROMPT_WORDS if name != prompt))]
    tuned = [i for i, column in enumerate(columns) if _is_tuned(column)]
    tuned.sort(key=lambda i: (columns[i].setting.control, columns[i].setting, columns[i].draw))  # type: ignore[union-attr]
    restored = [i for i, column in enumerate(columns) if column.criterion and column.draw == 0]
    restored.sort(key=lambda i: (columns[i].criterion != "relative", columns[i].criterion, columns[i].setting))
    return [*(i for i in base if i is not None), *tuned, *restored]


def _with_texts(evidence: Evidence, chosen: list[int]) -> set[int]:
    """Those whose texts are kept, as far as :data:`TEXTS` goes: the base, the first draw of every level and size.

    Then, of the first draw, the controls, and the restored by relative change at 20%, or what is next to it.
    """
    columns = evidence.answers.columns
    fractions = evidence.fractions("relative")
    shown = min(fractions, key=lambda fraction: abs(fraction - 0.2), default=None)

    def rank(index: int) -> int | None:
        column = columns[index]
        if column.setting is None:
            return 0
        if column.draw != 0:
            return None
        if column.criterion:
            return 3 if (column.criterion, column.fraction) == ("relative", shown) else None
        return 2 if column.setting.control else 1

    wanted = sorted((place, n, index) for n, index in enumerate(chosen) if (place := rank(index)) is not None)
    return {index for _, _, index in wanted[: max(1, TEXTS // max(1, len(evidence.answers.facts)))]}


def _first_after(evidence: Evidence, chosen: list[int]) -> int:
    """The model that is compared at first: of the largest size the training level next to 2, the first draw."""
    columns = evidence.answers.columns

    def order(index: int) -> tuple[int, ...]:
        setting = columns[index].setting
        assert setting is not None
        return (-setting.size, abs(setting.level - 2), columns[index].draw)

    return min(_of_grid(evidence, chosen), key=order)


def _named(column: recorded.Column, rate: float) -> tuple[str, str]:
    """A model in words, and the group that it stands in among others."""
    setting = column.setting
    if setting is None:
        return f"base, {PROMPT_WORDS[column.prompt]}", "base model"
    name = f"{level_words(level_of(setting))}, {setting.size:,} facts, draw {column.draw + 1}"
    if setting.learning_rate != rate:
        name += f", rate {setting.learning_rate:.3g}"
    if column.criterion:
        words = {"relative": "most changed", "random": "random"}.get(column.criterion, column.criterion)
        return f"{name}, {exact_percent(column.fraction)} {words} restored", "restored, draw 1"
    if not setting.control:
        return name, "as tuned"
    if setting.control == ALL:
        return f"{name}, all of the level", "all facts of a level"
    return (name if setting.control == RATE_CONTROL else f"{name}, {setting.control}"), "controls"


def _columns(evidence: Evidence, right_in: Any, models: int) -> list[Column]:
    answers = evidence.answers
    relations = sorted(set(answers.relation))
    place = {name: i for i, name in enumerate(relations)}
    mastery = evidence.mastery
    rates = dict(zip(mastery["fact"].to_pylist(), mastery["rate"].to_pylist(), strict=True))
    exposures = exposures_of(evidence)
    bins = exposure_bins(exposures)
    columns = [
        Column(
            "relation",
            "relation",
            [place[name] for name in answers.relation],
            [f"{name} {RELATIONS[name].name}" if name in RELATIONS else name for name in relations],
            width=8,
        ),
        Column("level", "level", answers.level.tolist(), [str(level) for level in range(LEVELS)], width=3),
        Column("rate", "R", [_thousandths(rates.get(fact)) for fact in answers.facts], digits=3, width=2.6, narrow=2.4),
        Column("written", "written", [-1 if n is None else n for n in exposures], width=4),
        Column("right", f"right/{models}", right_in.tolist(), width=4.6, narrow=3.2),
        Column("move", "move", (), MOVES, width=4, narrow=3.4),
        Column("domain", "domain", answers.domain.tolist(), [DOMAIN_WORDS[name] for name in DOMAINS]),
        Column("times", "times written", bins, [name for name, _, _ in EXPOSURE_BINS]),
        Column("id", "fact", texts=answers.facts),
    ]
    if max(bins, default=-1) < 0:
        return [column for column in columns if column.key not in ("written", "times")]
    return columns


def _thousandths(rate: float | None) -> int:
    return -1 if rate is None else round(1000 * min(max(rate, 0.0), 1.0))


def moves_grids(moves: Table, rate: str) -> list[Grid]:
    """Gained, lost and kept by training level and size; then at the largest size by test level and by exposures."""
    grid = moves.where(control="", learning_rate=rate)
    if not grid:
        return []
    form = PROMPT_WORDS[grid[0]["before"]]
    sizes, levels = sorted({row["size"] for row in grid}), sorted({row["level"] for row in grid})
    whole = [row for row in grid if row["by"] == "all"]
    by_size = [
        [Entry(f"level {level}"), *(_moved([r for r in whole if (r["level"], r["size"]) == (level, n)]) for n in sizes)]
        for level in levels
    ]
    said = "both domains, mean over training draws; small: kept"
    found = [
        Grid(
            f"Facts gained (+) and lost (\N{MINUS SIGN}) against the base {form}: {said}",
            ["training level", *(f"{size:,}" for size in sizes)],
            by_size,
        )
    ]
    largest = [row for row in grid if row["size"] == sizes[-1]]
    for by, head in (("test_level", "test level"), ("exposures", "times written")):
        rows = [row for row in largest if row["by"] == by]
        body = []
        for name in dict.fromkeys(row["group"] for row in rows):
            here = [row for row in rows if row["group"] == name]
            facts = sum(row["facts"] for row in here if row["level"] == here[0]["level"])
            by_level = (_moved([row for row in here if row["level"] == level]) for level in levels)
            body.append([Entry(name), Entry(f"{facts:,}"), *by_level])
        found.append(
            Grid(
                f"The same after {sizes[-1]:,} samples by {head}: {said}",
                [head, "facts", *(f"level {level}" for level in levels)],
                body,
            )
        )
    return found


def _moved(rows: list[dict[str, Any]]) -> Entry:
    """Of the rows of both domains."""
    if not rows:
        return DASH
    gained, lost, kept = (sum(row[name] for row in rows) for name in ("gained", "lost", "kept"))
    text = " ".join(word for word in (signed(gained, 1, 0), signed(-lost, 1, 0)) if word != "0")
    return Entry(text or "0", f"{kept:,.0f} kept")


def right_grid(evidence: Evidence, right_in: Any, models: int) -> Grid:
    """In how many of the tuned models the facts of each level are right."""
    share = right_in / models
    ends = [-np.inf, *SHARES.values()]
    body = []
    for level in range(LEVELS):
        its = share[evidence.answers.level == level]
        if len(its):
            counts = [int(((its > low) & (its <= high)).sum()) for low, high in pairwise(ends)]
            counts.append(int((its == 1).sum()))
            body.append([Entry(str(level)), Entry(f"{len(its):,}"), *(Entry(f"{count:,}") for count in counts)])
    caption = f"In how many of {models:,} models of the grid a fact is answered right, by test level: number of facts"
    return Grid(caption, ["test level", "facts", *SHARES, "of these, in all"], body)
