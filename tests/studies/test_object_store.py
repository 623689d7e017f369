"""A study whose run lies in a bucket of an S3 server on loopback: the same files as in a folder, whatever goes wrong.

The server is moto's and the client s3fs: ``pip install s3fs "moto[s3]" flask flask-cors``. Neither is among the
packages of contributors, whose pinned ones botocore does not go with (docs/cluster.md).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Command
from knowshift import remote
from knowshift.api.studies import report, study
from knowshift.errors import InputError
from knowshift.remote import MARK, RemoteRun
from knowshift.studies.config import StudyConfig, parse_config
from knowshift.studies.run import run_study

s3fs = pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

#: One tuned model with its checkpoint and all its measures.
SMALL = """
name: small
model: world:tiny
facts: world:tiny
levels: [0]
sizes: [8]
draws: 1
control_rate: null
mastery: {draws_per_prompt: 1, train_facts: 60, test_facts: 20, facts_per_cell: 40, max_new_tokens: 6}
training: {learning_rate: 3.0e-4}
evaluation: {facts_per_level: 3, few_shot: 1}
restoration: {fractions: [0.2, 0.6], train_set_fractions: [0.2]}
"""
#: Their seconds differ from run to run.
TIMED = {"manifest.json", "report.html"}


class Store:
    """An S3 server with one bucket. What it holds outlives its end: it can be started again."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self._server = moto_server.ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def ask_for_keys(self, after: int) -> None:
        """Refuse keys that were never given out, after a number of requests."""
        asked = urllib.request.Request(f"{self.address}/moto-api/reset-auth", str(after).encode(), {"Content-Type": ""})
        urllib.request.urlopen(asked).close()

    def objects(self, below: str) -> dict[str, bytes]:
        """All that lies below a place, by the names there."""
        client = boto3.client("s3")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{below}/")
        names = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return {
            name.removeprefix(f"{below}/"): client.get_object(Bucket="bucket", Key=name)["Body"].read()
            for name in names
        }

    def run(self, below: str) -> dict[str, bytes]:
        """The files of a run as they lie in a folder: of a cell those that its mark names."""
        found = self.objects(below)
        files = {name: content for name, content in found.items() if not name.startswith("cells/")}
        for name, content in found.items():
            if name.endswith(f"/{MARK}"):
                mark, cell = json.loads(content), name.removesuffix(f"/{MARK}")
                files |= {f"{cell}/{file}": found[f"{cell}/{mark['part']}/{file}"] for file in mark["files"]}
        return {name: content for name, content in files.items() if name not in TIMED}


@pytest.fixture(scope="module")
def started() -> Iterator[Store]:
    store = Store()
    yield store
    store.stop()


