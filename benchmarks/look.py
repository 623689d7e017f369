"""The first look of an audit beside measured mastery: how many known facts look likely known, and how fast it is.

    python benchmarks/look.py MODEL FACTS RECORD

RECORD is a mastery record of some of FACTS by MODEL. Prompts are chosen as an audit of a large model chooses them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pyarrow.parquet as pq

import knowshift
from knowshift.audits.moves import KNOWN
from knowshift.audits.plan import BRIEF, facts_to_ask
from knowshift.probing.budget.screening import LIKELY, promised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("facts")
    parser.add_argument("record")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.record, columns=["fact", "rate"]).to_pydict()
    rate = dict(zip(table["fact"], table["rate"], strict=True))
    asked = facts_to_ask(knowshift.load_facts(arguments.facts).facts, arguments.seed, BRIEF.prompts).facts
    facts = [fact for fact in asked if fact.id in rate]
    model = knowshift.load_model(arguments.model, dtype=arguments.dtype)
    began = time.perf_counter()
    promises = promised(model, facts)
    took = time.perf_counter() - began
    known = np.array([rate[fact.id] >= KNOWN for fact in facts])
    likely = np.array([promises[fact.id] >= LIKELY for fact in facts])
    print(f"{len(facts)} facts in {took:.1f} s: {len(facts) / took:.1f} facts/s")
    print(f"of {known.sum()} known (R of {KNOWN} and more), {(likely & known).sum()} look likely known")
    print(f"of {(~known).sum()} others, {(likely & ~known).sum()}")


if __name__ == "__main__":
    main()
