"""report.html: one file that opens anywhere, without network or script, composed from a run's records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from knowshift.files import write_text
from knowshift.html.words import listed
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.samples import draw_samples
from knowshift.reports.findings.claims import Claim, Finding
from knowshift.reports.findings.takeaways import takeaways
from knowshift.reports.page.figures import build_figures, write_figures
from knowshift.reports.page.grids import (
    accuracy_grid,
    base_table,
    claims_table,
    controls_table,
    mastery_table,
    restoration_grid,
    sample_table,
    word_grid,
)
from knowshift.reports.tables.build import Tables, build_tables

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
    "accuracy_by_size": (
        "Closed-book accuracy on test facts, plain mean of the five test levels; bands are 95% intervals over facts "
        "and "
        "training draws."
    ),
    "kl_by_size": (
        "KL(tuned || base) in nats on the ten largest logits of the first answer token, over test facts of level 4; "
        "bands "
        "are 95% intervals."
    ),
    "restoration": (
        "Models of the largest size, mean of the training levels. Weights are ranked by relative change; beside it "
        "as many "
        "drawn at random."
    ),
    "restoration_by_level": (
        "Paired differences to the same model as tuned, most changed weights restored; bars are 95% intervals, not "
        "adjusted for looking at so many."
    ),
    "concentration": (
        "The no-signal null pairs each tensor's own weights with its own changes at random: dividing by weights near "
        "zero "
        "makes a heavy tail by itself."
    ),
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
    write_text(page, compose(tables, figures))
    return page, list(tables.findings)


def compose(tables: Tables, figures: Mapping[str, str]) -> str:
    """The whole page as text; the same for the same tables, figures and manifest."""
    evidence, findings = tables.evidence, tables.findings
    name = str(evidence.run.manifest.get("name") or evidence.run.path.name)
    title = f"{escape(name)}: what fine-tuning did to what the model knows"
    css = resources.files("knowshift.html").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        _head(evidence, findings, name),
        _findings(findings),
        _figures(figures, takeaways(tables, findings)),
        _tables(tables),
        _samples(evidence),
        _making(evidence),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _head(evidence: Evidence, findings: Sequence[Finding], name: str) -> str:
    model = evidence.run.manifest.get("model")
    model_name = str(model.get("name", "a base model")) if isinstance(model, dict) else "a base model"
    draws = len({c.draw for c in evidence.answers.columns if c.setting})
    levels, sizes = len(evidence.levels), len(evidence.sizes)
    planned, dropped = evidence.run.planned, evidence.answers.dropped
    unfinished = planned - len(evidence.run.cells)
    notes = []
    if unfinished:
        notes.append(
            f"<b>{unfinished:,} of {planned:,} planned pieces of work are not finished; this is what there is.</b>"
        )
    if draws == 1:
        notes.append("With one draw each, intervals speak for these training sets only.")
    elif used_up := evidence.used_up():
        most = "; ".join(f"level {level} has {there:,} facts for draws of {size:,}" for level, size, there in used_up)
        notes.append(
            f"{most[0].upper()}{most[1:]}: such draws share most of their facts, and differ less by luck than new "
            "facts would."
        )
    if dropped:
        notes.append(f"{dropped:,} facts that some model has no grade for are left out.")
    return (
        f'<p class="kicker">knowshift study &middot; run {escape(name)} &middot; base model {escape(model_name)}</p>\n'
        f"<h1>{escape(headline(findings))}</h1>\n"
        f'<p class="lede">{escape(tally(findings))} Models were tuned on facts of {_many(levels, "mastery level")}, in '
        f"{_many(sizes, 'size')}, with {_many(draws, 'training draw')} each, and asked "
        f"{len(evidence.answers.facts):,} facts they were not tuned on. Accuracy is the plain mean of the five test "
        f"levels; brackets hold 95% intervals over facts and draws. {' '.join(notes)}</p>\n"
    )


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def headline(findings: Sequence[Finding]) -> str:
    """What tuning and restoring did, in numbers; where neither is measured, how many findings are shown."""
    parts = [finding.short for finding in findings if finding.short]
    if not parts:
        return tally(findings)
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def tally(findings: Sequence[Finding]) -> str:
    """How many of the paper's findings this run shows, in one sentence."""
    groups: dict[str, list[str]] = {}
    for finding in findings:
        groups.setdefault(finding.verdict, []).append(str(finding.number))
    order = ("shown", "shown in part", "not shown", "undecided")
    parts = [f"{listed(groups[verdict])} {verdict}" for verdict in order if verdict in groups]
    count = len(groups.get("shown", []))
    start = f"This run shows {count} of the {len(findings)} findings of Ye et al. (2025)"
    return f"{start}." if count == len(findings) else f"{start}: {'; '.join(parts)}."


