"""What stands in a cell of a user's table: lists however they are spelled, numbers as written, prompts with slots."""

from __future__ import annotations

import csv
import json
import re
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.facts.asking import GENERIC
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.grading import gradable
from knowshift.facts.relations import RELATIONS
from knowshift.facts.sources.fields import parse_list
from knowshift.facts.sources.load import load_facts

ROW: dict[str, Any] = {"question": "Capital of Peru?", "subject": "Peru", "answer": "Lima"}


def table(folder: Path, kind: str, *rows: dict[str, Any]) -> Path:
    path = folder / f"facts.{kind}"
    if kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def read(folder: Path, kind: str, **cells: Any) -> Fact:
    """The one fact of a table whose answer is among ``cells``."""
    (fact,) = load_facts(str(table(folder, kind, {"question": "q?", "subject": "s", **cells}))).facts
    return fact


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_facts(str(path))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    for word in words:
        assert word in line, line


KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])

# Lists


@KINDS
@pytest.mark.parametrize(
    "cell",
    [
        '["Jane Austen", "Austen"]',
        "['Jane Austen', 'Austen']",
        "['Jane Austen', \"Austen\"]",
        "('Jane Austen', 'Austen')",
        "['Jane Austen' 'Austen']",
        "['Jane Austen'\n 'Austen']",
        "  [ 'Jane Austen' , 'Austen' , ]  ",
        "[np.str_('Jane Austen'), np.str_('Austen')]",
        "Jane Austen|Austen",
    ],
)
def test_a_list_in_a_text_is_a_list(tmp_path: Path, kind: str, cell: str) -> None:
    assert read(tmp_path, kind, answers=cell).accepted == ("Jane Austen", "Austen")
    assert read(tmp_path, kind, answer="Jane Austen", aliases=cell).accepted == ("Jane Austen", "Austen")
    if "|" not in cell:
        assert read(tmp_path, kind, answer=cell).accepted == ("Jane Austen", "Austen")
        assert read(
            tmp_path, kind, answer=cell, answers=["Miss Austen", "Austen"] if kind != "csv" else "Miss Austen"
        ).accepted == ("Jane Austen", "Austen", "Miss Austen")


@KINDS
def test_an_empty_list_is_a_missing_cell(tmp_path: Path, kind: str) -> None:
    for empty in ("[]", "[ ]", ""):
        fact = read(tmp_path, kind, answer="Lima", aliases=empty, prompts=empty, answers=empty)
        assert (fact.accepted, fact.prompts) == (("Lima",), ())
        refused(table(tmp_path, kind, {**ROW, "answer": empty}), "row 1" if kind != "jsonl" else "line 1", "no answer")


@KINDS
@pytest.mark.parametrize("column", ["answer", "answers", "aliases", "prompts"])
@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("[Jane Austen, Austen]", "Jane is neither a quoted text nor a number"),
        ("[Untitled]", "Untitled is neither"),
        ("['Jane Austen', 'Aus", "brackets do not match"),
        ("['a', ['b']]", "it holds a list"),
        ("['a' 'b', 'c']", "do not alternate"),
        ("['a''b']", "do not alternate"),
        ("['a',, 'b']", "do not alternate"),
        ("['a', None]", "None stands for a missing element"),
        ("[nan]", "nan stands for a missing element"),
        ("['a' ... 'b']", "left out"),
        ("['a', \"b]", "neither"),
        (r"['\q']", "escape"),
        ("[__import__('os')]", "neither"),
        ("[f(1)]", "neither"),
        ('["a", null]', "list of texts"),
        ('["a", true]', "list of texts"),
        ('["a", ["b"]]', "list of texts"),
        ('["a", ""]', "list of texts"),
        ("[" * 100_000 + "]", "nested too deep"),
        ("{'a', 'b'}", "expected a list"),
        ('{"a": 1}', "expected a list"),
        ("array(['a', 'b'], dtype=object)", "expected a list"),
        ("['a']|['b']", "expected a list"),
        ("<ArrowStringArray>\n['a', 'b']\nLength: 2, dtype: string", "expected a list"),
        ("['a', 'b']\nCategories (2, object): ['a', 'b']", "expected a list"),
        ("['a', 'b']\nLength: 2, dtype: object", "expected a list"),
        ("0    a\n1    b\ndtype: object", "expected a list"),
        ("Index(['a', 'b'], dtype='object')", "expected a list"),
        ("list(['a', 'b'])", "expected a list"),
        ("dict_keys(['a', 'b'])", "expected a list"),
        ("['a', 'b'],", "expected a list"),
        ("['a', 'b'] and more", "expected a list"),
    ],
)
def test_what_looks_like_a_list_and_is_none_is_refused(
    tmp_path: Path, kind: str, column: str, cell: str, why: str
) -> None:
    path = table(tmp_path, kind, {**ROW, column: ROW.get(column, "")}, {**ROW, column: cell})
    refused(path, "line 2" if kind == "jsonl" else "row 2", f"{column} is ", why)


