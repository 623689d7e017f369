"""Every table of the report once more, from a run folder's records and the formulas of docs/measures.md.

A table is the columns that name a row, then the others (in the file they may stand elsewhere). Labels are texts, counts
whole numbers, everything else a float, and what is missing is NaN.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from golden_records import (
    BASE,
    DOMAINS,
    FILES,
    NAN,
    Interval,
    Model,
    Records,
    Scored,
    holm,
    mean_interval,
    mean_of,
    rows_of,
    student,
)

PUBLISHED = Path(__file__).parents[2] / "src" / "knowshift" / "reports" / "published"
SETTING = ("level", "size", "learning_rate", "control")
ONE_DRAW = ("level", "size", "draw", "learning_rate", "control")
COUNTED = ("facts", "correct", "accuracy", "word_correct", "word_accuracy", "empty_rate")


class Golden(NamedTuple):
    columns: tuple[str, ...]
    key: int  # the first so many columns name a row
    rows: list[tuple[Any, ...]]


def setting(model: Model) -> tuple[str, ...]:
    return str(model.level), str(model.size), format(model.rate, "g"), model.control


def one_draw(model: Model, draw: int) -> tuple[str, ...]:
    level, size, rate, control = setting(model)
    return level, size, str(draw), rate, control


def within(interval: Interval, low: float = -math.inf, high: float = math.inf) -> tuple[float, ...]:
    """Value and ends, cut where the quantity cannot go."""
    ends = (interval.low, interval.high)
    return interval.value, *(end if math.isnan(end) else float(min(max(end, low), high)) for end in ends)


def mastery(records: Records) -> Golden:
    rows = []
    for split in ("train", "test"):
        for domain in DOMAINS:
            levels = [r["level"] for r in records.mastery if (r["split"], r["domain"]) == (split, domain)]
            for level in range(5) if levels else ():
                rows.append((split, domain, str(level), levels.count(level), levels.count(level) / len(levels)))
    return Golden(("split", "domain", "level", "facts", "share"), 3, rows)


#: docs/records.md does not list the bins; these are the ones that the default world's exposures are shown in.
BINS = {
    "never": (0,),
    "1": (1,),
    "2": (2,),
    "3-4": (3, 4),
    "5-7": (5, 6, 7),
    "8-12": range(8, 13),
    "13-20": range(13, 21),
    "21-50": range(21, 51),
    ">50": range(51, 10**6),
}


def exposures(records: Records) -> Golden:
    rows = []
    for name, times in BINS.items():
        inside = [r for r in records.mastery if r["exposures"] in times]
        # R = hits / draws and its level, from the counts of the single prompts.
        drawn = [sum(r["prompt_draws"]) for r in inside]
        hits = [sum(r["prompt_hits"]) for r in inside]
        levels = [
            0 if h == 0 else next(k for k in (1, 2, 3, 4) if 4 * h <= k * n) for h, n in zip(hits, drawn, strict=True)
        ]
        mean = mean_interval([h / n for h, n in zip(hits, drawn, strict=True)])
        shares = [levels.count(level) / len(levels) if levels else NAN for level in range(5)]
        rows.append((name, len(inside), *within(mean, 0, 1), *shares))
    shares_named = tuple(f"share_level_{level}" for level in range(5))
    return Golden(("exposures", "facts", "mean_rate", "low", "high", *shares_named), 1, rows)


def counted(records: Records, model: Model, draw: int) -> list[tuple[Any, ...]]:
    """Domain, test level, then facts, hits and shares; in the row "mean" shares are the plain mean of the levels'."""
    rows: list[tuple[Any, ...]] = []
    facts, empty = records.substring.facts, records.empty[model, draw]
    hits, words = (scored.values[model, draw] for scored in (records.substring, records.word))
    for domain in DOMAINS:
        by_level = [[i for i, f in enumerate(facts) if (f["domain"], f["level"]) == (domain, k)] for k in range(5)]
        its = []
        for level, inside in enumerate(by_level):
            h, w = (int(sum(x[i] for i in inside)) for x in (hits, words))
            e = mean_of(empty[i] for i in inside)
            n = len(inside)
            its.append((domain, str(level), n, h, h / n if n else NAN, w, w / n if n else NAN, e))
        every = [i for inside in by_level for i in inside]
        n, h, w = (sum(row[k] for row in its) for k in (2, 3, 5))
        means = [mean_of(row[k] for row in its if row[2]) for k in (4, 6)]
        rows += [*its, (domain, "mean", n, h, means[0], w, means[1], mean_of(empty[i] for i in every))]
    return rows


