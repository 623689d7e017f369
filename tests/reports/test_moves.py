"""Facts kept, lost, gained and never known, from the levels that the hand-made run's models answer; and their list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hand_run import FACTS, TEST
from knowshift.html.facts import packed, unpacked
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.page import facts as page_facts
from knowshift.reports.page.facts import FactByFact, fact_by_fact
from knowshift.reports.tables.build import Tables
from knowshift.reports.tables.moves import before, exposure_bins, moves


def test_moves_are_counted_against_the_form_that_the_base_answers_best(hand_tables: Tables) -> None:
    """Asked plainly the base answers levels 2 to 4 in-domain, 14 facts; after examples 10 + 2, the prompt alone 2."""
    table = hand_tables["moves"]
    assert {row["before"] for row in table.where()} == {"plain"}
    counts = ("draws", "facts", "kept", "lost", "gained", "never")

    def found(**where: object) -> list[float]:
        (row,) = table.where(level=2, size=1920, control="", **where)
        return [row[name] for name in counts]

    # Level 2 at 1,920: the four, three and four highest levels in-domain; two, two and three out-of-domain.
    assert found(by="all", domain="in_domain") == pytest.approx([3, 22, 14, 0, 8 / 3, 16 / 3])
    assert found(by="all", domain="out_of_domain") == pytest.approx([3, 18, 0, 0, 22 / 3, 32 / 3])
    assert found(by="test_level", group="1", domain="in_domain") == pytest.approx([3, 4, 0, 0, 8 / 3, 4 / 3])
    assert found(by="test_level", group="4", domain="in_domain") == [3, 6, 6, 0, 0, 0]
    both = [found(by="relation", group=name, domain="in_domain") for name in ("P17", "P19")]
    assert np.sum(both, axis=0).tolist() == pytest.approx([6, 22, 14, 0, 8 / 3, 16 / 3])
    # Level 0 at 1,920 samples: the highest level in one draw of three, none in another, level 4 alone otherwise.
    (lost,) = table.where(level=0, size=1920, control="", by="all", domain="in_domain")
    assert [lost[name] for name in counts] == pytest.approx([3, 22, 4, 10, 0, 8])


def test_counts_add_up_in_every_row(hand_tables: Tables) -> None:
    rows = hand_tables["moves"].where()
    assert {row["by"] for row in rows} == {"all", "test_level", "relation"}  # no test fact's exposures are known
    assert {row["control"] for row in rows} == {"", "learning_rate"}
    for row in rows:
        assert row["kept"] + row["lost"] + row["gained"] + row["never"] == pytest.approx(row["facts"])
    whole = [row for row in rows if row["by"] == "all"]
    for row in whole:
        assert row["facts"] == sum(FACTS[row["domain"]])


def forms(evidence: Evidence, right: dict[str, int]) -> Evidence:
    """The evidence with so many right answers of the base in each form."""
    hits = evidence.answers.substring.copy()
    for prompt, count in right.items():
        hits[:, evidence.base_column(prompt)] = np.arange(len(hits)) < count
    return replace(evidence, answers=replace(evidence.answers, substring=hits))


@pytest.mark.parametrize(
    ("right", "best"),
    [
        ({"plain": 3, "few_shot": 3, "zero_shot": 3}, "plain"),
        ({"plain": 3, "few_shot": 4, "zero_shot": 4}, "few_shot"),
        ({"plain": 3, "few_shot": 4, "zero_shot": 5}, "zero_shot"),
        ({"plain": 0, "few_shot": 0, "zero_shot": 0}, "plain"),
    ],
)
def test_the_base_is_asked_in_the_form_that_it_answers_best(
    hand_tables: Tables, right: dict[str, int], best: str
) -> None:
    assert before(forms(hand_tables.evidence, right)) == best


def test_every_number_of_exposures_has_its_bin() -> None:
    assert exposure_bins([None, -3, 0, 1, 2, 3, 4, 7, 8, 20, 21, 51, 10**6]) == [
        *(-1, -1, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8),
    ]


# -- the list -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(hand_tables: Tables) -> FactByFact:
    found = fact_by_fact(hand_tables.evidence, hand_tables["moves"])
    assert found is not None
    return found


def test_the_list_has_every_fact_and_model(shown: FactByFact, hand_tables: Tables) -> None:
    data = unpacked(shown.data)
    answers = hand_tables.evidence.answers
    assert data["question"] == [f"Who is {fact.name}?" for fact in TEST]
    assert [data["texts"][place] for place in data["answer"]] == [f"gold {fact.name}" for fact in TEST]
    names = [row["name"] for row in data["rows"]]
    assert names[:4] == [
        "base, asked plainly",
        "base, after solved examples",
        "base, fine-tuning prompt",
        "level 0, 60 facts, draw 1",
    ]
    assert "level 2, 1,920 facts, draw 2, rate 0.0001" in names
    assert "level 4, 1,920 facts, draw 1, 20% random restored" in names
    assert not any("draw 2" in name and "restored" in name for name in names)
    # 3 forms, 9 settings of 3 draws, 3 controls of 2; three levels restored in 6 ways.
    assert len(names) == len(set(names)) == shown.models == 3 + 27 + 6 + 18
    assert names[data["compared"][1]] == "level 2, 1,920 facts, draw 1"
    right = next(i for i, c in enumerate(answers.columns) if (c.prompt, c.setting) == ("plain", None))
    assert data["rows"][0]["answers"][0]["right"] == "".join(str(int(hit)) for hit in answers.substring[:, right])
    texts = [data["texts"][place] for place in data["rows"][0]["answers"][0]["texts"]]
    assert texts == [record["text"].strip() for record in answers.rows(right, list(answers.facts)).values()]
    columns = {column["key"]: column for column in data["columns"]}
    assert columns["id"]["texts"] == list(answers.facts)
    assert {"written", "times"} & set(columns) == set() == {"times"} & {*data["filters"], *data["groups"]}
    tuned = [i for i, c in enumerate(answers.columns) if c.setting and not c.criterion]
    grid = [i for i in tuned if not answers.columns[i].setting.control]  # type: ignore[union-attr]
    assert columns["right"]["values"] == answers.substring[:, grid].sum(axis=1).tolist()
    assert columns["right"]["head"] == "right/27"


def test_texts_are_kept_for_the_first_draw(shown: FactByFact) -> None:
    kept = [row["name"] for row in unpacked(shown.data)["rows"] if "texts" in row["answers"][0]]
    assert len(kept) == shown.models - shown.without_texts == 3 + 9 + 3 + 3
    assert all(name.startswith("base") or "draw 1" in name for name in kept)
    assert [name for name in kept if "restored" in name] == [
        f"level {level}, 1,920 facts, draw 1, 20% most changed restored" for level in (0, 2, 4)
    ]


def test_of_many_facts_fewer_texts_are_kept(hand_tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_facts, "TEXTS", 5 * len(TEST))
    found = fact_by_fact(hand_tables.evidence, hand_tables["moves"])
    assert found is not None
    kept = [row.name for row in found.facts.rows if row.answers[0] and row.answers[0].texts is not None]
    first = [row.name for row in found.facts.rows if row.name.startswith("base") or row.name.endswith("draw 1")]
    assert kept == first[:5]
    assert kept[3:] == ["level 0, 60 facts, draw 1", "level 0, 240 facts, draw 1"]


def test_the_tables_without_a_script(shown: FactByFact) -> None:
    by_size, by_level, right = (grid for grid in shown.grids if grid.rows)
    assert "against the base asked plainly" in by_size.caption
    assert [entry.text for entry in by_size.rows[1][:1]] == ["level 2"]
    # Both domains, mean over draws: 8/3 + 22/3 gained, none lost, 14 kept.
    assert (by_size.rows[1][3].text, by_size.rows[1][3].note) == ("+10", "14 kept")
    assert (by_size.rows[0][3].text, by_size.rows[0][3].note) == ("+1 \N{MINUS SIGN}10", "4 kept")
    assert by_level.rows[4][1].text == "8"
    for row in right.rows:
        assert int(row[1].text) == sum(int(entry.text) for entry in row[2:7])
    assert shown.right == {"asked plainly": 14, "after solved examples": 12, "fine-tuning prompt": 2}


def test_the_same_run_gives_the_same_text(shown: FactByFact, hand_tables: Tables) -> None:
    again = fact_by_fact(hand_tables.evidence, moves(hand_tables.evidence))
    assert again is not None
    assert packed(again.facts) == shown.data


def test_without_the_base_there_is_no_such_section(hand_tables: Tables) -> None:
    evidence = hand_tables.evidence
    kept = [i for i, column in enumerate(evidence.answers.columns) if column.setting]
    answers = replace(
        evidence.answers,
        columns=tuple(evidence.answers.columns[i] for i in kept),
        substring=evidence.answers.substring[:, kept],
    )
    scores = replace(evidence.substring, columns=answers.columns, values=answers.substring)
    alone = replace(evidence, answers=answers, substring=scores)
    assert before(alone) is None
    assert moves(alone).rows == ()
    assert fact_by_fact(alone, moves(alone)) is None
