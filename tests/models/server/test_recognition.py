"""What kind of server it is, its models, and how its version spells a field."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowshift.errors import KnowshiftWarning
from knowshift.models.server.connection import ServerError
from knowshift.models.server.dialects import DIALECTS, LEFT_OUT, ORDINARY
from knowshift.models.server.engine import CompletionsServer
from knowshift.models.server.recognition import OPENINGS
from toy_server import STATUSES, Reply, Toy, draw, mastery_command, serving


def refusing(*wanted: Callable[[dict[str, Any]], str | None]) -> Callable[[dict[str, Any]], Reply | None]:
    """A server of a version that refuses fields, each with what it says."""

    def spoil(body: dict[str, Any]) -> Reply | None:
        said = next(filter(None, (check(body) for check in wanted)), None) if body else None
        told = {"object": "error", "message": said, "type": "BadRequestError", "param": None, "code": 400}
        return Toy.json(told, 400) if said else None

    return spoil


def before_0_9(body: dict[str, Any]) -> str | None:
    """vLLM up to 0.8.5."""
    top_k = body.get("top_k", -1)
    return f"top_k must be -1 (disable), or at least 1, got {top_k}." if top_k < 1 and top_k != -1 else None


def only_zero(body: dict[str, Any]) -> str | None:
    """A vLLM to come, which takes 0 alone."""
    return f"top_k must be 0 (disable), or at least 1, got {body['top_k']}." if body.get("top_k", 0) < 0 else None


def unknown(name: str) -> Callable[[dict[str, Any]], str | None]:
    return lambda body: f"{name}: Extra inputs are not permitted" if name in body else None


@pytest.mark.parametrize(
    ("refused", "top_k", "keeps"),
    [
        ((before_0_9,), -1, True),
        ((only_zero,), 0, True),
        ((unknown("include_stop_str_in_output"),), 0, False),
        ((before_0_9, unknown("include_stop_str_in_output")), -1, False),
        ((unknown("include_stop_str_in_output"), before_0_9), -1, False),
    ],
)
def test_fields_are_spelled_as_the_servers_version_takes_them(
    toy: Toy, refused: tuple[Callable[[dict[str, Any]], str | None], ...], top_k: int, keeps: bool
) -> None:
    toy.always, toy.spoil, toy.cuts_stops = True, refusing(*refused), not keeps
    server = CompletionsServer(toy.url)
    hits = draw(server, prompts=20).hit
    for body in toy.draws:
        assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["top_p"]) == (top_k, 0.0, 1.0, 1.0)
        assert body.get("include_stop_str_in_output", False) == keeps
        assert ("stop" in body) == keeps
    assert server.about()["engine"] == "completions/vllm"
    with serving(Toy()) as other:
        assert np.array_equal(draw(CompletionsServer(other.url), prompts=20).hit, hits)


@pytest.mark.parametrize(("name", "tried"), [("top_k", "0 or -1"), ("min_p", "0.0"), ("repetition_penalty", "1.0")])
def test_a_neutral_value_is_never_dropped_where_the_server_would_put_its_own(toy: Toy, name: str, tried: str) -> None:
    def neutral(body: dict[str, Any]) -> str | None:
        """A server with that sampler, which cannot be switched off."""
        return f"{name} must shape something" if body.get(name) in (0, -1, 1) else None

    toy.always, toy.spoil = True, refusing(neutral)
    with pytest.raises(ServerError) as caught:
        CompletionsServer(toy.url)
    assert "refuses /v1/completions with status 400: " in str(caught.value)
    assert f"{name} must shape something" in str(caught.value)
    assert str(caught.value).endswith(f"(tried {name} {tried})")
    assert not toy.draws


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(("vllm", "sglang", "llamacpp")), data=st.data(), status=STATUSES)
def test_samplers_that_a_server_has_not_are_left_out_and_told(
    toy: Toy, kind: str, data: st.DataObject, status: int
) -> None:
    """Any of them, by any status of a refusal; every other field is sent as ever."""
    toy.entries[0]["owned_by"] = kind
    toy.draws.clear()
    fields = {name: values[0] for name, values in DIALECTS[kind].values().items()}
    lacking = data.draw(st.sets(st.sampled_from(sorted(ORDINARY.keys() & fields.keys()))))

    def spoil(body: dict[str, Any]) -> Reply | None:
        said = next((name for name in sorted(lacking) if name in body), None)
        return toy.json({"error": f"unknown {said}"}, status) if said else None

    toy.always, toy.spoil = True, spoil
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        draw(CompletionsServer(toy.url), prompts=1)
    assert {name: toy.draws[0][name] for name in fields if name in toy.draws[0]} == {
        name: value for name, value in fields.items() if name not in lacking
    }
    says = sorted(str(warning.message) for warning in heard if warning.category is KnowshiftWarning)
    assert len(says) == len(lacking)
    for name, said in zip(sorted(lacking), says, strict=True):
        assert said.startswith(f"{toy.url}: refuses {name} ")
        assert said.endswith("it is not sent")


def test_a_server_that_fails_for_a_moment_is_not_taken_for_one_that_refuses(toy: Toy) -> None:
    failed: list[dict[str, Any]] = []

    def first(body: dict[str, Any]) -> Reply | None:
        if "top_k" not in body or failed:
            return None
        failed.append(body)
        return toy.json({"error": "a moment"}, 500)

    toy.always, toy.spoil = True, first
    draw(CompletionsServer(toy.url))
    assert (toy.draws[0]["top_k"], toy.draws[0]["min_p"], toy.draws[0]["repetition_penalty"]) == (0, 0.0, 1.0)


def test_a_server_that_refuses_every_spelling_is_told_in_one_line(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def all_of_it(body: dict[str, Any]) -> Reply | None:
        asked.append(body)
        return toy.json({"error": "no\nsuch\tthing"}, 422) if body.get("top_k", 1) < 1 else None

    toy.always, toy.spoil = True, all_of_it
    status, told = mastery_command(monkeypatch, capsys, toy.url, tmp_path)
    assert status == 2
    assert len(told.strip().splitlines()) == 1
    assert "refuses /v1/completions with status 422" in told
    assert [body["top_k"] for body in asked if "top_k" in body] == [0, 0, -1, ORDINARY["top_k"]]


@pytest.mark.parametrize("status", [401, 404, 413])
def test_only_a_bad_request_moves_on_to_another_spelling(toy: Toy, status: int) -> None:
    asked: list[int] = []

    def answer(body: dict[str, Any]) -> Reply | None:
        if "top_k" in body:
            asked.append(body["top_k"])
            return toy.json({"error": "no"}, status)
        return None

    toy.always, toy.spoil = True, answer
    with pytest.raises(ServerError, match=f"status {status}"):
        CompletionsServer(toy.url)
    assert asked == [0]


def test_every_field_that_may_be_left_out_is_one_whose_absence_is_neutral() -> None:
    loose = {name for dialect in DIALECTS.values() for name, values in dialect.spellings.items() if LEFT_OUT in values}
    assert loose == {"include_stop_str_in_output", "no_stop_trim"}
    for dialect in DIALECTS.values():
        for name in ORDINARY.keys() & dialect.values().keys():
            assert ORDINARY[name] not in dialect.values()[name]


@pytest.mark.parametrize("owner", ["sglang", "llamacpp", "toy", "somebody"])
def test_each_kind_of_server_is_told_in_its_own_words(owner: str) -> None:
    with serving(Toy(owner)) as toy:
        server = CompletionsServer(toy.url)
        draw(server)
    name = {"toy": "tgi", "somebody": "openai"}.get(owner, owner)
    assert server.about()["engine"] == f"completions/{name}"
    assert {field: values[0] for field, values in DIALECTS[name].values().items()}.items() <= toy.draws[0].items()
    assert ("top_p" in toy.draws[0]) == (name != "tgi")
    assert "knowshift_probe" not in toy.draws[0]


def test_stop_texts_are_sent_only_where_they_stay(toy: Toy) -> None:
    kept = draw(CompletionsServer(toy.url))
    toy.cuts_stops = True
    toy.draws.clear()
    server = CompletionsServer(toy.url)
    assert not server.keeps_stops
    assert np.array_equal(draw(server).hit, kept.hit)
    assert all("stop" not in body for body in toy.draws)


def test_a_stop_text_is_tried_out_on_the_first_beginning_that_is_continued(toy: Toy) -> None:
    asked: list[dict[str, Any]] = []

    def mostly_silent(body: dict[str, Any]) -> Reply | None:
        if body.get("max_tokens") != 8:
            return None
        asked.append(body)
        silent = len(asked) <= OPENINGS.index("a")
        return toy.json({"choices": [{"text": " "}]}) if silent else None

    toy.always, toy.spoil = True, mostly_silent
    assert CompletionsServer(toy.url).keeps_stops
    assert [body["prompt"] for body in asked] == [*OPENINGS, "a"]
    assert {(body["temperature"], body["seed"]) for body in asked} == {(0.0, 0)}
    assert [body.get("stop") for body in asked] == [None] * len(OPENINGS) + [["Cusc"]]
    toy.spoil = lambda body: toy.json({"choices": [{"text": ""}]}) if body.get("max_tokens") == 8 else None
    assert not CompletionsServer(toy.url).keeps_stops


def test_models_are_named_or_chosen(toy: Toy) -> None:
    assert CompletionsServer(toy.url).model == "toy"
    assert CompletionsServer(f"{toy.url}/v1#other%2Fname").model == "other/name"
    toy.always = True
    toy.spoil = lambda body: None if "model" in body or not body else toy.json({"error": "no model"}, 400)
    assert CompletionsServer(toy.url).model == "toy"
    toy.entries.append({"id": "second"})
    with pytest.raises(ServerError, match=r"lists 2 models \(toy, second\); name one as http://127.*#MODEL"):
        CompletionsServer(toy.url)
    assert CompletionsServer(f"{toy.url}#second").model == "second"
