"""What tests of strategies share, beside the fixtures of tests/strategies/conftest.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts

#: The weights of a model by name.
Weights = dict[str, torch.Tensor]
#: The weights before and after a training by the strategy of this name, with these settings.
Trained = Callable[..., tuple[Weights, Weights]]


def known_by_heart(facts: Sequence[Fact]) -> KnownFacts:
    """Facts with a mastery record in which all are of level 4."""
    return KnownFacts({fact.id: fact for fact in facts}, [{"fact": fact.id, "level": 4} for fact in facts])
