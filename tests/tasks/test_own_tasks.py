"""The loss on texts and the completion of sentences: against plain torch, and what they may hold."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from knowshift.errors import InputError
from knowshift.facts.fact import completion_prompts, tuning_prompt
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.tasks.sentences import FEWEST, Completion, begins, held_out
from knowshift.tasks.text_loss import PIECE, TextLoss, mean_nats, read_text
from knowshift.world.corpus import QUESTION_FORMS, sentences, wordings

FACTS = load_facts("world:tiny").facts
NEVER = {fact.id: fact for fact in FACTS if fact.exposures == 0 and fact.split == "test"}


def test_the_loss_is_that_of_the_model_itself(small_model: LoadedModel) -> None:
    """Of texts of several lengths read together, against transformers' loss of each by itself."""
    texts = ["Bomol is", "A storm", "Vefan Jatrin walked down the aisle with Jokul.", "x"]
    (told,) = TextLoss(texts).measure(small_model)
    nats, tokens = [], []
    for text in texts:
        ids = small_model.tokenizer(text, return_tensors="pt").input_ids
        tokens.append(ids.shape[1] - 1)
        with torch.inference_mode():
            nats.append(float(small_model.model(input_ids=ids, labels=ids).loss))
    assert told.values == pytest.approx(nats, rel=1e-5)
    assert told.weights == tokens
    assert told.score == pytest.approx(np.dot(nats, tokens) / sum(tokens))
    assert (told.task, told.metric, told.higher_is_better) == ("text_loss", "nats_per_token", False)
    rows = small_model.encoder.prompts(texts, 0)
    assert mean_nats(small_model, rows[::-1]).tolist() == pytest.approx(nats[::-1], rel=1e-5)


def test_a_long_text_is_cut_into_pieces_and_chosen_by_seed(small_model: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(sentences([fact for fact in FACTS if fact.exposures][:20], 3)), encoding="utf-8")
    text = read_text(file)
    every = TextLoss(whole=text).measure(small_model)[0]
    some = TextLoss(whole=text, limit=3, seed=1).measure(small_model)[0]
    ids = small_model.tokenizer(text, add_special_tokens=False).input_ids
    assert len(every.items) == len(ids) // PIECE > 3
    assert set(every.weights) == {float(PIECE)}  # <s> stands before each piece
    assert len(some.items) == 3
    by_item = dict(zip(every.items, every.values, strict=True))
    assert some.values == pytest.approx([by_item[item] for item in some.items], rel=1e-5)
    assert TextLoss(whole=text, limit=3, seed=2).measure(small_model)[0].items != some.items
    with pytest.raises(InputError, match=r"short\.txt: \d+ tokens; expected 256 at least"):
        TextLoss(whole="Hardly anything.", origin="short.txt").measure(small_model)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no such file"), (b"\xff\xfe", "not readable as UTF-8"), (b" \n", "holds no text")]
)
def test_a_text_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said) as told:
        read_text(file)
    assert str(file) in str(told.value)
    assert "\n" not in str(told.value)


def test_held_out_sentences_are_of_test_facts_that_the_corpus_never_wrote() -> None:
    texts = held_out(FACTS, None, 0, "world:tiny")
    subjects = {fact.subject for fact in NEVER.values()}
    known = {f"{prompt} {fact.answer}." for fact in NEVER.values() for prompt in completion_prompts(fact)}
    known |= {
        form.replace("{q}", asked).replace("{a}", fact.answer)
        for fact in NEVER.values()
        for asked in wordings(fact)
        for form in QUESTION_FORMS
    }
    assert set(texts) <= known
    assert len(texts) == 4 * len(NEVER)
    assert max(Counter(texts).values()) <= 4
    # A subject names one fact of a relation, so a sentence of the corpus is about another one.
    written = {(fact.relation, fact.subject) for fact in FACTS if fact.exposures}
    assert not {(fact.relation, fact.subject) for fact in NEVER.values()} & written
    asked = {tuning_prompt(fact.question) for fact in NEVER.values()}
    assert not any(text.startswith(tuple(asked)) for text in texts)
    assert all(any(subject in text for subject in subjects) for text in texts[:50])
    assert held_out(FACTS, 10, 0, "w") == texts[:10] == held_out(FACTS, 10, 0, "w") != held_out(FACTS, 10, 1, "w")


def test_a_source_that_is_no_world_is_refused() -> None:
    unknown = [replace(fact, exposures=None) for fact in FACTS[:50]]
    with pytest.raises(InputError, match=r"^text_loss: facts\.csv has no test fact that its corpus never wrote"):
        held_out(unknown, None, 0, "facts.csv")
    with pytest.raises(InputError, match=r"^completion: facts\.csv does not say how often"):
        Completion.of(unknown, None, 0, "facts.csv")
    elsewhere = [replace(fact, relation="of a user", prompts=("It is",)) for fact in NEVER.values()]
    with pytest.raises(InputError, match="text_loss"):
        held_out(elsewhere, None, 0, "facts.csv")


def test_the_shipped_base_completes_what_it_read_most_and_loses_most_on_what_it_never_read() -> None:
    """A task that the base fails at would tell nothing of a tuning."""
    base = load_model("world:tiny")
    task = Completion.of(FACTS, 60, 0, "world:tiny")
    often = sorted((fact.exposures or 0 for fact in FACTS if fact.split == "test"), reverse=True)
    assert all((fact.exposures or 0) >= often[len(often) // 20 + 1] for fact in task.facts)
    assert all(fact.split == "test" for fact in task.facts)
    (told,) = task.measure(base)
    assert len(told.items) == 60
    assert told.score > 0.75
    assert told.score == sum(v for v in told.values if v) / 60
    never = TextLoss(held_out(FACTS, 60, 0, "world:tiny")).measure(base)[0].score
    read = TextLoss(list(sentences(task.facts[:2], 5))[:60]).measure(base)[0].score
    assert read < never < 4  # a model that knows nothing has ln 4096 = 8.3


def test_few_written_facts_are_all_taken() -> None:
    test = [fact for fact in FACTS if fact.split == "test" and fact.exposures]
    assert len(Completion.of(test[:30], None, 0, "w").facts) == 30
    assert len(Completion.of(test[:200], None, 0, "w").facts) >= FEWEST


@pytest.mark.parametrize(
    ("text", "right"),
    [(" Oslo.", True), ("Oslo", True), (" Oslofjord", False), (" in Oslo", False), ("", False), (" Lima, of", True)],
)
def test_a_completion_begins_with_the_answer(text: str, right: bool) -> None:
    assert begins(text, ("Oslo", "Lima")) == right


def test_prompts_are_of_the_corpus_and_not_the_fine_tuning_prompt() -> None:
    task = Completion.of(FACTS, None, 0, "world:tiny")
    for fact, prompt in zip(task.facts, task.prompts, strict=True):
        assert prompt in completion_prompts(fact)
        assert not re.search(r"<\|", prompt)
    assert Completion.of(FACTS, None, 1, "world:tiny").prompts != task.prompts
