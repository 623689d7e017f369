"""Record files: documented Parquet schemas, atomic writing, strict reading, digests.

Every stage keeps raw counts and raw texts, one row per fact where facts are concerned, so that any figure can be
recomputed without a model. What cannot be scored is a row with ``reason`` set, never a silent zero.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from knowshift.errors import InputError, border
from knowshift.files import file_beside, parse_json

_FACT = [
    pa.field("fact", pa.string(), nullable=False),
    pa.field("relation", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("domain", pa.string(), nullable=False),
]

#: One row per fact: hits and draws for each completion prompt; ``level`` and ``rate`` follow from them (paper 2.3).
MASTERY = pa.schema(
    [
        *_FACT,
        pa.field("exposures", pa.int32()),
        pa.field("prompt_hits", pa.list_(pa.int32())),
        pa.field("prompt_draws", pa.list_(pa.int32())),
        pa.field("hits", pa.int32()),
        pa.field("draws", pa.int32()),
        pa.field("rate", pa.float64()),
        pa.field("level", pa.int8()),
    ]
)

#: The same where hits are expected ones (docs/mastery.md): ``prompt_hits`` sums the values of the texts of a prompt,
#: ``prompt_squares`` their squares, ``prompt_draws`` counts the texts; they tell R and the level of a full run.
EXPECTED = pa.schema(
    [
        *_FACT,
        pa.field("exposures", pa.int32()),
        pa.field("prompt_hits", pa.list_(pa.float64())),
        pa.field("prompt_squares", pa.list_(pa.float64())),
        pa.field("prompt_draws", pa.list_(pa.int32())),
        pa.field("hits", pa.float64()),
        pa.field("draws", pa.int32()),
        pa.field("rate", pa.float64()),
        pa.field("variance", pa.float64()),
        pa.field("level", pa.int8()),
        *(pa.field(f"level_{level}", pa.float64()) for level in range(5)),
    ]
)

#: The columns of a mastery record by its ``--estimate``.
MASTERY_BY_ESTIMATE = {"hits": MASTERY, "expected": EXPECTED}

#: One row per fact: question, the table's answer (its aliases count too), the greedy answer as written, both grades.
ANSWERS = pa.schema(
    [
        *_FACT,
        pa.field("level", pa.int8()),
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("text", pa.string()),
        pa.field("substring_hit", pa.bool_()),
        pa.field("word_hit", pa.bool_()),
        pa.field("reason", pa.string()),
    ]
)

#: One row per level-4 test fact: KL(tuned || base) over the tuned model's ten largest logits, in nats (paper 4.1).
TOKEN_SHIFT = pa.schema(
    [
        *_FACT,
        pa.field("prompt", pa.string()),
        pa.field("kl", pa.float64()),
        pa.field("ids", pa.list_(pa.int32())),
        pa.field("tuned_logits", pa.list_(pa.float32())),
        pa.field("base_logits", pa.list_(pa.float32())),
        pa.field("reason", pa.string()),
    ]
)

#: One row per item of a task, for each model and metric: what was asked, the metric's number, its weight in the mean
#: of all, and the model's answer where it wrote one. A metric that is no mean has no number of an item by itself.
TASKS = pa.schema(
    [
        pa.field("criterion", pa.string()),
        pa.field("fraction", pa.string()),
        pa.field("task", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("item", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("weight", pa.float64()),
        pa.field("text", pa.string()),
    ]
)

#: One row per fact of a world: what is true, and how often the corpus states it.
FACTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("relation", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("aliases", pa.list_(pa.string())),
        pa.field("exposures", pa.int32()),
    ]
)


def write_table(path: Path, schema: pa.Schema, rows: Mapping[str, Sequence[Any]], about: Mapping[str, Any]) -> None:
    """Write columns as one Parquet file beside ``path`` and rename; ``about`` is kept in the file's metadata."""
    table = as_table(schema.with_metadata({"knowshift": json.dumps(dict(about), sort_keys=True)}), rows)
    with border(f"{path}: cannot be written"), file_beside(path) as beside:
        pq.write_table(table, beside, compression="zstd")


def as_table(schema: pa.Schema, rows: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Columns as a table of a schema, in its order."""
    missing = [name for name in schema.names if name not in rows]
    assert not missing, f"columns missing: {missing}"
    return pa.table({name: rows[name] for name in schema.names}, schema=schema)


def read_table(path: Path, schema: pa.Schema, kind: str) -> tuple[pa.Table, dict[str, Any]]:
    """Read a record file back, with its ``about``; an :class:`InputError` names the file and what does not fit."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such {kind} record")
    table, _ = read_parquet(path)
    about = _about(path, kind, table.schema)
    return checked(table, schema, kind, str(path)), about


