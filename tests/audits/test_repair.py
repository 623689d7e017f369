"""Which repair is chosen, and that a search leaves the model as it was."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knowshift.audits import repair
from knowshift.audits.candidates import COARSE, FIRST, SWEEPS, Candidate, each, rank, sweeps_for
from knowshift.audits.evidence import Answered, Evidence
from knowshift.audits.moves import Rates
from knowshift.audits.purposes.kept import Kept
from knowshift.audits.repair import Scores, Search, choose
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel
from knowshift.parameters.files.checkpoint import StoredTensors

KNOWN, KEPT = 200, 100
SUFFER = 0.02


def scores(known: float, kept: float, seed: int = 0) -> Scores:
    """So much known and kept; the same facts as in others of a smaller share."""
    order = np.random.default_rng(seed).permutation(KNOWN) / KNOWN, np.random.default_rng(9).permutation(KEPT) / KEPT
    return Scores((order[0] < known).astype(float), (order[1] < kept).astype(float))


def curve(*others: tuple[float, float]) -> list[tuple[Candidate | None, Scores]]:
    """The tuned model knows 40% and keeps 80%."""
    tried = [(Candidate("interpolate", (i + 1) / 10, "layers"), scores(*both)) for i, both in enumerate(others)]
    return [(None, scores(0.4, 0.8)), *tried]


def test_the_simplest_that_is_not_surely_worse_than_the_best_is_chosen() -> None:
    chosen = choose(curve((0.42, 0.8), (0.60, 0.8), (0.605, 0.8), (0.3, 0.8)), SUFFER)
    assert chosen is not None
    assert chosen.fraction == 0.2


def test_what_harms_the_purpose_is_not_chosen() -> None:
    assert choose(curve((0.9, 0.8 - 2 * SUFFER)), SUFFER) is None
    assert choose(curve((0.4, 0.8), (0.3, 0.8)), SUFFER) is None
    assert choose(curve((0.5, 0.8 - SUFFER / 2)), SUFFER) is not None


def test_a_difference_has_an_interval_over_both() -> None:
    found = scores(0.6, 0.8).minus(scores(0.4, 0.8))
    assert found.value == pytest.approx(0.1)
    assert found.low < 0.1 < found.high
    assert found.low > 0
    same = scores(0.5, 0.5).minus(scores(0.5, 0.5))
    assert same.value == 0
    assert same.low < 0 < same.high


@pytest.fixture
def searched(small_world: Path, small_model: LoadedModel) -> tuple[LoadedModel, Evidence]:
    """A model away from its base, and evidence that it knows half of the facts."""
    tuned = replace(small_model, model=copy.deepcopy(small_model.model))
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    facts = load_facts(f"world:{small_world}").facts[:40]
    known = np.arange(40) % 2 == 0
    some = Rates(known.astype(float), 20.0 * known, 20.0 * ~known)
    prompts = [f"Question: {fact.question} Answer:" for fact in facts]
    forms = [Answered("question", prompts, prompts, known, known, prompts)]
    return tuned, Evidence(facts, some, some, some, np.zeros(40, dtype=np.int64), forms)


def test_a_search_leaves_the_model_as_tuned_and_tries_all(
    small_world: Path, searched: tuple[LoadedModel, Evidence]
) -> None:
    tuned, evidence = searched
    before = {name: tensor.clone() for name, tensor in tuned.model.named_parameters()}
    purpose = Kept("keep.csv", [f"Question: {fact.question}" for fact in evidence.facts], [("a",)] * 40)
    counted: list[tuple[int, int]] = []
    search = Search(evidence, purpose, 0, lambda *told: counted.append(told))
    found = search.run(tuned, StoredTensors(small_world))
    total = len(each(COARSE))  # none can be chosen, since what the tuning was for is not known to be served
    assert len(found.curve) == total + 1
    assert counted[-1] == (total, total)
    ranks = [rank(candidate) for candidate, _ in found.curve if candidate is not None]
    assert ranks == sorted(ranks)
    assert not found.left_out
    assert all(torch.equal(before[name], tensor) for name, tensor in tuned.model.named_parameters())
    halves = search._facts
    assert {len(scores.known) for _, scores in found.curve} == {len(halves[0])}
    assert {len(scores.kept) for _, scores in found.curve} == {len(search._items[0])}
    assert found.chosen is None
    assert not set(halves[0].tolist()) & set(halves[1].tolist())


@given(
    facts=st.sets(st.integers(0, 99), min_size=1, max_size=40),
    items=st.sets(st.integers(0, 99), max_size=40),
    seed=st.integers(0, 9),
)
def test_the_fewer_are_cut_in_the_middle_and_a_question_is_in_one_half(
    facts: set[int], items: set[int], seed: int
) -> None:
    questions = [[f"What is {i}?" for i in sorted(some)] for some in (facts, items)]
    places = [repair._places(some, seed) for some in questions]
    cut = repair._cut(*places)
    fewer = places[0] if not items or len(facts) <= len(items) else places[1]
    assert abs(int((fewer < cut).sum()) - int((fewer >= cut).sum())) <= 1
    sides = [dict(zip(some, own < cut, strict=True)) for some, own in zip(questions, places, strict=True)]
    assert all(sides[0][question] == sides[1][question] for question in sides[0] if question in sides[1])
    assert repair._places([" WHAT is 1? "], seed) == repair._places(["what is 1?"], seed)


def test_a_search_that_has_no_time_says_what_it_left_out(
    small_world: Path, searched: tuple[LoadedModel, Evidence]
) -> None:
    found = Search(searched[1], None, 0).run(searched[0], StoredTensors(small_world), ends=0.0)
    assert len(found.curve) == 1
    assert len(found.left_out) == len(COARSE)
    assert found.chosen is None


def test_no_sweep_begins_when_the_time_is_over(
    small_world: Path, searched: tuple[LoadedModel, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much was planned: beginning one reads all weights."""
    begun: list[str] = []
    real = repair.RestorationSweep

    def begin(model: torch.nn.Module, base: StoredTensors, criterion: str, *given: object, **more: object) -> object:
        begun.append(criterion)
        return real(model, base, criterion, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(repair, "RestorationSweep", begin)
    monkeypatch.setattr(repair, "sweeps_for", lambda fit, coarse: list(COARSE))
    Search(searched[1], None, 0).run(searched[0], StoredTensors(small_world), ends=0.0)
    assert not begun


@given(st.floats(-5, 120), st.booleans())
def test_little_time_is_for_a_coarse_curve_and_its_controls(candidates: float, coarse: bool) -> None:
    sweeps = sweeps_for(candidates, coarse=coarse)
    some = each(sweeps)
    tiers = [set(FIRST), set(each(COARSE)), set(each(COARSE)) if coarse else set(each(SWEEPS))]
    assert len(some) == len(set(some)) == min(max(math.floor(candidates), 0), len(tiers[-1]))
    for done in range(len(some) + 1):  # whenever it ends, a tier was whole before the next began
        for tier, later in itertools.pairwise(tiers):
            assert set(some[:done]) >= tier or not set(some[:done]) & (later - tier)
    assert all(list(fractions) == sorted(fractions) for _, fractions, _ in sweeps)


def test_what_is_tried_first_is_one_of_the_sweeps() -> None:
    assert sorted(each(sweeps_for(math.inf))) == sorted(each(SWEEPS))
    assert sorted(each(sweeps_for(math.inf, coarse=True))) == sorted(each(COARSE))
    assert set(FIRST) <= set(each(COARSE)) <= set(each(SWEEPS))


def test_a_fact_is_asked_in_the_forms_in_which_one_of_the_two_models_knows_it(
    searched: tuple[LoadedModel, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, evidence = searched
    before, after = np.arange(40) < 8, np.arange(40) % 4 == 0
    names = ["base alone", "both", "tuned alone", "neither"]
    right = [(before, None), (before, after), (None, after), (~before & False, ~before & False)]
    forms = [
        Answered(name, None, None, *own, [f"{name} {i}" for i in range(40)])
        for name, own in zip(names, right, strict=True)
    ]
    asked: list[str] = []

    def never(loaded: LoadedModel, prompts: list[str], *given: object, **more: object) -> object:
        asked.extend(prompts)
        return np.zeros(len(prompts), dtype=bool)

    monkeypatch.setattr(repair, "answered", never)
    search = Search(replace(evidence, forms=forms), None, 0)
    search.score(0, tuned)
    facts = set(search._facts[0].tolist())
    assert sorted(asked) == sorted(
        [f"both {i}" for i in facts if before[i] or after[i]] + [f"tuned alone {i}" for i in facts if after[i]]
    )


def test_a_question_that_is_a_fact_and_an_item_is_in_one_half(searched: tuple[LoadedModel, Evidence]) -> None:
    _, evidence = searched
    asked = [fact.question for fact in evidence.facts]
    purpose = Kept("keep.csv", asked, [("a",)] * len(asked), questions=asked)
    search = Search(evidence, purpose, 0)
    for facts, items in ((0, 1), (1, 0)):
        mine = {evidence.facts[i].question for i in search._facts[facts].tolist()}
        assert not mine & {asked[i] for i in search._items[items].tolist()}


def test_too_few_items_choose_nothing(small_world: Path, searched: tuple[LoadedModel, Evidence]) -> None:
    tuned, evidence = searched
    for items in (2, 3, 12):
        purpose = Kept(
            "keep.csv", ["Question: Who?"] * items, [("e",)] * items, questions=[str(i) for i in range(items)]
        )
        search = Search(evidence, purpose, 0, untuned=np.zeros(items))
        assert search.run(tuned, StoredTensors(small_world), ends=0.0).chosen is None


def test_a_text_is_kept_by_the_share_of_what_tuning_has_gained(
    small_world: Path, searched: tuple[LoadedModel, Evidence]
) -> None:
    tuned, evidence = searched
    purpose = Kept("keep.txt", pieces=[[5 + i, 6, 7, 8] for i in range(40)])
    as_tuned = purpose.scores(tuned, range(40))
    search = Search(evidence, purpose, 0, untuned=as_tuned - 0.5)
    served = search.run(tuned, StoredTensors(small_world), ends=0.0).served
    assert served is not None
    assert served.value == pytest.approx(0.5)
    assert search.score_tuned(1, tuned).kept.tolist() == search.score(1, tuned).kept.tolist()
    assert search.score(0, tuned).kept.tolist() == pytest.approx([1.0] * len(search._items[0]))
