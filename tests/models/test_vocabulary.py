"""A model's vocabulary against its tokenizer's: padding rows take no part, tokens without a row are refused by name."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from knowshift.cli.app import main
from knowshift.errors import InputError, KnowshiftWarning
from knowshift.evaluation import evaluate
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.logits import next_logits
from knowshift.models.sampling.session import TreeSession, greedy, sample
from knowshift.models.sampling.settings import Sampling
from knowshift.models.vocabulary import TokenIds, Vocabulary
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT, read_table, write_table
from knowshift.token_shift import ShiftItems, token_shift
from knowshift.training.sft import TrainingRecipe, encode_examples, finetune
from tokenizer_kinds import Form, tiny_model

PROMPTS = ["The capital of Brehi is", "The capital of Zukar is", "Brehi", "It is said that the owner of Zukar Hill is"]
KEYS = [str(i) for i in range(len(PROMPTS))]


def _padded(loaded: LoadedModel, rows: int, scale: float, seed: int = 0) -> LoadedModel:
    """The model with so many more rows in embeddings and head, of any content, and the same tokenizer."""
    model = copy.deepcopy(loaded.model)
    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(size + rows, mean_resizing=False)
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            layer.weight[size:] = scale * torch.randn(rows, layer.weight.shape[1], generator=generator)
    return replace(loaded, model=model.eval())


def _facts(count: int, prompts: tuple[str, ...] = ()) -> list[Fact]:
    return [
        Fact(f"f{i}", "none", "test", "in_domain", f"S{i}", f"Who is S{i}?", "Zukar", prompts=prompts or (PROMPTS[0],))
        for i in range(count)
    ]


def test_ids_are_columns_of_logits() -> None:
    logits = torch.arange(12.0).reshape(2, 6)
    whole, holed = TokenIds.of(range(4)), TokenIds.of([0, 1, 3])
    assert whole.columns(logits).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert whole.columns(logits).data_ptr() == logits.data_ptr()
    assert holed == TokenIds(4, (2,))
    assert holed.columns(logits).tolist() == [[0, 1, -torch.inf, 3], [6, 7, -torch.inf, 9]]
    assert logits[0, 2] == 2
    assert [token in holed for token in (-1, 0, 2, 3, 4, None)] == [False, True, False, True, False, False]
    assert (len(holed), len(whole), len(TokenIds.of([]))) == (3, 4, 0)


def test_ids_that_name_no_token_and_those_without_a_row_are_told_apart() -> None:
    tokenizer = Form("byte-level").make()
    size = len(tokenizer)
    model = tiny_model(tokenizer, rows=size + 3).model
    vocabulary = Vocabulary.of(model, tokenizer)
    assert (vocabulary.usable, vocabulary.without_embedding) == (TokenIds(size), ())
    tokenizer.add_tokens(["novel", "another"])
    assert Vocabulary.of(model, tokenizer).usable == TokenIds(size + 2)
    assert Vocabulary.of(tiny_model(tokenizer, rows=size + 1).model, tokenizer).without_embedding == (size + 1,)


def test_two_ids_of_one_text_are_both_tokens() -> None:
    """A Unigram table may hold a piece twice; only one of the two is ever encoded, and either can be given."""
    told = json.loads(Form("unigram").make().backend_tokenizer.to_str())
    twice = told["model"]["vocab"][9][0]
    told["model"]["vocab"][20][0] = twice
    tokenizer = Form("unigram").make()
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(told))
    assert set(tokenizer.get_vocab().values()) == set(range(len(told["model"]["vocab"]))) - {9}
    assert Vocabulary.of(tiny_model(tokenizer).model, tokenizer).usable == TokenIds(len(told["model"]["vocab"]))


@pytest.fixture(scope="module")
def plain(small_world: Path) -> LoadedModel:
    return load_model(str(small_world))


SAMPLING = Sampling(seed=3, draws_per_prompt=6, max_new_tokens=9)
ITEMS = ShiftItems(tuple(_facts(3)), tuple(PROMPTS[:3]), (True,) * 3)


def _measured(model: LoadedModel) -> dict[str, Any]:
    """Samples, greedy texts, and what a session with draws tells of answers."""
    session = TreeSession(model, PROMPTS, [["Zukar"]] * len(PROMPTS), SAMPLING, streams=KEYS)
    session.draw([np.arange(6)] * len(PROMPTS))
    return {
        "sampled": sample(model, PROMPTS, [["a"]] * len(PROMPTS), SAMPLING, streams=KEYS, keep_texts=True),
        "greedy": greedy(model, PROMPTS, max_new_tokens=9),
        "expected": session.expected,
        "direct": session.direct(np.arange(len(PROMPTS))),
    }


@pytest.fixture(scope="module")
def unpadded(plain: LoadedModel) -> dict[str, Any]:
    """What is measured of the model that is padded, and the shift between it and itself."""
    return _measured(plain) | {"shift": token_shift(plain, plain, ITEMS).columns}


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 70), scale=st.sampled_from([0.0, 1.0, 1e3]), seed=st.integers(0, 9))
def test_padding_a_vocabulary_changes_nothing(
    plain: LoadedModel, unpadded: dict[str, Any], rows: int, scale: float, seed: int
) -> None:
    """Equal up to float rounding, which a matrix product of another width may change: texts and hits are the same."""
    padded = _padded(plain, rows, scale, seed)
    assert padded.vocabulary.logits == plain.vocabulary.logits + rows
    found = _measured(padded)
    assert (found["sampled"].hit == unpadded["sampled"].hit).all()
    assert found["sampled"].texts == unpadded["sampled"].texts
    assert found["greedy"] == unpadded["greedy"]
    assert found["expected"] == pytest.approx(unpadded["expected"], rel=1e-4)
    assert unpadded["expected"].max() > 0
    assert found["direct"] == pytest.approx(unpadded["direct"], rel=1e-4)
    shift = token_shift(plain, padded, ITEMS).columns
    assert shift["ids"] == unpadded["shift"]["ids"]
    assert shift["kl"] == pytest.approx(unpadded["shift"]["kl"], rel=1e-4)
    assert token_shift(padded, plain, ITEMS).columns["kl"] == pytest.approx(unpadded["shift"]["kl"], rel=1e-4)


def test_a_padding_row_is_never_drawn_and_the_rest_is_the_softmax_over_tokens(plain: LoadedModel) -> None:
    padded = _padded(plain, 60, 1e3)
    with torch.inference_mode():
        ids = torch.tensor(plain.encoder.prompts(PROMPTS[:1]))
        raw = padded.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].double()
    size = plain.vocabulary.logits
    assert raw.softmax(-1)[size:].sum() > 0.9
    [(_, logits)] = next_logits(padded, PROMPTS[:1])
    assert logits.shape == (1, size)
    assert torch.equal(logits[0].double().softmax(-1), raw[:size].softmax(-1))
    asked = (PROMPTS, [["#"]] * len(PROMPTS), Sampling(seed=0, draws_per_prompt=50))
    found = sample(padded, *asked, streams=KEYS, keep_texts=True)
    assert found.texts == sample(plain, *asked, streams=KEYS, keep_texts=True).texts
    assert found.texts is not None
    assert sum(texts[""] for texts in found.texts) < 20  # padding has no text


def test_an_id_below_the_largest_that_names_no_token_is_masked() -> None:
    told = json.loads(Form("byte-level").make().backend_tokenizer.to_str())
    hole = told["model"]["vocab"].pop("{")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)), bos_token="<s>", eos_token="</s>"
    )
    size = len(tokenizer) + 1
    loaded = tiny_model(tokenizer, rows=size)
    assert loaded.vocabulary.usable == TokenIds(size, (hole,))
    with torch.no_grad():
        head = loaded.model.get_output_embeddings().weight
        head[hole] = 1e3 * head[hole + 1]
        head[hole] *= torch.sign(loaded.model(torch.tensor([[1]])).logits[0, -1, hole])
        assert int(loaded.model(torch.tensor([[1]])).logits[0, -1].argmax()) == hole
    [(_, logits)] = next_logits(loaded, ["<s>"])
    assert logits[0, hole] == -torch.inf
    assert torch.isfinite(logits).sum() == size - 1
    # Such an id has no text, so a text of it alone would be empty.
    assert greedy(loaded, ["<s>"], max_new_tokens=1) != [""]
    found = sample(
        loaded,
        ["<s>"],
        [["#"]],
        Sampling(seed=0, draws_per_prompt=50, max_new_tokens=1),
        streams=["k"],
        keep_texts=True,
    )
    assert found.texts is not None
    assert found.texts[0][""] < 10


# -- tokens without a row: loading ------------------------------------------------------------------------------


def _saved(folder: Path, loaded: LoadedModel, change: Callable[[PreTrainedTokenizerBase], object]) -> Path:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    change(tokenizer)
    loaded.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_without_an_embedding_are_warned_of_once(plain: LoadedModel, tmp_path: Path) -> None:
    folder = _saved(tmp_path / "m", plain, lambda t: t.add_tokens(["Quux", "novel"]))
    size = plain.vocabulary.embeddings
    says = rf"m: the tokenizer knows 2 tokens .* the first is 'Quux' \(id {size}, {size} rows\)"
    with pytest.warns(KnowshiftWarning, match=says) as told:
        loaded = load_model(str(folder))
    assert len(told) == 1
    assert greedy(loaded, PROMPTS, max_new_tokens=5) == greedy(plain, PROMPTS, max_new_tokens=5)
    says = rf"prompt 'Is Quux in' holds the token 'Quux', whose id is {size}; the model's embeddings have {size} rows"
    for ask in (
        lambda: greedy(loaded, ["Is Quux in"]),
        lambda: sample(loaded, ["Is Quux in"], [["a"]], Sampling(seed=0), streams=["k"]),
        lambda: list(next_logits(loaded, ["Is Quux in"])),
        lambda: evaluate(loaded, _facts(1), {"f0": 1}, ask=lambda question: "Is Quux in"),
    ):
        with pytest.raises(InputError, match=says):
            ask()
    with pytest.raises(InputError, match=r"prompt '<\|question\|> Is Quux in"):
        encode_examples(loaded, ["Is Quux in?"], ["Rome"])
    with pytest.raises(InputError, match=rf"answer 'novel' holds the token 'novel', whose id is {size + 1}"):
        encode_examples(loaded, ["Where?"], ["novel"])
    # An answer may hold one: it can be spelled otherwise, so it is only not watched for.
    session = TreeSession(loaded, PROMPTS[:1], [["Quux"]], Sampling(seed=0, max_new_tokens=4), streams=["k"])
    session.draw([np.arange(10)])
    assert (session.hit >= 0).all()
    assert np.isnan(session.expected).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.add_special_tokens({"eos_token": "[END]"}), r"the end-of-sequence token '\[END\]' has id 700"),
        (
            lambda t: (t.add_special_tokens({"bos_token": "[BEGIN]"}), setattr(t, "add_bos_token", True)),
            r"every prompt begins with '\[BEGIN\]', whose id is 700",
        ),
    ],
)
def test_a_model_that_cannot_read_its_own_bos_or_eos_is_refused(
    plain: LoadedModel, tmp_path: Path, change: Callable[[PreTrainedTokenizerBase], object], says: str
) -> None:
    folder = _saved(tmp_path / "m", plain, change)
    assert plain.vocabulary.embeddings == 700
    with pytest.raises(InputError, match=rf"{says}, expected an id below the 700 rows .*resize_token") as told:
        load_model(str(folder))
    assert str(told.value).startswith(f"{folder}: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_a_pad_token_without_a_row_trains_the_same(plain: LoadedModel, tmp_path: Path, shared_prefix: bool) -> None:
    folder = _saved(tmp_path / "m", plain, lambda t: t.add_special_tokens({"pad_token": "[PAD]"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    with pytest.warns(KnowshiftWarning, match=r"the first is '\[PAD\]'"):
        loaded = load_model(str(folder))
    twin = replace(plain, model=copy.deepcopy(plain.model))
    facts = [replace(fact, answer=fact.answer * (1 + i % 2)) for i, fact in enumerate(_facts(16))]
    recipe = TrainingRecipe(learning_rate=1e-3, shared_prefix=shared_prefix)
    record = finetune(loaded, facts, recipe, seed=0)
    assert record == finetune(twin, facts, recipe, seed=0)
    for mine, other in zip(loaded.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    loaded.model.save_pretrained(tmp_path / "tuned")
    loaded.tokenizer.save_pretrained(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["pad_token_id"] is None
    assert (tmp_path / "tuned" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.warns(KnowshiftWarning, match=r"the first is '\[PAD\]'"):
        load_model(str(tmp_path / "tuned"))


# -- tokens without a row: the commands -------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """One command in this process: its exit status, and the lines on standard error without those of progress."""

    def run(*words: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["knowshift", *map(str, words)])
        with warnings.catch_warnings():
            warnings.simplefilter("always", KnowshiftWarning)
            with pytest.raises(SystemExit) as ended:
                main()
        lines = capsys.readouterr().err.splitlines()
        return int(ended.value.code or 0), [line for line in lines if line.startswith(("knowshift:", "Traceback"))]

    return run


@pytest.fixture
def inputs(plain: LoadedModel, tmp_path: Path) -> tuple[Path, str, list[object]]:
    """A table of facts that the small model begins its completions with, and a record that gives each level 4."""
    subjects = ["Brehi", "Zukar", "Ann", "Rome", "the hill", "it", "Xo", "Qi", "Ba", "Tu", "Vel", "Jor"]
    prompts = [f"The capital of {subject} is" for subject in subjects]
    texts = [text.split() for text in greedy(plain, prompts, max_new_tokens=8)]
    rows = [
        {
            "id": f"f{i}",
            "question": f"What is the capital of {subject}?",
            "subject": subject,
            "answer": text[0],
            "prompts": [prompt],
            "split": "train" if i % 2 else "test",
        }
        for i, (subject, prompt, text) in enumerate(zip(subjects, prompts, texts, strict=True))
    ]
    source = tmp_path / "facts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = load_facts(str(source)).facts
    columns = {
        "fact": [fact.id for fact in facts],
        "relation": [fact.relation for fact in facts],
        "split": [fact.split for fact in facts],
        "domain": [fact.domain for fact in facts],
        "exposures": [None] * len(facts),
        "prompt_hits": [[9]] * len(facts),
        "prompt_draws": [[10]] * len(facts),
        "hits": [9] * len(facts),
        "draws": [10] * len(facts),
        "rate": [0.9] * len(facts),
        "level": [4] * len(facts),
    }
    write_table(tmp_path / "m.parquet", MASTERY, columns, {})
    return tmp_path, str(source), ["--facts", source, "--mastery", tmp_path / "m.parquet"]


WARNED = "knowshift: warning: {model}: the tokenizer knows {count} tokens that the model has no embedding for"


def test_commands_work_with_tokens_that_no_text_holds(
    plain: LoadedModel,
    inputs: tuple[Path, str, list[object]],
    small_world: Path,
    call: Callable[..., tuple[int, list[str]]],
) -> None:
    """Added tokens without resizing: a pad token and a word that is in no prompt."""
    folder, source, told = inputs
    model = _saved(
        folder / "model", plain, lambda t: (t.add_special_tokens({"pad_token": "[PAD]"}), t.add_tokens("Qx"))
    )
    warned = WARNED.format(model=model, count=2)
    mastery = ["--facts", source, "--draws", 3, "--workers", 1, "--dtype", "float32"]  # whatever is fast here
    for name in ("sampled", "plain"):
        which = model if name == "sampled" else small_world
        status, lines = call("mastery", which, *mastery, "--output", folder / f"{name}.parquet")
        assert (status, [line.startswith(warned) for line in lines]) == (0, [True] * (name == "sampled"))
    assert read_table(folder / "sampled.parquet", MASTERY, "mastery")[0].equals(
        read_table(folder / "plain.parquet", MASTERY, "mastery")[0]
    )
    tuned = folder / "tuned"
    status, lines = call("finetune", model, *told, "--level", 4, "--size", 5, "--output-dir", tuned)
    assert (status, len(lines)) == (0, 1)
    assert lines[0].startswith(warned)
    status, lines = call("evaluate", tuned, *told, "--output", folder / "answers.parquet")
    assert (status, len(lines)) == (0, 1)
    assert None not in read_table(folder / "answers.parquet", ANSWERS, "answers")[0]["text"].to_pylist()
    status, lines = call("tokens", small_world, tuned, *told, "--output", folder / "shift.parquet")
    assert (status, len(lines)) == (0, 1)
    assert None not in read_table(folder / "shift.parquet", TOKEN_SHIFT, "token shift")[0]["kl"].to_pylist()


def test_commands_refuse_a_prompt_that_the_model_cannot_read(
    plain: LoadedModel,
    inputs: tuple[Path, str, list[object]],
    small_world: Path,
    call: Callable[..., tuple[int, list[str]]],
) -> None:
    """The marks of the fine-tuning prompt, and a word of a completion prompt, added to the tokenizer alone."""
    folder, source, told = inputs
    model = _saved(folder / "model", plain, lambda t: t.add_tokens(["<|question|>", "<|answer|>", "capital"]))
    warned = WARNED.format(model=model, count=3)
    before = sorted(folder.iterdir())
    facts = ["--facts", source]
    output = ["--output", folder / "o.parquet"]
    for words, says in (
        (["mastery", model, *facts, *output, "--workers", 1], "holds the token 'capital', whose id is 702"),
        (["evaluate", model, *told, *output], "holds the token '<|question|>', whose id is 700"),
        (
            ["finetune", model, *told, "--level", 4, "--output-dir", folder / "t"],
            "the token '<|question|>', whose id is 700",
        ),
        (["tokens", small_world, model, *told, *output], "holds the token"),
    ):
        status, lines = call(*words)
        assert status == 2, words
        assert len(lines) == 2, lines
        assert lines[0].startswith(warned)
        assert says in lines[1]
        assert "the model's embeddings have 700 rows; call model.resize_token_embeddings(703)" in lines[1]
    assert sorted(folder.iterdir()) == before
