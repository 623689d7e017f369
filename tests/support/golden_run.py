"""A run folder of thirty-two facts written by hand: hits, answers, KL and changes follow rules that stand here.

It holds what a real study rarely has all at once: test levels with one fact and with none, draws that are missing,
facts without a grade, shifts that could not be scored, shares that are missing, and two sizes that were restored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from knowshift.facts.sources.load import load_facts
from knowshift.files import write_json
from knowshift.records import ANSWERS, MASTERY, TASKS, TOKEN_SHIFT, write_table

RATE, SLOW = 3e-4, 1e-4
SIZES = (60, 240, 960)
DRAWS = {0: 3, 1: 2, 2: 3}
FRACTIONS = {"relative": (0.01, 0.2, 0.6), "random": (0.2, 0.6), "absolute": (0.2,)}

#: Test facts of each level 0..4, by domain, and the relations that take turns.
FACTS = {"in_domain": ((3, 2, 4, 1, 6), ("P17", "P19", "P20")), "out_of_domain": ((3, 0, 5, 2, 6), ("P26", "P40"))}

#: How many of ten facts each training level answers rightly at 60, 240 and 960 samples, and at the smaller rate.
RIGHT = {0: (3, 4, 2, 6), 1: (6, 6, 4, 5), 2: (5, 8, 5, 6)}
#: And how many more after restoring.
MORE = {"relative": {0.01: 1, 0.2: 2, 0.6: -3}, "random": {0.2: 0, 0.6: 0}, "absolute": {0.2: -1}}


def asked_facts() -> list[dict[str, Any]]:
    rows = []
    for domain, (counts, relations) in FACTS.items():
        for level, count in enumerate(counts):
            for number in range(count):
                relation = relations[(number + level) % len(relations)]
                name = f"{domain}.{level}.{number}"
                rows.append({"fact": name, "relation": relation, "split": "test", "domain": domain, "level": level})
    return rows


def hit(fact: int, level: int, right: int, draw: int, turn: int) -> bool:
    """Hard facts have larger numbers; draws and ``turn`` (what was done) move them a little. Out of ten."""
    hard = (7 * fact + 3 * (fact // 5)) % 10
    moved = (hard + (draw * (fact % 3) + turn * (fact % 4)) % 3 - 1) % 10
    return moved < right + (level > 2) - (level == 0)


def build(run: Path) -> Path:
    facts, cells = asked_facts(), []

    def cell(kind: str, key: dict[str, Any]) -> Path:
        digest = f"{kind}{len(cells):03}"
        cells.append({"kind": kind, "digest": digest, "key": key})
        return run / "cells" / kind / digest

    def answers(file: Path, right: int, draw: int, turn: int, ungraded: bool = False) -> None:
        hits: list[bool | None] = [hit(i, f["level"], right, draw, turn) for i, f in enumerate(facts)]
        words: list[bool | None] = [bool(h) and i % 5 != turn % 5 for i, h in enumerate(hits)]
        texts: list[str | None] = ["an answer" if h or (i + turn) % 4 else " " for i, h in enumerate(hits)]
        reasons: list[str | None] = [None] * len(facts)
        if ungraded:
            hits[5] = words[5] = texts[5] = None
            reasons[5] = "the prompt does not fit"
        rows: dict[str, list[Any]] = {k: [f[k] for f in facts] for k in ("fact", "relation", "split", "domain")}
        rows["level"] = [None if i == 20 else f["level"] for i, f in enumerate(facts)]
        rows["question"] = [f"Where is {31 * i}?" for i in range(len(facts))]
        rows["answer"] = [f"answer {13 * i}" for i in range(len(facts))]
        write_table(
            file, ANSWERS, {**rows, "text": texts, "substring_hit": hits, "word_hit": words, "reason": reasons}, {}
        )

    _mastery(cell, facts)
    base = cell("base", {})
    for turn, (name, right) in enumerate({"answers": 1, "answers_few_shot": 6, "answers_plain": 8}.items()):
        answers(base / f"{name}.parquet", right, 0, turn)
    instruct = cell("instruct", {})
    forms = {"answers": 4, "answers_few_shot": 5, "answers_plain": 3, "answers_chat": 7}
    for turn, (name, right) in enumerate(forms.items()):
        answers(instruct / f"{name}.parquet", right, 0, turn + 2, ungraded=name == "answers_plain")
    _scores(cell("base_tasks", {}), None, [("", "")], 9)
    for level, draws in DRAWS.items():
        for place, size in enumerate(SIZES):
            for draw in range(draws):
                key = {"level": level, "size": size, "draw": draw, "learning_rate": RATE, "control": None}
                right = RIGHT[level][place]
                folder = cell("evaluation", key)
                answers(folder / "answers.parquet", right, draw, place + level, (level, size, draw) == (2, 60, 1))
                _shift(cell("token_shift", key), facts, level, place, draw)
                _change(cell("weight_change", key), level + place, draw)
                told = {
                    "facts": [str(i + 7 * draw) for i in range(size)],
                    "steps": size // 8,
                    "train_loss": 2 - draw / 4,
                }
                write_json(cell("tuned", key) / "record.json", told)
                if size == 960 or (level, size) == (2, 240):
                    _restored(cell("restoration", key), answers, right, level, size, draw)
                if size == 960:
                    _train_set(cell("train_set", key), level, draw)
                    _layer_groups(cell("layer_groups", key), answers, right, level, draw)
                    every = [(c, str(f)) for c, fractions in FRACTIONS.items() for f in fractions]
                    _scores(cell("tasks", key), 1000 + level, [("", "0"), *every], 3 * level + draw)
                # The largest size of levels 0 and 2 without a draw, and a smaller one of level 1.
                if (size == 960 and level != 1 and (level, draw) != (0, 2)) or (level, size) == (1, 240):
                    slow = {**key, "learning_rate": SLOW, "control": "learning_rate"}
                    answers(cell("evaluation", slow) / "answers.parquet", RIGHT[level][3], draw, 4 + level)
                    _shift(cell("token_shift", slow), facts, level, 3, draw)
                    _change(cell("weight_change", slow), level + 7, draw)
    key = {"level": 2, "size": 60, "draw": 0, "learning_rate": 1e-3, "control": None}  # neither grid nor control
    answers(cell("evaluation", key) / "answers.parquet", 9, 0, 5)
    source = _source(run / "facts.csv")
    config = {"name": "by hand", "training": {"learning_rate": RATE}, "facts": str(run / "facts.csv")}
    about = {"name": "by hand", "config": config, "source": source}
    write_json(run / "manifest.json", {**about, "cells": cells, "timings": {}})
    return run


def _source(file: Path) -> dict[str, str]:
    """The training facts, of which every second asks as test facts do; what a manifest says of them."""
    lines = ["id,split,question,answer"]
    lines += [f"{i},train,Where {'is' if i % 2 else 'lies'} {i}?,answer {i}" for i in range(max(SIZES) + 20)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"name": file.name, "digest": load_facts(str(file)).digest()}


def _mastery(cell: Callable[[str, dict[str, Any]], Path], facts: list[dict[str, Any]]) -> None:
    """Two parts; training facts are the in-domain test facts' namesakes. R = hits of 3 prompts x 4 draws."""
    train = [{**f, "fact": f"train.{f['fact']}", "split": "train"} for f in facts if f["domain"] == "in_domain"]
    both = [*train, *facts]
    times = (0, 1, 2, 3, 4, 5, 7, 8, 12, 13, 20, 21, 50, 51, 400, None)
    for part, rows in enumerate((both[:20], both[20:])):
        hits = [[(0, 0, 0), (1, 2, 0), (2, 1, 3), (3, 4, 1), (4, 2, 4)][f["level"]] for f in rows]
        columns: dict[str, list[Any]] = {k: [f[k] for f in rows] for k in facts[0]}
        columns |= {"prompt_hits": [list(h) for h in hits], "prompt_draws": [[4, 4, 4]] * len(rows)}
        columns |= {"hits": [sum(h) for h in hits], "draws": [12] * len(rows), "rate": [sum(h) / 12 for h in hits]}
        columns["exposures"] = [times[(3 * i + 2 * f["level"]) % 16] for i, f in enumerate(rows)]
        write_table(cell("mastery", {"part": part}) / "mastery.parquet", MASTERY, columns, {})


