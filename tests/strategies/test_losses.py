"""Losses of a token, against formulas in float64 that share no code with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from knowshift.errors import InputError
from knowshift.facts.fact import Fact, tuning_prompt, tuning_target
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel
from knowshift.training.one_row import IGNORED, OneRow
from knowshift.training.sft import TrainingRecipe, encode_examples, finetune
from knowshift.training.shown import examples_in, shown_rows
from knowshift.training.strategy import Scored, Strategy
from knowshift.tuning.loss.asft import Asft
from knowshift.tuning.loss.dft import Dft
from knowshift.tuning.loss.eaft import Eaft, entropy_share
from knowshift.tuning.loss.kl import Kl, KlTen
from knowshift.tuning.loss.self_distillation import SelfDistillation
from knowshift.tuning.loss.stm import Stm, perplexities
from knowshift.tuning.run import reference_of

Array = NDArray[np.float64]
SEEDS = st.integers(0, 10_000)


def scored(seed: int, *, vocabulary: int = 40, same: bool = False) -> Scored:
    """Seven tokens with random logits, some of them large."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, vocabulary, generator=rng) * torch.tensor([0.1, 1, 2, 4, 8, 16, 1])[:, None]
    base = logits.clone() if same else torch.randn(7, vocabulary, generator=rng) * 3
    targets = torch.randint(vocabulary, (7,), generator=rng)
    return Scored(logits.requires_grad_(), targets, lambda: base, lambda: base)


def log_softmax(logits: Tensor) -> Array:
    values = logits.detach().numpy().astype(np.float64)
    return (
        values - values.max(-1, keepdims=True) - np.log(np.exp(values - values.max(-1, keepdims=True)).sum(-1))[:, None]
    )


def of_targets(given: Scored) -> Array:
    """log s(y)."""
    return log_softmax(given.logits)[np.arange(7), given.targets.numpy()]


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_kl_over_ten_tokens(seed: int) -> None:
    seen = scored(seed)
    expected = []
    for here, there in zip(seen.logits.detach().numpy(), seen.base().numpy(), strict=True):
        best = np.argsort(-here)[:10]
        p, q = (np.exp(np.float64(one[best]) - one[best].max()) for one in (here, there))
        p, q = p / p.sum(), q / q.sum()
        expected.append(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
    found = KlTen(weight=0.3).losses(seen).detach().numpy()
    np.testing.assert_allclose(found, -of_targets(seen) + 0.3 * np.array(expected), rtol=1e-4, atol=1e-4)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_asft_is_dft_and_the_kl_from_the_base_and_weights_have_no_gradient(seed: int) -> None:
    seen = scored(seed)
    s, p = log_softmax(seen.logits), log_softmax(seen.base())
    chosen = of_targets(seen)
    loss = Asft(weight=0.2).losses(seen)
    expected = -np.exp(chosen) * chosen + 0.2 * (np.exp(p) * (p - s)).sum(-1)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), seen.logits)
    one_hot = np.eye(s.shape[1])[seen.targets.numpy()]
    by_hand = np.exp(chosen)[:, None] * (np.exp(s) - one_hot) + 0.2 * (np.exp(s) - np.exp(p))
    np.testing.assert_allclose(gradient.numpy(), by_hand, rtol=1e-3, atol=1e-5)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_eaft_weighs_by_the_entropy_of_the_likeliest(seed: int) -> None:
    seen = scored(seed)
    weights = []
    for row in seen.logits.detach().numpy().astype(np.float64):
        best = np.sort(row)[::-1][:20]
        p = np.exp(best - best.max()) / np.exp(best - best.max()).sum()
        weights.append(-sum(one * np.log(one) for one in p if one > 0) / np.log(20))
    loss = Eaft(power=2.0).losses(seen)
    np.testing.assert_allclose(loss.detach().numpy(), np.array(weights) ** 2 * -of_targets(seen), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), seen.logits)
    one_hot = np.eye(40)[seen.targets.numpy()]
    by_hand = np.array(weights)[:, None] ** 2 * (np.exp(log_softmax(seen.logits)) - one_hot)
    np.testing.assert_allclose(gradient.numpy(), by_hand, rtol=1e-3, atol=1e-5)


