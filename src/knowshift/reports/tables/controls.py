"""Tables of trainings beside the grid: the learning-rate control and the variants, each against the same set there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knowshift.facts.fact import DOMAINS
from knowshift.html.table import Row, Table, bounds
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.run_folder import AT, MIXED, RecordedCell, Setting, read_cell_json
from knowshift.reports.evidence.scores import Contribution, Model, Scores
from knowshift.reports.findings.claims import mean_of
from knowshift.reports.tables.settings import SETTING_COLUMNS, rate_name, setting_values
from knowshift.statistics.estimates import Estimate, Floats

#: A model trained otherwise, and the models of the grid that it stands beside: of its level, or of every level.
Pair = tuple[Model, tuple[Model, ...]]


def controls(evidence: Evidence) -> Table:
    """Models trained otherwise beside those of the grid, of equal size; the difference paired by draw and fact.

    A model of mixed levels stands beside the mean of all levels. Each accuracy is over all draws, the difference over
    those that both have. ``level`` is "mean" for the mean of the training levels.
    """
    rows: list[Row] = []
    for name, models in evidence.trained_otherwise.items():
        for size in sorted({size for _, size in models}):
            every = _pairs(evidence, {level: model for (level, s), model in models.items() if s == size}, size)
            groups = [[pair] for pair in every] + ([every] if len(every) > 1 else [])
            for group in groups:
                for d, domain in enumerate(DOMAINS):
                    rows.append((name, *_control_row(evidence.substring, group, every, size, d, domain)))
    columns = ("control", "level", "size", "domain", "draws", "learning_rate", "accuracy", "control_learning_rate")
    return Table("controls", (*columns, "control_accuracy", "difference", "low", "high", "p"), tuple(rows))


def _pairs(evidence: Evidence, models: dict[int, Model], size: int) -> list[Pair]:
    """Every model of a control that has its like in the grid, in the order of levels."""
    found: list[Pair] = []
    for level, model in sorted(models.items()):
        levels = evidence.levels if level == MIXED else [level]
        if all((lv, size) in evidence.main for lv in levels):
            found.append((model, tuple(evidence.main[lv, size] for lv in levels)))
    return found


def _control_row(scores: Scores, group: Sequence[Pair], every: Sequence[Pair], size: int, d: int, domain: str) -> Row:
    weights = scores.over([d])
    difference = _difference(scores, group, weights, every if len(group) == 1 else [])
    first = group[0][0].setting
    level: int | str = setting_values(first)[0] if len(group) == 1 else "mean"  # type: ignore[assignment]
    grid = [mean_of([scores.mean([model], weights).value for model in beside]) for _, beside in group]
    return (
        str(level),
        size,
        domain,
        difference.draws,
        rate_name(group[0][1][0].setting.learning_rate),
        mean_of(grid),
        rate_name(first.learning_rate),
        mean_of([scores.mean([model], weights).value for model, _ in group]),
        *bounds(difference),
        difference.p,
    )


def _difference(scores: Scores, pairs: Sequence[Pair], weights: Floats, alike: Sequence[Pair]) -> Estimate:
    """Mean over pairs of (model minus the mean of those beside it), each pair a stratum of draws."""
    return scores.estimate(
        _contributions(scores, pairs, weights), [_contributions(scores, [pair], weights) for pair in alike]
    )


def _contributions(scores: Scores, pairs: Sequence[Pair], weights: Floats) -> list[Contribution]:
    kept = [(model, beside, scores.shared([model, *beside])) for model, beside in pairs]
    kept = [item for item in kept if item[2]]
    return [
        Contribution(
            stratum,
            (
                (scores.column(model, draw), weights / len(kept)),
                *((scores.column(other, draw), -weights / len(kept) / len(beside)) for other in beside),
            ),
        )
        for stratum, (model, beside, draws) in enumerate(kept)
        for draw in draws
    ]


def mixed_trainings(evidence: Evidence) -> dict[str, bool]:
    """The variants that trained on mixed levels, and whether by LoRA, as their cells tell."""
    found = {}
    for cell in evidence.run.of("evaluation"):
        training = cell.coordinates.get("training", {})
        strategy = "lora" if "lora" in training else training.get("strategy", "sft")
        if cell.setting.level == MIXED and AT not in cell.setting.control and strategy in ("sft", "lora"):
            found[str(cell.coordinates["control"])] = strategy == "lora"
    return found


def trainings(evidence: Evidence) -> Table:
    """What every training was: distinct facts, updates, loss, and the share of the region's weights that it changed.

    Means over draws. Adam moves every weight that has a gradient, so a share below one says that updates were lost to
    rounding. ``rounded_share`` is what the dtype of a variant changed by itself, before any training, of all weights.
    """
    tuned: dict[Setting, list[RecordedCell]] = {}
    for cell in evidence.run.of("tuned"):
        tuned.setdefault(cell.setting, []).append(cell)
    changed: dict[Setting, list[float]] = {}
    for change in evidence.changes:
        share = change.record.get("changed_share")
        if isinstance(share, int | float):
            changed.setdefault(change.cell.setting, []).append(float(share))
    rows: list[Row] = []
    for setting in sorted(tuned, key=lambda setting: (setting.control, setting)):
        records = [read_cell_json(cell, "record.json") for cell in tuned[setting]]
        rows.append(
            (
                *setting_values(setting),
                len(records),
                round(float(np.mean([len(set(record["facts"])) for record in records]))),
                round(float(np.mean([record["steps"] for record in records]))),
                mean_of([float(record["train_loss"]) for record in records]),
                mean_of(changed.get(setting, [])),
                mean_of([float(share) for record in records if (share := record.get("rounded_share")) is not None]),
            )
        )
    columns = ("draws", "distinct_facts", "updates", "train_loss", "changed_share", "rounded_share")
    return Table("trainings", (*SETTING_COLUMNS, *columns), tuple(rows))
