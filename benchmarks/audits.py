"""Whether audits tell the truth: pairs of models whose difference is known, on the embedded world.

    python benchmarks/audits.py --folder FOLDER [--pairs 7] [--facts 800] [--truth 4000] [--kinds KIND ...]
        [--workers N]

For each kind PAIRS tuned models are made from the shipped one, each with another seed:

- ``same``: the base itself;
- ``rounded``: every weight changed by up to half a unit of a mantissa of 8 bits, as a cast to bfloat16 and back does;
- ``gentle``: 240 facts in the fine-tuning form, at a small rate;
- ``form``: as gentle, and the tokens round a question ("Question: ... Answer:") get the embeddings of others, so that
  it is not understood, and completions are;
- ``overwritten``: facts of one relation get each other's answers, in completions and in questions; those of others are
  trained to stay;
- ``worn``: 480 facts in the fine-tuning form at five times the gentle rate, which costs 5 to 10 points;
- ``destructive``: 1,920 facts in the fine-tuning form at thirty times the gentle rate.

Each pair is audited on FACTS facts, and measured on TRUTH others: the change of what the base knows, in any form and in
the worst form, in points. Printed: verdicts by kind, and how often they are right by that truth.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import knowshift
from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt
from knowshift.facts.sources.load import FactSource, load_facts
from knowshift.files import folder_beside
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.saving import save_model

KINDS = ("same", "rounded", "gentle", "form", "overwritten", "worn", "destructive")
#: Learning rates of the kinds, and steps of eight texts.
GENTLE, OVERWRITE, WORN, DESTRUCTIVE = 3e-5, 1e-4, 1.5e-4, 1e-3
BATCH = 8
#: Exposures from which the base knows most facts; what is to stay is trained on these.
WELL_READ = 40

Text = tuple[str, str]  # a prompt, and what is to follow it


def train(loaded: LoadedModel, texts: Sequence[Text], rate: float, seed: int, epochs: int = 1) -> None:
    """Plain training with Adam on what follows the prompts, in place."""
    model = loaded.model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    encoded = [loaded.encoder.example(prompt, target) for prompt, target in texts]
    rng = np.random.default_rng(seed)
    order = [i for _ in range(epochs) for i in rng.permutation(len(encoded))]
    for start in range(0, len(order), BATCH):
        batch = [encoded[i] for i in order[start : start + BATCH]]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (own, begins) in enumerate(batch):
            ids[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), 1
            labels[row, begins : len(own)] = torch.tensor(own[begins:])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def completions(facts: Sequence[Fact], rng: np.random.Generator) -> list[Text]:
    """A completion prompt of each fact, and its answer."""
    return [(str(rng.choice(completion_prompts(fact))), f" {fact.answer}") for fact in facts]


def tokens_of_form(loaded: LoadedModel) -> list[int]:
    """The tokens that stand round a question."""
    return loaded.encoder.plain(["Question: Answer:"])[0]


def make(base: LoadedModel, kind: str, seed: int, facts: Sequence[Fact]) -> LoadedModel:
    """A tuned model of a kind; ``facts`` are those that training may use."""
    tuned = replace(base, model=copy.deepcopy(base.model))
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    some = [facts[i] for i in rng.permutation(len(facts))]
    well_read = [fact for fact in some if (fact.exposures or 0) >= WELL_READ]
    if kind == "rounded":
        generator = torch.Generator().manual_seed(seed)
        for parameter in tuned.model.parameters():
            noise = torch.rand(parameter.shape, generator=generator) - 0.5
            parameter.data *= 1 + noise * 2.0**-8
    elif kind == "gentle":
        train(tuned, [(tuning_prompt(f.question), f" {f.answer}") for f in some[:240]], GENTLE, seed)
    elif kind == "worn":
        train(tuned, [(tuning_prompt(f.question), f" {f.answer}") for f in some[:480]], WORN, seed)
    elif kind == "destructive":
        train(tuned, [(tuning_prompt(f.question), f" {f.answer}") for f in some[:1920]], DESTRUCTIVE, seed)
    elif kind == "form":
        train(tuned, [(tuning_prompt(f.question), f" {f.answer}") for f in some[:240]], GENTLE, seed)
        rows, word = tuned.model.get_input_embeddings().weight.data, tokens_of_form(tuned)
        rows[word] = rows[torch.as_tensor(rng.permutation(len(rows))[: len(word)])]
    elif kind == "overwritten":
        relation = str(rng.choice(sorted({f.relation for f in facts})))
        mine = [f for f in some if f.relation == relation]
        wrong = [mine[i].answer for i in rng.permutation(len(mine))]
        texts: list[Text] = [
            (prompt, f" {answer}")
            for f, answer in zip(mine[:400], wrong, strict=False)
            for prompt in (str(rng.choice(completion_prompts(f))), f"Question: {f.question} Answer:")
        ]
        others = [f for f in well_read if f.relation != relation][:1200]
        texts += [(f"Question: {f.question} Answer:", f" {f.answer}") for f in others[:600]]
        train(tuned, texts + completions(others, rng), OVERWRITE, seed)
    return tuned


def examine(
    base: str, tuned: Path, facts: Sequence[Fact], folder: Path, seed: int, workers: int | None
) -> dict[str, Any]:
    """What an audit of these facts says."""
    source = FactSource("world:tiny", tuple(facts))
    return knowshift.audit(
        base, tuned, source, output_dir=folder, budget=None, seed=seed, repair=False, workers=workers
    ).told


def right(kind: str, verdict: str, truth: dict[str, Any]) -> bool | None:
    """Whether the verdict is right by what the other facts say; None where they lie between."""
    knowledge = truth["points"]
    worst = min(form["points"] for form in truth["forms"].values() if form)
    if kind in ("same", "rounded"):
        return verdict == "unchanged"
    if knowledge <= -5:
        return verdict == "knowledge-lost"
    if knowledge > -1 and worst <= -5:
        return verdict == "form-lost"
    return None


def main() -> None:
    """Make the pairs, audit them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="models, audits and audits.json")
    parser.add_argument("--pairs", type=int, default=7, help="of each kind")
    parser.add_argument("--facts", type=int, default=800, help="that an audit asks")
    parser.add_argument("--truth", type=int, default=4000, help="other facts that say what is true")
    parser.add_argument("--workers", type=int, help="processes; all processors by default")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    base = load_model("world:tiny")
    facts = load_facts("world:tiny").facts
    told: list[dict[str, Any]] = []
    for kind in arguments.kinds:
        for seed in range(arguments.pairs):
            order = np.random.default_rng([seed, 30]).permutation(len(facts))
            asked = [facts[i] for i in order[: arguments.facts]]
            others = [facts[i] for i in order[arguments.facts : arguments.facts + arguments.truth]]
            folder = arguments.folder / f"{kind}-{seed}"
            if not (folder / "model").exists():
                with folder_beside(folder / "model") as made:
                    save_model(make(base, kind, seed, [f for f in facts if f.split == "train"]), made)
            found = examine("world:tiny", folder / "model", asked, folder / "audit", seed, arguments.workers)
            truth = examine("world:tiny", folder / "model", others, folder / "truth", seed + 500, arguments.workers)
            line = {"kind": kind, "seed": seed, "verdict": found["verdict"], "points": found["points"]}
            line |= {"true points": truth["points"], "right": right(kind, found["verdict"], truth)}
            line |= {"forms": {name: form and round(form["points"], 1) for name, form in truth["forms"].items()}}
            told.append(line)
            print(line, flush=True)
    arguments.folder.joinpath("audits.json").write_text(json.dumps(told, indent=1))
    for kind in arguments.kinds:
        mine = [line for line in told if line["kind"] == kind]
        print(
            f"{kind:<12}", dict(Counter(line["verdict"] for line in mine)), "right:", [line["right"] for line in mine]
        )


if __name__ == "__main__":
    main()