def test_the_entropy_is_1_where_all_are_equal_and_0_where_one_is_sure() -> None:
    logits = torch.zeros(2, 30)
    logits[1, 4] = 200
    assert entropy_share(logits, 20).tolist() == [pytest.approx(1.0), 0.0]
    assert entropy_share(logits[:, :5], 20).tolist() == [pytest.approx(1.0), 0.0]  # fewer tokens than asked


@pytest.mark.parametrize("strategy", [Kl(weight=0.0), KlTen(weight=0.0), Eaft(power=0.0)])
def test_without_weight_it_is_the_plain_loss_bit_for_bit(strategy: Kl | Eaft) -> None:
    seen = scored(3)
    assert torch.equal(strategy.losses(seen), cross_entropy(seen.logits, seen.targets, reduction="none"))


@pytest.mark.parametrize("strategy", [Kl(weight=5.0), KlTen(weight=5.0)])
def test_a_model_that_is_the_base_has_no_kl(strategy: Kl) -> None:
    seen = scored(4, same=True)
    assert torch.equal(strategy.losses(seen), cross_entropy(seen.logits, seen.targets, reduction="none"))
    assert SelfDistillation().losses(seen).tolist() == [0.0] * 7
    assert torch.equal(Asft(weight=5.0).losses(seen), Asft(weight=0.0).losses(seen))


@dataclass(frozen=True)
class Plain(Strategy):
    """The plain loss, given as a loss of each token."""

    def losses(self, seen: Scored) -> Tensor:
        return cross_entropy(seen.logits, seen.targets, reduction="none")


Knowing = tuple[LoadedModel, KnownFacts]
RECIPE = TrainingRecipe(learning_rate=3e-3, epochs=1, shared_prefix=True)


def trained(knowing: Knowing, strategy: Strategy, recipe: TrainingRecipe = RECIPE) -> tuple[dict[str, Any], Any]:
    """The record and the weights of a training on sixteen facts."""
    model = replace(knowing[0], model=copy.deepcopy(knowing[0].model))
    facts = knowing[1].of("train", 0)[:16]
    record = finetune(model, facts, recipe, seed=3, strategy=strategy, base=reference_of(model, strategy))
    return record, model.model.state_dict()


def test_a_training_without_weight_is_a_plain_one_bit_for_bit(knowing: Knowing) -> None:
    record, weights = trained(knowing, Plain())
    for strategy in (Kl(weight=0.0), Eaft(power=0.0)):
        again, same = trained(knowing, strategy)
        assert again == record
        assert all(torch.equal(weights[name], same[name]) for name in weights)
    by_trl, _ = trained(knowing, Strategy())
    assert by_trl["losses"] == pytest.approx(record["losses"], rel=1e-4)


