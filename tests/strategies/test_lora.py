"""Low-rank adapters: only they are trained, and the model has the merged weights and its own modules afterwards."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel
from knowshift.training.sft import TrainingRecipe, finetune
from knowshift.tuning.weights.lora import Lora, adapted


def test_adapters_are_merged_by_the_formula_and_the_modules_are_the_models_own(small_model: LoadedModel) -> None:
    model = copy.deepcopy(small_model.model)
    before, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    expected = {}
    with adapted(model, Lora(rank=2, alpha=6.0).config(), seed=3) as wrapped:
        trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
        assert trained
        assert all("lora_" in name for name in trained)
        for name, module in wrapped.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                assert not b.any()
                torch.nn.init.normal_(b, std=0.1, generator=torch.Generator().manual_seed(len(expected)))
                expected[f"{name}.weight"] = (
                    before[f"{name}.weight"].double() + 3 * b.detach().double() @ a.detach().double()
                )
    after = model.state_dict()
    assert list(after) == list(before)
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(expected) == 7 * model.config.num_hidden_layers
    for name, weight in after.items():
        if name in expected:
            torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(weight, before[name])


def test_an_error_leaves_the_weights_as_they_were(small_model: LoadedModel) -> None:
    model = copy.deepcopy(small_model.model)
    before = copy.deepcopy(model.state_dict())

    def interrupted() -> None:
        with adapted(model, Lora().config(), seed=3) as wrapped:
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.ones_(parameter)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_a_training_changes_the_layers_by_a_low_rank_and_is_reproducible(
    small_model: LoadedModel, small_world: Path, shared_prefix: bool
) -> None:
    facts = [fact for fact in load_facts(f"world:{small_world}").facts if fact.split == "train"][:16]
    recipe = TrainingRecipe(learning_rate=1e-2, epochs=3, shared_prefix=shared_prefix)
    models = [replace(small_model, model=copy.deepcopy(small_model.model)) for _ in range(3)]
    records = [
        finetune(model, facts, recipe, seed=seed, strategy=Lora(rank=2))
        for model, seed in zip(models, (3, 3, 4), strict=True)
    ]
    assert records[0] == records[1] != records[2]
    assert records[0]["losses"][-1] < records[0]["losses"][0]
    before = small_model.model.state_dict()
    for name, weight in models[0].model.state_dict().items():
        change = weight - before[name]
        assert torch.equal(weight, models[1].model.state_dict()[name])
        if ".layers." in name and weight.dim() == 2:
            values = torch.linalg.svdvals(change)
            assert values[0] > 0
            assert values[2] < 1e-4 * values[0]
        else:
            assert not change.any()


def test_a_model_without_linear_layers_is_refused_in_one_line() -> None:
    class Empty(torch.nn.Module):
        config = None

    with (
        pytest.raises(InputError, match="LORA: no layers of this model can be adapted"),
        adapted(
            Empty(),
            Lora().config(),
            seed=0,  # type: ignore[arg-type]
        ),
    ):
        pass
