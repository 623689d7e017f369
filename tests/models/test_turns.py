"""Two models of which one at a time is in memory."""

from __future__ import annotations

import weakref
from pathlib import Path

from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.turns import Turns


def test_asking_for_one_model_lets_go_of_the_other(small_world: Path) -> None:
    made: list[tuple[str, weakref.ref[object]]] = []

    def opener(name: str) -> LoadedModel:
        assert not [one for one, model in made if model() is not None]
        loaded = load_model(f"world:{small_world}")
        made.append((name, weakref.ref(loaded.model)))
        return loaded

    turns = Turns(lambda: opener("base"), lambda: opener("tuned"))
    asked = [turns.base.name, turns.base.name, turns.tuned.name, turns.base.name]  # an assertion would keep a model
    assert len(set(asked)) == 1
    assert [name for name, _ in made] == ["base", "tuned", "base"]
    assert [model() is None for _, model in made] == [True, True, False]
    turns.close()
    turns.close()
    assert made[-1][1]() is None
    assert [name for name, _ in made] == ["base", "tuned", "base"]