def base(records: Records) -> Golden:
    rows = []
    for prompt, model in BASE.items():
        for domain, level, n, h, *rest in counted(records, model, 0):
            low = high = NAN
            if n and level != "mean":  # Wilson's interval: the rates that are 1.96 standard errors from h / n
                z = statistics.NormalDist().inv_cdf(0.975)
                centre, root = 2 * h + z * z, z * math.sqrt(z * z + 4 * h * (1 - h / n))
                low, high = ((centre - root) / 2 / (n + z * z), (centre + root) / 2 / (n + z * z))
            rows.append((prompt, domain, level, n, h, rest[0], max(low, 0.0), min(high, 1.0), *rest[1:]))
    columns = ("prompt", "domain", "test_level", *COUNTED[:3], "low", "high", *COUNTED[3:])
    return Golden(columns, 3, rows)


def accuracy(records: Records) -> Golden:
    rows = [
        (*one_draw(model, draw), *row)
        for model in records.tuned
        for draw in records.substring.draws[model]
        for row in counted(records, model, draw)
    ]
    return Golden((*ONE_DRAW, "domain", "test_level", *COUNTED), 7, rows)


def accuracy_summary(records: Records) -> Golden:
    rows = []
    levels = sorted({m.level for m in records.tuned})
    for model in records.tuned:
        draws = records.substring.draws[model]
        alike: list[tuple[Model, Model | None]] = [(model._replace(level=level), None) for level in levels]
        singles = [counted(records, model, draw) for draw in draws]
        for number, (domain, level, n, *_) in enumerate(singles[0]):
            ours = [single[number] for single in singles]
            where = (*setting(model), domain, level)
            test_level = None if level == "mean" else int(level)

            def mean(scored: Scored, m: Model = model, d: str = domain, k: int | None = test_level) -> Interval:
                return scored.difference([(m, None)], scored.over([d], k), alike)  # noqa: B023

            deviation = statistics.stdev(row[4] for row in ours) if n and len(draws) > 1 else NAN
            rows.append(
                (
                    *(*where, len(draws), n, *within(mean(records.substring), 0, 1), deviation),
                    *(*within(mean(records.word), 0, 1), mean_of(row[7] for row in ours)),
                )
            )
    measured = ("draws", "facts", "accuracy", "low", "high", "deviation", "word_accuracy", "word_low", "word_high")
    return Golden((*SETTING, "domain", "test_level", *measured, "empty_rate"), 6, rows)


def controls(records: Records) -> Golden:
    scored, rows = records.substring, []
    for size in sorted({size for _, size in records.slow}):
        both = {lv: (records.slow[lv, s], records.grid[lv, s]) for lv, s in sorted(records.slow) if s == size}
        for name, levels in [*((str(lv), [lv]) for lv in both), *([("mean", list(both))] if len(both) > 1 else [])]:
            pairs = [both[level] for level in levels]
            for domain in DOMAINS:
                over = scored.over([domain])
                found = scored.difference(pairs, over, list(both.values()) if len(levels) == 1 else ())
                means = [scored.difference([(pair[i], None) for pair in pairs], over).value for i in (1, 0)]
                rates = [format(pairs[0][i].rate, "g") for i in (1, 0)]
                head = ("learning_rate", name, str(size), domain, found.draws, rates[0], means[0], rates[1], means[1])
                rows.append((*head, *within(found), found.p))
    columns = ("control", "level", "size", "domain", "draws", "learning_rate", "accuracy", "control_learning_rate")
    return Golden((*columns, "control_accuracy", "difference", "low", "high", "p"), 4, rows)


