"""A record of how sure each level of a mastery record is, made from its counts without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from knowshift.errors import InputError, border
from knowshift.facts.fact import LEVELS
from knowshift.files import file_beside
from knowshift.probing.certainty import MOST_DRAWS, level_probabilities, rate_interval
from knowshift.probing.expected import Expected
from knowshift.probing.levels import DRAWS
from knowshift.records import count_in, estimate_of, read_about, refuse_gaps

#: One row per fact: the interval for R and the probability of each level in another full run.
CERTAINTY = pa.schema(
    [
        pa.field("fact", pa.string(), nullable=False),
        pa.field("level", pa.int8()),
        pa.field("rate", pa.float64()),
        pa.field("rate_low", pa.float64()),
        pa.field("rate_high", pa.float64()),
        *(pa.field(f"level_{level}", pa.float64()) for level in range(LEVELS)),
    ]
)


def write_certainty(record: Path, output: Path, confidence: float = 0.95) -> None:
    """Write :data:`CERTAINTY` for the facts of a mastery record, a bounded number of rows at a time."""
    about = read_about(record, "mastery")
    with border(f"{record}: not a mastery record"):
        file = pq.ParquetFile(record)
    # Another full run makes as many draws of a prompt as this one was allowed to.
    each = count_in(record, about, "draws_per_prompt", DRAWS, below=MOST_DRAWS + 1)
    if not each:
        raise InputError(f"{record}: draws_per_prompt is 0; expected one at least")
    told = json.dumps({"confidence": confidence, "record": record.name}, sort_keys=True)
    drawn = str(about.get("engine", "")).startswith("completions/")
    columns = ["fact", "level", "rate", "prompt_hits", "prompt_draws"]
    columns += {"prompt_squares"} & set(file.schema_arrow.names)
    schema = CERTAINTY.with_metadata({"knowshift": told})
    with file_beside(output) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for batch in file.iter_batches(1 << 14, columns=columns):
            with border(f"{record}: not a mastery record"):
                batch.validate(full=True)
            refuse_gaps(record, pa.Table.from_batches([batch]), estimate_of(file.schema_arrow.names))
            rows = [_certainty(row, each, confidence, drawn) for row in batch.to_pylist()]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _certainty(row: dict[str, Any], draws_per_prompt: int, confidence: float, drawn: bool) -> dict[str, Any]:
    hits, draws = row["prompt_hits"], row["prompt_draws"]
    if "prompt_squares" in row:
        hits, draws = Expected(hits, row["prompt_squares"], draws, drawn).as_draws()
    low, high = rate_interval(hits, draws, confidence)
    chances = level_probabilities(hits, draws, draws_per_prompt)
    return {
        "fact": row["fact"],
        "level": row["level"],
        "rate": row["rate"],
        "rate_low": low,
        "rate_high": high,
        **{f"level_{level}": float(chance) for level, chance in enumerate(chances)},
    }
