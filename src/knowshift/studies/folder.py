"""The folder of a run: checks of its config and of its levels, its manifest, removal of half-written cells."""

from __future__ import annotations

import errno
import importlib.metadata
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.facts.fact import Fact, Split
from knowshift.files import check_parent, read_json, remove_abandoned, write_json
from knowshift.known_facts import COLUMNS, KnownFacts
from knowshift.records import read_columns
from knowshift.remote import RemoteRun
from knowshift.studies.config import MIXED, StudyConfig, VariantConfig
from knowshift.studies.plan import PACKAGES, Plan
from knowshift.training.draws import level_counts
from knowshift.training.strategy import KNOWN_LEVELS
from knowshift.version import __version__

#: Fields that may still be changed in a folder where nothing but mastery has been measured: above all the sizes, where
#: levels have too few facts for them.
AFTER_MASTERY = frozenset(
    {
        "levels",
        "sizes",
        "draws",
        "control_rate",
        "control_draws",
        "keep_checkpoints",
        "variants",
        "bench",
        "training",
        "evaluation",
        "restoration",
    }
)
#: Fields that may be changed in any folder: they say only which cells there are beside the grid, and what these hold.
BESIDE = (
    "variants",
    "bench",
    "instruct",
    "instruct_revision",
    "restoration.tasks",
    "restoration.tasks_limit",
    "restoration.texts",
)

#: Errors of file systems that cannot lock files: NFS without its lock service above all.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


def local_copy(place: Path | str) -> tuple[Path, RemoteRun | None]:
    """A run folder; of a URL, its copy on this machine, which knows what is complete there and has its mastery.

    Raises:
        InputError: the URL cannot be opened or read, or holds something that is no run.
    """
    if isinstance(place, Path):
        return place, None
    remote = RemoteRun(place)
    if not remote.fetch_file("manifest.json"):
        if not remote.is_empty():
            raise InputError(f"{place}: is not empty and is not a run; choose another --output-dir")
        with suppress(InputError), alone(remote.local):  # else a run of this machine is about to publish its first file
            shutil.rmtree(remote.local, ignore_errors=True)  # of a run that was there before
        return remote.local, remote
    remote.follow()
    remote.fetch(f"cells/mastery/{folder.name}" for folder in remote.local.glob("cells/mastery/[!.]*"))
    return remote.local, remote


