"""Every source of facts, the filter, the leakage, and what is refused."""

from __future__ import annotations

import csv
import json
import stat
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.facts import sources
from knowshift.facts.asking import is_filled_in
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.leakage import Leakage, leakage, without_leaked
from knowshift.facts.relations import RELATIONS
from knowshift.facts.sources.encoding import LARGEST_ROW, encodable
from knowshift.facts.sources.entity_questions import LARGEST_FILE
from knowshift.facts.sources.load import FactSource, load_entity_questions, load_facts, paper_aliases
from knowshift.facts.sources.tables import read_world_facts, write_facts
from knowshift.records import FACTS, write_table
from small_questions import OFFICIAL, small_rows, write_folder, write_zip

P19 = "dataset/train/P19.train.json"


def refused(source: str | Path, *words: str) -> None:
    """The source is refused in one line that holds every word."""
    with pytest.raises(InputError) as caught:
        load_facts(str(source))
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


# The official file


@pytest.fixture(scope="module")
def official() -> FactSource:
    if not OFFICIAL.is_file():
        pytest.skip("the official zip is not here")
    return load_facts(f"entity-questions:{OFFICIAL}")


def group(source: FactSource, split: str, domain: str) -> list[Fact]:
    return [fact for fact in source.facts if (fact.split, fact.domain) == (split, domain)]


def test_the_papers_totals_to_the_digit(official: FactSource) -> None:
    assert len(group(official, "train", "in_domain")) == 75_944
    assert len(group(official, "test", "in_domain")) == 9_555
    assert len(group(official, "test", "out_of_domain")) == 11_613
    assert len(official.facts) == 75_944 + 9_555 + 11_613
    assert len({fact.id for fact in official.facts}) == len(official.facts)


def test_official_facts_are_whole(official: FactSource) -> None:
    for fact in official.facts:
        relation = RELATIONS[fact.relation]
        assert fact.question == relation.question.replace("{subject}", fact.subject)
        assert fact.domain == relation.domain
    first = official.facts[0]
    assert (first.id, first.subject, first.answer) == ("P17.train.1", "Painblanc", "France")
    americans = [fact for fact in official.facts if fact.answer == "United States of America"]
    assert americans
    assert all(fact.aliases == ("USA", "United States") for fact in americans)


def test_the_leakage_of_the_official_files(official: FactSource) -> None:
    assert official.published is not None
    assert official.published.questions == 130
    assert official.published.answer_overlap == pytest.approx(0.76, abs=0.005)
    # After the filter fewer stand under the same relation, and more by question alone.
    assert leakage(official.facts).questions == 125
    clean = official.without_leaks()
    assert len(official.facts) - len(clean.facts) == 133
    assert leakage(clean.facts).questions == 0


def test_the_training_rows_that_the_paper_leaves_out(official: FactSource) -> None:
    more = load_entity_questions(OFFICIAL, out_of_domain_train=True)
    assert len(group(more, "train", "out_of_domain")) == 91_526
    assert more.facts[: len(official.facts)] == official.facts


def test_the_papers_aliases() -> None:
    table = paper_aliases()
    assert len(table) == 29
    assert sum(map(len, table.values())) == 40
    assert table["Rio de Janeiro"] == ("Rio de",)


# EntityQuestions in small


def test_zip_folder_and_inner_folder_give_the_same_facts(tmp_path: Path) -> None:
    rows = small_rows()
    archive = write_zip(tmp_path / "dataset.zip", rows)
    outer = write_folder(tmp_path / "extracted", rows)
    bare = write_zip(tmp_path / "bare.zip", {name.removeprefix("dataset/"): content for name, content in rows.items()})
    sources = [load_facts(f"entity-questions:{path}") for path in (archive, outer, outer / "dataset", bare)]
    assert len(sources[0].facts) == 2 * (10 + 10 + 14)
    assert len({source.digest() for source in sources}) == 1
    assert {source.name for source in sources} == {"entity-questions"}


