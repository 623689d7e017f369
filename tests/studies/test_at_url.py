"""A study at a URL beside others: of this machine, which works in the same copy, and of another with its own config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knowshift.errors import InputError
from knowshift.files import write_json
from knowshift.remote import RemoteRun
from knowshift.studies import run as study_run
from knowshift.studies.config import StudyConfig, parse_config
from knowshift.studies.folder import alone, local_copy
from knowshift.studies.run import run_study

PROBED = """
name: small
model: world:tiny
facts: world:tiny
levels: [0]
sizes: [8]
draws: 1
mastery: {draws_per_prompt: 1, train_facts: 20, test_facts: 10, facts_per_cell: 10, max_new_tokens: 2}
"""


class _Stopped(Exception):
    """Ends a study in the middle."""


@pytest.fixture
def config() -> StudyConfig:
    return parse_config(PROBED, "small")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"file://{tmp_path}/store"


def test_the_copy_of_a_run_that_is_about_to_begin_stays(url: str) -> None:
    """Nothing lies at the URL until its manifest is there; a second start on this machine must not clear the copy."""
    local = RemoteRun(url).local
    with alone(local):
        write_json(local / "manifest.json", {})
        assert local_copy(url)[0] == local
        assert (local / "manifest.json").is_file()
    local_copy(url)  # of a run that was there before
    assert not local.exists()


def test_a_second_run_on_this_machine_is_told_the_url(config: StudyConfig, url: str) -> None:
    with (
        alone(RemoteRun(url).local),
        pytest.raises(InputError, match=f"^{url}: another process is working in it; wait for it or choose another"),
    ):
        run_study(config, url, executor="here")


@pytest.mark.parametrize("begun", [False, True], ids=["before its manifest", "while it works"])
def test_the_manifest_of_another_config_is_never_written_over(
    config: StudyConfig, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Two machines start different studies at one empty URL: the one whose manifest was there first keeps it."""
    manifest, others = tmp_path / "store" / "manifest.json", {"config": {**config.as_record(), "seed": 5}}
    planned: Callable[..., Any] = study_run.plan_of

    def plan_of(*given: Any) -> Any:
        if not begun:
            write_json(manifest, others)
        return planned(*given)

    def progress(*told: Any) -> None:
        assert json.loads(manifest.read_text())["config"] == config.as_record()
        write_json(manifest, others)
        raise _Stopped

    monkeypatch.setattr(study_run, "plan_of", plan_of)
    refused = rf"^{url}: holds the run of another config \(seed: 5 there, 0 asked"
    with pytest.raises(_Stopped) if begun else pytest.raises(InputError, match=refused):
        run_study(config, url, executor="here", progress=progress)
    assert json.loads(manifest.read_text()) == others
