"""Tables of a bench of strategies: each at its rates, and each at its best rate against plain fine-tuning's best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from knowshift.facts.fact import DOMAINS
from knowshift.html.table import Row, Table, bounds, is_missing
from knowshift.records import ANSWERS, read_table
from knowshift.reports.evidence.choices import Choice, chosen
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.run_folder import RecordedCell, Setting, read_cell_json
from knowshift.reports.evidence.scores import Model
from knowshift.reports.findings.claims import mean_of
from knowshift.reports.tables.moves import before
from knowshift.reports.tables.settings import level_of, rate_name
from knowshift.statistics.holm import holm

#: Plain fine-tuning, which every strategy is compared with.
PLAIN = "sft"
#: Mastery levels of facts that are new to the base model, and of facts that it knows well.
NEW, KNOWN = (0, 1), (3, 4)
#: What a choice is measured on: each domain, and the mean of both.
SCOPES: Mapping[str, tuple[int, ...]] = {"in_domain": (0,), "out_of_domain": (1,), "both": (0, 1)}


def strategies(evidence: Evidence) -> Table:
    """Every strategy at each of its rates, means over draws.

    - ``in_domain``, ``out_of_domain``: accuracy, mean of the test levels; ``kept``: the same of levels 3 and 4 alone,
      mean of both domains. ``lost``: of the test facts that the base answers right in the form it knows best, the
      share that the model answers wrong; ``gained``: of the others, the share answered right.
    - ``learned``: share of the training facts of plain fine-tuning that are answered right; ``learned_new``: of those
      of levels 0 and 1.
    - ``kl_known``: KL to the base of the first token on test facts of level 4 (paper, 4.1), ``kl_task``: on training
      questions, over the whole vocabulary, both in nats; ``text_loss``: of held-out texts, nats a token; ``moved``:
      norm of the change over that of the weights.
    """
    tuned, plain = by_setting(evidence, "tuned"), set(numbered(evidence, "strategy", PLAIN).values())
    cells = by_setting(evidence, "learned")
    rows: list[Row] = []
    for label, models in evidence.benched.items():
        for setting, model in models.items():
            told = [_learned(cell) for cell in cells.get(setting, [])]
            records = [read_cell_json(cell, "record.json") for cell in tuned.get(setting, [])]
            rows.append(
                (
                    label,
                    model in plain,
                    rate_name(setting.learning_rate),
                    level_of(setting),
                    setting.size,
                    len(evidence.substring.draws(model)),
                    round(mean_of([float(record["steps"]) for record in records])) if records else None,
                    *_accuracies(evidence, model),
                    *turned_of(evidence, model),
                    *(_mean(told, name) for name in LEARNED[:2]),
                    _kl_known(evidence, model),
                    *(_mean(told, name) for name in LEARNED[2:]),
                )
            )
    shares = frozenset({*ACCURACIES, "lost", "gained", *LEARNED[:2]})
    return Table("strategies", COLUMNS, tuple(rows), shares)


ACCURACIES = ("in_domain", "out_of_domain", "kept")
#: What a cell "learned" tells, in the order of the table.
LEARNED = ("learned", "learned_new", "kl_task", "text_loss", "moved")
#: The columns of the tables.
COLUMNS = (
    *("strategy", "plain", "learning_rate", "level", "size", "draws", "updates", *ACCURACIES),
    *("lost", "gained", *LEARNED[:2], "kl_known", *LEARNED[2:]),
)
CHOSEN = (
    *("strategy", "scope", "learning_rate", "rate_is", "size", "accuracy", "difference", "low", "high", "p_holm"),
    *("difference_after", "low_after", "high_after"),
)
MATCHED = ("strategy", "size", "learned", "in_domain", "out_of_domain", "kept", "kl_known", "text_loss", "moved")


def strategies_chosen(evidence: Evidence) -> Table:
    """Each strategy at its best rate (and size) minus plain fine-tuning at its best; and minus the best of those that
    change weights after training.

    Both bests are chosen on one half of the facts and on other draws, and measured on the rest; so an interval says
    what choosing gains too. Adjusted by Holm over strategies, for each scope. ``learning_rate`` and ``size`` are
    those chosen most often; ``rate_is`` says where no rate beyond was tried.
    """
    plain = numbered(evidence, "strategy", PLAIN)
    options = {
        label: {float(number): model for number, model in enumerate(models.values())}
        for label, models in evidence.benched.items()
    }
    after = numbered(evidence, "kind", "after")
    rows: list[Row] = []
    others = [label for label, own in options.items() if not set(own.values()) <= set(plain.values())]
    for scope, domains in SCOPES.items():
        against = {label: _against(evidence, own, plain, domains) for label, own in options.items()}
        adjusted = dict(zip(others, holm([against[label].estimate.p for label in others]), strict=True))
        for label, own in options.items():
            usual = against[label].usual
            setting = None if usual is None else list(evidence.benched[label])[int(usual)]
            beside = _against(evidence, own, after, domains)
            rows.append(
                (
                    label,
                    scope,
                    None if setting is None else rate_name(setting.learning_rate),
                    None if setting is None else _end(setting, evidence.benched[label]),
                    None if setting is None else setting.size,
                    _value(evidence, own, usual, domains),
                    *(bounds(against[label].estimate) if label in others else (math.nan,) * 3),
                    adjusted.get(label, math.nan),
                    *(bounds(beside.estimate) if after else (math.nan,) * 3),
                )
            )
    return Table("strategies_chosen", CHOSEN, tuple(rows), frozenset({"accuracy"}))


def _end(chosen: Setting, tried: Iterable[Setting]) -> str:
    """Which end of the rates that were tried, at its size, the chosen one is: a better one may lie beyond."""
    rates = sorted({one.learning_rate for one in tried if one.size == chosen.size})
    ends = {rates[0]: "lowest", rates[-1]: "highest"} if len(rates) > 1 else {rates[0]: "only"}
    return ends.get(chosen.learning_rate, "")


def strategies_matched(table: Table) -> Table:
    """Accuracy and what is kept where a strategy has learned as many training facts as plain fine-tuning at its best.

    Plain fine-tuning's best rate is that of its highest accuracy, on the facts that it is compared on: what luck gives
    is on its side. Along a strategy's rates, in the order of what was learned, values between two rates are on the line
    between them; a strategy that never learns as much, or never as little, has none. All are of the size that most
    strategies have.

    Args:
        table: :func:`strategies`.
    """
    told = [row for row in table.where() if not is_missing(row["learned"])]
    size = _usual_size(told)
    told = [row for row in told if row["size"] == size]
    plain = [row for row in told if row["plain"]]
    if not plain:
        return Table("strategies_matched", MATCHED, ())
    goal = max(plain, key=lambda row: mean_of([row[name] for name in ACCURACIES[:2] if not is_missing(row[name])]))
    rows: list[Row] = []
    for label in dict.fromkeys(row["strategy"] for row in told):
        own = sorted((row for row in told if row["strategy"] == label), key=lambda row: row["learned"])
        x = [row["learned"] for row in own]
        values: list[float | None] = [None] * len(MATCHED[3:])
        if x[0] <= goal["learned"] <= x[-1]:
            values = [float(np.interp(goal["learned"], x, [_number(row[name]) for row in own])) for name in MATCHED[3:]]
        rows.append((label, size, goal["learned"], *values))
    return Table("strategies_matched", MATCHED, tuple(rows), frozenset({"learned", *MATCHED[3:6]}))


def _usual_size(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of training facts that most strategies have; the largest of equals, None of no rows."""
    names: dict[int, set[str]] = {}
    for row in rows:
        names.setdefault(row["size"], set()).add(row["strategy"])
    return max(names, key=lambda size: (len(names[size]), size), default=None)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _against(
    evidence: Evidence, own: Mapping[float, Model], reference: Mapping[float, Model], domains: Sequence[int]
) -> Choice:
    return chosen(evidence.substring, [own], [reference], domains)


