"""What the Markdown files name exists: paths, links, modules, targets of make, packages, terms with unit and source."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pydoc import locate

import pytest

from pages import NAMES, ROOT, anchors, blocks, links, spans, tables

PACKAGE = ROOT / "src" / "knowshift"
LANGUAGES = {"sh", "bash", "python", "yaml", "text"}
#: Paths that a command makes.
MADE = ("docs/_build",)
PATH = re.compile(r"(?<![\w/.~-])(?:src|tests|docs|benchmarks|mutation)/[\w./-]*[\w/]")
FILE = re.compile(r"[\w-]+(?:/[\w-]+)*/[\w.-]+\.(?:py|c|md|csv|toml)")


def missing(text: str) -> list[str]:
    return [path for path in PATH.findall(text) if not path.startswith(MADE) and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", NAMES)
def test_paths_exist(page: str) -> None:
    assert missing((ROOT / page).read_text(encoding="utf-8")) == []
    files = [span for span in spans(page) if FILE.fullmatch(span) and not span.startswith("tables/")]
    assert [path for path in files if not (ROOT / path).is_file()] == []


def test_paths_that_the_code_names_exist() -> None:
    sources = [path for folder in ("src", "tests", "benchmarks", "mutation") for path in (ROOT / folder).rglob("*.py")]
    sources.remove(ROOT / "tests" / "docs" / "test_pages.py")  # it names what must not be there
    assert len(sources) > 100
    for source in sources:
        named = re.findall(
            r"(?<![\w/])(?:docs|tests|benchmarks|src/knowshift)/[\w./-]*\w", source.read_text(encoding="utf-8")
        )
        assert [path for path in named if not path.startswith(MADE) and not (ROOT / path).exists()] == [], source


def test_a_path_that_does_not_exist_is_found() -> None:
    assert missing("see `src/knowshift/weights/` and docs/measures.md, tests/docs.") == ["src/knowshift/weights/"]


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), link


@pytest.mark.parametrize("page", NAMES)
def test_names_of_modules_functions_and_schemas_exist(page: str) -> None:
    for span in spans(page):
        name = re.fullmatch(r"(knowshift(?:\.\w+)+)(?:\(.*\))?", span)
        if name and not name[1].endswith(".json"):
            assert locate(name[1]) is not None, name[1]


@pytest.mark.parametrize("page", NAMES)
def test_every_block_of_code_says_its_language(page: str) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_every_page_is_on_the_front_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    listed = re.findall(r"^- \[[^\]]+\]\((\w+\.md)\): \S", (ROOT / "docs/index.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(pages)


def test_every_term_has_a_formula_a_unit_and_a_source() -> None:
    terms = 0
    for head, *rows in tables("docs/measures.md"):
        assert head[0] == "term"
        assert head[1] in ("formula", "meaning")
        assert head[2:] == ["unit", "source"]
        for row in rows:
            assert all(row), row
            terms += 1
    assert terms > 30


def test_the_tree_of_the_readme_is_that_of_the_package() -> None:
    tree = next(block.text for block in blocks("README.md") if block.text.startswith("src/knowshift/"))
    named, above = set(), ["src/knowshift/"]
    for line in tree.splitlines()[1:]:
        if not line.startswith("  "):
            break
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        above[depth:] = [name]
        named.add("".join(above[1:]))
    folders = {f"{path.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("*/") if path.name != "__pycache__"}
    assert {name for name in named if name.endswith("/")} == folders
    assert all((PACKAGE / name).exists() for name in named)


def test_the_picture_of_the_packages_is_what_is_held() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [one["layers"] for one in contracts if one["name"] == "the house"]
    picture = next(block.text for block in blocks("CONTRIBUTING.md") if block.text.startswith("cli"))
    drawn = [re.split(r"\s{2,}", line)[0] for line in picture.splitlines()]
    assert drawn == [layer for layer in layers if layer != "__main__"]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split()
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = [re.fullmatch(r"make (\S+) +\S.*", line) for line in done.stdout.splitlines()]
    assert None not in listed
    assert sorted(line[1] for line in listed if line) == sorted(targets)
