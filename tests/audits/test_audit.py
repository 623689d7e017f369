"""An audit from command to page: two real models, a repair that loads, resuming, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import knowshift
from commands import Command
from hand_evidence import evidence, without
from knowshift.api import auditing
from knowshift.audits import candidates, repair, screening
from knowshift.audits.evidence import Answered
from knowshift.audits.page.compose import compose
from knowshift.audits.verdict import reach_verdict
from knowshift.cli import app
from knowshift.errors import InputError
from knowshift.facts.sources.load import FactSource, load_facts
from knowshift.models import loading
from knowshift.models.loading import LoadedModel, load_model
from knowshift.probing.budget.pace import Pace

#: The form that fine-tuning asks in.
FORMAT = "<|question|> {question} <|answer|>"
#: Facts asked: nearly all are lost, so a hundred tell it.
LIMIT = 104
#: Keys that scripts may rely on (DESIGN.md).
KEYS = {
    *("verdict", "points", "interval", "excluded", "counts", "noise", "chosen", "held_out", "page", "output"),
    *("weights", "token_shift", "forms", "relations", "levels", "mcnemar", "facts"),
}


@pytest.fixture(scope="module")
def at_once() -> list[int]:
    """How many models were in memory as each model of ``audited`` was loaded, that one included."""
    return []


@pytest.fixture(scope="module")
def audited(
    damaged: Path, keep: Path, at_once: list[int], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], int]:
    """The folder of an audit, its JSON object, and its exit status with ``--fail-above 2``."""
    folder = tmp_path_factory.mktemp("audits") / "audit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SWEEPS", (("interpolate", (0.5, 0.9), "layers"), ("random", (0.5,), "layers")))
        _watch(patch, at_once)
        options = {"limit": LIMIT, "keep": keep, "budget": None, "workers": 1, "prompt_format": FORMAT}
        done = knowshift.audit("world:tiny", damaged, "world:tiny", output_dir=folder, **options)
        command = ["audit", "world:tiny", str(damaged), "--facts", "world:tiny", "--output-dir", str(folder)]
        command += ["--limit", str(LIMIT), "--keep", str(keep), "--budget", "none"]
        command += ["--workers", "1", "--fail-above", "2"]
        command += ["--prompt-format", FORMAT]
        patch.setattr(sys, "argv", ["knowshift", *command])
        with pytest.raises(SystemExit) as ended:
            app.main()
    return folder, done.told, int(ended.value.code or 0)


def _watch(patch: pytest.MonkeyPatch, at_once: list[int]) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []
    real = loading.load_found

    def load(*given: Any, **more: Any) -> LoadedModel:
        found = real(*given, **more)
        loaded.append(weakref.ref(found.model))
        at_once.append(sum(model() is not None for model in loaded))
        return found

    patch.setattr(loading, "load_found", load)


@pytest.mark.usefixtures("audited")
def test_one_model_at_a_time_is_in_memory(at_once: list[int]) -> None:
    """The base, the tuned one, the base, the tuned one, and the repaired one; and again for what is recorded."""
    assert at_once[:5] == [1] * 5
    assert set(at_once) == {1}


def test_what_tuning_has_destroyed_is_lost_and_partly_repaired(audited: tuple[Path, dict[str, Any], int]) -> None:
    folder, told, status = audited
    assert set(told) >= KEYS
    assert told["verdict"] == "knowledge-lost"
    assert told["points"] < -5
    assert told["interval"][0] < told["points"] < told["interval"][1] < 0
    assert told["counts"]["lost"] > told["noise"]["lost"]
    assert sum(told["counts"].values()) == told["facts"] == LIMIT - 4  # four are shown as examples
    assert status == 3
    assert told["token_shift"]["asked"] == "your format"
    assert told["token_shift"]["kl_mean"] > 0.1
    assert told["chosen"] is not None
    assert told["left_out"] == []
    assert told["held_out"]["interval"][0] > 0
    assert json.loads((folder / "audit.json").read_text())["verdict"] == "knowledge-lost"


def test_the_repaired_model_loads_and_is_what_restoring_gives(
    audited: tuple[Path, dict[str, Any], int], damaged: Path, tmp_path: Path
) -> None:
    folder, told, _ = audited
    assert told["output"] == str(folder / "repaired")
    model = AutoModelForCausalLM.from_pretrained(told["output"])
    criterion, fraction, _ = told["chosen"].split()
    knowshift.restore("world:tiny", damaged, output_dir=tmp_path / "r", criterion=criterion, fraction=float(fraction))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "r")
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), theirs.parameters(), strict=True))
    card = (folder / "repaired" / "README.md").read_text()
    assert told["chosen"] in card
    assert "Not measured" in card
    assert (folder / "repaired" / "knowshift.json").exists()


@pytest.mark.slow
def test_a_purpose_that_the_tuned_model_does_not_serve_repairs_nothing(damaged: Path, tmp_path: Path) -> None:
    """And a file of too few words is said in the page, after all that was measured."""
    table = tmp_path / "nonsense.csv"
    table.write_text("question,answer\n" + "".join(f"What is {i}?,zzqx\n" for i in range(60)))
    text = tmp_path / "short.txt"
    text.write_text("hi")
    options: dict[str, Any] = {"limit": 60, "budget": None, "workers": 1, "output_dir": tmp_path / "audit"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SWEEPS", (("interpolate", (0.5,), "layers"),))
        for kept, words in ((table, "does not show what the tuning was for"), (text, "tokens; expected")):
            found = knowshift.audit("world:tiny", damaged, "world:tiny", keep=kept, **options)
            assert found.told["chosen"] is None
            assert found.output is None
            assert not (tmp_path / "audit" / "repaired").exists()
            assert words in found.page.read_text()


def test_the_page_says_it_first_and_needs_no_network(audited: tuple[Path, dict[str, Any], int]) -> None:
    text = (audited[0] / "audit.html").read_text()
    assert text.index("<h1>Knowledge was lost</h1>") < text.index("<h2>")
    assert "Repaired by" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert " src=" not in text


def test_the_same_call_goes_on_and_another_is_refused(
    audited: tuple[Path, dict[str, Any], int], damaged: Path, keep: Path
) -> None:
    folder = audited[0]
    records = {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}
    assert {"base.parquet", "base-again.parquet", "tuned.parquet"} <= set(records)
    options: dict[str, Any] = {"limit": LIMIT, "keep": keep, "budget": None, "workers": 1, "output_dir": folder}
    with pytest.raises(InputError, match=r"holds another audit \(seed '0', now '1'\)"):
        knowshift.audit("world:tiny", damaged, "world:tiny", seed=1, **options)
    with pytest.raises(InputError, match="holds another audit"):
        knowshift.audit("world:tiny", "world:tiny", "world:tiny", **options)
    assert records == {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}


def test_an_audit_that_is_killed_goes_on(damaged: Path, tmp_path: Path) -> None:
    few = "from knowshift.audits import candidates\ncandidates.SWEEPS = candidates.SWEEPS[3:4]"
    words = ["audit", "world:tiny", str(damaged), "--facts", "world:tiny", "--json"]
    words += ["--limit", "24", "--budget", "none", "--workers", "1", "--output-dir", str(tmp_path / "audit")]
    first = Command(words, before=few)
    record = tmp_path / "audit" / "records" / "base.parquet"
    for _ in range(1200):
        if record.exists():
            break
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(60)
    written = record.stat().st_mtime_ns
    again = Command(words, before=few)
    out, err = again.communicate(300)
    assert again.returncode == 0, err
    told = json.loads(out)
    assert record.stat().st_mtime_ns == written
    assert told["verdict"] in ("knowledge-lost", "cannot-tell")
    assert told["chosen"] is None
    assert "--keep" in err


@pytest.mark.slow
def test_an_audit_with_a_budget_goes_on_with_the_same_facts(small_world: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"output_dir": tmp_path / "audit", "budget": "60s", "workers": 1, "repair": False}
    first = knowshift.audit(str(small_world), small_world, f"world:{small_world}", **options)
    again = knowshift.audit(str(small_world), small_world, f"world:{small_world}", **options)
    assert again.told["counts"] == first.told["counts"]
    assert first.told["budget"]["seconds"] == again.told["budget"]["seconds"]


def test_a_budget_goes_to_facts_that_are_likely_known(tmp_path: Path) -> None:
    """A first look chooses as many of them as of others, by relation; and a call that goes on asks the same."""
    facts = [fact for fact in load_facts("world:tiny").facts if fact.relation in ("P17", "P19")][:240]
    source = FactSource("world:tiny", tuple(facts))
    options: dict[str, Any] = {"output_dir": tmp_path / "audit", "budget": "5m", "workers": 1, "repair": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "next_size", lambda self, left: 0)
        patch.setattr(Pace, "fitting", lambda self, left, facts: min(facts, 39))
        found = knowshift.audit("world:tiny", "world:tiny", source, **options)
    look, screened = found.told["first_look"], found.evidence.screened
    assert screened is not None
    promises = json.loads((tmp_path / "audit" / "records" / "screen.json").read_text())["promises"]
    likely_known = sum(promise >= screening.LIKELY for promise in promises.values())
    assert look["facts"] == len(promises) > 40
    assert look["likely_known"] == len(screened.likely) == likely_known > 20
    assert look["likely_known_asked"] == 20  # of 40, by turns
    likely = np.array([fact.id in screened.likely for fact in found.evidence.facts])
    assert found.evidence.first.rate[likely].mean() > 2 * found.evidence.first.rate[~likely].mean()
    shift = found.told["token_shift"]
    assert shift["facts"] > 0
    assert shift["kl_mean"] == pytest.approx(0, abs=1e-9)  # the base against itself, in the same prompt
    assert f"by a first look at {len(promises)}" in found.verdict.sentences[0]
    again = knowshift.audit("world:tiny", "world:tiny", source, **options)
    assert [fact.id for fact in again.evidence.facts] == [fact.id for fact in found.evidence.facts]


def test_a_look_without_time_leaves_nothing_out(tmp_path: Path) -> None:
    """Facts that it has not seen are others, which are asked too."""
    facts = tuple(load_facts("world:tiny").facts[:150])
    source = FactSource("world:tiny", facts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "next_size", lambda self, left: 0)
        patch.setattr(Pace, "fitting", lambda self, left, facts: min(facts, 29))
        patch.setattr(screening, "SHORTEST", 0.0)
        patch.setattr(screening, "SHARE", 1e-9)
        found = knowshift.audit(
            "world:tiny", "world:tiny", source, output_dir=tmp_path / "a", budget="5m", workers=1, repair=False
        )
        assert found.told["first_look"] is None
        assert len(found.evidence.facts) == 30
        # Nor does a later call look where this one, like those before there was a look, has measured without.
        (tmp_path / "a" / "records" / "screen.json").unlink()
        patch.setattr(screening, "SHARE", 0.5)
        again = knowshift.audit(
            "world:tiny", "world:tiny", source, output_dir=tmp_path / "a", budget="5m", workers=1, repair=False
        )
    assert [fact.id for fact in again.evidence.facts] == [fact.id for fact in found.evidence.facts]


def test_what_fails_after_the_choice_is_told_on_the_page(
    audited: tuple[Path, dict[str, Any], int], damaged: Path, keep: Path, tmp_path: Path
) -> None:
    shutil.copytree(audited[0], tmp_path / "audit")
    (tmp_path / "audit" / "records" / "repair.json").write_text("{}")  # damaged, so it is looked for again
    options: dict[str, Any] = {"limit": LIMIT, "keep": keep, "budget": None, "workers": 1, "prompt_format": FORMAT}

    def full(*given: Any) -> Any:
        raise InputError("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SWEEPS", (("interpolate", (0.5,), "layers"),))
        patch.setattr(repair.Search, "confirm", full)
        found = knowshift.audit("world:tiny", damaged, "world:tiny", output_dir=tmp_path / "audit", **options)
    assert "Not repaired: no space left." in found.page.read_text()
    assert found.told["not_repaired"] == "no space left"
    assert sorted(path.name for path in (tmp_path / "audit").iterdir() if path.is_dir()) == ["records"]


def test_an_adapter_alone_brings_its_base(small_world: Path, tmp_path: Path) -> None:
    loaded = load_model(str(small_world))
    loaded.model.name_or_path = str(small_world)
    tuned = get_peft_model(loaded.model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    tuned.peft_config["default"].base_model_name_or_path = str(small_world)
    tuned.save_pretrained(tmp_path / "adapter")
    options: dict[str, Any] = {"output_dir": tmp_path / "audit", "budget": None, "workers": 1}
    found = knowshift.audit(None, tmp_path / "adapter", f"world:{small_world}", **options)
    assert found.told["counts"]["lost"] == found.told["counts"]["gained"] == 0  # a new adapter changes nothing
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "revision": "abc"}))
    for given, used in ((None, "abc"), ("def", "def")):
        pair, _ = auditing._pair(None, tmp_path / "adapter", None, given, "cpu", None, 1, 1)
        assert pair.base.revision == pair.tuned.base_revision == used


@pytest.mark.slow
def test_an_adapter_is_repaired_as_an_adapter(damaged: Path, keep: Path, tmp_path: Path) -> None:
    """The same tuning as products of two matrices; its repair is read by PEFT and is what the audit has confirmed."""
    base = load_model("world:tiny")
    after = load_model(str(damaged)).model.state_dict()
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=modules, r=48, lora_alpha=48)
    config.base_model_name_or_path = "world:tiny"
    adapted = get_peft_model(base.model, config)
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            own = f"{name.removeprefix('base_model.model.')}.weight"
            left, sizes, right = torch.linalg.svd(after[own].float() - module.base_layer.weight.data.float())
            module.lora_B["default"].weight.data = left[:, :48] * sizes[:48]
            module.lora_A["default"].weight.data = right[:48].clone()
    adapted.save_pretrained(tmp_path / "adapter")
    options: dict[str, Any] = {"limit": LIMIT, "keep": keep, "budget": None, "workers": 1, "prompt_format": FORMAT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "SWEEPS", (("interpolate", (0.5,), "layers"),))
        found = knowshift.audit(None, tmp_path / "adapter", "world:tiny", output_dir=tmp_path / "audit", **options)
    assert found.told["chosen"] == "interpolate 0.5 (layers)"
    assert found.output is not None
    assert not (found.output / "model.safetensors").exists()
    assert "It is an adapter" in (found.output / "README.md").read_text()
    first, half = (
        PeftModel.from_pretrained(load_model("world:tiny").model, folder).merge_and_unload().state_dict()
        for folder in (tmp_path / "adapter", found.output)
    )
    before = load_model("world:tiny").model.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(half[name], (tensor + first[name]) / 2, rtol=1e-4, atol=1e-5)
    again = load_model(str(found.output), base="world:tiny").model.state_dict()
    for name in before:  # merged here, rounded to what the base is stored in
        torch.testing.assert_close(again[name], half[name], rtol=2**-8, atol=1e-5)


def test_models_that_do_not_fit_together_are_measured_and_not_repaired(small_world: Path, tmp_path: Path) -> None:
    found = knowshift.audit(
        "world:tiny", small_world, "world:tiny", output_dir=tmp_path / "audit", limit=40, budget=None, workers=1
    )
    assert found.repair is None
    assert found.output is None
    assert found.told["not_repaired"]
    assert "Not repaired:" in (tmp_path / "audit" / "audit.html").read_text()


def test_bad_input_is_refused_before_anything_runs(small_world: Path, tmp_path: Path) -> None:
    def refused(words: str, base: Any = str(small_world), tuned: Any = str(small_world), **options: Any) -> None:
        given = {"output_dir": tmp_path / "audit", "budget": None, **options}
        with pytest.raises(InputError, match=words):
            knowshift.audit(base, tuned, f"world:{small_world}", **given)
        assert not (tmp_path / "audit" / "records").exists()

    refused("no adapter, so its base is not known; expected BASE TUNED", base=None)
    refused(r"expected \{question\} in it", prompt_format="Tell me")
    refused("budget 'soon': expected a time", budget="soon")
    refused("one is a server", base="http://localhost:1")
    refused("no such file", keep=tmp_path / "none.csv")
    refused("no such file", keep=tmp_path / "none.txt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    refused("is not empty and is not an audit", output_dir=tmp_path / "full")
    assert (tmp_path / "full" / "mine").exists()


def test_texts_of_models_are_data_on_the_page() -> None:
    """Answers and questions with markup in them stand on the page as text."""
    found = without(evidence(), 0.5, ("completion", "question"), sampled=True)
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    facts = [replace(fact, question=hostile, answer=hostile, relation="<b>r</b>") for fact in found.facts]
    texts = [hostile] * len(facts)
    right = np.zeros(len(facts), dtype=bool)
    forms = [Answered("question", texts, texts, right, right)]
    found = replace(found, facts=facts, forms=forms)
    about = {"base": hostile, "tuned": hostile, "source": hostile, "facts": len(facts)}
    page = compose(found, reach_verdict(found), None, hostile, Path(hostile), None, about)
    assert "<script>alert" not in page
    assert page.count("<script") == 2  # the data of the list, and what shows it
    assert "<img" not in page
    assert "<b>r" not in page
    assert "&lt;script&gt;" in page


def test_repairs_for_which_no_time_is_left_are_tried_by_the_same_call(small_world: Path, tmp_path: Path) -> None:
    """A budget that measuring has used up; and one that does for a few of them."""
    options: dict[str, Any] = {"output_dir": tmp_path / "audit", "budget": "60s", "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("knowshift.api.auditing.REPAIRED_BY", 0.0)
        found = knowshift.audit(str(small_world), small_world, f"world:{small_world}", **options)
        assert found.repair is None
        assert "Not repaired: no time of the budget was left; the same command" in found.page.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair, "sweeps_for", lambda fit, coarse: [("interpolate", (0.2, 0.3), "layers")])
        found = knowshift.audit(str(small_world), small_world, f"world:{small_world}", **options)
    assert found.told["left_out"][1] == "interpolate 0.3, 0.5, 0.7 (mlp)"
    assert "The budget left no time for: interpolate 0.1, 0.4, 0.5" in found.page.read_text()
