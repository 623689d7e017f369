"""Questions behind answered examples: what all prompts begin with held once, against repeated in every row.

    python benchmarks/prefix.py --model FOLDER --facts SOURCE [--count 180] [--turns 2] [--results FILE.json]

Greedy answers of one model to the same questions in the forms of an audit that begin alike, the two ways in turns:
seconds, rows of a level at most, and the most memory of the process, which is trimmed and counted anew before each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from unittest import mock

from knowshift.audits.forms import SHOWN, Form, forms_of
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling import tree
from knowshift.models.sampling.session import greedy, nodes_that_fit
from knowshift.probing.budget.plan import balanced_order
from knowshift.system.allocator import give_back

#: Forms whose prompts begin alike.
FORMS = ("few-shot", "chat")
TOKENS = 16


def peak(*, anew: bool = False) -> float:
    """GB of this process at most, since it was counted anew."""
    if anew:
        give_back()
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def measure(loaded: LoadedModel, form: Form, facts: list[Fact]) -> tuple[dict[str, float], list[str]]:
    """Seconds, rows and memory of the answers in one form; and the answers."""
    prompts = [form.prompt(fact) for fact in facts]
    before = peak(anew=True)
    start = time.perf_counter()
    texts = greedy(loaded, prompts, max_new_tokens=TOKENS)
    seconds = time.perf_counter() - start
    rows = nodes_that_fit(loaded, loaded.encoder.prompts(prompts), TOKENS)
    return {"seconds": seconds, "rows": rows, "before_gb": before, "peak_gb": peak()}, texts


def main() -> None:
    """Take the options, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--facts", required=True)
    parser.add_argument("--count", type=int, default=180, help="facts, balanced over relations")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--results", type=Path, help="JSON")
    arguments = parser.parse_args()
    facts = load_facts(arguments.facts).facts
    order = balanced_order([fact.relation for fact in facts], 0)
    asked = [facts[place] for place in order[SHOWN : SHOWN + arguments.count]]
    loaded = load_model(arguments.model)
    best = dict.fromkeys({fact.relation for fact in asked}, 0)
    found = []
    for form in forms_of(loaded, best, [facts[place] for place in order[:SHOWN]]):
        if form.name not in FORMS:
            continue
        for turn in range(arguments.turns):
            answers = []
            for way, least in (("held once", tree.LONG_PREFIX), ("in every row", 10**9)):
                with mock.patch.object(tree, "LONG_PREFIX", least):
                    measured, texts = measure(loaded, form, asked)
                answers.append(texts)
                found.append({"form": form.name, "turn": turn, "way": way, **measured})
                print(
                    f"{form.name:10} {way:14} {measured['seconds']:6.1f} s {measured['rows']:5} rows "
                    f"{measured['before_gb']:.2f} to {measured['peak_gb']:.2f} GB",
                    flush=True,
                )
            alike = sum(one == other for one, other in zip(*answers, strict=True))
            print(f"{form.name:10} {alike} of {len(asked)} answers alike")
    if arguments.results:
        arguments.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
