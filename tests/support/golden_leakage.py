"""The tables of leakage once more, fact by fact, from a run folder's records and its table of facts."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from golden_records import DOMAINS, Interval, Model, Records, crossed, holm, mean_of
from golden_tables import SETTING, Golden, setting, within


def answered(records: Records, word: bool, key: tuple[Model, int], inside: list[int]) -> tuple[float, dict[int, float]]:
    """Mean over domains of the mean over their test levels with facts; what each fact adds, by the formula."""
    facts = records.substring.facts
    hits = (records.word if word else records.substring).values[key]
    by_level: dict[str, dict[int, list[int]]] = {}
    for i in inside:
        by_level.setdefault(facts[i]["domain"], {}).setdefault(facts[i]["level"], []).append(i)
    means, added = [], {}
    for levels in by_level.values():
        means.append(mean_of(mean_of(hits[i] for i in its) for its in levels.values()))
        for its in levels.values():
            mean, n = mean_of(hits[i] for i in its), len(its)
            for i in its if n > 1 else ():
                weight = 1 / len(levels) / len(by_level)
                added[i] = weight * (hits[i] - mean) / n * math.sqrt(n / (n - 1))
    return mean_of(means), added


#: (training level, its value, what each fact adds) of each draw.
Answered = list[tuple[int, float, dict[int, float]]]


def over_facts(
    records: Records, units: Answered, alike: Sequence[Answered] = (), by_relation: bool = False
) -> Interval:
    held = [unit for unit in units if not math.isnan(unit[1])]
    if not held:
        return Interval()
    pooled = [[value for _, value, _ in its if not math.isnan(value)] for its in alike]
    pooled = [its for its in pooled if len(its) > 1]
    freedom = sum(len(its) - 1 for its in pooled)
    squares = math.fsum(statistics.variance(its) * (len(its) - 1) for its in pooled)
    adds, known = [added for _, _, added in held], math.inf
    if by_relation:
        named = [
            {
                name: math.fsum(x for i, x in added.items() if records.substring.facts[i]["relation"] == name)
                for name in {records.substring.facts[i]["relation"] for i in added}
            }
            for added in adds
        ]
        used = {records.substring.facts[i]["relation"] for added in adds for i, x in added.items() if x}
        if len(used) < 2:
            return Interval()
        scale = math.sqrt(len(used) / (len(used) - 1))
        adds, known = [{name: scale * x for name, x in its.items()} for its in named], len(used) - 1
    covariance = {
        (u, v): math.fsum(x * adds[v].get(i, 0.0) for i, x in adds[u].items())
        for u in range(len(adds))
        for v in range(len(adds))
    }
    strata = [[u for u, its in enumerate(held) if its[0] == level] for level in sorted({its[0] for its in held})]
    noise = (squares / freedom, freedom) if freedom else None
    return crossed([value for _, value, _ in held], strata, covariance, noise, known)


def subsets(records: Records) -> tuple[dict[tuple[Model, int], set[str]], set[str]]:
    """The answers that each model was trained on, and the questions of the training split."""
    source = Path(json.loads((records.run / "manifest.json").read_text())["config"]["facts"])
    with source.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines)) if source.suffix == ".csv" else [json.loads(line) for line in lines]
    trained = {row["id"]: row for row in rows if row["split"] == "train"}
    answers = {
        key: {trained[name]["answer"] for name in told["facts"]}
        for key, told in records.trained.items()
        if key in records.substring.values
    }
    return answers, {row["question"] for row in trained.values()}


ASKED = ("all", "answer_not_trained", "answer_trained", "question_not_trained")


def belongs(fact: dict[str, Any], asked: str, trained: Sequence[set[str]], questions: set[str]) -> bool:
    return {
        "all": True,
        "answer_not_trained": all(fact["answer"] not in its for its in trained),
        "answer_trained": all(fact["answer"] in its for its in trained),
        "question_not_trained": fact["question"] not in questions,
    }[asked]


def leakage(records: Records) -> Golden:
    answers, questions = subsets(records)
    facts, rows = records.substring.facts, []

    def inside(key: tuple[Model, int], asked: str, domain: str) -> list[int]:
        fits = [belongs(fact, asked, [answers[key]], questions) for fact in facts]
        return [i for i, fact in enumerate(facts) if fits[i] and fact["domain"] == domain]

    for model in {model for model, _ in answers}:
        draws = [key for key in answers if key[0] == model]
        peers = {other for other, _ in answers if other[1:4] == model[1:4]}
        for domain in DOMAINS:
            for asked in ASKED:
                graded = []
                for word in (False, True):
                    units = {
                        key: (key[0].level, *answered(records, word, key, inside(key, asked, domain)))
                        for key in answers
                        if key[0] in peers
                    }
                    alike = [[unit for key, unit in units.items() if key[0] == peer] for peer in peers]
                    graded.append(over_facts(records, [units[key] for key in draws], alike))
                its = [inside(key, asked, domain) for key in draws]
                levels = min(len({facts[i]["level"] for i in here}) for here in its)
                numbers = [x for found in graded for x in within(found, 0, 1)]
                rows.append((*setting(model), domain, asked, graded[0].draws, min(map(len, its)), levels, *numbers))
    measured = ("accuracy", "low", "high", "word_accuracy", "word_low", "word_high")
    return Golden((*SETTING, "domain", "asked", "draws", "facts", "levels", *measured), 6, rows)


def leakage_sizes(records: Records) -> Golden:
    answers, questions = subsets(records)
    facts, rows = records.substring.facts, []
    largest = max(size for _, size in records.grid)
    levels = sorted({level for level, _ in records.grid})

    def units(level: int, size: int, asked: str, domain: str, word: bool, over: int = 1) -> Answered:
        found: Answered = []
        first, second = records.grid[level, size], records.grid[level, largest]
        for draw in records.substring.shared(first, second):
            keys = [(first, draw), (second, draw)]
            fits = [belongs(fact, asked, [answers[key] for key in keys], questions) for fact in facts]
            inside = [i for i, fact in enumerate(facts) if fits[i] and domain in ("both", fact["domain"])]
            (a, more), (b, less) = (answered(records, word, key, inside) for key in keys)
            found.append((level, (a - b) / over, {i: (x - less[i]) / over for i, x in more.items()}))
            counted.append(len(inside))
        return found

    for name, chosen in [*((str(level), [level]) for level in levels), ("mean", levels)]:
        for domain in ("both", *DOMAINS):
            for asked in ASKED:
                batch = []
                for size in sorted({size for _, size in records.grid} - {largest}):
                    counted: list[int] = []
                    alike = [units(level, size, asked, domain, False) for level in levels] if name != "mean" else []
                    counted.clear()
                    whole = {level: units(level, size, asked, domain, False) for level in chosen}
                    known = sum(any(not math.isnan(unit[1]) for unit in its) for its in whole.values())
                    facts_ = min(counted)
                    own, words = (
                        [u for level in chosen for u in units(level, size, asked, domain, word, max(1, known))]
                        for word in (False, True)
                    )
                    found = over_facts(records, own, alike)
                    related = over_facts(records, own, alike, by_relation=True)
                    numbers = (over_facts(records, words).value, *within(related, -1, 1)[1:])
                    batch.append((str(size), facts_, found, numbers))
                adjusted = holm([found.p for _, _, found, _ in batch])
                for (size_, n, found, numbers), p in zip(batch, adjusted, strict=True):
                    where = (name, size_, str(largest), domain, asked)
                    rows.append((*where, found.draws, n, *within(found, -1, 1), found.p, p, *numbers))
    measured = ("difference", "low", "high", "p", "p_holm", "word_difference", "relation_low", "relation_high")
    return Golden(("level", "size", "against", "domain", "asked", "draws", "facts", *measured), 5, rows)


TABLES: dict[str, Callable[[Records], Golden]] = {"leakage": leakage, "leakage_sizes": leakage_sizes}
