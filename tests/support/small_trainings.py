"""The names of what the fixtures of tests/strategies/conftest.py give."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: The weights of a model by name.
Weights = dict[str, torch.Tensor]
#: The weights before and after a training by the strategy of this name, with these settings.
Trained = Callable[..., tuple[Weights, Weights]]
