"""The facts and prompts that strategies train on: how many, which, in which order."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from knowshift.errors import InputError
from knowshift.evaluation import plain_question
from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt, tuning_target
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel
from knowshift.training.one_row import IGNORED
from knowshift.training.sft import TrainingRecipe, encode_examples, examples_of, finetune
from knowshift.training.strategy import Draw, Scored
from knowshift.tuning.data.forms import Forms
from knowshift.tuning.data.known import Known
from knowshift.tuning.data.known_last import KnownLast
from knowshift.tuning.data.replay import Replay

KINDS = pytest.mark.parametrize("kind", [Replay, KnownLast])


def mastered(counts: list[int]) -> KnownFacts:
    """So many training facts of each level, of five relations in turn."""
    levels = [level for level, count in enumerate(counts) for _ in range(count)]
    facts = [Fact(f"f{i}", f"R{i % 5}", "train", "in_domain", "s", "q", "a") for i in range(len(levels))]
    rows = [{"fact": fact.id, "level": level} for fact, level in zip(facts, levels, strict=True)]
    return KnownFacts({fact.id: fact for fact in facts}, rows)


@KINDS
@given(
    counts=st.lists(st.integers(0, 30), min_size=5, max_size=5),
    level=st.integers(0, 4),
    share=st.floats(0, 1),
    draw=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_facts_are_as_many_none_twice_and_a_share_is_known(
    kind: type[Replay], counts: list[int], level: int, share: float, draw: int, data: st.DataObject
) -> None:
    if not counts[level]:
        return
    known = mastered(counts)
    size = data.draw(st.integers(1, counts[level]))
    asked = Draw(known, level=level, size=size, draw=draw, seed=1)
    count = round(share * size)
    there = counts[3] + counts[4] - (size - count if level >= 3 else 0)
    if count > there:
        said = (
            f"{kind.name}: {count} training facts of levels 3 and 4 asked beside the {size - count} others, {there} av"
        )
        with pytest.raises(InputError, match=said):
            kind(share=share).facts(asked)
        return
    found = kind(share=share).facts(asked)
    assert len(found) == len({fact.id for fact in found}) == size
    others, replayed = found[: size - count], found[size - count :]
    assert sorted(fact.id for fact in others) == sorted(fact.id for fact in asked.members[: size - count])
    assert {known.levels[fact.id] for fact in replayed} <= {3, 4}
    assert found == kind(share=share).facts(Draw(known, level=level, size=size, draw=draw, seed=1))


def test_known_facts_are_of_both_levels_in_turn_and_balanced_over_relations() -> None:
    known = mastered([60, 0, 0, 40, 40])
    found = Replay(share=0.5).facts(Draw(known, level=0, size=40, draw=2, seed=1))
    assert Counter(known.levels[fact.id] for fact in found) == {0: 20, 3: 10, 4: 10}
    assert set(Counter(fact.relation for fact in found).values()) == {8}
    plain = Draw(known, level=0, size=40, draw=2, seed=1).members
    assert Replay(share=0.0).facts(Draw(known, level=0, size=40, draw=2, seed=1)) == plain
    other = Replay(share=0.5).facts(Draw(known, level=0, size=40, draw=3, seed=1))
    assert {fact.id for fact in other} != {fact.id for fact in found}


@given(counts=st.lists(st.integers(0, 30), min_size=5, max_size=5), draw=st.integers(0, 3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_best_known_facts_are_taken_first(counts: list[int], draw: int, data: st.DataObject) -> None:
    known, size = mastered(counts), data.draw(st.integers(1, 160))
    asked = [Draw(known, level=level, size=size, draw=draw, seed=1) for level in (None, 2)]
    if size > sum(counts):
        with pytest.raises(InputError, match=f"{size} training facts asked, {sum(counts)} available"):
            Known().facts(asked[0])
        return
    found = Known().facts(asked[0])
    assert found == Known().facts(asked[1])  # also where the level has too few of its own
    assert len(found) == len({fact.id for fact in found}) == size
    taken = Counter(known.levels[fact.id] for fact in found)
    well = min(size, counts[3] + counts[4])
    assert taken[3] + taken[4] == well
    assert abs(taken[3] - taken[4]) <= 1 or counts[3] == taken[3] or counts[4] == taken[4]
    rest = size - well
    for level in (2, 1, 0):
        assert taken[level] == min(rest, counts[level])
        rest -= taken[level]
    fewer = Known().facts(replace(asked[0], size=max(1, size // 2)))
    assert found[: len(fewer)] == fewer
    own = [fact for fact in found if known.levels[fact.id] == 4]
    assert not own or own == Draw(known, level=4, size=len(own), draw=draw, seed=1).members


def test_facts_before_the_known_ones_are_shuffled_by_the_seed() -> None:
    known = mastered([60, 0, 0, 40, 40])
    orders = [
        [fact.id for fact in KnownLast(share=0.25).facts(Draw(known, level=0, size=40, draw=0, seed=seed))]
        for seed in (1, 1, 2)
    ]
    plain = [fact.id for fact in Draw(known, level=0, size=40, draw=0, seed=1).members]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0][:30]) == sorted(plain[:30])
    assert orders[0][:30] != plain[:30]


@dataclass(frozen=True)
class Seen(KnownLast):
    """Remembers the tokens of each batch."""

    def losses(self, scored: Scored) -> Tensor:
        SEEN.append(scored.targets.tolist())
        return cross_entropy(scored.logits, scored.targets, reduction="none")


SEEN: list[list[int]] = []


def test_the_trainer_takes_the_facts_in_order(knowing: tuple[LoadedModel, KnownFacts]) -> None:
    model, known = replace(knowing[0], model=copy.deepcopy(knowing[0].model)), knowing[1]
    facts = Seen(share=0.25).facts(Draw(known, level=0, size=12, draw=0, seed=1))
    assert [known.levels[fact.id] for fact in facts] == [0] * 9 + [4] * 3
    SEEN.clear()
    finetune(model, facts, TrainingRecipe(batch_size=1, epochs=2), seed=0, strategy=Seen())
    examples = encode_examples(model, [fact.question for fact in facts], [fact.answer for fact in facts])
    assert 2 * [[label for label in one["labels"] if label != IGNORED] for one in examples] == SEEN


def test_prompt_forms_take_turns(knowing: tuple[LoadedModel, KnownFacts]) -> None:
    model, facts = knowing[0], knowing[1].of("train")[:9]
    examples, _ = examples_of(model, facts, TrainingRecipe(batch_size=9, shared_prefix=True), Forms())
    for place, (fact, example) in enumerate(zip(facts, examples, strict=True)):
        completions = completion_prompts(fact)
        form = (tuning_prompt(fact.question), plain_question(fact.question), completions[place // 3 % len(completions)])
        text = model.tokenizer.decode(example["input_ids"], skip_special_tokens=True)
        assert text == form[place % 3] + tuning_target(fact.answer)
        answer = torch.tensor([label for label in example["labels"] if label != IGNORED])
        assert model.tokenizer.decode(answer, skip_special_tokens=True) == tuning_target(fact.answer)
    bare = Fact("x", "nowhere", "train", "in_domain", "s", "q", "a")
    with pytest.raises(InputError, match="fact x: relation 'nowhere' has no completion prompts"):
        examples_of(model, [facts[0], facts[1], bare], TrainingRecipe(), Forms())
