"""The first look at many facts: what prompts promise, which facts are kept, and what a study is given."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import knowshift
from commands import run
from knowshift.errors import InputError
from knowshift.facts.asking import GENERIC
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.probing.budget.screening import PROMPTS, Share, few_prompts, promised

WORLD = "world:tiny"


def _fact(number: int, split: str = "train", domain: str = "in_domain", relation: str = "P17") -> Fact:
    return Fact(f"f{number}", relation, split, domain, f"S{number}", f"Which {number}?", "A")  # type: ignore[arg-type]


def test_a_promise_is_the_probability_that_the_model_itself_gives_the_next_token() -> None:
    """Against one forward pass a prompt by transformers: tokens that complete an answer, and a tenth of beginnings.

    Here any beginning counts, of one letter too; of the spellings that are followed, a few are missing.
    """
    loaded = knowshift.load_model(WORLD)
    facts = list(few_prompts(knowshift.load_facts(WORLD).facts[:400:40], 0))
    found = promised(loaded, facts)
    texts = [loaded.tokenizer.decode([token]) for token in range(len(loaded.tokenizer))]
    for fact in facts:
        expected = []
        for prompt in fact.prompts:
            ids = torch.tensor([loaded.tokenizer(prompt).input_ids])
            with torch.no_grad():
                chances = (loaded.model(ids).logits[0, -1].double() / 0.7).softmax(0)
            total = 0.0
            for token, text in enumerate(texts[: len(chances)]):
                said = text.lower().lstrip()
                if any(answer.lower() in text.lower() for answer in fact.accepted):
                    total += float(chances[token])
                elif said and any(answer.lower().startswith(said) for answer in fact.accepted):
                    total += float(chances[token]) / 10
            expected.append(total)
        assert 0.9 * np.mean(expected) - 1e-3 <= found[fact.id] <= 1.001 * np.mean(expected) + 1e-6


def test_prompts_with_a_slot_for_the_question_are_read_with_the_question() -> None:
    """They were read with the slot, so that all facts of such a source promised by their answers alone."""
    loaded = knowshift.load_model(WORLD)
    some = knowshift.load_facts(WORLD).facts[:300:50]
    asked = [replace(fact, prompts=GENERIC[:PROMPTS]) for fact in some]
    filled = [replace(fact, prompts=completion_prompts(fact)) for fact in asked]
    assert promised(loaded, asked) == promised(loaded, filled)


@given(
    st.lists(st.tuples(st.sampled_from(["train", "test"]), st.booleans(), st.sampled_from("abc")), max_size=60),
    st.integers(0, 12),
    st.integers(0, 12),
    st.floats(1, 4),
    st.floats(0, 1),
    st.data(),
)
def test_what_is_looked_at_and_kept(
    kinds: list[tuple[str, bool, str]], train: int, test: int, times: float, likely: float, data: st.DataObject
) -> None:
    facts = [
        _fact(number, split, "in_domain" if near else "out_of_domain", relation)
        for number, (split, near, relation) in enumerate(kinds)
    ]
    share = Share(train, test, times, likely)
    looked_at = share.looked_at(facts, 3)
    assert len({fact.id for fact in looked_at}) == len(looked_at)
    promises = {fact.id: data.draw(st.floats(0, 1), label=fact.id) for fact in looked_at}
    kept = share.kept(promises, facts, 3)
    assert kept == share.kept(promises, facts, 3)
    assert kept == [fact for fact in facts if fact in kept]  # in their own order
    pools = [("train", None, train), ("test", "in_domain", test), ("test", "out_of_domain", test)]
    for split, domain, count in pools:

        def of_pool(some: list[Fact], split: str = split, domain: str | None = domain) -> list[Fact]:
            return [fact for fact in some if fact.split == split and domain in (None, fact.domain)]

        there, seen, own = of_pool(facts), of_pool(looked_at), of_pool(kept)
        assert len(seen) == min(len(there), int(np.ceil(count * times)))
        assert len(own) == min(len(there), count)
        assert set(own) <= set(seen)
        counts = Counter(fact.relation for fact in seen)
        for one, other in ((a, b) for a in counts for b in set("abc")):  # balanced over relations that have facts left
            if counts[other] < sum(fact.relation == other for fact in there):
                assert counts[one] <= counts[other] + 1
        top = sorted((promises[fact.id] for fact in seen), reverse=True)[: min(len(seen), round(count * likely))]
        assert sorted((promises[fact.id] for fact in own), reverse=True)[: len(top)] == top


def test_facts_of_one_relation_have_the_same_few_prompts() -> None:
    facts = [_fact(number, relation=relation) for number, relation in enumerate(["P17", "P19", "P17", "P19"])]
    found = list(few_prompts(facts, 1))
    assert [len(fact.prompts) for fact in found] == [PROMPTS] * 4
    for one, other in ((0, 2), (1, 3)):
        same = tuple(prompt.replace(facts[one].subject, facts[other].subject) for prompt in found[one].prompts)
        assert found[other].prompts == same
    assert list(few_prompts(facts, 1)) == found
    assert list(few_prompts(facts, 2)) != found


def test_a_look_ends_where_it_is_told_to() -> None:
    loaded = knowshift.load_model(WORLD)
    facts = list(few_prompts(knowshift.load_facts(WORLD).facts[:500], 0))
    heard: list[int] = []

    def once(count: int) -> bool:
        heard.append(count)
        return len(heard) < 2

    found = promised(loaded, facts, once)
    assert heard == [0, len(found)]
    assert 0 < len(found) < len(facts)


def test_the_command_keeps_facts_that_are_known(tmp_path: Path) -> None:
    """On the shipped world, whose facts say how often the model has read each."""
    table = tmp_path / "facts.parquet"
    arguments = [WORLD, "--facts", WORLD, "--train-facts", "60", "--test-facts", "20", "--output", str(table)]
    done = run(["screen", *arguments, "--likely", "1", "--json"])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    kept = knowshift.load_facts(str(table)).facts
    assert (told["facts"], told["looked_at"]) == (len(kept), 500) == (100, 500)
    everything = knowshift.load_facts(WORLD).facts
    assert kept == tuple(fact for fact in everything if fact in set(kept))
    assert Counter((fact.split, fact.domain) for fact in kept) == {
        ("train", "in_domain"): 60,
        ("test", "in_domain"): 20,
        ("test", "out_of_domain"): 20,
    }
    read = [fact.exposures or 0 for fact in kept]
    assert np.mean(read) > 1.5 * np.mean([fact.exposures or 0 for fact in everything])
    promise = pq.read_table(table).column("promise").to_pylist()
    assert all(value is not None for value in promise)
    assert told["likely"] == sum(value >= 0.01 for value in promise)
    about = json.loads(pq.read_schema(table).metadata[b"knowshift"])
    assert about["model"]["model"] == WORLD
    assert (about["source"], about["looked_at"], about["likely"], about["times"]) == (WORLD, 500, 1.0, 5.0)


def test_what_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "facts.parquet"
    own = [replace(fact, relation="mine", prompts=()) for fact in knowshift.load_facts(WORLD).facts[:5]]
    asked_by_hand = replace(own[0], prompts=(f"{own[0].subject} is",))
    asked = {"train_facts": 5, "test_facts": 0, "output": table}
    for given_, said in (
        ({"train_facts": 0}, "expected facts to keep"),
        ({"train_facts": 2.5}, "expected a whole number"),
        ({"times": 0.5}, "times 0.5: expected a number from 1"),
        ({"times": float("nan")}, "times nan: expected"),
        ({"likely": 1.5}, "likely 1.5: expected a number from 0 to 1"),
        ({"output": tmp_path / "facts.csv"}, r"expected a file that ends with .parquet"),
        ({"model": "http://localhost:1"}, "a server"),
        ({"facts": own}, "has no completion prompts"),
        ({"facts": [replace(own[0], split="test")]}, "none of its facts"),
        ({"facts": [replace(asked_by_hand, question="Who is <answer>?")]}, "cannot stand in a table"),
        ({"facts": [replace(asked_by_hand, answer=" A ")]}, "would be read otherwise"),
        ({"model": str(tmp_path / "none")}, "none"),
    ):
        arguments = {"model": WORLD, "facts": WORLD, **asked, **given_}
        with pytest.raises(InputError, match=said) as refused:
            knowshift.screen(**arguments)
        assert "\n" not in str(refused.value)
        assert not table.exists()
    repeated = replace(asked_by_hand, aliases=(own[0].answer, "B", "B"))
    knowshift.screen(WORLD, [repeated], train_facts=3, test_facts=0, output=table)
    assert knowshift.load_facts(str(table)).facts == (replace(asked_by_hand, aliases=("B",)),)
    knowshift.screen(WORLD, WORLD, train_facts=3, test_facts=0, output=table)
    before = table.read_bytes()
    with pytest.raises(InputError, match="expected another file"):
        knowshift.screen(WORLD, str(table), train_facts=2, test_facts=0, output=table)
    assert table.read_bytes() == before
