"""Whether confirmed repairs hold on facts that no choice saw, and whether random weights repair as well.

    python benchmarks/repairs.py --folder FOLDER [--facts 800] [--fresh 600] [--shards N --shard I] [--count N]

24 models are tuned from the shipped one, in the fine-tuning form: on 480 or 1,920 facts that are hardly, middlingly or
well read, at a rate of 3e-4 or 1e-3, with two seeds. Each is audited on FACTS facts with half of its training questions
as ``--keep``. Then are asked, greedily: FRESH facts that are neither audited nor trained, as far as the base answers
them in any form; and the other half of the training questions. Compared with the tuned model, paired: the candidate
that the audit chose, as a checkpoint; and the random restoration that the same rule chooses among random ones alone.

Printed, a line a model and at the end a table: what was chosen, whether it was confirmed, the gain on the half that the
audit held out, the gain on the fresh items, and that of random weights there. ``--shards`` shares the models among
processes; without ``--shard`` the lines of all are read.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import knowshift
from audits import train
from knowshift.audits.candidates import Candidate
from knowshift.audits.forms import Form, forms_of
from knowshift.audits.purposes.kept import ANSWER
from knowshift.audits.repair import Scores, choose
from knowshift.evaluation import ANSWER_TOKENS
from knowshift.facts.fact import Fact, tuning_prompt
from knowshift.facts.grading import Grader
from knowshift.facts.sources.load import FactSource, load_facts
from knowshift.files import folder_beside
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling.session import greedy
from knowshift.models.saving import save_model
from knowshift.statistics.estimates import Estimate

FORMAT = tuning_prompt("{question}")
#: Exposures of the facts trained on: from, up to.
READ = {"hardly": (0, 2), "middling": (4, 15), "well": (40, 10_000)}
SIZES = (480, 1920)
RATES = (3e-4, 1e-3)
SEEDS = 2
#: What a repair may lose of the questions, as in an audit.
SUFFER = 0.02


@dataclass(frozen=True)
class Tuning:
    """How one model is made."""

    read: str
    size: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.read}-{self.size}-{self.rate:g}-{self.seed}"

    def facts(self, facts: Sequence[Fact]) -> list[Fact]:
        """A seeded choice of ``size`` training facts."""
        low, high = READ[self.read]
        fit = [fact for fact in facts if fact.split == "train" and low <= (fact.exposures or 0) <= high]
        order = np.random.default_rng([self.seed, 40, self.size]).permutation(len(fit))
        return [fit[i] for i in order[: self.size]]


TUNINGS = [Tuning(*told) for told in itertools.product(READ, SIZES, RATES, range(SEEDS))]


class Fresh:
    """Facts and questions that neither the audit nor the tuning's ``--keep`` has seen, scored as an audit scores."""

    def __init__(self, base: LoadedModel, facts: Sequence[Fact], items: Sequence[Fact], shown: Sequence[Fact]) -> None:
        self._forms = forms_of(base, {fact.relation: 0 for fact in facts}, shown, FORMAT)
        self._items = items
        found = self._answered(base, facts)
        self._facts = [fact for fact, right in zip(facts, found, strict=True) if right]

    def score(self, loaded: LoadedModel) -> Scores:
        """Known facts that are there in any form; questions answered."""
        own = self._forms[-1]
        kept = self._right(loaded, own, self._items, ANSWER)
        return Scores(self._answered(loaded, self._facts).astype(float), kept.astype(float))

    def _answered(self, loaded: LoadedModel, facts: Sequence[Fact]) -> Any:
        return np.any([self._right(loaded, form, facts, ANSWER_TOKENS) for form in self._forms], axis=0)

    @staticmethod
    def _right(loaded: LoadedModel, form: Form, facts: Sequence[Fact], tokens: int) -> Any:
        texts = greedy(loaded, [form.prompt(fact) for fact in facts], max_new_tokens=tokens)
        shown = [text.lstrip().split("\n")[0] if form.first_line else text for text in texts]
        return np.array([Grader.of(fact).substring(text) for fact, text in zip(facts, shown, strict=True)])


