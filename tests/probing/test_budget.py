"""A budget of time: its text, the facts it chooses, what they can tell, the pace, and runs that keep to it."""

from __future__ import annotations

import heapq
import json
import math
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import knowshift
from commands import Command
from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.probing import engines, run
from knowshift.probing.budget import pace, plan
from knowshift.probing.budget.pace import Pace, measure_pace
from knowshift.probing.budget.plan import Budget, Plan, balanced_order, balanced_sample, half_width, seconds_of
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import MasteryRecord, Protocol
from knowshift.probing.run import run_mastery
from knowshift.records import MASTERY, read_table
from toy_server import Toy, serving

QUICK = {"draws": 2, "max_new_tokens": 6, "workers": 1}


# -- its text ---------------------------------------------------------------------------------------------------


@given(hours=st.integers(0, 99), minutes=st.integers(0, 999), seconds=st.integers(0, 999))
def test_a_budget_is_hours_minutes_and_seconds(hours: int, minutes: int, seconds: int) -> None:
    text = "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if n)
    if text:
        total = 3600 * hours + 60 * minutes + seconds
        assert seconds_of(text) == seconds_of(total) == seconds_of(float(total)) == total


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800), (2.5, 2.5)])
def test_a_budget_as_it_is_written(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == seconds


BAD = ["", "10", "ten", "m", "10 m", "-5m", "30m1h", "1m1m", "0s", "1e3s", "٣m", "10M", 0, -1, math.nan, math.inf]


@pytest.mark.parametrize("bad", [*BAD, True, None, [60], "9" * 400 + "s", 10**400], ids=repr)
def test_another_budget_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=r"^budget .{,80}: expected a time such as 90s, 10m, 1h30m or 0.5h$"):
        seconds_of(bad)


@given(st.text(alphabet="0123456789.hms -e", max_size=12) | st.text(max_size=8))
def test_every_text_is_a_time_or_refused(text: str) -> None:
    try:
        seconds = seconds_of(text)
    except InputError:
        return
    assert 0 < seconds < math.inf
    assert set(text) <= set("0123456789.hms")


# -- which facts --------------------------------------------------------------------------------------------------


def _facts(relations: list[str]) -> list[Fact]:
    return [Fact(f"f{i}", name, "train", "in_domain", "s", "q", "a") for i, name in enumerate(relations)]


RELATIONS = st.lists(st.sampled_from("abcdefg"), max_size=60)


@given(relations=RELATIONS, seed=st.integers(0, 5), count=st.integers(0, 60))
def test_a_sample_is_balanced_nested_and_in_the_order_of_the_source(
    relations: list[str], seed: int, count: int
) -> None:
    facts = _facts(relations)
    count = min(count, len(facts))
    chosen = balanced_sample(facts, count, seed)
    assert len({fact.id for fact in chosen}) == len(chosen) == count
    assert chosen == [fact for fact in facts if fact in chosen] == balanced_sample(facts, count, seed)
    assert set(chosen) <= set(balanced_sample(facts, count + 1, seed))
    asked, there = Counter(fact.relation for fact in chosen), Counter(relations)
    have_left = [asked[name] for name in there if asked[name] < there[name]]
    most = max((asked[name] for name in there), default=0)
    assert all(most - own <= 1 for own in have_left)  # relations that ran out have fewer, and gave theirs to others


def test_the_seed_draws_relations_and_facts() -> None:
    relations = list("aaaabbbbccccdddd")
    orders = [balanced_order(relations, seed) for seed in range(40)]
    assert {relations[order[0]] for order in orders} == set("abcd")
    assert len({order[0] for order in orders}) > 10


# -- what they can tell -------------------------------------------------------------------------------------------


def test_a_half_width_is_that_of_stratified_sampling() -> None:
    """By drawing samples from a population whose relations are half known each, which is the worst case."""
    there, asked = [40, 10, 200], [8, 8, 9]
    rng = np.random.default_rng(0)
    shares = [
        sum(rng.permutation(np.arange(of) < of / 2)[:own].sum() for own, of in zip(asked, there, strict=True)) / 25
        for _ in range(20_000)
    ]
    assert 1.96 * np.std(shares) == pytest.approx(half_width(asked, there), rel=0.02)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=8))
def test_a_half_width_is_a_fraction_and_nothing_where_all_are_asked(pairs: list[tuple[int, int]]) -> None:
    asked, there = [own for own, _ in pairs], [own + more for own, more in pairs]
    assert 0 <= half_width(asked, there) <= 1
    assert (half_width(asked, there) == 0) == (asked == there)


