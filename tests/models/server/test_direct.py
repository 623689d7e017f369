"""Expected hits on a server: unbiased whatever it shows, varying less than draws, refused where it shows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain_server import ChainToy
from knowshift.facts.fact import Fact
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.connection import ServerError
from knowshift.models.server.direct import DirectSession
from knowshift.models.server.engine import CompletionsServer, SeveralServers
from knowshift.models.server.logprobs import positions_of
from knowshift.models.server.recognition import OPENINGS
from knowshift.probing.certainty_record import write_certainty
from knowshift.probing.engines import EngineSpec
from knowshift.probing.expected import WORTH, Expected
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.probing.run import run_mastery
from knowshift.records import MASTERY, read_table
from markov import Chain, rate_of
from toy_server import mastery_command, serving

#: "Lima" comes as one token, as " Li" and "ma", as " L", "i" and "ma" (read as two), and after another word.
CHAIN: Chain = {
    "k": {" Lima": 0.2, " Li": 0.3, " L": 0.1, " the": 0.3, " a": 0.1},
    "l": {" Li": 0.02, " the": 0.9, ".": 0.08},
    " Lima": {".": 1.0},
    " Li": {"ma": 0.7, " the": 0.3},
    " L": {"i": 0.9, ".": 0.1},
    "i": {"ma": 0.8, ".": 0.2},
    "ma": {".": 1.0},
    " the": {" Li": 0.25, " Lima": 0.15, ".": 0.6},
    " a": {".": 1.0},
}
LENGTH = 12


@pytest.fixture
def toy() -> Iterator[ChainToy]:
    with serving(ChainToy(CHAIN)) as running:
        assert isinstance(running, ChainToy)
        yield running


def drawn(
    toy: ChainToy, prompts: int = 60, texts: int = 10, name: str = "k", answers: tuple[str, ...] = ("Lima",)
) -> DirectSession:
    server = CompletionsServer(toy.url)
    sampling = Sampling(draws_per_prompt=10, max_new_tokens=LENGTH, seed=5)
    streams = [f"s{i}" for i in range(prompts)]
    session = server.expected([name] * prompts, [answers] * prompts, sampling, texts, streams=streams)
    session.draw([np.arange(texts)] * prompts)
    return session


@pytest.mark.parametrize("shows", ["lists", "content"])
@pytest.mark.parametrize("tempered", [False, True])
def test_direct_hits_are_known_and_the_rest_is_drawn(toy: ChainToy, shows: str, tempered: bool) -> None:
    toy.shows, toy.tempered = shows, tempered
    value = drawn(toy).value
    rate = rate_of(CHAIN, "k", LENGTH, ["Lima"])
    assert value.mean() == pytest.approx(rate, abs=5 * value.std() / value.size**0.5)
    assert value.var() < 0.65 * rate * (1 - rate)
    # All that is shown is all there is, so what is known of direct hits has no variance but that of being followed.
    chance = drawn(toy)._chance
    assert chance == pytest.approx(np.full_like(chance, 0.2 + 0.3 * 0.7))


def test_what_is_not_shown_is_drawn(toy: ChainToy) -> None:
    """With two tokens shown, those that begin an answer are known among these alone, and the rest by draws."""
    toy.most_likely = 5
    server = CompletionsServer(toy.url)
    assert (server.shown.count, server.shown.tempered) == (5, False)
    chain = {**CHAIN, "k": {f" {letter}": 0.09 for letter in "abcdef"} | {" Lima": 0.16, " Li": 0.3}}
    toy.chain = {**toy.chain, **chain, **{f" {letter}": {".": 1.0} for letter in "abcdef"}}
    session = drawn(toy, prompts=150)
    rate = rate_of(toy.chain, "k", LENGTH, ["Lima"])
    assert session.value.mean() == pytest.approx(rate, abs=5 * session.value.std() / session.value.size**0.5)
    assert session._chance.mean() == pytest.approx(0.16 + 0.3 * 0.7, abs=0.02)
    assert set(np.unique(session._chance.round(6))) == {0.0, round((0.16 + 0.3 * 0.7) / 0.73, 6)}


shares = st.dictionaries(
    st.sampled_from([" Lima", " Li", " L", " the", ".", " Quito", " Qu"]), st.floats(0.02, 1), min_size=1
)


def _chain(rows: dict[str, dict[str, float]]) -> Chain:
    return {last: {token: share / sum(row.values()) for token, share in row.items()} for last, row in rows.items()}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {
            "k": shares,
            " Li": st.dictionaries(st.sampled_from(["ma", " the", "."]), st.floats(0.02, 1), min_size=1),
            " L": st.dictionaries(st.sampled_from(["i", "."]), st.floats(0.02, 1), min_size=1),
            " Qu": st.dictionaries(st.sampled_from(["ito", "."]), st.floats(0.02, 1), min_size=1),
            " the": st.dictionaries(st.sampled_from([" Li", " Lima", "."]), st.floats(0.02, 1), min_size=1),
        }
    ),
    st.booleans(),
)
def test_values_are_unbiased_on_any_chain(rows: dict[str, dict[str, float]], few: bool) -> None:
    ends = {last: {".": 1.0} for last in (" Lima", "ma", " Quito", "ito")}
    chain = _chain({**rows, "i": {"ma": 0.5, ".": 0.5}, **ends})
    toy = ChainToy(chain)
    toy.most_likely = 5 if few else 20
    with serving(toy):
        session = drawn(toy, prompts=80, answers=("Lima", "Quito"))
    rate = rate_of(chain, "k", LENGTH, ["Lima", "Quito"])
    mean, error = session.value.mean(), session.value.std() / session.value.size**0.5
    assert abs(mean - rate) <= 5 * error + 1e-6
    assert session.value.var() <= 1.2 * rate * (1 - rate) + 0.01
    assert (session.value >= 0).all()


def test_an_answer_that_begins_rarely_is_drawn_alone(toy: ChainToy) -> None:
    toy.chain = {**toy.chain, "l": {" Li": 0.01, " the": 0.99}}
    session = drawn(toy, prompts=2, name="l")
    assert not session._chance.any()
    assert {body["prompt"] for body in toy.asked if body.get("logprobs") and body["prompt"] != OPENINGS[0]} == {"l"}


def test_a_way_that_is_read_as_other_tokens_is_not_followed(toy: ChainToy) -> None:
    """ " L" and "i" are read as " Li", so what a model says behind them cannot be asked."""
    toy.chain = {**toy.chain, "k": {" L": 1.0}}
    session = drawn(toy, prompts=40)
    rate = rate_of(toy.chain, "k", LENGTH, ["Lima"])
    assert not session._chance.any()
    assert session.value.mean() == pytest.approx(rate, abs=5 * session.value.std() / session.value.size**0.5)


def test_a_server_that_counts_no_tokens_is_followed_for_one_token_only(toy: ChainToy) -> None:
    toy.counts = False
    session = drawn(toy, prompts=2)
    assert session._chance == pytest.approx(np.full((2, 10), 0.2))


def test_rounds_add_to_one_another(toy: ChainToy) -> None:
    server = CompletionsServer(toy.url)
    sampling = Sampling(max_new_tokens=LENGTH)
    session = server.expected(["k", "l"], [["Lima"]] * 2, sampling, 4, streams=["a", "b"])
    session.draw([np.array([0, 1]), np.array([0, 1])])
    assert np.isfinite(session.value).tolist() == [[True, True, False, False]] * 2
    session.draw([np.array([2, 3]), np.array([], dtype=int)])
    assert np.isfinite(session.value).tolist() == [[True] * 4, [True, True, False, False]]
    asked = [body for body in toy.asked if body.get("logprobs") and body["prompt"] != OPENINGS[0]]
    assert len({body["seed"] for body in asked}) == len(asked) > 3


def test_records_levels_and_certainty(toy: ChainToy, tmp_path: Path) -> None:
    facts, output = _facts(), tmp_path / "m.parquet"
    protocol = Protocol(max_new_tokens=LENGTH, estimate="expected", texts=2)
    outcome = run_mastery(EngineSpec(toy.url), facts, output, protocol)
    assert outcome.draws == 6 * 10 * 2
    table, about = read_table(output, MASTERY, "mastery")
    assert (about["engine"], about["estimate"], about["texts"]) == ("completions/sglang", "expected", 2)
    rows = table.to_pylist()
    rate = (rate_of(CHAIN, "k", LENGTH, ["Lima"]) + rate_of(CHAIN, "l", LENGTH, ["Lima"])) / 2
    error = sum(row["variance"] for row in rows) ** 0.5 / len(rows)
    assert np.mean([row["rate"] for row in rows]) == pytest.approx(rate, abs=5 * error)
    write_certainty(output, tmp_path / "c.parquet")
    for told, row in zip(pq.read_table(tmp_path / "c.parquet").to_pylist(), rows, strict=True):
        chances = [row[f"level_{level}"] for level in range(5)]
        assert [told[f"level_{level}"] for level in range(5)] == pytest.approx(chances)
        assert Expected(row["prompt_hits"], row["prompt_squares"], row["prompt_draws"], drawn=True).level_probabilities(
            10
        ) == pytest.approx(chances)


def test_texts_without_a_hit_are_worth_as_many_draws() -> None:
    """On a server nothing is known of hits that no text has met; in this process nearly all is."""
    none = [[0.0] * 21, [0.0] * 21, [2] * 21]
    assert Expected(*none, drawn=True).worth == pytest.approx(1)  # type: ignore[arg-type]
    assert Expected(*none).worth == WORTH  # type: ignore[arg-type]
    known = Expected([1.0] * 21, [0.5] * 21, [2] * 21, drawn=True)  # a half each time
    assert known.worth == WORTH


@pytest.mark.parametrize("stopping", ["full", "sequential"])
def test_both_rules(toy: ChainToy, stopping: str) -> None:
    protocol = Protocol(max_new_tokens=LENGTH, estimate="expected", stopping=stopping)
    record = measure_mastery(CompletionsServer(toy.url), _facts(), protocol)
    texts = [count // 10 for count in record.columns["draws"]]
    assert set(texts) <= ({*range(2, 11)} if stopping == "full" else {2, 4, 7, 10})
    assert record.positions > 0


def test_several_servers_share_prompts(toy: ChainToy) -> None:
    facts, protocol = _facts(), Protocol(max_new_tokens=LENGTH, estimate="expected")
    with serving(ChainToy(CHAIN)) as other:
        together = measure_mastery(SeveralServers([toy.url, other.url]), facts, protocol)
        assert isinstance(other, ChainToy)
        assert len(other.draws) > 0
        other.most_likely = 5
        with pytest.raises(ServerError, match="expected servers that show alike"):
            measure_mastery(SeveralServers([toy.url, other.url]), facts, protocol)
    assert together.columns == measure_mastery(CompletionsServer(toy.url), facts, protocol).columns


def test_a_server_that_shows_nothing_is_refused_in_a_line(
    toy: ChainToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.shows = None
    status, said = mastery_command(monkeypatch, capsys, toy.url, tmp_path, "--estimate", "expected")
    assert status == 2
    assert said == (
        f"knowshift: {toy.url}: shows no log-probabilities, which --estimate expected needs; use --estimate hits\n"
    )
    assert not (tmp_path / "m.parquet.parts").exists()


def test_a_server_draws_whole_texts(
    toy: ChainToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--estimate", "expected", "--least-weight", "0.5")
    status, said = mastery_command(monkeypatch, capsys, toy.url, tmp_path, *more)
    assert status == 2
    assert said.startswith("knowshift: least weight 0.5 of a text: a server draws whole texts; expected none, ")
    assert said.count("\n") == 1


def test_log_probabilities_that_temperature_bends_are_refused(toy: ChainToy) -> None:
    toy.bend = 1.4
    with pytest.raises(ServerError, match=r"neither those at 1 nor those divided by it \(.* 1\.4 times"):
        _ = CompletionsServer(toy.url).shown


@pytest.mark.parametrize(
    "told",
    [None, 3, {}, {"tokens": ["a"]}, {"tokens": ["a"], "top_logprobs": [None]}, {"content": [1]}, {"content": [{}]},
     {"tokens": ["a"], "top_logprobs": [{"a": "b"}]}, {"tokens": ["a", "b"], "top_logprobs": [{"a": -1.0}]},
     {"content": [{"token": "a", "top_logprobs": [{"token": 3, "logprob": -1.0}]}]}],
)  # fmt: skip
def test_what_cannot_be_read_shows_nothing(told: object) -> None:
    assert [position.likely for position in positions_of({"logprobs": told})] in ([], [{}])


def _facts() -> list[Fact]:
    """Six facts of ten prompts each."""
    return [Fact(f"f{i}", "P36", "test", "in_domain", "Peru", "q?", "Lima", prompts=("k", "l") * 5) for i in range(6)]
