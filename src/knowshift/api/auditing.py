"""The audit: what a fine-tuning did to what a model knew."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowshift.api.inputs import FactsLike, load_facts
from knowshift.errors import InputError, check_whole
from knowshift.facts.sources.load import limited
from knowshift.files import write_json, write_text
from knowshift.system.progress import Count, Shown, count, say
from knowshift.version import __version__

if TYPE_CHECKING:
    from knowshift.audits.evidence import Evidence
    from knowshift.audits.verdict import Verdict
    from knowshift.probing.budget.plan import Plan


@dataclass(frozen=True)
class Audit:
    """What an audit comes to; ``told`` is what ``--json`` prints."""

    verdict: Verdict
    evidence: Evidence
    page: Path
    seconds: float
    told: dict[str, Any] = field(default_factory=dict)


def audit(
    base: str | Path | None,
    tuned: str | Path,
    facts: FactsLike,
    *,
    output_dir: str | Path,
    budget: str | float | None = "10m",
    limit: int | None = None,
    prompt_format: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    base_revision: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    workers: int | None = None,
    progress: Shown = None,
) -> Audit:
    """Measure what a base and a tuned model know, fact by fact, subtract chance, and reach a verdict.

    Args:
        base: the model before; None where ``tuned`` is an adapter, whose configuration names it.
        tuned: the model after: a folder, a hub id or an adapter.
        output_dir: records, audit.json and audit.html. The same call goes on where an earlier one stopped.
        budget: the time that it may take, as in :func:`knowshift.mastery`; None asks all facts.
        limit: ask the first so many facts of a seeded shuffle.
        prompt_format: a form of asking of one's own, with ``{question}`` in it.

    Raises:
        InputError: bad input of any kind; nothing that was recorded is lost.
    """
    began = time.monotonic()
    from knowshift.audits.page import compose
    from knowshift.audits.plan import facts_to_ask
    from knowshift.audits.run import check_audit_folder, measure
    from knowshift.audits.verdict import reach_verdict
    from knowshift.probing.budget.plan import Budget, seconds_of

    folder = Path(output_dir)
    given = None if budget is None else Budget(seconds_of(budget), began)
    if workers is not None:
        check_whole("workers", workers, 1)
    source = load_facts(facts)
    asked = facts_to_ask(limited(source.facts, limit, seed), seed)
    pair, names = _pair(base, tuned, revision, base_revision, device, dtype, workers, len(asked.facts))
    settings = {
        **names,
        "source": source.name,
        "digest": source.digest(),
        "seed": seed,
        "limit": limit,
        "prompt_format": prompt_format,
        "budget": None if given is None else given.seconds,
    }
    check_audit_folder(folder, settings)
    plans: list[Plan] = []
    with ExitStack() as stack:
        shown: dict[str, Count] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.close()
                shown[what] = stack.enter_context(
                    count(what, total, "form" if what.startswith("answers") else "fact", progress)
                )
            shown[what](done)

        def planned(plan: Plan) -> None:
            plans.append(plan)
            say(plan.line(), progress)

        evidence = measure(pair, asked, folder, seed, given, prompt_format, tell, planned)
    verdict = reach_verdict(evidence)
    seconds = time.monotonic() - began
    told = _told(evidence, verdict, plans)
    page = folder / "audit.html"
    about = {
        "base": str(names["base"]),
        "tuned": str(names["tuned"]),
        "source": source.name,
        "facts": len(evidence.facts),
        "prompts of a fact": len(evidence.facts[0].prompts),
        "seed": seed,
        "knowshift": __version__,
    }
    if plans:
        about["budget"] = plans[0].line()
    write_text(page, compose(evidence, verdict, about))
    told |= {"page": str(page), "seconds": round(seconds, 1)}
    write_json(folder / "audit.json", told)
    return Audit(verdict, evidence, page, seconds, told)


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
    from knowshift.models.loading import load_model
    from knowshift.parameters.files.adapter import is_adapter, read_adapter
    from knowshift.probing.engines import EngineSpec

    folder = model_folder(str(tuned), revision=revision)
    on_base = is_adapter(folder)
    if base is None:
        if not on_base:
            raise InputError(f"{tuned}: no adapter, so its base is not known; expected BASE TUNED")
        base = read_adapter(folder).base_name
        if not base:
            raise InputError(f"{tuned}: an adapter that names no base; expected BASE TUNED")
    own = {"base": str(base), "base_revision": base_revision} if on_base else {}
    base_spec = EngineSpec(str(base), base_revision, dtype)
    tuned_spec = EngineSpec(str(tuned), revision, dtype, **own)  # type: ignore[arg-type]
    base_spec, processes = base_spec.placed(device, workers, facts)
    tuned_spec, _ = tuned_spec.placed(device, processes, facts)
    tuned_spec = replace(tuned_spec, dtype=base_spec.dtype)  # rounding is no change

    def opened(spec: EngineSpec) -> Any:
        return lambda: load_model(
            spec.name,
            revision=spec.revision,
            dtype=spec.dtype,
            device=spec.devices[0],
            base=spec.base,
            base_revision=spec.base_revision,
        )

    names = {"base": str(base), "tuned": str(tuned)}
    return Pair(base_spec, tuned_spec, processes, opened(base_spec), opened(tuned_spec)), names


def _told(evidence: Evidence, verdict: Verdict, plans: list[Plan]) -> dict[str, Any]:
    """For scripts."""
    told: dict[str, Any] = {
        **verdict.told(),
        "title": verdict.title,
        "sentences": list(verdict.sentences),
        "facts": len(evidence.facts),
        "counts": evidence.moves.counts(),
        "noise": evidence.noise.counts(),
        "forms": {name: _change(change) for name, change in evidence.by_form.items()},
        "mcnemar": {
            name: {"before_only": before, "after_only": after, "p": p}
            for name, (before, after, p) in evidence.mcnemar.items()
        },
        "relations": {
            name: {"knowledge": _change(knowledge), "rate": _change(rate)}
            for name, (knowledge, rate) in evidence.by_relation().items()
        },
        "levels": {
            str(level): {"knowledge": _change(knowledge), "rate": _change(rate)}
            for level, (knowledge, rate) in evidence.by_level().items()
        },
        "chosen": None,
        "held_out": None,
        "output": None,
    }
    if plans:
        told["budget"] = plans[0].told()
    return told


def _change(change: Any) -> dict[str, Any] | None:
    """Points with their intervals; None where there was nothing to average."""
    if not change.by_fact.known:
        return None

    def interval(estimate: Any) -> list[float] | None:
        return None if estimate.low != estimate.low else [100 * estimate.low, 100 * estimate.high]

    return {
        "points": 100 * change.by_fact.value,
        "interval": interval(change.by_fact),
        "interval_over_relations": interval(change.by_relation),
        "facts": change.facts,
        "smallest_seen": None if change.seen != change.seen else 100 * change.seen,
    }
