"""Draws by transformers' own ``generate``, as many as say what R is: a yardstick for ``benchmarks/expected.py``.

    python benchmarks/reference.py --model FOLDER --facts SOURCE --folder FOLDER [--count 300] [--candidates 1000]
        [--rounds 12] [--device cuda] [--dtype float32] [--tf32] [--batch 8192] [--seed 0] [--ends SECONDS]

Of CANDIDATES facts of a seeded shuffle, balanced over relations, COUNT are chosen: half of each relation are facts that
one draw of each of their prompts shows, as far as there are any. Of these, each prompt is drawn 10 times a round, which
is what the paper's run does. Nothing of this project's sampling takes part, only its prompts and its rule of what a hit
is. Rounds are files in FOLDER: a run that was stopped, or ends after SECONDS, goes on where it was.

FOLDER/reference.json then holds the facts' names; the first two rounds as ``runs``, hits of each prompt; the others
together as ``reference``; and as ``positions`` what a run costs where texts that begin alike share what they have in
common: the distinct beginnings that are read, up to a text's hit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model

Ids = NDArray[np.int32]

TEMPERATURE, NEW_TOKENS = 0.7, 32
#: Draws of a prompt in a round, and rounds that are runs by themselves.
DRAWS, RUNS = 10, 2


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


def not_drawn(loaded: LoadedModel) -> list[int] | None:
    """Ids of logits that the model has and no token: ours never draws them; None without any."""
    vocabulary = loaded.vocabulary
    return [token for token in range(vocabulary.logits) if token not in vocabulary.usable] or None


@torch.inference_mode()
def generate(
    loaded: LoadedModel, padded: Mapping[str, torch.Tensor], draws: int, never: list[int] | None
) -> torch.Tensor:
    """New tokens of ``draws`` texts of each prompt, as the paper draws them: [prompts x draws, tokens]."""
    found: torch.Tensor = loaded.model.generate(  # type: ignore[operator]
        input_ids=padded["input_ids"],
        attention_mask=padded["attention_mask"],
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=1.0,
        top_k=0,
        num_return_sequences=draws,
        max_new_tokens=NEW_TOKENS,
        suppress_tokens=never,
        pad_token_id=loaded.stop_ids()[0],
    )
    return found[:, padded["input_ids"].shape[1] :]


class Drawing:
    """Texts of prompts by ``generate``."""

    def __init__(self, loaded: LoadedModel, batch: int, ends: float) -> None:
        self.loaded, self.batch, self.ends = loaded, batch, ends
        self.stops = loaded.stop_ids()
        self._not_drawn = not_drawn(loaded)

    def texts(self, prompts: Sequence[str], draws: int, seed: int) -> Ids:
        """Draws of each prompt [prompts, draws, tokens], with stop ids where a text has ended.

        Raises:
            TimeoutError: it is later than ``ends``.
        """
        ids = self.loaded.encoder.prompts(prompts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # alike in length, so that little is padded
        found = np.full((len(ids), draws, NEW_TOKENS), self.stops[0], dtype=np.int32)
        torch.manual_seed(seed)
        size = max(1, self.batch // draws)
        for start in range(0, len(order), size):
            if time.monotonic() > self.ends:
                raise TimeoutError
            mine = order[start : start + size]
            rows = self._batch([ids[i] for i in mine], draws)
            found[mine, :, : rows.shape[-1]] = rows
        return found

    def _batch(self, ids: Sequence[list[int]], draws: int) -> Ids:
        padded = self.loaded.tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self.loaded.device)
        rows: Ids = generate(self.loaded, padded, draws, self._not_drawn).cpu().numpy().astype(np.int32)
        return rows.reshape(len(ids), draws, -1)


class Grading:
    """What of drawn texts is a hit, and what reading them costs."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer, self._stops = loaded.tokenizer, set(loaded.stop_ids())

    def ended(self, rows: Ids) -> list[list[int]]:
        """Texts of [draws, tokens] without what follows their end."""
        told = rows.tolist()
        return [row[: next((n for n, token in enumerate(row) if token in self._stops), len(row))] for row in told]

    def hits(self, texts: Sequence[list[int]], accepted: Sequence[str]) -> list[bool]:
        """Whether each text holds an accepted answer."""
        words = self._tokenizer.batch_decode(texts, skip_special_tokens=True, clean_up_tokenization_spaces=False)
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


