"""A worker: holds the models of a study, gives each cell's function what it needs, and writes what it returns.

With ``devices`` a worker is a group of processes (:mod:`knowshift.system.group`), each with a :class:`Worker` of its
own and its part of the models. All do the same cells in the same order; the first process writes.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from knowshift.errors import said_before
from knowshift.evaluation import Answers, evaluate
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.files import digest, folder_beside, write_json
from knowshift.known_facts import KnownFacts
from knowshift.models.finding import ModelFiles
from knowshift.models.loading import LoadedModel, load_found, load_model
from knowshift.models.saving import save_model
from knowshift.models.stored import stored_weights
from knowshift.parameters.loaded import parameters_of
from knowshift.parameters.selection.select import fraction_name
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Engine
from knowshift.records import TASKS, write_table
from knowshift.remote import RemoteRun
from knowshift.studies import content
from knowshift.studies.config import StudyConfig
from knowshift.studies.folder import known_of
from knowshift.studies.memory import check_device
from knowshift.studies.plan import ASKED, Cell, Unit, make_plan, probed_facts
from knowshift.studies.readiness import check_texts, find_base, held_out_texts, other_tasks, shape_at_hand, weights_of
from knowshift.system import group
from knowshift.system.allocator import give_back, steady_heap
from knowshift.system.group import ProcessGroup
from knowshift.system.threads import set_threads
from knowshift.tasks.measured import Measured, Task
from knowshift.tasks.other import columns_of
from knowshift.token_shift import BaseLogits, ShiftItems, items_of, token_shift

if TYPE_CHECKING:
    from knowshift.training.strategy import Weights


class Worker:
    """Runs units of one study. Everything expensive is made once, on first use.

    ``place`` is the run folder, or its URL; ``found`` is where the base model lies, if that is known.
    """

    def __init__(self, place: Path | str, config: StudyConfig, found: ModelFiles | None = None) -> None:
        steady_heap()
        set_threads(config.threads)
        self.place, self.config, self.found = place, config, found
        self.remote = RemoteRun(place) if isinstance(place, str) else None
        self.run = place if isinstance(place, Path) else RemoteRun(place).local
        self.source = load_facts(config.facts)
        self._files = found or find_base(config)
        self._divided = group.size() > 1
        way = check_device(config, weights_of(self._files), shape_at_hand(config)).way
        self._one_at_a_time = way == "in turns"
        self._held: LoadedModel | None = None
        self._probed: LoadedModel | None = None  # the base in the dtype of mastery, where that is another
        self._in_memory: tuple[str, LoadedModel] | None = None  # the tuned model and the digest of its cell
        self._about_base = self.base.about()
        self.plan = make_plan(config, self.source.facts, self.source.digest(), self.base.identity)
        self._chosen: dict[str, list[Fact]] = {}
        self._items: ShiftItems | None = None
        self._tasks_read: list[Task] | None = None
        self._predicted: BaseLogits | None = None
        self._behind: tuple[str, Tensor] | None = None

    def do(self, unit: Unit) -> float:
        """Make what is missing of a unit; seconds taken."""
        began = time.perf_counter()
        if self.remote is not None and group.is_first():
            self.remote.follow(cell.name for cell in unit.cells)
        missing = group.decided([cell.digest for cell in unit.missing(self.run)])
        self._missing = [cell for cell in unit.cells if cell.digest in missing]
        for cell in self._missing:
            try:
                with self._folder(cell) as folder:
                    getattr(self, f"_{cell.kind}")(cell, unit, folder)
            except BaseException:
                self._in_memory = None  # its weights may be half restored
                raise
        return time.perf_counter() - began

    def _folder(self, cell: Cell) -> AbstractContextManager[Path]:
        """A fresh folder that becomes the cell's, where this process is the one that writes."""
        if not group.is_first():
            return _thrown_away()
        if self.remote is not None:
            return self.remote.folder(cell.name)
        return folder_beside(cell.folder(self.run), same_content=True)

    # What several cells need.

    @property
    def base(self) -> LoadedModel:
        """The base model, loaded again where it has become a tuned one; that one goes where both do not fit."""
        if self._held is None:
            if self._one_at_a_time:
                self._let_go()
            self._held = self._load_base(self.config.dtype)
        return self._held

    def _load_base(self, dtype: str) -> LoadedModel:
        with said_before():  # by the process that planned
            return load_found(self._files, dtype=dtype, device=self.config.device, divided=self._divided)

    @cached_property
    def _base_weights(self) -> Weights:
        """The base's own weights where it stays (a copy of it is tuned), else a reader of its files."""
        return stored_weights(self.base) if self._one_at_a_time else parameters_of(self.base.model)

    def _make_room(self) -> None:
        """Before a tuned model comes: ask the base what the unit will need of it, and let it go if it must."""
        if not self._one_at_a_time:
            return
        assert self._base_weights is not None  # read from files that are compared with the base now
        for cell in self._missing:
            if cell.kind == "token_shift" and self._predicted is None:
                self._predicted = BaseLogits.of(self.base, self._shift_items(cell))
            elif cell.kind == "learned":
                self._logits_before(cell)

    def _let_go(self) -> None:
        """Of all models, with their memory."""
        self._held = self._probed = self._in_memory = None
        gc.collect()
        give_back()

    @cached_property
    def _servers(self) -> Engine:
        return servers_of(self.config)

    @property
    def _asked_for_mastery(self) -> LoadedModel | Engine:
        """Not kept: the object that is the base now is trained later, where one model is held at a time."""
        mastery = self.config.mastery
        if mastery.servers:
            return self._servers
        if mastery.dtype is None:
            return self.base
        if self._probed is None:
            if self._one_at_a_time:
                self._let_go()
            self._probed = self._load_base(mastery.dtype)
        return self._probed

    @cached_property
    def _known(self) -> KnownFacts:
        if self._probed is not None:  # all of mastery is measured
            self._probed = None
            give_back()
        self._fetch([cell for unit in self.plan.probes for cell in unit.cells])
        return known_of(self.run, self.plan, self.source.facts)

    def _fetch(self, cells: Sequence[Cell]) -> None:
        """Copy finished cells of a run at a URL to this machine."""
        if self.remote is not None and group.is_first():
            self.remote.fetch(cell.name for cell in cells)
        group.decided(None)

    def _asked(self, cell: Cell) -> list[Fact]:
        """Chosen once for all cells that depend on the same settings: all of a study's."""
        wanted = digest({name: cell.settings.get(name) for name in ASKED})
        if wanted not in self._chosen:
            self._chosen[wanted] = content.asked_facts(self._known, cell.settings)
        return self._chosen[wanted]

    def _shift_items(self, cell: Cell) -> ShiftItems:
        if self._items is None:
            self._items = items_of(self.base, self._known, self._asked(cell))
        return self._items

    def _other_tasks(self, cell: Cell) -> list[Task]:
        """Read once: all cells of a study that ask them depend on the same settings."""
        if self._tasks_read is None:
            check_texts(self.config, cell.inputs.get("texts"))
            self._tasks_read = other_tasks(self.config, self.source.facts)
        return self._tasks_read

    def _tuned_model(self, unit: Unit) -> LoadedModel:
        """The unit's tuned model: from memory, from its cell, or made again if its checkpoint was not kept."""
        cell = unit.cells[0]
        if self._in_memory is None or self._in_memory[0] != cell.digest:
            self._fetch([cell])
            checkpoint = cell.folder(self.run) / "model"
            if group.decided(checkpoint.is_dir()):
                self._make_room()
                if self._one_at_a_time:
                    self._let_go()
                model = self._load(str(checkpoint))
                self._in_memory = (cell.digest, model)
            else:
                self._train(cell, unit)
        assert self._in_memory is not None
        return self._in_memory[1]

    def _load(self, name: str, revision: str | None = None) -> LoadedModel:
        config = self.config
        with said_before():
            return load_model(name, revision=revision, dtype=config.dtype, device=config.device, divided=self._divided)

    @cached_property
    def _ready_to_train(self) -> bool:
        """Freeze all present objects: a Trainer collects garbage when it starts, and would scan them all."""
        import knowshift.training.sft  # noqa: F401 (what only plans or probes has no use for it)

        gc.collect()
        gc.freeze()
        return True

    def _train(self, cell: Cell, unit: Unit) -> dict[str, Any]:
        assert self._ready_to_train
        self._make_room()
        base = self.base
        if self._one_at_a_time:
            self._held = None  # it becomes the tuned model
        tuned, record = content.tune(
            base,
            self._known,
            cell.coordinates,
            cell.settings,
            name=f"tuned {cell.digest}",
            report_to=self.config.training.report_to,
            in_place=self._one_at_a_time,
            files=self._files,
            weights=self._base_weights,
        )
        self._in_memory = (cell.digest, tuned)
        return record

    def _about(self, cell: Cell) -> dict[str, Any]:
        return {**self._about_base, "cell": cell.digest, "kind": cell.kind, **cell.coordinates}

    # The kinds of cells, by name.

    def _mastery(self, cell: Cell, unit: Unit, folder: Path) -> None:
        size, part = self.config.mastery.facts_per_cell, cell.coordinates["part"]
        members = probed_facts(self.source.facts, self.config)[part * size : (part + 1) * size]
        if self.config.mastery.servers and not group.is_first():
            return  # one asks
        engine = self._asked_for_mastery
        record = content.mastery(engine, [self.source.facts[index] for index in members], cell.settings)
        record.write(folder / "mastery.parquet", {**self._about(cell), **engine.about()})

    def _base(self, cell: Cell, unit: Unit, folder: Path) -> None:
        found = content.base_answers(self.base, self._asked(cell), self._known, cell.settings)
        for name, answers, about in found:
            answers.write(folder / f"{name}.parquet", {**self._about(cell), **about})

    def _instruct(self, cell: Cell, unit: Unit, folder: Path) -> None:
        config = self.config
        assert config.instruct is not None
        asked = self._asked(cell)
        if self._one_at_a_time:
            self._let_go()
        model = self._load(config.instruct, config.instruct_revision)
        for name, answers, about in content.instruct_answers(model, asked, self._known, cell.settings):
            answers.write(folder / f"{name}.parquet", {**self._about(cell), **model.about(), **about})

    def _base_tasks(self, cell: Cell, unit: Unit, folder: Path) -> None:
        measured = content.ask_tasks(self.base, self._other_tasks(cell))
        self._write_tasks(cell, folder, [("", "", None, measured)], None)

    def _tasks(self, cell: Cell, unit: Unit, folder: Path) -> None:
        found, eligible = [], 0
        for criterion, fraction, count, eligible, measured in content.restored_tasks(  # noqa: B007
            self._base_weights, self._tuned_model(unit), self._other_tasks(cell), cell.coordinates, cell.settings
        ):
            found.append((criterion, fraction_name(fraction), count, measured))
        self._write_tasks(cell, folder, found, eligible)

    def _write_tasks(
        self,
        cell: Cell,
        folder: Path,
        found: Sequence[tuple[str, str, int | None, Sequence[Measured]]],
        eligible: int | None,
    ) -> None:
        """Items, and the score of each (criterion, fraction, weights restored, what was measured)."""
        columns: dict[str, list[Any]] = {}
        scores = []
        for criterion, fraction, restored, measured in found:
            about = {"criterion": criterion, "fraction": fraction}
            for name, values in columns_of(measured, about).items():
                columns.setdefault(name, []).extend(values)
            for one in measured:
                told = {"task": one.task, "metric": one.metric, "higher_is_better": one.higher_is_better}
                score = {"items": len(one.items), "score": one.score}
                scores.append({**about, "restored": restored, **told, **score})
        read: dict[str, Any] = {name: cell.inputs[name] for name in ("lm_eval", "texts") if name in cell.inputs}
        write_table(folder / "items.parquet", TASKS, columns, {**self._about(cell), **read})
        write_json(folder / "scores.json", {"eligible": eligible, "scores": scores})

    def _tuned(self, cell: Cell, unit: Unit, folder: Path) -> None:
        write_json(folder / "record.json", self._train(cell, unit))
        if self.config.keep_checkpoints and group.is_first():
            (folder / "model").mkdir()
            save_model(self._tuned_model(unit), folder / "model")

    def _evaluation(self, cell: Cell, unit: Unit, folder: Path) -> None:
        answers = evaluate(self._tuned_model(unit), self._asked(cell), self._known.levels)
        answers.write(folder / "answers.parquet", self._about(cell))

    def _token_shift(self, cell: Cell, unit: Unit, folder: Path) -> None:
        tuned = self._tuned_model(unit)
        shifts = token_shift(self._predicted or self.base, tuned, self._shift_items(cell))
        shifts.write(folder / "token_shift.parquet", self._about(cell))

    def _learned(self, cell: Cell, unit: Unit, folder: Path) -> None:
        asked = content.learned_facts(self._known, cell.coordinates, cell.settings)
        tuned = self._tuned_model(unit)
        before = self._logits_before(cell)
        check_texts(self.config, cell.inputs.get("texts"))
        found = content.learned(self._base_weights, before, tuned, asked, self._known.levels, self._held_out)
        found.answers.write(folder / "answers.parquet", self._about(cell))
        write_json(folder / "learned.json", found.as_record())

    def _learned_own(self, cell: Cell, unit: Unit, folder: Path) -> None:
        asked = content.own_learned_facts(self._known, cell.coordinates, cell.settings)
        answers = evaluate(self._tuned_model(unit), asked, self._known.levels)
        answers.write(folder / "answers.parquet", self._about(cell))

    def _logits_before(self, cell: Cell) -> Tensor:
        """The base's, behind the training questions that the cell asks; kept for one draw, which many cells share."""
        asked = content.learned_facts(self._known, cell.coordinates, cell.settings)
        key = digest([fact.id for fact in asked])
        if self._behind is None or self._behind[0] != key:
            self._behind = (key, content.first_logits(self.base, asked))
        return self._behind[1]

    @cached_property
    def _held_out(self) -> Task | None:
        """Texts whose loss the bench tells: the user's file, or sentences of a world; other facts have none."""
        return held_out_texts(self.config, self.source.facts)

    def _weight_change(self, cell: Cell, unit: Unit, folder: Path) -> None:
        tuned, base = self._tuned_model(unit), self._base_weights
        if not group.is_first():
            return  # one reads the files
        stored = content.whole_weights(tuned)
        change = content.weight_change(base, tuned.model, cell.digest, cell.settings, stored)
        write_json(folder / "change.json", change.to_json())

    def _restoration(self, cell: Cell, unit: Unit, folder: Path) -> None:
        restored = content.restored_answers(
            self._base_weights,
            self._tuned_model(unit),
            self._asked(cell),
            self._known.levels,
            cell.coordinates,
            cell.settings,
        )
        self._write_restored(cell, restored, folder)

    def _write_restored(
        self, cell: Cell, restored: Iterable[tuple[str, float, int, int, Answers]], folder: Path
    ) -> None:
        """Write the answers after each restoration: (criterion, fraction, weights restored, eligible, answers)."""
        counts: dict[str, dict[str, int]] = {}
        eligible = 0
        for criterion, fraction, count, eligible, answers in restored:  # noqa: B007
            name = fraction_name(fraction)
            about = {**self._about(cell), "criterion": criterion, "fraction": fraction, "restored": count}
            answers.write(folder / f"answers-{criterion}-{name}.parquet", about)
            counts.setdefault(criterion, {})[name] = count
        write_json(folder / "restored.json", {"eligible": eligible, "criteria": counts})

    def _train_set(self, cell: Cell, unit: Unit, folder: Path) -> None:
        restored = content.restored_train_answers(
            self._base_weights, self._tuned_model(unit), self._known, cell.coordinates, cell.settings
        )
        self._write_restored(cell, restored, folder)

    def _layer_groups(self, cell: Cell, unit: Unit, folder: Path) -> None:
        counts: dict[str, int] = {}
        for name, count, answers in content.layer_group_answers(
            self._base_weights,
            self._tuned_model(unit),
            self._asked(cell),
            self._known.levels,
            cell.coordinates,
            cell.settings,
        ):
            answers.write(folder / f"answers-{name}.parquet", {**self._about(cell), "layers": name, "restored": count})
            counts[name] = count
        write_json(folder / "restored.json", {"layers": counts})


