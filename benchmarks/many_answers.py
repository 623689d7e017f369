"""Seconds and memory of the report's statistics on many facts and models: all claims, and the means with intervals.

    python benchmarks/many_answers.py [--facts 100000] [--levels 5] [--sizes 4] [--draws 5] [--replicates 1000]

Answers right or wrong under two graders are made in memory: FACTS facts in 24 relations of different sizes, under
LEVELS x SIZES x DRAWS models (100 by default) and a base model, and KL of the level-4 facts. Then, as a report does it:
the replicates of every group mean (by fact under both graders, by relation, of KL), findings 1 to 3 with all their
claims, and the mean accuracy of every setting at every test level and domain.

Printed: seconds of each step and of the processor in it, and the largest resident memory of this process, before and
after.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from claims import RATE, asked, evidence_of
from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.reports.evidence.answers import Column
from knowshift.reports.evidence.run_folder import Setting
from knowshift.reports.findings.build import find

Result = TypeVar("Result")


def timed(name: str, step: Callable[[], Result]) -> Result:
    """Run a step and print its seconds."""
    start, worked = time.perf_counter(), time.process_time()
    found = step()
    print(f"{name}: {time.perf_counter() - start:.1f} s, {time.process_time() - worked:.1f} s of processor")
    return found


def most_memory() -> float:
    """The largest resident memory of this process until now, in GB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=100_000)
    parser.add_argument("--levels", type=int, default=5)
    parser.add_argument("--sizes", type=int, default=4)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--replicates", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    settings = [Setting(lv, 60 * 4**size, RATE, "") for lv in range(options.levels) for size in range(options.sizes)]
    tuned = [Column(setting, draw) for setting in settings for draw in range(options.draws)]
    columns = [Column(None, 0, prompt="zero_shot"), *tuned]
    about = asked(options.facts, rng)
    chance = np.clip(0.15 + 0.15 * about.level + 0.1 * rng.standard_normal(options.facts), 0, 1).astype(np.float32)
    answers = np.stack([rng.random(options.facts, dtype=np.float32) < chance for _ in columns], axis=1)
    word = answers & (rng.random(options.facts) < 0.9)[:, None]
    kl = rng.random((int((about.level == LEVELS - 1).sum()), len(tuned)))
    before = most_memory()
    start, worked = time.perf_counter(), time.process_time()
    evidence = timed("replicates", lambda: evidence_of(about, columns, answers, word, kl, options.replicates))
    findings = timed("findings", lambda: find(evidence))
    scores = evidence.substring
    means = timed(
        "means",
        lambda: [
            scores.mean([model], scores.over([domain], level))
            for model in scores.drawn
            for domain in range(len(DOMAINS))
            for level in (*range(LEVELS), None)
        ],
    )
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    claims = sum(len(finding.claims) + len(finding.controls) for finding in findings)
    print(f"{options.facts:,} facts x {len(tuned)} models: {claims} claims and {len(means)} means in {seconds:.1f} s")
    print(f"processor: {worked:.1f} s")
    print(f"memory: {before:.2f} GB with the answers alone, {most_memory():.2f} GB at most")


if __name__ == "__main__":
    main()