def trainings(records: Records) -> Golden:
    rows = []
    for model in sorted({model for model, _ in records.trained}, key=lambda m: (m.control, m)):
        told = [record for (trained, _), record in records.trained.items() if trained == model]
        shares = [c["changed_share"] for (m, _), c in records.changes.items() if m == model and "changed_share" in c]
        facts, updates = (
            round(mean_of(values)) for values in ([len(r["facts"]) for r in told], [r["steps"] for r in told])
        )
        loss = mean_of(r["train_loss"] for r in told)
        rows.append((*setting(model), len(told), facts, updates, loss, mean_of(shares), NAN))
    measured = ("draws", "distinct_facts", "updates", "train_loss", "changed_share", "rounded_share")
    return Golden((*SETTING, *measured), 4, rows)


def moves(records: Records) -> Golden:
    """Pairs of answers counted one by one: the base's in the form that it answers best, then each tuned model's."""
    facts, values = records.substring.facts, records.substring.values
    best = max(("plain", "few_shot", "zero_shot"), key=lambda prompt: sum(values[BASE[prompt], 0]))
    written = {row["fact"]: row["exposures"] for row in records.mastery}
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, fact in enumerate(facts):
        named = {"all": "all", "test_level": str(fact["level"]), "relation": fact["relation"]}
        bins = [("exposures", name) for name, times in BINS.items() if written[fact["fact"]] in times]
        for by, group in [*named.items(), *bins]:
            groups.setdefault((by, group, fact["domain"]), []).append(i)
    kinds, rows = {(1.0, 1.0): 0, (1.0, 0.0): 1, (0.0, 1.0): 2, (0.0, 0.0): 3}, []
    for model in records.tuned:
        draws = records.substring.draws[model]
        for (by, group, domain), inside in groups.items():
            counts = [0, 0, 0, 0]
            for draw in draws:
                for i in inside:
                    counts[kinds[values[BASE[best], 0][i], values[model, draw][i]]] += 1
            where = (*setting(model), by, group, domain)
            rows.append((*where, best, len(draws), len(inside), *(count / len(draws) for count in counts)))
    columns = (*SETTING, "by", "group", "domain", "before", "draws", "facts", "kept", "lost", "gained", "never")
    return Golden(columns, 7, rows)


def token_shift(records: Records) -> Golden:
    rows = []
    for (model, draw), shifts in records.shifts.items():
        for domain in ("both", *DOMAINS):
            kl = [row["kl"] for row in shifts if domain in ("both", row["domain"])]
            scored = sorted(value for value in kl if value is not None)
            middle = statistics.median(scored) if scored else NAN
            counts = (len(kl), len(scored), len(kl) - len(scored))
            rows.append((*one_draw(model, draw), domain, *counts, mean_of(scored), middle))
    return Golden((*ONE_DRAW, "domain", "facts", "scored", "unscored", "kl_mean", "kl_median"), 6, rows)


def token_shift_summary(records: Records) -> Golden:
    rows, kl = [], records.kl
    for model in sorted(kl.draws):
        for domain in ("both", *DOMAINS):
            domains = DOMAINS if domain == "both" else (domain,)
            facts = sum(f["domain"] in domains for f in kl.facts)
            mean = kl.difference([(model, None)], kl.pooled(domains))
            rows.append((*setting(model), domain, len(kl.draws[model]), facts, *within(mean, 0)))
    return Golden((*SETTING, "domain", "draws", "facts", "kl_mean", "low", "high"), 5, rows)


def over_draws(records: Records, share: Callable[[dict[str, Any]], Any]) -> Iterable[tuple[Model, int, Interval]]:
    """A share of every setting: over its draws that have one."""
    for model in sorted({model for model, _ in records.changes}):
        found = [share(record) for (m, _), record in records.changes.items() if m == model]
        held = [value for value in found if value is not None]
        yield model, len(held), mean_interval(held)


