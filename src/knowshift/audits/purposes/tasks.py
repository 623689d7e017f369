"""Tasks of lm-eval as what a tuning was for: their documents are items, scored on the models in memory.

Prompts, requests, filters and metrics are lm-eval's own. Requests are made once, so that every model and every half is
asked with the same few-shot examples.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knowshift.audits.purposes.contained import contained
from knowshift.audits.purposes.purpose import SUFFER, Floats, dealt
from knowshift.errors import InputError, border
from knowshift.lm_eval_tasks import FOLDER
from knowshift.lm_eval_tasks import names as ours
from knowshift.models.loading import LoadedModel

#: Documents of a task by which its metric is found.
PROBED = 8
#: Requests that a model answers at once.
BATCH = 8


@dataclass
class Leaf:
    """The chosen documents of one task of lm-eval."""

    task: Any  # lm_eval.api.task.Task
    documents: list[Mapping[str, Any]]
    requests: list[list[Any]]  # of each document, lm_eval.api.instance.Instance
    metric: str = ""  # what is counted, once that is known

    @property
    def name(self) -> str:
        return str(self.task.task_name)

    @property
    def filter(self) -> str:
        """The first of the task's ways to take an answer out of a text; "none" where it has none of its own."""
        return str(self.task._filters[0].name)

    @property
    def counted(self) -> str:
        """The metric, with the filter before it where there is one."""
        return self.metric if self.filter == "none" else f"{self.metric}, {self.filter}"


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
            results = self._results(loaded, leaf, range(min(PROBED, len(leaf.documents))))
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
            for place, result in zip(places, self._results(loaded, leaf, own), strict=True):
                score = result.get(leaf.metric)
                if not _is_share(score):
                    raise InputError(
                        f"--guard {leaf.name}: {leaf.metric} of a document is {str(score)[:80]}; expected 0 to 1"
                    )
                found[place] = float(score)  # type: ignore[arg-type]
        return found

    def _results(self, loaded: LoadedModel, leaf: Leaf, which: Sequence[int]) -> list[dict[str, Any]]:
        """All metrics of some documents, by the first of the task's filters."""
        if not len(which):
            return []
        requests = [request for i in which for request in leaf.requests[i]]
        for request in requests:
            request.resps, request.filtered_resps = [], {}
        with contained(self.seed, loaded.device, quiet=True), border(f"--guard {leaf.name}: cannot run the task"):
            from lm_eval.models.huggingface import HFLM

            tokenizer = copy.deepcopy(loaded.tokenizer)  # lm-eval sets a padding token
            model = HFLM(pretrained=loaded.model, tokenizer=tokenizer, batch_size=BATCH)
            for kind in dict.fromkeys(request.request_type for request in requests):
                some = [one for one in requests if one.request_type == kind for _ in range(one.repeats or 1)]
                for request, answer in zip(some, getattr(model, kind)(some), strict=True):
                    request.resps.append(answer)
            leaf.task._instances = requests
            leaf.task.apply_filters()
            return [
                leaf.task.process_results(
                    leaf.documents[i], [one.filtered_resps[leaf.filter] for one in leaf.requests[i]]
                )
                for i in which
            ]


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
    leaves: list[Leaf] = []
    with contained(seed):
        manager = _manager(_of_ours(names), facts)
        for name in dict.fromkeys(names):
            _check(name, manager)
            with border(f"--guard {name}: cannot load the task"):
                tasks = list(manager.load([name])["tasks"].values())
                twice = {task.task_name for task in tasks} & {leaf.name for leaf in leaves}
                if twice:
                    raise InputError(f"--guard {name}: its task {min(twice)} is named already; expected it once")
                with contained(seed, quiet=True):
                    leaves += choose_documents(tasks, limit, seed)
    return Tasks(tuple(leaves), seed, tuple(dict.fromkeys(names)))


def _of_ours(names: Sequence[str]) -> bool:
    """Whether all are in the package, so that lm-eval's own, which take seconds to list, are not needed."""
    return set(names) <= set(ours())


@functools.lru_cache(maxsize=2)
def _manager(ours_alone: bool, facts: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    metadata: dict[str, Any] = {} if facts is None else {"facts": facts}
    return TaskManager(include_path=str(FOLDER), include_defaults=not ours_alone, metadata=metadata)


def _check(name: str, manager: Any) -> None:
    """Refuse a name that is unknown and tasks that would run code of a model or of a document, before any of it."""
    index = manager.task_index
    if name not in index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        told = f"nearest: {', '.join(near)}" if near else "lm_eval ls tasks lists them"
        raise InputError(f"--guard {name[:80]!r}: lm-eval knows no such task; {told}")
    for config in _configs(name, index):
        if config.get("unsafe_code"):
            raise InputError(f"--guard {name}: {config.get('task')} runs code of the model; expected one without")
        if config.get("doc_to_image") or config.get("doc_to_audio"):
            raise InputError(f"--guard {name}: {config.get('task')} has pictures or sounds; expected texts alone")


def _configs(name: str, index: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configurations of a task, or of all tasks of a group or tag, as their files have them."""
    entry = index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    yield config
    below = config.get("task") if isinstance(config.get("task"), list) else sorted(entry.tags) if not config else []
    for one in below or []:
        if isinstance(one, dict):
            yield one
        inner = one if isinstance(one, str) else one.get("task") or one.get("group")
        if isinstance(inner, str) and inner != name:
            yield from _configs(inner, index)


def choose_documents(tasks: Sequence[Any], limit: int, seed: int) -> list[Leaf]:
    """A seeded choice of the documents of some tasks, with the requests that ask them."""
    counts = [len(task.eval_docs) for task in tasks]
    places = [(i, document) for i, count in enumerate(counts) for document in range(count)]
    order = np.random.default_rng([seed, 23]).permutation(len(places))[:limit]
    leaves = []
    for i, task in enumerate(tasks):
        mine = sorted(places[place][1] for place in order if places[place][0] == i)
        if not mine:
            continue
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed)
        task.build_all_requests(samples=mine)
        requests: list[list[Any]] = [[] for _ in mine]
        for request in task.instances:
            requests[request.doc_id].append(request)
        leaves.append(Leaf(task, [of_one[0].doc for of_one in requests], requests))
    return leaves


def _text(document: Any) -> str:
    asked = document.get("question") if isinstance(document, Mapping) else None
    return asked if isinstance(asked, str) else json.dumps(document, sort_keys=True, default=str)


def _is_share(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) and 0 <= float(value) <= 1