def test_the_filter_keeps_one_answer_and_the_first_of_each_question(tmp_path: Path) -> None:
    rows = small_rows()
    where = RELATIONS["P131"].question.replace("{subject}", "CERN")
    rows["dataset/train/P131.train.json"] = [
        {"question": where, "answers": ["Meyrin", "Geneva"]},  # two answers: out, and takes no question with it
        {"question": where, "answers": ["Meyrin"]},
        {"question": where, "answers": ["Prévessin"]},
    ]
    rows["dataset/train/P276.train.json"] = [{"question": where, "answers": ["Geneva"]}]
    rows["dataset/test/P276.test.json"] = [{"question": where, "answers": ["South Korea"]}]
    source = load_facts(f"entity-questions:{write_zip(tmp_path / 'z.zip', rows)}")
    asked = {fact.id: fact for fact in source.facts if fact.question == where}
    assert {name: fact.answer for name, fact in asked.items()} == {
        "P131.train.2": "Meyrin",
        "P276.test.1": "South Korea",
    }
    assert asked["P276.test.1"].aliases == ("Republic of Korea", "Korea")
    without = load_facts(f"entity-questions:{tmp_path / 'z.zip'}", aliases=False)
    assert all(fact.aliases == () for fact in without.facts)
    assert without.digest() != source.digest()
    # Asked in training under another relation: not counted as leaked there, but left out.
    assert leakage(source.facts).questions == 0
    assert source.published is not None
    assert source.published.questions == 1
    assert "P276.test.1" not in {fact.id for fact in source.without_leaks().facts}


def test_other_files_in_the_zip_are_left_alone(tmp_path: Path) -> None:
    members = {"__MACOSX/._dataset": b"\0", "dataset/dev/P17.dev.json": b"not read", "dataset/": b"", **small_rows()}
    assert load_facts(f"entity-questions:{write_zip(tmp_path / 'z.zip', members)}").facts


def spoilt(folder: Path, name: str, content: Any) -> str:
    return f"entity-questions:{write_zip(folder / 'dataset.zip', {**small_rows(), name: content})}"


QUESTION = RELATIONS["P19"].question.replace("{subject}", "Ada")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"question": "Where', ("broken JSON at line 1 column",)),
        (b"[\xff]", ("not UTF-8 at byte",)),
        (b"", ("broken JSON",)),
        (b"[" * 100_000, ("nested too deep",)),
        ([], ("an empty list",)),
        ({"rows": []}, ("found dict",)),
        ([["Where"]], ("row 1", "found list")),
        ([{"question": QUESTION}], ("row 1", "answers is missing")),
        ([{"question": QUESTION, "answers": ["a"]}, {"question": QUESTION, "answers": []}], ("row 2", "answers is []")),
        ([{"question": QUESTION, "answers": "London"}], ("row 1", 'answers is "London"')),
        ([{"question": QUESTION, "answers": ["London", 3]}], ("row 1", "answer is 3")),
        ([{"question": QUESTION, "answers": [" "]}], ("row 1", 'answer is " "')),
        ([{"question": QUESTION, "answers": ["!!!"]}], ("row 1", 'answer is "!!!"', "letter or digit")),
        ([{"question": QUESTION, "answers": ["\ud83d"]}], ("row 1", "ud83d")),
        ([{"answers": ["London"]}], ("row 1", "question is missing")),
        (
            [{"question": "Who was Ada?", "answers": ["x"]}],
            ("row 1", "'Who was Ada?'", "P19", "'Where was {subject} born?'"),
        ),
        ([{"question": "Where was  born?", "answers": ["x"]}], ("row 1", "does not fit")),
    ],
)
def test_a_spoilt_file_is_refused_with_file_and_row(tmp_path: Path, content: Any, words: tuple[str, ...]) -> None:
    refused(spoilt(tmp_path, P19, content), "dataset.zip", P19, *words)


def test_a_spoilt_file_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", {**small_rows(), P19: [{"question": QUESTION, "answers": []}]})
    refused(f"entity-questions:{folder}", str(folder / P19), "row 1", "answers is []")


def test_a_missing_relation_is_named(tmp_path: Path) -> None:
    rows = small_rows()
    del rows[P19]
    words = ("relation P19 is missing", P19, "47 of 48")
    refused(f"entity-questions:{write_zip(tmp_path / 'z.zip', rows)}", *words)
    refused(f"entity-questions:{write_folder(tmp_path / 'd', rows)}", *words)
    refused(f"entity-questions:{write_zip(tmp_path / 'e.zip', {'a.txt': b''})}", "no EntityQuestions file", "P17")


@pytest.mark.parametrize(
    "name", ["../evil.json", "/etc/evil", "dataset/../../evil", "C:\\evil", "..\\evil", "\\evil", ".."]
)
def test_an_entry_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    refused(spoilt(tmp_path, name, b"[]"), "dataset.zip", "points outside its folder")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.zip"]


