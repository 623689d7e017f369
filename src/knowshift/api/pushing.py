"""An audit and the hub: what is refused beforehand, the confirmed repair of an earlier call, what is pushed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowshift.errors import InputError, border
from knowshift.files import digest, read_json, write_json
from knowshift.system.progress import Shown, is_watched, say
from knowshift.version import __version__

if TYPE_CHECKING:
    from knowshift.audits.repair import Repair

#: Among the records of an audit: the repair that was confirmed.
REPAIR = "repair.json"
#: Files whose fields may name a folder of this machine, and those fields.
CONFIGS = ("knowshift.json", "adapter_config.json", "config.json", "tokenizer_config.json", "generation_config.json")
PLACES = (
    *("folder", "adapter", "made_for", "base_name", "tuned_name"),
    *("base_model_name_or_path", "_name_or_path", "name_or_path"),
)


def check_push(
    repository: str | None, public: bool, *, repair: bool, purposes: bool, models: tuple[object, ...]
) -> None:
    """Refuse what could not be pushed, before hours of an audit.

    Args:
        purposes: whether it was given what the tuning was for.
        models: base and tuned model, as they were given.

    Raises:
        InputError: nothing could be repaired; or as :func:`knowshift.models.hub.check_repository`.
    """
    from knowshift.models.hub import check_repository
    from knowshift.probing.engines import is_server

    if repository is None:
        if public:
            raise InputError("--public: is for --push-to-hub OWNER/NAME, which was not given")
        return
    if any(is_server(str(model)) for model in models):
        raise InputError("--push-to-hub: models on servers are measured only, so there is nothing to push")
    if not repair:
        raise InputError("--push-to-hub: pushes a repair; expected no --no-repair")
    if not purposes:
        raise InputError("--push-to-hub: pushes a repair, and without --keep or --guard nothing is repaired")
    check_repository(repository, public=public)


def keep_repair(folder: Path, repair: Repair, items: Any) -> None:
    """Record a confirmed repair, whose model is the folder's ``repaired``; ``items`` are what it had to keep."""
    write_json(folder / "records" / REPAIR, {**_inputs(folder, items), "repair": repair.record()})


def kept_repair(folder: Path, items: Any) -> Repair | None:
    """The confirmed repair of an earlier call, whose model stands as it was written; None where there is none.

    It is not looked for again: the model at hand is the one that was measured.
    """
    from knowshift.audits.repair import repair_of
    from knowshift.audits.run import REPAIRED

    path = folder / "records" / REPAIR
    if not path.is_file() or not (folder / REPAIRED).is_dir():
        return None
    try:
        record = read_json(path)
        if {name: record.get(name) for name in ("for", "model")} != _inputs(folder, items):
            return None
        return repair_of(record["repair"])
    except (InputError, KeyError, TypeError, ValueError):  # damaged, or of another version: it is looked for again
        return None


def _inputs(folder: Path, items: Any) -> dict[str, str]:
    """What a recorded repair hangs on, beyond the settings of the folder: what it must keep, and the model itself."""
    from knowshift.audits.run import REPAIRED
    from knowshift.models.finding import model_identity

    return {"for": digest(items), "model": model_identity(folder / REPAIRED)}


def push_audit(
    folder: Path,
    repository: str,
    public: bool,
    repair: Repair,
    told: Mapping[str, Any],
    page: str,
    progress: Shown = None,
) -> str:
    """Push the repaired model of an audit with its page and its results; the URL of the repository.

    Paths of this machine stay here: of folders only the last part is in what is pushed.

    Args:
        told: as in audit.json.
        page: the text of the page, for readers elsewhere.

    Raises:
        InputError: the upload failed; the audit and the repaired model are as they were.
    """
    from knowshift.audits.run import REPAIRED
    from knowshift.audits.told import card_of
    from knowshift.models.hub import push

    assert repair.chosen is not None
    model = folder / REPAIRED
    files: dict[str, Path | bytes] = {
        path.relative_to(model).as_posix(): path
        for path in sorted(model.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(model).parts)
    }
    with border(f"{model / 'README.md'}: the model card cannot be read"):
        text = (model / "README.md").read_text(encoding="utf-8")
    results = {**told, "page": "audit.html", "output": repository, "pushed": repository}
    files["README.md"] = card_of(text, repository).encode()
    for name in CONFIGS:
        if name in files and (told_public := without_folders(held := read_json(model / name))) != held:
            files[name] = json.dumps(told_public, indent=1, sort_keys=True).encode()
    files["audit.json"] = json.dumps(results, indent=1, sort_keys=True).encode()
    files["audit.html"] = page.encode()
    say(f"pushing {len(files)} files to {repository}", progress)
    shown = is_watched() if progress is None else progress is True
    message = f"Repaired by knowshift {__version__}: {repair.chosen.name}"
    try:
        return push(repository, files, message, public=public, shown=shown)
    except InputError as error:
        raise InputError(
            f"{error}; the audit and the repaired model stay in {folder}, and the same command goes on and pushes"
        ) from None


def without_folders(made: Any) -> Any:
    """A configuration with only the last part of each path in it."""
    from knowshift.models.finding import public_name

    if isinstance(made, dict):
        return {
            key: public_name(one) if key in PLACES and isinstance(one, str) and one else without_folders(one)
            for key, one in made.items()
        }
    return [without_folders(one) for one in made] if isinstance(made, list) else made
