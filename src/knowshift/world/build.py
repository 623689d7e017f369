"""Building a world: facts, exposures, corpus, tokenizer, pre-trained base model, and the record of how it was made."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.relations import IN_DOMAIN, OUT_OF_DOMAIN
from knowshift.facts.sources.load import load_facts
from knowshift.facts.sources.tables import write_facts
from knowshift.files import digest, folder_beside, write_json
from knowshift.models.dtypes import TORCH_DTYPES
from knowshift.models.loading import load_model
from knowshift.parameters.files.companions import copy_files
from knowshift.system.quiet import no_bars_of_transformers
from knowshift.version import __version__
from knowshift.world.corpus import sentences
from knowshift.world.invent import DEFAULT_BANDS, ExposureBand, Repetition, draw_repetitions, with_exposures
from knowshift.world.pretrain import (
    Recipe,
    encode_corpus,
    new_model,
    pretrain,
    token_lengths,
    train_tokenizer,
)
from knowshift.world.record import RECORD, read_world_record

#: Sentences that the tokenizer is trained on: the first of the shuffled corpus.
TOKENIZER_SENTENCES = 100_000

Progress = Callable[[int, int, float], None]


def sample_facts(
    facts: Sequence[Fact],
    seed: int,
    *,
    train_per_relation: int,
    test_per_relation: int,
    out_of_domain_per_relation: int,
) -> list[Fact]:
    """Up to so many facts of each relation and split from a source of real facts, seeded; file order is kept.

    Raises:
        InputError: the source has no facts of one of the three groups.
    """
    rng = np.random.default_rng([seed, 4])
    wanted: dict[tuple[str, str], int] = {
        **{(relation, "train"): train_per_relation for relation in IN_DOMAIN},
        **{(relation, "test"): test_per_relation for relation in IN_DOMAIN},
        **{(relation, "test"): out_of_domain_per_relation for relation in OUT_OF_DOMAIN},
    }
    groups: dict[tuple[str, str], list[int]] = {group: [] for group in wanted}
    subjects: set[tuple[str, str]] = set()
    for index, fact in enumerate(facts):
        group: tuple[str, str] = (fact.relation, fact.split)
        # A subject twice under one relation would be one fact with two answers in the corpus.
        if group in groups and (fact.relation, fact.subject) not in subjects:
            subjects.add((fact.relation, fact.subject))
            groups[group].append(index)
    if empty := [group for group, members in groups.items() if not members]:
        raise InputError(f"facts: no {empty[0][1]} facts of relation {empty[0][0]}; a world needs all 24 relations")
    chosen: list[int] = []
    for group, members in groups.items():
        size = min(wanted[group], len(members))
        chosen.extend(np.sort(rng.choice(members, size=size, replace=False)).tolist())
    return [facts[index] for index in chosen]


def build_world(
    output: Path,
    facts: Sequence[Fact],
    *,
    seed: int,
    recipe: Recipe,
    origin: str,
    bands: Sequence[ExposureBand] = DEFAULT_BANDS,
    longest_name: int | None = None,
    stored_dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a world in ``output`` (which must not exist): ``facts.parquet``, the model's files, ``world.json``.

    Args:
        facts: without exposures; those are drawn here.
        origin: where the facts are from, for the record.
        longest_name: leave facts out of the table whose subject or answer is longer (tokens); the corpus keeps them.
        progress: called with (step, steps, loss).

    Returns:
        The content of ``world.json``.
    """
    if output.exists():
        raise InputError(f"{output}: exists already; a world is written to a new folder")
    facts = with_exposures(facts, seed, bands)
    if not any(fact.exposures for fact in facts):
        raise InputError("exposure bands: no fact is ever written, so there is no corpus")
    tokenizer = train_tokenizer(islice(sentences(facts, seed), TOKENIZER_SENTENCES), recipe.vocabulary)
    tokens = encode_corpus(tokenizer, sentences(facts, seed))
    model = new_model(recipe, tokenizer, seed)
    trained = pretrain(model, tokens, recipe, progress, device)

    kept = np.ones(len(facts), dtype=bool)
    subject_tokens = token_lengths(tokenizer, [fact.subject for fact in facts])
    answer_tokens = token_lengths(tokenizer, [fact.answer for fact in facts])
    if longest_name is not None:
        kept = (subject_tokens <= longest_name) & (answer_tokens <= longest_name)
    table = [fact for fact, keep in zip(facts, kept, strict=True) if keep]
    record = {
        "knowshift": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "origin": origin,
        "facts_digest": _facts_digest(table),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": device,
        "longest_name": longest_name,
        "groups": dict(Counter(f"{fact.split} {fact.domain}" for fact in facts)),
        "recipe": recipe.as_record(),
        "bands": [asdict(band) for band in bands],
        "pretraining": trained,
        "sentences": int(sum(fact.exposures or 0 for fact in facts)),
        "facts": len(table),
        "facts_left_out": int((~kept).sum()),
        "mean_subject_tokens": round(float(subject_tokens[kept].mean()), 2),
        "mean_answer_tokens": round(float(answer_tokens[kept].mean()), 2),
        "weights": sum(p.numel() for p in model.parameters()),
        "stored_dtype": str(stored_dtype).removeprefix("torch."),
    }
    with folder_beside(output) as folder:
        write_facts(folder / "facts.parquet", table)
        with no_bars_of_transformers():
            model.to("cpu", stored_dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / RECORD, record)
    return record


def continue_world(
    world: Path,
    output: Path,
    repetition: Repetition,
    *,
    recipe: Recipe,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A copy of a world in ``output`` whose base model is also trained on a second corpus, which repeats some facts.

    Args:
        recipe: how the world was made; the repetition's learning rate replaces its own.
        seed: of the draw of repetitions.

    Returns:
        The content of the new ``world.json``: the old one, with ``repetition`` and the sums over both corpora.

    Raises:
        InputError: ``output`` exists, or no fact is within the repetition's bounds.
    """
    if output.exists():
        raise InputError(f"{output}: exists already; a world is written to a new folder")
    loaded = load_model(f"world:{world}", device=device)
    facts = load_facts(f"world:{world}").facts
    exposures = [fact.exposures or 0 for fact in facts]
    more = draw_repetitions(exposures, repetition, seed)
    repeated = [replace(fact, exposures=count) for fact, count in zip(facts, more, strict=True)]
    tokens = encode_corpus(loaded.tokenizer, sentences(repeated, repetition.seed))
    recipe = replace(recipe, learning_rate=repetition.learning_rate)
    trained = pretrain(loaded.model, tokens, recipe, progress, device)
    table = [replace(fact, exposures=a + b) for fact, a, b in zip(facts, exposures, more, strict=True)]
    record = read_world_record(world)
    record |= {
        "facts_digest": _facts_digest(table),
        "sentences": record["sentences"] + sum(more),
        "repetition": {**asdict(repetition), "sentences": sum(more), "pretraining": trained},
    }
    with folder_beside(output) as folder:
        copy_files(world, folder)  # the tokenizer is the same, byte for byte
        write_facts(folder / "facts.parquet", table)
        with no_bars_of_transformers():
            loaded.model.to("cpu", TORCH_DTYPES[record["stored_dtype"]]).save_pretrained(folder)
        write_json(folder / RECORD, record)
    return dict(record)


def _facts_digest(facts: Sequence[Fact]) -> str:
    return digest([[fact.id, fact.subject, fact.answer, fact.exposures] for fact in facts])


def without_exposures(facts: Sequence[Fact]) -> list[Fact]:
    """The same facts with unknown exposures."""
    return [replace(fact, exposures=None) for fact in facts]
