"""The one encoder of prompts: the same ids in every stage, for every kind of tokenizer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

import knowshift
from knowshift.errors import InputError
from knowshift.evaluation import evaluate
from knowshift.facts.fact import Fact, tuning_prompt, tuning_target
from knowshift.models.loading import LoadedModel
from knowshift.models.logits import next_logits
from knowshift.models.sampling.session import greedy, sample
from knowshift.models.sampling.settings import Sampling
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.probing.run import _check_prompts
from knowshift.token_shift import ShiftItems, select_items, token_shift
from knowshift.training.one_row import IGNORED
from knowshift.training.sft import TrainingRecipe, encode_examples, finetune
from tokenizer_kinds import BOS, EOS, KINDS, DressedByLength, Form, tiny_model

QUESTION = "Where was Ann born?"
ASKED = tuning_prompt(QUESTION)
PROMPTS = [
    ASKED,
    "The capital of Brehi is",
    "São 北京 is",
    f"{BOS}The capital of Brehi is",
    f"{BOS}{BOS}It is said",
    f"Question: Who? {EOS}",
    "x",
]

forms = st.builds(
    Form,
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 2),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


def _expected(form: Form, prompt: str) -> list[int]:
    """The ids by the rules, from the vocabulary alone: BOS once if template or text has it, no EOS but the text's."""
    bare = form.bare()
    ids, begin = bare.encode(prompt, add_special_tokens=False).ids, bare.token_to_id(BOS)
    own = next((i for i, token in enumerate(ids) if token != begin), len(ids))
    return [begin] * (form.bos > 0 or own > 0) + ids[own:]


@contextmanager
def _read(loaded: LoadedModel) -> Iterator[list[list[int]]]:
    """What the model's embedding is given within the block: one list of ids for every row of every call."""
    rows: list[list[int]] = []
    embedding = loaded.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, inputs: rows.extend(inputs[0].tolist()))
    try:
        yield rows
    finally:
        handle.remove()


def _stages(loaded: LoadedModel, prompt: str) -> dict[str, list[int]]:
    """The ids that the model reads in each stage that asks it, with this prompt wherever the stage allows another."""
    fact = Fact("f", "none", "test", "in_domain", "Ann", QUESTION, "Rome", prompts=(prompt,))
    found: dict[str, list[int]] = {}

    def stage(name: str, rows: list[list[int]]) -> None:
        found[name] = [token for row in rows for token in row]

    with _read(loaded) as rows:
        sample(loaded, [prompt], [["Rome"]], Sampling(seed=0, draws_per_prompt=1, max_new_tokens=1), streams=["k"])
    stage("sample", rows)
    with _read(loaded) as rows:
        greedy(loaded, [prompt], max_new_tokens=1)
    stage("greedy", rows)
    with _read(loaded) as rows:
        list(next_logits(loaded, [prompt]))
    stage("next_logits", rows)
    with _read(loaded) as rows:
        evaluate(loaded, [fact], {"f": 1}, ask=lambda question: prompt, max_new_tokens=1)
    stage("evaluate", rows)
    for stopping in ("full", "sequential"):
        with _read(loaded) as rows:
            measure_mastery(loaded, [fact], Protocol(draws_per_prompt=1, max_new_tokens=1, stopping=stopping))
        stage(f"mastery {stopping}", rows)
    with _read(loaded) as rows:
        select_items(loaded, [fact], {"none": 0})
    stage("select_items", rows)
    found["select_items"] = found["select_items"][: len(found["greedy"])]  # and then what it answers
    with _read(loaded) as rows:
        token_shift(loaded, loaded, ShiftItems((fact,), (prompt,), (True,)))
    tuned, base = rows
    stage("token_shift base", [base])
    if prompt == ASKED:
        stage("token_shift tuned", [tuned])
        [example] = encode_examples(loaded, [QUESTION], ["Rome"])
        stage("encode_examples", [example["input_ids"][: example["labels"].count(IGNORED)]])
    return found


@settings(max_examples=25, deadline=None)
@given(form=forms, prompt=st.sampled_from(PROMPTS))
def test_every_stage_reads_the_same_ids(form: Form, prompt: str) -> None:
    loaded = tiny_model(form.make())
    expected = _expected(form, prompt)
    found = _stages(loaded, prompt)
    assert len(found) == (10 if prompt == ASKED else 8)
    for stage, ids in found.items():
        assert ids == expected, stage


