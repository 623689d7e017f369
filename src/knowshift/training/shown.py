"""A training batch as a teacher reads it: each example stands answered before it is asked.

The example ``prompt answer EOS`` becomes ``prompt answer prompt answer EOS``: a demonstration of the very question, in
the form that it is asked in, as one puts answered examples before a question.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from knowshift.training.one_row import IGNORED


def examples_in(inputs: Mapping[str, Tensor]) -> list[tuple[list[int], int]]:
    """The examples of a batch that have a loss: their ids, and where the scored ones begin; in the order of the batch.

    Args:
        inputs: ``input_ids`` and ``labels`` [B, T], an example a row, padded on the right; or :class:`.OneRow`'s.
    """
    rows = inputs["input_ids"].tolist()
    labels = inputs["labels"].tolist()
    if len(rows) == 1 and "position_ids" in inputs:
        positions = inputs["position_ids"][0].tolist()
        starts = [place + 1 for place, (one, next_one) in enumerate(pairwise(positions)) if next_one <= one]
        shared = positions[starts[0]] if starts else 0  # each example goes on where the shared beginning ends
        parts = list(pairwise([shared, *starts, len(positions)]))
        rows = [rows[0][:shared] + rows[0][start:stop] for start, stop in parts]
        labels = [labels[0][:shared] + labels[0][start:stop] for start, stop in parts]
    found = []
    for ids, said in zip(rows, labels, strict=True):
        scored = [place for place, label in enumerate(said) if label != IGNORED]
        if scored:
            found.append((ids[: scored[-1] + 1], scored[0]))
    return found


def shown(ids: list[int], prefix: int) -> list[int]:
    """One example as the teacher reads it; ``prefix`` tokens, such as BOS, stand before every text, and once here."""
    return ids[:-1] + ids[prefix:]


def shown_rows(inputs: Mapping[str, Tensor], prefix: int) -> tuple[dict[str, Tensor], Tensor]:
    """Input ids and mask of the same examples as the teacher reads them, and labels of the same tokens [B, S].

    Padded on the right with id 0, which nothing looks at.
    """
    examples = examples_in(inputs)
    rows = [(shown(ids, prefix), len(ids) - start) for ids, start in examples]
    width = max((len(row) for row, _ in rows), default=1)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for place, (row, scored) in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        labels[place, len(row) - scored : len(row)] = ids[place, len(row) - scored : len(row)]
    device = inputs["input_ids"].device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels.to(device)
