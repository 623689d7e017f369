"""What a reader of the page sees of the hand-made run: every table, caption, headline and answer, to the letter."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from hand_run import FACTS, TEST
from knowshift.report.claims import Claim, Finding
from knowshift.report.evidence import read_evidence
from knowshift.report.layout import Table
from knowshift.report.page import FIGURE_NOTES, FIGURE_TITLES, compose, headline, tally
from knowshift.report.page_tables import (
    accuracy_grid,
    base_table,
    claims_table,
    controls_table,
    html_table,
    mastery_table,
    restoration_grid,
    sample_table,
    word_grid,
)
from knowshift.report.samples import Sample, draw_samples
from knowshift.report.tables import Tables, build_tables
from knowshift.report.takeaways import takeaways
from knowshift.study.statistics import MISSING, Estimate

Cells = Sequence[Sequence[str]]


def read(table: str) -> tuple[str, list[str], list[list[str]]]:
    """Caption, head and rows of an HTML table, as text."""

    def text(html: str) -> str:
        return unescape(re.sub(r"<[^>]*>", "", html))

    caption = re.search(r"<caption>(.*?)</caption>", table)
    head = re.findall(r'<th scope="col">(.*?)</th>', table)
    rows = [
        [text(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(<td.*?)</tr>", table)
    ]
    assert caption is not None
    return text(caption[1]), [text(name) for name in head], rows


@pytest.fixture(scope="module")
def page(hand_tables: Tables) -> str:
    figures = dict.fromkeys(FIGURE_TITLES, '<svg id="x"><path id="y"/><use href="#y" clip-path="url(#x)"/></svg>')
    return compose(hand_tables, figures)


ACCURACY = {
    "in_domain": (
        "in-domain",
        [
            ["level 0", "26.7 7.8…45.5", "53.3 37.0…69.6", "13.3 0.0…29.6"],
            ["level 2", "60.0 41.2…78.8", "93.3 77.0…100.0", "73.3 57.0…89.6"],
            ["level 4", "60.0 41.2…78.8", "73.3 57.0…89.6", "46.7 30.4…63.0"],
        ],
    ),
    "out_of_domain": (
        "out-of-domain",
        [
            ["level 0", "20.0 0.0…46.6", "40.0 40.0…40.0", "6.7 0.0…23.0"],
            ["level 2", "46.7 20.0…73.3", "80.0 80.0…80.0", "46.7 30.4…63.0"],
            ["level 4", "53.3 26.7…80.0", "60.0 60.0…60.0", "33.3 17.0…49.6"],
        ],
    ),
}


@pytest.mark.parametrize("domain", ACCURACY)
def test_accuracy(domain: str, hand_tables: Tables) -> None:
    words, rows = ACCURACY[domain]
    caption, head, found = read(accuracy_grid(hand_tables["accuracy_summary"], domain))
    assert caption == f"Accuracy in %, {words}, mean of the five test levels, with 95% interval"
    assert head == ["training level", "60", "240", "1,920"]
    assert found == rows


def test_both_graders(hand_tables: Tables) -> None:
    caption, head, rows = read(word_grid(hand_tables["accuracy_summary"]))
    assert caption == (
        "Accuracy in % graded by substring / at word boundaries, mean of both domains; small: share of empty answers"
    )
    assert head == ["training level", "60", "240", "1,920"]
    assert rows == [
        ["level 0", "23.3 / 23.3 20%", "46.7 / 36.7 20%", "10.0 / 10.0 20%"],
        ["level 2", "53.3 / 53.3 20%", "86.7 / 76.7 14%", "60.0 / 60.0 20%"],  # in two draws of 240 none of 4 is empty
        ["level 4", "56.7 / 46.7 20%", "66.7 / 56.7 20%", "40.0 / 30.0 20%"],
    ]


def test_the_learning_rate_control(hand_tables: Tables) -> None:
    caption, head, rows = read(controls_table(hand_tables["controls"]))
    assert caption == "The learning-rate control"
    assert head == ["training level", "samples", "grid's rate", "control's rate", "difference"]
    assert rows == [
        ["level 0, in-domain", "1,920", "13.3% at 0.0003", "40.0% at 0.0001", "+20.0 −21.1…+61.1"],
        ["level 0, out-of-domain", "1,920", "6.7% at 0.0003", "30.0% at 0.0001", "+20.0 +1.6…+38.4"],
        ["level 2, in-domain", "1,920", "73.3% at 0.0003", "80.0% at 0.0001", "+10.0 −31.1…+51.1"],
        ["level 2, out-of-domain", "1,920", "46.7% at 0.0003", "70.0% at 0.0001", "+30.0 +11.6…+48.4"],
        ["level 4, in-domain", "1,920", "46.7% at 0.0003", "70.0% at 0.0001", "+20.0 −21.1…+61.1"],
        ["level 4, out-of-domain", "1,920", "33.3% at 0.0003", "60.0% at 0.0001", "+20.0 +1.6…+38.4"],
        ["mean, in-domain", "1,920", "44.4% at 0.0003", "63.3% at 0.0001", "+16.7 −29.5…+62.8"],
        ["mean, out-of-domain", "1,920", "28.9% at 0.0003", "53.3% at 0.0001", "+23.3 −19.0…+65.7"],
    ]


def test_the_base_model(hand_tables: Tables) -> None:
    caption, head, rows = read(base_table(hand_tables["base"]))
    assert caption == "The base model before tuning: accuracy by test level"
    assert head == ["prompt", *(f"level {level}" for level in range(5)), "mean", "empty"]
    none, all_ = "0.0%", "100.0%"
    assert rows == [
        ["fine-tuning prompt, in-domain", none, none, none, none, none, none, "18.2%"],
        ["fine-tuning prompt, out-of-domain", none, none, none, none, all_, "20.0%", "22.2%"],
        ["after solved examples, in-domain", none, none, none, all_, all_, "40.0%", "18.2%"],
        ["after solved examples, out-of-domain", none, none, none, none, all_, "20.0%", "22.2%"],
        ["asked plainly, in-domain", none, none, all_, all_, all_, "60.0%", "18.2%"],
        ["asked plainly, out-of-domain", none, none, none, none, none, none, "22.2%"],
    ]


def test_mastery(hand_tables: Tables) -> None:
    caption, head, rows = read(mastery_table(hand_tables["mastery"]))
    assert caption == "How many facts the base model knows how well"
    assert head == ["facts", *(f"level {level}" for level in range(5))]
    assert rows == [
        ["train, in-domain", "2", "3", "4", "4", "4"],
        ["test, in-domain", "4", "4", "4", "4", "6"],
        ["test, out-of-domain", "4", "4", "4", "4", "2"],
    ]
    many = Table("mastery", hand_tables["mastery"].columns, (("test", "in_domain", "1", 12345, 1.0),))
    assert read(mastery_table(many))[2] == [["test, in-domain", "–", "12,345", "–", "–", "–"]]


def test_restoration_by_level_and_fraction(hand_tables: Tables) -> None:
    caption, head, rows = read(restoration_grid(hand_tables["restoration_summary"], "relative"))
    assert caption == (
        "Restoring the most changed weights after 1,920 samples: points against as tuned, with 95% interval"
    )
    assert head == ["training level", "1%", "20%", "60%"]
    assert rows == [
        ["level 0, in-domain", "0.0 0.0…0.0", "+20.0 +6.7…+33.3", "−13.3 −22.8…−3.9"],
        ["level 2, in-domain", "0.0 0.0…0.0", "+13.3 0.0…+26.7", "−60.0 −69.4…−50.6"],
        ["level 4, in-domain", "0.0 0.0…0.0", "+13.3 0.0…+26.7", "−40.0 −49.4…−30.6"],
        ["mean, in-domain", "0.0 0.0…0.0", "+15.6 +6.8…+24.3", "−37.8 −47.3…−28.2"],
        ["level 0, out-of-domain", "0.0 −13.3…+13.3", "+26.7 +17.2…+36.1", "−6.7 −20.0…+6.7"],
        ["level 2, out-of-domain", "+6.7 −6.7…+20.0", "+20.0 +10.6…+29.4", "−40.0 −53.3…−26.7"],
        ["level 4, out-of-domain", "+6.7 −6.7…+20.0", "+20.0 +10.6…+29.4", "−33.3 −46.7…−20.0"],
        ["mean, out-of-domain", "+4.4 −4.3…+13.2", "+22.2 +12.7…+31.8", "−26.7 −35.4…−17.9"],
    ]
    other = read(restoration_grid(hand_tables["restoration_summary"], "random"))
    assert other[0].startswith("Restoring weights at random after")
    assert other[2][4][3] == "−6.7 −23.0…+9.6"
    assert restoration_grid(hand_tables["restoration_summary"], "absolute") == ""


def test_every_contrast(hand_tables: Tables) -> None:
    caption, head, rows = read(claims_table(hand_tables.findings))
    assert caption == "Every contrast behind the verdicts"
    assert head == ["", "claim", "verdict", "estimate", "95% interval", "Holm p", "word grader", "by relation"]
    assert len(rows) == sum(len(f.claims) + len(f.controls) for f in hand_tables.findings)
    interval = "+10.2…+40.9"
    assert rows[0] == [
        "1",
        "the best smaller size beats the largest (mean of training levels, both domains)",
        *("shown", "+25.6 points", interval, "–", "+3.5…+34.3", interval),
    ]
    by_claim = {(row[0], row[1]): row[2:] for row in rows}
    level_4 = "the best smaller size beats the largest (training level 4, both domains)"
    assert by_claim["1", level_4] == ["undecided", "+13.3 points", "−10.2…+36.9", "0.215", "–", "–"]
    level_0 = "KL rises from its lowest size to the largest (training level 0)"
    assert by_claim["3", level_0] == ["undecided", "+1.58 nats", "+0.63…+2.53", "0.057", "–", "–"]
    top = "the relative change is more concentrated than its no-signal null (top 20% of weights)"
    assert by_claim["4", top] == ["not shown", "−1.00 points", "−1.40…−0.60", "–", "–", "–"]


def test_claims_that_are_missing_or_very_sure() -> None:
    sure = Claim("a", "a", "b", "points", Estimate(0.1, 0.05, 0.15, 0.01, 4, 1e-5, 3), "a.", p_holm=0.0009)
    missing = Claim("a", "a", "b", "nats", MISSING, "a.", p_holm=0.001)
    rows = read(claims_table([Finding(1, "t", "p", "s", (sure, missing))]))[2]
    assert rows[0][5] == "<0.001"
    assert rows[1] == ["1", "a (b)", "undecided", "–", "–", "0.001", "–", "–"]


def test_cells_without_a_number(hand_tables: Tables) -> None:
    summary = hand_tables["accuracy_summary"]
    place = summary.columns.index
    rows = [list(row) for row in summary.rows if not (row[0] == 4 and row[1] == 240)]
    for row in rows:
        if row[0] == 0 and row[1] == 60:
            row[place("accuracy")] = math.nan
        if row[0] == 0 and row[1] == 240:
            row[place("low")] = row[place("high")] = math.nan
    gaps = replace(summary, rows=tuple(map(tuple, rows)))
    assert read(accuracy_grid(gaps, "in_domain"))[2] == [
        ["level 0", "–", "53.3", "13.3 0.0…29.6"],
        ACCURACY["in_domain"][1][1],
        ["level 4", "60.0 41.2…78.8", "–", "46.7 30.4…63.0"],
    ]
    both = read(word_grid(gaps))[2]
    assert (both[0][1], both[2][2]) == ("–", "–")
    assert html_table(["a"], [], "nothing") == ""
    assert html_table(["<a>"], [["<i>1</i>"]], "<b>") == (
        '<div class="scroll"><table class="numbers"><caption>&lt;b&gt;</caption><thead><tr>'
        '<th scope="col">&lt;a&gt;</th></tr></thead><tbody><tr><td><i>1</i></td></tr></tbody></table></div>'
    )


# -- samples ----------------------------------------------------------------------------------------------------


def test_samples_are_of_the_middle_level_at_the_largest_size(hand_tables: Tables) -> None:
    samples = draw_samples(hand_tables.evidence, 0.2)
    assert samples is not None
    assert (samples.model.setting.level, samples.model.setting.size, samples.draw) == (2, 1920, 0)
    assert samples.fractions == (0.2, 0.6)
    # Level 0 in-domain and levels 1 and 2 out-of-domain are gained (4 + 8 facts), level 4 out-of-domain is lost (2).
    assert (samples.gained, samples.lost, samples.kept) == (12, 2, 26)
    assert len(samples.rows) == 10
    facts = {fact.name: fact for fact in TEST}
    names = [row.question.removeprefix("Who is ").removesuffix("?") for row in samples.rows]
    assert sorted(names, key=list(facts).index) == names
    relations = {"P17": "country", "P19": "place of birth", "P26": "spouse", "P40": "child"}
    for row, name in zip(samples.rows, names, strict=True):
        fact = facts[name]
        assert row.gold == f"gold {name}"
        assert row.about == f"{relations[fact.relation]}, {fact.domain.replace('_', '-')}, test level {fact.level}"
        lost = (fact.domain, fact.level) == ("out_of_domain", 4)
        assert lost or (fact.domain, fact.level) in {("in_domain", 0), ("out_of_domain", 1), ("out_of_domain", 2)}
        hits = [lost, not lost, False]  # as tuned, 20% and 60% restored
        wrong = " " if fact.level == 0 else " wrong"
        assert row.answers == tuple((" right" if hit else wrong, hit) for hit in hits)
    assert draw_samples(hand_tables.evidence, 0.2) == samples
    every = draw_samples(hand_tables.evidence, 0.2, count=100)
    assert every is not None
    assert sum(row.answers[0][1] for row in every.rows) == 2  # all that were lost are among all that changed
    assert len(every.rows) == 14
    few = draw_samples(hand_tables.evidence, 0.2, count=3)
    assert few is not None
    assert len(few.rows) == 3


def test_samples_are_of_the_largest_size_before_the_middle_level(hand_run: Path, tmp_path: Path) -> None:
    shutil.copytree(hand_run, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    for cell in manifest["cells"]:
        if (cell["key"].get("level"), cell["key"].get("size")) == (2, 1920):
            cell["key"]["size"] = 960
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    samples = draw_samples(read_evidence(tmp_path / "run"), 0.2)
    assert samples is not None
    assert (samples.model.setting.level, samples.model.setting.size, samples.draw) == (0, 1920, 0)


def test_samples_at_the_largest_fraction_alone(hand_tables: Tables) -> None:
    samples = draw_samples(hand_tables.evidence, 0.6)
    assert samples is not None
    assert samples.fractions == (0.6,)
    lost = sum(FACTS["in_domain"][1:4]) + sum(FACTS["out_of_domain"][3:])  # of 4 and 2 levels 1 and 0 are left
    assert (samples.gained, samples.lost, samples.kept) == (0, lost, 40 - lost)
    nothing = draw_samples(hand_tables.evidence, 0.01)
    assert nothing is not None
    assert nothing.rows == ()  # in draw 0 the model at 1% answers as tuned
    assert (nothing.gained, nothing.lost, nothing.kept) == (0, 0, 40)
    assert draw_samples(hand_tables.evidence, 0.5) is None  # no such fraction


def test_samples_as_a_table() -> None:
    sample = Sample("Who?", "She & he", "spouse", ((" yes\n", True), (" \n", False)))
    table = sample_table([sample], ["as tuned", "20% restored"])
    assert read(table) == (
        "Answers as written",
        ["question", "gold answer", "as tuned", "20% restored"],
        [["Who? spouse", "She & he", "yes", "(empty)"]],
    )
    assert re.findall(r'<td class="answer ?(\w*)"', table) == ["", "", "hit", "miss"]


def test_the_page_tells_how_samples_were_drawn(page: str) -> None:
    assert (
        "<p>The model tuned on 1,920 facts of level 2 (draw 0). Restoring 20% of its weights turned 12 wrong answers "
        "right and 2 right ones wrong; 26 grades stayed. These are drawn at random from those that changed.</p>"
    ) in page
    assert '<th scope="col">as tuned</th><th scope="col">20% restored</th><th scope="col">60% restored</th>' in page


# -- head, findings, captions ------------------------------------------------------------------------------------


def test_the_head(page: str) -> None:
    assert "<title>hand: what fine-tuning did to what the model knows</title>" in page
    assert '<p class="kicker">knowshift study &middot; run hand &middot; base model a/model</p>' in page
    assert (
        "<h1>Tuned on 1,920 facts, the models answer 36.7% of the test, 25.6 points less than on the best smaller set; "
        "putting the most changed weights back gives 18.9 points more</h1>"
    ) in page
    assert (
        '<p class="lede">This run shows 4 of the 4 findings of Ye et al. (2025). Models were tuned on facts of 3 '
        "mastery levels, in 3 sizes, with 3 training draws each, and asked 40 facts they were not tuned on. Accuracy "
        "is the plain mean of the five test levels; brackets hold 95% intervals over facts and draws. </p>"
    ) in page


def test_a_run_in_progress_of_one_draw(hand_run: Path, tmp_path: Path) -> None:
    shutil.copytree(hand_run, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    del manifest["name"], manifest["model"]
    manifest["cells"] = [c for c in manifest["cells"] if c["key"].get("draw", 0) == 0]
    gone = [c for c in manifest["cells"] if c["kind"] == "restoration"]
    manifest["cells"] += [{"kind": "tuned", "digest": f"later{n}", "key": gone[0]["key"]} for n in range(1234)]
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    for cell in gone:
        shutil.rmtree(tmp_path / "run/cells/restoration" / cell["digest"])
    tables = build_tables(tmp_path / "run")
    page = compose(tables, {})
    planned = len(manifest["cells"])
    assert (
        f"<b>1,237 of {planned:,} planned pieces of work are not finished; this is what there is.</b> With one draw "
        "each, intervals speak for these training sets only.</p>"
    ) in page
    assert "with 1 training draw each, and" in page
    assert "run run &middot; base model a base model</p>" in page
    assert "In the models&rsquo; words" not in page


def test_findings_with_their_verdicts_controls_and_notes(page: str, hand_tables: Tables) -> None:
    items = re.findall(r"<li><h3>(.*?)</li>(?=<li><h3>|</ol>)", page, re.DOTALL)
    assert len(items) == 4
    for item, finding in zip(items, hand_tables.findings, strict=True):
        assert f'{finding.number}. {finding.title} <span class="verdict shown">shown</span>' in unescape(item)
        told = unescape(item)
        main, *others = [claim for claim in finding.claims if claim.core]
        assert f'<p>{main.sentence} <span class="soft">({main.statement}: {main.verdict})</span></p>' in told
        for claim in others:
            assert f'<p>{claim.sentence} <span class="soft">({claim.statement}: {claim.verdict})</span></p>' in told
        controls = [unescape(text) for text in re.findall(r"<li>(.*?)</li>", item)]
        assert controls[: len(finding.controls)] == [claim.sentence for claim in finding.controls]
        for note in finding.notes:
            assert f'<p class="soft">{note}</p>' in told
        assert told.endswith(f'<p class="soft">The paper: {finding.paper}</p>')


def test_every_verdict_has_its_colour(hand_tables: Tables) -> None:
    def claim(low: float, high: float) -> Claim:
        return Claim("a", "a", "", "points", Estimate(0, low, high, 1, 4, 0.5, 3), "A.", core=True)

    shown, hidden, undecided = claim(0.1, 0.2), claim(-0.2, -0.1), claim(-0.1, 0.2)
    findings = [
        Finding(1, "t", "p", "s", (shown, shown)),
        Finding(2, "t", "p", "s", (shown, hidden)),
        Finding(3, "t", "p", "s", (hidden,)),
        Finding(4, "t", "p", "s", (undecided,)),
    ]
    page = compose(replace(hand_tables, findings=findings), {})
    assert re.findall(r'class="verdict (\w+)">([\w ]+)<', page) == [
        ("shown", "shown"),
        ("part", "shown in part"),
        ("not", "not shown"),
        ("undecided", "undecided"),
    ]
    said = "This run shows 1 of the 4 findings of Ye et al. (2025): 1 shown; 2 shown in part; 3 not shown; 4 undecided."
    assert tally(findings) == said
    assert headline(findings) == said
    assert tally([replace(f, number=n) for n, f in enumerate([findings[2]] * 2, 3)]) == (
        "This run shows 0 of the 2 findings of Ye et al. (2025): 3 and 4 not shown."
    )
    assert headline([replace(findings[0], short="one thing"), findings[1], replace(findings[2], short="another")]) == (
        "One thing; another"
    )
    assert "<p>A. </p>" in page  # a single core claim says nothing that the verdict does not


CAPTIONS = {
    "accuracy_by_size": "The highest point, both domains together, lies at 240 samples for levels 0, 2 and 4.",
    "kl_by_size": (
        "Mean KL to the base over 6 well-known facts: 1.03 at 60, 0.74 at 240, 1.86 at 1,920 samples. From its lowest "
        "smaller size (240 samples in 18 of 18 choices) to 1,920: +1.12 nats [+0.86 to +1.39]."
    ),
    "restoration": (
        "After 1,920 samples, as observed here, restoring changes accuracy: the most changed weights +18.9 points at "
        "best (20%) and −32.2 at 60%; weights at random +5.6 points at best (20%) and −17.8 at 60%."
    ),
    "restoration_by_level": (
        "Of 18 differences (training levels, fractions and domains), 3 are gains and 4 are losses at p < 0.05 after "
        "Holm's adjustment."
    ),
    "concentration": (
        "The top 1% of weights hold 72.0% of summed relative change, in the no-signal null 62.0% (LLaMA-3-8B: 70.8%; "
        "by absolute change 6.0%): +10.00 points [+9.60 to +10.40] against the null."
    ),
    "mastery_by_exposures": (
        "The mean rate goes from 5.0% of draws (written never) to 95.0% (>50 times); it does not rise at every step."
    ),
}


def test_captions(hand_tables: Tables, page: str) -> None:
    assert takeaways(hand_tables, hand_tables.findings) == CAPTIONS
    found = re.findall(r'<figure id="(\w+)">.*?<figcaption>(.*?)</figcaption>', page, re.DOTALL)
    assert [name for name, _ in found] == list(FIGURE_TITLES) == list(FIGURE_NOTES) == list(CAPTIONS)
    for name, caption in found:
        expected = f'<b>{FIGURE_TITLES[name]}</b> {CAPTIONS[name]} <span class="soft">{FIGURE_NOTES[name]}</span>'
        assert unescape(caption) == expected


def test_gains_and_losses_of_the_caption_are_counted_from_the_table(hand_tables: Tables) -> None:
    rows = [r for r in hand_tables["restoration_summary"].where(criterion="relative") if r["level"] != "mean"]
    sure = [np.sign(r["difference"]) for r in rows if r["p_holm"] < 0.05]
    assert (len(rows), sure.count(1), sure.count(-1)) == (18, 3, 4)


def with_rows(tables: Tables, name: str, change: dict[str, object], **where: object) -> dict[str, Table]:
    """The tables, with other values in some rows of one."""
    table = tables[name]
    rows = []
    for row in table.rows:
        named = dict(zip(table.columns, row, strict=True))
        if all(named[key] == value for key, value in where.items()):
            named |= change
        rows.append(tuple(named.values()))
    return {**tables, name: replace(table, rows=tuple(rows))}  # type: ignore[arg-type]


def test_captions_of_other_numbers(hand_tables: Tables) -> None:
    said = takeaways(with_rows(hand_tables, "accuracy_summary", {"accuracy": 0.99}, level=4, size=1920), [])
    assert said["accuracy_by_size"] == (
        "The highest point, both domains together, lies at 240 samples for levels 0 and 2; at 1,920 samples for level "
        "4."
    )
    assert said["kl_by_size"] == said["concentration"] == ""
    equal = takeaways(with_rows(hand_tables, "accuracy_summary", {"accuracy": 0.5}), [])
    assert "lies at 60 samples for levels 0, 2 and 4." in equal["accuracy_by_size"]  # the smallest of equals
    none = takeaways(with_rows(hand_tables, "accuracy_summary", {"accuracy": math.nan}), [])
    assert none["accuracy_by_size"] == ""
    lower = takeaways(with_rows(hand_tables, "restoration_summary", {"difference": -0.04}, criterion="relative"), [])
    assert "the most changed weights −4.0 points at best (1%) and −4.0 at 60%;" in lower["restoration"]
    gains = takeaways(with_rows(hand_tables, "restoration_summary", {"p_holm": 0.05}), [])
    assert gains["restoration_by_level"].startswith("Of 18 differences (training levels, fractions and domains), 0 are")
    exposures = hand_tables["exposures"]
    rising = {**hand_tables, "exposures": replace(exposures, rows=exposures.rows[1:4])}
    assert takeaways(rising, [])["mastery_by_exposures"] == (
        "The mean rate goes from 20.0% of draws (written once) to 45.0% (3-4 times); it rises at every step."
    )
    one = {**hand_tables, "exposures": replace(exposures, rows=exposures.rows[:1])}
    assert takeaways(one, [])["mastery_by_exposures"] == ""
    empty = {name: replace(table, rows=()) for name, table in hand_tables.items()}
    assert set(takeaways(empty, []).values()) == {""}


def test_ids_of_figures_stand_once_in_a_page(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) == 3 * len(FIGURE_TITLES)
    assert '<use href="#kl_by_size-y" clip-path="url(#kl_by_size-x)"/>' in page
    assert f'<svg role="img" aria-label="{FIGURE_TITLES["kl_by_size"]}" id="kl_by_size-x">' in page


def test_how_it_was_made(page: str) -> None:
    about = page[page.index("<h2>How it was made</h2>") :]
    assert re.findall(r'<tr><td>(.*?)</td><td class="words">(.*?)</td></tr>', about) == [
        ("knowshift", "0.1.0"),
        ("git revision", "0123abc"),
        ("model: dtype", "float32"),
        ("model: name", "a/model"),
        ("source: facts", "57"),
        ("source: name", "world:tiny"),
        ("packages", "torch 2.13.0, transformers 5.23.0"),
        ("work in all", "1,213 seconds over 2 pieces, of every start of the run"),
    ]
    config = re.search(r"<pre>(.*?)</pre>", about, re.DOTALL)
    assert config is not None
    assert json.loads(unescape(config[1])) == {"levels": [0, 2, 4], "training": {"learning_rate": 3e-4}}


def test_the_tables_stand_in_this_order(page: str) -> None:
    captions = [unescape(text) for text in re.findall(r"<caption>(.*?)</caption>", page)]
    assert [text.split(",")[0].split(" after")[0] for text in captions] == [
        "Accuracy in %",
        "Accuracy in %",
        "Accuracy in % graded by substring / at word boundaries",
        "The learning-rate control",
        "The base model before tuning: accuracy by test level",
        "How many facts the base model knows how well",
        "Restoring the most changed weights",
        "Restoring weights at random",
        "Every contrast behind the verdicts",
        "Answers as written",
    ]
    assert captions[0].startswith("Accuracy in %, in-domain")
    assert captions[1].startswith("Accuracy in %, out-of-domain")
