"""The paper's tables (Ye et al., EMNLP 2025, arXiv 2509.16596), transcribed: percentages as printed there.

`mastery_distribution` is of its Tables 1 and 8, `accuracy_1920` of Table 2, `update_concentration` of Table 3,
`restoration` of Table 4, `restoration_other_tasks` of Table 5, `restoration_train_set` of Table 6, `strategies` of
Table 7, `redundancy_by_layer` and `redundancy_by_module` of Tables 9 and 10, `restored_layers` of Table 11. Its aliases
of answers are in ``facts/sources``. Most are of LLaMA-3-8B; deviations are over training draws, in points.
"""

from __future__ import annotations

import csv
from importlib import resources

#: The paper's models. Their names on the Hub say "Meta-" before and "-hf" behind, or neither.
MODELS = ("LLaMA-2-7B", "LLaMA-2-13B", "LLaMA-2-70B", "LLaMA-3-8B", "LLaMA-3-70B")


def paper_model(name: str) -> str | None:
    """Which of :data:`MODELS` a model of this name (of the Hub, or a folder) is; None where it is none of them."""
    last = name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-").removesuffix("-hf")
    return next((model for model in MODELS if model.lower() == last), None)


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