def _shift(folder: Path, facts: list[dict[str, Any]], level: int, place: int, draw: int) -> None:
    """KL in eighths of a nat: a fall from 60 to 240 samples and a rise to 960, most for level 0."""
    known = [f for f in facts if f["level"] == 4]
    middle = (6, 3, 14, 4)[place] + (4, 2, 1)[level]
    kl: list[float | None] = [(middle + (5 * i + draw * (i % 3) + place) % 4) / 8 for i in range(len(known))]
    kl[2] = None
    if (level, draw) == (0, 2):
        kl[4] = None
    if (level, draw) == (2, 1):
        kl[9] = None
    there = [value is not None for value in kl]
    rows: dict[str, list[Any]] = {k: [f[k] for f in known] for k in ("fact", "relation", "split", "domain")}
    rows |= {"prompt": ["A prompt"] * len(known), "kl": kl, "ids": [list(range(10)) if t else None for t in there]}
    rows["tuned_logits"] = rows["base_logits"] = [[0.0] * 10 if t else None for t in there]
    rows["reason"] = [None if t else "not at the start" for t in there]
    write_table(folder / "token_shift.parquet", TOKEN_SHIFT, rows, {})


def _change(folder: Path, turn: int, draw: int) -> None:
    """Shares in thousandths; the absolute share of one model is missing at 60%, and the null by place of another."""
    near = {"0.01": 700, "0.2": 900, "0.6": 960}
    high = {"0.01": 4, "0.2": 1, "0.6": 2}
    relative = {name: (share + turn * high[name] + (draw * 5 + turn) % 4) / 1000 for name, share in near.items()}
    null = {name: (share + turn + (draw * 3 + turn) % 4) / 1000 for name, share in near.items()}
    absolute = {name: (share // 4 + turn + draw) / 1000 for name, share in near.items()}
    squared = {name: (share // 3 + turn + 2 * draw) / 1000 for name, share in near.items()}
    lower: dict[str, float | None] = {**absolute, "0.6": None if (turn, draw) == (2, 1) else absolute["0.6"]}
    first = (300 + 7 * turn + 11 * draw) / 1000
    chance = (310 + 5 * turn + 9 * draw * draw) / 1000
    nulls = {"null_layers": {"0": chance, "1": 1 - chance}, "null_modules": {"q": chance / 2, "up": 1 - chance / 2}}
    record = {
        **({} if (turn, draw) == (3, 0) else nulls),
        "concentration": {"relative": relative, "absolute": lower, "squared": squared},
        "null": {"relative": null, "absolute": absolute, "squared": squared},
        "layers": {"0": first, "1": 1 - first},
        "modules": {"q": first / 2, "up": 1 - first / 2},
        "layer_weights": {"0": 0.5, "1": 0.5},
        "module_weights": {"q": 0.2, "up": 0.8},
    }
    write_json(folder / "change.json", record)


def _train_set(folder: Path, level: int, draw: int) -> None:
    """Nine training facts, as tuned, at two fractions and at random; level 1 lacks a fraction, draw 1 a grade."""
    names = ["relative-0", "relative-0.05", "relative-0.2", "random-0.2"]
    for place, name in enumerate(names if level != 1 else [*names[:1], *names[2:]]):
        hits: list[bool | None] = [(5 * i + place + 2 * draw) % 9 < 3 + level + place for i in range(9)]
        words: list[bool | None] = [bool(hit) and i % 4 != place for i, hit in enumerate(hits)]
        if draw == 1:
            hits[2] = words[2] = None
        rows: dict[str, list[Any]] = {"fact": [f"train.{i}" for i in range(9)], "level": [level] * 9}
        rows |= {"relation": ["P17"] * 9, "split": ["train"] * 9, "domain": ["in_domain"] * 9}
        rows |= {"question": ["Where?"] * 9, "answer": ["an answer"] * 9, "text": ["a text"] * 9, "reason": [None] * 9}
        file = folder / f"answers-{name}.parquet"
        write_table(file, ANSWERS, {**rows, "substring_hit": hits, "word_hit": words}, {})
    counts = {"relative": {"0": 0, "0.2": 200 + draw}, "random": {"0.2": 201}}
    write_json(folder / "restored.json", {"eligible": 1000 + level, "criteria": counts})


def _scores(folder: Path, eligible: int | None, models: list[tuple[str, str]], turn: int) -> None:
    """A loss in eighths of a nat over texts of 3 to 6 tokens, hits, and a score in twentieths that is no mean of its
    items. Level 1 (turns 3 and 4) lacks one of the paper's."""
    asked = (("text_loss", "nats_per_token"), ("gsm8k", "exact_match"), ("knowshift_xsum", "rouge1"), ("copy", "em"))
    scores = []
    rows: dict[str, list[Any]] = {name: [] for name in TASKS.names}
    for place, (criterion, fraction) in enumerate(models):
        about = {"criterion": criterion, "fraction": fraction, "restored": 10 * place if fraction else None}
        for number, (task, metric) in enumerate(asked):
            if metric == "rouge1" and 3 <= turn < 6:
                continue
            items = range(20 + number)
            moved = [(7 * i + turn * (i % 3) + place * (i % 4) + number) % 16 for i in items]
            values: list[float | None] = [one / 8 if not number else float(one < 6) for one in moved]
            weights = [1.0 if number else 3.0 + i % 4 for i in items]
            score = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)  # type: ignore[operator]
            if task == "copy":
                values, score = [None for _ in items], (turn + 2 * place + number) % 16 / 20
            told = {"task": task, "metric": metric, "higher_is_better": number > 0, "items": len(items)}
            scores.append({**about, **told, "score": score})
            same = {"criterion": criterion, "fraction": fraction, "task": task, "metric": metric, "text": None}
            for item, value, weight in zip(items, values, weights, strict=True):
                one = {**same, "item": str(item), "value": value, "weight": weight}
                for name, held in rows.items():
                    held.append(one[name])
    write_table(folder / "items.parquet", TASKS, rows, {})
    write_json(folder / "scores.json", {"eligible": eligible, "scores": scores})


def _layer_groups(folder: Path, answers: Callable[..., None], right: int, level: int, draw: int) -> None:
    """Eleven layers by four; both domains are there, which makes no difference to how levels are counted."""
    for place, name in enumerate(("0-3", "4-7", "8-10", "random")):
        answers(folder / f"answers-{name}.parquet", right - 1 + place, draw, 3 + place, ungraded=draw == 1)
    counts = {"0-3": 400 + level, "4-7": 400, "8-10": 300, "random": 400}
    write_json(folder / "restored.json", {"layers": counts})


def _restored(
    folder: Path, answers: Callable[[Path, int, int, int], None], right: int, level: int, size: int, draw: int
) -> None:
    """All criteria after 960 samples, the most changed weights alone after 240."""
    counts: dict[str, dict[str, int]] = {}
    for criterion, fractions in FRACTIONS.items() if size == 960 else [("relative", (0.2,))]:
        for fraction in fractions:
            turn = 1 + int(10 * fraction) + len(criterion)
            more = MORE[criterion][fraction] - (level == 2 and fraction == 0.2)
            answers(folder / f"answers-{criterion}-{fraction}.parquet", right + more, draw, turn)
            counts.setdefault(criterion, {})[str(fraction)] = int(1000 * fraction) + draw
    write_json(folder / "restored.json", {"eligible": 1000 + level, "criteria": counts})
