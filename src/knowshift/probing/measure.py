"""Measuring mastery: sample every completion prompt of every fact, count the draws that hold an accepted answer."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from knowshift.errors import InputError, check_number, check_whole, nearest
from knowshift.facts.fact import LEVELS, Fact, completion_prompts
from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.expected import ExpectedSession
from knowshift.models.sampling.session import TreeSession, prompts_that_stay
from knowshift.models.sampling.settings import Sampling
from knowshift.probing.expected import MOST, Expected, Rule, draw_expected
from knowshift.probing.levels import level_of
from knowshift.probing.stopping import ERROR, STOPPING, Asked, Found, draw_exact, draw_full, draw_sequential
from knowshift.records import MASTERY_BY_ESTIMATE, estimate_of, write_table

#: What is told of a prompt: how many of its draws are hits (the paper), or how many are expected to be.
ESTIMATES = tuple(MASTERY_BY_ESTIMATE)


@dataclass(frozen=True)
class Protocol(Sampling):
    """How mastery is measured: how texts are drawn, and how many of them; the defaults are the paper's (2.3).

    Raises:
        InputError: an unknown stopping rule, grading or estimate, a number out of range, or settings of the other
            estimate.
    """

    stopping: str = "full"  # "full", "exact" or "sequential"; see :mod:`knowshift.probing.stopping`
    error: float = ERROR  # of ``sequential``, between 0 and 1; the other rules make no error
    estimate: str = "hits"  # "hits" (the paper's) or "expected"; see :mod:`knowshift.probing.expected`
    texts: int | None = None  # of each prompt, for "expected": how many ``full`` makes, the most of ``sequential``;
    # None: as many as their spread asks for
    least_weight: float | None = None  # of a text, for "expected"; None: CARRIED of models.sampling.expected

    def __post_init__(self) -> None:
        if self.estimate not in ESTIMATES:
            raise InputError(f"estimate {self.estimate!r} is unknown{nearest(self.estimate, ESTIMATES)}")
        if self.estimate == "hits" and self.texts is not None:
            raise InputError(f"{self.texts} texts: expected with --estimate expected only; --draws is for hits")
        if self.estimate == "hits" and self.least_weight is not None:
            raise InputError(f"least weight {self.least_weight} of a text: expected with --estimate expected only")
        if self.estimate == "expected":
            if self.stopping == "exact":
                raise InputError("stopping rule 'exact' counts hits; with --estimate expected use full or sequential")
            if self.grading != "substring":
                raise InputError(f"grading {self.grading!r}: --estimate expected grades by substring only")
            if self.texts is not None:
                check_whole("texts of a prompt", self.texts, 2)
            if self.least_weight is not None:
                expected = " of a text: expected a number above 0, and below 10"  # where one text in ten goes on
                object.__setattr__(
                    self, "least_weight", check_number("least weight", self.least_weight, expected, 0, 10)
                )
        if self.stopping not in STOPPING:
            raise InputError(f"stopping rule {self.stopping!r} is unknown{nearest(self.stopping, STOPPING)}")
        between = " of the stopping rule: expected a number between 0 and 1"
        object.__setattr__(self, "error", check_number("error rate", self.error, between, 0, 1))
        super().__post_init__()

    @property
    def texts_rule(self) -> Rule:
        """How many texts each prompt gets with ``estimate`` "expected"."""
        error = self.error if self.stopping == "sequential" else None
        most = MOST if self.texts is None else self.texts
        return Rule(most, self.texts is not None and error is None, error, self.draws_per_prompt)

    def about(self) -> dict[str, Any]:
        """What records say of it. A record of hits does not say so: its columns do."""
        told = asdict(self)
        del told["estimate"], told["texts"], told["least_weight"]
        if self.estimate == "hits":
            return told
        kept = {} if self.least_weight is None else {"least_weight": self.least_weight}
        return {**told, "estimate": self.estimate, "texts": self.texts_rule.told, **kept}


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

    def check_expected(self) -> None:
        """Raise InputError where :meth:`expected` cannot work."""

    def expected(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        texts: int,
        *,
        streams: Sequence[str],
    ) -> Any:
        """As :class:`knowshift.models.sampling.expected.ExpectedSession`: ``read``, ``draw``, ``value``, ``positions``.

        Its values are draws, in part at least: what no text has met is unknown.
        """


@dataclass(frozen=True)
class MasteryRecord:
    """Columns of ``records.MASTERY`` or ``records.EXPECTED``, a row per fact in the order asked, and what they cost."""

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
        write_table(path, MASTERY_BY_ESTIMATE[estimate_of(self.columns)], self.columns, about)


def joined_records(records: Sequence[MasteryRecord]) -> MasteryRecord:
    """Several records of one estimate, at least one, as one."""
    columns = {name: [value for record in records for value in record.columns[name]] for name in records[0].columns}
    return MasteryRecord(columns, sum(record.positions for record in records))


def measure_mastery(
    engine: LoadedModel | Engine,
    facts: Sequence[Fact],
    protocol: Protocol = PAPER_PROTOCOL,
    *,
    progress: Callable[[int, int], None] = lambda prompts, positions: None,
) -> MasteryRecord:
    """Sample the completion prompts of every fact and count the draws that hold an accepted answer (paper 2.3).

    A draw belongs to (seed, fact id, prompt number, draw number), so a fact's row does not depend on which facts are
    measured with it, but for float rounding (see :class:`knowshift.models.sampling.session.TreeSession`).

    Args:
        progress: called with (prompts begun, token positions computed) since it was called before.

    Raises:
        InputError: a grading that the engine cannot do, or a fact without prompts or with an empty answer, or with a
            prompt that does not fit into the model's context.
    """
    check_engine(engine, protocol)
    if protocol.estimate == "expected":
        return _expected(engine, facts, protocol, _Progress(progress))

    told = _Progress(progress)

    def open_session(
        prompts: Sequence[str], accepted: Sequence[Sequence[str]], streams: Sequence[str], lasting: bool
    ) -> Any:
        if isinstance(engine, LoadedModel):
            # First tokens cannot tell what the word rule expects: it takes answers in other spellings too.
            watch = lasting and protocol.grading == "substring"
            session: Any = TreeSession(engine, prompts, accepted, protocol, streams=streams, keep=lasting, watch=watch)
        else:
            session = engine.session(prompts, accepted, protocol, streams=streams)
        return told.of(session)

    hits: list[list[int]] = []
    draws: list[list[int]] = []
    positions = 0
    for group in _groups(engine, facts, lasting=protocol.stopping == "sequential"):
        asked = _asked(group, protocol.draws_per_prompt)
        if protocol.stopping == "full":
            found: Found = draw_full(open_session, asked, protocol.seed, told.begun)
        elif protocol.stopping == "exact":
            found = draw_exact(open_session, asked, protocol.seed, told.begun)
        else:
            found = draw_sequential(open_session, asked, protocol.seed, told.begun, protocol.error)
        told.begun(0)  # the positions since the last prompt was begun
        hit, used = found
        positions += used
        hits += [(hit[where] == 1).sum(axis=1).tolist() for where in asked.facts]
        draws += [(hit[where] >= 0).sum(axis=1).tolist() for where in asked.facts]
    return MasteryRecord(columns_of(facts, hits, draws), positions)


class _Progress:
    """Tells of prompts as they are begun, with the token positions of the session that is drawing."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell, self._session, self._positions = tell, None, 0

    def of(self, session: Any) -> Any:
        """The same session, whose positions are told from now on."""
        self._session, self._positions = session, 0
        return session

    def begun(self, prompts: int) -> None:
        assert self._session is not None
        positions = self._session.positions
        self._tell(prompts, positions - self._positions)
        self._positions = positions