@pytest.fixture
def store(started: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    told = {
        "AWS_ENDPOINT_URL": started.address,
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # a client keeps the address and the keys that it began with
    boto3.client("s3").create_bucket(Bucket="bucket")
    return started


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return parse_config(SMALL, "small")


@pytest.fixture(scope="module")
def expected(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the study in a folder."""
    run = tmp_path_factory.mktemp("runs") / "folder"
    study(config, output_dir=run, executor="here", progress=False)
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    assert sum(name.endswith(".csv") for name in files) > 20
    return {name: path.read_bytes() for name, path in files.items() if name not in TIMED}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_a_cell_lies_in_a_bucket_as_it_was_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file, and one that is sent in several parts."""
    run, cell, large = RemoteRun("s3://bucket/cell/"), "cells/kind/abc", os.urandom(60_000_000)
    with run.folder(cell) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(large)
        (folder / "empty").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    other = RemoteRun("s3://bucket/cell")
    other.follow()
    other.fetch([cell])
    assert other.local != run.local
    assert (other.local / cell / "model" / "weights").read_bytes() == large
    assert (other.local / cell / "empty").read_bytes() == b""
    (run.local / "tables").mkdir()
    for name in ("old", "new"):
        (run.local / "tables" / f"{name}.csv").write_text(name)
        run.publish("tables")
        (run.local / "tables" / f"{name}.csv").unlink()
    assert {name for name in store.objects("cell") if name.startswith("tables")} == {"tables/new.csv"}


def test_what_is_no_place_for_a_run_is_one_line(store: Store, config: StudyConfig) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket="bucket", Key="thesis/text", Body=b"mine")
    with pytest.raises(InputError, match=r"^s3://bucket/thesis: is not empty and is not a run; choose another"):
        study(config, output_dir="s3://bucket/thesis", executor="here", progress=False)
    with pytest.raises(InputError, match=r"^s3://nowhere/run/manifest\.json: cannot be written: The specified bucket"):
        run_study(config, "s3://nowhere/run", executor="here")
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["bucket"]
    with pytest.raises(InputError, match=r"^s3://bucket/none: not a run folder: manifest\.json is missing"):
        report("s3://bucket/none")
    client.put_object(Bucket="bucket", Key="folder/", Body=b"")  # as a console makes one
    assert RemoteRun("s3://bucket/folder").is_empty()


def test_keys_that_are_not_good_are_one_line(
    store: Store, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ask_for_keys(0)
    try:
        with pytest.raises(InputError, match=r"^s3://bucket/keys/manifest\.json: cannot be read: .*Forbidden"):
            run_study(config, "s3://bucket/keys", executor="here")
    finally:
        store.ask_for_keys(10**9)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"^s3://bucket/keys/manifest\.json: cannot be read: Unable to locate cred"):
        run_study(config, "s3://bucket/keys", executor="here")


@pytest.mark.slow
def test_a_run_in_a_bucket_has_the_same_files_on_every_machine(
    store: Store, config: StudyConfig, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/runs/small"
    told = study(config, output_dir=url, executor="here", progress=False)
    assert told.report.output == f"{url}/report.html"
    assert store.run("runs/small") == expected
    # Another machine has no copy, and makes what is missing from the checkpoint in the bucket.
    client = boto3.client("s3")
    gone = [name for name in store.objects("runs/small") if "/evaluation/" in name or name.startswith("tables/")]
    for name in gone:
        client.delete_object(Bucket="bucket", Key=f"runs/small/{name}")
    assert store.run("runs/small") != expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    study(config, output_dir=url, executor="processes", workers=2, progress=False)
    assert store.run("runs/small") == expected
    # A third one writes the report, and fetches no checkpoint.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    client.delete_object(Bucket="bucket", Key="runs/small/report.html")
    report(url)
    assert b"<svg" in store.objects("runs/small")["report.html"]
    assert not list((tmp_path / "three").rglob("*.safetensors"))
    before = store.objects("runs/small")
    with pytest.raises(InputError, match=rf"^{url}: holds the run of another config \(seed: 0 there, 5 asked"):
        study(config, overrides={"seed": 5}, output_dir=url, progress=False)
    assert store.objects("runs/small") == before


def _study(config: Path, url: str, cache: Path, *more: str) -> Command:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return Command(["study", str(config), "--output-dir", url, *more], env=environment)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_in_the_same_files(
    store: Store, config_file: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Between cells, and in the middle of one; then by a machine that has no copy."""
    moments: dict[str, Callable[[dict[str, bytes]], Any]] = {
        "one": lambda found: any(name.startswith("cells/mastery/") and name.endswith(MARK) for name in found),
        "two": lambda found: any(name.startswith("cells/tuned/") for name in found),
    }
    for machine, has_come in moments.items():
        process = _study(config_file, "s3://bucket/killed", tmp_path / machine, "--executor", "processes")
        deadline = time.monotonic() + 240
        while not has_come(store.objects("killed")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not any(name.startswith("tables/") for name in store.objects("killed"))
    for machine in ("two", "three"):
        process = _study(config_file, "s3://bucket/killed", tmp_path / machine, "--executor", "here")
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert store.run("killed") == expected


@pytest.mark.slow
def test_two_runs_at_once_end_in_the_same_files(
    store: Store, config_file: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Two machines both work, and may do cells twice; one machine refuses the second.

    Of two that write one object at once, moto answers one with 500 now and then, and botocore asks again.
    """
    both = [_study(config_file, "s3://bucket/twice", tmp_path / name, "--executor", "here") for name in ("one", "two")]
    deadline = time.monotonic() + 240
    while not list((tmp_path / "one").glob("knowshift/runs/*/cells/mastery/*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(both[0].pid, signal.SIGSTOP)  # it has hours of work ahead
    second = _study(config_file, "s3://bucket/twice", tmp_path / "one", "--executor", "here")
    try:
        _, err = second.communicate(timeout=240)
    finally:
        os.killpg(both[0].pid, signal.SIGCONT)
    assert second.returncode == 2
    assert err.startswith("knowshift: s3://bucket/twice: another process is working in it; wait for it")
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert store.run("twice") == expected


@pytest.mark.slow
def test_a_server_that_is_gone_costs_what_was_not_done(
    store: Store, config: StudyConfig, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle, and when only the manifest and the report are left to write."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore, for each of the five of s3fs
    cells = {name.split("/")[2] for name in expected if name.startswith("cells/")}
    titles: list[str] = []

    def progress(done: int, total: int, title: str, *seconds: float) -> None:
        titles.append(title)
        if done in (2, total):
            store.stop()

    url = "s3://bucket/gone"
    for where in ("cells/.*", "manifest.json"):
        try:
            with pytest.raises(InputError, match=rf"^{url}/{where}: cannot be read: Could not connect"):
                study(config, output_dir=url, executor="here", progress=progress)
        finally:
            store.start()
        done = {name for name in store.objects("gone") if name.endswith(MARK)}
        assert len(done) == (2 if where == "cells/.*" else len(cells))
    study(config, output_dir=url, executor="here", progress=progress)
    assert len(set(titles)) == len(titles)  # nothing was done again
    assert store.run("gone") == expected


def test_a_server_that_says_nothing_is_given_up(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, and what it is asked for."""
    monkeypatch.setattr(remote, "_PATIENCE", 1.0)
    run = RemoteRun("s3://bucket/silent")
    run.local.mkdir(parents=True)
    (run.local / "manifest.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match=r"^s3://bucket/silent: cannot be written to: no answer in 1 s$"):
            run.publish("manifest.json")