def check_folder(run: Path, config: StudyConfig, place: Path | str | None = None) -> None:
    """Refuse a folder that holds something else: one line, before anything is written.

    ``place`` names it in errors, where ``run`` is the copy of one at a URL.

    Raises:
        InputError: a run of another config, or a folder with content that is no run.
    """
    place, manifest = place or run, run / "manifest.json"
    if manifest.exists():
        unreadable = "not a readable manifest; choose another --output-dir"
        try:
            found = read_json(manifest).get("config")
        except InputError as error:
            raise InputError(f"{manifest}: {unreadable} ({error})") from None
        if not isinstance(found, dict):
            raise InputError(f"{manifest}: {unreadable}")
        found, wanted = _comparable(found), _comparable(config.as_record())
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        only_probed = not any(cell.parent.name != "mastery" for cell in (run / "cells").glob("*/[!.]*"))
        if different and not (only_probed and AFTER_MASTERY.issuperset(different)):
            key = different[0]
            raise InputError(
                f"{place}: holds the run of another config ({key}: {found.get(key)!r} there, {wanted.get(key)!r} "
                "asked); choose another --output-dir"
            )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run}: is not empty and is not a run; choose another --output-dir")
    check_parent(run)
    check_parent(run / "manifest.json")
    check_parent(run / "cells" / "kind")


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A configuration with all fields, without :data:`BESIDE` and without addresses.

    A field that its version did not have yet has its default: it then had no effect.
    """
    with suppress(ValidationError):  # of a later version, or damaged: compared as it is
        config = StudyConfig.model_validate(record)
        record = config.as_record()
        record["mastery"]["servers"] = bool(config.mastery.servers)  # servers may move; that there are some stays
        for field in BESIDE:
            section, _, name = field.rpartition(".")
            del (record[section] if section else record)[name]
    return record


def levels_of(run: Path, plan: Plan, split: Split = "train") -> list[int] | None:
    """How many training or test facts each level 0..4 has; None while a part of mastery is missing."""
    files = [cell.folder(run) / "mastery.parquet" for unit in plan.probes for cell in unit.cells]
    if not all(file.is_file() for file in files):
        return None
    tables = [read_columns(file, ["split", "level"]) for file in files]
    return level_counts([row["level"] for table in tables for row in table.to_pylist() if row["split"] == split])


def known_of(run: Path, plan: Plan, facts: Iterable[Fact]) -> KnownFacts:
    """The probed facts with their mastery, once all of it is measured."""
    files = [cell.folder(run) / "mastery.parquet" for unit in plan.probes for cell in unit.cells]
    rows = [row for file in files for row in read_columns(file, COLUMNS).to_pylist()]
    return KnownFacts({fact.id: fact for fact in facts}, rows)


def check_known(name: str, variant: VariantConfig, counts: Sequence[int]) -> None:
    """Refuse a strategy that needs facts which the base knows, where there are none.

    Raises:
        InputError: names the strategy.
    """
    from knowshift.tuning.registry import STRATEGIES

    if (
        variant.strategy is not None
        and STRATEGIES[variant.strategy].needs_known
        and not sum(counts[level] for level in KNOWN_LEVELS)
    ):
        raise InputError(
            f"{name}: strategy {variant.strategy!r} needs training facts that the base model knows; expected some of "
            f"levels 3 and 4, found levels 0..4 with {list(counts)}"
        )


def check_levels(config: StudyConfig, counts: Sequence[int], tested: Sequence[int]) -> None:
    """Refuse sizes that a level has too few facts for, and levels to ask that have no test fact, before any training.

    ``counts`` and ``tested`` are the training and the test facts of each level 0..4.

    Raises:
        InputError: the first such level, with what it has and what was asked.
    """
    levels = config.evaluation.levels
    if levels is not None and not any(tested[level] for level in levels):
        raise InputError(
            f"{config.facts}: no test fact is of levels {sorted(set(levels))}, which evaluation.levels asks for "
            f"(levels 0..4 have {list(tested)})"
        )
    asked = {f"level {level}": (counts[level], config.largest) for level in config.levels}
    mixed = sum(counts[level] for level in config.levels)
    for name, variant in {**config.variants, **config.benched}.items():
        check_known(name, variant, counts)
        wanted = variant.distinct_facts or max(config.sizes_of(variant))
        if variant.levels == MIXED:
            asked["all levels together"] = (mixed, max(wanted, asked.get("all levels together", (0, 0))[1]))
        for level in () if variant.levels == MIXED else variant.levels or config.levels:
            asked[f"level {level}"] = (counts[level], max(wanted, asked[f"level {level}"][1]))
    for name, (there, wanted) in asked.items():
        if there < wanted:
            raise InputError(
                f"{config.facts}: {name} has {there} training facts among the {sum(counts)} probed, "
                f"{wanted} asked (levels 0..4 have {list(counts)})"
            )


def no_longer_asked(run: Path, plan: Plan) -> list[str]:
    """What finished cells of the run's manifest a plan has no more ("12 of tasks"), of an option not given again.

    They stay in the folder, and count again when the option is given again.
    """
    path = run / "manifest.json"
    if not path.exists():
        return []
    planned = {(cell.kind, cell.digest) for cell in plan.cells}
    listed = {(str(cell.get("kind")), str(cell.get("digest"))) for cell in read_json(path).get("cells") or ()}
    gone = Counter(kind for kind, name in listed - planned if (run / "cells" / kind / name).is_dir())
    return [f"{count} of {kind}" for kind, count in sorted(gone.items())]


def remove_leftovers(run: Path) -> None:
    """Remove half-written cells whose writers are gone; another run may be writing others."""
    for kind in run.glob("cells/*"):
        remove_abandoned(kind)


@contextmanager
def alone(run: Path, place: Path | str | None = None) -> Iterator[None]:
    """Refuse a second run of the same folder on this machine, and on others where their file system can lock.

    Where it cannot, two runs do some cells twice, and nothing else: a cell is renamed into place whole, and two of the
    same name have the same content. ``place`` names it in errors, where ``run`` is the copy of one at a URL.

    Raises:
        InputError: another process is working in it.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.parent / f".{run.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{place or run}: another process is working in it; wait for it or choose another --output-dir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            KnowshiftWarning(f"{run}: its file system cannot lock; a second run in it would do cells twice"),
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def write_manifest(
    run: Path, config: StudyConfig, plan: Plan, about: dict[str, Any], seconds: dict[str, float]
) -> None:
    path = run / "manifest.json"
    before = {}
    if path.exists():
        told = read_json(path).get("timings")
        before = told if isinstance(told, dict) else {}
    write_json(
        path,
        {
            "knowshift": __version__,
            "name": config.name,
            "config": config.as_record(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "git_revision": _git_revision(),
            **about,
            # Cells of a training set of all facts of a level are listed once mastery has told their number.
            "cells": [cell.as_record() for cell in plan.cells if cell.coordinates.get("size", 0) is not None],
            "timings": {**before, **seconds},
        },
    )


def _git_revision() -> str | None:
    """The revision of the code that runs, where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