def _findings(findings: Sequence[Finding]) -> str:
    items = []
    for finding in findings:
        css = {"shown": "shown", "shown in part": "part", "not shown": "not"}.get(finding.verdict, "undecided")
        main, *others = [claim for claim in finding.claims if claim.core]
        lines = "".join(f"<p>{escape(claim.sentence)} {_said(claim)}</p>" for claim in others)
        controls = "".join(f"<li>{escape(claim.sentence)}</li>" for claim in finding.controls)
        beside = f'<p class="label">Beside it</p><ul class="controls">{controls}</ul>' if controls else ""
        notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in finding.notes)
        items.append(
            f"<li><h3>{finding.number}. {escape(finding.title)} "
            f'<span class="verdict {css}">{escape(finding.verdict)}</span></h3>'
            f"<p>{escape(main.sentence)} {_said(main) if others else ''}</p>{lines}{beside}{notes}"
            f'<p class="soft">The paper: {escape(finding.paper)}</p></li>'
        )
    return f'<ol class="lead">{"".join(items)}</ol>\n'


def _said(claim: Claim) -> str:
    return f'<span class="soft">({escape(claim.statement)}: {escape(claim.verdict)})</span>'


def _figures(figures: Mapping[str, str], lines: Mapping[str, str]) -> str:
    out = ["<h2>In pictures</h2>\n"]
    for name, svg in figures.items():
        out.append(
            f'<figure id="{name}"><div class="sheet">{_own_ids(svg, name)}</div>'
            f"<figcaption><b>{escape(FIGURE_TITLES[name])}</b> {escape(lines.get(name, ''))} "
            f'<span class="soft">{escape(FIGURE_NOTES[name])}</span></figcaption></figure>\n'
        )
    return "".join(out)


def _own_ids(svg: str, name: str) -> str:
    """Prefix a figure's ids, which would otherwise stand several times in one page."""
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
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
            '<p class="soft">A claim is shown when its whole 95% interval lies above zero (and Holm’s p is below '
            "0.05 where "
            "claims were adjusted together), not shown when the interval lies below the smallest effect worth the "
            "name, and "
            "undecided otherwise. The last columns repeat the contrast with answers graded at word boundaries, and "
            "with "
            "relations instead of facts resampled.</p>",
            claims_table(tables.findings),
            "</details>\n",
        ]
    )


def _samples(evidence: Evidence) -> str:
    fractions = evidence.fractions("relative")
    if not fractions:
        return ""
    samples = draw_samples(evidence, 0.2 if 0.2 in fractions else fractions[len(fractions) // 2])
    if samples is None or not samples.rows:
        return ""
    setting = samples.model.setting
    heads = ["as tuned", *(f"{100 * f:g}% restored" for f in samples.fractions)]
    return (
        "<h2>In the models&rsquo; words</h2>\n"
        f"<p>The model tuned on {setting.size:,} facts of level {setting.level} (draw {samples.draw}). Restoring "
        f"{100 * samples.fractions[0]:g}% of its weights turned {samples.gained:,} wrong answers right and "
        f"{samples.lost:,} "
        f"right ones wrong; {samples.kept:,} grades stayed. These are drawn at random from those that changed.</p>\n"
        + sample_table(samples.rows, heads)
    )


def _making(evidence: Evidence) -> str:
    manifest = evidence.run.manifest
    lines: list[tuple[str, Any]] = [
        ("knowshift", manifest.get("knowshift")),
        ("git revision", manifest.get("git_revision")),
    ]
    for part in ("model", "source"):
        about = manifest.get(part)
        if isinstance(about, dict):
            lines += [(f"{part}: {key}", value) for key, value in sorted(about.items())]
    packages = manifest.get("packages")
    if isinstance(packages, dict):
        lines.append(("packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))))
    timings = manifest.get("timings")
    if isinstance(timings, dict) and timings:
        seconds = [float(t) for t in timings.values()]
        lines.append(
            ("work in all", f"{sum(seconds):,.0f} seconds over {len(seconds)} pieces, of every start of the run")
        )
    rows = "".join(
        f'<tr><td>{escape(key)}</td><td class="words">{escape(str(value))}</td></tr>'
        for key, value in lines
        if value is not None
    )
    config = json.dumps(manifest.get("config"), indent=1, sort_keys=True)
    return (
        "<h2>How it was made</h2>\n"
        "<p>Answers are graded by the paper&rsquo;s rule: the answer or an alias occurs in the output; a grader at "
        "word "
        "boundaries stands beside it. Facts are resampled within their test level and crossed with training draws. A "
        "size, "
        "level or fraction is chosen on one half of the facts and the other draws, and measured on what took no part "
        "in "
        "the choice.</p>\n"
        f'<div class="scroll"><table class="about"><tbody>{rows}</tbody></table></div>\n'
        f"<details><summary>Config, with its seed</summary><pre>{escape(config)}</pre></details>\n"
        '<p class="soft">After Ye et al., &ldquo;Analyzing the Effects of Supervised Fine-Tuning on Model Knowledge '
        "from "
        "Token and Parameter Levels&rdquo;, EMNLP 2025 (arXiv 2509.16596). The data of every table and figure lie "
        "beside "
        "this page, in tables/ and figures/.</p>\n"
    )
