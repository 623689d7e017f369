"""Pages are made by templates: what they are given is shown as it is written, and nothing else makes HTML."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import knowshift
from knowshift.html.grid import DASH, Entry, Grid, number, span
from knowshift.html.rendering import environment
from knowshift.html.words import percent, signed

SOURCE = Path(knowshift.__file__).parent
WINGS = ("html", "reports")
#: A tag (not the name of a regular expression's group), or how a character is written in HTML.
HTML = re.compile(r"(?<!\?P)</?[a-zA-Z][a-zA-Z0-9]*(\s|/?>|$)|&#?[a-zA-Z0-9]+;")


class Texts(HTMLParser):
    """The tags, and the text directly in the elements of each."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.inside: list[str] = []
        self.texts: defaultdict[str, str] = defaultdict(str)
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[self.inside[-1]] += data


def table(grid: Grid) -> str:
    return str(environment().get_template("parts.html.jinja").module.table(grid))


#: All that a browser shows as it is written: no control characters, which HTML cannot hold.
SHOWN = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)


@given(caption=SHOWN, head=SHOWN, text=SHOWN, note=SHOWN)
def test_every_text_of_a_table_is_read_back_as_it_was_written(caption: str, head: str, text: str, note: str) -> None:
    read = Texts(table(Grid(caption, [head], [[Entry(text, note)]])))
    assert read.tags == ["div", "table", "caption", "thead", "tr", "th", "tbody", "tr", "td", "small"]
    assert (read.texts["caption"], read.texts["th"]) == (caption, head)
    assert (read.texts["td"], read.texts["small"]) == (text + " ", note)


def test_a_number_that_is_not_there_is_a_dash() -> None:
    nan = float("nan")
    assert number(None, percent) == number(nan, percent, 0.1, 0.2, note="at 1") == DASH
    assert number(0.5, percent) == number(0.5, percent, nan, nan) == Entry("50.0%")
    assert number(0.5, signed, 0.25, 0.75) == Entry("+50.0", "+25.0…+75.0")
    assert number(0.5, percent, note="at 1") == Entry("50.0%", "at 1")
    assert span(0.1, nan, percent) == span(None, 0.1, percent) == ""


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ name }}").render()
    with pytest.raises(jinja2.UndefinedError):
        environment("knowshift.reports.page").get_template("making.html.jinja").render(config="")


def templates() -> list[Path]:
    return [path for wing in WINGS for path in (SOURCE / wing).rglob("*.jinja")]


def test_one_value_alone_is_not_escaped() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in templates()}
    assert len(texts) > 5
    assert {name: text.count("safe }}") for name, text in texts.items() if re.search(r"\bsafe\b", text)} == {
        "report.html.jinja": 1
    }
    assert not any(re.search(r"autoescape|xmlattr|Markup", text) for text in texts.values())


def test_python_makes_no_html() -> None:
    """No string of these wings holds a tag (in a figure, which is SVG, they are taken out), and none is escaped."""
    made = []
    for path in (path for wing in WINGS for path in (SOURCE / wing).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        made += [(path.name, part) for part in parts if isinstance(part, str) and HTML.search(part)]
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"html", "markupsafe"}, path
    assert {name for name, part in made if not re.search("svg|metadata", part)} == set()
    assert {name for name, _ in made} == {"plotting.py", "page.py"}


def test_the_style_sheet_is_no_template() -> None:
    css = resources.files("knowshift.html").joinpath("templates", "page.css").read_text(encoding="utf-8")
    assert environment().get_template("page.css").render() == css