def servers_of(config: StudyConfig) -> Engine:
    """The servers that a study asks for mastery, as one engine.

    Raises:
        InputError: one does not answer or cannot do it, or they do not have one model by what they tell of it.
    """
    first, *others = config.mastery.servers
    engine = EngineSpec(first, servers=tuple(others)).open()
    assert not isinstance(engine, LoadedModel)
    return engine


@contextmanager
def _thrown_away() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="knowshift-cell-") as folder:
        yield Path(folder)


_WORKER: Worker | None = None
_GROUP: ProcessGroup | None = None


def do_unit(place: Path | str, config: StudyConfig, found: ModelFiles | None, unit: Unit) -> tuple[str, float]:
    """Make what is missing of a unit by this process's worker, which loads the base model once; (title, seconds).

    With ``config.devices`` the worker is a group of processes that this one starts.

    Raises:
        InputError: what the unit refuses; that a process of the group was killed.
    """
    global _GROUP
    if config.devices == 1:
        return unit.title, _do_here(place, config, found, unit)
    if _GROUP is None or _GROUP.size != config.devices:
        end_group()
        _GROUP = ProcessGroup(config.devices, config.device, imports=__name__)
        # A worker of a pool waits at its end for its own processes; before that, at 10, queues to them are closed.
        Finalize(None, end_group, exitpriority=20)
    return unit.title, _GROUP.do(unit.title, _do_here, place, config, found, unit)


def end_group() -> None:
    """End the processes that :func:`do_unit` has started; models are gone with them."""
    global _GROUP
    if _GROUP is not None:
        _GROUP.end()
        _GROUP = None


def _do_here(place: Path | str, config: StudyConfig, found: ModelFiles | None, unit: Unit) -> float:
    global _WORKER
    if _WORKER is None or (_WORKER.place, _WORKER.config, _WORKER.found) != (place, config, found):
        _WORKER = Worker(place, config, found)
    return _WORKER.do(unit)
