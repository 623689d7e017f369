"""Hostile texts in the page: whatever a user, a model or a file supplies is shown as it is written, or not at all.

Every text from outside is ``planted``: markup, quotes, a line separator and the end of a script, with its place as an
id. A text field that is added to the configuration, the manifest or a record fails here until it is planted too.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from pydantic import BaseModel

from hand_run import SIZES, build_hand_run
from knowshift.errors import InputError
from knowshift.html.facts import unpacked
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT
from knowshift.reports.page.page import write_report
from knowshift.studies.config import StudyConfig, load_preset
from knowshift.studies.folder import write_manifest
from knowshift.studies.plan import Plan
from knowshift.studies.run import plan_of

MARK = "planted-"


def planted(place: str) -> str:
    return f'<b id="{MARK}{place}">&"\'\u2028</script>{place}'


#: Every field of the configuration that holds text; the page shows the whole configuration as JSON.
CONFIG_TEXTS = {
    "name",
    "model",
    "facts",
    "revision",
    "base",
    "base_revision",
    "instruct",
    "instruct_revision",
    "dtype",
    "device",
    "sizes",
    "mastery.stopping",
    "mastery.estimate",
    "mastery.servers",
    "mastery.dtype",
    "training.schedule",
    "variants",
    "bench.strategies",
    "bench.levels",
    "training.report_to",
    "restoration.criteria",
    "restoration.region",
    "restoration.tasks",
    "restoration.texts",
}
#: What a manifest holds: texts that the page shows, texts that it does not, and what is no text (read elsewhere here).
MANIFEST_SHOWN = {"knowshift", "name", "git_revision", "model.name", "model.identity", "model.dtype", "model.device"}
MANIFEST_SHOWN |= {"source.name", "source.digest"}
MANIFEST_OTHER = {"config", "packages", "cells", "timings", "model.weights", "source.facts", "source.probed"}
#: Text columns of records: those that the page shows, those that it does not, and those of a closed vocabulary.
SHOWN_COLUMNS = {
    "answers": {"relation", "question", "answer", "text"},
    "token_shift": {"reason"},
    "mastery": set(),
}
#: Text columns of answers that stand in the packed list of facts alone, as all of the shown ones do too.
PACKED_COLUMNS = {"fact"}
HIDDEN_COLUMNS = {
    "answers": {"fact", "reason"},
    "token_shift": {"fact", "relation", "prompt"},
    "mastery": {"fact", "relation"},
}
CLOSED_COLUMNS = {"split", "domain"}
SCHEMAS = {"answers": ANSWERS, "token_shift": TOKEN_SHIFT, "mastery": MASTERY}
#: Other texts that the page does not show.
HIDDEN = {"measure", "criterion of restored.json", "fraction of restored.json", "timing"}
#: The one text from outside that becomes part of a figure comes from the name of a file, whose letters are checked.
CRITERION = "a_-criterion"


def text_fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of the fields whose values are, or hold, texts."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= text_fields(field.annotation, f"{prefix}{name}.")
        elif holds_text(field.annotation):
            found.add(prefix + name)
    return found


def holds_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return any(isinstance(value, str) for value in get_args(annotation))
    return annotation is str or any(holds_text(part) for part in get_args(annotation))


def plant(tree: dict[str, Any], name: str) -> None:
    *outer, last = name.split(".")
    for part in outer:
        tree = tree[part]
    assert last in tree, name
    value: Any = planted(name)
    tree[last] = [value] if isinstance(tree[last], list) else value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "planted"
    build_hand_run(folder, draws=1)
    for kind, pattern in (
        ("answers", "*/*/answers*.parquet"),
        ("token_shift", "*/*/token_shift.parquet"),
        ("mastery", "*/*/mastery.parquet"),
    ):
        for file in (folder / "cells").glob(pattern):
            _plant_columns(file, kind)
    for number, file in enumerate(sorted((folder / "cells").glob("*/*/change.json"))):
        record = json.loads(file.read_text())
        record["layers"], record["modules"] = {planted("layer"): 0.5}, {planted("module"): 0.5}
        record["concentration"][planted("measure")] = {"0.2": 0.5}
        file.write_text(json.dumps(record, ensure_ascii=number % 2 == 0))
    for file in (folder / "cells").glob("*/*/restored.json"):
        record = json.loads(file.read_text())
        record["criteria"][planted("criterion of restored.json")] = {planted("fraction of restored.json"): 3}
        file.write_text(json.dumps(record))
        for answers in sorted(file.parent.glob("answers-random-*.parquet")):
            shutil.copy(answers, file.parent / answers.name.replace("random", CRITERION))
    _plant_manifest(folder / "manifest.json")
    write_report(folder)
    return folder


def _plant_columns(file: Path, kind: str) -> None:
    table = pq.read_table(file)
    for name in SHOWN_COLUMNS[kind] | HIDDEN_COLUMNS[kind]:
        place = table.schema.get_field_index(name)
        number = list(range(len(table)))
        values = [planted(f"{kind}.{name}") + (f" {i}" if name == "fact" else "") for i in number]
        if name == "fact":  # the same fact in every record
            values = [f"{planted(f'{kind}.fact')} {fact}" for fact in table["fact"].to_pylist()]
        if kind == "token_shift" and name == "reason":
            values = [v if kl is None else None for v, kl in zip(values, table["kl"].to_pylist(), strict=True)]
        table = table.set_column(place, table.schema.field(name), pa.array(values, pa.string()))
    pq.write_table(table, file)


def _plant_manifest(file: Path) -> None:
    manifest = json.loads(file.read_text())
    manifest["config"] = {**load_preset("tiny").as_record(), "sizes": list(SIZES)}
    manifest["config"]["training"]["learning_rate"] = 3e-4
    for name in sorted(CONFIG_TEXTS):
        plant(manifest["config"], name)
    manifest["model"] = dict.fromkeys(("name", "identity", "dtype", "device")) | {"weights": 3}
    manifest["source"] = dict.fromkeys(("name", "digest")) | {"facts": 57, "probed": 57}
    for name in sorted(MANIFEST_SHOWN):
        plant(manifest, name)
    manifest["packages"] = {planted("package"): planted("version")}
    manifest["timings"] = {planted("timing"): 1.5}
    for cell in manifest["cells"]:
        if cell["key"].get("control") and cell["key"]["level"] == 4:  # a variant
            cell["key"]["control"] = planted("control")
    manifest["cells"].append({"kind": "other", "digest": "0", "key": {"text": planted("key")}})
    (file.parent / "cells/other/0").mkdir(parents=True)
    file.write_text(json.dumps(manifest))


class Page(HTMLParser):
    """Elements with their attributes, and the text between them, as a browser reads it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.texts: list[str] = []
        self.inside: list[str] = []
        self.config = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))
        self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "pre":
            self.config += data
        else:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        assert MARK not in data


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_every_text_field_of_the_configuration_is_planted() -> None:
    assert text_fields(StudyConfig) == CONFIG_TEXTS


