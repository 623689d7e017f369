"""A completions server beside this process, with the same weights: the same distribution, and how fast.

    python benchmarks/servers.py --part PART --server URL --model FOLDER --facts SOURCE [--dtype bfloat16]

PART is one of

- ``omnibus``: hit counts of ``--prompts`` prompts, ``--omnibus-draws`` draws each, from the server and from this
  process, by a Monte Carlo test of all tables at once (see :func:`mastery.same_distribution`). Prompts are those of
  ``--count`` facts that the first token of the answer follows with a probability between 0.05 and 0.95, since a prompt
  that always or never hits tells nothing. So that the test is known to notice something, this process is also compared
  with itself, with other random numbers and at a slightly wrong temperature. What this
  process has drawn is kept in ``--reference FILE``, where that is given, and used for the next server.
- ``speed``: the same draws (``--count`` facts, 21 prompts, 5 draws, 8 tokens) in this process and on the server, in
  turns, ``--turns`` times. Loading and starting are not timed, grading is. A server may use processors while nobody
  asks it: ``--pause GROUP`` stops the process group of that number while this process draws.

Give both the same processors and nothing else to do. The server must hold the weights of FOLDER in ``--dtype``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.sources.load import limited, load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling.session import sample
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.engine import CompletionsServer
from knowshift.probing.agreement import agreement
from knowshift.probing.measure import Protocol, measure_mastery
from mastery import same_distribution

#: Prompts of one forward pass.
BATCH = 32
Counts = NDArray[np.int64]


def chosen_facts(arguments: argparse.Namespace) -> list[Fact]:
    return list(limited(load_facts(arguments.facts).facts, arguments.count, arguments.seed))


# -- the same distribution ------------------------------------------------------------------------------------


class Prompts:
    """Some prompts with what counts as a hit, to draw from here and there."""

    def __init__(self, asked: Sequence[tuple[str, Sequence[str], str]]) -> None:
        self.texts = [text for text, _, _ in asked]
        self.accepted = [tuple(accepted) for _, accepted, _ in asked]
        self.streams = [stream for _, _, stream in asked]

    def here(self, loaded: LoadedModel, sampling: Sampling) -> Counts:
        """Hits of each prompt in this process."""
        return sample(loaded, self.texts, self.accepted, sampling, streams=self.streams).hits.astype(np.int64)

    def there(self, server: CompletionsServer, sampling: Sampling) -> Counts:
        """Hits of each prompt on the server."""
        session = server.session(self.texts, self.accepted, sampling, streams=self.streams)
        session.draw([np.arange(sampling.draws_per_prompt)] * len(self.texts))
        return (session.hit == 1).sum(axis=1).astype(np.int64)


def first_token_probabilities(loaded: LoadedModel, prompts: Prompts) -> NDArray[np.float64]:
    """The probability, at a temperature of 0.7, that the first token of its first answer follows each prompt."""
    found = np.zeros(len(prompts.texts))
    ids = loaded.encoder.prompts(prompts.texts)
    answers = [loaded.tokenizer(" " + own[0], add_special_tokens=False)["input_ids"][0] for own in prompts.accepted]
    for length in sorted({len(row) for row in ids}):
        rows = [i for i, row in enumerate(ids) if len(row) == length]
        for part in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
            with torch.inference_mode():
                rows_read = torch.tensor([ids[i] for i in part])
                logits = loaded.model(input_ids=rows_read, logits_to_keep=1).logits[:, -1].float()
            found[part] = torch.softmax(logits / 0.7, -1)[range(len(part)), [answers[i] for i in part]].numpy()
    return found


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    """The prompts, and the hits of each in this process: at two seeds, and at a temperature of 0.8."""
    path: Path | None = arguments.reference
    told: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    wanted = {"hits": (0, 0.7), "hits of other random numbers": (2, 0.7), "hits at 0.8": (3, 0.8)}
    if wanted.keys() <= told.keys():
        return told

    def keep() -> None:
        if path is not None:
            path.write_text(json.dumps(told) + "\n")

    torch.set_num_threads(arguments.cores)
    loaded = load_model(arguments.model, dtype=arguments.dtype)
    if not told:
        every = [
            (prompt, fact.accepted, f"{fact.id}/{number}")
            for fact in chosen_facts(arguments)
            for number, prompt in enumerate(completion_prompts(fact))
        ]
        likely = first_token_probabilities(loaded, Prompts(every))
        asked = np.flatnonzero((likely > 0.05) & (likely < 0.95))
        order = np.random.default_rng([arguments.seed, 5]).permutation(len(asked))[: arguments.prompts]
        told = {"dtype": arguments.dtype, "prompts": [every[i] for i in asked[np.sort(order)]]}
        told["draws"] = arguments.omnibus_draws
        print(f"{len(told['prompts'])} prompts of {len(every)}", flush=True)
        keep()
    for name, (seed, temperature) in wanted.items():
        if name not in told:
            sampling = Sampling(told["draws"], temperature, arguments.max_new_tokens, arguments.seed + seed)
            told[name] = Prompts(told["prompts"]).here(loaded, sampling).tolist()
            keep()
    return told


def part_omnibus(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether hit counts of the server and of this process could come from one distribution."""
    known = reference(arguments)
    draws, prompts = known["draws"], Prompts(known["prompts"])
    server = CompletionsServer(arguments.server)
    began = time.perf_counter()
    theirs = prompts.there(server, Sampling(draws, 0.7, arguments.max_new_tokens, arguments.seed))
    seconds = time.perf_counter() - began
    mine = np.array(known["hits"])
    told: dict[str, Any] = {
        "engine": server.about()["engine"],
        "dtype here": known["dtype"],
        "prompts": len(theirs),
        "draws of each": draws,
        "texts a request": server.completions.at_once(draws),
        "seconds of the server": round(seconds, 1),
        "hits here": int(mine.sum()),
        "hits there": int(theirs.sum()),
    }
    for name, counts in (
        ("server", theirs),
        ("other random numbers", np.array(known["hits of other random numbers"])),
        ("temperature 0.8", np.array(known["hits at 0.8"])),
    ):
        told[name] = {"hits": int(counts.sum()), **same_distribution(mine, counts, draws, arguments.seed)}
        print(f"{name}: {told[name]}", flush=True)
    return told


