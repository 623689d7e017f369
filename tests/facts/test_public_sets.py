"""PopQA, TriviaQA and NQ-open: what is read of them, how it is asked, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from knowshift.cli.app import app
from knowshift.errors import InputError, KnowshiftWarning
from knowshift.facts.asking import GENERIC
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.relations import RELATIONS
from knowshift.facts.sources import encoding, public_sets
from knowshift.facts.sources.load import load_facts
from knowshift.facts.sources.public_sets import POPQA_RELATIONS

POPQA = [
    {
        "id": "11",
        "subj": "Ilsa Vendt",
        "prop": "occupation",
        "obj": "glassblower",
        "question": "What is Ilsa Vendt's occupation?",
        "possible_answers": '["glassblower", "glass artist", "?!", "glassblower"]',
        "s_pop": "142",
    },
    {
        "id": "12",
        "subj": "Tin Rain",
        "prop": "genre",
        "obj": "chamber opera",
        "question": "What genre is Tin Rain?",
        "possible_answers": '["chamber opera"]',
        "s_pop": "9",
    },
]
TRIVIA: dict[str, Any] = {
    "Data": [
        {
            "Answer": {
                "Aliases": ["Tarn Bridge", "The Tarn Bridge", "--"],
                "NormalizedAliases": ["tarn bridge"],
                "Value": "Tarn Bridge",
                "Type": "WikipediaEntity",
            },
            "EntityPages": [],
            "Question": "Which bridge at Odsk was finished in 1911?",
            "QuestionId": "od_1",
            "SearchResults": [{"Rank": 0, "Title": 'Bridges {of] "Odsk"'}],
        },
        {"Answer": {"NormalizedAliases": ["mira"], "Value": "Mira"}, "Question": "Who?", "QuestionId": "od_2"},
    ],
    "Domain": "Web",
    "VerifiedEval": False,
    "Version": 1.0,
}
NQ = [
    {"question": "who built the tarn bridge", "answer": ["Mira Holt", "M. Holt"]},
    {"question": "when was the tarn bridge finished", "answer": ["1911"]},
]


def tsv(path: Path, rows: list[Mapping[str, str]], delimiter: str = "\t") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def whole(path: Path, value: Any, indent: int | None = 4) -> Path:
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    return path


def refused(source: str, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_facts(source)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 400
    for word in words:
        assert word in told, told


# What is read


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_popqa(tmp_path: Path, delimiter: str) -> None:
    source = load_facts(f"popqa:{tsv(tmp_path / 'test.tsv', POPQA, delimiter)}")
    assert source.name == "popqa:test.tsv"
    known, other = source.facts
    assert known == Fact(
        "popqa.11",
        "P106",
        "test",
        "out_of_domain",
        "Ilsa Vendt",
        "What is Ilsa Vendt's occupation?",
        "glassblower",
        ("glass artist",),
    )
    assert completion_prompts(known) == tuple(
        prompt.replace("{subject}", "Ilsa Vendt") for prompt in RELATIONS["P106"].completions
    )
    assert (other.relation, other.answer, other.aliases) == ("popqa genre", "chamber opera", ())
    assert completion_prompts(other)[0] == "Question: What genre is Tin Rain?\nAnswer:"


@pytest.mark.parametrize(
    "cell",
    ["['glassblower', \"artist's\", '?!']", "['glassblower' \"artist's\" '?!']", "('glassblower', \"artist's\")"],
)
def test_popqa_as_pandas_writes_it_again(tmp_path: Path, cell: str) -> None:
    (fact,) = load_facts(f"popqa:{tsv(tmp_path / 'test.tsv', [{**POPQA[0], 'possible_answers': cell}])}").facts
    assert fact.accepted == ("glassblower", "artist's")


def test_popqas_relations_mean_what_the_studys_mean() -> None:
    for name, identity in POPQA_RELATIONS.items():
        assert RELATIONS[identity].name == name


@pytest.mark.parametrize("indent", [None, 4])
def test_triviaqa(tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = whole(tmp_path / "unfiltered-web-train.json", TRIVIA, indent)
    source = load_facts(f"triviaqa:{path}")
    first, second = source.facts
    assert (first.id, first.split, first.domain) == ("triviaqa.od_1", "train", "in_domain")
    assert first.accepted == ("Tarn Bridge", "The Tarn Bridge")
    assert second.accepted == ("Mira", "mira")
    assert load_facts(f"triviaqa:{path}", aliases=False).facts[0].accepted == ("Tarn Bridge",)
    # Read in pieces of a few characters, every value and every number stands across an edge at some time.
    for piece in range(1, 40):
        monkeypatch.setattr(public_sets, "_PIECE", piece)
        assert load_facts(f"triviaqa:{path}").facts == source.facts


def test_nq_open_and_a_row_that_nothing_could_be_graded_by(tmp_path: Path) -> None:
    rows = [NQ[0], {"question": "k in another code", "answer": ["-.-"]}, NQ[1]]
    with pytest.warns(KnowshiftWarning, match=r"1 of 3 rows left out, the first is line 2"):
        source = load_facts(f"nq-open:{lines(tmp_path / 'NQ-open.dev.jsonl', rows)}")
    assert [fact.id for fact in source.facts] == ["nq-open.1", "nq-open.3"]
    assert source.facts[0].accepted == ("Mira Holt", "M. Holt")
    assert {(fact.split, fact.domain) for fact in source.facts} == {("test", "out_of_domain")}
    trained = load_facts(f"nq-open:{lines(tmp_path / 'NQ-open.train.jsonl', NQ)}")
    assert {(fact.split, fact.domain) for fact in trained.facts} == {("train", "in_domain")}
    assert load_facts(f"nq-open:{lines(tmp_path / 'strained.jsonl', NQ)}").facts[0].split == "test"


def test_generic_prompts_lead_up_to_an_answer() -> None:
    assert len(GENERIC) == len(set(GENERIC)) == 21
    for prompt in GENERIC:
        assert prompt.count("{question}") == 1
        assert prompt == prompt.rstrip()
        assert "{subject}" not in prompt
    fact = Fact("f", "none", "test", "in_domain", "", "who said {question}?", "Ada", prompts=GENERIC)
    assert completion_prompts(fact)[1] == "Q: who said {question}?\nA:"


# The commands


@pytest.mark.parametrize(
    ("scheme", "write"),
    [
        ("popqa", lambda path: tsv(path, POPQA)),
        ("triviaqa", lambda path: whole(path, TRIVIA)),
        ("nq-open", lambda path: lines(path, NQ)),
    ],
)
def test_each_set_is_counted_and_measured(
    tmp_path: Path, small_world: Path, scheme: str, write: Callable[[Path], Path]
) -> None:
    def call(*words: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    source = f"{scheme}:{write(tmp_path / 'set')}"
    counts = call("facts", source)
    assert counts["test_out_of_domain"] == 2
    assert sum(splits["test"] for splits in counts["relations"].values()) == 2
    options = ["--output", str(tmp_path / "m.parquet"), "--draws", "1", "--max-new-tokens", "2", "--workers", "1"]
    measured = call("mastery", str(small_world), "--facts", source, *options)
    assert (measured["facts"], measured["draws"]) == (2, 2 * 21)


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"possible_answers": "[glassblower"}, ('row 2: possible_answers is "[glassblower"', "a list of texts")),
        ({"possible_answers": "[" * 100_000}, ('row 2: possible_answers is "[[[', "a list of texts")),
        ({"possible_answers": '"glassblower"'}, ("row 2: possible_answers is", "glassblower", "a list of texts")),
        ({"possible_answers": '[["a"]]'}, ('row 2: one of possible_answers is ["a"]',)),
        ({"possible_answers": '["\\ud83d"]'}, ("row 2: one of possible_answers is", "ud83d")),
        ({"possible_answers": "[]", "obj": " "}, ('row 2: no answer; found [""]',)),
        ({"question": " "}, ('row 2: question is " "',)),
        ({"subj": ""}, ("row 2: subj is empty",)),
        ({"id": "11"}, ("row 2: id 'popqa.11' stands twice",)),
        ({"question": "x" * 200_000}, ("line 3: not a table", "field larger than field limit")),
    ],
)
def test_a_spoilt_row_of_popqa_is_named(tmp_path: Path, change: dict[str, str], words: tuple[str, ...]) -> None:
    refused(f"popqa:{tsv(tmp_path / 'p.tsv', [POPQA[0], {**POPQA[1], **change}])}", "p.tsv", *words)


def test_a_spoilt_table_of_popqa_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    without = [{name: cell for name, cell in row.items() if name != "possible_answers"} for row in POPQA]
    refused(f"popqa:{tsv(path, without)}", "column 'possible_answers' is missing; found id, subj, prop")
    header = "\t".join(POPQA[0])
    for text, words in (
        (b"", ("column 'subj' is missing", "found nothing")),
        (header.encode(), ("no rows",)),
        (f"{header}\tobj\n".encode(), ("column 'obj' is there 2 times",)),
        (f"{header}\n1\t2\n".encode(), ("row 1: 2 cells; expected 7",)),
        (f"{header}\n".encode() + b"\xff", ("not UTF-8",)),
        (f'{header}\n"'.encode(), ("line 2: not a table",)),
    ):
        path.write_bytes(text)
        refused(f"popqa:{path}", "p.tsv", *words)
    refused(f"popqa:{tmp_path / 'none.tsv'}", "none.tsv: no such file", "PopQA")
    refused(f"popqa:{tmp_path}", "no such file")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"question": "who', ("line 2: broken JSON",)),
        (b"[" * 100_000, ("line 2: JSON nested too deep",)),
        (b'{"question": ' + b"9" * 5_000 + b"}", ("line 2: broken JSON",)),
        (b"\xff", ("line 2: not UTF-8",)),
        (b'["who"]', ("line 2: found list; expected an object",)),
        (b'{"question": "who"}', ("line 2: answer is missing",)),
        (b'{"question": "who", "answer": []}', ("line 2: no answer; found []",)),
        (b'{"question": "who", "answer": "Ada"}', ('line 2: answer is "Ada"; expected a list of texts',)),
        (b'{"question": "who", "answer": [1815]}', ("line 2: one of answer is 1815",)),
        (b'{"answer": ["Ada"]}', ("line 2: question is missing",)),
        (b'{"question": "' + b"x" * 2_000 + b'", "answer": ["Ada"]}', ("line 2: longer than 1000 bytes",)),
    ],
)
def test_a_spoilt_line_of_nq_open_is_named(
    tmp_path: Path, line: bytes, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(line) < 3_000 and b"xxx" in line:
        monkeypatch.setattr(encoding, "LARGEST_ROW", 1000)
    path = tmp_path / "q.jsonl"
    path.write_bytes(json.dumps(NQ[0]).encode() + b"\n" + line + b"\n")
    refused(f"nq-open:{path}", "q.jsonl", *words)


def test_an_empty_or_wholly_ungradable_file_is_refused(tmp_path: Path) -> None:
    refused(f"nq-open:{lines(tmp_path / 'q.jsonl', [])}", "q.jsonl: no rows; expected")
    refused(f"nq-open:{lines(tmp_path / 'q.jsonl', [{**NQ[0], 'answer': ['?']}])}", "no rows that can be graded")


def row(**change: Any) -> dict[str, Any]:
    return {"Data": [TRIVIA["Data"][0], {**TRIVIA["Data"][1], **change}]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (row(Answer=None), ("row 2: Answer is missing; a test file without answers",)),
        (row(Answer="Mira"), ("row 2: Answer: found str; expected an object",)),
        (row(Answer={"Aliases": ["Mira"]}), ("row 2: Answer: Value is missing",)),
        (row(Answer={"Value": "Mira", "Aliases": "Mira"}), ('row 2: Answer: Aliases is "Mira"',)),
        (row(Answer={"Value": "", "Aliases": []}), ('row 2: no answer; found [""]',)),
        (row(Question=None), ("row 2: Question is missing",)),
        (row(QuestionId=7), ("row 2: QuestionId is 7",)),
        (row(QuestionId="od_1"), ("row 2: id 'triviaqa.od_1' stands twice",)),
        ({"Data": [1]}, ("row 1: found int",)),
        ({"Data": {}}, ("found '{'; expected a list at 'Data'",)),
        ({"data": []}, ("'Data' is missing",)),
        ({"Data": []}, ("no rows",)),
        ([], ("found '['; expected an object",)),
    ],
)
def test_a_spoilt_row_of_triviaqa_is_named(tmp_path: Path, value: Any, words: tuple[str, ...]) -> None:
    refused(f"triviaqa:{whole(tmp_path / 't.json', value)}", "t.json", *words)


def test_broken_json_of_triviaqa_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    text = json.dumps(TRIVIA)
    for spoilt, words in (
        (b"", ("found 'the end'; expected an object",)),
        (text[:200].encode(), ("row 1: broken JSON",)),
        (text.replace('"Domain"', "Domain").encode(), ("a key: broken JSON",)),
        (text[: text.index(', "Domain"')].encode(), ("found 'the end'; expected a comma between keys",)),
        (text.replace("}, {", "} {").encode(), ("found '{'; expected a comma after row 1",)),
        (b'{"Data": [' + b"[" * 100_000, ("row 1: JSON nested too deep",)),
        (b'{"Data": [' + b"9" * 5_000 + b"]}", ("row 1: broken JSON",)),
        (b'{"x": "\xff"}', ("not UTF-8",)),
    ):
        path.write_bytes(spoilt)
        refused(f"triviaqa:{path}", "t.json", *words)
    monkeypatch.setattr(public_sets, "LARGEST_ROW", 1000)
    monkeypatch.setattr(public_sets, "_PIECE", 100)
    path.write_text('{"Data": [{"Question": "' + "x" * 5000)
    refused(f"triviaqa:{path}", "row 1", "more than 1000 characters")


@pytest.mark.parametrize(
    ("source", "nearest"),
    [
        ("nqopen:NQ-open.dev.jsonl", "'nq-open:FILE'"),
        ("popq:test.tsv", "'popqa:FILE'"),
        ("trivia_qa:web-dev.json", "'triviaqa:FILE'"),
        ("triviaqa:", "'triviaqa:FILE'"),
    ],
)
def test_an_unknown_scheme_names_the_nearest(source: str, nearest: str) -> None:
    refused(source, "unknown fact source", source, f"nearest: {nearest}", "available: ")