def test_every_entry_of_a_manifest_is_planted(tmp_path: Path) -> None:
    """A real manifest has the entries that are planted here, and no others."""
    config = load_preset("tiny")
    _, about = plan_of(config)
    write_manifest(tmp_path, config, Plan((), ()), about, {})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {*_entries(manifest)} == MANIFEST_SHOWN | MANIFEST_OTHER


def _entries(manifest: Mapping[str, Any]) -> list[str]:
    nested = [f"{part}.{name}" for part in ("model", "source") for name in manifest[part]]
    return [name for name in manifest if name not in ("model", "source")] + nested


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_text_column_of_a_record_is_planted(kind: str) -> None:
    texts = {field.name for field in SCHEMAS[kind] if pa.types.is_string(field.type)}
    assert texts == SHOWN_COLUMNS[kind] | HIDDEN_COLUMNS[kind] | (texts & CLOSED_COLUMNS)
    assert texts >= CLOSED_COLUMNS


def test_no_planted_text_becomes_an_element_or_an_attribute(page: Page) -> None:
    assert len(page.elements) > 500
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "link", "img", "form")
        for name, value in attributes:
            assert not name.startswith("on")
            assert MARK not in name + (value or "")
    # The list of facts: its data, its script, the link to a view.
    assert [attributes for tag, attributes in page.elements if tag == "script"] == [
        [("type", "application/octet-stream"), ("id", "facts-data")],
        [],
    ]
    assert [attributes for tag, attributes in page.elements if tag == "a"] == [[("id", "facts-link"), ("href", "#")]]
    written = [attributes for tag, attributes in page.elements if tag == "b"]
    assert written
    assert not any(written)  # the page's own bold texts have no attributes


