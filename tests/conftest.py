"""Fixtures that many tests share: one invented world, built and pre-trained for a few seconds."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from hand_run import build_hand_run
from knowshift.files import folder_beside
from knowshift.models.loading import LoadedModel, load_model
from knowshift.reports.tables.build import Tables, build_tables
from knowshift.system.workers import import_once
from knowshift.world.build import build_world
from knowshift.world.invent import ExposureBand, invent_facts
from tiny_models import SMALL

# Commands that tests start share the processors with other tests: their threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs start with interrupts ignored, and so do their children: tests that interrupt would hang.
signal.signal(signal.SIGINT, signal.default_int_handler)


#: The files that take longest, longest first: the files that are handed out last are short, so no worker waits long.
LONG = (
    "tests/studies/test_study.py",
    "tests/audits/test_audit.py",
    "tests/docs/test_snippets.py",
    "tests/audits/test_pushing.py",
    "tests/probing/test_mastery_run.py",
    "tests/test_packages.py",
    "tests/audits/test_guard.py",
    "tests/probing/test_budget.py",
    "tests/cli/test_commands.py",
    "tests/studies/test_presets.py",
    "tests/parameters/test_adapters_peft.py",
    "tests/parameters/test_adapters_commands.py",
    "tests/docs/test_notebook.py",
    "tests/studies/test_values.py",
    "tests/models/server/test_transformers_serve.py",
    "tests/cli/test_border.py",
    "tests/parameters/test_scaled_adapters.py",
    "tests/studies/test_golden_study.py",
    "tests/audits/purposes/test_tasks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; a worker gets whole files, so that a file's fixtures are made once."""
    folder = Path(__file__).parents[1]
    order = {folder / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """What is imported by now stays, so that no collection of garbage looks at it: each would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _imported_once() -> None:
    import_once("imported")


#: Makes a folder by its name, for reading only.
Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Folders that are made by the first test process that asks, and read by all: ``once(name, make)``."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                with folder_beside(shared / name) as made:
                    make(made)
        return shared / name

    return folder_of


@pytest.fixture(scope="session")
def small_world(once: Once) -> Path:
    """24 relations, six training facts each; a 2-layer Llama of hidden 32."""

    def build(folder: Path) -> None:
        facts = invent_facts(7, train_per_relation=6, test_per_relation=3, out_of_domain_per_relation=3)
        bands = (ExposureBand(0.2, 0, 0), ExposureBand(0.8, 5, 40))
        build_world(folder / "small", facts, seed=7, recipe=SMALL, origin="invented", bands=bands)

    return once("worlds", build) / "small"


@pytest.fixture
def small_model(small_world: Path) -> LoadedModel:
    """A fresh copy for each test: some of them train it."""
    return load_model(str(small_world))


@pytest.fixture(scope="session")
def hand_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of :mod:`hand_run`, for reading only."""
    return build_hand_run(tmp_path_factory.mktemp("runs") / "hand")


@pytest.fixture(scope="session")
def hand_tables(hand_run: Path) -> Tables:
    return build_tables(hand_run)
