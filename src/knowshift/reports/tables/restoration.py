"""Tables of restoration: every restored model, and its paired difference to the same model left as tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from knowshift.facts.fact import DOMAINS
from knowshift.html.table import Row, Table, bounds
from knowshift.parameters.selection.select import fraction_name
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.restored import layer_group_answers, train_set_answers
from knowshift.reports.evidence.run_folder import Setting, read_cell_json
from knowshift.reports.evidence.scores import Model, Scores
from knowshift.reports.tables.answers import COUNT_COLUMNS, count, count_rows
from knowshift.reports.tables.settings import (
    CONTRAST_COLUMNS,
    DRAW_COLUMNS,
    SETTING_COLUMNS,
    draw_values,
    setting_values,
)
from knowshift.statistics.accuracy import domain_accuracy
from knowshift.statistics.estimates import Estimate, Floats
from knowshift.statistics.holm import holm


def restoration(evidence: Evidence) -> Table:
    """Every restored model by domain and test level, with how many weights were put back."""
    counts = count(evidence)
    restored: dict[tuple[Setting, int], dict[str, object]] = {}
    for cell in evidence.run.of("restoration"):
        restored[cell.setting, cell.draw] = read_cell_json(cell, "restored.json")
    rows: list[Row] = []
    for index, column in enumerate(evidence.answers.columns):
        if not column.setting or not column.criterion:
            continue
        name = fraction_name(column.fraction)
        put_back, eligible = _restored_count(restored[column.setting, column.draw], column.criterion, name)
        head = (*draw_values(column.setting, column.draw), column.criterion, name, put_back, eligible)
        rows.extend((*head, *row) for row in count_rows(counts, index))
    columns = (*DRAW_COLUMNS, "criterion", "fraction", "restored", "eligible", *COUNT_COLUMNS)
    return Table("restoration", columns, tuple(rows))


def train_set(evidence: Evidence) -> Table:
    """Every restored model on the facts it was trained on (paper, Table 6); fraction 0 is the model as tuned.

    By the paper's criterion, and as many weights at random.
    """
    rows: list[Row] = []
    for answers in train_set_answers(evidence.run):
        facts, hits, words = (int(x.sum()) for x in (answers.facts, answers.hits, answers.word_hits))
        shares = [hits / facts if facts else None, words / facts if facts else None]
        head = (*draw_values(answers.cell.setting, answers.cell.draw), answers.criterion, answers.name)
        rows.append((*head, answers.restored, answers.eligible, facts, hits, shares[0], words, shares[1]))
    columns = ("facts", "correct", "accuracy", "word_correct", "word_accuracy")
    restored = ("criterion", "fraction", "restored", "eligible")
    return Table("train_set", (*DRAW_COLUMNS, *restored, *columns), tuple(rows))


def layer_groups(evidence: Evidence) -> Table:
    """Every model with a group of layers restored, on the in-domain test facts (paper, Table 11).

    Layers "random": as many weights of all layers as the largest group has, drawn at random, as a control.
    The accuracies are the plain means of the test levels' (:func:`domain_accuracy`).
    """
    rows: list[Row] = []
    for answers in layer_group_answers(evidence.run):
        facts, hits, words = (int(x.sum()) for x in (answers.facts, answers.hits, answers.word_hits))
        means = [domain_accuracy(x, answers.facts) for x in (answers.hits, answers.word_hits)]
        head = (*draw_values(answers.cell.setting, answers.cell.draw), answers.name, answers.restored)
        rows.append((*head, facts, hits, means[0], words, means[1]))
    columns = ("layers", "restored", "facts", "correct", "accuracy", "word_correct", "word_accuracy")
    return Table("layer_groups", (*DRAW_COLUMNS, *columns), tuple(rows))


def _restored_count(record: dict[str, object], criterion: str, fraction: str) -> tuple[int | None, int | None]:
    eligible = record.get("eligible")
    criteria = record.get("criteria")
    counts = criteria.get(criterion) if isinstance(criteria, dict) else None
    put_back = counts.get(fraction) if isinstance(counts, dict) else None
    return (put_back if isinstance(put_back, int) else None), (eligible if isinstance(eligible, int) else None)


SUMMARY_COLUMNS = (
    *SETTING_COLUMNS,
    "criterion",
    "fraction",
    "domain",
    "draws",
    "accuracy",
    "low",
    "high",
    *CONTRAST_COLUMNS,
)


def restoration_summary(evidence: Evidence) -> Table:
    """Restored minus as tuned, and minus random at the same fraction; paired by fact and draw, with 95% intervals.

    ``p_holm`` adjusts the differences to the tuned model over all fractions and training levels of one criterion,
    size and domain; the rows "mean" are adjusted over fractions.
    """
    scores = evidence.substring
    settings = sorted({c.setting for c in evidence.answers.columns if c.setting and c.criterion})
    grids = sorted({(s.size, s.learning_rate, s.control) for s in settings})
    rows: list[Row] = []
    for grid in grids:
        tuned = [Model(s) for s in settings if (s.size, s.learning_rate, s.control) == grid]
        for criterion in evidence.criteria:
            for d, domain in enumerate(DOMAINS):
                weights = scores.over([d])
                fractions = evidence.fractions(criterion)
                each = [
                    _compare(scores, [model], tuned, criterion, f, domain, weights)
                    for model in tuned
                    for f in fractions
                ]
                means = [_compare(scores, tuned, [], criterion, f, domain, weights) for f in fractions]
                for batch in (each, means):
                    found = [item for item in batch if item is not None]
                    adjusted = holm([difference.p for _, difference, _ in found])
                    rows.extend((*head, p, *tail) for (head, _, tail), p in zip(found, adjusted, strict=True))
    return Table("restoration_summary", SUMMARY_COLUMNS, tuple(rows))


def _compare(
    scores: Scores,
    models: Sequence[Model],
    alike: Sequence[Model],
    criterion: str,
    fraction: float,
    domain: str,
    weights: Floats,
) -> tuple[Row, Estimate, Row] | None:
    """The row of some models at one fraction, before and after its Holm p; None where none was restored so."""
    put = [model.restored(criterion, fraction) for model in models]
    if not any(scores.draws(model) for model in put):
        return None
    peers = [model.restored(criterion, fraction) for model in alike]
    random = [model.restored("random", fraction) for model in models]
    random_peers = [model.restored("random", fraction) for model in alike]
    alone = scores.mean(put, weights, peers)
    difference = scores.difference(_zip(put, models), weights, _zip(peers, alike))
    versus = scores.difference(_zip(put, random), weights, _zip(peers, random_peers))
    setting = models[0].setting
    head: Row = (
        str(setting.level) if alike else "mean",
        *setting_values(setting)[1:],
        criterion,
        fraction_name(fraction),
        domain,
        difference.draws,
        *bounds(alone, 0.0, 1.0),
        *bounds(difference),
        difference.p,
    )
    tail: Row = (math.nan,) * 4 if criterion == "random" else (*bounds(versus), versus.p)
    return head, difference, tail


def _zip(first: Sequence[Model], second: Sequence[Model]) -> list[tuple[Model, Model | None]]:
    return list(zip(first, second, strict=True))
