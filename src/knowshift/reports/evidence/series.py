"""Trainings of a bench that differ in one number: each such series is one characteristic, varied alone."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Series:
    """Labels of a bench with the same strategy and settings but one, by that one's value, ascending."""

    strategy: str
    setting: str
    others: str  # the settings that they share, in words: "same true"; empty where there are none
    labels: Mapping[float, str]


def series_of(config: Mapping[str, Any], there: Collection[str]) -> list[Series]:
    """The series among the labels that are there, in the order of the config's bench.

    A setting that a label leaves to its default is not known here: two labels are alike in it when both leave it or
    both give it the same value. The number of training facts is no setting of a strategy; in a series it is the same.
    """
    bench = config.get("bench")
    told = bench.get("strategies") if isinstance(bench, dict) else None
    groups: dict[tuple[str, str, str], dict[float, str]] = {}
    for label, given in told.items() if isinstance(told, dict) else ():
        if label not in there or not isinstance(given, dict):
            continue
        settings = {name: value for name, value in given.items() if name != "rates"}  # the best is compared
        strategy = str(settings.pop("strategy", label))
        for setting, value in settings.items():
            if setting == "size" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                shared = {name: other for name, other in sorted(settings.items()) if name != setting}
                words = ", ".join(f"{name} {json.dumps(other)}" for name, other in shared.items())
                groups.setdefault((strategy, str(setting), words), {}).setdefault(float(value), str(label))
    return [Series(*which, dict(sorted(labels.items()))) for which, labels in groups.items() if len(labels) > 1]
