"""The files that stand beside a checkpoint's weights: which belong to the model, and which to how it was made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from knowshift.errors import InputError

#: Files one of which a tokenizer needs.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
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
    "tekken.json",
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


def tokenizer_folder(tuned: Path | None, base: Path) -> Path:
    """The folder that the tokenizer of a tuned model comes from: that of the adapter or checkpoint, else the base's.

    A tokenizer is taken whole, from the one folder that has a vocabulary: special tokens and templates of another
    folder would make another tokenizer of it.
    """
    if tuned is None or (_has_vocabulary(base) and not _has_vocabulary(tuned)):
        return base
    return tuned


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / file).is_file() for file in VOCABULARIES)


@contextmanager
def tokenizer_beside(tokenizer: Path, weights: Path) -> Iterator[Path]:
    """A folder with a tokenizer's files and the configuration of the model that it is for, for as long as the block.

    transformers chooses a tokenizer's class, and corrects some tokenizers, by the config.json that lies beside it. An
    adapter's folder has none, or an earlier one.
    """
    if tokenizer == weights:
        yield weights
        return
    with tempfile.TemporaryDirectory(prefix="knowshift-tokenizer-") as scratch:
        files = {path.relative_to(tokenizer): path for path in _matching(tokenizer, TOKENIZER)}
        for name, path in {**files, Path("config.json"): weights / "config.json"}.items():
            link = Path(scratch) / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
        yield Path(scratch)


def _matching(folder: Path, patterns: Sequence[str]) -> set[Path]:
    left = {path for pattern in _LEFT_BEHIND for path in folder.glob(pattern)}
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()} - left


def files_beside(folder: Path, patterns: Sequence[str] = BESIDE_WEIGHTS, without: Sequence[str] = ()) -> list[Path]:
    """Paths of the folder's files that match one of the patterns, sorted.

    What matches one of ``without`` is not among them, nor is what is never copied.

    Raises:
        InputError: one of them is a link that leads out of the folder and is not one of the hub's cache.
    """
    for path in (files := sorted(_matching(folder, patterns) - _matching(folder, without))):
        _check_link(folder, path)
    return files


def _check_link(folder: Path, path: Path) -> None:
    """Refuse a link to a file outside: a checkpoint may come from strangers, and its copy may be published.

    Links are copied as content, so a link named ``notes.txt`` could bring a private key of the user into a published
    model. Links inside the folder are the folder's own content, and a snapshot of the hub's cache consists of links to
    ``models--OWNER--NAME/blobs/HASH``, which come from the hub. Any other is refused rather than left out: a model
    that lacks its tokenizer is not the one that was asked for.
    """
    real = path.resolve()
    if folder.resolve() in real.parents:
        return
    if real.parent.name == "blobs" and real.parent.parent.name.startswith("models--"):
        return
    raise InputError(
        f"{path}: a link to {real}, outside the folder, whose content would be copied into the output; "
        "replace the link by the file if that is meant"
    )


def copy_files(
    source: Path, target: Path, patterns: Sequence[str] = BESIDE_WEIGHTS, without: Sequence[str] = ()
) -> None:
    """Copy :func:`files_beside` of ``source`` byte for byte; what ``target`` has already stays as it is."""
    for path in files_beside(source, patterns, without):
        copy = target / path.relative_to(source)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