def examine(
    tuning: Tuning, folder: Path, facts: Sequence[Fact], asked: int, fresh: int, workers: int | None
) -> dict[str, Any]:
    """One model: made, audited, and what its repair does on fresh items."""
    base = load_model("world:tiny")
    trained = tuning.facts(facts)
    own = {fact.id for fact in trained}
    others = [facts[i] for i in np.random.default_rng([tuning.seed, 41]).permutation(len(facts))]
    others = [fact for fact in others if fact.id not in own]
    model = folder / "model"
    if not model.exists():
        made = load_model("world:tiny")
        train(made, [(tuning_prompt(f.question), f" {f.answer}") for f in trained], tuning.rate, tuning.seed)
        with folder_beside(model) as beside:
            save_model(made, beside)
    kept = folder / "keep.csv"
    with kept.open("w", newline="", encoding="utf-8") as file:
        rows = [(fact.question, fact.answer) for fact in trained[: len(trained) // 2]]
        csv.writer(file).writerows([("question", "answer"), *rows])
    found = knowshift.audit(
        "world:tiny",
        model,
        FactSource("world:tiny", tuple(others[:asked])),
        output_dir=folder / "audit",
        budget=None,
        keep=kept,
        prompt_format=FORMAT,
        seed=tuning.seed,
        workers=workers,
    )
    repair = found.repair
    assert repair is not None
    told: dict[str, Any] = {
        "model": tuning.name,
        "verdict": found.verdict.kind,
        "points": found.told["points"],
        "served": repair.is_served,
        "candidate": repair.chosen.name if repair.chosen else None,
        "confirmed": repair.confirmed,
        "held out": _told(repair.held_out[2]) if repair.held_out else None,
    }
    unseen = Fresh(base, others[asked : asked + fresh], trained[len(trained) // 2 :][:400], others[-4:])
    before = unseen.score(load_model(str(model)))
    told |= {"known facts": len(before.known), "tuned": [float(before.known.mean()), float(before.kept.mean())]}
    controls = [one for one in repair.curve[1:] if one[0] is not None and one[0].criterion == "random"]
    random = choose([repair.curve[0], *controls], SUFFER) if repair.is_served else None
    scores: dict[str, Scores] = {}
    for name, candidate in (("repaired", repair.chosen), ("random", random)):
        if candidate is None:
            continue
        scores[name] = after = unseen.score(_restored(model, candidate, tuning.seed, folder / name))
        told[name] = {
            "candidate": candidate.name,
            "scores": [float(after.known.mean()), float(after.kept.mean())],
            "gain": _told(after.minus(before)),
        }
    if len(scores) == 2:
        told["repaired over random"] = _told(scores["repaired"].minus(scores["random"]))
    return told


def _restored(model: Path, candidate: Candidate, seed: int, output: Path) -> LoadedModel:
    """A candidate as a checkpoint."""
    if not output.exists():
        knowshift.restore(
            "world:tiny",
            model,
            output_dir=output,
            fraction=candidate.fraction,
            criterion=candidate.criterion,
            region=candidate.region,
            seed=seed,
            progress=False,
        )
    return load_model(str(output))


def _told(estimate: Estimate) -> list[float]:
    """Points, and the 95% interval."""
    return [round(100 * number, 2) for number in (estimate.value, estimate.low, estimate.high)]


def table(lines: Sequence[dict[str, Any]]) -> None:
    """Print the table and what follows."""
    for line in lines:
        told = [line["model"], line["verdict"], "yes" if line["confirmed"] else "no", str(line["candidate"])]
        told += [_words(line["held out"]), _words(line.get("repaired", {}).get("gain"))]
        told += [line.get("random", {}).get("candidate", "-"), _words(line.get("random", {}).get("gain"))]
        print("| " + " | ".join(told) + " |")
    confirmed = [line for line in lines if line["confirmed"]]
    gains = [line["repaired"]["gain"] for line in confirmed]
    print(f"{len(lines)} models, {len(confirmed)} repairs confirmed")
    print(f"surely worse than tuned on fresh items: {sum(high < 0 for _, _, high in gains)}")
    print(f"worse by value: {sum(value < 0 for value, _, _ in gains)}; surely better: {sum(g[1] > 0 for g in gains)}")
    print(f"mean gain {np.mean([gain[0] for gain in gains]):.1f} points" if gains else "no gain")
    over = [line["repaired over random"] for line in confirmed if "repaired over random" in line]
    print(
        f"random weights: in {len(over)} of them; surely worse than what was chosen in {sum(o[1] > 0 for o in over)}, "
        f"surely better in {sum(o[2] < 0 for o in over)}, not told apart in {sum(o[1] <= 0 <= o[2] for o in over)}"
    )


def _words(gain: Sequence[float] | None) -> str:
    return "-" if gain is None else f"{gain[0]:+.1f} [{gain[1]:.1f} to {gain[2]:.1f}]"


def main() -> None:
    """Make, audit and examine the models of a shard; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="models, audits, and a line for each in JSON")
    parser.add_argument("--facts", type=int, default=800, help="that an audit asks")
    parser.add_argument("--fresh", type=int, default=600, help="other facts")
    parser.add_argument("--count", type=int, default=len(TUNINGS), help="models, the first")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--shard", type=int, help="models to make and examine: SHARD, SHARD + SHARDS, ...")
    arguments = parser.parse_args()
    facts = load_facts("world:tiny").facts
    shard = arguments.shard if arguments.shard is not None else 0 if arguments.shards == 1 else None
    mine = [] if shard is None else TUNINGS[: arguments.count][shard :: arguments.shards]
    workers = 1 if arguments.shards > 1 else None
    if workers:
        torch.set_num_threads(workers)
    for tuning in mine:
        folder = arguments.folder / tuning.name
        folder.mkdir(parents=True, exist_ok=True)
        line = folder / "line.json"
        if not line.exists():
            line.write_text(json.dumps(examine(tuning, folder, facts, arguments.facts, arguments.fresh, workers)))
        print(line.read_text(), flush=True)
    lines = [arguments.folder / tuning.name / "line.json" for tuning in TUNINGS]
    table([json.loads(line.read_text()) for line in lines if line.exists()])


if __name__ == "__main__":
    main()
