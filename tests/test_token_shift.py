"""Token shift: the formula against an independent one, and the selection of facts."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from knowshift import token_shift as token_shift_module
from knowshift.errors import InputError
from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.token_shift import (
    NOT_AT_START,
    ShiftItems,
    best_prompts,
    renormalised_kl,
    select_items,
    token_shift,
)
from knowshift.training.sft import TrainingRecipe, finetune

rows = st.lists(st.floats(-30, 30, width=32), min_size=10, max_size=10)


@given(rows, rows)
@settings(max_examples=80, deadline=None)
def test_kl_agrees_with_scipy_and_is_never_negative(tuned: list[float], base: list[float]) -> None:
    ours = float(renormalised_kl(torch.tensor(tuned), torch.tensor(base)))
    theirs = float(np.sum(rel_entr(softmax(np.float32(tuned).astype(float)), softmax(np.float32(base).astype(float)))))
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert ours >= -1e-12


def test_shifts_are_from_the_tuned_models_ten_largest(small_model: LoadedModel, small_world: Path) -> None:
    facts = load_facts(f"world:{small_world}").facts[:12]
    tuned = replace(small_model, model=copy.deepcopy(small_model.model))
    finetune(tuned, facts, TrainingRecipe(learning_rate=1e-3), seed=0)
    items = ShiftItems(facts, tuple(completion_prompts(fact)[2] for fact in facts), (True,) * 11 + (False,))
    shift = token_shift(small_model, tuned, items)
    assert shift.columns["reason"] == [None] * 11 + [NOT_AT_START]
    assert shift.columns["kl"][11] is None
    checked = 0
    for index in range(11):
        with torch.inference_mode():
            ids = tuned.tokenizer(tuning_prompt(facts[index].question), return_tensors="pt")["input_ids"]
            after = tuned.model(input_ids=ids).logits[0, -1]
            ids = tuned.tokenizer(items.prompts[index], return_tensors="pt")["input_ids"]
            before = small_model.model(input_ids=ids).logits[0, -1]
        best = torch.argsort(after, descending=True)[:10]
        assert shift.columns["ids"][index] == best.tolist()
        p, q = softmax(after[best].double().numpy()), softmax(before[best].double().numpy())
        assert shift.columns["kl"][index] == pytest.approx(float(np.sum(rel_entr(p, q))), rel=1e-4)
        checked += 1
    assert checked == 11
    assert shift.mean == pytest.approx(float(np.mean(shift.columns["kl"][:11])))


def test_a_model_has_no_shift_from_itself_on_one_prompt(small_model: LoadedModel, small_world: Path) -> None:
    fact = load_facts(f"world:{small_world}").facts[0]
    items = ShiftItems((fact,), (tuning_prompt(fact.question),), (True,))
    assert token_shift(small_model, small_model, items).columns["kl"] == [pytest.approx(0.0, abs=1e-9)]


def test_the_best_prompt_has_the_highest_rate_and_nothing_is_missing_silently(
    small_model: LoadedModel, small_world: Path
) -> None:
    facts = load_facts(f"world:{small_world}").facts
    two = [fact for fact in facts if fact.relation == "P19"][:2]
    hits = {two[0].id: [0, 3, 1], two[1].id: [5, 3, 0]}
    draws = {two[0].id: [10, 10, 10], two[1].id: [10, 10, 10]}
    assert best_prompts(two, hits, draws) == {"P19": 1}
    items = select_items(small_model, two, {"P19": 1})
    assert items.prompts == tuple(completion_prompts(fact)[1] for fact in two)
    assert len(items.begins) == 2
    with pytest.raises(InputError, match="prompts"):
        best_prompts(two, {two[0].id: [1], two[1].id: [1, 2]}, {two[0].id: [1], two[1].id: [1, 2]})


@pytest.fixture(scope="module")
def pair(small_world: Path) -> tuple[LoadedModel, LoadedModel, ShiftItems]:
    """A base, a tuned model, and twelve facts whose answers count as known."""
    base = load_model(str(small_world))
    tuned = replace(base, model=copy.deepcopy(base.model), name="tuned")
    facts = load_facts(f"world:{small_world}").facts[:12]
    finetune(tuned, facts, TrainingRecipe(learning_rate=1e-3), seed=0)
    return base, tuned, ShiftItems(tuple(facts), tuple(completion_prompts(fact)[2] for fact in facts), (True,) * 12)


def test_an_eos_that_a_tokenizer_appends_is_no_part_of_a_prompt(
    pair: tuple[LoadedModel, LoadedModel, ShiftItems],
) -> None:
    base, tuned, items = pair
    appending = copy.deepcopy(base.tokenizer)
    appending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert appending("a")["input_ids"] == [*base.tokenizer("a")["input_ids"], 2]
    ends = [replace(model, tokenizer=appending) for model in pair[:2]]
    assert token_shift(*ends, items).columns == token_shift(base, tuned, items).columns
    assert select_items(ends[0], items.facts[:1], {items.facts[0].relation: 2}) == select_items(
        base, items.facts[:1], {items.facts[0].relation: 2}
    )


def _saved_with_rows(folder: Path, tuned: LoadedModel, rows: int, *tokens: str) -> LoadedModel:
    """The tuned model with so many rows and more tokens; the new rows' logits are larger than all others."""
    model, tokenizer = copy.deepcopy(tuned.model), copy.deepcopy(tuned.tokenizer)
    tokenizer.add_tokens(list(tokens))
    size = model.config.vocab_size
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[size:] = 50 * model.get_output_embeddings().weight[size - 1]
        model.get_output_embeddings().weight[size::2] *= -1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder))