@KINDS
def test_a_text_in_brackets_has_a_way_out(tmp_path: Path, kind: str) -> None:
    refused(table(tmp_path, kind, {**ROW, "answer": "[REC]"}), """'[REC]'""", """["[a]"]""")
    assert read(tmp_path, kind, answer='["[REC]"]').accepted == ("[REC]",)
    for text in (
        "[REC] (film)",
        "[PIAS] Recordings",
        "[a] and [b]",
        "(What's the Story)",
        "('a')",
        "(1,500)",
        "(1990)",
        "Who? [sic",
    ):
        assert read(tmp_path, kind, answer=text).accepted == (text,)
    assert read(tmp_path, kind, subject="[REC]", answer="a").subject == "[REC]"
    refused(table(tmp_path, kind, {**ROW, "subject": "['Peru']"}), "subject is ", "a list; expected a text")
    prompt = "[INST] {question} [/INST]"
    assert read(tmp_path, kind, answer="a", prompts=prompt).prompts == (prompt,)


@KINDS
@pytest.mark.parametrize("column", ["answer", "answers"])
@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("(1990, 1991)", ("1990", "1991")),
        ("('Austen', 1775)", ("Austen", "1775")),
        ("(1990,)", ("1990",)),
        (json.dumps('["a", "b"]'), ("a", "b")),
        (json.dumps("['a', 'b']"), ("a", "b")),
    ],
)
def test_tuples_with_numbers_and_lists_written_twice_are_lists(
    tmp_path: Path, kind: str, column: str, cell: str, told: tuple[str, ...]
) -> None:
    assert read(tmp_path, kind, **{column: cell}).accepted == told


@pytest.mark.parametrize(
    "container",
    [
        pd.Series(["a", "b"]),
        pd.Index(["a", "b"]),
        pd.Categorical(["a", "b"]),
        pd.array(["a", "b"], dtype="string"),
        {"a": 1}.keys(),
        {"a": 1}.values(),
        {"a", "b"},
        frozenset("ab"),
        [pd.Index(["a"])],
        deque("ab"),
        pa.array(["a", "b"]),
    ],
)
@pytest.mark.parametrize("write", [str, repr])
def test_no_container_that_was_written_as_a_text_is_an_answer(
    tmp_path: Path, container: object, write: Callable[[object], str]
) -> None:
    """Refused, or read as the list that it was; never a text with brackets and quotes."""
    try:
        fact = read(tmp_path, "jsonl", answers=write(container))
    except InputError:
        return
    assert fact.accepted == ("a", "b")


@KINDS
def test_names_in_brackets_with_quotes_inside_are_texts(tmp_path: Path, kind: str) -> None:
    fact = read(tmp_path, kind, subject="[Don't Stop]", question='[Who wrote "Emma"?]', answer="a")
    assert (fact.subject, fact.question) == ("[Don't Stop]", '[Who wrote "Emma"?]')
    refused(table(tmp_path, kind, {**ROW, "question": '["Who?", "What?"]'}), "question is ", "a list; expected a text")


@KINDS
def test_what_is_spelled_as_missing_is_missing(tmp_path: Path, kind: str) -> None:
    for missing in ("nan", "None", "null", "<NA>", "NaN"):
        assert read(tmp_path, kind, answer="Lima", aliases=missing).accepted == ("Lima",)
        assert read(tmp_path, kind, answer="Lima", aliases=f"x|{missing}").accepted == ("Lima", "x")
        assert read(tmp_path, kind, answers=f"['{missing}', 'Lima']").accepted == ("Lima",)
        assert read(tmp_path, kind, answer=missing, answers="Lima").accepted == ("Lima",)
        for column in ("answer", "answers"):
            refused(table(tmp_path, kind, {**ROW, "answer": "", column: missing}), "answer")
    assert read(tmp_path, kind, answer="none", aliases="Nano").accepted == ("none", "Nano")
    for answer in ("NAN", "NONE", "NULL", "NAT"):  # what the message and the docs advise
        assert read(tmp_path, kind, answer=answer).accepted == (answer,)
    assert read(tmp_path, kind, answer="Lima", aliases="  ", prompts=" ").accepted == ("Lima",)


