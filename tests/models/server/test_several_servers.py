"""Several servers of one model share the work; what they do not share is refused."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import knowshift
from knowshift.cli.app import main
from knowshift.errors import InputError
from knowshift.models.server.engine import CompletionsServer, SeveralServers
from knowshift.probing import engines
from knowshift.records import MASTERY, read_table
from toy_server import TABLE, Reply, Toy, draw, serving


@pytest.fixture
def toys() -> Iterator[list[Toy]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serving(Toy())) for _ in range(3)]


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve facts in parts of two."""
    monkeypatch.setattr(engines, "PART", 2)
    path = tmp_path / "facts.jsonl"
    rows = [{**TABLE[0], "id": f"f{i}", "prompts": [f"In {i} Peru it is", "{subject}'s is"]} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["knowshift", "mastery", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_several_servers_share_the_parts_and_give_the_record_of_one(
    toys: list[Toy], facts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (toy.url for toy in toys)
    tables = []
    for name, words in {
        "one": [first],
        "a model and a server": [first, "--server", second],
        "servers alone": ["--server", first, "--server", second, "--server", third],
        "one server": ["--server", f"{third}/v1"],
    }.items():
        for toy in toys:
            toy.draws.clear()
        output = tmp_path / f"{name}.parquet"
        status, out, _ = command([*words, "--facts", facts, "--output", str(output)], monkeypatch, capsys)
        assert status == 0
        assert json.loads(out)["draws"] == 12 * 2 * 10
        table, about = read_table(output, MASTERY, "mastery")
        tables.append((table, about))
        used = [len(toy.draws) for toy in toys]
        assert sum(used) == 24
        named = [any(toy.url in word for word in words) for toy in toys]
        assert not any(draws for draws, mine in zip(used, named, strict=True) if not mine)
        assert sum(map(bool, used)) >= min(2, sum(named))  # which of three is quickest is the system's affair
    assert all(table.equals(tables[0][0]) and about == tables[0][1] for table, about in tables)
    memory = knowshift.mastery(None, facts, server=[second, third])
    assert memory.table.equals(tables[0][0])
    assert knowshift.mastery(first, facts, server=second).table.equals(tables[0][0])


@settings(max_examples=15, deadline=None)
@given(prompts=st.integers(1, 40), concurrency=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_each_prompt_is_asked_of_one_server_whatever_their_number(prompts: int, concurrency: list[int]) -> None:
    with contextlib.ExitStack() as stack:
        toys = [stack.enter_context(serving(Toy())) for _ in concurrency]
        several = SeveralServers([toy.url for toy in toys])
        found = draw(several, prompts=prompts)  # type: ignore[arg-type]
        asked = sorted(body["prompt"] for toy in toys for body in toy.draws)
        assert asked == sorted(f"capital {i}" for i in range(prompts))
        assert (found.hit == draw(CompletionsServer(toys[0].url), prompts=prompts).hit).all()


def test_the_faster_server_does_more(toys: list[Toy]) -> None:
    toys[0].spoil = lambda body: time.sleep(0.05)
    draw(SeveralServers([toy.url for toy in toys[:2]]), prompts=200)  # type: ignore[arg-type]
    assert len(toys[0].draws) < len(toys[1].draws)
    assert len(toys[0].draws) >= 16


def test_few_prompts_are_shared_too(toys: list[Toy]) -> None:
    for toy in toys:
        toy.spoil = lambda body: time.sleep(0.2)
    draw(SeveralServers([toy.url for toy in toys]), prompts=6)  # type: ignore[arg-type]
    assert [len(toy.draws) for toy in toys] == [2, 2, 2]


def test_one_server_that_fails_ends_the_run_in_one_line_and_parts_stay(
    toys: list[Toy], facts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.parquet"
    words = [toys[0].url, "--server", toys[1].url, "--facts", facts, "--output", str(output)]
    good, bad = toys[:2]
    failed = threading.Event()

    def parts_of() -> list[Path]:
        return sorted((tmp_path / "m.parquet.parts").glob("part-*"))

    # From the second part on one fails, and the other answers after that, however busy the machine is.
    def fail(body: dict[str, Any]) -> Reply | None:
        if not parts_of():
            return None
        failed.set()
        return bad.json({"error": "gone"}, 404)

    def wait(body: dict[str, Any]) -> None:
        if parts_of():
            failed.wait(60)

    bad.spoil, good.spoil = fail, wait
    status, _, told = command(words, monkeypatch, capsys)
    assert status == 2
    last = told.strip().splitlines()[-1]
    assert last.startswith(f"knowshift: {bad.url}: refuses /v1/completions with status 404: ")
    assert "Traceback" not in told
    parts = parts_of()
    assert 1 <= len(parts) < 6
    kept = [path.read_bytes() for path in parts]
    assert not output.exists()
    # It goes on from there without the server that failed, and the record is that of one server.
    asked = len(good.draws)
    status, _, _ = command([*words[:1], *words[3:]], monkeypatch, capsys)
    assert status == 0
    # What was under way when the first run ended may have been counted since.
    missing = 24 - 4 * len(kept)
    assert missing <= len(good.draws) - asked <= missing + 16
    whole, _ = read_table(output, MASTERY, "mastery")
    assert whole.equals(knowshift.mastery(toys[2].url, facts).table)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"owned_by": "sglang"}, "got completions/vllm 'toy' and completions/sglang 'toy'"),
        ({"id": "other"}, "got completions/vllm 'toy' and completions/vllm 'toy' (root y)"),
        ({"root": "y"}, "got completions/vllm 'toy' and completions/vllm 'toy' (root y)"),
        ({"max_model_len": 8}, "got completions/vllm 'toy' and completions/vllm 'toy' (max_model_len 8)"),
        ({"meta": {"n_params": 7}}, "got completions/vllm 'toy' and completions/vllm 'toy' (n_params 7)"),
    ],
)
def test_servers_of_two_kinds_or_models_are_refused(
    toys: list[Toy],
    change: dict[str, Any],
    says: str,
    facts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second, _ = toys
    second.entries[0].update(change)
    if "id" in change:
        second.entries[0]["root"] = "y"
        says = "got completions/vllm 'toy' and completions/vllm 'other' (root y)"
    words = [first.url, "--server", f"{second.url}#{second.entries[0]['id']}", "--facts", facts]
    status, _, told = command([*words, "--output", str(tmp_path / "m.parquet")], monkeypatch, capsys)
    assert status == 2
    assert told.strip() == (
        f"knowshift: {first.url} and {second.url}: expected one kind of server with one model, {says}"
    )
    assert not list(tmp_path.glob("m.parquet*"))
    assert not first.draws
    assert not second.draws


def test_what_is_no_list_of_servers_is_refused_in_one_line(
    toys: list[Toy], facts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = toys[0].url
    for words, says in {
        (): "no model: expected MODEL, or --server with the URL of a server",
        ("world:tiny", "--server", url): "'world:tiny' among servers: expected http://host:port or https://host",
        (url, "--server", "world:tiny"): "'world:tiny' among servers: expected http://host:port or https://host",
        (url, "--server", "http://"): "http://: not a server's address; expected http://host:port",
        (url, "--server", f"{url}/v1/"): f"{url}/v1/: named twice; expected servers of different addresses",
        ("--server", url, "--server", "http://127.0.0.1:9"): "http://127.0.0.1:9: no server answers",
    }.items():
        output = ["--facts", facts, "--output", str(tmp_path / "m.parquet")]
        status, _, told = command([*words, *output], monkeypatch, capsys)
        assert status == 2
        assert told.strip().startswith(f"knowshift: {says}"), words
        assert len(told.strip().splitlines()) == 1
    for model in (3, knowshift.load_model("world:tiny")):
        with pytest.raises(InputError, match=f"a model of type {type(model).__name__} among servers"):
            knowshift.mastery(model, facts, server=[url])  # type: ignore[arg-type]
    assert not list(tmp_path.glob("m.parquet*"))
