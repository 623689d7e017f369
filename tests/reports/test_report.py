"""The report on a made-up run with known effects: findings recover what was planted, files are stable and whole."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from knowshift.cli.report import register
from knowshift.errors import InputError
from knowshift.reports.evidence.checking import check_coordinates
from knowshift.reports.evidence.evidence import read_evidence
from knowshift.reports.findings.build import findings_of
from knowshift.reports.findings.weights import concentration_claims
from knowshift.reports.page.figures import build_figures
from knowshift.reports.page.page import compose, write_report
from knowshift.reports.published import published, published_concentration
from knowshift.reports.tables.build import Tables, build_tables
from page_text import compact
from report_run import Planted, Shape, build_run

SMALL = Shape(facts_per_level=40, sizes=(60, 240, 1920), levels=(0, 2, 4), draws=3)
PLANTED = Planted(by_size=(0.7, 1.0, 0.7), kl=(0.9, 0.4, 1.6))

TABLES = {
    "mastery",
    "exposures",
    "base",
    "accuracy",
    "accuracy_summary",
    "controls",
    "trainings",
    "instruct",
    "other_tasks",
    "other_tasks_summary",
    "paper_other_tasks",
    "moves",
    "leakage",
    "leakage_sizes",
    "token_shift",
    "token_shift_summary",
    "concentration",
    "layers",
    "modules",
    "restoration",
    "restoration_summary",
    "train_set",
    "layer_groups",
    "paper_mastery",
    "paper_accuracy",
    "level_4",
    "paper_concentration",
    "paper_restoration",
    "paper_train_set",
    "paper_strategies",
    "paper_layer_groups",
    "findings",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "planted", PLANTED, SMALL)


@pytest.fixture(scope="module")
def tables(run: Path) -> Tables:
    return build_tables(run)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text()


def verdicts(tables: Tables) -> dict[str, str]:
    return {c.name: c.verdict for f in tables.findings for c in (*f.claims, *f.controls)}


def test_what_was_planted_is_shown(tables: Tables) -> None:
    assert [finding.verdict for finding in tables.findings] == ["shown"] * 4
    said = verdicts(tables)
    for name in ("smaller_rate_helps", "relative_beats_random", "level_matters", "kl_against_accuracy"):
        assert said[name] == "shown"
    assert said["concentration_0.01"] == "not shown"
    assert said["random_restoring_helps"] != "shown"


def test_estimates_hold_the_planted_effects(tables: Tables) -> None:
    claims = {c.name: c for f in tables.findings for c in (*f.claims, *f.controls)}
    chance = PLANTED.base_level_accuracy
    levels = [PLANTED.by_level[i] for i in SMALL.levels]

    def accuracy(factor: float) -> float:
        return sum(min(1.0, a * lv * factor) for a in chance for lv in levels) / len(chance) / len(levels)

    hurts = claims["more_data_hurts"].estimate
    assert hurts.low <= accuracy(1.0) - accuracy(0.7) <= hurts.high
    collapse = claims["restoring_too_many_collapses"].estimate
    assert collapse.low <= accuracy(0.7) - accuracy(0.7 * 0.05) <= collapse.high
    rate = claims["smaller_rate_helps"].estimate
    assert rate.low <= accuracy(0.7 * 1.3) - accuracy(0.7) <= rate.high
    assert claims["more_data_hurts"].by_relation is not None
    assert claims["more_data_hurts"].word is not None


def test_what_was_planted_absent_or_opposite_is_not_shown(tmp_path: Path) -> None:
    opposite = replace(
        PLANTED,
        by_size=(0.5, 0.7, 1.0),  # more data helps
        by_level=(1.0,) * 5,
        kl=(1.6, 0.9, 0.4),  # and KL falls
        restored=(0.97, 0.95, 0.92, 0.9, 0.8, 0.7, 1.0),  # restoring harms, and nothing collapses
        random=(1.0,) * 7,
        draw_noise=0.0,
        excess_concentration=0.05,
    )
    tables = build_tables(build_run(tmp_path / "opposite", opposite, replace(SMALL, facts_per_level=80)))
    said = verdicts(tables)
    for name in ("more_data_hurts", "kl_rises", "relative_beats_random"):
        assert said[name] == "not shown", name
    assert said["restoring_helps"] != "shown"
    assert said["restoring_too_many_collapses"] != "shown"
    assert said["level_matters"] != "shown"
    assert said["concentration_0.01"] == "shown"
    assert tables.findings[0].verdict != "shown"
    assert tables.findings[3].verdict in ("not shown", "undecided")


def test_sentences_carry_this_runs_numbers(tables: Tables) -> None:
    finding = tables.findings[0]
    estimate = next(c for c in finding.claims if c.name == "more_data_hurts").estimate
    assert f"{100 * estimate.value:.1f} points more" in finding.sentence
    assert "240 samples in" in finding.sentence


def test_every_table_is_written_and_equal_cells_give_equal_bytes(run: Path, tables: Tables, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere"
    shutil.copytree(run, again)
    manifest = json.loads((again / "manifest.json").read_text())
    manifest["cells"].reverse()  # the order of planning does not matter
    (again / "manifest.json").write_text(json.dumps(manifest))
    first = {p.name: p.read_bytes() for p in tables.write(tmp_path / "one")}
    second = {p.name: p.read_bytes() for p in build_tables(again).write(tmp_path / "two")}
    assert set(first) == {f"{name}.{suffix}" for name in TABLES for suffix in ("csv", "tex")}
    assert first == second


def test_accuracy_is_the_plain_mean_of_level_accuracies(tables: Tables) -> None:
    rows = tables["accuracy"].where(level=2, size=240, draw=1, domain="in_domain")
    assert [r["test_level"] for r in rows] == ["0", "1", "2", "3", "4", "mean"]
    for row in rows[:-1]:
        assert row["facts"] == 40
        assert row["accuracy"] == pytest.approx(row["correct"] / 40)
    assert rows[-1]["accuracy"] == pytest.approx(sum(r["accuracy"] for r in rows[:-1]) / 5)
    summary = tables["accuracy_summary"].where(level=2, size=240, domain="in_domain", test_level="mean", control="")
    every = [
        r["accuracy"]
        for r in tables["accuracy"].where(level=2, size=240, domain="in_domain", test_level="mean", control="")
    ]
    assert summary[0]["accuracy"] == pytest.approx(sum(every) / len(every))
    assert summary[0]["low"] < summary[0]["accuracy"] < summary[0]["high"]


def test_restoration_differences_are_paired_with_the_same_model(tables: Tables) -> None:
    row = tables["restoration_summary"].where(level="2", criterion="relative", fraction="0.2", domain="in_domain")[0]
    restored = tables["restoration"].where(
        level=2, criterion="relative", fraction="0.2", domain="in_domain", test_level="mean"
    )
    tuned = tables["accuracy"].where(level=2, size=1920, control="", domain="in_domain", test_level="mean")
    assert len(restored) == len(tuned) == 3
    difference = sum(a["accuracy"] - b["accuracy"] for a, b in zip(restored, tuned, strict=True)) / 3
    assert row["difference"] == pytest.approx(difference)
    assert row["p_holm"] >= row["p"]
    assert restored[0]["restored"] == 200
    assert restored[0]["eligible"] == 1000


def test_an_empty_level_is_missing_and_a_level_without_answers_has_no_row_of_zeros(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", PLANTED, replace(SMALL, facts_per_level=12, levels=(0, 2), draws=2))
    for file in (run / "cells").glob("*/*/answers*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.filter(pc.not_equal(table["level"], 3)), file)
    tables = build_tables(run)
    row = tables["accuracy"].where(test_level="3")[0]
    assert row["facts"] == 0
    assert row["accuracy"] is None
    rows = tables["accuracy"].where(level=2, size=240, draw=1, domain="in_domain", control="")
    assert rows[-1]["accuracy"] == pytest.approx(sum(r["accuracy"] for r in rows[:-1] if r["facts"]) / 4)
    # Every claim has numbers from the levels there are: no missing level turns one into NaN, or counts as 0.
    claims = {c.name: c for f in tables.findings for c in (*f.claims, *f.controls)}
    assert all(math.isfinite(claim.estimate.value) for claim in claims.values())

    def accuracy(slow: bool) -> float:  # of both domains' four levels, worked out from the counts
        rows = [row for row in tables["accuracy"].where(size=1920) if row["test_level"] not in ("mean", "3")]
        rows = [row for row in rows if bool(row["control"]) is slow]
        assert len(rows) == 2 * 2 * 2 * 4  # training levels, draws, domains, test levels
        return sum(row["correct"] / row["facts"] for row in rows) / len(rows)

    assert claims["smaller_rate_helps"].estimate.value == pytest.approx(accuracy(slow=True) - accuracy(slow=False))


def test_facts_without_a_grade_are_dropped_and_counted(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", PLANTED, replace(SMALL, facts_per_level=12, levels=(0, 2), draws=2))
    file = next((run / "cells/evaluation").glob("*/answers.parquet"))
    table = pq.read_table(file)
    grades = [None, *table["substring_hit"].to_pylist()[1:]]
    column = table.schema.get_field_index("substring_hit")
    pq.write_table(table.set_column(column, "substring_hit", pa.array(grades, pa.bool_())), file)
    tables = build_tables(run)
    assert tables.evidence.answers.dropped == 1
    assert len(tables.evidence.answers.facts) == 12 * 10 - 1
    assert "1 facts that some model has no grade for" in write_report(run).read_text()


def test_a_run_in_progress_is_reported_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(run, part)
    for kind in ("restoration", "token_shift", "weight_change"):
        shutil.rmtree(part / "cells" / kind)
    page = compact(write_report(part).read_text())
    assert "are not finished; this is what there is" in page
    assert [f["verdict"] for f in findings_of(part)][2:] == ["undecided", "undecided"]
    assert not (part / "figures/restoration.svg").exists()


def test_concentration_stands_beside_its_null_and_the_paper(tables: Tables) -> None:
    sources = {row[0] for row in tables["concentration"].rows}
    assert sources == {"run", "null", "LLaMA-3-8B"}
    paper = tables["concentration"].where(source="LLaMA-3-8B", size=1920, top_fraction="0.01")[0]["share"]
    assert paper == pytest.approx(published_concentration(1920)["0.01"])
    assert paper == pytest.approx(0.708, abs=0.001)


def test_published_tables_sum_to_the_papers_totals() -> None:
    totals: dict[tuple[str, str], int] = {}
    for row in published("mastery_distribution"):
        key = (row["model"], row["split"])
        totals[key] = totals.get(key, 0) + int(row["facts"])
    expected = {"train_in_domain": 75944, "test_in_domain": 9555, "test_out_of_domain": 11613}
    assert len(totals) == 15
    assert all(total == expected[split] for (_, split), total in totals.items())


def test_command_prints_one_json_object(run: Path) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    result = CliRunner().invoke(app, ["report", str(run), "--json"])
    assert result.exit_code == 0
    assert re.search(r"^1\. .+: .+\.$", result.stderr, re.MULTILINE)
    told = json.loads(result.stdout)
    assert told["output"] == str(run / "report.html")
    assert [f["finding"] for f in told["findings"]] == [1, 2, 3, 4]
    assert told["findings"][0]["claims"][0]["interval"][0] > 0


def test_a_cell_of_a_kind_that_is_not_known_may_have_other_coordinates() -> None:
    check_coordinates(Path("manifest.json"), "audit", {"prompt": "few_shot"})
    with pytest.raises(InputError, match="level of a cell of kind 'restoration' is None; expected a whole number"):
        check_coordinates(Path("manifest.json"), "restoration", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "manifest.json is missing"),
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object, found list"),
        ('{"cells": [{"kind": "evaluation"}]}', "a cell needs kind, digest and key"),
        ('{"cells": [{"kind": "../x", "digest": "a", "key": {}}]}', "is not the name of a cell"),
        ('{"cells": []}', "no evaluation is finished"),
    ],
)
def test_what_is_not_a_run_is_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "tables").exists()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "path", "use", "rect", "br", "line", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_page_is_whole_self_contained_and_stable(run: Path, page: str) -> None:
    text = page
    parsed = _Page()
    parsed.feed(text)
    assert parsed.open == []
    assert len(re.findall("<script", text)) == 2  # the list of facts: its data, its script
    assert "link" not in parsed.tags
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert "@import" not in text
    assert set(re.findall(r"https?://[^/\"]+", text)) == {"http://www.w3.org"}  # names of namespaces
    assert len(re.findall("<figure ", text)) == 8
    assert text == write_report(run).read_text()
    assert sorted(p.name for p in run.iterdir()) == ["cells", "figures", "manifest.json", "report.html", "tables"]


def test_page_escapes_what_records_say(page: str) -> None:
    text = page
    assert "world:&lt;tiny&gt;" in text
    assert "world:<tiny>" not in text
    assert "answer &lt;b&gt;" in text
    assert "answer <b>" not in text


def test_page_tells_verdicts_and_the_headline_from_numbers(page: str, tables: Tables) -> None:
    text = page
    heading = re.search(r"<h1>(.*?)</h1>", text)
    assert heading is not None
    hurts = tables.findings[0].claims[0].estimate.value
    assert f"{100 * hurts:.1f} points less than on the best smaller set" in heading[1]
    assert "This run shows 4 of the 4 findings" in text


def test_one_level_and_one_size_still_make_a_page(tmp_path: Path) -> None:
    shape = Shape(facts_per_level=20, sizes=(240,), levels=(2,), draws=2)
    planted = replace(PLANTED, by_size=(1.0,), kl=(1.0,), restored=(1.0,) * 7, random=(1.0,) * 7)
    tables = build_tables(build_run(tmp_path / "run", planted, shape))
    assert [f.verdict for f in tables.findings[:3]] == ["undecided"] * 3
    assert tables["restoration_summary"].where(level="mean", criterion="relative", fraction="0.2")
    page = compact(compose(tables, build_figures(tables)))
    assert "1 mastery level, in 1 size, with 2 training draws each" in page
    assert "(may be chance)" in page


def test_a_study_that_asks_some_levels_alone_says_which(tmp_path: Path) -> None:
    shape = Shape(facts_per_level=20, sizes=(60, 240), levels=(0, 1), draws=2, tested=(2, 0, 1))
    planted = replace(PLANTED, by_size=(1.0, 0.9), kl=(1.0, 1.0))
    tables = build_tables(build_run(tmp_path / "run", planted, shape))
    page = compact(compose(tables, build_figures(tables)))
    assert "Accuracy is the plain mean of test levels 0, 1 and 2; brackets" in page
    assert "five test levels" not in page
    rows = tables["accuracy_summary"].where(domain="in_domain", level=0, size=60, control="")
    by = {row["test_level"]: row["accuracy"] for row in rows}
    assert by["mean"] == pytest.approx(sum(by[level] for level in "012") / 3)


@pytest.mark.parametrize(("size", "told"), [(16, True), (14, False), (240, False)])
def test_levels_that_draws_nearly_use_up_are_told(tmp_path: Path, size: int, told: bool) -> None:
    shape = Shape(facts_per_level=20, sizes=(size,), levels=(2, 3), draws=2)
    planted = replace(PLANTED, by_size=(1.0,), kl=(1.0,), restored=(1.0,) * 7, random=(1.0,) * 7)
    tables = build_tables(build_run(tmp_path / "run", planted, shape))
    said = "Level 2 has 20 facts for draws of 16; level 3 has 20 facts for draws of 16: such draws share most"
    assert (said in compact(compose(tables, {}))) == told


def test_reporting_never_loads_torch() -> None:
    code = "import sys, knowshift.reports.page.page, knowshift.cli.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_draw_has_intervals_over_facts_and_says_so(tmp_path: Path) -> None:
    tables = build_tables(build_run(tmp_path / "run", PLANTED, replace(SMALL, levels=(0, 2), draws=1)))
    claims = {c.name: c for f in tables.findings for c in f.claims}
    assert claims["more_data_hurts"].estimate.draws == 1
    assert claims["more_data_hurts"].verdict == "shown"
    assert "these training sets only" in compact(compose(tables, {}))


@pytest.mark.usefixtures("page")
def test_figures_are_files_with_text_and_without_a_date(run: Path) -> None:
    names = {p.stem for p in (run / "figures").glob("*.svg")}
    assert names == {
        "accuracy_by_size",
        "accuracy_by_test_level",
        "level_4_by_size",
        "kl_by_size",
        "restoration",
        "restoration_by_level",
        "concentration",
        "mastery_by_exposures",
    }
    for file in (run / "figures").glob("*.svg"):
        text = file.read_text()
        assert "<text" in text
        assert "dc:date" not in text
    with (run / "tables/findings.csv").open() as lines:
        assert {row["verdict"] for row in csv.DictReader(lines)} <= {"shown", "not shown", "undecided"}


def test_one_draw_without_an_effect_is_never_shown_by_what_rests_on_draws(tmp_path: Path) -> None:
    """Weights have no facts to resample: with one draw the excess over the null is a number without an interval."""
    shape = Shape(facts_per_level=2, sizes=(60,), levels=(0, 4), draws=1)
    for seed in range(8):
        run = build_run(tmp_path / str(seed), replace(PLANTED, excess_concentration=0.0), shape, seed)
        claims = concentration_claims(read_evidence(run))
        assert [claim.name for claim in claims] == ["concentration_0.01", "concentration_0.2"]
        for claim in claims:
            assert claim.estimate.known
            assert claim.verdict == "undecided"
            assert math.isnan(claim.estimate.p)
            assert "[no interval]" in claim.sentence


def test_one_fact_of_each_level_makes_a_page_without_intervals(tmp_path: Path) -> None:
    shape = Shape(facts_per_level=1, sizes=(60, 240), levels=(2,), draws=1)
    tables = build_tables(build_run(tmp_path / "run", replace(PLANTED, by_size=(1.0, 0.7), kl=(1.0, 1.6)), shape))
    assert {claim.verdict for f in tables.findings for claim in f.claims if claim.unit == "points"} == {"undecided"}
    page = compact(compose(tables, build_figures(tables)))
    assert "(may be chance)" in page
    assert not re.search(r"\bnan\b", page)
