"""What a session leaves in memory: nothing, as soon as nobody has it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from knowshift.models.loading import LoadedModel
from knowshift.models.sampling.expected import ExpectedSession
from knowshift.models.sampling.session import TreeSession
from knowshift.models.sampling.settings import Sampling

PROMPTS, ACCEPTED, STREAMS = ["Ann was born in", "Who is"], [("Rome",), ("Ann",)], ["a/0", "b/0"]


@pytest.fixture
def no_cycles_are_looked_for() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def drawn(loaded: LoadedModel) -> TreeSession:
    session = TreeSession(loaded, PROMPTS, ACCEPTED, Sampling(draws_per_prompt=3), streams=STREAMS)
    session.draw([np.arange(3)] * 2)
    session.direct(np.arange(2))
    return session


def expected(loaded: LoadedModel) -> ExpectedSession:
    session = ExpectedSession(loaded, PROMPTS, ACCEPTED, Sampling(draws_per_prompt=3), 2, streams=STREAMS)
    session.read()
    session.draw([np.arange(2)] * 2)
    return session


@pytest.mark.usefixtures("no_cycles_are_looked_for")
@pytest.mark.parametrize("make", [drawn, expected])
def test_a_session_goes_with_its_caches_when_its_last_name_does(
    make: Callable[[LoadedModel], TreeSession | ExpectedSession], small_model: LoadedModel
) -> None:
    session = make(small_model)
    held = [weakref.ref(session), weakref.ref(session._walk)]
    del session
    assert [one() for one in held] == [None, None]
