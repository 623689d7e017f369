"""Tasks of lm-eval: their documents are chosen and asked here, of models in memory.

Prompts, requests, filters and metrics are lm-eval's own. Requests are made once, so that every model is asked with the
same few-shot examples. Errors name what asks for a task by its option (``asked``: "--guard").
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knowshift.errors import InputError, border
from knowshift.lm_eval_tasks import FOLDER
from knowshift.lm_eval_tasks import names as ours
from knowshift.models.loading import LoadedModel
from knowshift.tasks.contained import contained

#: Requests that a model answers at once.
BATCH = 8


@dataclass
class Leaf:
    """The chosen documents of one task of lm-eval."""

    task: Any  # lm_eval.api.task.Task
    name: str  # read once: lm-eval draws a random one each time it is asked, and takes the task's own
    documents: list[Mapping[str, Any]]
    requests: list[list[Any]]  # of each document, lm_eval.api.instance.Instance
    numbers: list[int]  # of the documents in their task
    metric: str = ""  # what is counted, once that is known

    @property
    def filter(self) -> str:
        """The first of the task's ways to take an answer out of a text; "none" where it has none of its own."""
        return str(self.task._filters[0].name)

    @property
    def counted(self) -> str:
        """The metric, with the filter before it where there is one."""
        return self.metric if self.filter == "none" else f"{self.metric}, {self.filter}"


def results_of(asked: str, loaded: LoadedModel, leaf: Leaf, which: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """All metrics of some documents, a dict each, by the first of the task's filters.

    Raises:
        InputError: the task cannot be run.
    """
    if not len(which):
        return []
    requests = [request for i in which for request in leaf.requests[i]]
    for request in requests:
        request.resps, request.filtered_resps = [], {}
    cannot = f"{asked} {leaf.name}: cannot run the task"
    with contained(seed, loaded.device, quiet=True, asked=asked), border(cannot):
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
            leaf.task.process_results(leaf.documents[i], [one.filtered_resps[leaf.filter] for one in leaf.requests[i]])
            for i in which
        ]


def load_leaves(asked: str, names: Sequence[str], limit: int | None, seed: int, facts: str | None = None) -> list[Leaf]:
    """The tasks that are named, with a seeded choice of their documents.

    Args:
        names: tasks, groups and tags that lm-eval knows, and those of :mod:`knowshift.lm_eval_tasks`.
        limit: documents of each at most, all where None; those of a group or tag are of all its tasks.
        facts: the source that the tasks of EntityQuestions take.

    Raises:
        InputError: lm-eval is not installed, an unknown name, a task that runs code or reads pictures, one that
            cannot be loaded (a download without a network), or one that is named twice.
    """
    leaves: list[Leaf] = []
    with contained(seed, asked=asked):
        manager = _manager(_of_ours(names), facts)
        for name in dict.fromkeys(names):
            _check(asked, name, manager)
            with border(f"{asked} {name}: cannot load the task"):
                tasks = list(manager.load([name])["tasks"].values())
                twice = {task.task_name for task in tasks} & {leaf.name for leaf in leaves}
                if twice:
                    raise InputError(f"{asked} {name}: its task {min(twice)} is named already; expected it once")
                with contained(seed, quiet=True, asked=asked):
                    leaves += choose_documents(tasks, limit, seed)
    return leaves


def check_names(asked: str, names: Sequence[str], beside: Sequence[str] = ()) -> None:
    """Refuse what :func:`load_leaves` would refuse by name and configuration alone; nothing is fetched.

    ``beside`` are other names that are valid where tasks are asked for; they are among the nearest of an unknown one.
    """
    with contained(0, asked=asked):
        manager = _manager(_of_ours(names), None)
        for name in names:
            _check(asked, name, manager, beside)


def _of_ours(names: Sequence[str]) -> bool:
    """Whether all are in the package, so that lm-eval's own, which take seconds to list, are not needed."""
    return set(names) <= set(ours())


@functools.lru_cache(maxsize=2)
def _manager(ours_alone: bool, facts: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    metadata: dict[str, Any] = {} if facts is None else {"facts": facts}
    return TaskManager(include_path=str(FOLDER), include_defaults=not ours_alone, metadata=metadata)


def _check(asked: str, name: str, manager: Any, beside: Sequence[str] = ()) -> None:
    """Refuse a name that is unknown and tasks that would run code of a model or of a document, before any of it."""
    index = manager.task_index
    if name not in index:
        near = difflib.get_close_matches(name, [*beside, *manager.all_tasks], n=3)
        told = f"nearest: {', '.join(near)}" if near else "lm_eval ls tasks lists them"
        raise InputError(f"{asked} {name[:80]!r}: lm-eval knows no such task; {told}")
    for config in _configs(name, index):
        if config.get("unsafe_code"):
            raise InputError(f"{asked} {name}: {config.get('task')} runs code of the model; expected one without")
        if config.get("doc_to_image") or config.get("doc_to_audio"):
            raise InputError(f"{asked} {name}: {config.get('task')} has pictures or sounds; expected texts alone")


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


def choose_documents(tasks: Sequence[Any], limit: int | None, seed: int) -> list[Leaf]:
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
        leaves.append(Leaf(task, str(task.task_name), [of_one[0].doc for of_one in requests], requests, mine))
    return leaves
