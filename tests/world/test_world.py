"""Worlds: what is invented, how often it is written, and that the same seed makes the same world."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from knowshift.errors import InputError
from knowshift.facts.fact import completion_prompts
from knowshift.facts.relations import IN_DOMAIN, OUT_OF_DOMAIN
from knowshift.facts.sources.load import load_facts
from knowshift.models.finding import model_folder
from knowshift.models.loading import load_model
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.world.build import build_world, continue_world, sample_facts
from knowshift.world.corpus import QUESTION_FORMS, QUESTION_SHARE, sentences, wordings
from knowshift.world.invent import (
    DEFAULT_BANDS,
    DEFAULT_REPETITION,
    ExposureBand,
    Repetition,
    draw_exposures,
    invent_facts,
    with_exposures,
)
from knowshift.world.pretrain import Recipe, token_lengths
from tiny_models import SMALL

FACTS = with_exposures(invent_facts(3, train_per_relation=20, test_per_relation=5, out_of_domain_per_relation=5), 3)


def test_every_relation_has_its_facts() -> None:
    counts = Counter((fact.relation, fact.split) for fact in FACTS)
    assert counts == {
        **{(relation, "train"): 20 for relation in IN_DOMAIN},
        **{(relation, "test"): 5 for relation in IN_DOMAIN + OUT_OF_DOMAIN},
    }
    assert len({fact.subject for fact in FACTS}) == len(FACTS)


def test_no_answer_stands_inside_another_or_in_its_own_question() -> None:
    answers = {fact.answer for fact in FACTS}
    joined = "\n".join(sorted(answers))
    assert all(joined.count(answer) == 1 for answer in answers)
    assert not [fact for fact in FACTS if fact.answer in fact.question]


def test_the_same_seed_invents_the_same_facts_and_another_does_not() -> None:
    sizes = {"train_per_relation": 4, "test_per_relation": 2, "out_of_domain_per_relation": 2}
    assert invent_facts(1, **sizes) == invent_facts(1, **sizes)
    assert invent_facts(1, **sizes) != invent_facts(2, **sizes)


@given(st.integers(1, 400), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_exposures_stay_within_their_bands(count: int, seed: int) -> None:
    drawn = draw_exposures(count, DEFAULT_BANDS, np.random.default_rng(seed))
    assert drawn.shape == (count,)
    assert all(any(band.low <= value <= band.high for band in DEFAULT_BANDS) for value in drawn.tolist())


def test_bands_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(InputError, match=r"sum to 0\.500"):
        draw_exposures(3, [ExposureBand(0.5, 1, 2)], np.random.default_rng(0))


def test_the_corpus_says_each_fact_exactly_as_often_as_it_should() -> None:
    said = list(sentences(FACTS, 3))
    assert len(said) == sum(fact.exposures or 0 for fact in FACTS)
    by_subject = Counter(fact.subject for fact in FACTS for text in said if fact.subject in text)
    for fact in FACTS:
        assert by_subject[fact.subject] == fact.exposures


def test_one_sentence_in_five_is_a_question_in_many_forms_and_none_is_the_tuning_prompt() -> None:
    said = list(sentences(FACTS, 3))
    asked = {question for fact in FACTS for question in wordings(fact)}
    stated = {f"{prompt} {fact.answer}." for fact in FACTS for prompt in completion_prompts(fact)}
    questions = [text for text in said if text not in stated]
    assert abs(len(questions) / len(said) - QUESTION_SHARE) < 0.03
    assert all(any(question in text for question in asked) for text in questions[:200])
    assert len(QUESTION_FORMS) == len(set(QUESTION_FORMS)) == 14
    assert not [text for text in said if "<|question|>" in text or "<|answer|>" in text]


def test_more_subjects_than_names_are_refused() -> None:
    with pytest.raises(InputError, match="names of kind"):
        invent_facts(1, train_per_relation=9000, test_per_relation=1, out_of_domain_per_relation=1)


def test_a_built_world_opens_and_says_how_it_was_made(small_world: Path) -> None:
    record = json.loads((small_world / "world.json").read_text())
    facts = load_facts(f"world:{small_world}").facts
    loaded = load_model(f"world:{small_world}")
    assert record["facts"] == len(facts) == 10 * 6 + 24 * 3
    assert record["sentences"] == sum(fact.exposures or 0 for fact in facts)
    assert record["weights"] == sum(p.numel() for p in loaded.model.parameters())
    assert record["pretraining"]["final_loss"] < 6.0  # log(700) = 6.55 before training
    ids = loaded.tokenizer("Who?")["input_ids"]
    assert ids[0] == loaded.tokenizer.bos_token_id
    assert loaded.tokenizer.bos_token_id not in ids[1:]
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id
    assert sorted(path.name for path in small_world.iterdir()) == [
        "config.json",
        "facts.parquet",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "world.json",
    ]


def test_the_same_seed_builds_the_same_weights(small_world: Path, tmp_path: Path) -> None:
    facts = invent_facts(7, train_per_relation=6, test_per_relation=3, out_of_domain_per_relation=3)
    bands = (ExposureBand(0.2, 0, 0), ExposureBand(0.8, 5, 40))
    build_world(tmp_path / "again", facts, seed=7, recipe=SMALL, origin="invented", bands=bands)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (small_world / name).read_bytes()


def test_a_world_is_never_written_over_something(small_world: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        build_world(small_world, FACTS, seed=1, recipe=SMALL, origin="invented")


def test_real_facts_are_sampled_by_relation() -> None:
    sizes = {"train_per_relation": 7, "test_per_relation": 3, "out_of_domain_per_relation": 2}
    chosen = sample_facts(FACTS, 1, **sizes)
    counts = Counter((fact.relation, fact.split) for fact in chosen)
    assert set(counts.values()) == {7, 3, 2}
    assert chosen == sample_facts(FACTS, 1, **sizes)
    with pytest.raises(InputError, match="P17"):
        sample_facts([fact for fact in FACTS if fact.relation != "P17"], 1, **sizes)


def test_the_shipped_world_is_what_the_command_builds_by_default() -> None:
    folder = model_folder("world:tiny")
    record = json.loads((folder / "world.json").read_text())
    assert record["recipe"] == Recipe().as_record()
    assert record["bands"] == [asdict(band) for band in DEFAULT_BANDS]
    assert record["repetition"].items() >= asdict(DEFAULT_REPETITION).items()
    assert record["groups"] == {"train in_domain": 21000, "test in_domain": 2000, "test out_of_domain": 2100}
    counts = Counter((fact.split, fact.domain) for fact in load_facts("world:tiny").facts)
    assert counts["test", "in_domain"] >= 1500
    assert counts["test", "out_of_domain"] >= 1500
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000
    assert 1_000_000 <= record["weights"] <= 4_000_000


def test_every_level_of_the_shipped_world_holds_the_largest_training_set() -> None:
    """The record counted 1,920 or more of each level; 400 training facts, measured here, agree with its shares."""
    record = json.loads((model_folder("world:tiny") / "world.json").read_text())
    counted = record["levels"]["train in_domain"]
    assert min(counted) >= 1920
    facts = [fact for fact in load_facts("world:tiny").facts if fact.split == "train"]
    chosen = [facts[i] for i in sorted(np.random.default_rng(8).permutation(len(facts))[:400])]
    counts = measure_mastery(load_model("world:tiny"), chosen, Protocol(stopping="exact")).counts()
    for found, all_of_them in zip(counts, counted, strict=True):
        assert binomtest(found, 400, all_of_them / sum(counted)).pvalue > 1e-4


def test_a_world_that_is_continued_says_more_of_what_was_asked_for(small_world: Path, tmp_path: Path) -> None:
    repetition = Repetition(5, 12, 2, 4)
    before = {fact.id: fact.exposures or 0 for fact in load_facts(f"world:{small_world}").facts}
    record = continue_world(small_world, tmp_path / "more", repetition, recipe=SMALL, seed=7)
    facts = load_facts(f"world:{tmp_path / 'more'}").facts
    for fact in facts:
        more = (fact.exposures or 0) - before[fact.id]
        assert more in ((2, 3, 4) if 5 <= before[fact.id] <= 12 else (0,))
    assert record["sentences"] == sum(fact.exposures or 0 for fact in facts)
    assert record["repetition"]["sentences"] == record["sentences"] - sum(before.values())
    assert (tmp_path / "more" / "tokenizer.json").read_bytes() == (small_world / "tokenizer.json").read_bytes()
    assert (tmp_path / "more" / "model.safetensors").read_bytes() != (small_world / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="no fact is written 401 to 500 times"):
        continue_world(small_world, tmp_path / "none", Repetition(401, 500, 1, 2), recipe=SMALL, seed=7)
    assert not (tmp_path / "none").exists()


def test_names_and_answers_of_the_shipped_world_have_one_to_four_tokens() -> None:
    tokenizer = load_model("world:tiny").tokenizer
    facts = load_facts("world:tiny").facts
    for texts in ([fact.subject for fact in facts], [fact.answer for fact in facts]):
        lengths = token_lengths(tokenizer, texts)
        assert lengths.min() >= 1
        assert lengths.max() <= 4