def test_a_plan_says_what_it_can_and_cannot_tell() -> None:
    facts = _facts(["a"] * 50 + ["b"] * 50 + ["c"] * 2)
    plan = Plan.of_sample(600, facts, 22, 0, 1.25)
    assert plan.about() == {"seconds": 600, "facts": 22, "of": 102}
    assert plan.relations == {"a": (10, 50), "b": (10, 50), "c": (2, 2)}
    told = plan.told()
    assert (told["relations"], told["of_relations"], told["facts_per_second"]) == (3, 3, 1.25)
    assert told["smallest_effect"]["share_of_relation"] == pytest.approx(1.96 * (40 / 49 / 40) ** 0.5, rel=1e-4)
    assert plan.line() == (
        "budget 10 min: 22 of 102 facts over 3 relations, at 1.2 facts/s; a share of facts, or mean R, over these "
        "relations is known to ±18.0 points (95%), of one relation to ±28; left out are 80 facts"
    )
    assert Plan.of_sample(600, facts, 2, 0).line().endswith("left out are 100 facts, and 1 of 3 relations whole")
    turned = Plan.of_sample(600, facts, 20, 0, order=range(101, -1, -1))
    assert list(turned.facts) == facts[-20:]
    assert turned.told()["smallest_effect"] is None  # the facts are no random sample of theirs
    assert "±" not in turned.line()
    assert Plan.of_sample(600, facts, 102, 0).line() == "budget 10 min: all 102 facts; nothing is left out"


# -- the pace -----------------------------------------------------------------------------------------------------


PACES = st.lists(st.tuples(st.integers(1, 20), st.floats(1e-3, 50)), min_size=1, max_size=4)


@st.composite
def paces(draw: st.DrawFn) -> Pace:
    """A pace after a few rounds, each larger than the one before."""
    found = Pace(draw(st.integers(1, 4)), draw(st.integers(1, 40)))
    size = 0
    for more, seconds in draw(PACES):
        size += more
        found.add(size, seconds, size * found.workers)
    return found


@given(pace=paces(), facts=st.integers(0, 200))
def test_the_busiest_process_is_that_of_parts_dealt_out_in_turn(pace: Pace, facts: int) -> None:
    loads = [0.0] * pace.workers
    for start in range(0, facts, pace.part):
        heapq.heappush(loads, heapq.heappop(loads) + pace.batch(min(pace.part, facts - start)))
    assert pace.seconds_of(facts) == pytest.approx(max(loads))


@given(paces(), st.integers(0, 100))
def test_a_batch_takes_what_rounds_took_and_no_less_than_a_smaller_one(pace: Pace, facts: int) -> None:
    assert 0 <= pace.batch(facts) <= pace.batch(facts + 1)
    known = [pace.batch(size) / (1 + 0.5 / pace.measured**0.5) for size in pace.sizes]
    assert known == pytest.approx(list(np.maximum.accumulate(pace.seconds)))
    assert 1.25 - 1e-9 <= pace.batch(2 * pace.sizes[-1]) / pace.batch(pace.sizes[-1]) <= 2 + 1e-9


@given(paces(), st.floats(-10, 1000), st.integers(1, 300))
def test_as_many_facts_fit_as_end_in_time(pace: Pace, left: float, total: int) -> None:
    count = pace.fitting(left, total)
    assert 0 <= count <= total
    for facts in range(total + 1):
        assert (facts <= count) == (pace.seconds_of(facts) <= 0.85 * left) or facts == count == 0


@given(paces(), st.floats(-10, 1000))
def test_a_round_is_larger_than_the_last_and_ends_in_time(pace: Pace, left: float) -> None:
    size = pace.next_size(left)
    assert size == 0 or pace.sizes[-1] < size <= pace.part
    assert pace.batch(size) <= max(0.85 * left, 0)


