"""A real server: `transformers serve` on loopback gives what this process gives, up to sampling."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowshift.errors import InputError
from knowshift.facts.fact import completion_prompts
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import model_folder
from knowshift.models.loading import load_model
from knowshift.models.sampling.session import sample
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.engine import CompletionsServer
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Protocol
from knowshift.probing.run import run_mastery
from knowshift.records import MASTERY, read_table
from knowshift.studies.config import StudyConfig, parse_config
from knowshift.studies.run import run_study

pytestmark = pytest.mark.slow

PROMPTS, DRAWS = 24, 8


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve` with the shipped model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    words = ["serve", str(model_folder("world:tiny")), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *words, "--dtype", "float32"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=quiet,
        )
    try:
        until = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def omnibus(hits: np.ndarray, rates: np.ndarray, draws: int) -> float:
    """How likely hits so far from these rates are if each draw hits with its prompt's rate: Monte Carlo of sum z^2."""
    rates = rates.clip(0.02, 0.98)

    def distance(found: np.ndarray) -> Any:
        return (((found - draws * rates) ** 2) / (draws * rates * (1 - rates))).sum(axis=-1)

    random_hits = np.random.default_rng(0).binomial(draws, rates, size=(20_000, len(rates)))
    return float((distance(random_hits) >= distance(hits)).mean())


def test_transformers_serve_gives_the_same_records_up_to_sampling(
    transformers_serve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOWSHIFT_CONCURRENCY", "1")  # its seeds are the process's: one at a time is reproducible
    server = CompletionsServer(transformers_serve)
    assert server.about()["engine"] == "completions/transformers"
    assert server.keeps_stops
    assert server.completions.at_once(DRAWS) == 1
    loaded = load_model("world:tiny")
    facts = load_facts("world:tiny").facts[:200]
    prompts = [completion_prompts(fact)[i % 21] for i, fact in enumerate(facts)]
    accepted = [fact.accepted for fact in facts]
    every = sample(loaded, prompts, accepted, Sampling(seed=4, draws_per_prompt=500), streams=prompts).hits / 500
    # Prompts whose draws are neither sure to hit nor to miss.
    chosen = np.flatnonzero((every > 0.05) & (every < 0.95))[:PROMPTS]
    assert len(chosen) == PROMPTS
    prompts, accepted, rates = [prompts[i] for i in chosen], [accepted[i] for i in chosen], every[chosen]
    session = server.session(prompts, accepted, Sampling(seed=3, draws_per_prompt=DRAWS), streams=prompts)
    session.draw([np.arange(DRAWS)] * PROMPTS)
    assert session.positions > 0
    assert omnibus((session.hit == 1).sum(axis=1), rates, DRAWS) > 0.01
    # The test can tell: what is sampled in this process passes too, and nearly greedy answers do not.
    for temperature, same in ((0.7, True), (0.01, False)):
        ours = sample(
            loaded,
            prompts,
            accepted,
            Sampling(seed=5, draws_per_prompt=DRAWS, temperature=temperature),
            streams=prompts,
        )
        assert (omnibus(ours.hits, rates, DRAWS) > 0.01) == same


def test_a_record_from_transformers_serve(transformers_serve: str, tmp_path: Path) -> None:
    facts = load_facts("world:tiny").facts[:2]
    protocol = Protocol(draws_per_prompt=1, max_new_tokens=4)
    # Under two addresses, as if they were two.
    spec = EngineSpec(transformers_serve, servers=(transformers_serve.replace("127.0.0.1", "localhost"),))
    outcome = run_mastery(spec, facts, tmp_path / "m.parquet", protocol)
    table, about = read_table(tmp_path / "m.parquet", MASTERY, "mastery")
    assert table["fact"].to_pylist() == [fact.id for fact in facts]
    assert outcome.draws == 2 * 21
    assert about["engine"] == "completions/transformers"
    assert about["model"].startswith(str(model_folder("world:tiny")))
    assert about["dtype"] == about["device"] == "server"
    with pytest.raises(InputError, match="recorded with another"):
        run_mastery(EngineSpec("world:tiny"), facts, tmp_path / "m.parquet", protocol)


def test_a_study_takes_mastery_from_a_server_and_goes_on_with_another(
    transformers_serve: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(url: str) -> StudyConfig:
        facts = "train_facts: 5, test_facts: 1, facts_per_cell: 6"
        asked = f"draws_per_prompt: 1, max_new_tokens: 4, {facts}, servers: ['{url}']"
        text = f"name: s\nmodel: world:tiny\nfacts: world:tiny\nlevels: [0]\nsizes: [5]\nmastery: {{{asked}}}\n"
        return parse_config(text, "s.yaml")

    monkeypatch.setenv("KNOWSHIFT_TRIES", "1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    run = tmp_path / "run"
    with pytest.raises(InputError, match=gone):
        run_study(config(gone), run, executor="here")
    assert not run.exists()
    # Mastery is measured; that levels of five facts cannot have five is then refused.
    for url in (transformers_serve, gone):  # the second finds it, and asks no server
        with pytest.raises(InputError, match=r"level 0 has \d training facts among the 5 probed, 5 asked"):
            run_study(config(url), run, executor="here")
    parts = [read_table(file, MASTERY, "mastery") for file in sorted(run.glob("cells/mastery/*/mastery.parquet"))]
    assert sorted(table.num_rows for table, _ in parts) == [1, 6]
    server = CompletionsServer(transformers_serve)
    for _, about in parts:
        assert {name: about[name] for name in server.about()} == server.about()
        assert about["engine"].startswith("completions/")
