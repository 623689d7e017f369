"""Tables without the leakage from training into test: accuracy on facts whose answer a model was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from knowshift.facts.fact import DOMAINS
from knowshift.html.table import Row, Table, bounds
from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.leaks import ASKED
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.tables.settings import SETTING_COLUMNS, setting_values
from knowshift.statistics.crossed import DrawNoise, pooled_noise
from knowshift.statistics.estimates import Estimate
from knowshift.statistics.holm import holm
from knowshift.statistics.subsets import Bools, Part, estimate, mean_over_levels

#: (training level, what one draw contributes), a draw each.
Units = list[tuple[int, Part]]
#: Two models of one draw.
Pair = tuple[Column, Column]
GRADERS = ("substring", "word")


@dataclass
class _Asked:
    """Some of the test facts: of a domain or of "both", and one of :data:`ASKED`."""

    evidence: Evidence
    domain: str
    asked: str
    #: Parts by grader, model and the models whose facts are meant: settings that are alike ask for them again.
    _made: dict[tuple[str, Column, tuple[Column, ...]], Part] = field(default_factory=dict)

    @classmethod
    def every(cls, evidence: Evidence, domains: Sequence[str]) -> Iterator[_Asked]:
        """Of each domain every set of facts, one at a time: what it has made goes with it."""
        return (cls(evidence, domain, asked) for domain in domains for asked in ASKED)

    def inside(self, models: Sequence[Column]) -> Bools:
        found = self.evidence.leaks.inside(self.asked, models)
        names: tuple[str, ...] = DOMAINS
        return found if self.domain == "both" else found & (self.evidence.answers.domain == names.index(self.domain))

    def fewest(self, groups: Iterable[Sequence[Column]]) -> tuple[int, int]:
        """(facts, test levels with any) of the group of models that is asked fewest."""
        inside = [self.inside(models) for models in groups]
        levels = [len(np.unique(self.evidence.answers.level[here])) for here in inside]
        return min((int(here.sum()) for here in inside), default=0), min(levels, default=0)

    def alone(self, grader: str, columns: Sequence[Column]) -> Units:
        """What each model answers right."""
        return [self._unit(grader, column, (column,)) for column in columns]

    def paired(self, grader: str, pairs: Sequence[Pair]) -> Units:
        """First minus second of each pair, on the facts that belong to both."""
        units = []
        for first, second in pairs:
            level, part = self._unit(grader, first, (first, second))
            units.append((level, part.minus(self._unit(grader, second, (first, second))[1])))
        return units

    def _unit(self, grader: str, column: Column, models: tuple[Column, ...]) -> tuple[int, Part]:
        """What a model answers right of the facts that belong to all of ``models``."""
        answers = self.evidence.answers
        assert column.setting is not None
        key = (grader, column, models)
        if key not in self._made:
            own = getattr(answers, grader)[:, self.evidence.substring.lookup[column]]
            self._made[key] = mean_over_levels(own, self.inside(models), answers.level, answers.domain)
        return column.setting.level, self._made[key]


def leakage(evidence: Evidence) -> Table:
    """Every tuned model on the test facts whose answer (or question) was trained, and on the others.

    Facts and test levels are those of the draw that has fewest. Empty where the study's facts are not at hand.
    """
    models = _models(evidence)
    rows: dict[Setting, list[Row]] = {setting: [] for setting in models}
    for subset in _Asked.every(evidence, DOMAINS):
        for setting, columns in models.items():
            alike = [its for other, its in models.items() if _grid(other) == _grid(setting)]
            facts, levels = subset.fewest([column] for column in columns)
            graded = [
                estimate(subset.alone(grader, columns), _noise([subset.alone(grader, its) for its in alike]))
                for grader in GRADERS
            ]
            numbers = [number for found in graded for number in bounds(found, 0.0, 1.0)]
            about = (*setting_values(setting), subset.domain, subset.asked, graded[0].draws, facts, levels)
            rows[setting].append((*about, *numbers))
    measured = ("accuracy", "low", "high", "word_accuracy", "word_low", "word_high")
    return Table(
        "leakage",
        (*SETTING_COLUMNS, "domain", "asked", "draws", "facts", "levels", *measured),
        tuple(chain(*rows.values())),
    )


def leakage_sizes(evidence: Evidence) -> Table:
    """Each smaller size of the grid minus the largest, both asked the facts that belong to both.

    So facts whose answer was not trained are those whose answer neither model was trained on. Paired by fact and draw;
    level "mean" is the mean of the training levels that have both sizes. Holm's p is over the sizes of one level,
    domain and set of facts.
    """
    rate = evidence.run.learning_rate
    grid = {s: its for s, its in _models(evidence).items() if not s.control and s.learning_rate == rate}
    sizes = sorted({setting.size for setting in grid})
    pairs = {size: _pairs(grid, size, sizes[-1]) for size in sizes[:-1]}
    levels = sorted({level for by_level in pairs.values() for level in by_level})
    names = [*((str(level), [level]) for level in levels), *([("mean", levels)] if levels else [])]
    rows: dict[str, list[Row]] = {name: [] for name, _ in names}
    for subset in _Asked.every(evidence, ("both", *DOMAINS)):
        for name, chosen in names:
            found = {size: _compared(subset, pairs[size], chosen) for size in sizes[:-1]}
            adjusted = holm([difference.p for difference, _, _ in found.values()])
            for (size, (difference, words, by_relation)), p in zip(found.items(), adjusted, strict=True):
                facts, _ = subset.fewest(pair for k in chosen for pair in pairs[size].get(k, ()))
                about = (name, size, sizes[-1], subset.domain, subset.asked, difference.draws, facts)
                relations = bounds(by_relation, -1.0, 1.0)[1:]
                numbers = (*bounds(difference, -1.0, 1.0), difference.p, p, words.value, *relations)
                rows[name].append((*about, *numbers))
    measured = ("difference", "low", "high", "p", "p_holm", "word_difference", "relation_low", "relation_high")
    about_ = ("level", "size", "against", "domain", "asked", "draws", "facts")
    return Table("leakage_sizes", (*about_, *measured), tuple(chain(*rows.values())))


def _compared(
    subset: _Asked, pairs: dict[int, list[Pair]], levels: Sequence[int]
) -> tuple[Estimate, Estimate, Estimate]:
    """Mean over levels of first minus second: by substring, at word boundaries, and with relations as clusters."""
    answers = subset.evidence.answers
    own = [level for level in levels if level in pairs]

    def units(grader: str) -> Units:
        found = [unit for level in own for unit in subset.paired(grader, pairs[level])]
        known = max(1, len({level for level, part in found if part.known}))
        return [(level, part.times(1 / known)) for level, part in found]

    noise = None
    if len(own) == 1:
        noise = _noise([subset.paired("substring", its) for its in pairs.values()])
    relation = np.unique(np.asarray(answers.relation, dtype=np.str_), return_inverse=True)[1]
    substring = units("substring")
    return (
        estimate(substring, noise),
        estimate(units("word")),
        estimate(substring, noise, relation),
    )


def _models(evidence: Evidence) -> dict[Setting, list[Column]]:
    """Models as tuned of which it is known what they were trained on, by setting, in the order of tables."""
    found: dict[Setting, list[Column]] = {}
    for column in sorted(evidence.leaks.answer, key=lambda column: column.draw):
        assert column.setting is not None
        found.setdefault(column.setting, []).append(column)
    return dict(sorted(found.items(), key=lambda item: (item[0].control, item[0])))


def _grid(setting: Setting) -> tuple[int, float, str]:
    """What settings share whose draws are taken to be as noisy."""
    return setting.size, setting.learning_rate, setting.control


def _pairs(grid: dict[Setting, list[Column]], size: int, against: int) -> dict[int, list[Pair]]:
    """Models of two sizes of the grid, of the same draw, by training level."""
    held = {(setting.level, setting.size): {c.draw: c for c in columns} for setting, columns in grid.items()}
    found = {}
    for level in sorted({setting.level for setting in grid}):
        first, second = held.get((level, size), {}), held.get((level, against), {})
        if shared := sorted(first.keys() & second.keys()):
            found[level] = [(first[draw], second[draw]) for draw in shared]
    return found


def _noise(alike: Sequence[Units]) -> DrawNoise | None:
    values = [np.asarray([part.value for _, part in units if part.known]) for units in alike]
    return pooled_noise([its for its in values if len(its) > 1])
