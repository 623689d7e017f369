"""How well a model knows a fact: sampled hit rates over its completion prompts, and the five levels (paper 2.3)."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.errors import InputError, nearest
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling import SampledHits, sample
from knowshift.records import MASTERY, write_table

DRAWS = 10  # of each prompt
TEMPERATURE = 0.7
NEW_TOKENS = 32
LEVELS = 5
STOPPING = ("full",)


@dataclass(frozen=True)
class Protocol:
    """How mastery is measured; the defaults are the paper's (2.3)."""

    draws_per_prompt: int = DRAWS
    temperature: float = TEMPERATURE
    max_new_tokens: int = NEW_TOKENS
    seed: int = 0
    stopping: str = "full"


class Engine(typing.Protocol):
    """What mastery needs of a model: a transformers model in this process, or a completions server."""

    def about(self) -> dict[str, Any]:
        """What records say of it; ``identity`` tells models apart."""

    def sample(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        *,
        keys: Sequence[str],
        seed: int,
        draws: int,
        temperature: float,
        max_new_tokens: int,
        begun: Callable[[int], None],
    ) -> SampledHits:
        """See :func:`knowshift.models.sampling.sample`."""


def level_of(hits: int, draws: int) -> int:
    """The mastery level of R = hits / draws: 0 if R = 0, else 1 to 4 for (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1].

    In integers, so that a rate on a boundary is never moved by rounding. Raises ValueError outside 0 <= hits <= draws.
    """
    if draws <= 0 or not 0 <= hits <= draws:
        raise ValueError(f"no level for {hits} hits of {draws} draws")
    return -(-4 * hits // draws)


@dataclass(frozen=True)
class MasteryRecord:
    """Columns of ``records.MASTERY``, one row per fact in the order asked, and what they cost."""

    columns: dict[str, list[Any]]
    positions: int  # token positions computed

    def levels(self) -> dict[str, int | None]:
        """Level by fact id; None where it could not be measured."""
        return dict(zip(self.columns["fact"], self.columns["level"], strict=True))

    def counts(self) -> list[int]:
        """Facts of each level [n0..n4]."""
        return [self.columns["level"].count(level) for level in range(LEVELS)]

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        write_table(path, MASTERY, self.columns, about)


def measure_mastery(
    engine: LoadedModel | Engine,
    facts: Sequence[Fact],
    *,
    draws_per_prompt: int = DRAWS,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = NEW_TOKENS,
    seed: int = 0,
    stopping: str = "full",
    progress: Callable[[int], None] | None = None,
) -> MasteryRecord:
    """Sample every completion prompt of every fact and count the draws that hold an accepted answer.

    A draw belongs to (seed, fact id, prompt number, draw number), so a fact's row does not depend on which facts are
    measured with it, but for float rounding (see :func:`knowshift.models.sampling.sample`).

    Args:
        progress: hears how many more prompts have been begun.
    """
    if stopping not in STOPPING:
        raise InputError(f"stopping rule {stopping!r} is unknown{nearest(stopping, STOPPING)}")
    prompts: list[str] = []
    accepted: list[tuple[str, ...]] = []
    keys: list[str] = []
    sizes: list[int] = []
    for fact in facts:
        own = completion_prompts(fact)
        if not own:
            raise InputError(f"fact {fact.id}: no completion prompts")
        prompts.extend(own)
        accepted.extend([fact.accepted] * len(own))
        keys.extend(f"{fact.id}/{i}" for i in range(len(own)))
        sizes.append(len(own))
    draw = functools.partial(sample, engine) if isinstance(engine, LoadedModel) else engine.sample
    found = draw(
        prompts,
        accepted,
        keys=keys,
        seed=seed,
        draws=draws_per_prompt,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        begun=progress or (lambda count: None),
    )
    hits = [part.tolist() for part in np.split(found.hits, np.cumsum(sizes)[:-1])] if facts else []
    draws = [[draws_per_prompt] * size for size in sizes]
    return MasteryRecord(columns_of(facts, hits, draws), found.positions)


def columns_of(
    facts: Sequence[Fact], prompt_hits: Sequence[Sequence[int]], prompt_draws: Sequence[Sequence[int]]
) -> dict[str, list[Any]]:
    """Columns of ``records.MASTERY`` from the hits and draws of every prompt of every fact."""
    hits, draws = [sum(row) for row in prompt_hits], [sum(row) for row in prompt_draws]
    return {
        "fact": [fact.id for fact in facts],
        "relation": [fact.relation for fact in facts],
        "split": [fact.split for fact in facts],
        "domain": [fact.domain for fact in facts],
        "exposures": [fact.exposures for fact in facts],
        "prompt_hits": [list(row) for row in prompt_hits],
        "prompt_draws": [list(row) for row in prompt_draws],
        "hits": hits,
        "draws": draws,
        "rate": [hit / draw for hit, draw in zip(hits, draws, strict=True)],
        "level": [level_of(hit, draw) for hit, draw in zip(hits, draws, strict=True)],
        "reason": [None] * len(facts),
    }