def test_a_link_a_repeated_name_and_a_locked_entry_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("dataset/train/link.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "link.zip", small_rows())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(f"entity-questions:{path}", "link.json' is a link")

    path = write_zip(tmp_path / "twice.zip", small_rows())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(P19, "[]")
    refused(f"entity-questions:{path}", P19, "stands twice")

    path = write_zip(tmp_path / "locked.zip", small_rows())
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag of the last entry in the directory
    path.write_bytes(data)
    refused(f"entity-questions:{path}", "is encrypted")


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    refused(spoilt(tmp_path, P19, b" " * (LARGEST_FILE + 1)), P19, f"declares {LARGEST_FILE + 1} bytes")


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {**small_rows(), P19: b" " * 2_000_000})
    data = bytearray(path.read_bytes())
    entry = data.rindex(P19.encode()) - 46  # its record in the zip's directory
    data[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    refused(f"entity-questions:{path}", P19, "is damaged")


def test_a_damaged_member_and_what_is_no_zip_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {P19: small_rows()[P19], **small_rows()})
    data = bytearray(path.read_bytes())
    data[60:70] = b"\xff" * 10
    path.write_bytes(data)
    refused(f"entity-questions:{path}", P19, "is damaged")
    path.write_bytes(data[: len(data) // 2])
    refused(f"entity-questions:{path}", "not a readable zip")
    refused(f"entity-questions:{tmp_path / 'none.zip'}", "no such file or folder")
    refused(f"entity-questions:{tmp_path}", "no EntityQuestions file found")


# Names of sources


@pytest.mark.parametrize(
    ("source", "nearest"),
    [
        ("entity-question", "'entity-questions'"),
        ("entity_questions:/somewhere", "'entity-questions:PATH'"),
        ("entity-questions:", "'entity-questions'"),
        ("wrld:tiny", "'world:tiny'"),
        ("world:", "world:"),
        ("facts.xlsx", "FILE.csv"),
    ],
)
def test_an_unknown_source_names_the_nearest(source: str, nearest: str) -> None:
    refused(source, "unknown fact source", source, nearest, "available: ")


def test_a_path_without_its_scheme_is_told_the_scheme(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "z.zip", small_rows())
    refused(archive, f"'entity-questions:{archive}'")
    refused(write_folder(tmp_path / "d", small_rows()), f"'entity-questions:{tmp_path / 'd'}'")
    write_world(tmp_path / "w", [FACT])
    refused(tmp_path / "w", f"'world:{tmp_path / 'w'}'")
    refused("world:tinny", "no such folder", "'tiny'")
    refused(f"world:{archive}", "no such folder")
    refused(f"world:{tmp_path / 'd'}", "facts.parquet", "no such file")


# Worlds

FACT = Fact("P19.train.1", "P19", "train", "in_domain", "Ada", QUESTION, "London", ("Londres",), 17)


def write_world(folder: Path, facts: list[Fact]) -> None:
    rows = {name: [getattr(fact, name) for fact in facts] for name in FACTS.names}
    write_table(folder / "facts.parquet", FACTS, {**rows, "aliases": [list(a) for a in rows["aliases"]]}, {})


def test_a_worlds_facts_come_back_as_they_were(tmp_path: Path) -> None:
    facts = (FACT, replace(FACT, id="P19.test.1", split="test", aliases=(), exposures=0))
    write_world(tmp_path / "pocket", list(facts))
    source = load_facts(f"world:{tmp_path / 'pocket'}")
    assert source == FactSource("world:pocket", facts)
    bare = load_facts(f"world:{tmp_path / 'pocket'}", aliases=False)
    assert bare.facts == tuple(replace(fact, aliases=()) for fact in facts)


NAMES = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), exclude_characters="{[<%$"),  # no slots
    min_size=1,
    max_size=8,
).map(lambda text: f"a {text} z")  # no blanks at its ends
WRITTEN = st.builds(
    Fact,
    id=st.uuids().map(str),
    relation=st.sampled_from(["P19", "mine"]),
    split=st.sampled_from(["train", "test"]),
    domain=st.sampled_from(["in_domain", "out_of_domain"]),
    subject=NAMES,
    question=NAMES,
    answer=NAMES,
    aliases=st.lists(NAMES, max_size=2).map(tuple),
    exposures=st.none() | st.integers(0, 2**31 - 1),
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(WRITTEN, min_size=1, max_size=4, unique_by=(lambda fact: fact.id, lambda fact: fact.subject)),
    st.booleans(),
)
def test_facts_that_are_written_are_read_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, facts: list[Fact], own: bool
) -> None:
    facts = [
        replace(fact, aliases=tuple({*fact.aliases} - {fact.answer})) for fact in facts
    ]  # repeated ones are dropped
    if own:
        facts = [replace(fact, prompts=(f"{fact.subject} is", "{question} It is")) for fact in facts]
    path = tmp_path_factory.mktemp("written") / "facts.parquet"
    write_facts(path, facts, {facts[0].id: 0.5})
    assert load_facts(str(path)).facts == tuple(facts)
    if not own:
        assert load_facts(f"world:{path.parent}").facts == tuple(facts)