def checked(table: pa.Table, schema: pa.Schema, kind: str, name: str) -> pa.Table:
    """A table with the columns of a schema, in its order and types; ``name`` is what errors call it.

    A mastery record of expected hits has the columns of :data:`EXPECTED`.

    Raises:
        InputError: a column that is missing or of another type, or a mastery record with gaps.
    """
    if schema is MASTERY:
        schema = MASTERY_BY_ESTIMATE[estimate_of(table.column_names)]
    for field in schema:
        if field.name not in table.column_names:
            raise InputError(f"{name}: not a {kind} record: column {field.name!r} is missing")
    if schema in (MASTERY, EXPECTED):
        refuse_gaps(name, table.select(schema.names), estimate_of(schema.names))
    with border(f"{name}: not a {kind} record"):
        return table.select(schema.names).cast(schema)


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a mastery record, as they are stored; an :class:`InputError` names a damaged file."""
    table, names = read_parquet(path, columns)
    if missing := sorted(set(columns) - set(names)):
        raise InputError(f"{path}: not a mastery record: column {missing[0]!r} is missing")
    refuse_gaps(path, table, estimate_of(names))
    return table.select(list(columns))


def read_parquet(path: Path, columns: Collection[str] | None = None) -> tuple[pa.Table, list[str]]:
    """A table with those of ``columns`` that the file has, and the names of all its columns.

    Names and texts are checked to be UTF-8; Arrow itself notices only when a value is read.

    Raises:
        InputError: no such file, not Parquet or damaged, a name or a text that is no UTF-8.
    """
    with border(f"{path}: not a Parquet file"):
        try:
            names: list[str] = pq.read_schema(path).names
        except UnicodeDecodeError:
            raise InputError(f"{path}: not a Parquet file: the name of a column is not UTF-8") from None
        table = pq.read_table(path, columns=None if columns is None else [name for name in names if name in columns])
    for name, column in zip(table.column_names, table.columns, strict=True):
        with border(f"{path}: column {name!r} cannot be read"):
            column.validate(full=True)
    return table, names


def refuse_gaps(path: Path | str, mastery: pa.Table, estimate: str) -> None:
    """Every fact of a mastery record was measured: only how often a corpus states it may be unknown.

    ``mastery`` may lack columns of the record; ``estimate`` is what the record holds (:func:`estimate_of`).
    """
    for name in mastery.column_names:
        values = mastery[name]
        inner = pc.list_flatten(values) if pa.types.is_list(values.type) else values
        if name != "exposures" and (values.null_count or inner.null_count):
            raise InputError(f"{path}: not a mastery record: column {name!r} has rows without a value")
        if pa.types.is_floating(inner.type) and not pc.all(pc.is_finite(inner), min_count=0).as_py():
            raise InputError(f"{path}: not a mastery record: column {name!r} has values that are not finite")
    if {"prompt_hits", "prompt_draws"} <= set(mastery.column_names):
        if not mastery.num_rows:
            raise InputError(f"{path}: not a mastery record: it holds no fact")
        names = {"prompt_hits", "prompt_squares"} & set(mastery.column_names)
        draws = pc.list_value_length(mastery["prompt_draws"])
        if not all(pc.all(pc.equal(pc.list_value_length(mastery[name]), draws), min_count=0).as_py() for name in names):
            raise InputError(
                f"{path}: not a mastery record: a fact has hits of more or fewer prompts than it has draws"
            )
        made, found = (pc.list_flatten(mastery[name]) for name in ("prompt_draws", "prompt_hits"))
        # A text's value may exceed 1 (docs/mastery.md); a draw is a hit once.
        most = made if estimate == "hits" else found
        if not pc.all(pc.and_(pc.less_equal(0, found), pc.less_equal(found, most)), min_count=0).as_py():
            raise InputError(f"{path}: not a mastery record: a prompt has fewer than 0 hits, or more than draws")
        least = pc.min(made).as_py()
        if estimate == "expected" and least is not None and least < 2:
            raise InputError(f"{path}: not a mastery record: expected hits of {least} texts; expected at least 2")


def estimate_of(columns: Collection[str]) -> str:
    """What a mastery record with these columns holds: "hits" or "expected" hits."""
    return "expected" if "prompt_squares" in columns else "hits"


def read_about(path: Path, kind: str) -> dict[str, Any]:
    """What a record file of our own says about itself; an :class:`InputError` names a damaged file."""
    with border(f"{path}: not a {kind} record"):
        schema = pq.read_schema(path)
    return _about(path, kind, schema)


def count_in(path: Path, about: Mapping[str, Any], name: str, default: int = 0, below: int = 2**63) -> int:
    """A count that a record says about itself; an :class:`InputError` names what is none."""
    value = about.get(name, default)
    if type(value) is not int or not 0 <= value < below:
        raise InputError(f"{path}: {name} is {str(value)[:80]!r}; expected a count below {below:,}")
    return value


def _about(path: Path, kind: str, schema: pa.Schema) -> dict[str, Any]:
    return parse_json((schema.metadata or {}).get(b"knowshift", b"{}"), f"{path}: not a {kind} record: its metadata")