@pytest.mark.parametrize("tokens", [(), ("[PAD]", "novel")], ids=["padding rows", "added tokens"])
def test_rows_and_tokens_that_the_tuned_model_has_in_addition_take_no_part(
    pair: tuple[LoadedModel, LoadedModel, ShiftItems], tmp_path: Path, tokens: tuple[str, ...]
) -> None:
    base, tuned, items = pair
    expected = token_shift(base, tuned, items)
    larger = _saved_with_rows(tmp_path / "t", tuned, 704 if tokens else 768, *tokens)
    with torch.inference_mode():
        logits = larger.model(torch.tensor([larger.tokenizer(items.prompts[0])["input_ids"]])).logits[0, -1]
    assert int(logits.argmax()) >= 700
    shift = token_shift(base, larger, items)
    assert shift.columns["ids"] == expected.columns["ids"]
    assert shift.columns["kl"] == pytest.approx(expected.columns["kl"], rel=1e-4)
    back = token_shift(larger, base, items)
    assert back.columns["kl"] == pytest.approx(token_shift(tuned, base, items).columns["kl"], rel=1e-4)


def _named_otherwise(tokenizer: PreTrainedTokenizerFast, names: dict[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer with some of its tokens called something else."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["model"]["vocab"] = {names.get(token, token): number for token, number in told["model"]["vocab"].items()}
    told["model"]["merges"] = []
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)), bos_token="<s>", eos_token="</s>"
    )


def test_an_id_that_is_another_token_is_refused_by_name(small_model: LoadedModel) -> None:
    first = small_model.tokenizer.convert_tokens_to_ids("q")
    other = _named_otherwise(small_model.tokenizer, {"q": "qq", "z": "zz"})
    says = rf"tuned: id {first} is the token 'qq', in .* it is 'q'; token ids of different vocabularies"
    with pytest.raises(InputError, match=says):
        token_shift(small_model, replace(small_model, name="tuned", tokenizer=other), ShiftItems((), (), ()))


def test_too_few_shared_tokens_are_refused(small_model: LoadedModel) -> None:
    tiny = copy.deepcopy(small_model.model)
    tiny.resize_token_embeddings(9)
    with pytest.raises(InputError, match=r"shares 9 tokens with .*; expected 10 at least"):
        token_shift(small_model, replace(small_model, model=tiny), ShiftItems((), (), ()))


@pytest.mark.parametrize(("words", "tokens"), [(1, 3), (29, 31), (30, 32), (40, 32)])
def test_the_base_says_two_tokens_more_than_the_longest_answer_and_at_most_32(
    words: int, tokens: int, monkeypatch: pytest.MonkeyPatch, small_model: LoadedModel
) -> None:
    asked: list[int] = []

    def greedy(base: LoadedModel, prompts: list[str], *, max_new_tokens: int) -> list[str]:
        asked.append(max_new_tokens)
        return [" Ann" for _ in prompts]

    class Words:
        def plain(self, texts: list[str]) -> list[list[int]]:
            return [[0] * len(text.split()) for text in texts]

    monkeypatch.setattr(token_shift_module, "greedy", greedy)
    monkeypatch.setattr(LoadedModel, "encoder", Words())
    fact = Fact("f", "P19", "test", "in_domain", "s", "q", "a", aliases=(" ".join(["w"] * words),))
    assert select_items(small_model, [fact], {"P19": 0}).begins == (False,)
    assert asked == [tokens]
