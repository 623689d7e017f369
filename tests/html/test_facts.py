"""What the list of facts is packed from is what is unpacked, and the text can stand in any page."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowshift.html.facts import LONGEST, MOVES, Answered, AnswerRow, Column, FactList, packed, unpacked

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=LONGEST)


def listed(questions: list[str], answers: list[str | None], right: list[bool]) -> FactList:
    count = len(questions)
    return FactList(
        question=questions,
        answer=[f"gold {i}" for i in range(count)],
        columns=[
            Column("level", "level", list(range(count)), [str(i) for i in range(count)], width=3),
            Column("rate", "R", [1000 * i for i in range(count)], digits=3, width=2, narrow=1, by=("level", "rate")),
            Column("id", "fact", texts=[f"f{i}" for i in range(count)]),
            Column("move", "move", (), MOVES),
        ],
        filters=("level",),
        heads=("model", "answer"),
        rows=[AnswerRow("base", [Answered(right, answers)], "a"), AnswerRow("tuned", [Answered(right[::-1]), None])],
        said="{answer}: {level}",
        sort="level",
        compared=(0, 1),
        groups=("level",),
    )


@given(st.lists(st.tuples(TEXTS, st.none() | TEXTS, st.booleans()), min_size=1, max_size=6))
def test_a_list_is_read_back_as_it_was_packed(rows: list[tuple[str, str | None, bool]]) -> None:
    questions, answers, right = (list(column) for column in zip(*rows, strict=True))
    text = packed(listed(questions, answers, right))
    assert re.fullmatch(r"[A-Za-z0-9+/]+=*", text)
    assert packed(listed(questions, answers, right)) == text
    data = unpacked(text)
    assert data["question"] == questions
    assert [data["texts"][place] for place in data["answer"]] == [f"gold {i}" for i in range(len(rows))]
    assert len(set(data["texts"])) == len(data["texts"])
    base, tuned = data["rows"]
    assert (base["name"], base["group"], tuned["answers"][1]) == ("base", "a", None)
    places = base["answers"][0]["texts"]
    found = [None if place < 0 else data["texts"][place] for place in places]
    assert found == [None if answer is None else answer.strip() for answer in answers]
    assert base["answers"][0]["right"] == "".join(str(int(hit)) for hit in right)
    assert tuned["answers"][0] == {"right": base["answers"][0]["right"][::-1]}
    level, rate, name, move = data["columns"]
    assert (level["values"], level["names"]) == ([*range(len(rows))], [str(i) for i in range(len(rows))])
    assert (rate["values"], rate["digits"], rate["by"]) == ([1000 * i for i in range(len(rows))], 3, ["level", "rate"])
    assert "names" not in rate
    assert (name["texts"], "values" in name) == ([f"f{i}" for i in range(len(rows))], False)
    assert (move["values"], move["names"]) == ([], list(MOVES))
    assert (data["filters"], data["groups"], data["compared"]) == (["level"], ["level"], [0, 1])
    assert (data["heads"], data["said"], data["sort"]) == (["model", "answer"], "{answer}: {level}", "level")


def test_long_texts_are_cut() -> None:
    data = unpacked(packed(listed(["q" * 1000], ["a" * 1000], [True])))
    assert data["question"] == ["q" * 2 * LONGEST]
    assert "a" * LONGEST in data["texts"]
    assert max(map(len, data["texts"])) == LONGEST


def test_a_filter_is_one_of_the_columns() -> None:
    with pytest.raises(AssertionError):
        packed(FactList(["q"], ["a"], [Column("level", "level", [0], ["0"])], ("domain",), ("model",), [], "", "level"))
