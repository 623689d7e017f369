"""Arguments that the options of a command would refuse are refused in Python too: one line, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import knowshift
from knowshift.api.measures import Mastery
from knowshift.errors import InputError

WORLD = "world:tiny"
FACTS = knowshift.load_facts(WORLD)  # read once: it takes half a second


@pytest.fixture(scope="module")
def known() -> Mastery:
    return knowshift.mastery(WORLD, FACTS, limit=4, draws=1, max_new_tokens=1, workers=1)


def mastery(**more: Any) -> Callable[[Mastery], object]:
    return lambda known: knowshift.mastery(WORLD, FACTS, **{"limit": 4, **more})


def finetune(**more: Any) -> Callable[[Mastery], object]:
    return lambda known: knowshift.finetune(WORLD, FACTS, known, **{"level": 0, "output_dir": "tuned", **more})


def restore(**more: Any) -> Callable[[Mastery], object]:
    return lambda known: knowshift.restore(WORLD, WORLD, **{"output_dir": "restored", "fraction": 0.2, **more})


def gap(table: pa.Table) -> pa.Table:
    values = [None, *table["level"].to_pylist()[1:]]
    return table.set_column(table.column_names.index("level"), "level", pa.array(values, pa.int8()))


CASES: dict[str, tuple[Callable[[Mastery], object], str]] = {
    "no facts": (mastery(limit=0), "limit 0: expected a whole number, 1 to"),
    "a number of numpy": (mastery(limit=np.int64(4)), "limit np.int64(4): expected a whole number"),
    "no draws": (mastery(draws=0), "draws of a prompt 0: expected a whole number, 1 to"),
    "half a draw": (mastery(draws=2.5), "draws of a prompt 2.5: expected"),
    "true draws": (mastery(draws=True), "draws of a prompt True: expected"),
    "cold": (mastery(temperature=0), "temperature 0: expected a number above 0"),
    "colder": (mastery(temperature=-1.0), "temperature -1.0: expected"),
    "no temperature": (mastery(temperature=float("nan")), "temperature nan: expected"),
    "a word": (mastery(temperature="warm"), "temperature 'warm': expected"),
    "no tokens": (mastery(max_new_tokens=0), "tokens of a draw 0: expected"),
    "no workers": (mastery(workers=0), "workers 0: expected"),
    "a seed below 0": (mastery(seed=-1), "seed -1: expected a whole number, 0 to"),
    "a large seed": (mastery(seed=2**31), "seed 2147483648: expected"),
    "level 9": (finetune(level=9), "level 9: expected a whole number, 0 to 4"),
    "no size": (finetune(size=0), "size 0: expected"),
    "no batch": (finetune(batch_size=0), "batch size 0: expected"),
    "no epochs": (finetune(epochs=0), "epochs 0: expected"),
    "a draw below 0": (finetune(draw=-1), "draw -1: expected"),
    "no rate": (finetune(learning_rate=0), "learning rate 0 (--learning-rate): expected a positive number"),
    "no fractions": (restore(fraction=[]), "--fraction: none given"),
    "a fraction of 2": (restore(fraction=2), "fraction 2.0: expected a number from 0 to 1"),
    "no number": (restore(fraction=[None]), "--fraction None: expected a number from 0 to 1"),
    "true": (restore(fraction=True), "--fraction True: expected a number from 0 to 1"),
    "an object": (restore(fraction=object()), "--fraction <object object at"),
    "twice": (restore(fraction=[0.1, "0.10"]), "--fraction 0.10: given twice"),
    "no threads": (restore(threads=0), "threads 0: expected"),
    "one layer": (restore(layers=(0,)), "layers (0,): expected (first, last), or a text such as '0-3'"),
    "half a layer": (restore(layers=(0, 0.5)), "layer 0.5: expected"),
    "layers in words": (restore(layers="all"), "--layers 'all': expected a layer or a range such as 0-3"),
    "no record": (lambda known: knowshift.evaluate(WORLD, FACTS, 3), "a mastery record of type int; expected a file"),
    "a table of something else": (
        lambda known: knowshift.evaluate(WORLD, FACTS, pa.table({"fact": ["a"]})),
        "the mastery record: not a mastery record: column 'relation' is missing",
    ),
    "a table with a gap": (
        lambda known: knowshift.evaluate(WORLD, FACTS, gap(known.table)),
        "the mastery record: not a mastery record: column 'level' has rows without a value",
    ),
    "a limit below 0": (lambda known: knowshift.evaluate(WORLD, FACTS, known, limit=-3), "limit -3: expected"),
    "facts of numbers": (lambda known: knowshift.load_facts([1]), "facts of type int; expected a source's name"),
    "a number for facts": (lambda known: knowshift.load_facts(5), "facts of type int; expected"),
    "a tokenizer for a folder": (
        lambda known: knowshift.load_model(WORLD, tokenizer="t"),
        "tokenizer: world:tiny brings",
    ),
    "a revision of what is loaded": (
        lambda known: knowshift.evaluate(knowshift.load_model(WORLD), FACTS, known, revision="main"),
        "revision 'main': for a model by name; this one is loaded already",
    ),
    "a number for a model": (lambda known: knowshift.load_model(5), "a model of type int; expected a folder"),
    "no workers of a study": (lambda known: knowshift.study(preset="tiny", workers=0), "workers 0: expected"),
    "a plan for no such executor": (
        lambda known: knowshift.plan_study(preset="tiny", executor="heer"),
        "no executor 'heer'; nearest: 'here'",
    ),
    "a study of a dict": (
        lambda known: knowshift.study({"name": "a"}),
        "a configuration of type dict; expected a file",
    ),
    "no such executor": (
        lambda known: knowshift.study(preset="tiny", executor="heer"),
        "no executor 'heer'; nearest: 'here'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_command_would_refuse(
    case: str, known: Mastery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, says = CASES[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        call(known)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
