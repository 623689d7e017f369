"""A first look at which facts a base may know, so that a budget goes to facts of which something can be lost.

Most facts are unknown to a small model, and of an unknown fact nothing can be lost. With a budget, a few short texts of
a few prompts say of many facts which are likely known; the budget then asks as many of these as of others. The look
has random numbers of its own, and the three measurements compare the facts asked among themselves, so it biases none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from knowshift.audits.plan import Screened
from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.files import read_json, write_json
from knowshift.probing.budget.plan import Budget
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Protocol
from knowshift.probing.run import run_mastery
from knowshift.records import MASTERY, read_table

#: Share of a budget for the look.
SHARE = 0.12
#: Prompts of a fact, texts of a prompt, tokens of a text: enough to see an answer that comes at once.
PROMPTS, TEXTS, TOKENS = 3, 2, 8
#: R in such texts from which a fact is likely known.
LIKELY = 0.1
#: Facts, and seconds for the look, below which there is none.
FEWEST, SHORTEST = 100, 30.0
#: In the folder of records: what the look came to.
FILE = "screen.json"


def screen(
    spec: EngineSpec,
    facts: Sequence[Fact],
    records: Path,
    seed: int,
    budget: Budget,
    workers: int,
    tell: Callable[[int, int], None],
) -> Screened | None:
    """Which of the facts that were looked at are likely known; None where there are few facts, or no time for it.

    What an earlier call came to is read, so that a call that goes on asks the same facts.
    """
    found = records / FILE
    if not found.exists():
        looked = _look(spec, facts, records / "screen.parquet", seed, budget, workers, tell)
        write_json(found, {"rates": looked})
    rates = read_json(found).get("rates")
    if rates is None:
        return None
    looked_at = tuple(fact for fact in facts if fact.id in rates)
    return Screened(looked_at, frozenset(name for name, rate in rates.items() if rate >= LIKELY))


def _look(
    spec: EngineSpec,
    facts: Sequence[Fact],
    output: Path,
    seed: int,
    budget: Budget,
    workers: int,
    tell: Callable[[int, int], None],
) -> dict[str, float] | None:
    """R of each fact in the short texts."""
    if spec.is_server or len(facts) < FEWEST or SHARE * budget.seconds < SHORTEST:
        return None
    shortened = [replace(fact, prompts=fact.prompts[:PROMPTS]) for fact in facts]
    protocol = Protocol(seed=seed, estimate="expected", texts=TEXTS, max_new_tokens=TOKENS)
    try:
        run_mastery(
            spec,
            shortened,
            output,
            protocol,
            workers=workers,
            budget=Budget(SHARE * budget.seconds, budget.began),
            progress=lambda done, total, positions: tell(done, total),
        )
    except InputError:  # too little time; what else may be wrong, the measurement says
        return None
    columns = read_table(output, MASTERY, "mastery")[0].to_pydict()
    return dict(zip(columns["fact"], columns["rate"], strict=True))