def choose(drawing: Drawing, grading: Grading, facts: Sequence[Fact], given: argparse.Namespace) -> list[str]:
    """The names of the facts to ask; the file of an earlier run is read."""
    chosen = given.folder / "facts.json"
    if not chosen.exists():
        candidates = candidates_of(facts, given.candidates, given.seed)
        prompts = [completion_prompts(fact) for fact in candidates]
        rows = iter(drawing.texts([prompt for own in prompts for prompt in own], 1, given.seed))
        known = [
            sum(any(grading.hits(grading.ended(next(rows)), fact.accepted)) for _ in own) > 0
            for fact, own in zip(candidates, prompts, strict=True)
        ]
        print(f"{sum(known)} of {len(known)} candidates are known", flush=True)
        chosen.write_text(json.dumps([fact.id for fact in balanced(candidates, known, given.count)]))
    names: list[str] = json.loads(chosen.read_text())
    return names


def graded(grading: Grading, loaded: LoadedModel, facts: Sequence[Fact], rounds: Sequence[Ids]) -> dict[str, Any]:
    """Hits of each fact's prompts in each run and in the other rounds, and the positions of the runs."""
    told: dict[str, Any] = {"reference": [], "runs": [[] for _ in range(RUNS)], "positions": [0] * RUNS}
    place = 0
    for fact in facts:
        own = completion_prompts(fact)
        texts = [[grading.ended(rows[place + n]) for n in range(len(own))] for rows in rounds]
        place += len(own)
        hits = [[sum(grading.hits(drawn, fact.accepted)) for drawn in of_round] for of_round in texts]
        told["reference"].append([sum(prompt) for prompt in zip(*hits[RUNS:], strict=True)])
        for run in range(RUNS):
            told["runs"][run].append(hits[run])
            told["positions"][run] += grading.positions(loaded.encoder.prompts(own), texts[run], fact.accepted)
    return told


def main() -> None:
    """Choose, draw, grade, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--facts", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300, help="facts")
    parser.add_argument("--candidates", type=int, default=1000, help="facts to choose from")
    parser.add_argument("--rounds", type=int, default=12, help="of 10 draws a prompt; the first two are the runs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tf32", action="store_true", help="products of float32 with 10 bits of mantissa")
    parser.add_argument("--attention", help="the implementation, for instance eager")
    parser.add_argument("--batch", type=int, default=8192, help="texts at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ends", type=float, default=float("inf"), help="seconds from the start; then nothing is graded"
    )
    given = parser.parse_args()
    began = time.monotonic()
    if given.tf32:
        torch.set_float32_matmul_precision("high")
    given.folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(given.model, device=given.device, dtype=given.dtype)
    every = load_facts(given.facts)
    settings = {"model": loaded.identity, "dtype": loaded.dtype, "facts": every.digest(), "seed": given.seed}
    settings |= {"tf32": given.tf32, "count": given.count, "candidates": given.candidates}
    noted = given.folder / "settings.json"
    if noted.exists() and json.loads(noted.read_text()) != settings:
        raise SystemExit(f"{given.folder}: rounds of other settings; expected {settings}")
    noted.write_text(json.dumps(settings))
    if given.attention:
        loaded.model.set_attn_implementation(given.attention)
    drawing, grading = Drawing(loaded, given.batch, began + given.ends), Grading(loaded)
    names = choose(drawing, grading, every.facts, given)
    of_name = {fact.id: fact for fact in every.facts}
    facts = [of_name[name] for name in names]
    prompts = [prompt for fact in facts for prompt in completion_prompts(fact)]
    for number in range(given.rounds):
        file = given.folder / f"round-{number:02}.npz"
        if file.exists():
            continue
        try:
            texts = drawing.texts(prompts, DRAWS, given.seed + 1 + number)
        except TimeoutError:
            print(f"{number} rounds of {given.rounds}; the same command goes on")
            return
        np.savez_compressed(file.with_suffix(".part.npz"), texts)
        file.with_suffix(".part.npz").replace(file)
        print(f"round {number}: {time.monotonic() - began:.0f} s from the start", flush=True)
    rounds = [np.load(given.folder / f"round-{number:02}.npz")["arr_0"] for number in range(given.rounds)]
    told = {"facts": names, "draws": DRAWS * (given.rounds - RUNS), **graded(grading, loaded, facts, rounds)}
    told |= settings
    given.folder.joinpath("reference.json").write_text(json.dumps(told))
    print(f"{len(facts)} facts, {len(prompts)} prompts, {given.rounds} rounds; positions of a run {told['positions']}")


if __name__ == "__main__":
    main()
