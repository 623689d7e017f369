"""The files that stand beside a checkpoint's weights: which belong to the model, and which to how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from knowshift.errors import InputError

#: Of the tokenizer.
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "spiece*",
)
#: Of the model: what is copied with its weights.
BESIDE_WEIGHTS = (
    *TOKENIZER,
    *("*.json", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)
#: Never copied: records of an earlier training or edit, and what points to weights that are not copied.
_LEFT_BEHIND = (
    "trainer_state.json",
    "*_results.json",
    "adapter_config.json",
    "optimizer*",
    "knowshift*.json",
    "world.json",
    "*.index.json",
)


def files_beside(folder: Path, patterns: Sequence[str] = BESIDE_WEIGHTS) -> list[Path]:
    """Paths of the folder's files that match one of the patterns, without those that are left behind, sorted.

    Raises:
        InputError: one of them is a link that leads out of the folder and is not one of the hub's cache.
    """
    left = {path for pattern in _LEFT_BEHIND for path in folder.glob(pattern)}
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in (files := sorted(found - left)):
        _check_link(folder, path)
    return files


def _check_link(folder: Path, path: Path) -> None:
    """A checkpoint comes from strangers and its copy is given away, so a link must not bring in a file from elsewhere.

    What a link leads to is copied as content: were any followed, one named ``notes.txt`` could carry a private key of
    whoever repairs the model into what they publish. Links inside the folder are the folder's own content, and a
    snapshot of the hub's cache is made of links to ``models--OWNER--NAME/blobs/HASH``, which a hub gave out. Any other
    is refused rather than left out: a model that lacks its tokenizer is not the one that was asked for.
    """
    real = path.resolve()
    if folder.resolve() in real.parents:
        return
    if real.parent.name == "blobs" and real.parent.parent.name.startswith("models--"):
        return
    raise InputError(
        f"{path}: a link to {real}, outside the folder, whose content would be copied into what is written; "
        "replace the link by the file if that is meant"
    )


def copy_files(source: Path, target: Path, patterns: Sequence[str] = BESIDE_WEIGHTS) -> None:
    """Copy :func:`files_beside` of ``source`` byte for byte; what ``target`` has already stays as it is."""
    for path in files_beside(source, patterns):
        copy = target / path.relative_to(source)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