def test_the_shipped_world_is_read_once_a_process() -> None:
    facts = load_facts("world:tiny").facts
    assert load_facts("world:tiny").facts is facts
    assert not any(fact.aliases for fact in load_facts("world:tiny", aliases=False).facts)
    assert load_facts("world:tiny").facts is facts


def test_the_shipped_world_is_read_as_any_world_that_is_checked() -> None:
    path = Path(sources.__file__).parents[2] / "world" / "tiny" / "facts.parquet"
    assert load_facts("world:tiny").facts == read_world_facts(path)


def test_the_shipped_world_has_facts_of_all_relations() -> None:
    source = load_facts("world:tiny")
    assert source.name == "world:tiny"
    assert {fact.relation for fact in source.facts} == set(RELATIONS)
    assert all(fact.exposures is not None for fact in source.facts)


def test_a_world_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    pq.write_table(pa.table({"id": ["1"], "question": ["q"]}), tmp_path / "w" / "facts.parquet")
    refused(f"world:{tmp_path / 'w'}", "not the facts of a world", "'relation' is missing")


# Tables

ROW: dict[str, Any] = {"question": "Capital of Peru?", "subject": "Peru", "answer": "Lima"}


def table(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"facts.{kind}"
    if kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({name: "|".join(v) if isinstance(v, list) else v for name, v in row.items()})
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])


@KINDS
def test_a_table_needs_three_columns_and_fills_in_the_rest(tmp_path: Path, kind: str) -> None:
    source = load_facts(str(table(tmp_path, kind, [ROW, {**ROW, "subject": "Perú "}])))
    assert source.name == f"facts.{kind}"
    assert source.facts[0] == Fact("row-1", "none", "test", "in_domain", "Peru", "Capital of Peru?", "Lima")
    assert source.facts[1].id == "row-2"
    assert source.facts[1].subject == "Perú"


@KINDS
def test_a_table_with_every_column(tmp_path: Path, kind: str) -> None:
    row = {
        "question": ROW["question"],
        "subject": "Peru",
        "answers": ["Lima", "Ciudad de los Reyes"],
        "id": "peru",
        "relation": "P36",
        "split": "train",
        "domain": "out_of_domain",
        "aliases": ["Lima", "Lima Metropolitana"],
        "prompts": ["{subject}'s capital is", "The capital of Peru is", "{question} It is"],
        "exposures": 12,
    }
    path = table(tmp_path, kind, [row])
    (fact,) = load_facts(str(path)).facts
    assert fact.accepted == ("Lima", "Ciudad de los Reyes", "Lima Metropolitana")
    assert (fact.id, fact.relation, fact.split, fact.domain) == ("peru", "P36", "train", "out_of_domain")
    assert fact.exposures == 12
    assert completion_prompts(fact) == ("Peru's capital is", "The capital of Peru is", "Capital of Peru? It is")
    assert load_facts(str(path), aliases=False).facts[0].accepted == ("Lima",)


