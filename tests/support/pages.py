"""The project's Markdown files, taken apart: blocks of code, spans of code, links, headings, tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A block of code; an indented one has no language."""

    page: str
    language: str
    text: str


def tokens(page: str) -> list[Token]:
    return _PARSER.parse((ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    return [
        Block(page, token.info.strip(), token.content)
        for token in tokens(page)
        if token.type in ("fence", "code_block")
    ]


def command_lines(block: Block) -> list[str]:
    """The commands of a block, one string each, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def commands(page: str) -> list[str]:
    """The commands of a page."""
    return [line for block in blocks(page) if block.language == "sh" for line in command_lines(block)]


def snippets(page: str, language: str) -> list[str]:
    return [block.text for block in blocks(page) if block.language == language]


def _inline(page: str, kind: str) -> Iterator[Token]:
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


def spans(page: str) -> list[str]:
    """What stands in backticks in running text and in tables."""
    return [child.content for child in _inline(page, "code_inline")]


def links(page: str) -> list[str]:
    """Targets of links and images."""
    return [
        str(child.attrs[attribute])
        for kind, attribute in (("link_open", "href"), ("image", "src"))
        for child in _inline(page, kind)
    ]


def anchors(page: str) -> set[str]:
    """What `#...` may name: the headings, spelled as GitHub and MyST spell them."""
    found = tokens(page)
    headings = [found[i + 1].content for i, token in enumerate(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(page: str) -> list[list[list[str]]]:
    """Every table: rows of cells, as Markdown, the head first."""
    found: list[list[list[str]]] = []
    for token, following in zip(tokens(page), tokens(page)[1:], strict=False):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(following.content)
    return found