class Clock(SimpleNamespace):
    """Time that passes only when work is done."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def _budgets_used(monkeypatch: pytest.MonkeyPatch, workers: int, slow: float) -> list[float]:
    """Shares of 40 budgets that runs take: facts differ by half of their mean, processes take time to start.

    A batch takes what its facts do, and once more the mean fact's time, ``slow`` times, for the first and less and less
    for each of eight: that is what reading the weights takes.
    """
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(plan, "time", clock)
    used = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        facts = _facts(rng.choice(list("abcdefgh"), 3000).tolist())
        kind = rng.uniform(0.02, 3.0)
        costs = dict(zip((f.id for f in facts), kind * rng.gamma(4, 0.25, 3000), strict=True))

        def seconds(batch: Any, costs: dict[str, float] = costs, kind: float = kind) -> float:
            return slow * kind * min(len(batch), 8) ** 0.5 + sum(costs[fact.id] for fact in batch)

        started = workers == 1

        def ask(batches: Any, seconds: Any = seconds) -> list[tuple[float, MasteryRecord]]:
            nonlocal started
            clock.now += 0 if started else 5.0
            started = True
            took = [seconds(batch) for batch in batches]
            clock.now += max(took)
            return [
                (one, MasteryRecord({"fact": [fact.id for fact in batch]}, 0))
                for one, batch in zip(took, batches, strict=True)
            ]

        budget = Budget(float(rng.uniform(60, 1200)), clock.now)
        clock.now += 8.0  # a model is loaded
        found = Pace(workers, 32)
        order = balanced_order([fact.relation for fact in facts], seed)
        begun = measure_pace(budget, ask, [facts[place] for place in order], found)
        measured = [name for record in begun for name in record.columns["fact"]]
        assert measured == [facts[place].id for place in order[: len(measured)]]
        count = len(measured) + found.fitting(budget.left, len(facts) - len(measured))
        rest = [fact for fact in balanced_sample(facts, count, seed) if fact.id not in measured]
        loads = [0.0] * workers
        for start in range(0, len(rest), 32):
            heapq.heapreplace(loads, loads[0] + seconds(rest[start : start + 32]))
        used.append((clock.now + max(loads) - budget.began) / budget.seconds)
    return used


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("slow", [0.0, 1.0, 4.0])
def test_runs_end_in_time_and_use_most_of_it(monkeypatch: pytest.MonkeyPatch, workers: int, slow: float) -> None:
    used = _budgets_used(monkeypatch, workers, slow)
    assert sum(share > 1 for share in used) <= 1
    assert np.median(used) > 0.7


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PART", 10)


@pytest.mark.parametrize(
    "how",
    [{"stopping": "full"}, {"stopping": "exact"}, {"stopping": "sequential"}, {"estimate": "expected"}],
    ids=lambda how: "-".join(how.values()),
)
def test_a_run_keeps_to_its_budget_and_is_that_of_the_facts_it_chose(
    small_world: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    source, output = f"world:{small_world}", tmp_path / "m.parquet"
    lines: list[str] = []
    done = knowshift.mastery(
        small_world, source, output=output, budget=6, progress=lines.append, workers=1, max_new_tokens=8, **how
    )
    assert done.seconds < 18  # other processes of this machine may have slowed it down
    plan = done.more["budget"]
    facts = load_facts(source).facts
    assert (plan["seconds"], plan["of"], plan["facts"]) == (6.0, len(facts), len(done.table))
    assert lines[0] == "measuring the pace: 0 facts so far"
    assert next(line for line in lines if "pace" not in line).startswith("budget 6 s: ")
    assert 0 < plan["facts"] <= len(facts)
    again = knowshift.mastery(small_world, source, output=output, budget="6s", workers=1, max_new_tokens=8, **how)
    assert again.table.equals(done.table)
    assert again.resumed == plan["facts"]
    chosen = balanced_sample(facts, plan["facts"], 0)
    whole = tmp_path / "whole.parquet"
    knowshift.mastery(small_world, chosen, output=whole, workers=1, max_new_tokens=8, compare=output, **how)
    table, about = read_table(whole, MASTERY, "mastery")
    kept, told = read_table(output, MASTERY, "mastery")
    # Batches are others, so that probabilities are rounded otherwise: a draw in a great many comes out otherwise too.
    facts_told = ["fact", "relation", "split", "domain", "exposures"]
    assert kept.select(facts_told).equals(table.select(facts_told))
    assert np.mean(np.abs(kept["rate"].to_numpy() - table["rate"].to_numpy()) < 1e-5) > 0.97
    told["positions"] = about["positions"]  # prompts of one batch share what they have in common
    assert told == {**about, "budget": {"seconds": 6.0, "facts": plan["facts"], "of": len(facts)}}


#: Parts of four facts and a pace at which 30 facts fit.
SLOW = """
from knowshift.probing import engines
from knowshift.probing.budget import pace
engines.PART = 4
pace.Pace.next_size = lambda self, left: 0
pace.Pace.fitting = lambda self, left, facts: 29
"""


def test_a_killed_run_goes_on_with_the_facts_that_it_chose(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from knowshift.cli.app import app

    monkeypatch.setattr(engines, "PART", 4)
    output = tmp_path / "m.parquet"
    words = ["mastery", str(small_world), "--facts", f"world:{small_world}", "--output", str(output), "--json"]
    words += ["--draws", "3", "--workers", "1", "--budget"]
    process = Command([*words, "2m"], before=SLOW)
    parts = tmp_path / "m.parquet.parts"
    until = time.monotonic() + 100
    while process.poll() is None and not list(parts.glob("part-*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -9, said
    assert "budget 2 min: 30 of 132 facts over 24 relations" in " ".join(said.split())
    before = sorted(parts.glob("part-*"))

    def never(*given: Any) -> Plan:
        raise AssertionError("the pace is measured again")

    monkeypatch.setattr(run, "plan_budget", never)
    source, lines = f"world:{small_world}", list[str]()
    with pytest.raises(InputError, match=r"recorded with another budget \(budget \{.*120.*, now \{.*180"):
        knowshift.mastery(small_world, source, output=output, draws=3, budget="3m", workers=1, progress=lines.append)
    assert lines == []
    with pytest.raises(InputError, match=r"recorded with another budget \(budget \{.*, now None\)"):
        CliRunner().invoke(app, words[:-1], catch_exceptions=False)
    assert sorted(parts.glob("part-*")) == before
    result = CliRunner().invoke(app, [*words, "2m"], catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["budget"] == {**told["budget"], "seconds": 120, "facts": 30, "of": 132, "facts_per_second": None}
    facts = load_facts(f"world:{small_world}").facts
    table, _ = read_table(output, MASTERY, "mastery")
    assert table["fact"].to_pylist() == [fact.id for fact in balanced_sample(facts, 30, 0)]
    assert not parts.exists()


def test_a_run_without_a_budget_is_not_gone_on_with_by_one_that_has_one(small_world: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.parquet"
    knowshift.mastery(small_world, f"world:{small_world}", output=output, limit=8, **QUICK)
    before = output.read_bytes()
    with pytest.raises(InputError, match=r"m.parquet: recorded without a budget; it stays as it is"):
        knowshift.mastery(small_world, f"world:{small_world}", output=output, limit=8, budget="1m", **QUICK)
    assert output.read_bytes() == before


def test_workers_measure_the_pace_and_the_limit_comes_first(small_world: Path, tmp_path: Path) -> None:
    spec, facts = EngineSpec(str(small_world), threads=1), load_facts(f"world:{small_world}").facts[:24]
    plans: list[Plan] = []
    output = tmp_path / "m.parquet"
    protocol = Protocol(2, max_new_tokens=6)
    run_mastery(spec, facts, output, protocol, workers=2, budget=Budget(300.0), planned=plans.append)
    assert plans[0].facts == tuple(facts)
    assert plans[0].pace is not None
    limited = knowshift.mastery(small_world, f"world:{small_world}", limit=8, budget="5m", **QUICK)
    assert limited.more["budget"]["of"] == len(limited.table) == 8


def test_a_server_has_a_budget_too(tmp_path: Path) -> None:
    """Each request takes 20 ms, so that a few of the 300 facts fit."""
    toy = Toy()
    toy.spoil = lambda body: time.sleep(0.02)
    facts = [replace(fact, prompts=(f"{fact.id} is",), answer="Lima") for fact in _facts(["a", "b"] * 150)]
    with serving(toy):
        done = knowshift.mastery(toy.url, facts, output=tmp_path / "m.parquet", budget=2)
        again = knowshift.mastery(toy.url, facts, output=tmp_path / "m.parquet", budget=2)
    assert 0 < len(done.table) == done.more["budget"]["facts"] <= 300
    assert done.seconds < 3
    assert again.table.equals(done.table)


def test_a_run_that_takes_longer_says_so(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from knowshift.cli.app import main

    monkeypatch.setattr(Pace, "next_size", lambda self, left: 0)
    monkeypatch.setattr(Pace, "fitting", lambda self, left, facts: 7)
    real = run.measure_mastery

    def slow(*given: Any, **more: Any) -> Any:
        time.sleep(2.2)
        return real(*given, **more)

    monkeypatch.setattr(run, "measure_mastery", slow)
    words = ["mastery", str(small_world), "--facts", f"world:{small_world}", "--output", str(tmp_path / "m.parquet")]
    monkeypatch.setattr(sys, "argv", ["knowshift", *words, "--budget", "2s", "--draws", "1", "--workers", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code in (0, None), said
    assert "this took longer than the budget of 2s" in said
    assert len(read_table(tmp_path / "m.parquet", MASTERY, "mastery")[0]) == 8


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (1e-6, "budget 0 s: the start alone took"),
        ("2x", "budget '2x': expected a time such as 90s"),
        (4, r"budget 4 s: too small for one fact, which takes 5.* s here, .* with the start; expected more"),
    ],
)
def test_a_budget_too_small_for_one_fact_writes_nothing(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: Any, says: str
) -> None:
    if budget == 4:  # a fact that takes longer
        real = pace.measure_mastery
        monkeypatch.setattr(pace, "measure_mastery", lambda *given: time.sleep(5) or real(*given))
    with pytest.raises(InputError, match=says):
        knowshift.mastery(small_world, f"world:{small_world}", output=tmp_path / "m.parquet", budget=budget, **QUICK)
    assert list(tmp_path.iterdir()) == []
