"""The one encoder of prompts: the token ids that sampling, answering, token shift and training show a model.

A tokenizer's call puts tokens round a text (BOS before it, EOS or SEP behind it), and tokenizers differ in which. The
ids of a prompt are, in every stage:

- what the tokenizer puts before a text, with BOS once however often its template or the prompt's own text repeats it;
- then the ids of the text;
- and nothing that the tokenizer puts behind a text: the model is to go on from here. An EOS that the prompt's own text
  ends with stays.

Nothing is cut or padded, whatever truncation and padding the tokenizer's file sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from knowshift.errors import InputError
from knowshift.models.vocabulary import Vocabulary

#: Texts that show what a tokenizer puts round every text.
_PROBES = ("a", "is it so? it is.")
#: Texts that may stand before an answer whose tokens merge with those of its own prompt.
_BEFORE = ("is", "a", ".", "1", "\n")


@dataclass(frozen=True)
class PromptEncoder:
    """Text to token ids for one model. ``context``: tokens that the model takes at most, None where unknown."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    context: int | None = None

    def prompts(self, texts: Sequence[str], new_tokens: int | None = None) -> list[list[int]]:
        """Token ids of every prompt; with ``new_tokens``, prompts must leave room in the context for so many more.

        Raises:
            InputError: a prompt has no tokens, has a token without an embedding, or does not fit.
        """
        if not texts:
            return []
        prefix = self._fixed_prefix
        if prefix is None:
            all_ids = [self._trim(text, ids) for text, ids in zip(texts, self._encode(texts, True), strict=True)]
        else:
            begins = self.tokenizer.bos_token_id
            all_ids = self._encode(texts, False)
            for i, ids in enumerate(all_ids):
                if ids and ids[0] == begins:
                    ids = _once(begins, ids)[begins in prefix :]
                all_ids[i] = prefix + ids
        room = None if new_tokens is None or self.context is None else self.context - new_tokens
        for text, ids in zip(texts, all_ids, strict=True):
            if not ids:
                raise InputError(f"prompt {text!r} has no tokens")
            if room is not None and len(ids) > room:
                raise InputError(
                    f"prompt {text[:60]!r}... has {len(ids)} tokens; with {new_tokens} new ones it does not fit "
                    f"into the model's context of {self.context}"
                )
        if self.vocabulary.without_embedding:
            for text, ids in zip(texts, all_ids, strict=True):
                self._check_rows("prompt", text, ids, self.vocabulary.embeddings)
        return all_ids

    def may_not_fit(self, text: str, new_tokens: int) -> bool:
        """False where the length of a prompt alone tells that it leaves room for so many more tokens.

        A byte gives at most three tokens (a space that is spelled "▁" in bytes), and a few stand before every text;
        only a text full of characters that normalisation expands has more.
        """
        return self.context is not None and 3 * len(text.encode()) + 8 + new_tokens > self.context

    def examples(self, prompts: Sequence[str], targets: Sequence[str]) -> list[tuple[list[int], int]]:
        """Training examples: ids of a prompt, of the target behind it, and one EOS; and how many are the prompt's.

        The prompt's ids are those of :meth:`prompts`, so a model is asked as it was trained. The target's ids are what
        follows them where prompt and target are encoded together. Where a merge across the border changes the prompt's
        own ids, the target is encoded behind a short text that it does not merge with; if there is none, alone.

        Raises:
            InputError: as :meth:`prompts`, and a target without tokens, or with one that the model cannot predict.
        """
        alone, both = self.plain(prompts), self.plain([p + t for p, t in zip(prompts, targets, strict=True)])
        return [
            self._example(prompt, target, ids, _behind(own, together))
            for prompt, target, ids, own, together in zip(
                prompts, targets, self.prompts(prompts), alone, both, strict=True
            )
        ]

    def _example(self, prompt: str, target: str, ids: list[int], answer: list[int] | None) -> tuple[list[int], int]:
        """One of :meth:`examples`; ``answer`` is None where the target's ids are not separate from the prompt's."""
        found = (self.behind(before, target) for before in _BEFORE)
        answer = answer or next((its for its in found if its is not None), None) or self.plain([target])[0]
        end = self.tokenizer.eos_token_id
        while answer and answer[-1] == end:
            answer = answer[:-1]
        if not answer:
            raise InputError(f"answer {target.strip()!r} has no tokens")
        self._check_rows("answer", target.strip(), answer, min(self.vocabulary.embeddings, self.vocabulary.logits))
        whole = [*ids, *answer, end]
        if self.context is not None and len(whole) > self.context:
            raise InputError(
                f"prompt {prompt[:60]!r}... and its answer have {len(whole)} tokens; they do not fit into the model's "
                f"context of {self.context}"
            )
        return whole, len(ids)

    def chat(self, message: str) -> str:
        """A user's message in the model's own chat template, up to where the answer begins.

        Templates that can be told not to have the model think first are told so: answers here are short.

        Raises:
            InputError: the tokenizer has no template, or it fails.
        """
        said = [{"role": "user", "content": message}]
        try:
            text = self.tokenizer.apply_chat_template(
                said, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except (
            Exception
        ) as error:  # a template is a program of whoever made the model; transformers runs it in a sandbox
            raise InputError(f"the model's chat template fails: {str(error)[:200]}") from None
        assert isinstance(text, str)
        return text

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the texts themselves, with nothing put round them."""
        return self._encode(texts, False)

    def behind(self, before: str, text: str) -> list[int] | None:
        """Token ids of ``text`` behind ``before``; None where they are not separate from those of ``before``."""
        return _behind(*self.plain([before, before + text]))

    @property
    def prefix(self) -> tuple[int, ...]:
        """What every prompt begins with; empty where the tokenizer puts nothing, or not always the same."""
        return tuple(self._fixed_prefix or ())

    @cached_property
    def _fixed_prefix(self) -> list[int] | None:
        """What the tokenizer puts before every text, BOS once; None where that is not known."""
        found: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
        for ids, dressed in zip(self._encode(_PROBES, False), self._encode(_PROBES, True), strict=True):
            starts = (i for i in range(len(dressed) - len(ids) + 1) if ids and dressed[i : i + len(ids)] == ids)
            round_it = {(tuple(dressed[:i]), tuple(dressed[i + len(ids) :])) for i in starts}
            found = round_it if found is None else found & round_it
        if not found:
            return None
        prefix, begins = min(found)[0], self.tokenizer.bos_token_id
        return [token for i, token in enumerate(prefix) if token != begins or begins not in prefix[:i]]

    def _trim(self, text: str, ids: list[int]) -> list[int]:
        """The same rules for the ids of a tokenizer's call, where the tokens that it puts round texts are not known."""
        told = self.tokenizer
        ends = {told.sep_token_id: str(told.sep_token), told.eos_token_id: str(told.eos_token)}
        while len(ids) > 1 and ids[-1] in ends and not (text.endswith(ends[ids[-1]]) and ids[-2] != ids[-1]):
            ids = ids[:-1]
        return _once(told.bos_token_id, ids)

    def _check_rows(self, what: str, text: str, ids: Sequence[int], rows: int) -> None:
        token = next((token for token in ids if token >= rows), None)
        if token is not None:
            raise InputError(
                f"{what} {text[:60]!r} holds the token {self.vocabulary.tokens.get(token)!r}, whose id is {token}; the "
                f"model's embeddings have {rows} rows; {self.vocabulary.remedy}"
            )

    def _encode(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        with _whole_texts(backend):
            if not self._by_backend:
                called = self.tokenizer(list(texts), add_special_tokens=special_tokens)["input_ids"]
                return [list(ids) for ids in called]
            # The same ids without the masks and offsets, which take three times as long to make.
            return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)]

    @cached_property
    def _by_backend(self) -> bool:
        """Whether the tokenizer has a fast backend and passes texts to it unchanged."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return False
        with _whole_texts(backend):
            called = self.tokenizer(list(_PROBES), add_special_tokens=True)["input_ids"]
            return bool(called == [e.ids for e in backend.encode_batch_fast(list(_PROBES), add_special_tokens=True)])


def _behind(alone: list[int], both: list[int]) -> list[int] | None:
    """What ``both`` has behind ``alone``; None where it does not begin with it, or ends there."""
    return both[len(alone) :] if both[: len(alone)] == alone and len(both) > len(alone) else None


def _once(token: int | None, ids: list[int]) -> list[int]:
    """The ids with ``token`` once where they begin with it, however often it is repeated there."""
    repeats = 0
    while repeats + 1 < len(ids) and token is not None and ids[repeats] == ids[repeats + 1] == token:
        repeats += 1
    return ids[repeats:]


@contextmanager
def _whole_texts(backend: Any) -> Iterator[None]:
    """Within the block the backend neither cuts nor pads; its settings are put back, which a tokenizer's call omits."""
    cut, padded = (None, None) if backend is None else (backend.truncation, backend.padding)
    if cut is not None:
        backend.no_truncation()
    if padded is not None:
        backend.no_padding()
    try:
        yield
    finally:
        if cut is not None:
            backend.enable_truncation(**cut)
        if padded is not None:
            backend.enable_padding(**padded)