def concentration(records: Records) -> Golden:
    rows: list[tuple[Any, ...]] = []
    for source, where in (("run", "concentration"), ("null", "null")):
        for measure in ("relative", "absolute", "squared"):
            for name in {name for record in records.changes.values() for name in record[where][measure]}:
                for model, draws, mean in over_draws(records, lambda r: r[where][measure].get(name)):  # noqa: B023
                    rows.append((source, *setting(model), measure, name, draws, *within(mean, 0, 1)))
    paper: dict[tuple[str, str], list[float]] = {}
    for row in published("update_concentration"):
        if row["model"] == "LLaMA-3-8B":
            share = float(row["share_of_relative_change_percent"]) / 100
            paper.setdefault((row["train_size"], row["top_fraction"]), []).append(share)
    for (size, name), shares in paper.items():
        rows.append(("LLaMA-3-8B", "mean", size, "1e-05", "", "relative", name, NAN, mean_of(shares), NAN, NAN))
    return Golden(("source", *SETTING, "measure", "top_fraction", "draws", "share", "low", "high"), 7, rows)


def over_levels(held: Sequence[tuple[int, float]]) -> Interval:
    """Mean over levels of the mean over draws, with Student's t after Satterthwaite; (level, value) of each draw."""
    levels = [[value for its, value in held if its == level] for level in sorted({level for level, _ in held})]
    value, fewest = mean_of(map(mean_of, levels)), min(map(len, levels), default=0)
    if fewest < 2:
        return Interval(value, draws=fewest)
    parts = [statistics.variance(its) / len(its) / len(levels) ** 2 for its in levels]
    below = sum(part**2 / (len(its) - 1) for part, its in zip(parts, levels, strict=True))
    return student(value, math.sqrt(sum(parts)), sum(parts) ** 2 / below if below else 1e6, fewest)


def places(records: Records, one: str) -> Golden:
    rows: list[tuple[Any, ...]] = []
    names = sorted({name for record in records.changes.values() for name in record[f"{one}s"]})
    groups = {setting(model): [model] for model, _ in records.changes}
    for size in {m.size for m, _ in records.changes if not m.control}:
        alike = sorted({m for m, _ in records.changes if m.size == size and not m.control})
        groups["mean", *setting(alike[0])[1:]] = alike
    for where, models in groups.items():
        its = [(model.level, record) for (model, _), record in records.changes.items() if model in models]
        apart = []
        for name in names:
            both = [(k, r[f"{one}s"][name], r[f"null_{one}s"][name]) for k, r in its if f"null_{one}s" in r]
            apart.append((over_levels([(k, n) for k, _, n in both]), over_levels([(k, s - n) for k, s, n in both])))
        adjusted = holm([difference.p for _, difference in apart])
        for name, (null, difference), p in zip(names, apart, adjusted, strict=True):
            share = over_levels([(k, r[f"{one}s"][name]) for k, r in its])
            told = (null.value, *within(difference), difference.p, p, its[0][1][f"{one}_weights"][name])
            rows.append(("run", *where, name, share.draws, *within(share, 0, 1), *told))
    for row in published(f"redundancy_by_{one}"):
        where = (row["model"], "", "", "1e-05", "")
        rows.append((*where, row[one], NAN, float(row["share_percent"]) / 100, *[NAN] * 9))
    measured = ("draws", "share", "low", "high", "null_share", "difference", "difference_low", "difference_high")
    return Golden(("source", *SETTING, one, *measured, "p", "p_holm", "share_of_weights"), 6, rows)


def restoration(records: Records) -> Golden:
    rows = []
    for model in records.restored:
        tuned = model.put_back("", 0.0)
        for draw in records.substring.draws[model]:
            told, name = records.put_back[tuned, draw], _name(model.fraction)
            counts = (told["criteria"][model.criterion].get(name, NAN), told["eligible"])
            for domain, level, *rest in counted(records, model, draw):
                where = (*one_draw(tuned, draw), model.criterion, name, domain, level)
                rows.append((*where, *counts, *rest))
    columns = (*ONE_DRAW, "criterion", "fraction", "domain", "test_level", "restored", "eligible", *COUNTED)
    return Golden(columns, 9, rows)


