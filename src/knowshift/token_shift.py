"""Token level: how far the first predicted token of a well-known fact has moved from the base (paper section 4.1).

Departure from the paper: only ids that are the same token in both models take part, so neither rows that pad a
vocabulary nor tokens that one of the two has in addition are among the ten. The logits are taken in float32 whatever
the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knowshift.errors import InputError
from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt
from knowshift.known_facts import KnownFacts
from knowshift.models.loading import LoadedModel
from knowshift.models.logits import next_logits
from knowshift.models.sampling.session import greedy
from knowshift.models.vocabulary import TokenIds, Vocabulary
from knowshift.records import TOKEN_SHIFT, write_table

TOP_TOKENS = 10

NOT_AT_START = "the base model's completion does not begin with the answer"


def renormalised_kl(tuned_logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL(tuned || base) in nats over the given logits, each softmaxed by itself: [..., K], [..., K] -> [...]."""
    tuned = torch.log_softmax(tuned_logits.double(), dim=-1)
    base = torch.log_softmax(base_logits.double(), dim=-1)
    return (tuned.exp() * (tuned - base)).sum(dim=-1)


def best_prompts(
    facts: Sequence[Fact], hits: Mapping[str, Sequence[int]], draws: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """For each relation the number of the completion prompt with the highest hit rate over its facts (first of equals).

    Args:
        hits, draws: by fact id, one count for each prompt (the mastery record).

    Raises:
        InputError: facts of one relation differ in their number of prompts.
    """
    sums: dict[str, Any] = {}
    for fact in facts:
        if fact.id not in hits:
            continue
        counts = np.array([hits[fact.id], draws[fact.id]], dtype=np.float64)
        before = sums.get(fact.relation)
        if before is not None and before.shape != counts.shape:
            raise InputError(
                f"fact {fact.id}: {counts.shape[1]} prompts, {before.shape[1]} in others of {fact.relation}"
            )
        sums[fact.relation] = counts if before is None else before + counts
    return {relation: int(np.argmax(total[0] / np.maximum(total[1], 1))) for relation, total in sums.items()}


@dataclass(frozen=True)
class ShiftItems:
    """The facts to compare, the completion prompt of each, and whether the base begins with the answer there."""

    facts: tuple[Fact, ...]
    prompts: tuple[str, ...]
    begins: tuple[bool, ...]

    @property
    def kept(self) -> list[int]:
        """Places of the facts whose answer comes first."""
        return [index for index, begins in enumerate(self.begins) if begins]


def select_items(base: LoadedModel, facts: Sequence[Fact], best: Mapping[str, int]) -> ShiftItems:
    """Level-4 facts with their relation's best prompt; where the answer does not come first, ``begins`` is False."""
    prompts = [completion_prompts(fact)[best[fact.relation]] for fact in facts]
    spelled = base.encoder.plain([f" {answer}" for fact in facts for answer in fact.accepted])
    longest = max(map(len, spelled), default=0)
    texts = greedy(base, prompts, max_new_tokens=min(32, longest + 2))  # another spelling may take more tokens
    begins = tuple(
        any(text.lstrip().startswith(answer) for answer in fact.accepted)
        for fact, text in zip(facts, texts, strict=True)
    )
    return ShiftItems(tuple(facts), tuple(prompts), begins)


def items_of(base: LoadedModel, known: KnownFacts, asked: Sequence[Fact]) -> ShiftItems:
    """:func:`select_items` of the facts asked that are of level 4; the best prompts are those of all test facts.

    Raises:
        InputError: as :func:`best_prompts`.
    """
    best = best_prompts(known.of("test"), known.prompt_counts("prompt_hits"), known.prompt_counts("prompt_draws"))
    return select_items(base, [fact for fact in asked if known.levels[fact.id] == 4], best)


@dataclass(frozen=True)
class TokenShift:
    """Columns of ``records.TOKEN_SHIFT``, in the order of the items."""

    columns: dict[str, list[Any]]

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        write_table(path, TOKEN_SHIFT, self.columns, about)

    @property
    def mean(self) -> float | None:
        """Mean KL over the facts that have one, in nats; None without any."""
        values = [value for value in self.columns["kl"] if value is not None]
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Leading:
    """What a tuned model predicts first, of some prompts [N]."""

    ids: Tensor  # int64 [N, 10], the most likely first
    logits: Tensor  # float32 [N, 10]

    def of(self, rows: Sequence[int]) -> Leading:
        """Those of some prompts."""
        return Leading(self.ids[list(rows)], self.logits[list(rows)])


def shared_ids(ours: Vocabulary, theirs: Vocabulary, base: str, tuned: str) -> TokenIds:
    """The ids that are the same token in a base and a tuned model of these names, with an embedding and a logit in
    both.

    Raises:
        InputError: an id is one token in the base and another in the tuned model, or fewer than ten are shared.
    """
    if ours.tokens != theirs.tokens:
        other = min((i for i, token in ours.tokens.items() if theirs.tokens.get(i, token) != token), default=None)
        if other is not None:
            raise InputError(
                f"{tuned}: id {other} is the token {theirs.tokens[other]!r}, in {base} it is "
                f"{ours.tokens[other]!r}; token ids of different vocabularies cannot be compared"
            )
    shared = TokenIds.of(i for i in ours.tokens if i in ours.usable and i in theirs.usable)
    if len(shared) < TOP_TOKENS:
        raise InputError(f"{tuned}: shares {len(shared)} tokens with {base}; expected {TOP_TOKENS} at least")
    return shared


@dataclass(frozen=True)
class BaseLogits:
    """What a base model predicts behind the prompts of some items: it need not be in memory for their token shift."""

    name: str
    vocabulary: Vocabulary
    logits: Tensor  # float32 [N, V], of the items that are :attr:`.ShiftItems.kept`

    @classmethod
    def of(cls, base: LoadedModel, items: ShiftItems) -> BaseLogits:
        """Raises :class:`InputError` for a prompt that the base cannot read."""
        logits = torch.zeros(len(items.kept), base.vocabulary.usable.size)
        for batch, logits_BV in next_logits(base, [items.prompts[index] for index in items.kept]):
            logits[batch] = logits_BV.cpu()
        return cls(base.name, base.vocabulary, logits)


def token_shift(
    base: LoadedModel | BaseLogits, tuned: LoadedModel, items: ShiftItems, asked: Sequence[str] | None = None
) -> TokenShift:
    """KL(tuned || base) over the ten ids that the tuned model ranks first among the shared ones (paper 4.1).

    The tuned model reads the fine-tuning prompt, or what ``asked`` has for each fact; the base model the completion
    prompt. Ids are gathered by number; for which ids take part see :func:`shared_ids`.

    Raises:
        InputError: as :func:`shared_ids`, and a prompt that one of the models cannot read.
    """
    shared = shared_ids(base.vocabulary, tuned.vocabulary, base.name, tuned.name)
    if asked is None:
        asked = [tuning_prompt(fact.question) for fact in items.facts]
    return shift_from(base, items, leading(tuned, shared, [asked[index] for index in items.kept]))


def leading(tuned: LoadedModel, shared: TokenIds, asked: Sequence[str]) -> Leading:
    """The ten ids that the tuned model ranks first among the shared ones, behind each prompt.

    Raises:
        InputError: a prompt that the model cannot read.
    """
    found = Leading(torch.zeros(len(asked), TOP_TOKENS, dtype=torch.long), torch.zeros(len(asked), TOP_TOKENS))
    for batch, logits_BV in next_logits(tuned, asked):
        values, best = shared.columns(logits_BV).topk(TOP_TOKENS, dim=-1)
        found.logits[batch], found.ids[batch] = values.cpu(), best.cpu()
    return found


def shift_from(base: LoadedModel | BaseLogits, items: ShiftItems, led: Leading) -> TokenShift:
    """:func:`token_shift`, of what the tuned model has predicted for the items that are :attr:`.ShiftItems.kept`.

    Raises:
        InputError: a prompt that the base cannot read.
    """
    size = len(items.facts)
    ids: list[list[int] | None] = [None] * size
    tuned_logits: list[list[float] | None] = [None] * size
    base_logits: list[list[float] | None] = [None] * size
    kl: list[float | None] = [None] * size
    if isinstance(base, BaseLogits):
        top_base = base.logits.gather(1, led.ids)
    else:
        top_base = torch.zeros_like(led.logits)
        for batch, logits_BV in next_logits(base, [items.prompts[index] for index in items.kept]):
            top_base[batch] = logits_BV.cpu().gather(1, led.ids[batch])
    for row, (index, value) in enumerate(zip(items.kept, renormalised_kl(led.logits, top_base).tolist(), strict=True)):
        ids[index], kl[index] = led.ids[row].tolist(), value
        tuned_logits[index], base_logits[index] = led.logits[row].tolist(), top_base[row].tolist()
    facts = items.facts
    return TokenShift(
        {
            "fact": [fact.id for fact in facts],
            "relation": [fact.relation for fact in facts],
            "split": [fact.split for fact in facts],
            "domain": [fact.domain for fact in facts],
            "prompt": list(items.prompts),
            "kl": kl,
            "ids": ids,
            "tuned_logits": tuned_logits,
            "base_logits": base_logits,
            "reason": [None if begins else NOT_AT_START for begins in items.begins],
        }
    )
