"""A copy of EntityQuestions in small: all 48 files, two rows each, made anew for each test that spoils one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowshift.facts.relations import RELATIONS

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "entity-questions" / "dataset.zip"


def small_rows() -> dict[str, Any]:
    """Member name to content: "dataset/train/P17.train.json" and so on."""
    return {
        f"dataset/{split}/{name}.{split}.json": [
            {
                "question": relation.question.replace("{subject}", f"{split} {name} {n}"),
                "answers": [f"{name} answer {n}"],
            }
            for n in (1, 2)
        ]
        for split in ("train", "test")
        for name, relation in RELATIONS.items()
    }


def write_zip(path: Path, members: Mapping[str, Any]) -> Path:
    """Contents that are not bytes yet are written as JSON."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return path


def write_folder(folder: Path, members: Mapping[str, Any]) -> Path:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
