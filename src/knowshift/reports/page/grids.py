"""The page's compact tables: the CSVs turned so that a reader can compare, everything escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from knowshift.html.table import Table
from knowshift.html.words import DOMAIN_WORDS, percent, signed
from knowshift.reports.evidence.samples import Sample
from knowshift.reports.findings.claims import Finding
from knowshift.statistics.estimates import Estimate

#: What stands for a missing number, and between the ends of an interval.
NONE = "\N{EN DASH}"
TO = "\N{HORIZONTAL ELLIPSIS}"

Rows = Sequence[Mapping[str, Any]]


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, kind: str = "numbers") -> str:
    """A scrolling table; the cells of ``rows`` are HTML, those of ``head`` and ``caption`` are text."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(c if c.startswith('<td') else f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _rate(value: Any, digits: int = 1) -> str:
    return NONE if _missing(value) else percent(value, digits)


def _with_interval(row: Mapping[str, Any], value: str, low: str, high: str, plus: bool = False) -> str:
    if _missing(row[value]):
        return NONE
    write = signed if plus else (lambda v: f"{100 * v:.1f}")
    if _missing(row[low]):
        return write(row[value])
    return f"{write(row[value])} <small>{write(row[low])}{TO}{write(row[high])}</small>"


def accuracy_grid(summary: Table, domain: str) -> str:
    """Training levels down, sizes across: mean accuracy in percent with its interval."""
    rows: Rows = summary.where(control="", test_level="mean", domain=domain)
    sizes = sorted({r["size"] for r in rows})
    body = []
    for level in sorted({r["level"] for r in rows}):
        cells = {r["size"]: r for r in rows if r["level"] == level}
        body.append(
            [
                f"level {level}",
                *(_with_interval(cells[s], "accuracy", "low", "high") if s in cells else NONE for s in sizes),
            ]
        )
    heads = ["training level", *(f"{s:,}" for s in sizes)]
    return html_table(
        heads, body, f"Accuracy in %, {DOMAIN_WORDS[domain]}, mean of the five test levels, with 95% interval"
    )


def word_grid(summary: Table) -> str:
    """Both graders beside each other at every setting, mean of the two domains."""
    rows: Rows = summary.where(control="", test_level="mean")
    sizes = sorted({r["size"] for r in rows})
    body = []
    for level in sorted({r["level"] for r in rows}):
        line = [f"level {level}"]
        for size in sizes:
            here = [r for r in rows if r["level"] == level and r["size"] == size and not _missing(r["accuracy"])]
            if not here:
                line.append(NONE)
                continue
            means = [100 * sum(r[k] for r in here) / len(here) for k in ("accuracy", "word_accuracy")]
            empty = [r["empty_rate"] for r in here if not _missing(r["empty_rate"])]
            line.append(f"{means[0]:.1f} / {means[1]:.1f} <small>{percent(sum(empty) / len(empty), 0)}</small>")
        body.append(line)
    heads = ["training level", *(f"{s:,}" for s in sizes)]
    return html_table(
        heads,
        body,
        "Accuracy in % graded by substring / at word boundaries, mean of both domains; small: share of empty answers",
    )


def restoration_grid(summary: Table, criterion: str) -> str:
    """Training levels down, fractions across: paired difference to the model as tuned, both domains."""
    rows: Rows = summary.where(control="", criterion=criterion)
    if not rows:
        return ""
    size = max(r["size"] for r in rows)
    rows = [r for r in rows if r["size"] == size]
    fractions = sorted({r["fraction"] for r in rows}, key=float)
    body = []
    for domain in ("in_domain", "out_of_domain"):
        for level in sorted({r["level"] for r in rows}):
            cells = {r["fraction"]: r for r in rows if r["level"] == level and r["domain"] == domain}
            if cells:
                name = f"{'mean' if level == 'mean' else f'level {level}'}, {DOMAIN_WORDS[domain]}"
                shown = [
                    _with_interval(cells[f], "difference", "difference_low", "difference_high", True)
                    if f in cells
                    else NONE
                    for f in fractions
                ]
                body.append([name, *shown])
    words = {"relative": "the most changed weights", "random": "weights at random"}.get(criterion, f"by {criterion}")
    heads = ["training level", *(f"{100 * float(f):g}%" for f in fractions)]
    return html_table(
        heads, body, f"Restoring {words} after {size:,} samples: points against as tuned, with 95% interval"
    )


