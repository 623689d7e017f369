"""The search for a repair in an audit: what the tuning was for is read, the search is run, its result is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowshift.errors import InputError
from knowshift.files import folder_beside, take_name, write_text

if TYPE_CHECKING:
    from knowshift.audits.candidates import Candidate
    from knowshift.audits.evidence import Evidence
    from knowshift.audits.purposes.purpose import Floats, Purpose
    from knowshift.audits.purposes.tasks import Tasks
    from knowshift.audits.repair import Repair
    from knowshift.audits.run import Pair
    from knowshift.facts.fact import Fact
    from knowshift.models.loading import LoadedModel
    from knowshift.models.turns import Turns
    from knowshift.parameters.tensors import TensorReader


@dataclass(frozen=True)
class Purposes:
    """What the tuning was for, as it was given."""

    file: str = ""  # its name, or nothing
    kept: str | tuple[Fact, ...] = ()  # what it holds
    tasks: Tasks | None = None

    def __bool__(self) -> bool:
        return bool(self.file) or self.tasks is not None

    @property
    def name(self) -> str:
        """Of the file and of the tasks."""
        return " and ".join(part for part in (self.file, self.tasks.name if self.tasks else "") if part)

    @property
    def items(self) -> Any:
        """All that is to be kept, as JSON: two with the same items ask for the same repair."""
        kept = self.kept if isinstance(self.kept, str) else [[fact.question, *fact.accepted] for fact in self.kept]
        return [kept, [] if self.tasks is None else [*self.tasks.named, *self.tasks.texts]]

    def on(self, models: Turns, examples: Sequence[Fact], prompt_format: str | None, seed: int) -> Purpose:
        """The items; at least one of file and tasks was given.

        Raises:
            InputError: a text of hardly any tokens, a task that cannot be run or has no fitting metric.
        """
        from knowshift.audits.purposes.kept import purpose_of
        from knowshift.audits.purposes.purpose import Together

        parts: list[Purpose] = []
        if self.file:
            parts.append(purpose_of(self.file, self.kept, models, examples, prompt_format, seed))
        if self.tasks is not None:
            self.tasks.find_metrics(models.base)
            parts.append(self.tasks)
        return parts[0] if len(parts) == 1 else Together(tuple(parts))


def read_purposes(
    keep: str | Path | None, guard: str | Sequence[str] | None, guard_limit: int, seed: int, facts: str | None
) -> Purposes:
    """Read what the tuning was for; ``facts`` is the audit's own source by its name.

    Raises:
        InputError: as :func:`.kept.read_kept` and :func:`.tasks.read_tasks`, and a text together with tasks.
    """
    if keep is None and guard is None:
        return Purposes()
    from knowshift.audits.purposes.kept import read_kept
    from knowshift.audits.purposes.tasks import read_tasks

    kept = () if keep is None else read_kept(Path(keep))
    if guard is None:
        return Purposes(Path(keep or "").name, kept)
    if isinstance(kept, str):
        raise InputError(f"{keep}: a text, and --guard; expected a table of questions and answers, or one of the two")
    return Purposes("" if keep is None else Path(keep).name, kept, read_tasks(guard, guard_limit, seed, facts))


def search(
    pair: Pair,
    models: Turns,
    examples: Sequence[Fact],
    evidence: Evidence,
    purposes: Purposes,
    prompt_format: str | None,
    seed: int,
    ends: float | None,
    output: Path,
    tell: Any,
) -> tuple[Repair | None, str]:
    """The search for a repair, whose confirmed result is then at ``output``; or None and why there was none.

    What is confirmed is the checkpoint as it was written. Nothing of an earlier search stays. ``ends`` is the time of
    :func:`time.monotonic` by which no further repair is tried.
    """
    from knowshift.audits.repair import Search
    from knowshift.audits.told import card
    from knowshift.models.finding import model_folder
    from knowshift.models.loading import load_model
    from knowshift.parameters.files.checkpoint import StoredTensors

    if pair.on_servers:
        return None, "models on servers are measured only"
    if ends is not None and time.monotonic() > ends:
        return None, "no time of the budget was left; the same command goes on with it"
    try:
        purpose, untuned = _purpose(purposes, models, examples, prompt_format, seed, ends)
        base = StoredTensors(model_folder(pair.base.name, revision=pair.base.revision))
        stored = _stored(pair, models.tuned)
        looking = Search(
            evidence, purpose, seed, lambda done, total: tell("repairs tried", done, total), untuned=untuned
        )
        repair = looking.run(models.tuned, base, stored=stored, ends=ends)
    except InputError as error:
        return None, str(error)
    if repair.chosen is None:
        shutil.rmtree(output, ignore_errors=True)
        return repair, ""
    shutil.rmtree(output.with_name("trying"), ignore_errors=True)  # of a call that was interrupted
    try:
        with folder_beside(output.with_name("trying")) as trying:
            written = trying / "model"
            on_base = _write(pair, repair.chosen, written, seed)
            device, before = models.tuned.device, looking.score_tuned(1, models.tuned)
            models.close()
            repaired = load_model(str(written), dtype=pair.tuned.dtype, device=device, **on_base)
            repair = looking.confirm(repair, before, repaired)
            if repair.confirmed:
                names = {"base": pair.base.name, "tuned": pair.tuned.name}
                write_text(written / "README.md", card(repair, names, adapter=bool(on_base)))
                shutil.rmtree(output, ignore_errors=True)
                take_name(written, output)
    except InputError as error:  # what was measured is told all the same
        shutil.rmtree(output, ignore_errors=True)
        return None, str(error)
    finally:
        shutil.rmtree(output.with_name("trying"), ignore_errors=True)
    if not repair.confirmed:
        shutil.rmtree(output, ignore_errors=True)
    return repair, ""


def _purpose(
    purposes: Purposes,
    models: Turns,
    examples: Sequence[Fact],
    prompt_format: str | None,
    seed: int,
    ends: float | None,
) -> tuple[Purpose | None, Floats | None]:
    """What the tuning was for, as far as there is time to ask it, and the base's scores of it; nothing without any."""
    from knowshift.audits.purposes.purpose import in_time

    if not purposes:
        return None, None
    purpose = purposes.on(models, examples, prompt_format, seed)
    if ends is not None:
        purpose = in_time(purpose, models.base, seed, ends)
    return purpose, purpose.scores(models.base, range(len(purpose)))


