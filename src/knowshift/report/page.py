"""report.html: one file that opens anywhere, without network or script, composed from a run's records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import uuid4

from knowshift.report.claims import Finding
from knowshift.report.evidence import Evidence
from knowshift.report.figures import build_figures, write_figures
from knowshift.report.layout import listed
from knowshift.report.page_tables import (
    accuracy_grid,
    base_table,
    claims_table,
    controls_table,
    mastery_table,
    restoration_grid,
    sample_table,
    word_grid,
)
from knowshift.report.samples import draw_samples
from knowshift.report.tables import Tables, build_tables
from knowshift.report.takeaways import takeaways

FIGURE_TITLES = {
    "accuracy_by_size": "Accuracy against the number of training samples",
    "kl_by_size": "How far token probabilities move from the base model",
    "restoration": "Accuracy when part of the change is put back",
    "restoration_by_level": "Gain and loss by training level",
    "concentration": "How concentrated the weight change is, beside chance",
    "mastery_by_exposures": "What the base model knows, and how often it read it",
}

#: What the bands and lines are, under the takeaway.
FIGURE_NOTES = {
    "accuracy_by_size": "Closed-book accuracy on test facts, plain mean of the five test levels; bands are 95% intervals over facts and draws.",
    "kl_by_size": "KL(tuned || base) on the ten largest logits of the first answer token, level-4 test facts; bands are 95% intervals.",
    "restoration": "Models of the largest size, mean of the training levels. Weights ranked by relative change, beside as many drawn at random.",
    "restoration_by_level": "Paired differences to the same model as tuned; bars are 95% intervals, not adjusted. The table adds Holm's adjustment.",
    "concentration": "The no-signal null pairs each tensor's own weights with its own changes at random: dividing by weights near zero makes a heavy tail by itself.",
    "mastery_by_exposures": "Bars: share of facts at each mastery level. Line: mean rate R with its 95% interval.",
}


def write_report(run: Path) -> Path:
    """Write tables/*.csv, figures/*.svg and report.html of a run folder; returns the page's path."""
    return write_report_with_findings(run)[0]


def write_report_with_findings(run: Path) -> tuple[Path, list[Finding]]:
    """As :func:`write_report`, with the findings that the page tells.

    The page is written beside and renamed, so that an interrupted call leaves the old one whole.
    """
    tables = build_tables(run)
    figures = build_figures(tables)
    tables.write(run / "tables")
    write_figures(figures, run / "figures")
    page = run / "report.html"
    beside = run / f".report.{uuid4().hex[:8]}.html"
    try:
        beside.write_text(compose(tables, figures), encoding="utf-8")
        beside.replace(page)
    finally:
        beside.unlink(missing_ok=True)
    return page, list(tables.findings)


def compose(tables: Tables, figures: Mapping[str, str]) -> str:
    """The whole page as text; the same for the same tables, figures and manifest."""
    evidence, findings = tables.evidence, tables.findings
    name = str(evidence.run.manifest.get("name") or evidence.run.path.name)
    css = resources.files("knowshift.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        _head(evidence, findings, name),
        _findings(findings),
        _figures(figures, takeaways(tables, findings)),
        _tables(tables),
        _samples(evidence, findings),
        _making(evidence),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: what fine-tuning did to what the model knows</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _head(evidence: Evidence, findings: Sequence[Finding], name: str) -> str:
    model = evidence.run.manifest.get("model") or {}
    model_name = str(model.get("name", "a base model")) if isinstance(model, dict) else str(model)
    draws = sorted({c.draw for c in evidence.answers.columns if c.setting})
    unfinished = evidence.run.planned - len(evidence.run.cells)
    note = (
        f"<p><b>{unfinished} of {evidence.run.planned} planned pieces of work are not finished; this is what there is.</b></p>"
        if unfinished
        else ""
    )
    dropped = (
        f" {evidence.answers.dropped:,} facts that some model has no grade for are left out."
        if evidence.answers.dropped
        else ""
    )
    return (
        f'<p class="kicker">knowshift study · run {escape(name)} · base model {escape(model_name)}</p>\n'
        f"<h1>{escape(headline(findings))}</h1>\n{note}"
        f"<p>{len(evidence.levels)} mastery levels of training facts × {len(evidence.sizes)} sizes × {len(draws)} training draws, "
        f"tested on {len(evidence.answers.facts):,} facts the models were not tuned on, with closed books.{dropped}</p>\n"
    )


def headline(findings: Sequence[Finding]) -> str:
    """How many of the paper's findings this run shows, in one line."""
    groups: dict[str, list[str]] = {}
    for finding in findings:
        groups.setdefault(finding.verdict, []).append(str(finding.number))
    parts = []
    for verdict in ("shown", "shown in part", "not shown", "undecided"):
        if verdict in groups:
            parts.append(f"{listed(groups[verdict])} {verdict}")
    count = len(groups.get("shown", []))
    words = ("None", "One", "Two", "Three", "Four")[count] if count <= 4 else str(count)
    verb = "is" if count == 1 else "are"
    detail = "" if len(parts) == 1 and count == len(findings) else f" ({'; '.join(parts)})"
    return f"{words} of the paper’s {len(findings)} findings {verb} shown by this run{detail}"


def _findings(findings: Sequence[Finding]) -> str:
    items = []
    for finding in findings:
        css = {"shown": "shown", "shown in part": "part", "not shown": "not"}.get(finding.verdict, "undecided")
        others = [c for c in finding.claims if c.core][1:]
        more = "".join(
            f'<p>{escape(c.sentence)} <span class="soft">({escape(c.statement)}: {escape(c.verdict)})</span></p>'
            for c in others
        )
        controls = "".join(f"<li>{escape(c.sentence)}</li>" for c in finding.controls)
        beside = f'<ul class="controls">{controls}</ul>' if controls else ""
        items.append(
            f'<li><h3>{finding.number}. {escape(finding.title)} <span class="verdict {css}">{escape(finding.verdict)}</span></h3>'
            f"<p>{escape(finding.sentence)}</p>{more}{beside}"
            f'<p class="soft">The paper: {escape(finding.paper)}</p></li>'
        )
    return f'<ol class="lead">{"".join(items)}</ol>\n'


def _figures(figures: Mapping[str, str], lines: Mapping[str, str]) -> str:
    out = ["<h2>In pictures</h2>\n"]
    for name, svg in figures.items():
        out.append(
            f'<figure id="{name}"><div class="sheet">{_own_ids(svg, name)}</div><figcaption><b>{escape(FIGURE_TITLES[name])}</b>'
            f'{escape(lines.get(name, ""))} <span class="soft">{escape(FIGURE_NOTES[name])}</span></figcaption></figure>\n'
        )
    return "".join(out)


def _own_ids(svg: str, name: str) -> str:
    """Prefix a figure's ids, which would otherwise stand several times in one page."""
    svg = re.sub(r'(\bid=")', rf"\1{name}-", svg)
    svg = re.sub(r'(href="#)', rf"\1{name}-", svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(FIGURE_TITLES[name])}" ', 1)


def _tables(tables: Tables) -> str:
    summary, restored = tables["accuracy_summary"], tables["restoration_summary"]
    return "".join(
        [
            "<h2>In numbers</h2>\n",
            accuracy_grid(summary, "in_domain"),
            accuracy_grid(summary, "out_of_domain"),
            word_grid(summary),
            controls_table(tables["controls"]),
            base_table(tables["base"]),
            mastery_table(tables["mastery"]),
            "<details><summary>Restoration by level and fraction</summary>",
            *(restoration_grid(restored, criterion) for criterion in tables.evidence.criteria),
            "</details>\n<details><summary>Every contrast behind the verdicts</summary>",
            '<p class="soft">A claim is shown when its whole 95% interval lies above zero (and Holm’s p is below 0.05 where '
            "claims were adjusted together), not shown when the interval lies below the smallest effect worth the name, and "
            "undecided otherwise. The last columns repeat the contrast with answers graded at word boundaries, and with "
            "relations instead of facts resampled.</p>",
            claims_table(tables.findings),
            "</details>\n",
        ]
    )


def _samples(evidence: Evidence, findings: Sequence[Finding]) -> str:
    fractions = evidence.fractions("relative")
    if not fractions:
        return ""
    samples = draw_samples(evidence, 0.2 if 0.2 in fractions else fractions[len(fractions) // 2])
    if samples is None or not samples.rows:
        return ""
    setting = samples.model.setting
    heads = ["as tuned", *(f"{100 * f:g}% restored" for f in samples.fractions)]
    return (
        "<h2>In the models’ words</h2>\n"
        f"<p>The model tuned on {setting.size:,} facts of level {setting.level} (draw {samples.draw}). Restoring "
        f"{100 * samples.fractions[0]:g}% of its weights turned {samples.gained:,} wrong answers right and {samples.lost:,} "
        f"right ones wrong; {samples.kept:,} grades stayed. These are drawn at random from those that changed.</p>\n"
        + sample_table(samples.rows, heads)
    )


def _making(evidence: Evidence) -> str:
    manifest = evidence.run.manifest
    model = manifest.get("model")
    facts: list[tuple[str, Any]] = [
        ("knowshift", manifest.get("knowshift")),
        ("git revision", manifest.get("git_revision")),
    ]
    if isinstance(model, dict):
        facts += [(f"model {key}", value) for key, value in sorted(model.items())]
    packages = manifest.get("packages")
    if isinstance(packages, dict):
        facts.append(("packages", ", ".join(f"{k} {v}" for k, v in sorted(packages.items()))))
    rows = "".join(
        f'<tr><td>{escape(k)}</td><td class="words">{escape(str(v))}</td></tr>' for k, v in facts if v is not None
    )
    shown = {key: manifest.get(key) for key in ("config", "timings") if manifest.get(key)}
    blocks = "".join(
        f"<details><summary>{escape(key.capitalize())}</summary><pre>{escape(json.dumps(value, indent=1, sort_keys=True))}</pre></details>"
        for key, value in shown.items()
    )
    return (
        "<h2>How it was made</h2>\n"
        "<p>Facts are graded by the paper’s rule (the answer or an alias occurs in the output); the word-boundary grader "
        "stands beside it. Intervals are 95%, over resampled facts (within test level) crossed with training draws. Choices "
        "of a size, level or fraction are made on one half of the facts and other draws, and measured on the rest.</p>\n"
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>{blocks}\n'
        '<p class="soft">After Ye et al., “Analyzing the Effects of Supervised Fine-Tuning on Model Knowledge from Token and '
        "Parameter Levels”, EMNLP 2025 (arXiv 2509.16596). The data of every table and figure lie beside this page, in tables/ "
        "and figures/.</p>\n"
    )
