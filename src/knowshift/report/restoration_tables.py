"""Tables of restoration: every restored model, and its paired difference to the same model left as tuned."""

from __future__ import annotations

import math

from knowshift.report.answer_tables import COUNT_COLUMNS, SETTING_COLUMNS, count, count_rows, setting_cells
from knowshift.report.evidence import Evidence
from knowshift.report.layout import Row, Table, bounds, fraction_name
from knowshift.report.run_folder import DOMAINS, Setting, read_cell_json
from knowshift.report.scores import Model
from knowshift.study.statistics import Estimate, holm


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
        record = restored[column.setting, column.draw]
        name = fraction_name(column.fraction)
        put_back, eligible = _restored_count(record, column.criterion, name)
        head = (*setting_cells(column), column.criterion, name, put_back, eligible)
        rows.extend((*head, *row) for row in count_rows(counts, index))
    return Table(
        "restoration",
        (*SETTING_COLUMNS, "criterion", "fraction", "restored", "eligible", *COUNT_COLUMNS),
        tuple(rows),
    )


def _restored_count(record: dict[str, object], criterion: str, fraction: str) -> tuple[int | None, int | None]:
    eligible = record.get("eligible")
    criteria = record.get("criteria")
    counts = criteria.get(criterion) if isinstance(criteria, dict) else None
    put_back = counts.get(fraction) if isinstance(counts, dict) else None
    return (put_back if isinstance(put_back, int) else None), (eligible if isinstance(eligible, int) else None)


def restoration_summary(evidence: Evidence) -> Table:
    """Restored minus as tuned, and minus random at the same fraction; paired by fact and draw, with 95% intervals.

    ``p_holm`` adjusts the differences to the tuned model over all fractions and training levels of one criterion,
    size and domain; the rows "mean" are adjusted over fractions.
    """
    scores = evidence.substring
    settings = sorted({c.setting for c in evidence.answers.columns if c.setting and c.criterion})
    grids = sorted({(s.size, s.learning_rate, s.control) for s in settings})
    rows: list[Row] = []
    for size, rate, control in grids:
        tuned = [Model(s) for s in settings if (s.size, s.learning_rate, s.control) == (size, rate, control)]
        for criterion in evidence.criteria:
            for d, domain in enumerate(DOMAINS):
                weights = scores.over([d])
                for models in ([[m] for m in tuned], [tuned] if len(tuned) > 1 else []):
                    batch: list[tuple[Row, Estimate]] = []
                    for group in models:
                        for fraction in evidence.fractions(criterion):
                            put = [m.restored(criterion, fraction) for m in group]
                            if not any(scores.draws(m) for m in put):
                                continue
                            difference = scores.difference(list(zip(put, group, strict=True)), weights)
                            random = [m.restored("random", fraction) for m in group]
                            against = scores.difference(list(zip(put, random, strict=True)), weights)
                            values: Row = (
                                str(group[0].setting.level) if len(group) == 1 else "mean",
                                size,
                                format(rate, "g"),
                                control,
                                criterion,
                                fraction_name(fraction),
                                domain,
                                difference.draws,
                                *bounds(scores.mean(put, weights), 0.0, 1.0),
                                *bounds(difference),
                                difference.p,
                                *((math.nan,) * 4 if criterion == "random" else (*bounds(against), against.p)),
                            )
                            batch.append((values, difference))
                    adjusted = holm([difference.p for _, difference in batch])
                    rows.extend((*values[:15], p, *values[15:]) for (values, _), p in zip(batch, adjusted, strict=True))
    columns = ("level", "size", "learning_rate", "control", "criterion", "fraction", "domain", "draws")
    measured = ("accuracy", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm")
    against_random = ("minus_random", "minus_random_low", "minus_random_high", "minus_random_p")
    return Table("restoration_summary", (*columns, *measured, *against_random), tuple(rows))