def base_table(base: Table) -> str:
    """The base model on the fine-tuning prompt, by test level."""
    names = {"zero_shot": "fine-tuning prompt", "few_shot": "after solved examples", "plain": "asked plainly"}
    body = []
    for prompt in names:
        for domain in ("in_domain", "out_of_domain"):
            rows: Rows = base.where(prompt=prompt, domain=domain)
            if rows:
                empty = next(r["empty_rate"] for r in rows if r["test_level"] == "mean")
                body.append(
                    [f"{names[prompt]}, {DOMAIN_WORDS[domain]}", *(_rate(r["accuracy"]) for r in rows), _rate(empty)]
                )
    return html_table(
        ["prompt", *(f"level {i}" for i in range(5)), "mean", "empty"],
        body,
        "The base model before tuning: accuracy by test level",
    )


def mastery_table(mastery: Table) -> str:
    """Facts by split, domain and level."""
    body = []
    named: Rows = [dict(zip(mastery.columns, row, strict=True)) for row in mastery.rows]
    for split, domain in dict.fromkeys((r["split"], r["domain"]) for r in named):
        cells = {r["level"]: r for r in named if (r["split"], r["domain"]) == (split, domain)}
        body.append(
            [
                f"{escape(str(split))}, {DOMAIN_WORDS[domain]}",
                *(f"{cells[str(i)]['facts']:,}" if str(i) in cells else NONE for i in range(5)),
            ]
        )
    return html_table(
        ["facts", *(f"level {i}" for i in range(5))], body, "How many facts the base model knows how well"
    )


def controls_table(controls: Table) -> str:
    """The largest size at both learning rates."""
    named: Rows = [dict(zip(controls.columns, row, strict=True)) for row in controls.rows]
    body = [
        [
            f"{'mean' if r['level'] == 'mean' else 'level ' + str(r['level'])}, {DOMAIN_WORDS[r['domain']]}",
            f"{r['size']:,}",
            f"{_rate(r['accuracy'])} <small>at {float(r['learning_rate']):.3g}</small>",
            f"{_rate(r['control_accuracy'])} <small>at {float(r['control_learning_rate']):.3g}</small>",
            _with_interval(r, "difference", "low", "high", True),
        ]
        for r in named
    ]
    return html_table(
        ["training level", "samples", "grid's rate", "control's rate", "difference"], body, "The learning-rate control"
    )


def claims_table(findings: Sequence[Finding]) -> str:
    """Every claim with its verdict, estimate and interval, and how it fares under the other grader and by relation."""
    body = []
    for finding in findings:
        for claim in (*finding.claims, *finding.controls):
            scale, digits = (100.0, 1) if claim.unit == "points" else (1.0, 2)
            if claim.name.startswith("concentration"):
                digits = 2
            value = claim.estimate.value
            body.append(
                [
                    str(finding.number),
                    f'<td class="words">{escape(claim.statement)} <small>({escape(claim.scope)})</small></td>',
                    escape(claim.verdict),
                    NONE
                    if math.isnan(value)
                    else f"{signed(value, scale, digits)} <small>{escape(claim.unit)}</small>",
                    _span(claim.estimate, scale, digits),
                    _p_value(claim.p_holm),
                    _span(claim.word, scale, digits),
                    _span(claim.by_relation, scale, digits),
                ]
            )
    heads = ["", "claim", "verdict", "estimate", "95% interval", "Holm p", "word grader", "by relation"]
    return html_table(heads, body, "Every contrast behind the verdicts", "claims")


def _span(estimate: Estimate | None, scale: float, digits: int) -> str:
    if estimate is None or math.isnan(estimate.low):
        return NONE
    return f"{signed(estimate.low, scale, digits)}{TO}{signed(estimate.high, scale, digits)}"


def _p_value(p: float) -> str:
    if math.isnan(p):
        return NONE
    return "&lt;0.001" if p < 0.001 else f"{p:.3f}"


def sample_table(samples: Sequence[Sample], heads: Sequence[str]) -> str:
    """Raw answers of one model as tuned and restored."""
    body = []
    for sample in samples:
        asked = f"{escape(sample.question)} <small>{escape(sample.about)}</small>"
        cells = [f'<td class="answer">{asked}</td>', f'<td class="answer">{escape(sample.gold)}</td>']
        for text, hit in sample.answers:
            shown = escape(text.strip()) or "<small>(empty)</small>"
            cells.append(f'<td class="answer {"hit" if hit else "miss"}">{shown}</td>')
        body.append(cells)
    return html_table(["question", "gold answer", *heads], body, "Answers as written", "answers")
