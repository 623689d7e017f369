"""What strategies hold in memory: as it was measured, and as it is reckoned with before a training."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel
from knowshift.training.strategy import Held
from knowshift.tuning import run
from knowshift.tuning.registry import STRATEGIES, strategy_of
from knowshift.tuning.run import check_room
from pages import ROOT

MEASURED = ROOT / "docs" / "measured" / "strategies_memory.json"
#: Copies of the weights that the numbers in the code may be away from the measured ones.
NEAR = 0.25


def copied(name: str) -> int:
    """Copies of the base that ``knowshift finetune`` makes for a strategy."""
    return int(STRATEGIES[name].needs_base or STRATEGIES[name].kind == "after")


def test_what_is_held_is_what_was_measured() -> None:
    told = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert told["bytes"] == 4
    assert set(told["strategies"]) == set(STRATEGIES)
    for name, kind in STRATEGIES.items():
        reckoned = kind.held.bytes_of(1000, 4, on_cpu=True) / 4000 + copied(name)
        assert abs(reckoned - told["strategies"][name]["memory"]) < NEAR, name


@given(st.integers(1, 10**12), st.sampled_from([2, 4]), *[st.integers(-3, 4)] * 3)
def test_bytes_are_those_of_the_copies(weights: int, width: int, there: int, wide: int, aside: int) -> None:
    held = Held(there=there, float32=wide, on_cpu=aside)
    on_gpu = held.bytes_of(weights, width, on_cpu=False)
    assert on_gpu == weights * (there * width + 4 * wide)
    assert held.bytes_of(weights, width, on_cpu=True) - on_gpu == weights * aside * width


@pytest.mark.parametrize("name", ["sft", "lora", "ema", "osf", "kl", "restore", "restore-steps"])
def test_a_device_without_room_for_a_strategy_is_refused(
    name: str, base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(parameter.numel() for parameter in base.model.parameters())
    held = STRATEGIES[name].held
    needed = 12 * weights + held.bytes_of(weights, 4, on_cpu=True) + 4 * weights * copied(name)
    free: list[Any] = [needed]
    monkeypatch.setattr(run, "free_bytes", lambda device: free[0])
    check_room(base, strategy_of(name))
    free[0] = needed - 1
    with pytest.raises(InputError, match=f"strategy '{name}': gradients and moments.* GB free; expected more memory"):
        check_room(base, strategy_of(name))
    if STRATEGIES[name].needs_base:  # another reference lies there already
        free[0] = needed - 4 * weights
        check_room(base, strategy_of(name), base)
