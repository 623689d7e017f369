"""The paper's tables (Ye et al., EMNLP 2025, arXiv 2509.16596), transcribed: percentages as printed there.

`concentration` is its Table on the share of relative change, `mastery_distribution`, `accuracy_1920`, `restoration`,
`redundancy_by_layer`, `redundancy_by_module` and `strategies` what their names say, for LLaMA-3-8B and others.
"""

from __future__ import annotations

import csv
from importlib import resources


def published(name: str) -> list[dict[str, str]]:
    """The rows of one transcribed table, as text, in the paper's order."""
    text = resources.files(__package__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_concentration(size: int) -> dict[str, float]:
    """LLaMA-3-8B: share (0..1) of summed relative change by top fraction, mean over the five training levels."""
    shares: dict[str, list[float]] = {}
    for row in published("update_concentration"):
        if row["model"] == "LLaMA-3-8B" and int(row["train_size"]) == size:
            shares.setdefault(row["top_fraction"], []).append(float(row["share_of_relative_change_percent"]) / 100)
    return {fraction: sum(values) / len(values) for fraction, values in shares.items()}
