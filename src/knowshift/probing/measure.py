"""Measuring mastery: sample every completion prompt of every fact, count the draws that hold an accepted answer."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowshift.errors import InputError, nearest
from knowshift.facts.fact import LEVELS, Fact, completion_prompts
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.session import TreeSession, prompts_that_stay
from knowshift.models.sampling.settings import Sampling
from knowshift.probing.levels import level_of
from knowshift.probing.stopping import ERROR, STOPPING, Asked, Found, draw_exact, draw_full, draw_sequential
from knowshift.records import MASTERY, write_table


@dataclass(frozen=True)
class Protocol(Sampling):
    """How mastery is measured: how texts are drawn, and how many of them; the defaults are the paper's (2.3).

    Raises:
        InputError: an unknown stopping rule or grading, or an error rate that is none.
    """

    stopping: str = "full"  # "full", "exact" or "sequential"; see :mod:`knowshift.probing.stopping`
    error: float = ERROR  # of ``sequential``, between 0 and 1; the other rules make no error

    def __post_init__(self) -> None:
        if self.stopping not in STOPPING:
            raise InputError(f"stopping rule {self.stopping!r} is unknown{nearest(self.stopping, STOPPING)}")
        if not 0 < self.error < 1:
            raise InputError(f"error rate {self.error} of the stopping rule: expected a number between 0 and 1")
        super().__post_init__()


#: The protocol of the paper.
PAPER_PROTOCOL = Protocol()


class Engine(typing.Protocol):
    """What mastery needs of an engine other than a model in this process, such as a completions server."""

    def about(self) -> dict[str, Any]:
        """What records say of it; ``identity`` tells models apart."""

    def session(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        *,
        streams: Sequence[str],
    ) -> Any:
        """What :class:`knowshift.models.sampling.session.TreeSession` is: ``draw``, ``hit``, ``positions``."""


@dataclass(frozen=True)
class MasteryRecord:
    """Columns of ``records.MASTERY``, one row per fact in the order asked, and what they cost."""

    columns: dict[str, list[Any]]
    positions: int  # token positions computed

    def levels(self) -> dict[str, int]:
        """Level by fact id."""
        return dict(zip(self.columns["fact"], self.columns["level"], strict=True))

    def counts(self) -> list[int]:
        """Facts of each level [n0..n4]."""
        return [self.columns["level"].count(level) for level in range(LEVELS)]

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write the record as Parquet; ``about`` travels in the file."""
        write_table(path, MASTERY, self.columns, about)


def measure_mastery(
    engine: LoadedModel | Engine,
    facts: Sequence[Fact],
    protocol: Protocol = PAPER_PROTOCOL,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> MasteryRecord:
    """Sample the completion prompts of every fact and count the draws that hold an accepted answer (paper 2.3).

    A draw belongs to (seed, fact id, prompt number, draw number), so a fact's row does not depend on which facts are
    measured with it, but for float rounding (see :class:`knowshift.models.sampling.session.TreeSession`).

    Args:
        progress: hears how many more prompts have been begun.

    Raises:
        InputError: a grading that the engine cannot do, or a fact without prompts or with an empty answer, or with a
            prompt that does not fit into the model's context.
    """
    check_engine(engine, protocol)

    def open_session(
        prompts: Sequence[str], accepted: Sequence[Sequence[str]], streams: Sequence[str], lasting: bool
    ) -> Any:
        if isinstance(engine, LoadedModel):
            # First tokens cannot tell what the word rule expects: it takes answers in other spellings too.
            watch = lasting and protocol.grading == "substring"
            return TreeSession(engine, prompts, accepted, protocol, streams=streams, keep=lasting, watch=watch)
        return engine.session(prompts, accepted, protocol, streams=streams)

    hits: list[list[int]] = []
    draws: list[list[int]] = []
    positions = 0
    for group in _groups(engine, facts, protocol.stopping):
        asked = _asked(group, protocol.draws_per_prompt)
        if protocol.stopping == "full":
            found: Found = draw_full(open_session, asked, protocol.seed, progress)
        elif protocol.stopping == "exact":
            found = draw_exact(open_session, asked, protocol.seed, progress)
        else:
            found = draw_sequential(open_session, asked, protocol.seed, progress, protocol.error)
        hit, used = found
        positions += used
        hits += [(hit[where] == 1).sum(axis=1).tolist() for where in asked.facts]
        draws += [(hit[where] >= 0).sum(axis=1).tolist() for where in asked.facts]
    return MasteryRecord(columns_of(facts, hits, draws), positions)


def check_engine(engine: LoadedModel | Engine, protocol: Protocol) -> None:
    """Refuse what only a model in this process can do."""
    if protocol.grading != "substring" and not isinstance(engine, LoadedModel):
        raise InputError(f"grading {protocol.grading!r}: {engine.about()['engine']} is graded by substring only")


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
    }


def _asked(facts: Sequence[Fact], draws: int) -> Asked:
    asked = Asked([], [], [], [], [], draws)
    for fact in facts:
        own = completion_prompts(fact)
        start = len(asked.prompts)
        asked.facts.append(slice(start, start + len(own)))
        asked.prompts.extend(own)
        asked.accepted.extend([fact.accepted] * len(own))
        asked.streams.extend(f"{fact.id}/{i}" for i in range(len(own)))
        asked.names.append(fact.id)
    return asked


def _groups(engine: LoadedModel | Engine, facts: Sequence[Fact], stopping: str) -> Iterator[Sequence[Fact]]:
    """All facts at once, but as many as memory bounds allow where their prompts stay read between rounds."""
    size = len(facts)
    if stopping == "sequential" and isinstance(engine, LoadedModel) and facts:
        size = max(1, prompts_that_stay(engine) // len(completion_prompts(facts[0])))
    for start in range(0, len(facts), max(1, size)):
        yield facts[start : start + size]