# -- speed ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def paused(group: int | None) -> Iterator[None]:
    """The server's processes are stopped in the block."""
    if group is None:
        yield
        return
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


def part_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the same draws in this process and on the server, in turns."""
    torch.set_num_threads(arguments.cores)
    facts = chosen_facts(arguments)
    protocol = Protocol(5, 0.7, arguments.max_new_tokens, arguments.seed)
    server = CompletionsServer(arguments.server)
    with paused(arguments.pause):
        loaded = load_model(arguments.model, dtype=arguments.dtype)
    seconds: dict[str, list[float]] = {"here": [], "there": []}
    levels: dict[str, list[int]] = {}

    def turn(name: str, engine: Any, some: Sequence[Fact]) -> tuple[float, list[int]]:
        with paused(arguments.pause if name == "here" else None):
            began = time.perf_counter()
            record = measure_mastery(engine, some, protocol)
            return time.perf_counter() - began, record.columns["level"]

    engines = {"here": loaded, "there": server}
    for name, engine in engines.items():
        turn(name, engine, facts[:1])  # the first call of either is slower
    for number in range(arguments.turns):
        for name, engine in engines.items():
            took, levels[name] = turn(name, engine, facts)
            seconds[name].append(round(took, 2))
            print(f"turn {number + 1}, {name}: {took:.1f} s", flush=True)
    prompts = sum(len(completion_prompts(fact)) for fact in facts)
    told = {
        "engine": server.about()["engine"],
        "dtype here": arguments.dtype,
        "cores here": arguments.cores,
        "facts": len(facts),
        "texts": prompts * protocol.draws_per_prompt,
        "texts a request": server.completions.at_once(protocol.draws_per_prompt),
        "seconds": seconds,
        "there : here": [round(b / a, 2) for a, b in zip(seconds["here"], seconds["there"], strict=True)],
        "same level": round(agreement(levels["here"], levels["there"]).same, 3),
    }
    print(f"there : here {told['there : here']}, same level {told['same level']:.1%}")
    return told


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"omnibus": part_omnibus, "speed": part_speed}


def main() -> None:
    """Run one part, print what it finds and merge it into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=PARTS)
    parser.add_argument("--server", required=True, help="URL")
    parser.add_argument("--model", required=True, help="the same weights, for this process")
    parser.add_argument("--facts", required=True, help="source")
    parser.add_argument("--dtype", default="bfloat16", help="of this process")
    parser.add_argument("--count", type=int, default=60, help="facts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument(
        "--cores", type=int, default=len(os.sched_getaffinity(0)), help="threads of this process (speed)"
    )
    parser.add_argument("--turns", type=int, default=3, help="of each (speed)")
    parser.add_argument(
        "--pause", type=int, help="process group of the server, stopped while this process draws (speed)"
    )
    parser.add_argument("--prompts", type=int, default=240, help="at most (omnibus)")
    parser.add_argument("--omnibus-draws", type=int, default=40, help="of each prompt (omnibus)")
    parser.add_argument("--reference", type=Path, help="JSON that keeps the draws of this process (omnibus)")
    parser.add_argument("--results", type=Path, help="JSON to merge the results into, by part and engine")
    arguments = parser.parse_args()
    found = PARTS[arguments.part](arguments)
    if arguments.results:
        told = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
        told.setdefault(arguments.part, {})[f"{found['engine']} {found['dtype here']}"] = found
        arguments.results.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
