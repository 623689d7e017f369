"""Whose published numbers stand beside a run: its own model's, where the paper prints them, else LLaMA-3-8B's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from knowshift.html.grid import Grid
from knowshift.reports.page.page import compose
from knowshift.reports.page.paper import Section, introduction, sections
from knowshift.reports.published import MODELS, paper_model, published
from knowshift.reports.tables.build import Tables
from knowshift.studies.config import load_preset
from page_text import compact

PRESETS = {model.lower(): model for model in MODELS}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((load_preset(preset).model, model) for preset, model in PRESETS.items()),
        ("meta-llama/Llama-2-7b", "LLaMA-2-7B"),
        ("/models/Meta-Llama-3-70B/", "LLaMA-3-70B"),
        ("llama-3-8b", "LLaMA-3-8B"),
        # Trained further, or others.
        ("meta-llama/Meta-Llama-3-8B-Instruct", None),
        ("meta-llama/Llama-2-7b-chat-hf", None),
        ("meta-llama/Llama-3.1-8B", None),
        ("meta-llama/Llama-2-7b-hf/adapter", None),
        ("world:tiny", None),
        ("", None),
    ],
)
def test_which_of_the_papers_models_a_name_is(name: str, model: str | None) -> None:
    assert paper_model(name) == model


def test_every_published_model_has_its_name() -> None:
    found = {row["model"] for table in ("mastery_distribution", "accuracy_1920") for row in published(table)}
    assert found == set(MODELS)


def section_of(tables: Tables, name: str, own: str | None) -> Section:
    (found,) = (section for section in sections(tables, own) if section.name == name)
    return found


def notes(grid: Grid, *about: str) -> list[str]:
    """The small notes of the row that begins so."""
    (row,) = (row for row in grid.rows if tuple(entry.text for entry in row[: len(about)]) == about)
    return [entry.note for entry in row[len(about) :]]


@pytest.mark.parametrize(
    ("own", "shown", "numbers"),
    [
        ("LLaMA-3-70B", "LLaMA-3-70B", ["(3.7)", "(22.7)", "(47.3)", "(58.0)", "(72.1)"]),
        ("LLaMA-3-8B", "LLaMA-3-8B", ["(1.8)", "(16.1)", "(55.0)", "(71.1)", "(83.5)"]),
        ("LLaMA-2-7B", "LLaMA-3-8B, as the paper has none of LLaMA-2-7B here", ["(1.8)", "(16.1)", "(55.0)"]),
        (None, "LLaMA-3-8B", ["(1.8)", "(16.1)", "(55.0)"]),
    ],
)
def test_accuracy_stands_beside_the_runs_own_model(
    own: str | None, shown: str, numbers: list[str], hand_tables: Tables
) -> None:
    section = section_of(hand_tables, "paper_accuracy", own)
    assert f"small: {shown}. The paper prints" in section.note
    assert notes(section.grid, "1,920", "in-domain", "0")[: len(numbers)] == numbers
    # At 240 the paper prints a mean, of one model: no table mixes two.
    assert notes(section.grid, "240", "in-domain", "0")[-1] == ("" if own == "LLaMA-3-70B" else "(55.3)")


def test_mastery_of_the_runs_own_model_follows_the_run(hand_tables: Tables) -> None:
    for own in (*MODELS, None):
        rows = section_of(hand_tables, "paper_mastery", own).grid.rows
        models = [row[1].text for row in rows]
        assert models[::6] == ["this run"] * 3
        assert models[1::6] == [own or "LLaMA-3-8B"] * 3
        assert sorted(models[:6]) == sorted(["this run", *MODELS])


def test_where_the_own_model_is_not_printed_another_stands_with_its_name(hand_tables: Tables) -> None:
    for name in ("paper_concentration", "paper_restoration"):
        section, as_ever = (section_of(hand_tables, name, own) for own in ("LLaMA-2-13B", None))
        assert "small: LLaMA-3-8B, as the paper has none of LLaMA-2-13B here." in section.note
        assert section.grid == as_ever.grid
    for name in ("layers", "modules"):
        assert list(section_of(hand_tables, name, "LLaMA-2-13B").grid.head)[-1] == "LLaMA-3-8B"


def test_the_page_names_the_model_beside(hand_tables: Tables) -> None:
    def page(model: str) -> str:
        run = hand_tables.evidence.run
        about = replace(run, manifest={**run.manifest, "model": {"name": model}})
        return compact(compose(replace(hand_tables, evidence=replace(hand_tables.evidence, run=about)), {}))

    own = page("meta-llama/Meta-Llama-3-70B")
    assert f"<p>{introduction('LLaMA-3-70B')} Every table lies in" in own
    assert "small: LLaMA-3-70B. The paper prints" in own
    assert (
        "whose model is LLaMA-3-70B, and beside it what Ye et al. (2025) print of that model, and of LLaMA-3-8B" in own
    )
    assert "print of that model. Every table" in page("meta-llama/Meta-Llama-3-8B")
    other = page("a/model")
    assert f"<p>{introduction(None)} Every table lies in" in other
    assert "small: LLaMA-3-8B. The paper prints" in other