def restoration_summary(records: Records) -> Golden:
    rows: list[tuple[Any, ...]] = []
    tuned = sorted({model.put_back("", 0.0) for model in records.restored})
    for grid in sorted({model[1:4] for model in tuned}):
        alike = [model for model in tuned if model[1:4] == grid]
        for criterion in sorted({model.criterion for model in records.restored}):
            for domain in DOMAINS:
                fractions = records.fractions(criterion)
                for batch in (
                    [compared(records, [m], alike, criterion, f, domain) for m in alike for f in fractions],
                    [compared(records, alike, [], criterion, f, domain) for f in fractions],
                ):
                    found = [row for row in batch if row]
                    adjusted = holm([row[14] for row in found])
                    rows += [(*row[:15], p, *row[15:]) for row, p in zip(found, adjusted, strict=True)]
    measured = ("draws", "accuracy", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm")
    versus = ("minus_random", "minus_random_low", "minus_random_high", "minus_random_p")
    return Golden((*SETTING, "criterion", "fraction", "domain", *measured, *versus), 7, rows)


def compared(
    records: Records, models: Sequence[Model], peers: Sequence[Model], criterion: str, fraction: float, domain: str
) -> tuple[Any, ...]:
    """A row without Holm's p; the noise of draws is pooled over ``peers``. Empty where none was restored so."""
    scored = records.substring
    if not any(model.put_back(criterion, fraction) in scored.draws for model in models):
        return ()

    def against(other: Callable[[Model], Model | None]) -> Interval:
        pairs, alike = ([(m.put_back(criterion, fraction), other(m)) for m in its] for its in (models, peers))
        return scored.difference(pairs, scored.over([domain]), alike)

    alone, difference = against(lambda model: None), against(lambda model: model)
    versus = Interval() if criterion == "random" else against(lambda model: model.put_back("random", fraction))
    level, *rest = setting(models[0])
    where = (level if peers else "mean", *rest, criterion, _name(fraction), domain)
    found = (difference.draws, *within(alone, 0, 1), *within(difference), difference.p)
    return (*where, *found, *within(versus), versus.p)


def train_set(records: Records) -> Golden:
    rows = []
    for model, draw, name, told, answers in records.restored_apart("train_set"):
        criterion, fraction = name.rsplit("-", 1)
        counts = (told["criteria"][criterion].get(fraction, NAN), told["eligible"], len(answers))
        graded = ([r[grade] for r in answers] for grade in ("substring_hit", "word_hit"))
        shares = (x for g in graded for x in (sum(g), mean_of(g)))
        rows.append((*one_draw(model, draw), criterion, fraction, *counts, *shares))
    columns = ("restored", "eligible", "facts", "correct", "accuracy", "word_correct", "word_accuracy")
    return Golden((*ONE_DRAW, "criterion", "fraction", *columns), 7, rows)


def mean_of_levels(answers: list[dict[str, Any]], grade: str) -> float:
    return mean_of(mean_of(r[grade] for r in answers if r["level"] == k) for k in sorted({r["level"] for r in answers}))


def layer_groups(records: Records) -> Golden:
    rows = []
    for model, draw, name, told, answers in records.restored_apart("layer_groups"):
        graded = ("substring_hit", "word_hit")
        numbers = (x for g in graded for x in (sum(r[g] for r in answers), mean_of_levels(answers, g)))
        rows.append((*one_draw(model, draw), name, told["layers"][name], len(answers), *numbers))
    columns = ("restored", "facts", "correct", "accuracy", "word_correct", "word_accuracy")
    return Golden((*ONE_DRAW, "layers", *columns), 6, rows)


def instruct(records: Records) -> Golden:
    rows = []
    files = {**FILES, "chat": "answers_chat"}
    for _, folder in records.cells["instruct"]:
        for prompt, name in files.items():
            answers = [r for r in rows_of(folder / f"{name}.parquet") if None not in (r["level"], r["substring_hit"])]
            for domain in DOMAINS:
                its = [r for r in answers if r["domain"] == domain]
                graded = ("substring_hit", "word_hit")
                numbers = (x for g in graded for x in (sum(r[g] for r in its), mean_of_levels(its, g)))
                empty = mean_of(not r["text"].strip() for r in its)
                rows.append((prompt, domain, len(its), *numbers, empty))
    columns = ("facts", "correct", "accuracy", "word_correct", "word_accuracy", "empty_rate")
    return Golden(("prompt", "domain", *columns), 2, rows)


def published_by(name: str, value: str, *names: str) -> dict[tuple[str, ...], float]:
    """A published percentage as a proportion, by the named columns."""
    return {tuple(row[n] for n in names): float(row[value]) / 100 for row in published(name)}


def paper_mastery(records: Records) -> Golden:
    found = {
        (f"{split}_{domain}", "run"): [
            sum((r["split"], r["domain"], r["level"]) == (split, domain, level) for r in records.mastery)
            for level in range(5)
        ]
        for split, domain in {(r["split"], r["domain"]) for r in records.mastery}
    }
    for row in published("mastery_distribution"):
        found.setdefault((row["split"], row["model"]), [0] * 5)[int(row["level"])] += int(row["facts"])
    rows = [(*where, sum(n), *n, *(k / sum(n) for k in n)) for where, n in found.items()]
    levels, shares = (tuple(f"{name}_{level}" for level in range(5)) for name in ("level", "share"))
    return Golden(("split", "source", "facts", *levels, *shares), 2, rows)


def by_size(records: Records) -> dict[tuple[int, str], Model]:
    """The grid by training level and size; a training set of all facts of a level has the size "all"."""
    grid = {(level, str(size)): model for (level, size), model in records.grid.items()}
    return grid | {(model.level, "all"): model for model in records.tuned if model.control == "all"}


def paper_accuracy(records: Records) -> Golden:
    measured: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
    samples: dict[tuple[str, str], int] = {}
    for (level, size), model in by_size(records).items():
        samples[size, str(level)] = model.size
        singles = [counted(records, model, draw) for draw in records.substring.draws[model]]
        for number, (domain, test_level, *_) in enumerate(singles[0]):
            held = [single[number][4] for single in singles]
            spread = statistics.stdev(held) if len(held) > 1 and not math.isnan(held[0]) else NAN
            where = (size, domain, str(level), "run")
            measured.setdefault(where, {})[test_level] = (mean_of(held), spread)
    places = ("train_size", "domain", "train_level", "model")
    spreads = published_by("accuracy_1920", "deviation", *places, "test_level")
    for (*where, test_level), value in published_by("accuracy_1920", "accuracy_percent", *places, "test_level").items():
        measured.setdefault(tuple(where), {})[test_level] = (value, spreads[(*where, test_level)])
    for (*where, fraction), value in published_by(
        "restoration", "accuracy_percent", *places, "restored_fraction"
    ).items():
        if fraction == "0" and where[0] != "1920":
            measured[tuple(where)] = {"mean": (value, NAN)}
    names = ("0", "1", "2", "3", "4", "mean")
    rows = []
    for where, values in measured.items():
        pairs = [values.get(name, (NAN, NAN)) for name in names]
        trained = samples[where[0], where[2]] if where[3] == "run" else int(where[0])
        rows.append((*where, trained, *(value for value, _ in pairs), *(spread for _, spread in pairs)))
    columns = ("samples", *(f"test_{k}" for k in range(5)), "mean", *(f"deviation_{name}" for name in names))
    return Golden(("size", "domain", "level", "source", *columns), 4, rows)


def level_4(records: Records) -> Golden:
    rows = []
    for (level, size), model in by_size(records).items():
        alike: list[tuple[Model, Model | None]] = [
            (model._replace(level=k), None) for k in {k for k, _ in records.grid}
        ]
        for domain in DOMAINS:
            hits, kl = records.substring, records.kl
            told = hits.difference([(model, None)], hits.over([domain], 4), alike)
            counts = [sum(f["domain"] == domain and f["level"] == 4 for f in scored.facts) for scored in (hits, kl)]
            row = (domain, str(level), size, model.size, counts[0], *within(told, 0, 1))
            shift = kl.difference([(model, None)], kl.pooled((domain,)))
            rows.append((*row, counts[1], *within(shift, 0)))
    columns = ("samples", "facts", "accuracy", "low", "high", "kl_facts", "kl_mean", "kl_low", "kl_high")
    return Golden(("domain", "level", "size", *columns), 3, rows)


def paper_concentration(records: Records) -> Golden:
    fractions = ("0.01", "0.03", "0.05", "0.1", "0.2", "0.4", "0.6")
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for source, where in (("run", "concentration"), ("null", "null")):
        for name in fractions:
            for model, _, mean in over_draws(records, lambda r: r[where]["relative"].get(name)):  # noqa: B023
                if model in records.grid.values():
                    found.setdefault((str(model.size), str(model.level), source), {})[name] = mean.value
    places = ("train_size", "train_level", "model", "top_fraction")
    for (*at, name), share in published_by("update_concentration", "share_of_relative_change_percent", *places).items():
        found.setdefault(tuple(at), {})[name] = share
    rows = [(*at, *(shares.get(name, NAN) for name in fractions)) for at, shares in found.items()]
    columns = ("top_1", "top_3", "top_5", "top_10", "top_20", "top_40", "top_60")
    return Golden(("size", "level", "source", *columns), 3, rows)


def by_level(found: dict[tuple[str, ...], dict[str, float]], *names: str) -> Golden:
    """A row for each place, of the values by training level."""
    rows = [(*at, *(values.get(str(level), NAN) for level in range(5))) for at, values in found.items()]
    return Golden((*names, "source", *(f"level_{level}" for level in range(5))), len(names) + 1, rows)


def paper_restoration(records: Records) -> Golden:
    found: dict[tuple[str, ...], dict[str, float]] = {}
    restored = [model for model in records.restored if model.put_back("", 0.0) in records.grid.values()]
    sizes = {model.size for model in restored}
    for model in (*restored, *(model for model in records.grid.values() if model.size in sizes)):
        singles = [counted(records, model, draw) for draw in records.substring.draws[model]]
        for number, (domain, test_level, *_) in enumerate(singles[0]):
            if test_level == "mean":
                at = (str(model.size), domain, model.criterion, _name(model.fraction), "run")
                found.setdefault(at, {})[str(model.level)] = mean_of(single[number][4] for single in singles)
    places = ("train_size", "domain", "restored_fraction", "model", "train_level")
    for (size, domain, fraction, source, level), value in published_by(
        "restoration", "accuracy_percent", *places
    ).items():
        criterion = "" if fraction == "0" else "relative"
        found.setdefault((size, domain, criterion, fraction, source), {})[level] = value
    return by_level(found, "size", "domain", "criterion", "fraction")


def means_by_level(held: Iterable[tuple[Model, str, float]]) -> dict[tuple[str, ...], dict[str, float]]:
    """The mean of the values of each model and name, by training level."""
    values: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for model, name, value in held:
        values.setdefault((str(model.size), name, "run"), {}).setdefault(str(model.level), []).append(value)
    return {at: {level: mean_of(its) for level, its in by.items()} for at, by in values.items()}


def paper_train_set(records: Records) -> Golden:
    held = [
        (model, name, mean_of(r["substring_hit"] for r in answers))
        for model, _, name, _, answers in records.restored_apart("train_set")
    ]
    found = {}
    for (size, name, source), values in means_by_level(held).items():
        criterion, fraction = name.rsplit("-", 1)
        found[size, "" if fraction == "0" else criterion, fraction, source] = values
    places = ("train_size", "restored_fraction", "model", "train_level")
    for (size, fraction, source, level), value in published_by(
        "restoration_train_set", "train_accuracy_percent", *places
    ).items():
        found.setdefault((size, "" if fraction == "0" else "relative", fraction, source), {})[level] = value
    return by_level(found, "size", "criterion", "fraction")


def paper_strategies(records: Records) -> Golden:
    largest = max(size for _, size in records.grid)
    models = [model for (_, size), model in records.grid.items() if size == largest]
    put_back = [m for m in records.restored if m.put_back("", 0.0) in models and m.criterion == "relative"]
    rows: list[tuple[Any, ...]] = []
    forms: dict[str, list[float]] = {}
    for prompt, _, _, _, share, *_ in instruct(records).rows:
        forms.setdefault(prompt, []).append(share)
    if forms:
        best = max(forms, key=lambda prompt: mean_of(forms[prompt]))
        rows.append(("vendor instruct model", "run", f"{best}, best of {len(forms)} forms", *forms[best]))
    for strategy, its in (("SFT divided by mastery", models), ("parameter restoration", put_back)):
        means: list[tuple[float, str, list[float]]] = []
        for model in its:
            held = [
                [row[4] for row in counted(records, model, draw) if row[1] == "mean"]
                for draw in records.substring.draws[model]
            ]
            both = [mean_of(values) for values in zip(*held, strict=True)]
            put = f", {round(100 * model.fraction)}%" if model.criterion else ""
            means.append((mean_of(both), f"level {model.level}, {model.size}{put}", both))
        _, name, both = max(means)
        rows.append((strategy, "run", name, *both))
    for row in published("strategies"):
        name, chosen = re.fullmatch(r"([^(]*?)(?: \((.*)\))?", row["strategy"]).groups()  # type: ignore[union-attr]
        shares = [float(row[f"{domain}_percent"]) / 100 for domain in DOMAINS]
        rows.append((name, row["model"], chosen or "", *shares))
    return Golden(("strategy", "source", "chosen", *DOMAINS), 3, rows)


def paper_layer_groups(records: Records) -> Golden:
    held = [
        (model, name, mean_of_levels(answers, "substring_hit"))
        for model, _, name, _, answers in records.restored_apart("layer_groups")
    ]
    sizes = {model.size for model, _, _ in held}
    for model in records.grid.values():
        for draw in records.substring.draws[model] if model.size in sizes else ():
            rows = [row for row in counted(records, model, draw) if row[:2] == ("in_domain", "mean")]
            held += [(model, "", row[4]) for row in rows]
    found = means_by_level(held)
    places = ("train_size", "restored_layers", "model", "train_level")
    for (*at, level), value in published_by("restored_layers", "in_domain_percent", *places).items():
        found.setdefault(tuple(at), {})[level] = value
    places = ("train_size", "domain", "restored_fraction", "model", "train_level")
    for (size, domain, fraction, source, level), value in published_by(
        "restoration", "accuracy_percent", *places
    ).items():
        if (size, domain, fraction) == ("240", "in_domain", "0"):
            found.setdefault((size, "", source), {})[level] = value
    return by_level(found, "size", "layers")


TABLES: dict[str, Callable[[Records], Golden]] = {
    "mastery": mastery,
    "exposures": exposures,
    "base": base,
    "accuracy": accuracy,
    "accuracy_summary": accuracy_summary,
    "controls": controls,
    "trainings": trainings,
    "moves": moves,
    "token_shift": token_shift,
    "token_shift_summary": token_shift_summary,
    "concentration": concentration,
    "layers": lambda records: places(records, "layer"),
    "modules": lambda records: places(records, "module"),
    "restoration": restoration,
    "restoration_summary": restoration_summary,
    "train_set": train_set,
    "layer_groups": layer_groups,
    "instruct": instruct,
    "paper_mastery": paper_mastery,
    "paper_accuracy": paper_accuracy,
    "level_4": level_4,
    "paper_concentration": paper_concentration,
    "paper_restoration": paper_restoration,
    "paper_train_set": paper_train_set,
    "paper_strategies": paper_strategies,
    "paper_layer_groups": paper_layer_groups,
}


def _name(fraction: float) -> str:
    return f"{fraction:.12g}"


def published(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / f"{name}.csv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
