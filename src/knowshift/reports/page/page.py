"""report.html: one file that opens anywhere, without network, composed from a run's records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knowshift.facts.fact import LEVELS
from knowshift.files import write_text
from knowshift.html.grid import Grid
from knowshift.html.rendering import render
from knowshift.html.words import exact_percent, listed
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.samples import Samples, draw_samples
from knowshift.reports.findings.claims import Finding
from knowshift.reports.findings.takeaways import takeaways
from knowshift.reports.page.characteristics import NOTE as CHARACTERISTIC_NOTE
from knowshift.reports.page.characteristics import (
    characteristic_sentences,
    characteristic_titles,
    characteristics_grids,
)
from knowshift.reports.page.facts import fact_by_fact
from knowshift.reports.page.figures import build_figures, write_figures
from knowshift.reports.page.grids import (
    accuracy_grid,
    base_table,
    claims_table,
    controls_tables,
    mastery_table,
    restoration_grid,
    sample_table,
    trainings_table,
    word_grid,
)
from knowshift.reports.page.leakage import leakage_section
from knowshift.reports.page.paper import introduction, sections
from knowshift.reports.page.strategies import strategies_grids
from knowshift.reports.published import paper_model
from knowshift.reports.tables.build import Tables, build_tables

FIGURE_TITLES = {
    "accuracy_by_size": "Accuracy against the number of training samples",
    "accuracy_by_test_level": "Accuracy on facts of each mastery level",
    "level_4_by_size": "What becomes of the best-known facts",
    "kl_by_size": "How far token probabilities move from the base model",
    "restoration": "Accuracy when part of the change is put back",
    "restoration_by_level": "Gain and loss by training level",
    "other_tasks": "Other tasks when part of the change is put back",
    "strategies": "New facts learned against known facts kept",
    "concentration": "How concentrated the weight change is, beside chance",
    "mastery_by_exposures": "What the base model knows, and how often it read it",
}

#: What the bands and lines are, under the takeaway.
FIGURE_NOTES = {
    "accuracy_by_size": (
        "Closed-book accuracy on test facts, plain mean of test levels; bands are 95% intervals over facts "
        "and training draws."
    ),
    "accuracy_by_test_level": (
        "The same models by the mastery level of the test facts, as in the paper's Figures 2 and 6; bands are 95% "
        "intervals."
    ),
    "level_4_by_size": (
        "Closed-book accuracy on test facts of level 4 (the paper's Figures 4 and 5, with the KL on them below); bands "
        "are 95% intervals."
    ),
    "kl_by_size": (
        "KL(tuned || base) in nats on the ten largest logits of the first answer token, over test facts of level 4; "
        "bands are 95% intervals."
    ),
    "restoration": (
        "Models of the largest size, mean of the training levels. Weights are ranked by relative change; beside it as "
        "many drawn at random."
    ),
    "restoration_by_level": (
        "Paired differences to the same model as tuned, most changed weights restored; bars are 95% intervals, not "
        "adjusted for looking at so many."
    ),
    "other_tasks": (
        "Models of the largest size, mean of training levels and draws; test facts are the mean of both domains. "
        "Losses, in nats a token, are better where they are lower. Bars are 95% intervals of the difference to the "
        "same models as tuned, paired by item and draw."
    ),
    "strategies": (
        "Each line is a strategy through its learning rates. Blue is plain fine-tuning; red are those on the frontier, "
        "where no other point has more of both. Points are means over draws; intervals are in the tables."
    ),
    "concentration": (
        "The no-signal null pairs each tensor's own weights with its own changes at random: dividing by weights near "
        "zero makes a heavy tail by itself."
    ),
    "mastery_by_exposures": "Bars: share of facts at each mastery level. Line: mean rate R with its 95% interval.",
}

#: Figures against the training size, and what is said below them where models were tuned on all facts of a level.
BY_SIZE = ("accuracy_by_size", "accuracy_by_test_level", "level_4_by_size", "kl_by_size")
ALL_NOTE = (
    "Right of the line, all: every training fact of the level, whose number stands in the legend. Each draw has the "
    "same facts, in another order, so its interval says nothing of other facts to train on."
)


def write_report(run: Path) -> Path:
    """Write tables/*.csv, tables/*.tex, figures/*.svg and report.html of a run folder; returns the page's path."""
    return write_report_with_findings(run)[0]


def write_report_with_findings(run: Path) -> tuple[Path, list[Finding]]:
    """As :func:`write_report`, with the findings that the page shows.

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
    own = paper_model(_model_name(evidence) or "")
    summary, restored = tables["accuracy_summary"], tables["restoration_summary"]
    return render(
        "knowshift.reports.page",
        "report.html.jinja",
        **_about(evidence),
        **_samples(evidence),
        headline=headline(findings),
        shown=how_many_shown(findings),
        findings=findings,
        figures=_figures(figures, tables, takeaways(tables, findings)),
        grids=[
            accuracy_grid(summary, "in_domain"),
            accuracy_grid(summary, "out_of_domain"),
            word_grid(summary),
            *controls_tables(tables["controls"], tables["accuracy"], evidence.run.config),
            *strategies_grids(tables),
            *characteristics_grids(tables),
            trainings_table(tables["trainings"]),
            base_table(tables["base"]),
            mastery_table(tables["mastery"]),
        ],
        leakage=leakage_section(tables["leakage"], tables["leakage_sizes"], evidence.leaks.unknown),
        introduction=introduction(own),
        sections=sections(tables, own),
        fact_by_fact=fact_by_fact(evidence, tables["moves"]),
        restoration=[restoration_grid(restored, criterion) for criterion in evidence.criteria],
        claims=claims_table(findings),
        made_with=_made_with(evidence.run.manifest),
        config=json.dumps(evidence.run.manifest.get("config"), indent=1, sort_keys=True),
    )


def _about(evidence: Evidence) -> dict[str, Any]:
    """What was studied, and what of it is missing."""
    run = evidence.run
    return {
        "name": str(run.manifest.get("name") or run.path.name),
        "model": _model_name(evidence) or "a base model",
        "levels": len(evidence.levels),
        "sizes": len(evidence.sizes),
        "trained_on_all": evidence.trained_on_all,
        "draws": len({column.draw for column in evidence.answers.columns if column.setting}),
        "facts": len(evidence.answers.facts),
        "tested": _tested(sorted(set(evidence.answers.level.tolist()))),
        "planned": run.planned,
        "unfinished": run.planned - len(run.cells),
        "used_up": evidence.used_up(),
        "dropped": evidence.answers.dropped,
    }


def _model_name(evidence: Evidence) -> str | None:
    """The base model as the manifest names it."""
    model = evidence.run.manifest.get("model")
    return str(model["name"]) if isinstance(model, dict) and "name" in model else None


def _tested(levels: Sequence[int]) -> str:
    """Which test levels a mean is over."""
    return "the five test levels" if len(levels) == LEVELS else f"test levels {listed([*map(str, levels)])}"


def headline(findings: Sequence[Finding]) -> str:
    """What tuning and restoring did, in numbers; where neither is measured, how many findings are shown."""
    parts = [finding.short for finding in findings if finding.short]
    if not parts:
        return how_many_shown(findings)
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def how_many_shown(findings: Sequence[Finding]) -> str:
    """How many of the paper's findings this run shows, in one sentence."""
    groups: dict[str, list[str]] = {}
    for finding in findings:
        groups.setdefault(finding.verdict, []).append(str(finding.number))
    order = ("shown", "shown in part", "not shown", "undecided")
    parts = [f"{listed(groups[verdict])} {verdict}" for verdict in order if verdict in groups]
    count = len(groups.get("shown", []))
    start = f"This run shows {count} of the {len(findings)} findings of Ye et al. (2025)"
    return f"{start}." if count == len(findings) else f"{start}: {'; '.join(parts)}."


def _figures(figures: Mapping[str, str], tables: Tables, lines: Mapping[str, str]) -> list[dict[str, Any]]:
    ends = tables.get("characteristics_ends")
    titles, lines = {**FIGURE_TITLES, **characteristic_titles(ends)}, {**lines, **characteristic_sentences(ends)}
    notes = dict(FIGURE_NOTES)
    if tables.evidence.trained_on_all:
        notes |= {name: f"{notes[name]} {ALL_NOTE}" for name in BY_SIZE}
    return [
        {
            "name": name,
            "title": titles[name],
            "drawing": _drawing(svg, name),
            "takeaway": lines.get(name, ""),
            "note": notes.get(name, CHARACTERISTIC_NOTE),
        }
        for name, svg in figures.items()
    ]


def _drawing(svg: str, name: str) -> str:
    """The attributes and the content of a figure's svg element.

    Its ids get the figure's name before them, since they would otherwise stand several times in one page.
    """
    svg = re.sub(r'\bid="', f'id="{name}-', svg.removeprefix("<svg "))
    return svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")


def _samples(evidence: Evidence) -> dict[str, Any]:
    """Answers of one model as tuned and restored; nothing where no grade changed, or nothing was restored."""
    fractions = evidence.fractions("relative")
    samples: Samples | None = None
    if fractions:
        samples = draw_samples(evidence, 0.2 if 0.2 in fractions else fractions[len(fractions) // 2])
    if samples is None or not samples.rows:
        return {"samples": None, "answers": None, "fractions": ()}
    names = [exact_percent(fraction) for fraction in samples.fractions]
    answers: Grid = sample_table(samples.rows, ["as tuned", *(f"{name} restored" for name in names)])
    return {"samples": samples, "answers": answers, "fractions": names}


def _made_with(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, model, source and working time, as the manifest names them."""
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
    return [(name, str(value)) for name, value in lines if value is not None]
