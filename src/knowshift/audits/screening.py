"""A first look at many facts, so that what a budget has time for are facts that the base may know.

Most facts are unknown to a small model, and of an unknown fact nothing can be lost. With a budget, a few prompts of
many facts are read, and no text is made: the probability of an answer right behind them says which facts are likely
known. The budget then asks as many of these as of others. The look draws nothing, and the three measurements compare
the facts asked among themselves, so it biases none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from knowshift.audits.plan import Screened
from knowshift.facts.fact import Fact
from knowshift.files import read_json, write_json
from knowshift.models.finding import model_folder, model_identity
from knowshift.models.loading import LoadedModel
from knowshift.probing.budget.plan import Budget, balanced_order
from knowshift.probing.budget.screening import LIKELY, promised
from knowshift.probing.engines import EngineSpec
from knowshift.probing.run import facts_digest

#: Share of a budget for the look.
SHARE = 0.12
#: Facts, and seconds for the look, below which there is none.
FEWEST, SHORTEST = 100, 30.0
#: In the folder of records: what the look came to.
FILE = "screen.json"


def screen(
    spec: EngineSpec,
    opened: Callable[[], LoadedModel],
    facts: Sequence[Fact],
    records: Path,
    seed: int,
    budget: Budget,
    tell: Callable[[int, int], None],
) -> Screened | None:
    """Which of the facts are likely known, as far as they were looked at; None where there are few, or no time for it.

    ``opened`` gives the model of ``spec``, where it is needed.

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
        told = {**about, "promises": _look(opened(), facts, seed, budget, tell)}
        write_json(found, told)
    promises = told.get("promises")
    if not promises:
        return None
    likely = frozenset(name for name, promise in promises.items() if promise >= LIKELY)
    return Screened(tuple(facts), len(promises), likely)


def _look(
    engine: LoadedModel, facts: Sequence[Fact], seed: int, budget: Budget, tell: Callable[[int, int], None]
) -> dict[str, float]:
    """What the prompts promise, of as many facts as there is time for, balanced over relations."""
    look = budget.share(SHARE)
    order = balanced_order([fact.relation for fact in facts], seed)

    def told(count: int) -> bool:
        if count:
            tell(count, len(facts))
        return look.left > 0

    return promised(engine, [facts[place] for place in order], told)
