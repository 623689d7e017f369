"""What a cluster refuses, each in one line: a head that is gone, nodes that are not alike or do not see the run."""

from __future__ import annotations

import importlib.util
import re
import socket
import time
from pathlib import Path

import pytest

from knowshift.errors import InputError
from knowshift.files import write_json
from knowshift.studies import cluster
from knowshift.studies.cluster import RayCluster
from knowshift.studies.config import StudyConfig, parse_config
from knowshift.studies.plan import Cell, Unit

UNIT = Unit("a unit", (Cell("mastery", {"part": 0}, {}),))


@pytest.fixture
def config() -> StudyConfig:
    return parse_config("name: s\nmodel: not/there\nfacts: world:tiny\n", "s.yaml")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_dead_head_is_refused_at_once(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(port))
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^RAY_ADDRESS {address.format(port)}: no Ray head answers there \("):
        RayCluster(tmp_path / "run", config).__enter__()
    assert time.monotonic() - began < cluster.ANSWER


def test_without_ray_it_says_what_to_install(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'knowshift\[ray\]'"):
        RayCluster(tmp_path / "run", config).__enter__()


def test_a_node_that_is_not_like_the_others_is_named(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SEEN", 0.0)
    monkeypatch.setattr(cluster.platform, "node", lambda: "n7")
    run, here = tmp_path / "run", cluster._versions(config)
    with pytest.raises(InputError, match=rf"^node n7: torch {re.escape(here['torch'])}, but 0\.1 where"):
        cluster._on_node(run, config, UNIT, {**here, "torch": "0.1"})
    with pytest.raises(InputError, match=rf"^node n7: {run}: no manifest.json is seen there; expected a run folder"):
        cluster._on_node(run, config, UNIT, here)
    write_json(run / "manifest.json", {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^node n7: .*not/there"):
        cluster._on_node(run, config, UNIT, here)


def test_a_unit_that_is_done_elsewhere_must_be_seen_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not cluster._is_done(UNIT, tmp_path)
    UNIT.cells[0].folder(tmp_path).mkdir(parents=True)
    assert cluster._is_done(UNIT, tmp_path)
    url = f"file://{tmp_path}/other"
    assert not cluster._is_done(UNIT, url)
    assert not cluster._is_begun(url)
    write_json(tmp_path / "other" / "manifest.json", {})
    write_json(tmp_path / "other" / UNIT.cells[0].name / "complete.json", {"part": "1", "files": {}})
    assert cluster._is_done(UNIT, url)
    assert cluster._is_begun(url)
