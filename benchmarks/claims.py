"""How often a study says "shown" where nothing has an effect: every claim of the report, on simulated answers.

    python benchmarks/claims.py [--studies 300] [--facts 600] [--draws 3] [--seed 1] [--relation-effect 0.0]

Models of three training levels, three sizes, a smaller learning rate, and two criteria with two fractions restored. The
chance that a model answers a fact rightly is, on the scale of log-odds, the sum of

- what the fact, its relation and its mastery level make of it, alike for every model (deviations 1, 0.5; 0.8 a level);
- what its training set adds: a draw of one training level moves all answers (0.2) and each relation (0.2), alike at
  every size, as sets are nested;
- what one training adds: all answers (0.1), and each relation (0.1);
- with ``--relation-effect``, what a setting adds to each relation in every draw: then no setting is better for
  relations at large, but some are for the 24 asked about.

Answers are drawn from these chances. KL to the base is such a sum itself, in nats, of a fact (0.3), a draw (0.05) and
chance (0.3). The share of relative change in the top weights minus its null, in points, is a sum of what a draw of one
training level adds, alike at every size (0.5), and chance (0.5). So of every claim the truth is that there is no
effect.

Printed: a row for each claim (those of one training level together) with the share of studies that say "shown" and the
share whose interval with relations as clusters lies above 0, each with its standard error. Both tests are of the upper
half of a two-sided 5%, so 2.5% is what they should be.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.reports.evidence.answers import Column, RecordedAnswers
from knowshift.reports.evidence.evidence import Change, Evidence, TokenShifts
from knowshift.reports.evidence.run_folder import RATE_CONTROL, RecordedCell, Run, Setting
from knowshift.reports.evidence.scores import Scores
from knowshift.reports.findings.build import find

RATE = 1e-3
RESTORED = [(criterion, fraction) for criterion in ("relative", "random") for fraction in (0.2, 0.6)]
#: Shares of the weights that changed most.
TOP = ("0.01", "0.2")
#: Relations of each domain, as in EntityQuestions.
RELATIONS = (10, 14)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """The test facts of a study, F of each."""

    domain: Integers
    level: Integers
    relation: Integers


def asked(facts: int, rng: np.random.Generator) -> Asked:
    """Facts of both domains and all levels in turn, in relations of very different sizes."""
    place = np.arange(facts)
    domain, level = place % 2, place // 2 % LEVELS
    relation = np.zeros(facts, dtype=np.int64)
    for number, relations in enumerate(RELATIONS):
        share = 1 / np.arange(1, relations + 1) ** 0.5
        drawn = rng.choice(relations, size=int((domain == number).sum()), p=share / share.sum())
        relation[domain == number] = sum(RELATIONS[:number]) + drawn
    return Asked(domain, level, relation)


def columns_of(levels: Iterable[int], sizes: tuple[int, ...], draws: int) -> list[Column]:
    """The base, the grid, the largest size at a smaller rate, and the largest size restored."""
    grid = [Setting(level, size, RATE, "") for level in levels for size in sizes]
    largest = [setting for setting in grid if setting.size == sizes[-1]]
    slow = [Setting(one.level, one.size, RATE / 3, RATE_CONTROL) for one in largest]
    found = [Column(None, 0, prompt="zero_shot")]
    found += [Column(setting, draw) for setting in (*grid, *slow) for draw in range(draws)]
    found += [Column(one, draw, *restored) for one in largest for restored in RESTORED for draw in range(draws)]
    return found


def evidence_of(
    about: Asked,
    columns: list[Column],
    answers: NDArray[np.bool_],
    word: NDArray[np.bool_] | None,
    kl: Floats,
    replicates: int,
    changes: tuple[Change, ...] = (),
) -> Evidence:
    """What a report is computed from: answers (F x C), and KL in nats (level-4 facts x tuned columns), in memory.

    Where ``word``, the answers under the other grader, is left out, contrasts are not repeated three ways.
    """
    shared = {"domain": about.domain, "level": about.level, "columns": columns, "replicates": replicates}
    scores = Scores(answers, relation=about.relation, **shared)  # type: ignore[arg-type]
    recorded = RecordedAnswers(
        facts=(),
        relation=(),
        domain=about.domain,
        level=about.level,
        columns=tuple(columns),
        substring=answers,
        word=answers,
        empty=np.zeros_like(answers),
        files=(),
        dropped=0,
    )
    run = Run(Path("simulated"), {"config": {"learning_rate": RATE}}, (), 0)
    other, by_relation = scores, scores
    if word is not None:
        other = Scores(word, **shared)  # type: ignore[arg-type]
        by_relation = Scores(answers, cluster=about.relation, **shared)  # type: ignore[arg-type]
    found = Evidence(run, pa.table({}), recorded, scores, other, by_relation, changes=changes)
    known = about.level == LEVELS - 1
    tuned = [column for column in columns if column.setting and not column.criterion]
    shifts = Scores(kl, about.domain[known], about.level[known], tuned, replicates=replicates)
    vars(found)["token_shifts"] = TokenShifts(shifts, int(known.sum()), (), ())
    return found


def without_effect(
    rng: np.random.Generator, facts: int, draws: int, relation_effect: float = 0.0, replicates: int = 200
) -> Evidence:
    """A study whose settings are all equally good; see the head of this file."""
    about = asked(facts, rng)
    relations = sum(RELATIONS)
    columns = columns_of((0, 1, 2), (60, 240, 960), draws)
    shared = rng.standard_normal(facts) + 0.5 * rng.standard_normal(relations)[about.relation]
    shared += 0.8 * (about.level - 2)
    sets = {(level, draw): _moves(rng, relations, 0.2, 0.2) for level in range(3) for draw in range(draws)}
    settings: dict[tuple[Setting | None, str, float], Floats] = {}
    answers = np.zeros((facts, len(columns)), dtype=bool)
    for index, column in enumerate(columns):
        odds = _moves(rng, relations, 0.1, 0.1)
        if column.setting:
            odds = odds + sets[column.setting.level, column.draw]
        key = (column.setting, column.criterion, column.fraction)
        odds = odds + settings.setdefault(key, relation_effect * rng.standard_normal(relations))
        answers[:, index] = rng.random(facts) < 1 / (1 + np.exp(-shared - odds[about.relation]))
    known = int((about.level == LEVELS - 1).sum())
    tuned = sum(column.setting is not None and not column.criterion for column in columns)
    kl = 2 + 0.3 * rng.standard_normal((known, 1)) + 0.05 * rng.standard_normal((1, tuned))
    kl = kl + 0.3 * rng.standard_normal((known, tuned))
    return evidence_of(about, columns, answers, None, kl, replicates, changes_of(columns, rng.spawn(1)[0]))


def changes_of(columns: Iterable[Column], rng: np.random.Generator) -> tuple[Change, ...]:
    """The concentration of the grid's changes, which is that of the null but for noise."""
    found, sets = [], {}
    for column in columns:
        if column.setting is None or column.setting.control or column.criterion:
            continue
        key = (column.setting.level, column.draw)
        sets.setdefault(key, 0.005 * rng.standard_normal(2))
        shares = np.array([0.7, 0.9]) + sets[key] + 0.005 * rng.standard_normal(2)
        told = {"relative": dict(zip(TOP, shares.tolist(), strict=True))}
        cell = RecordedCell("weight_change", "", {**asdict(column.setting), "draw": column.draw}, Path("simulated"))
        found.append(Change(cell, told, {"relative": dict(zip(TOP, (0.7, 0.9), strict=True))}, {}))
    return tuple(found)


