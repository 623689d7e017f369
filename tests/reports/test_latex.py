"""Tables as LaTeX: every text comes out as it was, and the tabular has the table's rows and columns."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowshift.html.table import Table
from knowshift.reports.tables.build import Tables
from knowshift.reports.tables.latex import escape, to_latex

#: What LaTeX prints for the commands that are used, longest first.
PRINTED = {
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    r"\textbackslash{}": "\\",
    r"\textgreater{}": ">",
    r"\textless{}": "<",
    r"\textbar{}": "|",
    "{[}": "[",
    "{*}": "*",
    "$-$": "\N{MINUS SIGN}",
    **{f"\\{special}": special for special in "{}$&#%_"},
}
TOKEN = re.compile("|".join(re.escape(command) for command in PRINTED) + "|.", re.DOTALL)


def printed(source: str) -> str:
    """What LaTeX prints for a cell; a special character that is not escaped is an error."""
    tokens = TOKEN.findall(source)
    assert not {*tokens} & set("\\{}$&#%_~^<>|[*")
    return "".join(PRINTED.get(token, token) for token in tokens)


@given(st.text())
@pytest.mark.parametrize("around", ["", "\\", "{}", "a & b", "100%_#", "\n", "$-$", "\\textless{}"])
def test_a_text_is_printed_as_it_was(around: str, text: str) -> None:
    whole = around + text + around
    plain = " ".join("".join(c if c.isprintable() else " " for c in whole).split())
    assert printed(escape(whole)) == plain


def test_special_characters() -> None:
    assert escape("a_b & 5% of $x^{2}$ ~ #1 <b> \\") == (
        r"a\_b \& 5\% of \$x\textasciicircum{}\{2\}\$ \textasciitilde{} \#1 \textless{}b\textgreater{} "
        r"\textbackslash{}"
    )
    assert escape("two\r\nlines\tand\x00more") == "two lines and more"


def test_a_table() -> None:
    rows = (
        ("[a]", 1920, 0.55334, -0.01, None, True),
        ("b_c", 60, 0.0, -0.0, math.nan, False),
        ("*", 1, 1.0, 0.0000004, 1e-9, True),
    )
    table = Table("t", ("one_name", "size", "accuracy", "change", "p", "kept"), rows, frozenset({"accuracy"}))
    assert to_latex(table).splitlines() == [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"one name & size & accuracy (\%) & change & p & kept \\",
        r"\midrule",
        r"{[}a] & 1920 & 55.33 & $-$0.0100 &  & yes \\",
        r"b\_c & 60 & 0.00 & 0.0000 &  & no \\",
        r"{*} & 1 & 100.00 & 4e-07 & 1e-09 & yes \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_column_of_long_texts_is_set_in_lines_and_a_table_without_rows_has_its_head() -> None:
    assert to_latex(Table("t", ("a", "b"), (("x" * 61, 1),))).startswith("\\begin{tabular}{p{80mm}r}\n")
    assert to_latex(Table("t", ("a", "b"), ())).splitlines()[2:5] == [r"a & b \\", r"\midrule", r"\bottomrule"]


def test_every_table_is_written_with_its_rows_and_columns(hand_tables: Tables, tmp_path: Path) -> None:
    written = hand_tables.write(tmp_path / "tables")
    assert [path.name for path in written] == [f"{name}.{suffix}" for name in hand_tables for suffix in ("csv", "tex")]
    for name, table in hand_tables.items():
        lines = (tmp_path / f"tables/{name}.tex").read_text(encoding="utf-8").splitlines()
        body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
        assert len(body) == len(table.rows)
        for line in (lines[2], *body):
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1
        for row, line in zip(table.rows, body, strict=True):
            cells = re.split(r" (?<!\\)& ", line.removesuffix(r" \\"))
            texts = [(cell, value) for cell, value in zip(cells, row, strict=True) if isinstance(value, str)]
            assert all(printed(cell) == " ".join(value.split()) for cell, value in texts)