@KINDS
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"subject": "s", "answer": "a"}], ("'question' is missing", "subject, answer")),
        ([{"question": "q", "answer": "a", "prompts": ["{subject} is"]}], ("without a column 'subject'",)),
        ([{"question": "q", "subject": "s"}], ("'answer' (or 'answers') is missing",)),
        ([{**ROW, "Aliases": "x"}], ("unknown column 'Aliases'", "nearest: 'aliases'")),
        ([{**ROW, "alias": "x"}], ("unknown column 'alias'", "nearest: 'aliases'")),
        ([ROW, {**ROW, "subject": " "}], ("subject is ' '",)),
        ([ROW, {**ROW, "answer": ""}], ("no answer",)),
        ([{**ROW, "split": "dev"}], ("unknown split 'dev'", "test, train")),
        ([{**ROW, "domain": "indomain"}], ("unknown domain 'indomain'", "nearest: 'in_domain'")),
        ([{**ROW, "exposures": -1}], ("exposures is", "-1", "0 or more")),
        ([{**ROW, "exposures": "many"}], ("exposures is 'many'",)),
        ([{**ROW, "exposures": 2**31}], ("exposures is", "2147483648", "below 2^31")),
        ([{**ROW, "answer": "?!"}], ("answer '?!' is empty after normalisation",)),
        ([{**ROW, "aliases": ["Lima", "-"]}], ("answer '-' is empty after normalisation",)),
        ([{**ROW, "aliases": ["x", ""]}], ("aliases is",)),
        ([{**ROW, "id": "a"}, {**ROW, "id": "b"}, {**ROW, "id": "a"}], ("id 'a'", "every id once", " 3: ", " 1 too")),
    ],
)
def test_a_table_with_a_fault_is_refused(
    tmp_path: Path, kind: str, rows: list[dict[str, Any]], words: tuple[str, ...]
) -> None:
    refused(table(tmp_path, kind, rows), f"facts.{kind}", *words)


