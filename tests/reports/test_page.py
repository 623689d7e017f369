"""What a reader of the page sees of the hand-made run: headline, findings, captions, samples, to the letter."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from hand_run import FACTS, TEST
from knowshift.html.table import Table
from knowshift.reports.evidence.evidence import read_evidence
from knowshift.reports.evidence.samples import draw_samples
from knowshift.reports.findings.claims import Claim, Finding
from knowshift.reports.findings.takeaways import takeaways
from knowshift.reports.page.page import FIGURE_NOTES, FIGURE_TITLES, compose, headline, how_many_shown
from knowshift.reports.page.paper import sections
from knowshift.reports.tables.build import Tables, build_tables
from knowshift.statistics.estimates import Estimate
from page_text import compact


@pytest.fixture(scope="module")
def page(hand_tables: Tables) -> str:
    figures = dict.fromkeys(FIGURE_TITLES, '<svg id="x"><path id="y"/><use href="#y" clip-path="url(#x)"/></svg>')
    return compact(compose(hand_tables, figures))


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


def test_the_page_tells_how_samples_were_drawn(page: str) -> None:
    assert (
        "<p>The model tuned on 1,920 facts of level 2 (draw 1). Restoring 20% of its weights turned 12 wrong answers "
        "right and 2 right ones wrong; 26 grades stayed. These are drawn at random from those that changed.</p>"
    ) in page
    assert "draw 0" not in page  # counted from 1, as the units of a study are titled
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
        "is the plain mean of the five test levels; brackets hold 95% intervals over facts and draws.</p>"
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
    page = compact(compose(tables, {}))
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
        assert controls[: len(finding.controls)] == [
            f'{claim.sentence} <span class="soft">{claim.certainty}</span>' for claim in finding.controls
        ]
        for claim in (main, *others):
            assert f'<p class="soft">{claim.certainty}</p>' in told
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
    page = compact(compose(replace(hand_tables, findings=findings), {}))
    assert re.findall(r'class="verdict (\w+)">([\w ]+)<', page) == [
        ("shown", "shown"),
        ("part", "shown in part"),
        ("not", "not shown"),
        ("undecided", "undecided"),
    ]
    said = "This run shows 1 of the 4 findings of Ye et al. (2025): 1 shown; 2 shown in part; 3 not shown; 4 undecided."
    assert how_many_shown(findings) == said
    assert headline(findings) == said
    assert how_many_shown([replace(f, number=n) for n, f in enumerate([findings[2]] * 2, 3)]) == (
        "This run shows 0 of the 2 findings of Ye et al. (2025): 3 and 4 not shown."
    )
    assert headline([replace(findings[0], short="one thing"), findings[1], replace(findings[2], short="another")]) == (
        "One thing; another"
    )
    assert "<p>A.</p>" in page  # a single core claim says nothing that the verdict does not


CAPTIONS = {
    "accuracy_by_size": "The highest point, both domains together, lies at 240 samples for levels 0, 2 and 4.",
    "accuracy_by_test_level": "",
    "level_4_by_size": "",
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
    "other_tasks": "",
    "strategies": "",
    "concentration": (
        "The top 1% of weights hold 72.0% of summed relative change, in the no-signal null 62.0% (LLaMA-3-8B: 70.8%; "
        "by absolute change 6.0%): +10.00 points [+9.18 to +10.82] against the null."
    ),
    "mastery_by_exposures": (
        "The mean rate goes from 5.0% of draws (written never) to 95.0% (>50 times); it does not rise at every step."
    ),
}


def test_captions(hand_tables: Tables, page: str) -> None:
    assert takeaways(hand_tables, hand_tables.findings) == {name: text for name, text in CAPTIONS.items() if text}
    found = re.findall(r'<figure id="(\w+)">.*?<figcaption>(.*?)</figcaption>', page, re.DOTALL)
    assert [name for name, _ in found] == list(FIGURE_TITLES) == list(FIGURE_NOTES) == list(CAPTIONS)
    for name, caption in found:
        said = f"<b>{FIGURE_TITLES[name]}</b> {CAPTIONS[name]}".rstrip()
        assert unescape(caption) == f'{said} <span class="soft">{FIGURE_NOTES[name]}</span>'


def test_gains_and_losses_of_the_caption_are_counted_from_the_table(hand_tables: Tables) -> None:
    rows = [r for r in hand_tables["restoration_summary"].where(criterion="relative") if r["level"] != "mean"]
    sure = [np.sign(r["difference"]) for r in rows if r["p_holm"] < 0.05]
    assert (len(rows), sure.count(1), sure.count(-1)) == (18, 3, 4)


#: Two means that are equal may differ by as much, by the order of adding.
ROUNDING = 1e-13


def with_rows(tables: Mapping[str, Table], name: str, change: dict[str, object], **where: object) -> dict[str, Table]:
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
    for change in (-ROUNDING, ROUNDING):  # which of them was added up how does not tell
        almost = with_rows(hand_tables, "accuracy_summary", {"accuracy": 0.5}, control="")
        almost = with_rows(almost, "accuracy_summary", {"accuracy": 0.5 + change}, size=240, control="")
        assert takeaways(almost, [])["accuracy_by_size"] == equal["accuracy_by_size"]
    none = takeaways(with_rows(hand_tables, "accuracy_summary", {"accuracy": math.nan}), [])
    assert none["accuracy_by_size"] == ""
    lower = takeaways(with_rows(hand_tables, "restoration_summary", {"difference": -0.04}, criterion="relative"), [])
    assert "the most changed weights −4.0 points at best (1%) and −4.0 at 60%;" in lower["restoration"]
    for change in (-ROUNDING, ROUNDING):
        almost = with_rows(hand_tables, "restoration_summary", {"difference": -0.04}, criterion="relative")
        almost = with_rows(almost, "restoration_summary", {"difference": -0.04 + change}, fraction="0.6")
        assert "weights −4.0 points at best (1%) and −4.0 at 60%;" in takeaways(almost, [])["restoration"]
    gains = takeaways(with_rows(hand_tables, "restoration_summary", {"p_holm": 0.05}), [])
    assert gains["restoration_by_level"].startswith("Of 18 differences (training levels, fractions and domains), 0 are")
    exposures = hand_tables["exposures"]
    rising = {**hand_tables, "exposures": replace(exposures, rows=exposures.rows[1:4])}
    assert takeaways(rising, [])["mastery_by_exposures"] == (
        "The mean rate goes from 20.0% of draws (written once) to 45.0% (3-4 times); it rises at every step."
    )
    level = with_rows(rising, "exposures", {"mean_rate": exposures.rows[1][2] + ROUNDING}, exposures="2")
    assert takeaways(level, [])["mastery_by_exposures"].endswith("it does not rise at every step.")
    one = {**hand_tables, "exposures": replace(exposures, rows=exposures.rows[:1])}
    assert takeaways(one, [])["mastery_by_exposures"] == ""
    empty = {name: replace(table, rows=()) for name, table in hand_tables.items()}
    assert set(takeaways(empty, []).values()) == {""}


def test_ids_of_figures_and_sections_stand_once_in_a_page(hand_tables: Tables, page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    of_the_list = [name for name in ids if name.startswith(("browser", "fact-", "facts-"))]
    assert len(of_the_list) == 16
    assert len(ids) == len(set(ids)) == 3 * len(FIGURE_TITLES) + len(sections(hand_tables)) + 17
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
    assert [re.split(",| after|: both", text)[0] for text in captions] == [
        "Accuracy in %",
        "Accuracy in %",
        "Accuracy in % graded by substring / at word boundaries",
        "The learning-rate control",
        "What every training was",
        "The base model before tuning: accuracy by test level",
        "How many facts the base model knows how well",
        "Restoring the most changed weights",
        "Restoring weights at random",
        "Every contrast behind the verdicts",
        "Answers as written",
        "Facts gained (+) and lost (\N{MINUS SIGN}) against the base asked plainly",
        "The same",
        "In how many of 27 models of the grid a fact is answered right",
    ]
    assert captions[0].startswith("Accuracy in %, in-domain")
    assert captions[1].startswith("Accuracy in %, out-of-domain")
