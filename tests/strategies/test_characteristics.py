"""Strategies that choose training facts by one characteristic: which facts, how many of each level, nested, seeded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.evaluation import plain_question
from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt, tuning_target
from knowshift.facts.relations import RELATIONS
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel
from knowshift.training.sft import TrainingRecipe, examples_of
from knowshift.training.strategy import Draw, Strategy
from knowshift.tuning.data.paraphrases import Paraphrases, form_of
from knowshift.tuning.data.parts import AnswerFrequency, AnswerLength, Parted, SubjectFrequency, part_of
from knowshift.tuning.data.relation_mix import RelationMix
from knowshift.tuning.data.unknown import Unknown
from knowshift.tuning.registry import STRATEGIES, strategy_of

PARTED = pytest.mark.parametrize("kind", [AnswerFrequency, SubjectFrequency, AnswerLength])


def mastered(counts: list[int], relations: int = 5, seed: int = 0) -> KnownFacts:
    """So many training facts of each level, of relations in turn, with answers and exposures at random."""
    rng = np.random.default_rng(seed)
    levels = [level for level, count in enumerate(counts) for _ in range(count)]
    facts = [
        Fact(
            f"f{i}",
            f"R{i % relations}",
            "train",
            "in_domain",
            f"s{i}",
            "q",
            "abcdefghij"[: 1 + int(rng.integers(10))],
            exposures=int(rng.integers(40)),
        )
        for i in range(len(levels))
    ]
    other = Fact("t", "R0", "test", "in_domain", "s", "q", "a" * 99, exposures=0)
    rows = [{"fact": fact.id, "level": level} for fact, level in zip(facts, levels, strict=True)]
    return KnownFacts({fact.id: fact for fact in [*facts, other]}, [*rows, {"fact": "t", "level": 0}])


def levels_of(known: KnownFacts, facts: list[Fact]) -> list[int]:
    return [known.levels[fact.id] for fact in facts]


def checked(strategy: Strategy, asked: Draw) -> list[Fact]:
    """The facts of a draw, which begin with those of half the size, and are the same when drawn again."""
    found = strategy.facts(asked)
    assert len(found) == len(asked.members)
    assert found == strategy.facts(replace(asked))
    assert strategy.facts(replace(asked, size=len(found) // 2 or 1)) == found[: len(found) // 2 or 1]
    assert all(fact.split == "train" for fact in found)
    return found


MIXED = st.sampled_from([None, 0, 2, 4])


@PARTED
@given(
    counts=st.lists(st.integers(40, 90), min_size=5, max_size=5),
    level=MIXED,
    parts=st.integers(2, 4),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_a_part_holds_the_facts_of_its_place_of_each_level_and_relation(
    kind: type[Parted], counts: list[int], level: int | None, parts: int, seed: int, data: st.DataObject
) -> None:
    known, part = mastered(counts, seed=seed), data.draw(st.integers(1, parts))
    numbers = kind().numbers(known)
    frequency = Counter(fact.answer for fact in known.of("train"))
    by = {
        "answer-frequency": lambda fact: frequency[fact.answer],
        "subject-frequency": lambda fact: fact.exposures,
        "answer-length": lambda fact: len(fact.answer),
    }
    assert numbers == {fact.id: by[kind.name](fact) for fact in known.of("train")}
    divided = [part_of(known, numbers, one, parts, seed) for one in range(1, parts + 1)]
    assert Counter(one for those in divided for one in those) == Counter(fact.id for fact in known.of("train"))
    groups: dict[tuple[int, str], list[list[int]]] = {}
    for place, those in enumerate(divided):
        for fact in known.of("train"):
            one = groups.setdefault((known.levels[fact.id], fact.relation), [[] for _ in range(parts)])
            if fact.id in those:
                one[place].append(numbers[fact.id])
    for those in groups.values():
        assert max(map(len, those)) - min(map(len, those)) <= 1
        assert all(max(a) <= min(b) for a, b in pairwise(those))
    size = data.draw(st.integers(2, 8))
    asked = Draw(known, level=level, size=size, draw=data.draw(st.integers(0, 3)), seed=seed)
    found = checked(kind(part=part, parts=parts), asked)
    assert {fact.id for fact in found} <= divided[part - 1]
    assert len({fact.id for fact in found}) == size
    assert levels_of(known, found) == levels_of(known, asked.members)


@PARTED
def test_a_part_with_too_few_facts_is_refused(kind: type[Parted]) -> None:
    known = mastered([40, 8, 0, 0, 0])
    said = f"{kind.name}, part 2 of 4: 5 training facts of level 1 asked, 3 available"
    with pytest.raises(InputError, match=said):  # of the eight facts of level 1, those of five relations
        kind(part=2).facts(Draw(known, level=None, size=10, draw=0, seed=1))
    with pytest.raises(InputError, match=f"{kind.name}: part: expected a whole number of 1 to 3, found 4"):
        kind(part=4, parts=3)


def test_a_subject_without_exposures_is_refused() -> None:
    known = mastered([8])
    facts = {one: replace(fact, exposures=None) for one, fact in known.facts.items()}
    with pytest.raises(InputError, match=r"subject-frequency: fact 'f0' has no number of exposures; expected a world"):
        SubjectFrequency().facts(Draw(KnownFacts(facts, known.rows), level=0, size=1, draw=0, seed=1))


@given(
    counts=st.lists(st.integers(20, 60), min_size=5, max_size=5),
    level=MIXED,
    count=st.integers(1, 5),
    draw=st.integers(0, 3),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_few_relations_have_as_many_facts_of_each_level(
    counts: list[int], level: int | None, count: int, draw: int, seed: int, data: st.DataObject
) -> None:
    known, size = mastered(counts), data.draw(st.integers(1, 12))
    asked = Draw(known, level=level, size=size, draw=draw, seed=seed)
    needed = max(Counter(levels_of(known, asked.members)).values())
    if -(-needed // count) > min(counts) // 5:  # a relation may be short of facts; refused in a test below
        return
    found = checked(RelationMix(count=count), asked)
    assert len({fact.id for fact in found}) == size
    assert levels_of(known, found) == levels_of(known, asked.members)
    for one in set(levels_of(known, found)):
        there = Counter(fact.relation for fact in found if known.levels[fact.id] == one)
        assert max(there.values()) - (min(there.values()) if len(there) == count else 0) <= 1
    assert len({fact.relation for fact in found}) <= count
    assert {fact.relation for fact in found} <= RelationMix(count=count).relations(asked)
    if count == 5:
        assert found == asked.members


def test_relations_are_drawn_by_the_draw_and_among_those_with_facts_enough() -> None:
    known = mastered([50, 50])
    asked = [Draw(known, level=None, size=10, draw=draw, seed=1) for draw in range(20)]
    chosen = Counter(one for draw in asked for one in RelationMix(count=1).relations(draw))
    assert set(chosen) == {f"R{i}" for i in range(5)}
    few = KnownFacts(known.facts, [row for row in known.rows if known.facts[row["fact"]].relation != "R3"])
    assert all(RelationMix(count=1).relations(replace(draw, known=few)) != {"R3"} for draw in asked)
    said = (
        r"relation-mix: 5 relations asked that have training facts enough \(1 of level 0, 1 of level 1\); 4 of 4 have"
    )
    with pytest.raises(InputError, match=said):
        RelationMix(count=5).facts(replace(asked[0], known=few))
    with pytest.raises(InputError, match=r"1 relations asked .* \(11 of level 1\); 0 of 5 have"):
        RelationMix(count=1).facts(Draw(known, level=1, size=11, draw=0, seed=1))


@given(
    counts=st.lists(st.integers(0, 30), min_size=5, max_size=5),
    level=st.sampled_from([None, 1, 4]),
    share=st.floats(0, 1),
    draw=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_a_share_of_the_facts_is_unknown_and_the_others_are_of_the_other_levels(
    counts: list[int], level: int | None, share: float, draw: int, data: st.DataObject
) -> None:
    known = mastered(counts)
    available = sum(counts) if level is None else counts[level]
    if not available:
        return
    size = data.draw(st.integers(1, available))
    asked = Draw(known, level=level, size=size, draw=draw, seed=1)
    new = round(share * size)
    others = available - (counts[0] if level is None else 0)
    if new > counts[0] or size - new > others:
        with pytest.raises(InputError, match=r"\d+ training facts asked, \d+ available"):
            Unknown(share=share).facts(asked)
        return
    found = checked(Unknown(share=share), asked)
    assert len({fact.id for fact in found}) == size
    levels = levels_of(known, found)
    assert levels.count(0) == new
    rest = [one for one in levels if one]
    if level is not None:
        assert set(rest) <= {level}
        assert [fact for fact in found if known.levels[fact.id]] == asked.of(level, max(1, size - new))[: size - new]
    else:
        those = replace(asked, levels=(1, 2, 3, 4)).of(None, size - new) if rest else []
        assert [fact for fact in found if known.levels[fact.id]] == those
    for place in range(size + 1):  # spread evenly
        assert abs(levels[:place].count(0) - share * place) <= 1


def test_a_fifth_unknown_is_plain_fine_tuning_on_five_levels() -> None:
    known = mastered([30] * 5)
    asked = Draw(known, level=None, size=50, draw=1, seed=1)
    assert {fact.id for fact in Unknown(share=0.2).facts(asked)} == {fact.id for fact in asked.members}


def test_unknown_facts_alone_have_no_others() -> None:
    known = mastered([30] * 5)
    for asked in (
        Draw(known, level=0, size=4, draw=0, seed=1),
        Draw(known, level=None, size=4, draw=0, seed=1, levels=(0,)),
    ):
        with pytest.raises(InputError, match="unknown: the other facts are of other levels than 0; expected such"):
            Unknown().facts(asked)


@given(size=st.integers(1, 60), count=st.integers(1, 26), level=MIXED, draw=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_fewer_facts_stand_in_as_many_examples(size: int, count: int, level: int | None, draw: int) -> None:
    known = mastered([60] * 5)
    asked = Draw(known, level=level, size=size, draw=draw, seed=1)
    found = Paraphrases(count=count).facts(asked)
    assert len(found) == size
    times = Counter(fact.id for fact in found)
    assert list(times) == [fact.id for fact in asked.members[: len(times)]]
    assert len(times) == -(-size // count)
    assert max(times.values()) <= count
    if size % count == 0:
        assert set(times.values()) == {count}
    assert found == Paraphrases(count=count, same=True).facts(asked)


def test_the_forms_of_a_fact_are_all_others(knowing: tuple[LoadedModel, KnownFacts]) -> None:
    fact = knowing[1].of("train")[0]
    forms = [form_of(fact, number) for number in range(26)]
    relation = RELATIONS[fact.relation]
    asked = [fact.question, *(text.replace("{subject}", fact.subject) for text in relation.rewordings)]
    assert forms == [*map(tuning_prompt, asked), plain_question(fact.question), *completion_prompts(fact)]
    assert len(set(forms)) == 26
    with pytest.raises(InputError, match=f"paraphrases: 27 forms of fact '{fact.id}' asked, 26 available"):
        form_of(fact, 26)
    own = replace(fact, question="Where?", prompts=("It is",))  # a question that is not the relation's
    assert [form_of(own, number) for number in range(3)] == [tuning_prompt("Where?"), plain_question("Where?"), "It is"]
    with pytest.raises(InputError, match=r"4 forms of fact .* asked, 3 available"):
        form_of(own, 3)


@pytest.mark.parametrize("same", [False, True])
def test_each_example_of_a_fact_has_a_form_of_its_own(same: bool, knowing: tuple[LoadedModel, KnownFacts]) -> None:
    model, known = knowing
    strategy = Paraphrases(count=3, same=same)
    members = strategy.facts(Draw(known, level=0, size=9, draw=0, seed=1))
    examples, _ = examples_of(model, members, TrainingRecipe(batch_size=9, shared_prefix=True), strategy)
    texts = [model.tokenizer.decode(one["input_ids"], skip_special_tokens=True) for one in examples]
    assert texts == [
        form_of(fact, 0 if same else place // 3) + tuning_target(fact.answer) for place, fact in enumerate(members)
    ]


def test_which_strategies_train_on_facts_of_their_own() -> None:
    own = {name for name, kind in STRATEGIES.items() if kind.has_own_facts()}
    assert own == {
        *("lora-known", "mixed", "known", "replay", "known-last"),
        *("relation-mix", "answer-frequency", "subject-frequency", "answer-length", "paraphrases", "unknown"),
    }


def test_a_range_of_a_setting_is_refused() -> None:
    for name, given_, said in (
        ("relation-mix", {"count": 0}, "relation-mix: count: expected a whole number of at least 1"),
        ("answer-length", {"parts": 1}, "answer-length: parts: expected a whole number of at least 2"),
        ("paraphrases", {"count": 27}, "paraphrases: count: expected a whole number of 1 to 26"),
        ("unknown", {"share": 1.1}, "unknown: share: expected a number of 0 to 1"),
    ):
        with pytest.raises(InputError, match=said):
            strategy_of(name, given_)