def test_the_loss_of_trl_is_the_formula(knowing: Knowing) -> None:
    by_trl, weights = trained(knowing, Dft())
    ours, same = trained(knowing, Asft(weight=0.0))
    assert by_trl["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert all(torch.allclose(weights[name], same[name], atol=1e-4) for name in weights)


def test_perplexities_are_those_of_each_example_alone(knowing: Knowing) -> None:
    model, facts = knowing[0], knowing[1].of("train")[:12]
    examples = encode_examples(model, [fact.question for fact in facts], [fact.answer for fact in facts])
    for example, found in zip(examples, perplexities(model, examples), strict=True):
        with torch.no_grad():
            rows = log_softmax(model.model(torch.tensor([example["input_ids"]])).logits[0])
        places = [place for place, label in enumerate(example["labels"]) if label != IGNORED]
        expected = [np.exp(-rows[place - 1, example["input_ids"][place]]) for place in places]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def masked(knowing: Knowing, threshold: float) -> tuple[list[Any], list[Any], list[list[float]]]:
    model, facts = knowing[0], knowing[1].of("train", 0)[:16]

    def usual(questions: Sequence[str], answers: Sequence[str], ask: Callable[[str], str] = tuning_prompt) -> Any:
        return encode_examples(model, questions, answers, ask)

    plain = encode_examples(model, [fact.question for fact in facts], [fact.answer for fact in facts])
    return Stm(threshold=threshold).examples(model, facts, usual), plain, perplexities(model, plain)


def test_tokens_above_the_threshold_have_no_loss(knowing: Knowing) -> None:
    _, _, values = masked(knowing, float("inf"))
    threshold = float(np.median(np.concatenate(values)))
    found, plain, _ = masked(knowing, threshold)
    kept = 0
    for one, other, known in zip(found, plain, values, strict=True):
        assert one["input_ids"] == other["input_ids"]
        start = len(known)
        assert one["labels"][:-start] == other["labels"][:-start]
        for label, value, before in zip(one["labels"][-start:], known, other["labels"][-start:], strict=True):
            assert label == (before if value <= threshold else IGNORED)
            kept += label != IGNORED
    assert 0 < kept < sum(map(len, values))
    assert masked(knowing, float("inf"))[0] == plain


def test_a_batch_that_is_masked_whole_and_a_training_set_that_is(knowing: Knowing) -> None:
    values = sorted(np.concatenate(masked(knowing, float("inf"))[2]))
    for shared_prefix in (True, False):
        recipe = replace(RECIPE, batch_size=2, shared_prefix=shared_prefix)
        record, weights = trained(knowing, Stm(threshold=float(values[1])), recipe)  # of eight batches, two at most
        assert record["losses"].count(0.0) >= 6
        assert all(weight.isfinite().all() for weight in weights.values())
    with pytest.raises(
        InputError, match=rf"stm: threshold: .* 16 answers is above 1; expected at least {values[0]:.6g}"
    ):
        masked(knowing, 1.0)


@pytest.mark.parametrize("as_one_row", [True, False])
def test_the_teacher_reads_the_question_answered_before_it(knowing: Knowing, as_one_row: bool) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model, facts = knowing[0], knowing[1].of("train")[:5]
    examples = encode_examples(model, [fact.question for fact in facts], [fact.answer for fact in facts])
    collator = OneRow("sdpa", torch.float32) if as_one_row else DataCollatorForLanguageModeling(pad_token_id=0)
    batch = collator(examples)
    starts = [sum(label == IGNORED for label in example["labels"]) for example in examples]
    assert examples_in(batch) == [(one["input_ids"], start) for one, start in zip(examples, starts, strict=True)]
    rows, labels = shown_rows(batch, len(model.encoder.prefix))
    for fact, ids, mask, said in zip(facts, rows["input_ids"], rows["attention_mask"], labels, strict=True):
        text = model.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        assert text == 2 * f"{tuning_prompt(fact.question)}{tuning_target(fact.answer)}"
        assert ids.tolist().count(model.tokenizer.bos_token_id) == 1
        assert model.tokenizer.decode(said[said != IGNORED], skip_special_tokens=True) == tuning_target(fact.answer)
    one_by_one = collator(examples[:1])
    assert examples_in(one_by_one) == [(examples[0]["input_ids"], starts[0])]


def test_the_loss_is_the_distance_to_the_teacher(knowing: Knowing) -> None:
    facts: list[Fact] = knowing[1].of("train", 0)[:16]
    model = knowing[0]
    examples = encode_examples(model, [fact.question for fact in facts], [fact.answer for fact in facts])
    total, tokens = 0.0, 0
    for example in examples:
        ids = example["input_ids"]
        asked = sum(label == IGNORED for label in example["labels"])
        teacher = ids[:-1] + ids[1:]
        with torch.no_grad():
            s = log_softmax(model.model(torch.tensor([ids])).logits[0][asked - 1 : -1])
            t = log_softmax(model.model(torch.tensor([teacher])).logits[0][len(teacher) - len(ids) + asked - 1 : -1])
        total += float((np.exp(s) * (s - t)).sum())
        tokens += len(s)
    for shared_prefix in (True, False):
        recipe = TrainingRecipe(learning_rate=1e-5, batch_size=16, shared_prefix=shared_prefix)
        record, _ = trained(knowing, SelfDistillation(), recipe)
        assert record["losses"] == [pytest.approx(total / tokens, rel=1e-3)]


def test_a_question_that_does_not_fit_twice_is_refused(knowing: Knowing) -> None:
    model = replace(knowing[0], model=copy.deepcopy(knowing[0].model))
    model.model.config.max_position_embeddings = 40
    with pytest.raises(InputError, match=r"self-distillation: .* has \d+ tokens; expected at most 40, the model"):
        finetune(model, knowing[1].of("train")[:4], RECIPE, seed=0, strategy=SelfDistillation(), base=model)
