"""Which weights each strategy of :mod:`knowshift.tuning.weights` changes, and how, by independent formulas."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.sources.load import load_facts
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.parameters.regions import Place
from knowshift.studies import content
from knowshift.training.sft import TrainingRecipe, finetune
from knowshift.training.strategy import Draw
from knowshift.tuning.registry import strategy_of
from knowshift.tuning.weights.corda import Corda, texts_of
from knowshift.tuning.weights.hft import half
from knowshift.tuning.weights.shira import masks
from small_trainings import Trained, Weights, known_by_heart
from tiny_models import tiny_checkpoint

ATTENTION = [f"self_attn.{one}_proj" for one in "qkvo"]
MLP = [f"mlp.{one}_proj" for one in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]
ALL = ("lora-mlp", "osf", "corda", "shira", "frozen-mlps", "frozen-layers", "hft", "intruders")


def changed(pair: tuple[Weights, Weights]) -> set[str]:
    before, after = pair
    assert list(before) == list(after)
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def names(layers: Sequence[int], modules: Sequence[str]) -> set[str]:
    return {f"model.layers.{layer}.{module}.weight" for layer in layers for module in modules}


def matrices(base: LoadedModel) -> set[str]:
    return names(range(base.model.config.num_hidden_layers), [*ATTENTION, *MLP])


def training_facts(world: Path) -> list[Fact]:
    return [fact for fact in load_facts(f"world:{world}").facts if fact.split == "train"]


def test_lora_on_mlps_changes_them_alone(trained: Trained) -> None:
    assert changed(trained("lora-mlp")) == names((0, 1), MLP)


def test_frozen_mlps_stay_bit_for_bit(trained: Trained) -> None:
    before, _ = pair = trained("frozen-mlps")
    assert changed(pair) == set(before) - names((0, 1), MLP)


@pytest.mark.parametrize(("upper", "stays"), [(False, 0), (True, 1)])
def test_frozen_layers_stay_bit_for_bit(trained: Trained, upper: bool, stays: int) -> None:
    before, _ = pair = trained("frozen-layers", upper=upper)
    assert changed(pair) == set(before) - names((stays,), [*ATTENTION, *MLP, *NORMS])


def test_a_share_of_no_whole_layer_is_refused(base: LoadedModel) -> None:
    strategy = strategy_of("frozen-layers", {"share": 0.4})
    with (
        pytest.raises(InputError, match=r"share: 0.4 of 2 layers is no whole layer; expected at least 0\.5"),
        strategy.trained(base, (), 0, None),
    ):
        pass


def test_half_of_each_kind_and_layer_stays(trained: Trained) -> None:
    before, _ = pair = trained("hft")
    moved = changed(pair)
    for layer in (0, 1):
        assert len(moved & names((layer,), ATTENTION)) == 2
        assert len(moved & names((layer,), NORMS)) == 1
    assert sorted(len(moved & names((layer,), MLP)) for layer in (0, 1)) == [1, 2]
    assert {name for name in before if ".layers." not in name} <= moved


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32), st.booleans())
def test_half_is_half_at_any_depth(depth: int, seed: int, biases: bool) -> None:
    kinds = {**dict.fromkeys(ATTENTION, "attention"), **dict.fromkeys(MLP, "mlp"), **dict.fromkeys(NORMS, "norms")}
    places = [Place("model.embed_tokens.weight", None, "embeddings", "embeddings")]
    for layer in range(depth):
        for module, kind in kinds.items():
            stem = f"model.layers.{layer}.{module}"
            places.append(Place(f"{stem}.weight", layer, module, kind))
            if biases and kind == "attention":
                places.append(Place(f"{stem}.bias", layer, module, "biases"))
    staying = half(places, seed)
    assert staying == half(list(reversed(places)), seed)
    assert "model.embed_tokens.weight" not in staying
    of_mlps = []
    for layer in range(depth):
        assert len(staying & names((layer,), ATTENTION)) == 2
        assert len(staying & names((layer,), NORMS)) == 1
        of_mlps.append(len(staying & names((layer,), MLP)))
    assert sorted(of_mlps) == [1] * (depth - depth // 2) + [2] * (depth // 2)
    weights = {name for name in staying if name.endswith("weight")}
    assert {name.replace(".bias", ".weight") for name in staying} == weights
    assert len(staying) - len(weights) == (2 * depth if biases else 0)


def test_the_half_that_stays_depends_on_the_seed() -> None:
    places = [
        Place(f"model.layers.{layer}.{module}.weight", layer, module, "attention")
        for layer in range(4)
        for module in ATTENTION
    ]
    assert len({frozenset(half(places, seed)) for seed in range(10)}) > 5


def test_shira_changes_the_weights_of_its_masks_and_as_many_as_lora_trains(base: LoadedModel, trained: Trained) -> None:
    rank = 4
    before, after = pair = trained("shira", rank=rank)
    assert changed(pair) == matrices(base)
    mask = masks(3)
    found: dict[tuple[int, ...], set[tuple[bool, ...]]] = {}
    for name, module in base.model.named_modules():
        if f"{name}.weight" in matrices(base):
            weight = before[f"{name}.weight"]
            chosen, moved = mask(module, rank), weight != after[f"{name}.weight"]
            assert int(chosen.sum()) == rank * sum(weight.shape)
            assert not (moved & ~chosen).any()
            assert int(moved.sum()) > 0.9 * int(chosen.sum())
            found.setdefault(tuple(weight.shape), set()).add(tuple(chosen.flatten().tolist()))
    assert sum(map(len, found.values())) == len(matrices(base))  # no two masks are alike


def test_shira_refuses_more_weights_than_a_matrix_has(base: LoadedModel) -> None:
    with (
        pytest.raises(InputError, match=r"shira: rank: 17 trains 1,088 weights of .*, which has 1,024; .* at most 16"),
        strategy_of("shira", {"rank": 17}).trained(base, (), 0, None),
    ):
        pass


def test_a_model_that_shira_has_trained_is_let_go(base: LoadedModel) -> None:
    model = replace(base, model=copy.deepcopy(base.model))
    gone = weakref.ref(model.model.model.layers[0].mlp.up_proj)
    with strategy_of("shira").trained(model, (), 0, ()) as wrapped:
        wrapped(input_ids=torch.tensor([[1, 2, 3]]))
    del model, wrapped
    gc.collect()
    assert gone() is None


def test_changes_by_osf_are_orthogonal_to_the_directions_that_stay(base: LoadedModel, trained: Trained) -> None:
    before, after = pair = trained("osf", kept=0.25)
    assert changed(pair) == matrices(base)
    for name in matrices(base):
        weight = before[name].double()
        change = after[name].double() - weight
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        stay = int(0.25 * len(values))
        size = torch.linalg.norm(change)
        assert size > 1e-3 * torch.linalg.norm(weight)
        assert torch.linalg.norm(left[:, :stay].T @ change) < 1e-4 * size
        assert torch.linalg.norm(change @ right[:stay].T) < 1e-4 * size


def test_corda_begins_as_the_base_at_the_directions_that_known_facts_use_least(
    base: LoadedModel, small_world: Path
) -> None:
    known = known_by_heart(training_facts(small_world)[16:48])
    model = replace(base, model=copy.deepcopy(base.model))
    inputs = covariances(base, texts_of(Corda().kept(known, 0)))
    before = base.model.state_dict()
    with Corda(rank=4, alpha=8.0).trained(model, (), 0, known) as wrapped:
        seen = 0
        for name, module in wrapped.base_model.model.named_modules():
            if not hasattr(module, "lora_A"):
                continue
            seen += 1
            part = module.get_delta_weight("default").detach().double().numpy()
            weight = before[f"{name}.weight"].double().numpy()
            np.testing.assert_allclose(module.base_layer.weight.detach().numpy() + part, weight, atol=1e-6)
            values = np.linalg.svd(weight @ inputs[name], compute_uv=False)
            used = np.linalg.norm(part @ inputs[name])
            assert used == pytest.approx(np.sqrt((values[-4:] ** 2).sum()), rel=0.02)
            # What a part of the same rank along the largest directions of W would take of the outputs.
            assert used < 0.5 * np.sqrt((np.linalg.svd(weight, compute_uv=False)[:4] ** 2).sum()) * np.linalg.norm(
                inputs[name], 2
            )
    assert seen == len(matrices(base))
    after = model.model.state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6)
    left = {key for module in model.model.modules() for key in vars(module)}
    assert not left & {"eigens", "covariance_matrix", "sample_count", "corda_method"}


def covariances(base: LoadedModel, texts: list[str]) -> dict[str, np.ndarray]:
    """Mean of X^T X over the texts, each text's inputs divided by their largest, with PEFT's 1% on the diagonal."""
    found: dict[str, list[np.ndarray]] = {}
    handles = []
    for name, module in base.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, given, name=name: found.setdefault(name, []).append(given[0][0].double().numpy())
                )
            )
    with torch.no_grad():
        for ids in base.encoder.prompts(texts):
            base.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    means = {
        name: np.mean([(x / np.abs(x.max())).T @ (x / np.abs(x.max())) for x in inputs], 0)
        for name, inputs in found.items()
    }
    return {name: c + 0.01 * np.diag(c).mean() * np.eye(len(c)) for name, c in means.items()}


def test_corda_is_given_known_training_facts_drawn_by_seed(small_world: Path) -> None:
    facts = load_facts(f"world:{small_world}").facts
    rows = [{"fact": fact.id, "level": i % 5} for i, fact in enumerate(facts)]
    known = KnownFacts({fact.id: fact for fact in facts}, rows)
    given = Corda(texts=20).kept(known, 5)
    assert len({fact.id for fact in given}) == 20
    assert {known.levels[fact.id] for fact in given} == {3, 4}
    assert {fact.split for fact in given} == {"train"}
    assert given == Corda(texts=20).kept(known, 5) != Corda(texts=20).kept(known, 6)
    assert len(Corda(texts=10_000).kept(known, 5)) == len(known.of("train", 3)) + len(known.of("train", 4))
    texts = texts_of(given)
    for number, (fact, text) in enumerate(zip(given, texts, strict=True)):
        prompts = completion_prompts(fact)
        assert text == f"{prompts[number % len(prompts)]} {fact.answer}"
    unknown = KnownFacts(known.facts, [{**row, "level": 0} for row in rows])
    with pytest.raises(InputError, match="corda: the mastery record has no training facts of levels 3 and 4"):
        Corda().kept(unknown, 5)


def test_a_study_gives_corda_the_facts_that_the_base_knows(base: LoadedModel, small_world: Path) -> None:
    facts = load_facts(f"world:{small_world}").facts
    known = KnownFacts(
        {fact.id: fact for fact in facts}, [{"fact": fact.id, "level": i % 5} for i, fact in enumerate(facts)]
    )
    training = {"strategy": "corda", "settings": {"texts": 5, "rank": 2}}
    coordinates = {"level": 1, "size": 8, "draw": 0, "learning_rate": 1e-2, "training": training}
    found, record = content.tune(base, known, coordinates, {"seed": 5, "training.epochs": 1})
    strategy = Corda(texts=5, rank=2)
    draw = Draw(known, level=1, size=8, draw=0, seed=5)
    again = replace(base, model=copy.deepcopy(base.model))
    recipe, seed = TrainingRecipe(learning_rate=1e-2), content.seed_of(5, "training", 1, 0)
    finetune(again, draw.members, recipe, seed=seed, strategy=strategy, known=known)
    assert record["facts"] == [fact.id for fact in draw.members]
    assert changed((found.model.state_dict(), again.model.state_dict())) == set()
    assert changed((base.model.state_dict(), found.model.state_dict())) == matrices(base)


def test_corda_refuses_a_rank_that_a_matrix_has_not(base: LoadedModel) -> None:
    with (
        pytest.raises(InputError, match=r"corda: rank: expected at most 32, as model\.layers\.0\..*, found 33"),
        Corda(rank=33).trained(base, (), 0, None),
    ):
        pass


@pytest.mark.parametrize("name", ALL)
def test_an_interrupt_leaves_weights_modules_and_gradients_as_they_were(
    name: str, base: LoadedModel, small_world: Path
) -> None:
    model = replace(base, model=copy.deepcopy(base.model))
    kinds = [type(module) for module in model.model.modules()]
    known = known_by_heart(training_facts(small_world)[16:24])

    def interrupted() -> None:
        with strategy_of(name).trained(model, (), 3, known) as wrapped:
            trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
            wrapped(input_ids=torch.tensor([[1, 2, 3, 4]])).logits.square().mean().backward()
            with torch.no_grad():
                for parameter in trained:
                    parameter.add_(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [type(module) for module in model.model.modules()] == kinds
    assert changed((base.model.state_dict(), model.model.state_dict())) == set()
    assert all(one.requires_grad and one.grad is None for one in model.model.parameters())


def test_an_interrupt_while_corda_looks_at_texts_leaves_nothing_behind(
    base: LoadedModel, small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(base, model=copy.deepcopy(base.model))
    passes = []

    def interrupt(*given: object) -> None:
        passes.append(given)
        if len(passes) == 3:
            raise KeyboardInterrupt

    model.model.register_forward_hook(interrupt)
    with (
        pytest.raises(KeyboardInterrupt),
        Corda().trained(model, (), 0, known_by_heart(training_facts(small_world)[:8])),
    ):
        pass
    modules = list(model.model.modules())
    assert sum(len(module._forward_hooks) for module in modules) == 1  # this test's own
    assert not {key for module in modules for key in vars(module)} & {"covariance_matrix", "sample_count"}
    assert changed((base.model.state_dict(), model.model.state_dict())) == set()


def test_osf_refuses_to_keep_nothing_of_a_matrix(base: LoadedModel) -> None:
    with (
        pytest.raises(InputError, match=r"osf: kept: 0\.02 of the 32 directions of .* is none; .* at least 0\.0312"),
        strategy_of("osf", {"kept": 0.02}).trained(base, (), 0, ()),
    ):
        pass


@pytest.mark.parametrize(("family", "dtype"), [("GPT2Config", "float32"), ("LlamaConfig", "bfloat16")])
def test_other_families_and_dtypes_are_trained_or_refused_in_one_line(
    family: str, dtype: str, tmp_path: Path, small_world: Path
) -> None:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "model", family, dtype=dtype)), dtype="auto")
    facts = training_facts(small_world)
    for name in ALL:
        model = replace(loaded, model=copy.deepcopy(loaded.model))
        if family == "GPT2Config" and name in ("osf", "shira", "intruders"):
            with pytest.raises(InputError, match=rf"{name}: .* is a Conv1D; expected .* such as lora"):
                finetune(model, facts[:2], TrainingRecipe(learning_rate=0.1), seed=0, strategy=strategy_of(name))
            assert changed((loaded.model.state_dict(), model.model.state_dict())) == set()
            continue
        recipe = TrainingRecipe(learning_rate=0.1, batch_size=2)
        finetune(model, facts[:2], recipe, seed=0, strategy=strategy_of(name), known=known_by_heart(facts[2:6]))
        moved = changed((loaded.model.state_dict(), model.model.state_dict()))
        assert any("mlp" in one for one in moved) == (name != "frozen-mlps")
        assert {weight.dtype for weight in model.model.state_dict().values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("name", ["lora-mlp", "frozen-mlps", "frozen-layers", "hft"])
def test_a_model_of_unknown_layout_is_refused(name: str, base: LoadedModel) -> None:
    model = replace(base, model=copy.deepcopy(base.model))
    model.model.config.model_type = "lama"
    with (
        pytest.raises(InputError, match=r"architecture 'lama' has no known layout.*'llama'"),
        strategy_of(name).trained(model, (), 0, ()),
    ):
        pass