SHOWN = {
    *MANIFEST_SHOWN,
    "package",
    "version",
    "layer",
    "module",
    *(f"{kind}.{name}" for kind, names in SHOWN_COLUMNS.items() for name in names),
}


@pytest.mark.parametrize("place", sorted(SHOWN))
def test_a_planted_text_is_shown_as_it_was_written(place: str, page: Page, run: Path) -> None:
    """Escaped once: read back by a parser, the text is the text; twice escaped it would hold "&lt;"."""
    assert any(planted(place) in text for text in page.texts)
    html = (run / "report.html").read_text(encoding="utf-8")
    text = planted(place)
    assert html.count(text) == 0
    assert html.count(escape(str(escape(text)))) == 0
    # In the configuration, which is JSON, the quote has a backslash before it.
    assert html.count(escape(text)) == html.count(f"{MARK}{place}&#34;") >= 1


def test_the_configuration_is_shown_letter_by_letter(page: Page, run: Path) -> None:
    assert json.loads(page.config) == json.loads((run / "manifest.json").read_text())["config"]
    for name in CONFIG_TEXTS:
        assert json.dumps(planted(name)) in page.config


def test_what_the_page_does_not_show_is_nowhere_in_it(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    # A fact's name stands in the list of facts, which a script makes texts of.
    assert f"{MARK}answers.fact" not in html
    hidden = HIDDEN | {f"{kind}.{name}" for kind, names in HIDDEN_COLUMNS.items() for name in names} | {"key"}
    assert {place for place in hidden if f"{MARK}{place}" in html} == set()
    hidden -= {f"answers.{name}" for name in PACKED_COLUMNS}
    assert {place for place in hidden if f"{MARK}{place}" in listed(html)} == set()


def listed(html: str) -> str:
    """The data of the list of facts, as text."""
    (data,) = re.findall(r'<script type="application/octet-stream" id="facts-data">([A-Za-z0-9+/=]+)</script>', html)
    return json.dumps(unpacked(data), ensure_ascii=False).replace('\\"', '"')


def test_the_list_of_facts_has_texts_as_they_were_written(run: Path) -> None:
    text = listed((run / "report.html").read_text(encoding="utf-8"))
    for name in SHOWN_COLUMNS["answers"] | PACKED_COLUMNS:
        assert planted(f"answers.{name}") in text
    assert planted("control") in text


def test_figures_are_xml_without_anything_planted(run: Path) -> None:
    files = sorted((run / "figures").glob("*.svg"))
    assert len(files) == 8
    for file in files:
        root = ET.fromstring(file.read_bytes())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert MARK not in file.read_text(encoding="utf-8")
        assert not any(element.tag.rpartition("}")[2] in ("script", "foreignObject", "a") for element in root.iter())
    texts = "".join(ET.fromstring((run / "figures/restoration.svg").read_bytes()).itertext())
    assert CRITERION in texts


def test_a_criterion_of_other_letters_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    file = next((again / "cells").glob("restoration/*/answers-random-0.2.parquet"))
    file.rename(file.with_name("answers-<b id=1>-0.2.parquet"))
    with pytest.raises(InputError, match=r"expected answers-CRITERION-FRACTION\.parquet") as told:
        write_report(again)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("kind", "digest"), [("<b>", "0"), ("evaluation", "<b>"), ("evaluation", "../x"), ("evaluation\u2028", "0")]
)
def test_a_cell_of_another_name_is_refused_in_one_line(kind: str, digest: str, tmp_path: Path) -> None:
    cells = [{"kind": kind, "digest": digest, "key": {}}]
    (tmp_path / "manifest.json").write_text(json.dumps({"cells": cells}))
    with pytest.raises(InputError, match="is not the name of a cell"):
        write_report(tmp_path)


def test_tables_hold_planted_texts_as_they_were_written(run: Path) -> None:
    for name, column in (("layers", "layer"), ("modules", "module")):
        with (run / f"tables/{name}.csv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert {row[column] for row in rows if row["source"] == "run"} == {planted(column)}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_finds_no_planted_element(run: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (run / "report.html").as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    dom = Page(said)
    assert any(planted("answers.text") in text for text in dom.texts)
    assert not any(MARK in (value or "") for _, attributes in dom.elements for _, value in attributes)
    assert sum(tag == "script" for tag, _ in dom.elements) == 2