def _moves(rng: np.random.Generator, relations: int, every: float, each: float) -> Floats:
    """What is added to the log-odds of each relation: one number for all of them, and one for each."""
    return np.asarray(every * rng.standard_normal() + each * rng.standard_normal(relations))


@dataclass
class Count:
    """Of one kind of claim, over studies."""

    asked: int = 0
    shown: int = 0
    clustered: int = 0  # with an interval over relations
    above: int = 0  # of those

    @property
    def rate(self) -> float:
        return self.shown / self.asked


def kind(name: str) -> str:
    """Claims of one training level together, and of one domain."""
    name = re.sub(r"_level_\d+$", ", one training level", name)
    for domain in DOMAINS:
        name = name.replace(f"_{domain}", ", one domain") if name.endswith(f"_{domain}") else name
    return name


@dataclass
class Counts:
    """Of every kind of claim."""

    by_kind: dict[str, Count] = field(default_factory=dict)

    def add(self, evidence: Evidence) -> None:
        """Look for the four findings in one study."""
        for finding in find(evidence):
            for claim in (*finding.claims, *finding.controls):
                count = self.by_kind.setdefault(kind(claim.name), Count())
                count.asked += 1
                count.shown += claim.verdict == "shown"
                if claim.estimate.clustered:
                    count.clustered += 1
                    count.above += claim.estimate.clustered.interval.low > 0


def false_claims(studies: int, facts: int, draws: int, seed: int, relation_effect: float = 0.0) -> Mapping[str, Count]:
    """Every kind of claim, in so many studies without an effect."""
    counts, rng = Counts(), np.random.default_rng(seed)
    for _ in range(studies):
        counts.add(without_effect(rng, facts, draws, relation_effect))
    return counts.by_kind


def share(part: int, of: int) -> str:
    """ "2.3% ± 0.9"."""
    if not of:
        return ""
    rate = part / of
    return f"{100 * rate:.1f}% ± {100 * (rate * (1 - rate) / of) ** 0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--facts", type=int, default=600)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--relation-effect", type=float, default=0.0)
    options = parser.parse_args()
    found = false_claims(options.studies, options.facts, options.draws, options.seed, options.relation_effect)
    print("| claim | asked | shown | above 0 with relations as clusters |\n|---|---|---|---|")
    for name, count in found.items():
        row = (name, f"{count.asked:,}", share(count.shown, count.asked), share(count.above, count.clustered))
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