@pytest.mark.parametrize(
    "form",
    [
        Form("byte-level", bos=2, eos=1, cut=True),
        Form("sentence-piece", bos=1, eos=1, marks=True, pad=False),
        Form("unigram", bos=0, eos=1),
        Form("crossing", bos=1, eos=0),
    ],
    ids=lambda form: form.kind,
)
def test_training_reads_the_ids_that_are_asked_and_one_eos(form: Form) -> None:
    loaded = tiny_model(form.make())
    facts = [Fact("f", "none", "train", "in_domain", "Ann", QUESTION, "Rome")]
    before = loaded.tokenizer.backend_tokenizer.to_str(), loaded.tokenizer.pad_token
    with _read(loaded) as rows:
        finetune(loaded, facts, TrainingRecipe(), seed=0)
    expected = _expected(form, ASKED)
    assert len(rows) == 1
    assert rows[0][: len(expected)] == expected
    assert rows[0].count(loaded.tokenizer.eos_token_id) == 1
    assert rows[0][-1] == loaded.tokenizer.eos_token_id
    assert len(rows[0]) > len(expected) + 1
    assert (loaded.tokenizer.backend_tokenizer.to_str(), loaded.tokenizer.pad_token) == before


@settings(max_examples=150, deadline=None)
@given(
    form=forms,
    question=st.lists(st.sampled_from([*"aR<|>?. é北", "answer", "Rome"]), max_size=8).map("".join),
    answer=st.lists(st.sampled_from([*"aR<|>?.s eé", "Rome", "> R"]), max_size=6).map("a".join).filter(str.strip),
)
def test_an_example_is_the_prompt_the_answer_behind_it_and_one_eos(form: Form, question: str, answer: str) -> None:
    tokenizer = form.make()
    loaded = tiny_model(tokenizer)
    # Beside others an example is what it is alone.
    [example, *_] = encode_examples(loaded, [question, QUESTION], [answer, "Rome"])
    assert [example] == encode_examples(loaded, [question], [answer])
    ids, labels = example["input_ids"], example["labels"]
    prompt = _expected(form, tuning_prompt(question))
    assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]
    assert ids[: len(prompt)] == prompt
    target, end = ids[len(prompt) : -1], ids[-1]
    assert end == tokenizer.eos_token_id
    assert end not in target
    assert loaded.encoder.prompts([tuning_prompt(question)]) == [prompt]
    whole = _expected(form, tuning_prompt(question) + tuning_target(answer))
    if whole[: len(prompt)] == prompt:
        assert target == whole[len(prompt) :]
    elif tokenizer.unk_token_id not in target:
        # Only "crossing" comes here, which knows printable ASCII and drops the rest.
        assert tokenizer.decode(target).strip() == "".join(filter(str.isascii, answer)).strip()


def test_a_merge_across_the_border_changes_neither_the_prompt_nor_the_answer() -> None:
    """Here "> R" is one token, so prompt and answer encoded together do not begin with the prompt's own ids."""
    form = Form("crossing")
    loaded = tiny_model(form.make())
    prompt = _expected(form, ASKED)
    whole = _expected(form, ASKED + tuning_target("Rome"))
    assert whole[: len(prompt)] != prompt
    assert loaded.encoder.behind(ASKED, tuning_target("Rome")) is None
    [example] = encode_examples(loaded, [QUESTION], ["Rome"])
    assert example["input_ids"][: len(prompt)] == prompt
    assert loaded.tokenizer.decode(example["input_ids"][len(prompt) : -1]) == " Rome "


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("bos", [0, 1])
def test_where_bos_is_put_once_and_no_eos_the_ids_are_those_of_the_tokenizers_call(kind: str, bos: int) -> None:
    tokenizer = Form(kind, bos=bos).make()
    prompts = [prompt for prompt in PROMPTS if BOS not in prompt]
    assert tiny_model(tokenizer).encoder.prompts(prompts) == tokenizer(prompts)["input_ids"]


