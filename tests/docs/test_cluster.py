"""The scripts of docs/cluster.md are read by their shells and parsers, and give knowshift options that it has."""

from __future__ import annotations

import re
import shlex
import subprocess

import yaml
from typer.main import get_command

from knowshift.cli.app import app
from pages import snippets

PAGE = "docs/cluster.md"


def test_scripts_are_shell() -> None:
    scripts = snippets(PAGE, "bash")
    assert len(scripts) == 5
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script


def test_every_call_of_knowshift_parses() -> None:
    (manifest,) = snippets(PAGE, "text")
    text = "\n".join([*snippets(PAGE, "bash"), yaml.safe_load(manifest)["spec"]["entrypoint"]])
    calls = re.findall(r"^knowshift (study .*)$", text, re.M)
    assert len(calls) == 3
    study = get_command(app).commands["study"]  # type: ignore[attr-defined]
    for call in calls:
        given = study.make_context("study", shlex.split(call)[1:]).params
        assert (given["preset"], given["executor"]) == ("gemma-3", "ray")


def test_head_and_workers_of_the_manifest_are_alike() -> None:
    (manifest,) = snippets(PAGE, "text")
    told = yaml.safe_load(manifest)
    assert (told["apiVersion"], told["kind"]) == ("ray.io/v1", "RayJob")
    cluster = told["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["template"] == cluster["headGroupSpec"]["template"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
