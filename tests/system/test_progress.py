"""Counts of what is done: a bar where somebody sees it, lines for a log, and an honest time left."""

from __future__ import annotations

import time

import pytest

from knowshift.system import progress
from knowshift.system.progress import count, duration
from knowshift.system.workers import Tally, process_pool, results


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_the_pace_since_the_first_call_and_come_now_and_again(clock: list[float]) -> None:
    lines: list[str] = []
    with count("mastery", 500, "fact", lines.append) as tell:
        clock[0] += 60  # loading the model sets no pace
        tell(100)
        for _ in range(50):
            clock[0] += 2
            tell(100 + int(clock[0] - 1060), "412 positions/s")
    assert lines == [
        "mastery: 106 of 500 facts, 412 positions/s, about 7 min left",
        "mastery: 136 of 500 facts, 412 positions/s, about 6 min left",
        "mastery: 166 of 500 facts, 412 positions/s, about 6 min left",
        "mastery: 196 of 500 facts, 412 positions/s, about 5 min left",
    ]


def test_no_line_without_progress_or_at_the_end(clock: list[float]) -> None:
    lines: list[str] = []
    with count("mastery", 10, "fact", lines.append) as tell:
        tell(4)
        clock[0] += 100
        tell(4)
        tell(10)
    assert lines == []


def test_few_units_tell_no_time_left(clock: list[float]) -> None:
    lines: list[str] = []
    with count("mastery", 1000, "fact", lines.append) as tell:
        tell(0)
        for done in (1, 4, 5):
            clock[0] += 40
            tell(done)
    assert lines == [
        "mastery: 1 of 1000 facts",
        "mastery: 4 of 1000 facts",
        "mastery: 5 of 1000 facts, about 6 h 38 min left",
    ]


def test_a_bar_begins_at_what_was_done_before(capsys: pytest.CaptureFixture[str]) -> None:
    with count("mastery", 10, "fact", True) as tell:
        tell(8)
        time.sleep(0.2)
        tell(9, "5 positions/s")
        time.sleep(0.2)
        tell(10)
    shown = capsys.readouterr().err
    assert "9/10" in shown
    assert "5 positions/s" in shown
    with count("mastery", 10, "fact", False) as tell:
        tell(8)
        tell(10, "x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "2 h 0 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


_given: Tally | None = None


def _begin(tally: Tally, number: int) -> None:
    global _given
    _given = tally


def _work(turn: int) -> int:
    assert _given is not None
    _given.add(1, 10)
    time.sleep(0.3)
    return turn


def test_workers_add_to_one_tally_that_is_looked_at_meanwhile() -> None:
    tally, seen = Tally(2), set()
    with process_pool(2, _begin, tally) as pool:
        calls = [(turn,) for turn in range(6)]
        found = list(results(pool, _work, calls, ahead=2, meanwhile=lambda: seen.add(tally.read()), every=0.05))
    assert sorted(found) == list(range(6))
    assert tally.read() == (6, 60)
    assert len(seen) > 2
