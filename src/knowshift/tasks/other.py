"""The tasks that a study asks its models beside facts, by name: its own two, and those of lm-eval."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.errors import InputError, border
from knowshift.facts.fact import Fact
from knowshift.models.loading import LoadedModel
from knowshift.tasks import sentences, text_loss
from knowshift.tasks.harness import Leaf, check_names, load_leaves, results_of
from knowshift.tasks.measured import Measured, Task

#: What names tasks, in errors.
ASKED = "restoration.tasks"
#: The tasks that need no lm-eval.
OWN = (text_loss.NAME, sentences.NAME)


@dataclass(frozen=True)
class HarnessTask:
    """Documents of a task of lm-eval, scored by all of its metrics."""

    leaf: Leaf
    seed: int

    def measure(self, loaded: LoadedModel) -> list[Measured]:
        """An entry for each metric whose aggregate, by lm-eval's own rule, is a number.

        Raises:
            InputError: the task cannot be run, or no metric is a number.
        """
        leaf, count = self.leaf, len(self.leaf.documents)
        results = results_of(ASKED, loaded, leaf, range(count), self.seed)
        texts = [_text(of_one[0].resps) for of_one in leaf.requests]
        higher = leaf.task.higher_is_better()
        found = []
        for metric, aggregate in leaf.task.aggregation().items():
            held = [result[metric] for result in results if metric in result]
            with border(f"{ASKED} {leaf.name}: cannot take {metric} of all documents"):
                score: Any = aggregate(held) if held else None
            if not _is_number(score):
                continue
            values = [_value(result.get(metric)) for result in results]
            items = [str(number) for number in leaf.numbers]
            better = bool(higher.get(metric, True))
            found.append(Measured(leaf.name, metric, better, float(score), items, values, [1.0] * count, texts))
        if not found:
            raise InputError(f"{ASKED} {leaf.name}: none of its metrics ({', '.join(results[0])}) is a number")
        return found


def read_tasks(
    names: Sequence[str],
    *,
    limit: int | None,
    seed: int,
    source: str,
    facts: Sequence[Fact],
    texts: Path | None = None,
) -> list[Task]:
    """The tasks of these names, ready to be asked.

    Args:
        limit: items of each task at most, a seeded choice; all where None.
        source: the name of the source of ``facts``; the tasks of EntityQuestions take it too.
        texts: a text file whose loss ``text_loss`` is, instead of sentences of a world.

    Raises:
        InputError: as :func:`check_tasks`, facts that are not of a world, a task that cannot be loaded.
    """
    theirs = [name for name in names if name not in OWN]
    leaves = load_leaves(ASKED, theirs, limit, seed, source) if theirs else []
    found: list[Task] = []
    if text_loss.NAME in names and texts is not None:
        found.append(text_loss.TextLoss((), text_loss.read_text(texts), limit, seed, str(texts)))
    elif text_loss.NAME in names:
        found.append(text_loss.TextLoss(sentences.held_out(facts, limit, seed, source)))
    if sentences.NAME in names:
        found.append(sentences.Completion.of(facts, limit, seed, source))
    return [*found, *(HarnessTask(leaf, seed) for leaf in leaves)]


def check_tasks(names: Sequence[str], texts: Path | None = None) -> None:
    """Refuse what names alone tell; nothing is fetched.

    Raises:
        InputError: an unknown task, with the nearest names; lm-eval is not installed; texts that nothing reads.
    """
    if texts is not None:
        if text_loss.NAME not in names:
            raise InputError(f"restoration.texts {texts}: expected {text_loss.NAME} among {ASKED}, which reads it")
        text_loss.read_text(texts)
    if theirs := [name for name in names if name not in OWN]:
        _check_theirs(tuple(theirs))


@functools.lru_cache(maxsize=8)
def _check_theirs(names: tuple[str, ...]) -> None:
    """Once for a process: lm-eval takes seconds to list its tasks."""
    check_names(ASKED, names, OWN)


def _text(answers: Sequence[Any]) -> str | None:
    """A generated text; what a model was asked for as a loglikelihood has none."""
    first = answers[0] if answers else None
    return first if isinstance(first, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) and math.isfinite(float(value))


def _value(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def columns_of(measured: Sequence[Measured], about: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns of ``records.TASKS``: a row for each item of each entry, with the same ``about`` in all."""
    columns: dict[str, list[Any]] = {name: [] for name in (*about, "task", "metric", "item", "value", "weight", "text")}
    for one in measured:
        count = len(one.items)
        for name, value in about.items():
            columns[name] += [value] * count
        columns["task"] += [one.task] * count
        columns["metric"] += [one.metric] * count
        columns["item"] += one.items
        columns["value"] += one.values
        columns["weight"] += one.weights
        columns["text"] += one.texts
    return columns
