"""Tables of the token level (KL) and of the weights: concentration, layers, modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from knowshift.facts.fact import DOMAINS
from knowshift.html.table import Row, Table, bounds
from knowshift.reports.evidence.evidence import Change, Evidence
from knowshift.reports.evidence.run_folder import Setting, read_token_shift
from knowshift.reports.evidence.scores import Model
from knowshift.reports.published import published, published_concentration
from knowshift.reports.tables.settings import DRAW_COLUMNS, SETTING_COLUMNS, draw_values, rate_name, setting_values
from knowshift.statistics.crossed import over_draws
from knowshift.statistics.estimates import Estimate, mean_interval
from knowshift.statistics.holm import holm

PUBLISHED_SIZES = (240, 1920)


def token_shift(evidence: Evidence) -> Table:
    """Every tuned model: mean and median KL(tuned || base) in nats, and how many facts could not be scored."""
    rows: list[Row] = []
    shifts = evidence.token_shifts
    for cell in shifts.cells if shifts else ():
        table = read_token_shift(cell)
        domains = np.asarray(table["domain"].to_pylist())
        kl = table["kl"].to_numpy(zero_copy_only=False).astype(np.float64)
        setting = cell.setting
        for domain in ("both", *DOMAINS):
            inside = kl if domain == "both" else kl[domains == domain]
            scored = inside[np.isfinite(inside)]
            rows.append(
                (
                    *draw_values(setting, cell.draw),
                    domain,
                    len(inside),
                    len(scored),
                    len(inside) - len(scored),
                    math.fsum(scored) / len(scored) if len(scored) else None,
                    float(np.median(scored)) if len(scored) else None,
                )
            )
    columns = ("domain", "facts", "scored", "unscored", "kl_mean", "kl_median")
    return Table("token_shift", (*DRAW_COLUMNS, *columns), tuple(rows))


def token_shift_summary(evidence: Evidence) -> Table:
    """Mean KL over draws with its interval, on the facts that every token-shift cell of the run could score."""
    rows: list[Row] = []
    shifts = evidence.token_shifts
    if shifts:
        scores = shifts.scores
        for setting in [s for name in ("", *evidence.controls) for s in scores.settings(name)]:
            model = Model(setting)
            for domain, picked in (("both", [0, 1]), ("in_domain", [0]), ("out_of_domain", [1])):
                rows.append(
                    (
                        *setting_values(setting),
                        domain,
                        len(scores.draws(model)),
                        int(scores.counts.reshape(len(DOMAINS), -1)[picked].sum()),
                        *bounds(scores.mean([model], scores.pooled(picked)), 0.0),
                    )
                )
    columns = ("domain", "draws", "facts", "kl_mean", "low", "high")
    return Table("token_shift_summary", (*SETTING_COLUMNS, *columns), tuple(rows))


def _by_setting(evidence: Evidence) -> dict[Setting, list[Change]]:
    grouped: dict[Setting, list[Change]] = {}
    for change in evidence.changes:
        grouped.setdefault(change.cell.setting, []).append(change)
    return dict(sorted(grouped.items(), key=lambda item: (item[0].control, item[0])))


def concentration(evidence: Evidence) -> Table:
    """Share of the summed change that the top fraction of weights holds: this run, its no-signal null, the paper."""
    rows: list[Row] = []
    for source in ("run", "null"):
        for setting, changes in _by_setting(evidence).items():
            shares = [c.concentration if source == "run" else c.null for c in changes]
            for measure in ("relative", "absolute", "squared"):
                names = sorted({f for share in shares for f in share.get(measure, {})}, key=float)
                for name in names:
                    values = [float(v) for share in shares if (v := share.get(measure, {}).get(name)) is not None]
                    mean = mean_interval(values)
                    rows.append((source, *setting_values(setting), measure, name, len(values), *bounds(mean, 0.0, 1.0)))
    for size in PUBLISHED_SIZES:
        for name, share in published_concentration(size).items():
            rows.append(("LLaMA-3-8B", "mean", size, "1e-05", "", "relative", name, None, share, None, None))
    columns = ("measure", "top_fraction", "draws", "share", "low", "high")
    return Table("concentration", ("source", *SETTING_COLUMNS, *columns), tuple(rows))


def places(evidence: Evidence, by: Literal["layers", "modules"]) -> Table:
    """Where the top 20% of weights by relative change sit, beside where the no-signal null's do, and the paper's table.

    The difference to the null is paired by model; Holm's p is over the layers (modules) of one setting. Level "mean" is
    the mean of the grid's training levels. Cells of before the null was told by layer have no null.
    """
    one = {"layers": "layer", "modules": "module"}[by]
    rows: list[Row] = []
    for where, strata, changes in _groups(evidence):
        found, null = ([c.record.get(key) or {} for c in changes] for key in (by, f"null_{by}"))
        sizes = changes[0].record.get(f"{one}_weights") or {}
        names = list(dict.fromkeys(str(name) for record in found for name in record))
        shares = [_over_draws(strata, [record.get(name) for record in found]) for name in names]
        nulls = [_over_draws(strata, [record.get(name) for record in null]) for name in names]
        apart = [
            _over_draws(strata, [_minus(a.get(name), b.get(name)) for a, b in zip(found, null, strict=True)])
            for name in names
        ]
        adjusted = holm([difference.p for difference in apart])
        for name, share, chance, difference, p in zip(names, shares, nulls, apart, adjusted, strict=True):
            told = (chance.value, *bounds(difference), difference.p, p, _number(sizes.get(name)))
            rows.append(("run", *where, name, share.draws, *bounds(share, 0.0, 1.0), *told))
    for row in published(f"redundancy_by_{one}"):
        share_of_paper = float(row["share_percent"]) / 100
        rows.append((row["model"], None, None, "1e-05", "", row[one], None, share_of_paper, *[None] * 9))
    measured = ("draws", "share", "low", "high", "null_share", "difference", "difference_low", "difference_high")
    columns = (one, *measured, "p", "p_holm", "share_of_weights")
    return Table(by, ("source", *SETTING_COLUMNS, *columns), tuple(rows))


def _groups(evidence: Evidence) -> list[tuple[Row, list[int], list[Change]]]:
    """Every setting, then every size of the grid over its training levels: (what it is, levels of changes, changes)."""
    settings = _by_setting(evidence)
    found = [(setting_values(s), [s.level] * len(changes), changes) for s, changes in settings.items()]
    grid = [setting for setting in settings if not setting.control]
    for size, rate in sorted({(setting.size, setting.learning_rate) for setting in grid}):
        alike = [c for s in grid if (s.size, s.learning_rate) == (size, rate) for c in settings[s]]
        levels = [change.cell.setting.level for change in alike]
        found.append((("mean", size, rate_name(rate), ""), levels, alike))
    return found


def _over_draws(strata: Sequence[int], values: Sequence[Any]) -> Estimate:
    """Over the draws that have a value."""
    held = [(s, number) for s, value in zip(strata, values, strict=True) if (number := _number(value)) is not None]
    return over_draws([s for s, _ in held], [number for _, number in held])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _minus(value: Any, other: Any) -> float | None:
    first, second = _number(value), _number(other)
    return None if first is None or second is None else first - second