HOSTILE_CELLS = {
    "escapes": "['" + "\\'" * 100_000,
    "quotes": "[" + "'a\"" * 60_000,
    "tuple": "('a'," + " " * 200_000 + "x)",
    "blanks": "[" + " " * 200_000 + "x",
    "brackets": "[" * 200_000,
    "braces": "{" * 200_000,
    "commas": "(" + "1, " * 30_000 + ")",
    "bars": "['a'|" * 40_000,
    "lines": "a\n" * 100_000,
    "subjects": "Peruu" * 40_000,
}


@pytest.mark.parametrize("name", HOSTILE_CELLS)
@pytest.mark.parametrize("column", ["answers", "prompts", "question"])
def test_reading_a_cell_takes_time_in_proportion_to_its_length(tmp_path: Path, name: str, column: str) -> None:
    path = table(tmp_path, "jsonl", {**ROW, column: HOSTILE_CELLS[name]})
    start = time.process_time()
    with suppress(InputError):
        load_facts(str(path))
    assert time.process_time() - start < 1.5


# A text that str() or json.dumps() may have to quote or escape.
TEXTS = st.lists(
    st.text(alphabet="ab'\"\\[](),|{}  é北\n\t1.", min_size=1, max_size=8).map(str.strip).filter(gradable),
    min_size=1,
    max_size=6,
    unique=True,
)


def spellings(texts: list[str]) -> dict[str, str]:
    with np.printoptions(linewidth=20):
        return {
            "JSON": json.dumps(texts),
            "JSON, not ASCII": json.dumps(texts, ensure_ascii=False),
            "a list": str(texts),
            "a tuple": str(tuple(texts)),
            "an array": str(np.array(texts)),
            "an array of objects": str(np.array(texts, dtype=object)),
            "a list of scalars": str(list(np.array(texts))),
        }


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_every_spelling_of_a_list_gives_its_texts(texts: list[str]) -> None:
    for name, cell in spellings(texts).items():
        assert parse_list(cell) == texts, (name, cell)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
def test_lists_come_back_from_every_file_that_pandas_writes(tmp_path: Path, texts: list[str]) -> None:
    for made in (texts, tuple(texts), np.array(texts, dtype=object)):
        frame = pd.DataFrame({"question": ["q?"], "subject": ["s"], "answers": pd.Series([made], dtype=object)})
        frame.to_csv(tmp_path / "t.csv", index=False)
        frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
        frame.assign(answers=[list(made)]).to_parquet(tmp_path / "t.parquet")
        for name in ("t.csv", "t.jsonl", "t.parquet"):
            assert load_facts(str(tmp_path / name)).facts[0].accepted == tuple(texts), name


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_arrow_lists(tmp_path: Path, kind: pa.DataType) -> None:
    cells = pa.array([["Jane Austen", "[Austen]"]], pa.list_(pa.string())).cast(kind)
    pq.write_table(pa.table({"question": ["q?"], "subject": ["s"], "answers": cells}), tmp_path / "t.parquet")
    assert load_facts(str(tmp_path / "t.parquet")).facts[0].accepted == ("Jane Austen", "[Austen]")


# Numbers


@pytest.mark.parametrize("written", ["1500", "5.0", "1e3", "-0.50", "123456789012345678901234567890", "1E-7", "0"])
def test_a_number_of_json_stays_as_it_is_written(tmp_path: Path, written: str) -> None:
    path = tmp_path / "t.jsonl"
    for cells in (f'"answer": {written}', f'"answers": [{written}]', f'"answer": "x", "aliases": [{written}]'):
        path.write_text(f'{{"question": "q?", "subject": "s", {cells}}}\n', encoding="utf-8")
        assert load_facts(str(path)).facts[0].accepted[-1] == written
    for cell in (f"[{written}]", f"[{written}, '{written}']"):
        assert read(tmp_path, "csv", answers=cell).accepted == (written,)