def check_engine(engine: LoadedModel | Engine, protocol: Protocol) -> None:
    """Refuse what only a model in this process can do."""
    if protocol.grading != "substring" and not isinstance(engine, LoadedModel):
        raise InputError(f"grading {protocol.grading!r}: {engine.about()['engine']} is graded by substring only")
    if protocol.estimate == "expected" and not isinstance(engine, LoadedModel):
        if protocol.least_weight is not None:
            raise InputError(
                f"least weight {protocol.least_weight} of a text: a server draws whole texts; "
                "expected none, or a model in this process"
            )
        engine.check_expected()


def _expected(
    engine: LoadedModel | Engine, facts: Sequence[Fact], protocol: Protocol, told: _Progress
) -> MasteryRecord:
    """Mastery by expected hits."""
    rule, draws = protocol.texts_rule, protocol.draws_per_prompt
    texts, drawn = rule.most, not isinstance(engine, LoadedModel)

    def open_session(prompts: Sequence[str], accepted: Sequence[Sequence[str]], streams: Sequence[str]) -> Any:
        if isinstance(engine, LoadedModel):
            session: Any = ExpectedSession(
                engine, prompts, accepted, protocol, texts, streams=streams, least_weight=protocol.least_weight
            )
        else:
            session = engine.expected(prompts, accepted, protocol, texts, streams=streams)
        return told.of(session)

    found: list[Expected] = []
    positions = 0
    for group in _groups(engine, facts, lasting=True):
        its, used = draw_expected(open_session, _asked(group, draws), rule, told.begun, drawn=drawn)
        told.begun(0)
        found += its
        positions += used
    return MasteryRecord(_expected_columns(facts, found, draws), positions)


def _expected_columns(facts: Sequence[Fact], found: Sequence[Expected], draws: int) -> dict[str, list[Any]]:
    """Columns of ``records.EXPECTED``. The level is the one that a full run has most probably."""
    chances = [its.level_probabilities(draws) for its in found]
    return {
        **_columns_of_facts(facts),
        "prompt_hits": [its.sums for its in found],
        "prompt_squares": [its.squares for its in found],
        "prompt_draws": [its.texts for its in found],
        "hits": [sum(its.sums) for its in found],
        "draws": [sum(its.texts) for its in found],
        "rate": [its.rate for its in found],
        "variance": [its.variance for its in found],
        "level": [int(chance.argmax()) for chance in chances],
        **{f"level_{level}": [float(chance[level]) for chance in chances] for level in range(LEVELS)},
    }


def _columns_of_facts(facts: Sequence[Fact]) -> dict[str, list[Any]]:
    return {
        "fact": [fact.id for fact in facts],
        "relation": [fact.relation for fact in facts],
        "split": [fact.split for fact in facts],
        "domain": [fact.domain for fact in facts],
        "exposures": [fact.exposures for fact in facts],
    }


def columns_of(
    facts: Sequence[Fact], prompt_hits: Sequence[Sequence[int]], prompt_draws: Sequence[Sequence[int]]
) -> dict[str, list[Any]]:
    """Columns of ``records.MASTERY`` from the hits and draws of every prompt of every fact."""
    hits, draws = [sum(row) for row in prompt_hits], [sum(row) for row in prompt_draws]
    return {
        **_columns_of_facts(facts),
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


def _groups(engine: LoadedModel | Engine, facts: Sequence[Fact], lasting: bool) -> Iterator[Sequence[Fact]]:
    """All facts at once, but as many as memory bounds allow where their prompts stay read between rounds."""
    size = len(facts)
    if lasting and isinstance(engine, LoadedModel) and facts:
        size = max(1, prompts_that_stay(engine) // len(completion_prompts(facts[0])))
    for start in range(0, len(facts), max(1, size)):
        yield facts[start : start + size]
