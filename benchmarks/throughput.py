"""Token positions a second in the prefix tree beside those of a plain forward pass of the same rows, in turns.

    python benchmarks/throughput.py --model FOLDER --facts SOURCE [--count 2] [--dtype float32] [--threads N]
        [--turns 3] [--estimate hits] [--results FILE.json]

In each turn the mastery of COUNT facts is measured (``full``, 10 draws of 32 tokens, or two texts for ``--estimate
expected``), and every forward pass is noted with its number of rows. Then the model reads, for each of these passes,
as many rows of one random token, with an empty cache and logits for every row: the same matrix products, without
cache, attention over it, sampling and grading. Both in this process, on the same threads; a first turn is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import limited, load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.probing.measure import Protocol, measure_mastery


class Passes:
    """The forward passes of a model: those of the tree with their rows, and plain ones of as many."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.rows: list[int] = []

    def tree(self, facts: Sequence[Fact], protocol: Protocol) -> float:
        """Seconds that the mastery of these facts takes; its passes are noted."""
        self.rows = []

        def note(model: Any, inputs: Any, named: dict[str, Any]) -> None:
            self.rows.append(len(named["input_ids"]))

        hook = self.loaded.model.register_forward_pre_hook(note, with_kwargs=True)
        start = time.perf_counter()
        measure_mastery(self.loaded, facts, protocol)
        took = time.perf_counter() - start
        hook.remove()
        return took

    def plain(self, rng: np.random.Generator) -> float:
        """Seconds that plain passes of the same rows take."""
        start = time.perf_counter()
        with torch.inference_mode():
            for rows in self.rows:
                ids = torch.from_numpy(rng.integers(0, self.loaded.vocabulary.logits, size=(rows, 1)))
                self.loaded.model(input_ids=ids.to(self.loaded.model.device), use_cache=True)
        return time.perf_counter() - start


def main() -> None:
    """Print both paces and their ratio turn by turn, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--facts", required=True)
    parser.add_argument("--count", type=int, default=2, help="facts")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--estimate", default="hits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="JSON to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    passes = Passes(load_model(arguments.model, dtype=arguments.dtype, device=arguments.device))
    facts = limited(load_facts(arguments.facts).facts, arguments.count, arguments.seed)
    protocol = Protocol(seed=arguments.seed, estimate=arguments.estimate)
    turns: list[dict[str, float]] = []
    for turn in range(arguments.turns + 1):
        tree, plain = passes.tree(facts, protocol), passes.plain(np.random.default_rng([arguments.seed, turn]))
        positions = sum(passes.rows)
        told = {"tree": positions / tree, "plain": positions / plain, "ratio": plain / tree}
        if turn:
            turns.append(told)
            print(
                ", ".join(f"{name} {value:.{2 if name == 'ratio' else 0}f}" for name, value in told.items()), flush=True
            )
    median = float(np.median([told["ratio"] for told in turns]))
    about = {"positions": sum(passes.rows), "passes": len(passes.rows), "median rows": float(np.median(passes.rows))}
    print(f"{about}, most rows {max(passes.rows)}, {arguments.threads} threads: median ratio {median:.2f}")
    if arguments.results:
        arguments.results.write_text(json.dumps({**about, "turns": turns, "median ratio": median}, indent=1))


if __name__ == "__main__":
    main()