@pytest.mark.parametrize("written", ["1,500", "007", "5.0", "1e3", "1 500", "+5", ".5", "nano"])
def test_a_number_of_csv_stays_as_it_is_written(tmp_path: Path, written: str) -> None:
    assert read(tmp_path, "csv", answer=written).answer == written
    assert read(tmp_path, "csv", answers=f"{written}|x").answer == written
    assert read(tmp_path, "csv", answers=f"['{written}']").answer == written


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (pa.array([1990, 7]), ("1990", "7")),
        (pa.array([1990.0, 1.5]), ("1990", "1.5")),
        (pa.array([0.1, 1e22], pa.float32()), ("0.1", "1" + "0" * 22)),
        (pa.array([2.5, 0.1], pa.float16()), ("2.5", "0.1")),
        (pa.array([1e-7, -2.0]), ("0.0000001", "-2")),
        (pa.array([Decimal("1500.00"), Decimal("0.10")]), ("1500.00", "0.10")),
        (pa.array([["1990", "x"], ["7"]]), ("1990", "7")),
        (pa.array([[1990.0, 5.0], [0.1]], pa.list_(pa.float32())), ("1990", "0.1")),
    ],
)
def test_numbers_of_parquet(tmp_path: Path, cells: pa.Array, told: tuple[str, ...]) -> None:
    pq.write_table(pa.table({"question": ["q?"] * 2, "subject": ["s"] * 2, "answers": cells}), tmp_path / "t.parquet")
    if not pa.types.is_list(cells.type):
        pq.write_table(
            pa.table({"question": ["q?"] * 2, "subject": ["s"] * 2, "answer": cells}), tmp_path / "t.parquet"
        )
    assert tuple(fact.answer for fact in load_facts(str(tmp_path / "t.parquet")).facts) == told


def test_whole_numbers_that_pandas_made_floats_are_whole_again(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {**{name: [cell] * 2 for name, cell in ROW.items()}, "aliases": ["x", None], "id": [1.0, None]}
    )
    frame["exposures"] = [3, None]
    frame.to_parquet(tmp_path / "t.parquet")
    first, second = load_facts(str(tmp_path / "t.parquet")).facts
    assert (first.id, first.exposures, first.aliases) == ("1", 3, ("x",))
    assert (second.id, second.exposures, second.aliases) == ("row-2", None, ())


@pytest.mark.parametrize("cell", [True, [True], ["x", None], [[1]], {"a": 1}, float("inf"), ["x", float("nan")]])
def test_what_is_neither_text_nor_number_is_refused(tmp_path: Path, cell: Any) -> None:
    for column in ("answer", "answers", "aliases"):
        refused(table(tmp_path, "jsonl", {**ROW, column: cell}), "line 1", f"{column} is ")
    refused(table(tmp_path, "jsonl", {**ROW, "question": 5}), "question is 5; expected a text")


# Prompts


@KINDS
@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("[X] was born in", "'[X]'"),
        ("{subject} was born in [Y]", "'[Y]'"),
        ("{Subject} was born in", "'{Subject}'; nearest: '{subject}'"),
        ("{ subject } was born in", "'{ subject }'; nearest: '{subject}'"),
        ("{{subject}} was born in", "'{{subject}}'"),
        ("{0} was born in", "'{0}'"),
        ("{} was born in", "'{}'"),
        ("{name} was born in", "'{name}'"),
        ("{subject!r} was born in", "'{subject!r}'"),
        ("{subject} of {country} was born in", "'{country}'"),
        ("Q: {Question}\nA:", "'{Question}'; nearest: '{question}'"),
        ("<subject> was born in", "'<subject>'"),
        ("[subject] was born in", "'[subject]'"),
        ("%s was born in", "'%s'"),
        ("%(subject)s was born in", "'%(subject)s'"),
        ("${subject} was born in", "'${subject}'"),
        ("$subject was born in", "'$subject'"),
        ("They were born in", "has no slot and does not name 'Ada'"),
        ("Adabas was born in", "has no slot and does not name 'Ada'"),
    ],
)
def test_a_prompt_without_its_slot_or_with_an_unknown_one_is_refused(
    tmp_path: Path, kind: str, prompt: str, why: str
) -> None:
    row = {"question": "Where was Ada born?", "subject": "Ada", "answer": "London"}
    path = table(
        tmp_path, kind, {**row, "prompts": "{subject} comes from"}, {**row, "prompts": f"{prompt}|Ada is from"}
    )
    refused(path, "2: prompt ", repr(prompt), why, "{subject}", "{question}")


