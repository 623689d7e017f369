"""The audit: what a fine-tuning did to what a model knew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowshift.api.inputs import FactsLike, load_facts
from knowshift.api.measures import PACING
from knowshift.errors import InputError, check_whole
from knowshift.facts.sources.load import limited
from knowshift.files import write_json, write_text
from knowshift.system.progress import Count, Shown, count, say
from knowshift.version import __version__

if TYPE_CHECKING:
    from knowshift.audits.evidence import Evidence
    from knowshift.audits.repair import Repair
    from knowshift.audits.run import Pair
    from knowshift.audits.verdict import Verdict
    from knowshift.parameters.change import WeightChange
    from knowshift.probing.budget.plan import Plan


#: Share of a budget by which no further repair is tried.
REPAIRED_BY = 0.85
#: Seconds of a budget below which one process does all, with every thread: others take many of them to start and to
#: load a copy of the model, for each of three measurements.
SHORT = 900.0
#: What is counted, where it is not facts.
UNITS = {"answers": "form", "repairs tried": "candidate"}


@dataclass(frozen=True)
class Audit:
    """What an audit comes to; ``told`` is what ``--json`` prints."""

    verdict: Verdict
    evidence: Evidence
    repair: Repair | None  # None where the two models do not fit together
    page: Path
    output: Path | None  # of the repaired model, where there is one
    seconds: float
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def repair_words(self) -> str:
        """What became of the repair."""
        from knowshift.audits.page.words import repair_words

        return repair_words(self.repair, str(self.told.get("not_repaired")))


def audit(
    base: str | Path | None,
    tuned: str | Path,
    facts: FactsLike,
    *,
    output_dir: str | Path,
    budget: str | float | None = "10m",
    limit: int | None = None,
    repair: bool = True,
    keep: str | Path | None = None,
    guard: str | Sequence[str] | None = None,
    guard_limit: int = 100,
    prompt_format: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    base_revision: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    workers: int | None = None,
    push_to_hub: str | None = None,
    public: bool = False,
    progress: Shown = None,
) -> Audit:
    """Measure what a base and a tuned model know, fact by fact, subtract chance, and reach a verdict.

    Args:
        base: the model before; None where ``tuned`` is an adapter, whose configuration names it.
        tuned: the model after: a folder, a hub id or an adapter.
        output_dir: records, audit.json and audit.html. The same call goes on where an earlier one stopped.
        budget: the time that it may take, as in :func:`knowshift.mastery`; None asks all facts.
        limit: ask the first so many facts of a seeded shuffle.
        repair: whether ways to undo a part of the tuning are tried.
        keep: what the tuning was for, which a repair must not harm: a table of questions and answers (docs/facts.md),
            or a ``.txt`` file. Without it nothing is repaired, and the page shows what each repair would do to the
            facts known.
        guard: the same as tasks of lm-eval: names, with commas between them or as a list. Each document counts the
            first of its task's metrics that is a number of 0 to 1. With ``keep`` both are items.
        guard_limit: documents of a task at most, a seeded choice.
        prompt_format: a form of asking of one's own, with ``{question}`` in it.
        push_to_hub: owner/name on the hub, to which a confirmed repair is pushed with its page and results.
        public: whether everybody may see what is pushed, where that makes the repository.

    Raises:
        InputError: bad input of any kind, before anything is measured; an upload that failed, after all else is
            written. Nothing that was recorded is lost.
    """
    began = time.monotonic()
    from knowshift.api.pushing import check_push, keep_repair, kept_repair, push_audit
    from knowshift.api.repairing import read_purposes, search
    from knowshift.audits.forms import check_format
    from knowshift.audits.page.compose import compose
    from knowshift.audits.plan import BRIEF, USUAL, facts_to_ask
    from knowshift.audits.run import REPAIRED, check_audit_folder, measure
    from knowshift.audits.told import told_of_evidence, told_of_repair, told_of_weights
    from knowshift.audits.verdict import reach_verdict
    from knowshift.models.finding import public_name
    from knowshift.probing.budget.plan import Budget, seconds_of

    folder = Path(output_dir)
    given = None if budget is None else Budget(seconds_of(budget), began)
    if workers is not None:
        check_whole("workers", workers, 1)
    elif given is not None and given.seconds < SHORT:
        workers = 1
    if prompt_format is not None:
        check_format(prompt_format)
    check_whole("guard_limit", guard_limit, 1)
    purposes = read_purposes(keep, guard, guard_limit, seed, str(facts) if isinstance(facts, (str, Path)) else None)
    source = load_facts(facts)
    of_source = limited(source.facts, limit, seed)
    check_push(push_to_hub, public, repair=repair, purposes=bool(purposes), models=(base, tuned))
    pair, names = _pair(base, tuned, revision, base_revision, device, dtype, workers, len(of_source))
    manner = USUAL if given is None or not pair.base.heavy else BRIEF
    asked = facts_to_ask(of_source, seed, manner.prompts)
    settings = {
        **names,
        "source": source.name,
        "digest": source.digest(),
        "seed": seed,
        "limit": limit,
        "prompt_format": prompt_format,
        "budget": None if given is None else given.seconds,
    }
    del source, of_source  # a hundred thousand facts take as much memory as a small model
    check_audit_folder(folder, settings)
    plans: list[Plan] = []
    with ExitStack() as stack:
        shown: dict[str, Count] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.close()
                shown[what] = stack.enter_context(count(what, total, UNITS.get(what.split(",")[0], "fact"), progress))
            shown[what](done)

        def planned(plan: Plan) -> None:
            plans.append(plan)
            say(plan.line(), progress)

        def pacing(measured: int) -> None:
            say(PACING.format(measured), progress)

        models = pair.turns()
        evidence = measure(pair, models, asked, manner, folder, seed, given, prompt_format, tell, pacing, planned)
        verdict = reach_verdict(evidence)
        ends = None if given is None else began + REPAIRED_BY * given.seconds
        found: tuple[Repair | None, str] = (None, "not asked for")
        if repair and (earlier := kept_repair(folder, purposes.items)) is not None:
            found = earlier, ""
        elif repair:
            found = search(
                pair, models, asked.examples, evidence, purposes, prompt_format, seed, ends, folder / REPAIRED, tell
            )
            if found[0] is not None and found[0].confirmed:
                keep_repair(folder, found[0], purposes.items)
        models.close()
    repaired, why_not = found
    output = folder / REPAIRED if repaired is not None and repaired.confirmed else None
    change = _weights(pair)
    told = told_of_evidence(evidence, verdict, plans[0] if plans else None)
    told |= told_of_repair(repaired, why_not, output) | {"weights": told_of_weights(change)}
    seconds = time.monotonic() - began
    page = folder / "audit.html"
    about = {
        "base": str(names["base"]),
        "tuned": str(names["tuned"]),
        "source": settings["source"],
        "facts": len(evidence.facts),
        "kept for": (repaired.purpose.name if repaired and repaired.purpose else purposes.name)
        or "nothing was given (--keep, --guard)",
        "prompts of a fact": len(evidence.facts[0].prompts),
        "seed": seed,
        "knowshift": __version__,
    }
    if plans:
        about["budget"] = plans[0].line()
    write_text(page, compose(evidence, verdict, repaired, why_not, output, change, about))
    told |= {"page": str(page), "seconds": round(seconds, 1), "pushed": None}
    write_json(folder / "audit.json", told)
    if push_to_hub is not None and repaired is not None and output is not None:
        about |= {who: public_name(str(names[who])) for who in ("base", "tuned")}
        there = compose(evidence, verdict, repaired, why_not, push_to_hub, change, about)
        told["pushed"] = push_audit(folder, push_to_hub, public, repaired, told, there, progress)
        write_json(folder / "audit.json", told)
    return Audit(verdict, evidence, repaired, page, output, seconds, told)


def _pair(
    base: str | Path | None,
    tuned: str | Path,
    revision: str | None,
    base_revision: str | None,
    device: str,
    dtype: str | None,
    workers: int | None,
    facts: int,
) -> tuple[Any, dict[str, str]]:
    """The two models and what the audit calls them.

    Raises:
        InputError: no base, where the tuned model is no adapter that names one.
    """
    from knowshift.audits.run import Pair
    from knowshift.models.finding import model_folder
    from knowshift.parameters.files.adapter import is_adapter, read_adapter
    from knowshift.probing.engines import EngineSpec, is_server

    if base is None and is_server(str(tuned)):
        raise InputError(f"{tuned}: a server; expected those of BASE and TUNED")
    if base is not None and is_server(str(base)) != is_server(str(tuned)):
        raise InputError(f"{base} and {tuned}: one is a server; expected two models, or two servers")
    if base is not None and is_server(str(base)):
        return Pair(EngineSpec(str(base)), EngineSpec(str(tuned)), 1), {"base": str(base), "tuned": str(tuned)}
    folder = model_folder(str(tuned), revision=revision)
    on_base = is_adapter(folder)
    if base is None:
        if not on_base:
            raise InputError(f"{tuned}: no adapter, so its base is not known; expected BASE TUNED")
        adapter = read_adapter(folder)
        base, base_revision = adapter.base_name, base_revision or adapter.config.get("revision")
        if not base:
            raise InputError(f"{tuned}: an adapter that names no base; expected BASE TUNED")
    own = {"base": str(base), "base_revision": base_revision} if on_base else {}
    base_spec = EngineSpec(str(base), base_revision, dtype)
    tuned_spec = EngineSpec(str(tuned), revision, dtype, **own)  # type: ignore[arg-type]
    base_spec, processes = base_spec.placed(device, workers, facts)
    tuned_spec, _ = tuned_spec.placed(device, processes, facts)
    tuned_spec = replace(tuned_spec, dtype=base_spec.dtype)  # rounding is no change
    if processes == 1:
        base_spec, tuned_spec = (replace(spec, threads=None) for spec in (base_spec, tuned_spec))

    names = {"base": str(base), "tuned": str(tuned)}
    return Pair(base_spec, tuned_spec, processes), names


def _weights(pair: Pair) -> WeightChange | None:
    """How much the weights changed and where; None where they cannot be compared."""
    from knowshift.api.change import weights

    if pair.on_servers:
        return None
    try:
        return weights(
            pair.base.name,
            pair.tuned.name,
            revision=pair.tuned.revision,
            base_revision=pair.base.revision,
            progress=False,
        ).change
    except InputError:  # the search for a repair says why
        return None
