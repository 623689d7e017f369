"""The search for a repair in an audit: what the tuning was for is read, the search is run, its result is written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowshift.errors import InputError
from knowshift.files import folder_beside, take_name, write_text

if TYPE_CHECKING:
    from knowshift.audits.evidence import Evidence
    from knowshift.audits.forms import Form
    from knowshift.audits.purposes.purpose import Purpose
    from knowshift.audits.purposes.tasks import Tasks
    from knowshift.audits.repair import Candidate, Repair
    from knowshift.audits.run import Pair
    from knowshift.facts.fact import Fact
    from knowshift.models.loading import LoadedModel


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

    def on(self, tuned: LoadedModel, base: LoadedModel, forms: Sequence[Form], seed: int) -> Purpose:
        """The items; at least one of file and tasks was given.

        Raises:
            InputError: a text of hardly any tokens, a task that cannot be run or has no fitting metric.
        """
        from knowshift.audits.purposes.kept import purpose_of
        from knowshift.audits.purposes.purpose import Together

        parts: list[Purpose] = []
        if self.file:
            parts.append(purpose_of(self.file, self.kept, tuned, base, forms, seed))
        if self.tasks is not None:
            self.tasks.find_metrics(base)
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
    examples: Any,
    evidence: Evidence,
    purposes: Purposes,
    prompt_format: str | None,
    seed: int,
    ends: float | None,
    output: Path,
    tell: Any,
) -> tuple[Repair | None, str]:
    """The search for a repair, whose confirmed result is then at ``output``; or None and why there was none.

    What is confirmed is the checkpoint as it was written. Nothing of an earlier search stays.
    """
    from knowshift.audits.forms import forms_of
    from knowshift.audits.repair import Search
    from knowshift.audits.told import card
    from knowshift.models.finding import model_folder
    from knowshift.models.loading import load_model
    from knowshift.parameters.files.checkpoint import StoredTensors

    if pair.on_servers:
        return None, "models on servers are measured only"
    tuned = pair.open_tuned()
    try:
        purpose = untuned = None
        if purposes:
            before = pair.open_base()
            forms = forms_of(tuned, {}, examples, prompt_format)
            purpose = purposes.on(tuned, before, forms, seed)
            untuned = purpose.scores(before, range(len(purpose)))
            del before  # two models at once are enough
        base = StoredTensors(model_folder(pair.base.name, revision=pair.base.revision))
        looking = Search(
            tuned,
            base,
            evidence,
            purpose,
            seed,
            lambda done, total: tell("repairs tried", done, total),
            untuned=untuned,
        )
        repair = looking.run(ends)
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
            repaired = load_model(str(written), dtype=pair.tuned.dtype, device=tuned.device, **on_base)
            repair = looking.confirm(repair, repaired)
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


def _write(pair: Pair, chosen: Candidate, output: Path, seed: int) -> dict[str, str | None]:
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