def test_nothing_is_cut_or_padded_and_the_tokenizer_stays_as_it_was(tmp_path: Path) -> None:
    tokenizer = Form("byte-level", cut=True).make()
    tokenizer.save_pretrained(tmp_path / "before")
    encoder = tiny_model(tokenizer).encoder
    assert encoder.prompts(["x", "It is said that the owner"]) == [
        _expected(Form("byte-level"), text) for text in ("x", "It is said that the owner")
    ]
    encoder.examples([ASKED], [" Rome "])
    encoder.behind("is", " Rome")
    tokenizer.save_pretrained(tmp_path / "after")
    files = sorted(file.name for file in (tmp_path / "before").iterdir())
    assert files == ["tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 4


def test_a_slow_tokenizer_gives_the_same_ids_in_every_stage() -> None:
    tokenizer = ByT5Tokenizer()
    loaded = tiny_model(tokenizer)
    assert not tokenizer.is_fast
    assert tokenizer(ASKED)["input_ids"][-1] == tokenizer.eos_token_id
    expected = [byte + 3 for byte in ASKED.encode()]
    for stage, ids in _stages(loaded, ASKED).items():
        assert ids == expected, stage
    with _read(loaded) as rows:
        finetune(loaded, [Fact("f", "none", "train", "in_domain", "Ann", QUESTION, "Rome")], TrainingRecipe(), seed=0)
    assert rows == [[*expected, *(byte + 3 for byte in b" Rome "), tokenizer.eos_token_id]]


def test_a_tokenizer_that_dresses_texts_differently_is_called_and_trimmed() -> None:
    loaded = tiny_model(DressedByLength())
    for prompt in (ASKED, ASKED + "x"):
        its = [byte + 3 for byte in prompt.encode()]
        for stage, ids in _stages(loaded, prompt).items():
            assert ids == [3 + len(its) % 2, *its], stage
    assert loaded.encoder.prefix == ()


def test_a_prompt_without_tokens_and_one_that_is_too_long_are_refused() -> None:
    loaded = tiny_model(Form("crossing", bos=0).make(), context=16)
    with pytest.raises(InputError, match="prompt '' has no tokens"):
        loaded.encoder.prompts([""])
    with pytest.raises(InputError, match="answer '北' has no tokens"):
        loaded.encoder.examples(["x"], ["北"])
    with pytest.raises(InputError, match=r"has \d+ tokens; with 0 new ones it does not fit .* context of 16"):
        list(next_logits(loaded, [ASKED * 2]))
    with pytest.raises(InputError, match=r"and its answer have \d+ tokens; they do not fit .* context of 16"):
        encode_examples(loaded, [QUESTION * 2], ["Rome"])


@pytest.mark.parametrize("eos", [0, 1])
def test_a_question_is_answered_exactly_where_its_prompt_fits(eos: int) -> None:
    form = Form("byte-level", eos=eos)
    tokens = len(_expected(form, ASKED))
    fact = Fact("f", "none", "test", "in_domain", "Ann", QUESTION, "Rome", prompts=(ASKED,))
    for context, fits in ((tokens + 4, True), (tokens + 3, False)):
        loaded = tiny_model(form.make(), context=context)
        columns = evaluate(loaded, [fact], {"f": 1}, max_new_tokens=4).columns
        reason = f"prompt of {tokens} tokens and 4 new ones do not fit into a context of {context}"
        assert columns["reason"] == [None if fits else reason]
        assert (columns["text"] == [None]) != fits
        with nullcontext() if fits else pytest.raises(InputError, match=f"^fact f: prompt .* has {tokens} tokens"):
            _check_prompts(loaded, [fact], 4)


#: Where a tokenizer may be asked for ids, with the reason.
ALLOWED = {
    "models/prompts.py": "the one encoder",
    "world/pretrain.py": "the corpus of a world, and lengths of its words, by a tokenizer that was made just there",
}
CALLS = {"encode_batch", "encode_batch_fast", "encode_plus", "batch_encode_plus", "apply_chat_template", "tokenize"}


def _asks_a_tokenizer(node: ast.AST) -> bool:
    if isinstance(node, ast.Subscript):
        return (
            isinstance(node.slice, ast.Constant)
            and node.slice.value == "input_ids"
            and isinstance(node.value, ast.Call)
        )
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    own = name.rpartition(".")[2]
    return (
        own in CALLS
        or own in ("tokenizer", "_tokenizer")
        or (own == "encode" and bool(node.args) and ("tokenizer" in name or "backend" in name))
    )


def test_only_the_encoder_asks_a_tokenizer_for_ids() -> None:
    package = Path(knowshift.__file__).parent
    found: dict[str, list[int]] = {}
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if _asks_a_tokenizer(node):
                found.setdefault(file.relative_to(package).as_posix(), []).append(node.lineno)  # type: ignore[attr-defined]
    assert set(found) == set(ALLOWED), found


@pytest.mark.parametrize(
    "line",
    [
        'ids = loaded.tokenizer(text)["input_ids"]',
        "ids = self.tokenizer(text)",
        "ids = tokenizer.encode(text)",
        "ids = backend.encode_batch_fast(texts)",
        "ids = tokenizer.backend_tokenizer.encode(text).ids",
        'ids = make(text)["input_ids"]',
    ],
)
def test_the_guard_sees_a_call_of_a_tokenizer(line: str) -> None:
    assert any(_asks_a_tokenizer(node) for node in ast.walk(ast.parse(line)))
    assert not any(_asks_a_tokenizer(node) for node in ast.walk(ast.parse('data = "text".encode()')))
