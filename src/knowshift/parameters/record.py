"""The record of a weight change: one row per tensor, from which every table can be made again without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from knowshift.parameters.change import WeightChange
from knowshift.records import write_table

#: ``top`` counts the tensor's weights in the top 20% by relative change, ``null_top`` those under the null; sums are
#: over the tensor, in float64; ``rounded`` counts those that changed by no more than rounding explains, null where both
#: dtypes are equal.
WEIGHT_CHANGE = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("layer", pa.int32()),
        pa.field("module", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("changed", pa.int64()),
        pa.field("base_zero", pa.int64()),
        pa.field("relative_sum", pa.float64()),
        pa.field("absolute_sum", pa.float64()),
        pa.field("squared_sum", pa.float64()),
        pa.field("top", pa.int64()),
        pa.field("null_top", pa.int64()),
        pa.field("rounded", pa.int64()),
    ]
)


def write_record(path: Path, change: WeightChange, about: Mapping[str, Any]) -> None:
    """Write the rows; the file's metadata carries the totals and ``about`` (which files were compared)."""
    rows = {name: [getattr(tensor, name) for tensor in change.tensors] for name in WEIGHT_CHANGE.names}
    totals = {key: value for key, value in change.to_json().items() if key != "tensors"}
    write_table(path, WEIGHT_CHANGE, rows, {**totals, **about})
