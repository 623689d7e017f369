"""Mastery by expected hits: records, levels, stopping, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from knowshift.cli.app import app
from knowshift.errors import InputError, KnowshiftWarning
from knowshift.evaluation import accuracy_by_level, evaluate
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.known_facts import known_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.probing import engines
from knowshift.probing.agreement import agreement, agreement_of
from knowshift.probing.certainty_record import write_certainty
from knowshift.probing.engines import EngineSpec
from knowshift.probing.expected import WORTH, Expected, draw_expected
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.probing.prompts import write_prompts
from knowshift.probing.run import _check_same, run_mastery
from knowshift.probing.stopping import Asked
from knowshift.records import EXPECTED, MASTERY, read_table, write_table
from knowshift.token_shift import items_of
from markov import Chain, markov_model

#: Behind each prompt two ways are equally likely, and the answer "A" comes at the rate of the way taken.
RATES = {"k": (0.0, 0.0), "l": (0.0, 0.02), "m": (0.1, 0.5), "n": (0.6, 0.2), "o": (0.9, 0.5), "p": (1.0, 0.98)}


def _chain() -> Chain:
    chain: dict[str, dict[str, float]] = {"A": {".": 1.0}, "z": {".": 1.0}}
    for name, ways in RATES.items():
        chain[name] = {}
        for which, rate in zip((name.upper(), str("klmnop".index(name))), ways, strict=True):
            chain[name][which] = 0.5
            chain[which] = {token: share for token, share in (("A", rate), ("z", 1 - rate)) if share}
    return chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return markov_model(tmp_path_factory.mktemp("markov"), _chain())


def _fact(name: str, prompts: str) -> Fact:
    return Fact(name, "P19", "test", "in_domain", "s", "q?", "A", prompts=tuple(prompts))


def _true_rate(prompts: str) -> float:
    return float(np.mean([np.mean(RATES[prompt]) for prompt in prompts]))


def _facts(count: int) -> list[Fact]:
    rng = np.random.default_rng(4)
    names = list(RATES)
    chosen = [names[i] for i in rng.integers(0, len(names), count)]
    return [
        _fact(f"f{i}", "".join(rng.choice([main, "k", "p"], 21, p=[0.8, 0.15, 0.05]))) for i, main in enumerate(chosen)
    ]


def _full_level(fact: Fact, rng: np.random.Generator) -> int:
    hits = sum(int(rng.binomial(10, np.mean(RATES[prompt]))) for prompt in fact.prompts)
    return -(-4 * hits // (10 * len(fact.prompts)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1.2), min_size=2, max_size=5), min_size=1, max_size=6), st.integers(2, 5))
def test_sums_of_values_give_their_mean_and_variance(values: list[list[float]], width: int) -> None:
    table = np.array([(row * width)[:width] for row in values])
    found = Expected.of(np.hstack([table, np.full((len(table), 1), np.nan)]))
    assert found.texts == [width] * len(table)
    assert found.rate == pytest.approx(table.mean())
    assert found.variance == pytest.approx(float((table.var(axis=1, ddof=1) / width).sum()) / len(table) ** 2, abs=1e-9)
    chances = found.level_probabilities(10)
    assert chances.sum() == pytest.approx(1)
    assert 0 < found.worth <= WORTH


def test_what_a_text_is_worth_is_told_by_its_variance() -> None:
    draws = Expected(sums=[50.0] * 4, squares=[50.0] * 4, texts=[100] * 4)  # values 0 and 1: draws
    assert draws.worth == pytest.approx(1.0, rel=0.02)
    half = Expected(sums=[50.0] * 4, squares=[100 * (0.25 + 1 / 16)] * 4, texts=[100] * 4)
    assert half.worth == pytest.approx(4.0, rel=0.02)
    assert Expected([0.0, 0.0], [0.0, 0.0], [2, 2]).worth == WORTH


def test_rates_are_unbiased_and_probabilities_of_levels_are_those_of_full_runs(chain: LoadedModel) -> None:
    facts = _facts(150)
    record = measure_mastery(chain, facts, Protocol(seed=3, max_new_tokens=3, estimate="expected", texts=4))
    truth = np.array([_true_rate("".join(fact.prompts)) for fact in facts])
    off, variance = np.array(record.columns["rate"]) - truth, np.array(record.columns["variance"])
    assert abs(off.sum()) < 5 * variance.sum() ** 0.5
    assert 0.75 < (off**2).sum() / variance.sum() < 1.3
    assert variance.sum() < 0.2 * (truth * (1 - truth) / 84).sum()  # of as many draws
    chances = np.array([record.columns[f"level_{level}"] for level in range(5)]).T
    rng = np.random.default_rng(0)
    levels = np.array([[_full_level(fact, rng) for _ in range(200)] for fact in facts])
    for level in range(5):
        assert chances[:, level].mean() == pytest.approx((levels == level).mean(), abs=0.03)
    told = np.take_along_axis(chances, levels, axis=1)
    assert np.log(np.maximum(told, 1e-3)).mean() > -0.45  # nats; the levels of other facts give -1.5
    same = np.mean([agreement(record.columns["level"], levels[:, i].tolist()).same for i in range(200)])
    ceiling = np.mean([agreement(levels[:, i].tolist(), levels[:, i + 1].tolist()).same for i in range(199)])
    assert same > ceiling


class _Values:
    """A session whose texts have hand-made values: ``height`` with probability ``rate`` / ``height``, else 0."""

    def __init__(self, rate: float, prompts: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        height = rng.choice([0.3, 1.0, 4.0], (prompts, 1))
        self._all = height * (rng.random((prompts, 10)) < rate / height)
        self.value, self.positions = np.full((prompts, 10), np.nan), 0

    def read(self) -> np.ndarray:
        return np.ones(len(self.value))

    def draw(self, numbers: Any, whole: np.ndarray, begun: Any) -> None:
        for row, its, made in zip(self._all, numbers, self.value, strict=True):
            made[its] = row[its]


def _by_spread(seed: int, rate: float = 0.05, facts: int = 3000, prompts: int = 4) -> tuple[float, float, set[int]]:
    """Mean error of R over many facts in standard errors, squared errors over variances told, and numbers of texts."""
    slices = [slice(i, i + prompts) for i in range(0, facts * prompts, prompts)]
    asked, rule = Asked([""] * facts * prompts, [], [], slices, [], 10), Protocol(estimate="expected").texts_rule
    found, _ = draw_expected(lambda *given: _Values(rate, facts * prompts, seed), asked, rule, lambda count: None)
    off = np.array([its.rate for its in found]) - rate
    told = sum(its.variance for its in found)
    return off.sum() / told**0.5, (off**2).sum() / told, {n for its in found for n in its.texts}


def test_more_texts_where_texts_differ_leave_rates_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, ratio, texts = _by_spread(0)
    assert abs(mean) < 4
    assert 0.9 < ratio < 1.1
    assert {2, 10} < texts
    # A prompt's own texts must not say how many it gets: one without a hit would stay so.
    own = lambda its: np.sqrt(its._spread)  # noqa: E731
    monkeypatch.setattr(Expected, "deviation_of_others", own)
    assert _by_spread(0)[0] < -8


def test_how_many_texts_a_prompt_gets() -> None:
    rule = Protocol(estimate="expected").texts_rule
    none = Expected([0.0] * 4, [0.0] * 4, [0] * 4)
    assert rule.texts(none).tolist() == [2] * 4
    # Those of even number deviate by 0.14, which is 2.5 texts for those of odd number.
    told = Expected([0.4, 0.0, 0.4, 0.0], [0.1, 0.0, 0.1, 0.0], [2] * 4)
    assert rule.texts(told).tolist() == [2, 3, 2, 3]
    told = Expected([1.0, 0.0, 1.0, 0.0], [0.75, 0.0, 0.75, 0.0], [2] * 4)  # those of even number by 0.5
    assert rule.texts(told).tolist() == [2, 9, 2, 9]
    assert rule.texts(Expected([0.0], [0.0], [2])).tolist() == [10]  # no other prompt tells
    assert rule.texts(Expected([0.0] * 2, [0.0] * 2, [2, 7])).tolist() == [2, 7]  # once
    fixed = Protocol(estimate="expected", texts=5).texts_rule
    assert fixed.texts(none).tolist() == [5] * 4
    assert fixed.texts(Expected([0.0] * 4, [0.0] * 4, [5] * 4)).tolist() == [5] * 4
    assert (rule.told, fixed.told) == ("by spread", 5)


def test_sequential_asks_on_only_where_the_level_is_open(chain: LoadedModel) -> None:
    facts = [_fact("never", "k" * 21), _fact("always", "p" * 21), _fact("between", "n" * 13 + "k" * 8)]  # 0.248
    settled: dict[float, list[int]] = {}
    for error in (0.05, 0.6):
        protocol = Protocol(seed=1, max_new_tokens=3, estimate="expected", stopping="sequential", error=error)
        record = measure_mastery(chain, facts, protocol)
        settled[error] = [draws // 21 for draws in record.columns["draws"]]
    assert settled[0.05] == [2, 2, 10]
    assert settled[0.6] == [2, 2, 2]


def test_a_record_says_what_it_holds_and_every_reader_takes_it(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "PART", 9)
    source = f"world:{small_world}"
    facts = [fact for fact in load_facts(source).facts if fact.split == "test"][:24]
    protocol = Protocol(seed=1, estimate="expected")
    spec, output = EngineSpec(str(small_world), threads=1), tmp_path / "m.parquet"
    outcome = run_mastery(spec, facts, output, protocol)
    table, about = read_table(output, MASTERY, "mastery")
    assert table.schema.names == EXPECTED.names
    assert (about["estimate"], about["texts"], about["draws_per_prompt"]) == ("expected", "by spread", 10)
    assert outcome.draws == 24 * 21 * 2
    for row in table.to_pylist():
        assert row["rate"] == pytest.approx(sum(row["prompt_hits"]) / row["draws"])
        assert row["level"] == int(np.argmax([row[f"level_{level}"] for level in range(5)]))
        assert row["prompt_draws"] == [2] * 21
        assert row["variance"] == pytest.approx(
            Expected(row["prompt_hits"], row["prompt_squares"], row["prompt_draws"]).variance
        )
    # Whole again after a stop, by others.
    again = tmp_path / "again.parquet"

    def stop(done: int, total: int, positions: int) -> None:
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_mastery(spec, facts, again, protocol, progress=stop)
    run_mastery(spec, facts, again, protocol)
    assert again.read_bytes() == output.read_bytes()
    write_certainty(output, tmp_path / "c.parquet")
    certain = read_table(tmp_path / "c.parquet", _certainty(), "certainty")[0].to_pylist()
    for row, sure in zip(table.to_pylist(), certain, strict=True):
        assert 0 <= sure["rate_low"] <= min(row["rate"], 1) + 0.01
        assert [sure[f"level_{i}"] for i in range(5)] == pytest.approx([row[f"level_{i}"] for i in range(5)], abs=0.1)
    written, figure = write_prompts(output, tmp_path / "p")
    assert written.exists()
    assert figure.exists()
    known = known_facts(load_facts(source).facts, output, source)
    model = load_model(str(small_world))
    answers = evaluate(model, facts, known.levels)
    assert accuracy_by_level(answers)["in_domain"]["counts"]
    assert items_of(model, known, facts).facts == tuple(
        facts[i] for i, n in enumerate(table["level"].to_pylist()) if n == 4
    )


def _certainty() -> Any:
    from knowshift.probing.certainty_record import CERTAINTY

    return CERTAINTY


def test_hits_and_expected_hits_are_not_compared_and_not_resumed(small_world: Path, tmp_path: Path) -> None:
    facts = load_facts(f"world:{small_world}").facts[:3]
    spec = EngineSpec(str(small_world), threads=1)
    paths = {name: tmp_path / f"{name}.parquet" for name in ("hits", "expected")}
    for name, path in paths.items():
        run_mastery(spec, facts, path, Protocol(draws_per_prompt=2, estimate=name))
    with pytest.raises(
        InputError, match=r"hits\.parquet: holds 'hits', .*expected\.parquet 'expected'; expected records"
    ):
        agreement_of(paths["hits"], paths["expected"])
    before = paths["hits"].read_bytes()
    for name, other in (("hits", "expected"), ("expected", "hits")):
        with pytest.raises(InputError, match="recorded with another estimate"):
            run_mastery(spec, facts, paths[name], Protocol(draws_per_prompt=2, estimate=other))
    assert paths["hits"].read_bytes() == before
    table, about = read_table(paths["hits"], MASTERY, "mastery")
    assert "estimate" not in about  # as records were before there were two
    other = tmp_path / "other.parquet"
    write_table(other, MASTERY, table.to_pydict(), {**about, "dtype": "bfloat16"})
    with pytest.warns(KnowshiftWarning, match=r"hits\.parquet was measured in float32, .*other\.parquet in bfloat16"):
        assert agreement_of(paths["hits"], other).same == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"estimate": "expectd"}, "estimate 'expectd' is unknown; nearest: 'expected'"),
        ({"stopping": "exact"}, "use full or sequential"),
        ({"grading": "word"}, "grades by substring only"),
        ({"texts": 1}, "texts of a prompt"),
        ({"texts": 2, "estimate": "hits"}, "with --estimate expected only"),
        (
            {"least_weight": 0.5, "estimate": "hits"},
            "least weight 0.5 of a text: expected with --estimate expected only",
        ),
        ({"least_weight": 0.0}, "least weight 0.0 of a text: expected a number above 0, and below 10"),
        ({"least_weight": 11.0}, "least weight 11.0 of a text"),
        ({"least_weight": float("nan")}, "least weight nan of a text"),
        ({"least_weight": "2"}, "least weight '2' of a text: expected a number"),
        ({"least_weight": True}, "least weight True of a text"),
        ({"error": "0.1"}, "error rate '0.1' of the stopping rule"),
        ({"temperature": True}, "temperature True: expected a number above 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Protocol(**{"estimate": "expected", **change})


def test_numbers_of_other_libraries_are_recorded_as_numbers() -> None:
    given = {"temperature": np.float32(0.5), "error": np.float64(0.25), "least_weight": np.float32(2)}
    about = Protocol(estimate="expected", **given).about()
    assert json.loads(json.dumps(about)) == about
    assert (about["temperature"], about["error"], about["least_weight"]) == (0.5, 0.25, 2.0)


def test_no_two_protocols_have_records_that_pass_for_one_another() -> None:
    """Whatever the field that differs, and whichever record came first."""
    expected = Protocol(estimate="expected")
    other = {
        "draws_per_prompt": 7,
        "temperature": 0.5,
        "max_new_tokens": 9,
        "seed": 4,
        "grading": "word",
        "stopping": "sequential",
        "error": 0.1,
        "estimate": "hits",
        "texts": 3,
        "least_weight": 0.5,
    }
    assert set(other) == {field.name for field in fields(Protocol)}
    for name, value in other.items():
        one = Protocol() if name == "grading" else expected
        changed = replace(one, **{name: value})
        for recorded, asked in ((one, changed), (changed, one)):
            with pytest.raises(InputError, match="recorded with another"):
                _check_same(Path("m.parquet"), asked.about(), recorded.about())
        _check_same(Path("m.parquet"), changed.about(), changed.about())


def test_by_command(small_world: Path, tmp_path: Path) -> None:
    words = ["mastery", str(small_world), "--facts", f"world:{small_world}", "--limit", "4", "--workers", "1", "--json"]
    hits, output = str(tmp_path / "hits.parquet"), str(tmp_path / "m.parquet")
    assert CliRunner().invoke(app, [*words, "--draws", "2", "--output", hits]).exit_code == 0
    expected = [*words, "--output", output, "--estimate", "expected"]
    with pytest.raises(InputError, match="holds 'hits', asked is 'expected'"):
        CliRunner().invoke(app, [*expected, "--compare", hits], catch_exceptions=False)
    assert not Path(output).exists()
    done = CliRunner().invoke(app, [*expected, "--texts", "3", "--least-weight", "0.5"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["estimate"], told["draws"]) == ("expected", 4 * 21 * 3)
    about = read_table(Path(output), MASTERY, "mastery")[1]
    assert (about["texts"], about["least_weight"]) == (3, 0.5)
    with pytest.raises(InputError, match="least_weight"):  # the same command goes on, another is refused
        CliRunner().invoke(app, [*expected, "--texts", "3"], catch_exceptions=False)
