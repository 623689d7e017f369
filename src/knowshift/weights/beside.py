"""The files that stand beside a checkpoint's weights: which belong to the model, and which to how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

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
    """Paths of the folder's files that match one of the patterns, without those that are left behind, sorted."""
    left = {path for pattern in _LEFT_BEHIND for path in folder.glob(pattern)}
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(found - left)


def copy_files(source: Path, target: Path, patterns: Sequence[str] = BESIDE_WEIGHTS) -> None:
    """Copy :func:`files_beside` of ``source`` byte for byte; what ``target`` has already stays as it is."""
    for path in files_beside(source, patterns):
        copy = target / path.relative_to(source)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
