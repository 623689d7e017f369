"""A first look at which facts a base may know, so that a budget goes to facts of which something can be lost.

Most facts are unknown to a small model, and of an unknown fact nothing can be lost. With a budget, a few short texts of
a few prompts say of many facts whether they are likely known; the budget then asks as many of these as of others. The
look has random numbers of its own, and the three measurements compare the facts asked among themselves, so it biases
none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from knowshift.audits.plan import Screened
from knowshift.facts.fact import Fact
from knowshift.files import read_json, write_json
from knowshift.models.finding import model_folder, model_identity
from knowshift.probing.budget.plan import Budget, balanced_order
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.probing.run import facts_digest

#: Share of a budget for the look.
SHARE = 0.12
#: Prompts of a fact, texts of a prompt, tokens of a text: enough to see an answer that comes at once.
PROMPTS, TEXTS, TOKENS = 3, 2, 8
#: Facts looked at together; the time is looked at between two such batches.
BATCH = 32
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
    tell: Callable[[int, int], None],
) -> Screened | None:
    """Which of the facts are likely known, as far as they were looked at; None where there are few, or no time for it.

    What an earlier call came to is read, so that a call that goes on asks the same facts; where that call has begun to
    measure without a look, there is none. A look at another model or at other facts is made anew.

    Raises:
        InputError: a model that cannot be opened.
    """
    if spec.is_server or len(facts) < FEWEST or SHARE * budget.seconds < SHORTEST:
        return None
    found = records / FILE
    about = {"facts": facts_digest(facts), "model": model_identity(model_folder(spec.name, revision=spec.revision))}
    told = read_json(found) if found.exists() else {}
    if {name: told.get(name) for name in about} != about:
        if any(records.glob("base.parquet*")):
            return None
        records.mkdir(exist_ok=True)
        told = {**about, "rates": _look(spec, facts, seed, budget, tell)}
        write_json(found, told)
    rates = told.get("rates")
    if not rates:
        return None
    return Screened(tuple(facts), len(rates), frozenset(name for name, rate in rates.items() if rate >= LIKELY))


def _look(
    spec: EngineSpec, facts: Sequence[Fact], seed: int, budget: Budget, tell: Callable[[int, int], None]
) -> dict[str, float]:
    """R in the short texts, of as many facts as there is time for, balanced over relations."""
    ends = time.monotonic() + SHARE * budget.left
    engine = spec.open()
    protocol = Protocol(seed=seed, estimate="expected", texts=TEXTS, max_new_tokens=TOKENS)
    order = balanced_order([fact.relation for fact in facts], seed)
    rates: dict[str, float] = {}
    for start in range(0, len(order), BATCH):
        if time.monotonic() > ends:
            break
        some = [facts[place] for place in order[start : start + BATCH]]
        shortened = [replace(fact, prompts=fact.prompts[:PROMPTS]) for fact in some]
        columns = measure_mastery(engine, shortened, protocol).columns
        rates |= zip(columns["fact"], columns["rate"], strict=True)
        tell(len(rates), len(facts))
    return rates
