"""The page's compact tables: the CSVs rearranged for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.html.grid import DASH, NONE, Entry, Grid, number, span
from knowshift.html.table import Table, is_missing
from knowshift.html.words import DOMAIN_WORDS, exact_percent, in_percent, p_value, percent, signed
from knowshift.reports.evidence.run_folder import ALL, RATE_CONTROL
from knowshift.reports.evidence.samples import Sample
from knowshift.reports.evidence.sizes import Size, in_order, rows_by_size, size_words
from knowshift.reports.findings.claims import Claim, Finding, mean_of
from knowshift.reports.tables.settings import level_words
from knowshift.statistics.estimates import Estimate

Rows = Sequence[Mapping[str, Any]]
Write = Callable[[float], str]

LEVEL_HEADS = tuple(f"level {level}" for level in range(LEVELS))


def _by_size(sizes: Sequence[Size]) -> list[str]:
    return ["training level", *map(size_words, sizes)]


def _level(level: int, rows: Rows) -> Entry:
    """A training level, and small how many facts it has in all, where a model was tuned on them."""
    whole = [row["samples"] for row in rows if row["level"] == level and row["size"] == ALL]
    return Entry(level_words(level), f"{whole[0]:,} facts in all" if whole else "")


def accuracy_grid(summary: Table, domain: str) -> Grid:
    """Training levels down, sizes across: mean accuracy in percent with its interval."""
    rows: Rows = rows_by_size(summary, test_level="mean", domain=domain)
    sizes = in_order(r["size"] for r in rows)
    body = []
    for level in sorted({r["level"] for r in rows}):
        here = {r["size"]: r for r in rows if r["level"] == level}
        shown = [
            number(r["accuracy"], in_percent, r["low"], r["high"]) if (r := here.get(size)) else DASH for size in sizes
        ]
        body.append([_level(level, rows), *shown])
    caption = f"Accuracy in %, {DOMAIN_WORDS[domain]}, mean of test levels, with 95% interval"
    return Grid(caption, _by_size(sizes), body)


def word_grid(summary: Table) -> Grid:
    """Both graders beside each other at every setting, mean of the two domains."""
    rows: Rows = rows_by_size(summary, test_level="mean")
    sizes = in_order(r["size"] for r in rows)
    body = []
    for level in sorted({r["level"] for r in rows}):
        line = [Entry(level_words(level))]
        for size in sizes:
            here = [r for r in rows if r["level"] == level and r["size"] == size and not is_missing(r["accuracy"])]
            if not here:
                line.append(DASH)
                continue
            means = [in_percent(mean_of([r[k] for r in here])) for k in ("accuracy", "word_accuracy")]
            empty = [r["empty_rate"] for r in here if not is_missing(r["empty_rate"])]
            line.append(Entry(" / ".join(means), percent(mean_of(empty), 0)))
        body.append(line)
    caption = (
        "Accuracy in % graded by substring / at word boundaries, mean of both domains; small: share of empty answers"
    )
    return Grid(caption, _by_size(sizes), body)


def restoration_grid(summary: Table, criterion: str) -> Grid:
    """Training levels down, fractions across: paired difference to the model as tuned, both domains."""
    rows: Rows = summary.where(control="", criterion=criterion)
    size = max((r["size"] for r in rows), default=0)
    rows = [r for r in rows if r["size"] == size]
    fractions = sorted({r["fraction"] for r in rows}, key=float)
    body = []
    for domain in DOMAINS:
        for level in sorted({r["level"] for r in rows}):
            here = {r["fraction"]: r for r in rows if r["level"] == level and r["domain"] == domain}
            if here:
                shown = [_difference(here.get(fraction), "difference_low", "difference_high") for fraction in fractions]
                body.append([Entry(f"{level_words(level)}, {DOMAIN_WORDS[domain]}"), *shown])
    words = {"relative": "the most changed weights", "random": "weights at random"}.get(criterion, f"by {criterion}")
    caption = f"Restoring {words} after {size:,} samples: points against as tuned, with 95% interval"
    return Grid(caption, ["training level", *(exact_percent(float(f)) for f in fractions)], body)


def _difference(row: Mapping[str, Any] | None, low: str, high: str) -> Entry:
    return number(row["difference"], signed, row[low], row[high]) if row else DASH


def base_table(base: Table) -> Grid:
    """The base model on the fine-tuning prompt, by test level."""
    names = {"zero_shot": "fine-tuning prompt", "few_shot": "after solved examples", "plain": "asked plainly"}
    body = []
    for prompt, words in names.items():
        for domain in DOMAINS:
            rows: Rows = base.where(prompt=prompt, domain=domain)
            if rows:
                empty = next(r["empty_rate"] for r in rows if r["test_level"] == "mean")
                rates = [*(r["accuracy"] for r in rows), empty]
                body.append([Entry(f"{words}, {DOMAIN_WORDS[domain]}"), *(number(rate, percent) for rate in rates)])
    caption = "The base model before tuning: accuracy by test level"
    return Grid(caption, ["prompt", *LEVEL_HEADS, "mean", "empty"], body)


def mastery_table(mastery: Table) -> Grid:
    """Facts by split, domain and level."""
    rows: Rows = mastery.where()
    body = []
    for split, domain in dict.fromkeys((r["split"], r["domain"]) for r in rows):
        facts = {r["level"]: r["facts"] for r in rows if (r["split"], r["domain"]) == (split, domain)}
        shown = [number(facts.get(str(level)), "{:,}".format) for level in range(LEVELS)]
        body.append([Entry(f"{split}, {DOMAIN_WORDS[domain]}"), *shown])
    return Grid("How many facts the base model knows how well", ["facts", *LEVEL_HEADS], body)


def controls_tables(controls: Table, accuracy: Table, config: Mapping[str, Any]) -> list[Grid]:
    """Each training beside the grid: its accuracy and the grid's, over the draws that both have.

    ``config`` is that of the study, which says what a variant changes.
    """
    names = dict.fromkeys(row["control"] for row in controls.where())
    return [_control_table(name, controls.where(control=name), accuracy, config) for name in names]


def variant_words(config: Mapping[str, Any], name: str) -> str:
    """What a variant changes: "epochs 4, lora (rank 8, alpha 16)"; empty where the config does not tell."""
    variants = config.get("variants")
    variant = variants.get(name) if isinstance(variants, dict) else None
    parts = []
    for field, value in variant.items() if isinstance(variant, dict) else ():
        if value is None or field in ("sizes", "draws"):
            continue
        if isinstance(value, dict):
            value = f"({', '.join(f'{key} {inner}' for key, inner in value.items())})"
        parts.append(f"{field.replace('_', ' ')} {value}")
    return ", ".join(parts)


def trainings_table(trainings: Table) -> Grid:
    """What every training was, and how much of the weights it changed."""
    body = [
        [
            Entry(row["control"] or "the grid"),
            Entry(level_words(row["level"])),
            Entry(f"{row['size']:,}"),
            Entry(f"{float(row['learning_rate']):.3g}"),
            number(row["distinct_facts"], "{:,}".format),
            number(row["updates"], "{:,}".format),
            number(row["train_loss"], "{:.2f}".format),
            number(row["changed_share"], exact_percent, note=_by_rounding(row["rounded_share"])),
        ]
        for row in trainings.where()
    ]
    heads = ["training", "level", "samples", "rate", "distinct", "updates", "loss", "changed"]
    caption = "What every training was, mean over draws: distinct facts, updates, loss, share of weights that changed"
    return Grid(caption, heads, body, "dense")


def _by_rounding(share: float | None) -> str:
    return "" if share is None or is_missing(share) or share == 0 else f"{exact_percent(share)} by the dtype alone"


def _control_table(name: str, rows: Rows, accuracy: Table, config: Mapping[str, Any]) -> Grid:
    body = []
    for row in rows:
        grid, control = _both_accuracies(row, accuracy)
        body.append(
            [
                Entry(f"{level_words(row['level'])}, {DOMAIN_WORDS[row['domain']]}"),
                Entry(f"{row['size']:,}"),
                number(grid, percent, note=f"at {float(row['learning_rate']):.3g}"),
                number(control, percent, note=f"at {float(row['control_learning_rate']):.3g}"),
                _difference(row, "low", "high"),
            ]
        )
    if name == RATE_CONTROL:
        heads = ["training level", "samples", "grid's rate", "control's rate", "difference"]
        return Grid("The learning-rate control: both rates over the training draws that the control has", heads, body)
    words = variant_words(config, name)
    caption = f"Trained otherwise, {name}{f' ({words})' if words else ''}: over the training draws that both have"
    return Grid(caption, ["training level", "samples", "grid", name, "difference"], body)


def _both_accuracies(row: Mapping[str, Any], accuracy: Table) -> tuple[float, float]:
    """Mean accuracy of the grid's and of the control's models in a row of ``controls``, over the draws of both."""
    place = {"test_level": "mean", "size": row["size"], "domain": row["domain"]}
    grid = accuracy.where(**place, learning_rate=row["learning_rate"], control="")
    control = accuracy.where(**place, learning_rate=row["control_learning_rate"], control=row["control"])
    means: list[tuple[float, float]] = []
    for level in dict.fromkeys(r["level"] for r in control if row["level"] in ("mean", str(r["level"]))):
        second = {r["draw"]: r["accuracy"] for r in control if r["level"] == level}
        beside = [r for r in grid if level in ("mixed", r["level"])]
        first = {
            draw: mean_of([r["accuracy"] for r in beside if r["draw"] == draw]) for draw in {r["draw"] for r in beside}
        }
        shared = sorted(set(first) & set(second))
        if shared:
            means.append((mean_of([first[draw] for draw in shared]), mean_of([second[draw] for draw in shared])))
    return mean_of([one for one, _ in means]), mean_of([other for _, other in means])


def claims_table(findings: Sequence[Finding]) -> Grid:
    """Every claim with its verdict, estimate and interval, and its results under the other grader and by relation."""
    body = [
        _claim_entries(finding.number, claim) for finding in findings for claim in (*finding.claims, *finding.controls)
    ]
    heads = ["", "claim", "verdict", "estimate", "95% interval", "Holm p", "word grader", "by relation"]
    return Grid("Every contrast behind the verdicts", heads, body, "claims")


def _claim_entries(finding: int, claim: Claim) -> list[Entry]:
    scale, digits = (100.0, 1) if claim.unit == "points" else (1.0, 2)
    if claim.name.startswith("concentration"):
        digits = 2
    write = partial(signed, scale=scale, digits=digits)

    def interval(estimate: Estimate | None) -> Entry:
        return Entry((span(estimate.low, estimate.high, write) if estimate else "") or NONE)

    return [
        Entry(str(finding)),
        Entry(claim.statement, f"({claim.scope})", "words"),
        Entry(claim.verdict),
        number(claim.estimate.value, write, note=claim.unit),
        interval(claim.estimate),
        number(claim.p_holm, p_value),
        interval(claim.word),
        interval(claim.by_relation),
    ]


def sample_table(samples: Sequence[Sample], heads: Sequence[str]) -> Grid:
    """Raw answers of one model as tuned and restored."""
    body = []
    for sample in samples:
        answers = [
            Entry(text.strip(), "" if text.strip() else "(empty)", f"answer {'hit' if hit else 'miss'}")
            for text, hit in sample.answers
        ]
        body.append([Entry(sample.question, sample.about, "answer"), Entry(sample.gold, style="answer"), *answers])
    return Grid("Answers as written", ["question", "gold answer", *heads], body, "answers")
