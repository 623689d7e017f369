"""What all prompts begin with is held once, and changes no text; a model whose layers do not see it gets rows whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling import tree
from knowshift.models.sampling.cache import TreeLayer
from knowshift.models.sampling.expected import ExpectedSession
from knowshift.models.sampling.session import TreeSession, greedy, nodes_that_fit, sample
from knowshift.models.sampling.settings import Sampling
from tiny_models import tiny_checkpoint

SHOWN = "Question: who? Answer: Ann\nQuestion: where? Answer: Rome\n"
PROMPTS = [f"{SHOWN}Question: {word}? Answer:" for word in ("what", "when", "which", "why", "how", "how many")]
STREAMS = [str(number) for number in range(len(PROMPTS))]
#: Wide heads that share keys, narrow heads, and positions that are learned.
MODELS: dict[str, dict[str, Any]] = {
    "LlamaConfig": {"head_dim": 48, "num_attention_heads": 4, "num_key_value_heads": 2},
    "GemmaConfig": {},
    "GPT2Config": {},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "model", request.param, **MODELS[request.param])))
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)  # so that what stands before matters
    return loaded


def found(model: LoadedModel) -> tuple[list[str], Any, Any, Any]:
    """Greedy texts, sampled hits, and hits and values that are made in two rounds."""
    accepted, sampling = [["a", "e"]] * len(PROMPTS), Sampling(seed=3, draws_per_prompt=6, max_new_tokens=9)
    texts = greedy(model, PROMPTS, max_new_tokens=9, max_nodes=4)
    hits = sample(model, PROMPTS, accepted, sampling, streams=STREAMS, max_nodes=5).hit
    session = TreeSession(model, PROMPTS, accepted, sampling, streams=STREAMS)
    expected = ExpectedSession(model, PROMPTS, accepted, sampling, 6, streams=STREAMS)
    expected.read()
    for numbers in (np.array([4, 1]), np.array([0, 2, 3, 5])):
        session.draw([numbers] * len(PROMPTS))
        expected.draw([numbers] * len(PROMPTS))
    return texts, hits, session.hit, expected.value


def is_the_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert one[0] == other[0]
    assert 0 < one[1].mean() < 1
    assert one[3].std() > 0.01
    for mine, theirs in zip(one[1:], other[1:], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


def test_a_prefix_held_once_changes_nothing(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    update = TreeLayer.update

    def seen(layer: TreeLayer, *given: Any, **more: Any) -> Any:
        if layer.prefix is not None:
            rows.append(given[0].shape[0])
        return update(layer, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TreeLayer, "update", seen)
        mine = found(model)
    assert max(rows) > 3
    room = nodes_that_fit(model, model.encoder.prompts(PROMPTS), 9)
    monkeypatch.setattr(tree, "LONG_PREFIX", 10**6)
    is_the_same(mine, found(model))
    assert room >= nodes_that_fit(model, model.encoder.prompts(PROMPTS), 9)


def test_a_model_that_does_not_see_it_gets_rows_whole(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose layers compute on the keys before attention."""
    update = TreeLayer.update
    monkeypatch.setattr(TreeLayer, "update", lambda layer, *given: tuple(of.clone() for of in update(layer, *given)))
    mine = found(model)
    monkeypatch.setattr(tree, "LONG_PREFIX", 10**6)
    is_the_same(mine, found(model))


@pytest.mark.parametrize(("prompts", "held"), [([SHOWN] * 2, 56), ([SHOWN, "What"], 0), ([SHOWN], 0), (["a", "a"], 0)])
def test_how_much_is_held_once(prompts: list[str], held: int, tmp_path: Path) -> None:
    """All but two of the tokens that all have in common, where these are many; each byte is one here, and BOS too."""
    loaded = load_model(str(tiny_checkpoint(tmp_path / "model")))
    assert tree.held_once(loaded, loaded.encoder.prompts(prompts)) == held