def test_broken_tables_are_refused(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    header = b"question,subject,answer\n"
    refused(tmp_path / "none.csv", "none.csv", "no such file")
    refused(file("a.csv", b""), "a.csv", "table is empty")
    refused(file("a.csv", header), "a.csv", "table is empty")
    refused(file("a.csv", header + b"q,s\n"), "row 1: 2 cells; expected 3")
    refused(file("a.csv", header + b'"q,s,a\n'), "not a CSV table")
    refused(file("a.csv", header + b"\xff,s,a\n"), "not UTF-8 at byte")
    refused(file("a.csv", b"question,subject,answer,answer\n"), "'answer' stands twice")
    refused(file("a.jsonl", b""), "a.jsonl", "table is empty")
    refused(file("a.jsonl", b'\n{"question": '), "line 2: broken JSON")
    refused(file("a.jsonl", b"[1]\n"), "line 1: found list")
    refused(file("a.jsonl", b'{"question": 1.5, "subject": "s", "answer": "a"}\n'), "line 1: question is 1.5")
    refused(file("a.jsonl", b'{"question": "\\ud83d", "subject": "s", "answer": "a"}\n'), r"question is '\ud83d'")
    refused(file("a.jsonl", b"\xff\n"), "line 1: broken JSON")
    refused(file("a.jsonl", b"\n" + b" " * (LARGEST_ROW + 1)), "line 2: longer than 16777216 bytes")
    refused(file("a.parquet", b"PAR1"), "a.parquet: not a Parquet file")
    pq.write_table(pa.Table.from_pylist([ROW]).slice(0, 0), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "table is empty")


def test_a_table_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "Facts.CSV"
    path.write_bytes('\ufeffquestion,subject,answer,exposures\r\n"Born, when?",Ada,1815,\r\n\r\n'.encode())
    (fact,) = load_facts(str(path)).facts
    assert (fact.question, fact.answer, fact.exposures) == ("Born, when?", "1815", None)
    other = table(tmp_path, "jsonl", [{"question": "Born, when?", "subject": "Ada", "answer": 1815, "exposures": None}])
    assert load_facts(str(other)).digest() == load_facts(str(path)).digest()


def test_what_spreadsheets_leave_empty_at_the_ends_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,subject,answer,,\nq?,s,a,,\n,,,,\nq?,t,b,,\n,,,,\n ,,,,\n", encoding="utf-8")
    refused(path, "row 2: subject is empty")
    path.write_text("question,subject,answer,,\nq?,s,a,,\nq?,t,b,,\n,,,,\n ,,,,\n", encoding="utf-8")
    assert [fact.answer for fact in load_facts(str(path)).facts] == ["a", "b"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_with_other_separators_says_so(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"question{mark}subject{mark}answer\nq?{mark}s{mark}a, b\n", encoding="utf-8")
    refused(path, f"separated by {mark!r}; expected commas")


def test_cells_of_parquet_that_python_cannot_hold_are_refused_with_their_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    spoilt = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    for cell in (
        spoilt,
        pa.array([2**62], pa.int64()).cast(pa.timestamp("us")),
        pa.array([2**62], pa.int64()).cast(pa.duration("us")),
        pa.array([0], pa.timestamp("us", tz="Nowhere/Else")),
    ):
        pq.write_table(pa.table({"question": ["q?"], "subject": ["s"], "answer": cell}), path)
        refused(path, "a.parquet", "answer")


@pytest.mark.parametrize("column", ["question", "split", "domain", "exposures", "answer", "prompts"])
def test_an_error_line_shows_the_beginning_of_a_long_cell(tmp_path: Path, column: str) -> None:
    path = table(tmp_path, "jsonl", [{**ROW, column: "?" * 1_000_000 + "{}"}])
    with pytest.raises(InputError) as caught:
        load_facts(str(path))
    assert len(str(caught.value)) < len(str(path)) + 400


# Digest and leakage

FACTS_OF_TWO = st.builds(
    Fact,
    id=st.uuids().map(str),
    relation=st.sampled_from(["P131", "P276"]),
    split=st.sampled_from(["train", "test"]),
    domain=st.sampled_from(["in_domain", "out_of_domain"]),
    subject=st.just("s"),
    question=st.sampled_from("abcd"),
    answer=st.sampled_from("xyz"),
)


@settings(max_examples=50)
@given(st.lists(FACTS_OF_TWO, max_size=12).map(tuple))
def test_leakage_by_counting(facts: tuple[Fact, ...]) -> None:
    clean = without_leaked(facts)
    trained = {fact.question for fact in facts if fact.split == "train"}
    assert [fact for fact in clean if fact.split == "train"] == [fact for fact in facts if fact.split == "train"]
    assert all(fact.question not in trained for fact in clean if fact.split == "test")
    assert all(fact.split == "test" and fact.question in trained for fact in set(facts) - set(clean))
    assert leakage(clean).questions == 0
    inside = [fact for fact in facts if fact.domain == "in_domain"]
    asked: dict[str, Fact] = {}  # each question with the first test fact that asks it
    for fact in inside:
        if fact.split == "test":
            asked.setdefault(fact.question, fact)
    taught = [fact for fact in inside if fact.split == "train"]

    def also_taught(name: str) -> int:
        """Test questions with a training fact of the same relation that is alike in this field."""
        return sum(
            any(other.relation == fact.relation and getattr(other, name) == getattr(fact, name) for other in taught)
            for fact in asked.values()
        )

    overlap = also_taught("answer") / len(asked) if asked else None
    assert leakage(facts) == Leakage(len(asked), also_taught("question"), overlap)


@settings(max_examples=50)
@given(st.lists(FACTS_OF_TWO, min_size=1, max_size=4).map(tuple))
def test_the_digest_knows_the_content_and_not_the_name(facts: tuple[Fact, ...]) -> None:
    digest = FactSource("one", facts).digest()
    assert digest == FactSource("another", tuple(replace(fact) for fact in facts)).digest()
    other: dict[str, Any] = {
        **dict.fromkeys(("id", "relation", "subject", "question", "answer"), "other"),
        "split": "train" if facts[-1].split == "test" else "test",
        "domain": "in_domain" if facts[-1].domain == "out_of_domain" else "out_of_domain",
        "aliases": ("n",),
        "exposures": 3,
        "prompts": ("p",),
    }
    assert set(other) == {field.name for field in fields(Fact)}
    for name, value in other.items():
        changed = (*facts[:-1], replace(facts[-1], **{name: value}))
        assert FactSource("one", changed).digest() != digest, name
    for fewer_or_moved in (facts[:-1], (*facts, facts[0]), facts[1:] + facts[:1]):
        assert (FactSource("one", fewer_or_moved).digest() == digest) == (fewer_or_moved == facts)
    assert len(digest) == 16


def test_only_half_a_surrogate_pair_is_not_encodable() -> None:
    assert not any(encodable(f"a{half}") for half in ("\ud800", "\udbff", "\udc00", "\udfff"))
    assert all(encodable(f"a{whole}") for whole in ("", "\ud7ff", "\ue000", "ﬁ", "\ufffd", "😀"))


@pytest.mark.parametrize(
    ("prompt", "there"),
    [("The capital of Peru is", True), ("of aPeru", False), ("Peruvian", False), ("aPeru, Peru", True), ("Peru", True)],
)
def test_a_prompt_is_filled_in_where_the_subject_is_a_word_of_it(prompt: str, there: bool) -> None:
    assert is_filled_in(prompt, "Peru", "What is the capital?") is there
