"""Training sets: of one level, balanced over relations, nested in size, refused when a level is too small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.training.draws import draw_mixed_set, draw_training_set, level_counts


def _ids(levels: Mapping[str, int | None], relations: Mapping[str, str], **options: Any) -> list[str]:
    """The ids of a training set drawn from training facts of these levels; test facts of the same level stand by."""
    facts = {fact: Fact(fact, relations[fact], "train", "in_domain", "s", "q", "a") for fact in levels}
    tests = {
        f"test {fact}": Fact(f"test {fact}", relations[fact], "test", "in_domain", "s", "q", "a") for fact in levels
    }
    rows = [{"fact": name, "level": levels[name.removeprefix("test ")]} for name in [*facts, *tests]]
    return [fact.id for fact in draw_training_set(KnownFacts({**facts, **tests}, rows), **options)]


worlds = st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from([None, 0, 1, 2, 3, 4])), min_size=20, max_size=120)


@given(worlds, st.integers(0, 4), st.integers(0, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_a_draw_is_of_its_level_balanced_and_nested(
    rows: list[tuple[str, int | None]], level: int, draw: int, data: st.DataObject
) -> None:
    levels = {f"f{i}": row[1] for i, row in enumerate(rows)}
    relations = {f"f{i}": row[0] for i, row in enumerate(rows)}
    available = Counter(relations[fact] for fact, its in levels.items() if its == level)
    total = sum(available.values())
    if total == 0:
        with pytest.raises(InputError, match="0 available"):
            _ids(levels, relations, level=level, size=None, draw=draw, seed=1)
        return
    size = data.draw(st.integers(1, total))
    chosen = _ids(levels, relations, level=level, size=size, draw=draw, seed=1)
    whole = _ids(levels, relations, level=level, size=None, draw=draw, seed=1)
    assert len(chosen) == len(set(chosen)) == size
    assert {levels[fact] for fact in chosen} == {level}
    assert chosen == whole[:size]
    counts = Counter(relations[fact] for fact in chosen)
    # A relation is behind another by more than one only when it has run out.
    for relation in available:
        assert counts[relation] >= max(counts.values()) - 1 or counts[relation] == available[relation]


def test_draws_differ_and_more_than_there_is_is_refused() -> None:
    levels: dict[str, int | None] = {f"f{i}": 2 for i in range(50)}
    relations = dict.fromkeys(levels, "P17")
    first, second = (_ids(levels, relations, level=2, size=20, draw=d, seed=0) for d in (0, 1))
    assert set(first) != set(second)
    with pytest.raises(InputError, match="level 2: 51 training facts asked, 50 available"):
        _ids(levels, relations, level=2, size=51, draw=0, seed=0)


def test_levels_are_counted_and_the_unmeasured_are_not() -> None:
    assert level_counts([0, 4, 4, None, 2]) == [1, 0, 1, 0, 2]


FORTY: dict[str, int | None] = {f"f{i:02d}": 2 + i % 2 for i in range(80)}
OF_FOUR = {fact: "ABCD"[int(fact[1:]) // 20] for fact in FORTY}


def _drawn(level: int = 2, draw: int = 0, seed: int = 0, size: int | None = 20) -> list[str]:
    return _ids(FORTY, OF_FOUR, level=level, size=size, draw=draw, seed=seed)


def test_draw_seed_and_level_each_have_a_stream_of_their_own() -> None:
    places = {int(fact[1:]) // 2 for fact in _drawn()}
    for other in (_drawn(draw=1), _drawn(seed=1), _drawn(level=3)):
        assert {int(fact[1:]) // 2 for fact in other} != places
    assert _drawn(draw=1, seed=0) != _drawn(draw=0, seed=1)
    assert _drawn() == _ids(dict(reversed(FORTY.items())), OF_FOUR, level=2, size=20, draw=0, seed=0)


def test_a_drawn_set_stays_the_same_from_version_to_version() -> None:
    assert _drawn(size=8) == ["f42", "f78", "f16", "f38", "f36", "f04", "f40", "f68"]


def test_each_fact_is_drawn_equally_often_and_relations_take_turns_in_a_new_order() -> None:
    """400 draws of 20 of 40: each fact in half of them; each relation first, second, third and fourth equally often."""
    times, order = Counter[str](), Counter[tuple[int, str]]()
    for draw in range(400):
        chosen = _drawn(draw=draw)
        times.update(chosen)
        for place, fact in enumerate(chosen[:8]):
            order[place, OF_FOUR[fact]] += 1
    assert len(times) == 40
    assert all(abs(count - 200) < 50 for count in times.values())  # 5 standard deviations
    assert len(order) == 8 * 4
    assert all(abs(count - 100) < 45 for count in order.values())


def _known(counts: Mapping[int, int]) -> KnownFacts:
    """So many training facts of each level, of three relations."""
    names = [(level, f"{level}.{number}") for level, count in counts.items() for number in range(count)]
    facts = {name: Fact(name, f"P{len(name) % 3}", "train", "in_domain", "s", "q", "a") for _, name in names}
    return KnownFacts(facts, [{"fact": name, "level": level} for level, name in names])


def test_mixed_sets_take_the_levels_in_turn_and_each_from_its_own_set() -> None:
    known = _known({0: 9, 2: 4, 3: 0})
    levels = [0, 2, 3]
    whole = draw_mixed_set(known, levels=levels, size=13, draw=1, seed=5)
    assert len({fact.id for fact in whole}) == 13
    for level in (0, 2):
        own = [fact for fact in whole if known.levels[fact.id] == level]
        assert own == draw_training_set(known, level=level, size=len(own), draw=1, seed=5)
    for size in range(1, 14):
        drawn = draw_mixed_set(known, levels=levels, size=size, draw=1, seed=5)
        assert drawn == whole[:size]
        counts = Counter(known.levels[fact.id] for fact in drawn)
        assert abs(counts[0] - counts[2]) <= 1 or counts[2] == 4
    with pytest.raises(InputError, match=r"levels \[0, 2, 3\]: 14 training facts asked, 13 available"):
        draw_mixed_set(known, levels=levels, size=14, draw=1, seed=5)
