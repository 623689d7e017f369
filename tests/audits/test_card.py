"""The model card of a repair: names with markup in them are text, folders stay unknown; a repair's record is whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from knowshift.api.pushing import without_folders
from knowshift.audits.candidates import Candidate
from knowshift.audits.purposes.purpose import Described
from knowshift.audits.repair import Repair, Scores, repair_of
from knowshift.audits.told import card, card_of

HOSTILE = (
    "x` [a](http://b) <script>alert(1)</script>\n---\nlicense: mit\n# B ``` ![i](j) \x1b[31m &amp; 'q' \"p\": {y} *z*"
)


def repair(name: str = "keep.csv", *, text: bool = False) -> Repair:
    """One that was confirmed: from 40% to 60% of the facts known, from 80% to 70% of the items."""

    def scores(known: float, kept: float) -> Scores:
        return Scores((np.arange(20) < 20 * known).astype(float), (np.arange(10) < 10 * kept).astype(float))

    before, after = scores(0.4, 0.8), scores(0.6, 0.7)
    chosen = Candidate("interpolate", 0.3, "layers")
    purpose = Described(name, 0.1 if text else 0.02, text, 1)
    gain = after.minus(before)
    return Repair([(None, before), (chosen, after)], purpose, gain, chosen, (before, after, gain), True, ["dg-hard"])


def tokens(text: str) -> list[str]:
    """Kinds of all that a Markdown reader finds below the metadata."""
    found = MarkdownIt("commonmark").parse(ModelCard(text).text)
    return [one.type for token in found for one in (token, *(token.children or ()))]


def test_metadata_are_those_of_a_hub() -> None:
    text = card(repair(), {"base": "meta-llama/Llama-3.2-1B", "tuned": "/home/ann/secret/my-model"})
    found = ModelCard(text).data
    assert found.base_model == "meta-llama/Llama-3.2-1B"
    assert found.library_name == "transformers"
    assert found.tags == ["knowshift", "interpolate"]
    assert [(one.metric_value, one.metric_type, one.verified) for one in found.eval_results] == [
        (0.6, "accuracy", False),
        (0.7, "accuracy", False),
    ]
    assert "ann" not in text
    assert "secret" not in text
    assert "# `my-model`, repaired by knowshift" in text
    assert "40.0% as tuned, 60.0% repaired (20 facts)" in text
    of_a_text = ModelCard(card(repair("keep.txt", text=True), {"base": "gpt2", "tuned": "a/b"})).data
    assert [one.metric_type for one in of_a_text.eval_results] == ["accuracy", "loglikelihood-gain"]
    assert of_a_text.base_model == "gpt2"


@pytest.mark.parametrize("base", ["world:tiny", "world:/home/ann/w", "/home/ann/w", "./w", "~/w", "../w", "a/b/c"])
def test_a_base_that_is_not_on_the_hub_is_not_linked(base: str) -> None:
    text = card(repair(), {"base": base, "tuned": "b/c"})
    assert ModelCard(text).data.base_model is None
    assert "/home" not in text
    assert f"on `{base if base == 'world:tiny' else Path(base).name}` was undone" in text


def test_a_folder_of_the_name_of_a_hub_model_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = card(repair(), {"base": "owner/model", "tuned": "."})
    assert ModelCard(text).data.base_model is None
    assert f"# `{tmp_path.name}`" in text


def test_lines_that_load_it() -> None:
    names = {"base": "a/b", "tuned": "c/d"}
    whole, adapter = card(repair(), names), card(repair(), names, adapter=True)
    assert 'AutoModelForCausalLM.from_pretrained("repaired")' in whole
    assert 'AutoPeftModelForCausalLM.from_pretrained("repaired")' in adapter
    assert ModelCard(adapter).data.library_name == "peft"
    pushed = card_of(adapter, "ann/x")
    assert 'AutoPeftModelForCausalLM.from_pretrained("ann/x")' in pushed
    assert '"repaired"' not in pushed
    local = card_of(card(repair(), {"base": "/home/ann/secret", "tuned": "c/d"}, adapter=True), "ann/x")
    assert 'PeftModel.from_pretrained(base, "ann/x")' in local  # its configuration names nothing that others have
    assert "AutoPeft" not in local
    assert "home" not in local


def test_configurations_that_are_pushed_name_no_folder() -> None:
    held = {"r": 4, "base_model_name_or_path": "/home/ann/base", "_name_or_path": "", "inner": [{"folder": "~/x/y"}]}
    told = {"r": 4, "base_model_name_or_path": "base", "_name_or_path": "", "inner": [{"folder": "y"}]}
    assert without_folders(held) == told
    on_hub = {"base_model_name_or_path": "meta-llama/Llama-3.2-1B", "revision": None}
    assert without_folders(on_hub) == on_hub


def hold(name: str) -> None:
    """With this name everywhere, the card has the same metadata and the same parts as with a plain one."""
    plain = card(repair(), {"base": "/b", "tuned": "/c"})
    text = card(repair(name), {"base": f"/{name}", "tuned": f"./{name}"})
    assert tokens(text) == tokens(plain)
    assert list(yaml.safe_load(text.split("\n---\n")[0])) == list(yaml.safe_load(plain.split("\n---\n")[0]))
    assert len(ModelCard(text).data.eval_results) == 2
    assert "\x1b" not in text


def test_markup_in_names_is_text() -> None:
    hold(HOSTILE)
    for name in ("`", "``", "a`", "`a", " ", "a\n\n# b", "---", "</code>", "\\`", "- x", "null", "\u202e", "\ud800"):
        hold(name)


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40))
def test_no_name_breaks_the_card(name: str) -> None:
    hold(name)


@pytest.mark.parametrize("text", [False, True])
def test_a_repair_is_whole_after_its_record(text: bool) -> None:
    first = repair(text=text)
    again = repair_of(json.loads(json.dumps(first.record())))
    assert json.dumps(again.record()) == json.dumps(first.record())
    assert again.purpose == first.purpose
    assert (again.chosen, again.served, again.confirmed) == (first.chosen, first.served, True)
    assert again.held_out is not None
    assert again.held_out[1].known.tolist() == [1.0] * 12 + [0.0] * 8
