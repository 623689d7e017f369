"""What scripts and readers of a model card are told: the object of ``--json`` (docs/records.md), and the card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from knowshift.audits.evidence import Evidence, Shifted
from knowshift.audits.repair import Repair
from knowshift.audits.shares import Change
from knowshift.audits.verdict import Verdict
from knowshift.errors import printable
from knowshift.html.words import interval_words, percent, signed
from knowshift.models.finding import hub_id, public_name
from knowshift.parameters.change import WeightChange
from knowshift.probing.budget.plan import Plan
from knowshift.statistics.estimates import Estimate

#: How the folder is loaded; :func:`card_of` puts a repository in its place.
_LOAD = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    'tokenizer = AutoTokenizer.from_pretrained("repaired")',
    'model = AutoModelForCausalLM.from_pretrained("repaired")',
)
_LOAD_ADAPTER = (
    "from peft import AutoPeftModelForCausalLM",
    'model = AutoPeftModelForCausalLM.from_pretrained("repaired")',
)
#: Where the base is no model of the hub, which an adapter's configuration could name to others.
_LOAD_ON_BASE = (
    "from peft import PeftModel",
    "from transformers import AutoModelForCausalLM",
    'base = AutoModelForCausalLM.from_pretrained("BASE")  # the model that was tuned',
    'model = PeftModel.from_pretrained(base, "repaired")',
)


def told_of_evidence(evidence: Evidence, verdict: Verdict, plan: Plan | None) -> dict[str, Any]:
    """What was measured and what follows."""
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
    }
    told["budget"] = None if plan is None else plan.told()
    shift = evidence.shift
    told["token_shift"] = None
    if shift is not None:
        told["token_shift"] = {"kl_mean": shift.mean, "facts": shift.facts, "asked": shift.asked}
    look = evidence.screened
    told["first_look"] = None
    if look is not None:
        asked = look.among(evidence.facts)
        told["first_look"] = {"facts": look.looked_at, "likely_known": len(look.likely), "likely_known_asked": asked}
    return told


def shift_words(shift: Shifted | None) -> str:
    """How far the first token has moved."""
    if shift is None:
        return "First tokens of answers were not compared: models on servers do not show them."
    if shift.why:
        return f"First tokens of answers were not compared: {shift.why}."
    if shift.mean is None:
        return "The first tokens of answers were not compared: the base begins no answer of level 4 right."
    asked = "the same prompt" if shift.asked == "completion" else "the tuned model in your format"
    return (
        f"The first token of the answers that the base knows best ({shift.facts:,} facts of level 4) has moved by "
        f"{shift.mean:.2f} nats on average (KL of tuned from base over ten tokens, {asked})."
    )


def told_of_repair(repair: Repair | None, why_not: str, output: Path | None) -> dict[str, Any]:
    """What became of the repair."""
    told: dict[str, Any] = {"chosen": None, "held_out": None, "output": None, "not_repaired": why_not or None}
    told |= {"curve": [], "left_out": []}
    if repair is None:
        return told
    told["left_out"] = repair.left_out
    told["curve"] = [
        {
            "candidate": "tuned" if candidate is None else candidate.name,
            "known": float(scores.known.mean()) if len(scores.known) else None,
            "kept": float(scores.kept.mean()) if len(scores.kept) else None,
        }
        for candidate, scores in repair.curve
    ]
    if repair.held_out is not None:
        before, after, gain = repair.held_out
        told["held_out"] = {
            "tuned": before.whole,
            "repaired": after.whole,
            "difference": 100 * gain.value,
            "interval": [100 * gain.low, 100 * gain.high],
            "candidate": repair.chosen.name if repair.chosen else None,
        }
    if repair.confirmed and repair.chosen is not None:
        told |= {"chosen": repair.chosen.name, "output": None if output is None else str(output)}
    return told


def told_of_weights(change: WeightChange | None) -> dict[str, Any] | None:
    """How much changed, and how concentrated that is, beside the no-signal null."""
    if change is None:
        return None
    return {
        "region": change.region,
        "changed_share": change.changed_share,
        "concentration": change.concentration["relative"],
        "null": change.null["relative"],
    }


def _change(change: Change) -> dict[str, Any] | None:
    """Points with their intervals; None where there was nothing to average."""
    if not change.by_fact.known:
        return None

    def interval(estimate: Estimate) -> list[float] | None:
        return None if estimate.low != estimate.low else [100 * estimate.low, 100 * estimate.high]

    return {
        "points": 100 * change.by_fact.value,
        "interval": interval(change.by_fact),
        "interval_over_relations": interval(change.by_relation),
        "facts": change.facts,
        "smallest_seen": None if change.seen != change.seen else 100 * change.seen,
    }


def card(repair: Repair, names: Mapping[str, str], *, adapter: bool = False) -> str:
    """The model card: metadata that the hub reads, what was done, measured and left open, how to load it.

    ``names`` are those of base and tuned model. No text in them is markup, and of a folder only the last part is told.
    """
    assert repair.chosen is not None
    assert repair.held_out is not None
    assert repair.purpose is not None
    before, after, gain = repair.held_out
    base, tuned, kept = public_name(names["base"]), public_name(names["tuned"]), _code(repair.purpose.name)
    lines = [
        "---",
        _metadata(repair, names["base"], tuned, adapter).to_yaml(),
        "---",
        "",
        f"# {_code(tuned)}, repaired by knowshift",
        "",
        f"A part of the fine-tuning of {_code(tuned)} on {_code(base)} was undone: {repair.chosen.name}.",
        *(["It is an adapter, as the tuned one was, with scaled weights."] if adapter else []),
        "",
        "Measured on facts and items that the choice did not see:",
        "",
        f"- facts that the base knows, answered in some form: {percent(before.known.mean())} as tuned, "
        f"{percent(after.known.mean())} repaired ({len(before.known):,} facts);",
        f"- {kept}: {percent(before.kept.mean())} as tuned, {percent(after.kept.mean())} repaired "
        f"({len(before.kept):,} items);",
        f"- the mean of both: {signed(gain.value)} points [{interval_words(gain)}].",
        "",
        "Not measured: anything else that the tuned model can do.",
        "",
        "```python",
        *(_LOAD if not adapter else _LOAD_ADAPTER if hub_id(names["base"]) else _LOAD_ON_BASE),
        "```",
        "",
    ]
    return "\n".join(lines)


def card_of(text: str, repository: str) -> str:
    """A card as it stands in ``repository``, owner/name on the hub: its lines load the model from there."""
    for call in ('.from_pretrained("repaired")', '.from_pretrained(base, "repaired")'):
        text = text.replace(call, call.replace("repaired", repository))
    return text


def _metadata(repair: Repair, base: str, tuned: str, adapter: bool) -> ModelCardData:
    """What the hub reads: where the model is from, and what was measured of it, by whom nobody has verified."""
    assert repair.chosen is not None
    assert repair.held_out is not None
    assert repair.purpose is not None
    after = repair.held_out[1]
    of_a_text = repair.purpose.is_text

    def result(kind: str, dataset: str, metric: tuple[str, str], shares: Any) -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            dataset_type=kind,
            dataset_name=dataset,
            dataset_split="held-out half",
            metric_type=metric[0],
            metric_name=metric[1],
            metric_value=round(float(shares.mean()), 4),
            verified=False,
        )

    return ModelCardData(
        base_model=hub_id(base),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["knowshift", repair.chosen.criterion],
        model_name=f"{tuned}, repaired",
        eval_results=[
            result(
                "knowshift-known-facts",
                "Facts that the base knows",
                ("accuracy", "Answered in some form"),
                after.known,
            ),
            result(
                "knowshift-kept-items",
                f"What the tuning was for: {printable(repair.purpose.name)}",
                ("loglikelihood-gain", "Share of what tuning has gained") if of_a_text else ("accuracy", "Answered"),
                after.kept,
            ),
        ],
    )


def _code(text: str) -> str:
    """Text as a code span of Markdown, in which nothing is markup, whatever backticks it holds."""
    shown = printable(text) or "?"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"
