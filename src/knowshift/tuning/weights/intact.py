"""Weights that are trained in place, and are as they were where that ends in an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Parameter


@contextmanager
def intact(parameters: Sequence[Parameter]) -> Iterator[None]:
    """After an error or interrupt in the block, the parameters have their values of before it, and no gradients.

    Copies lie on the CPU, so that a GPU has as much room as before.
    """
    import torch

    before = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.grad = None
                parameter.copy_(value)
        raise
