"""Draws by transformers' own ``generate``, as many as say what R is: a yardstick for ``benchmarks/expected.py``.

    python benchmarks/reference.py --model FOLDER --facts SOURCE --output FILE.json [--count 300] [--candidates 1000]
        [--draws 100] [--runs 2] [--device cuda] [--dtype float32] [--batch 8192] [--seed 0]

Of CANDIDATES facts of a seeded shuffle, balanced over relations, COUNT are chosen: half of each relation are facts that
two draws of each of their prompts show, as far as there are any. Of these, each prompt is drawn DRAWS times, and RUNS
times 10 more, which is what the paper's run does. Nothing of this project's sampling takes part, only its prompts and
its rule of what a hit is.

The file holds the facts' names, for each prompt its hits among the draws and in each run, and what a run costs where
texts that begin alike share what they have in common: the distinct beginnings that are read, up to a text's hit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model

TEMPERATURE, NEW_TOKENS, RUN = 0.7, 32, 10


def candidates_of(facts: Sequence[Fact], count: int, seed: int) -> list[Fact]:
    """At least ``count`` facts of a seeded shuffle, equally many of each relation."""
    of_relation: dict[str, list[Fact]] = defaultdict(list)
    for i in np.random.default_rng([seed, 4]).permutation(len(facts)):
        of_relation[facts[i].relation].append(facts[i])
    size = -(-count // len(of_relation))
    return [fact for relation in sorted(of_relation) for fact in of_relation[relation][:size]]


def balanced(candidates: Sequence[Fact], known: Sequence[bool], count: int) -> list[Fact]:
    """``count`` of them, equally many of each relation, half of these known as far as there are any."""
    of_relation: dict[str, list[tuple[Fact, bool]]] = defaultdict(list)
    for fact, knows in zip(candidates, known, strict=True):
        of_relation[fact.relation].append((fact, knows))
    each = -(-count // len(of_relation))
    chosen: list[tuple[int, Fact]] = []  # with its turn, so that what is too many goes evenly
    for own in of_relation.values():
        first = [fact for fact, knows in own if knows][: each // 2]
        chosen += enumerate(first + [fact for fact, knows in own if not knows][: each - len(first)])
    return [fact for _, fact in sorted(chosen, key=lambda one: one[0])][:count]


class Drawn:
    """Texts of prompts by ``generate``: [prompts][draws] of token ids, without what follows their end."""

    def __init__(self, loaded: LoadedModel, batch: int) -> None:
        self.loaded, self.batch = loaded, batch
        self._stops = set(loaded.stop_ids())
        vocabulary = loaded.vocabulary
        self._not_drawn = [token for token in range(vocabulary.logits) if token not in vocabulary.usable] or None

    def texts(self, prompts: Sequence[str], draws: int, seed: int) -> list[list[list[int]]]:
        """Draws of each prompt, in the order of the prompts."""
        ids = self.loaded.encoder.prompts(prompts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # alike in length, so that little is padded
        found: list[list[list[int]]] = [[] for _ in prompts]
        torch.manual_seed(seed)
        size = max(1, self.batch // draws)
        began = time.monotonic()
        for start in range(0, len(order), size):
            mine = order[start : start + size]
            for i, texts in zip(mine, self._batch([ids[i] for i in mine], draws), strict=True):
                found[i] = texts
            if start // size % 10 == 0:
                print(f"{start + len(mine)} of {len(order)} prompts, {time.monotonic() - began:.0f} s", flush=True)
        return found

    @torch.inference_mode()
    def _batch(self, ids: Sequence[list[int]], draws: int) -> list[list[list[int]]]:
        padded = self.loaded.tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self.loaded.device)
        width = padded["input_ids"].shape[1]
        generated: Any = self.loaded.model.generate(  # type: ignore[operator]
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=1.0,
            top_k=0,
            num_return_sequences=draws,
            max_new_tokens=NEW_TOKENS,
            suppress_tokens=self._not_drawn,
        )
        rows = generated[:, width:].cpu().tolist()
        return [[self._ended(row) for row in rows[i * draws : (i + 1) * draws]] for i in range(len(ids))]

    def _ended(self, row: list[int]) -> list[int]:
        return row[: next((place for place, token in enumerate(row) if token in self._stops), len(row))]

    def hits(self, texts: Sequence[list[int]], accepted: Sequence[str]) -> list[bool]:
        """Whether each text holds an accepted answer."""
        words = self.loaded.tokenizer.batch_decode(texts, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [any(answer in word for answer in accepted) for word in words]

    def positions(
        self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[list[int]]], accepted: Sequence[str]
    ) -> int:
        """Positions read for texts [prompts][draws] of a fact, equal beginnings once; a hit ends a text."""
        beginnings: set[tuple[int, ...]] = set()
        for prompt, own in zip(prompts, texts, strict=True):
            beginnings.update(tuple(prompt[: n + 1]) for n in range(len(prompt)))
            for text, hit in zip(own, self.hits(own, accepted), strict=True):
                length = len(text)
                if hit:
                    length = 1 + self.hits([text[: n + 1] for n in range(len(text))], accepted).index(True)
                reads = length - (length == NEW_TOKENS or hit)  # nothing follows the last token
                beginnings.update((*prompt, *text[: n + 1]) for n in range(reads))
        return len(beginnings)


def main() -> None:
    """Choose, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--facts", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300, help="facts")
    parser.add_argument("--candidates", type=int, default=1000, help="facts to choose from")
    parser.add_argument("--draws", type=int, default=100, help="of each prompt")
    parser.add_argument("--runs", type=int, default=2, help="of 10 more draws")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8192, help="texts at once")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    loaded = load_model(given.model, device=given.device, dtype=given.dtype)
    drawn = Drawn(loaded, given.batch)
    candidates = candidates_of(load_facts(given.facts).facts, given.candidates, given.seed)
    prompts = [completion_prompts(fact) for fact in candidates]
    first = iter(drawn.texts([prompt for own in prompts for prompt in own], 2, given.seed))
    known = [
        sum(any(drawn.hits(next(first), fact.accepted)) for _ in own) > 0
        for fact, own in zip(candidates, prompts, strict=True)
    ]
    facts = balanced(candidates, known, given.count)
    prompts = [completion_prompts(fact) for fact in facts]
    every = given.draws + given.runs * RUN
    texts = iter(drawn.texts([prompt for own in prompts for prompt in own], every, given.seed + 1))
    seconds = time.monotonic() - began
    told: dict[str, Any] = {
        "facts": [fact.id for fact in facts],
        "draws": given.draws,
        "reference": [],
        "runs": [[] for _ in range(given.runs)],
        "positions": [0] * given.runs,
        "seconds": round(seconds, 1),
        "model": loaded.identity,
        "dtype": loaded.dtype,
        "device": torch.cuda.get_device_name() if given.device.startswith("cuda") else given.device,
        "known candidates": sum(known),
    }
    for fact, own in zip(facts, prompts, strict=True):
        mine = [next(texts) for _ in own]
        hits = [drawn.hits(drawn_of, fact.accepted) for drawn_of in mine]
        told["reference"].append([sum(one[: given.draws]) for one in hits])
        for run in range(given.runs):
            part = slice(given.draws + run * RUN, given.draws + (run + 1) * RUN)
            told["runs"][run].append([sum(one[part]) for one in hits])
            drawn_in_run = [one[part] for one in mine]
            told["positions"][run] += drawn.positions(loaded.encoder.prompts(own), drawn_in_run, fact.accepted)
    given.output.write_text(json.dumps(told))
    print(f"{len(facts)} facts, {every} draws of each prompt, {seconds:.0f} s; {told['positions']}")


if __name__ == "__main__":
    main()