def _stored(pair: Pair, tuned: LoadedModel) -> TensorReader | None:
    """The tuned weights on disk, where all that the model holds lies there under its own names."""
    from knowshift.models.finding import model_folder
    from knowshift.parameters.files.adapter import is_adapter
    from knowshift.parameters.files.checkpoint import FLOATS, StoredTensors
    from knowshift.parameters.loaded import parameters_of

    folder = model_folder(pair.tuned.name, revision=pair.tuned.revision)
    if is_adapter(folder):  # merging it for every candidate would take longer than a copy
        return None
    stored = StoredTensors(folder)
    held = {name: tuple(tensor.shape) for name, tensor in parameters_of(tuned.model).items()}
    same = all(
        stored.shapes.get(name) == shape and stored.tensors[name].dtype in FLOATS for name, shape in held.items()
    )
    return stored if same else None


def _write(pair: Pair, chosen: Candidate, output: Path, seed: int) -> dict[str, Any]:
    """A candidate as a checkpoint, or as an adapter where one stands for it; what it is loaded on, if on anything."""
    from knowshift.api.change import restore
    from knowshift.models.finding import model_folder
    from knowshift.parameters.files.pair import open_pair
    from knowshift.parameters.files.scaled import not_scaled
    from knowshift.parameters.regions import Scope

    base = model_folder(pair.base.name, revision=pair.base.revision)
    tuned = model_folder(pair.tuned.name, revision=pair.tuned.revision)
    as_adapter = not_scaled(open_pair(base, tuned, Scope(chosen.region)), chosen.criterion) is None
    restore(
        pair.base.name,
        pair.tuned.name,
        output_dir=output,
        fraction=chosen.fraction,
        criterion=chosen.criterion,
        region=chosen.region,
        seed=seed,
        as_adapter=as_adapter,
        revision=pair.tuned.revision,
        base_revision=pair.base.revision,
        progress=False,
    )
    return {"base": pair.base.name, "base_revision": pair.base.revision} if as_adapter else {}