@KINDS
@pytest.mark.parametrize(
    ("prompt", "filled"),
    [
        ("{subject} was born in", "Ada {x} was born in"),
        ("Q: {question}\nA:", "Q: Where was Ada {x} born?\nA:"),
        ("The birthplace of ADA {X} is", "The birthplace of ADA {X} is"),
        ("Where was Ada {x} born? In", "Where was Ada {x} born? In"),
        ("<s>[INST] {question} [/INST]", "<s>[INST] Where was Ada {x} born? [/INST]"),
        ('{"name": "{subject}", "born in": "', '{"name": "Ada {x}", "born in": "'),
        ("{subject}, 100% sure; $5:", "Ada {x}, 100% sure; $5:"),
        ("{subject}, 50%sure:", "Ada {x}, 50%sure:"),
        ('{"name": "{subject}"}', '{"name": "Ada {x}"}'),
        (
            "<question>{question}</question><answer>",
            "<question>Where was Ada {x} born?</question><answer>",
        ),
        (r"\textbf{Name}: {subject}, $x^{2}$", r"\textbf{Name}: Ada {x}, $x^{2}$"),
    ],
)
def test_what_a_prompt_may_hold(tmp_path: Path, kind: str, prompt: str, filled: str) -> None:
    cells = {"question": "Where was Ada {x} born?", "subject": "Ada {x}", "answer": "London", "prompts": prompt}
    if "ADA {X}" in prompt:
        cells["subject"] = "ADA {X}"
    assert completion_prompts(read(tmp_path, kind, **cells)) == (filled,)


@KINDS
@pytest.mark.parametrize("slot", ["{subject}", "{question}", "[X]", "{}", "{name}", "%s", "<subject>"])
def test_a_question_with_a_slot_is_refused(tmp_path: Path, kind: str, slot: str) -> None:
    row = {**ROW, "question": f"What is the capital of {slot}?"}
    refused(table(tmp_path, kind, ROW, row), "2: question ", f"nothing fills in {slot!r}")
    assert read(tmp_path, kind, question=row["question"], subject=slot, answer="a").subject == slot


def test_a_prompt_and_its_subject_may_be_stored_in_different_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Café {x}") for form in ("NFC", "NFD"))
    for subject, name in ((composed, decomposed), (decomposed, composed)):
        assert read(tmp_path, "jsonl", subject=subject, answer="a", prompts=f"{name} is in").prompts


def test_shipped_prompts_pass_the_check(tmp_path: Path) -> None:
    every = [*GENERIC, *(prompt for relation in RELATIONS.values() for prompt in relation.completions)]
    assert len(read(tmp_path, "jsonl", answer="a", prompts=every).prompts) == len(every)


def test_a_subject_of_a_script_without_blanks_is_found_in_its_prompt(tmp_path: Path) -> None:
    assert read(tmp_path, "jsonl", subject="秘鲁", answer="利马", prompts=["秘鲁的首都是"]).prompts


def test_a_prompt_without_a_slot_belongs_to_one_subject(tmp_path: Path) -> None:
    rows = [{"question": "q?", "subject": subject, "answer": "x", "prompts": "Peru and Chile share"} for subject in
            ("Peru", "Peru", "Chile")]  # fmt: skip
    refused(table(tmp_path, "csv", *rows), "row 3: prompt", "that of row 1 too", "'Peru'", "{subject} or {question}")
    assert len(load_facts(str(table(tmp_path, "csv", *rows[:2]))).facts) == 2


PARTS = st.sampled_from(
    [
        "{subject}",
        "{question}",
        "{Subject}",
        "{0}",
        "{}",
        "[X]",
        "<subject>",
        "%s",
        "Peru",
        "Chile",
        "capital",
        "born in",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(st.lists(PARTS, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=3))
def test_accepted_prompts_differ_between_facts_of_different_subjects(tmp_path: Path, prompts: list[str]) -> None:
    rows = [
        {"question": f"What of {subject}?", "subject": subject, "answer": "x", "prompts": "|".join(prompts)}
        for subject in ("Peru", "Chile")
    ]
    try:
        first, second = load_facts(str(table(tmp_path, "csv", *rows))).facts
    except InputError:
        known = [
            re.fullmatch(r"(?:\{subject\}|\{question\}|[A-Za-z ])+", prompt) and "{" in prompt for prompt in prompts
        ]
        assert not all(known)
        return
    assert not set(completion_prompts(first)) & set(completion_prompts(second))
    for prompt in completion_prompts(first):
        assert not re.search(r"[{}]|\[X\]|<subject>|%s", prompt)
