"""Tasks of lm-eval as what a tuning was for: their documents are items, scored on the models in memory.

What of lm-eval they need is in :mod:`knowshift.tasks.harness`.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knowshift.audits.purposes.purpose import SUFFER, Floats, dealt
from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel
from knowshift.tasks.harness import Leaf, load_leaves, results_of

#: Documents of a task by which its metric is found.
PROBED = 8
#: The option that names tasks.
ASKED = "--guard"


@dataclass(frozen=True)
class Tasks:
    """Documents of tasks; each counts what the task's first metric gives it, 0 to 1."""

    leaves: tuple[Leaf, ...]
    seed: int
    named: tuple[str, ...] = field(default=())  # as the user named them

    @property
    def name(self) -> str:
        """The tasks as they were named, with what is counted of them."""
        metrics = "; ".join(sorted({leaf.counted for leaf in self.leaves if leaf.metric}))
        return ", ".join(self.named) + (f" ({metrics})" if metrics else "")

    @property
    def suffer(self) -> float:
        return SUFFER

    @property
    def is_text(self) -> bool:
        return False

    @property
    def texts(self) -> Sequence[str]:
        """A document's question where it has one, or all of the document."""
        return [_text(document) for leaf in self.leaves for document in leaf.documents]

    def __len__(self) -> int:
        return sum(len(leaf.documents) for leaf in self.leaves)

    def find_metrics(self, loaded: LoadedModel) -> None:
        """Choose each task's metric: the first, in its own order, that gives each of some documents a number of 0 to 1.

        Raises:
            InputError: no metric does, or the task cannot be run.
        """
        for leaf in self.leaves:
            results = results_of(ASKED, loaded, leaf, range(min(PROBED, len(leaf.documents))), self.seed)
            higher = leaf.task.higher_is_better()
            names = [name for name in (*leaf.task.aggregation(), *results[0]) if higher.get(name, True)]
            fitting = [name for name in names if all(_is_share(result.get(name)) for result in results)]
            if not fitting:
                raise InputError(
                    f"--guard {leaf.name}: its metrics ({', '.join(results[0])}) give a document no number of 0 to 1; "
                    "expected one that does, as accuracy or exact match"
                )
            leaf.metric = fitting[0]

    def scores(self, loaded: LoadedModel, which: Sequence[int]) -> Floats:
        """Of these documents, float64 [documents], 0 to 1.

        Raises:
            InputError: a task cannot be run, or a score is no number of 0 to 1.
        """
        found = np.zeros(len(which))
        sizes = [len(leaf.documents) for leaf in self.leaves]
        for leaf, (places, own) in zip(self.leaves, dealt(which, sizes), strict=True):
            for place, result in zip(places, results_of(ASKED, loaded, leaf, own, self.seed), strict=True):
                score = result.get(leaf.metric)
                if not _is_share(score):
                    raise InputError(
                        f"--guard {leaf.name}: {leaf.metric} of a document is {str(score)[:80]}; expected 0 to 1"
                    )
                found[place] = float(score)  # type: ignore[arg-type]
        return found


def read_tasks(guard: str | Sequence[str], limit: int, seed: int, facts: str | None = None) -> Tasks:
    """The tasks that are named, with a seeded choice of their documents.

    Args:
        guard: names with commas between them, or a list: tasks, groups and tags that lm-eval knows, and those of
            :mod:`knowshift.lm_eval_tasks`.
        limit: documents of each at most; those of a group or tag are of all its tasks.
        facts: the source that the tasks of EntityQuestions take.

    Raises:
        InputError: lm-eval is not installed, an unknown name, a task that runs code or reads pictures, or one that
            cannot be loaded (a download without a network).
    """
    names = [one.strip() for one in (guard.split(",") if isinstance(guard, str) else guard)]
    if not all(names) or not names:
        raise InputError(f"--guard {str(guard)[:80]!r}: expected names of lm-eval tasks, with commas between them")
    return Tasks(tuple(load_leaves(ASKED, names, limit, seed, facts)), seed, tuple(dict.fromkeys(names)))


def _text(document: Any) -> str:
    asked = document.get("question") if isinstance(document, Mapping) else None
    return asked if isinstance(asked, str) else json.dumps(document, sort_keys=True, default=str)


def _is_share(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) and 0 <= float(value) <= 1