def numbered(evidence: Evidence, what: str, wanted: str) -> dict[float, Model]:
    """The models of a strategy, or of a kind of strategies, as their records tell: under every name, rate and size."""
    told = {cell.setting: read_cell_json(cell, "record.json").get(what) for cell in evidence.run.of("tuned")}
    models = [model for own in evidence.benched.values() for at, model in own.items() if told.get(at) == wanted]
    return {float(number): model for number, model in enumerate(models)}


def _value(evidence: Evidence, own: Mapping[float, Model], usual: float | None, domains: Sequence[int]) -> float:
    if usual is None:
        return math.nan
    return evidence.substring.mean([own[int(usual)]], evidence.substring.over(domains)).value


def _accuracies(evidence: Evidence, model: Model) -> list[float]:
    scores = evidence.substring
    every = [scores.over([d]) for d in range(len(DOMAINS))]
    known = [scores.over([d], level) for d in range(len(DOMAINS)) for level in KNOWN]
    kept = [scores.mean([model], weights).value for weights in known if not np.isnan(weights).any()]
    return [*(scores.mean([model], weights).value for weights in every), mean_of(kept)]


def turned_of(evidence: Evidence, model: Model) -> tuple[float, float]:
    """(lost, gained); missing where the base was not asked, or has no such facts."""
    prompt = before(evidence)
    base = None if prompt is None else evidence.base_column(prompt)
    if base is None:
        return math.nan, math.nan
    hits = evidence.answers.substring
    known = hits[:, base]
    after = [hits[:, evidence.substring.column(model, draw)] for draw in evidence.substring.draws(model)]
    lost = [float((~one[known]).mean()) for one in after] if known.any() else []
    gained = [float(one[~known].mean()) for one in after] if not known.all() else []
    return mean_of(lost), mean_of(gained)


def _kl_known(evidence: Evidence, model: Model) -> float:
    shifts = evidence.token_shifts
    if shifts is None or not shifts.scores.draws(model):
        return math.nan
    return shifts.scores.mean([model], shifts.scores.pooled(range(len(DOMAINS)))).value


def _learned(cell: RecordedCell) -> dict[str, float | None]:
    """What one training taught, by :data:`LEARNED`."""
    record = read_cell_json(cell, "learned.json")
    table, _ = read_table(cell.folder / "answers.parquet", ANSWERS, "answers")
    rows = [row for row in table.select(["level", "substring_hit"]).to_pylist() if row["substring_hit"] is not None]
    new = [row["substring_hit"] for row in rows if row["level"] in NEW]
    return {
        "learned": float(np.mean([row["substring_hit"] for row in rows])) if rows else None,
        "learned_new": float(np.mean(new)) if new else None,
        "kl_task": record["kl"],
        "text_loss": record["text_loss"],
        "moved": record["moved"],
    }


def _mean(told: Sequence[Mapping[str, float | None]], name: str) -> float:
    return mean_of([value for one in told if (value := one[name]) is not None])


def by_setting(evidence: Evidence, kind: str) -> dict[Setting, list[RecordedCell]]:
    """The finished cells of a kind, of all draws, by the setting of their model."""
    found: dict[Setting, list[RecordedCell]] = {}
    for cell in evidence.run.of(kind):
        found.setdefault(cell.setting, []).append(cell)
    return found
