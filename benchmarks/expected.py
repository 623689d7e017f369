"""Expected hits beside counted hits: token positions, error of R, and agreement on levels, against many more draws.

    python benchmarks/expected.py --folder FOLDER [--model world:tiny] [--facts world:tiny] [--count 300]
        [--candidates 0] [--draws 100] [--texts 2] [--least-weight 2] [--dtype float32] [--reference FILE.json]
        [--figure FILE.svg] [--told] [--counts FOLDER [--turn 0/2]]

COUNT facts are measured with ``--draws`` draws of each prompt, the reference; with two full runs of the paper's 10;
and with expected hits: by spread, with so many texts, with such a least weight of a text, and by ``sequential``. Each
is a record in FOLDER: a run that was stopped goes on where it was. With ``--candidates N`` the facts are chosen from N
of a seeded shuffle, balanced over relations: half of each relation are facts that a first measurement by expected hits,
with other random numbers, puts above R = 0.01, as far as there are any. ``--reference`` is what
``benchmarks/reference.py`` has written: facts, many draws and full runs, by ``generate``; then expected hits alone are
measured here.

Printed for each: token positions of a fact; the root mean square of its error of R, with the reference's own variance
taken out; mean error and its standard error; the share of facts with the reference's level, and with the level that
a run of 210 draws has most probably at the reference's rates (of 2,100 draws without a hit there are fewer);
and for expected hits the squared errors over the variances that the records tell, which is 1 where those are right.

``--counts`` is a folder, which may be taken to another machine, for a reference that takes hours: which facts were
chosen, and the reference's hits, a file for ten facts. What is there is not measured again. ``--turn K/N`` measures the
files K, K + N, K + 2N and so on that are missing, and no more: one of N processes.

``--told`` measures expected hits alone, as they are and with ``--least-weight``, and prints what each record tells of
itself, for facts of level 0 and for the others: token positions, texts of a prompt, the error of R by its variances,
and that of a full run with these rates, the root of the mean over facts and prompts of r (1 - r) / (draws of a fact),
r² without bias from the texts.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import knowshift
from knowshift.facts.fact import LEVELS, Fact
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import load_model
from knowshift.probing.levels import level_of

Floats = NDArray[np.float64]

DRAWS = 10
#: The options of a run by expected hits.
EXPECTED: dict[str, Any] = {"seed": 3, "estimate": "expected"}
#: R above which a fact counts as known where facts are chosen.
KNOWN = 0.01
#: Facts of one file of the reference's hits.
BLOCK = 10


def chosen_facts(arguments: argparse.Namespace) -> list[Fact]:
    """``count`` facts by a seeded shuffle, or of candidates, balanced over relations and over known and unknown."""
    facts = load_facts(arguments.facts).facts
    if arguments.reference:
        of_name = {fact.id: fact for fact in facts}
        return [of_name[name] for name in json.loads(arguments.reference.read_text())["facts"]]
    order = np.random.default_rng([arguments.seed, 4]).permutation(len(facts))
    if not arguments.candidates:
        return [facts[i] for i in sorted(order[: arguments.count].tolist())]
    of_relation: dict[str, list[Fact]] = defaultdict(list)
    for i in order:
        of_relation[facts[i].relation].append(facts[i])
    size = -(-arguments.candidates // len(of_relation))
    candidates = [fact for relation in sorted(of_relation) for fact in of_relation[relation][:size]]
    first = measure(arguments, "candidates", candidates, seed=1000, estimate="expected", texts=2)
    rate = dict(zip(first["fact"], first["rate"], strict=True))
    chosen: list[Fact] = []
    each = -(-arguments.count // len(of_relation))
    for relation in sorted(of_relation):
        ordered = of_relation[relation][:size]
        known = [fact for fact in ordered if rate[fact.id] > KNOWN][: each // 2]
        unknown = [fact for fact in ordered if rate[fact.id] <= KNOWN]
        chosen += known + unknown[: each - len(known)]
    return chosen[: arguments.count]


def noted_facts(arguments: argparse.Namespace) -> list[Fact]:
    """:func:`chosen_facts`; with ``--counts`` those that are noted there, or they are noted."""
    if arguments.counts is None:
        return chosen_facts(arguments)
    noted = arguments.counts / "facts.json"
    every = load_facts(arguments.facts)
    about = {"model": load_model(arguments.model).identity, "dtype": arguments.dtype, "facts": every.digest()}
    about |= {"draws": arguments.draws, "seed": arguments.seed, "count": arguments.count}
    if noted.exists():
        told = json.loads(noted.read_text())
        if {name: told[name] for name in about} != about:
            raise SystemExit(f"{noted}: counts of another reference; expected {about}")
        of_name = {fact.id: fact for fact in every.facts}
        return [of_name[name] for name in told["chosen"]]
    facts = chosen_facts(arguments)
    keep(noted, {**about, "chosen": [fact.id for fact in facts]})
    return facts


def keep(file: Path, told: dict[str, Any]) -> None:
    """Write a file whole or not at all: a run of hours may be killed while it writes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(told) + "\n")
    part.replace(file)


def reference_hits(arguments: argparse.Namespace, facts: Sequence[Fact]) -> list[list[int]]:
    """Hits of the reference [facts][prompts] from the files of ``--counts``; what is missing is measured, and kept."""
    own, processes = arguments.turn
    hits: list[list[int]] = []
    for number, start in enumerate(range(0, len(facts), BLOCK)):
        file = arguments.counts / f"hits-{number:03}.json"
        block = facts[start : start + BLOCK]
        if not file.exists() and number % processes == own:
            record = measure(arguments, file.stem, block, seed=100, draws=arguments.draws, workers=1)
            keep(file, {"positions": record["positions"], "hits": record["prompt_hits"]})
        hits += json.loads(file.read_text())["hits"] if file.exists() else []
    return hits


def measure(arguments: argparse.Namespace, name: str, facts: Sequence[Fact], **options: Any) -> dict[str, Any]:
    """Columns of the record of this name, with ``positions`` and ``seconds``; measured where it is not there yet."""
    output = arguments.folder / f"{name}.parquet"
    found = knowshift.mastery(
        arguments.model,
        facts,
        output=output,
        device=arguments.device,
        dtype=arguments.dtype,
        progress=functools.partial(print, flush=True),
        **options,
    )
    columns: dict[str, Any] = found.table.to_pydict()
    return {**columns, "positions": found.positions, "seconds": found.seconds}


def columns_of(hits: Sequence[Sequence[int]], draws: int) -> dict[str, Any]:
    """The columns that a record of these hits [facts][prompts] of ``draws`` each would have."""
    levels = [level_of(sum(own), draws * len(own)) for own in hits]
    return {"prompt_hits": hits, "rate": [sum(own) / (draws * len(own)) for own in hits], "level": levels}


def likeliest_levels(rates: Floats, seed: int = 0, runs: int = 4000) -> list[int]:
    """The level that a run of ten draws a prompt has most often at these rates [facts, prompts]."""
    rng = np.random.default_rng(seed)
    found = []
    for own in rates:
        hits = rng.binomial(DRAWS, own, size=(runs, len(own))).sum(axis=1)
        found.append(int(np.bincount(-(-4 * hits // (DRAWS * len(own))), minlength=LEVELS).argmax()))
    return found


def compare(name: str, record: dict[str, Any], reference: dict[str, Any], draws: int) -> dict[str, Any]:
    """One line of the table."""
    rates = np.array(reference["prompt_hits"], dtype=float) / draws
    own_variance = (rates * (1 - rates) / (draws - 1)).sum(axis=1) / rates.shape[1] ** 2
    error = np.array(record["rate"]) - np.array(reference["rate"])
    levels = np.array(record["level"])
    told: dict[str, Any] = {
        "positions of a fact": round(record["positions"] / len(error), 1),
        "error of R": round(float(max((error**2).mean() - own_variance.mean(), 0.0) ** 0.5), 5),
        "mean error": round(float(error.mean()), 5),
        "its standard error": round(float(error.std(ddof=1) / len(error) ** 0.5), 5),
        "level of the reference": round(float((levels == np.array(reference["level"])).mean()), 4),
        "likeliest level": round(float((levels == np.array(likeliest_levels(rates))).mean()), 4),
        "seconds": round(record["seconds"], 1),
    }
    if "variance" in record:
        variance = np.array(record["variance"])
        told["told error of R"] = round(float(variance.mean() ** 0.5), 5)
        told["squared error over variance"] = round(float((error**2).sum() / (variance + own_variance).sum()), 3)
    print(f"{name:<24} {told}", flush=True)
    return told


def tell(arguments: argparse.Namespace) -> None:
    """Print what records of expected hits, with each least weight, say of their error, beside that of a full run."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    facts = chosen_facts(arguments)
    tell_of("expected", measure(arguments, "expected", facts, **EXPECTED))
    for least in arguments.least_weight:
        name = f"expected, weight {least:g}"
        tell_of(name, measure(arguments, file_name(name), facts, **EXPECTED, least_weight=least))


def tell_of(name: str, record: dict[str, Any]) -> None:
    """Print what one record says."""
    sums, squares, texts = (np.array(record[column]) for column in ("prompt_hits", "prompt_squares", "prompt_draws"))
    rates = sums / texts
    spread = np.maximum(squares - sums**2 / texts, 0.0) / (texts - 1)
    of_full = (rates - (rates**2 - spread / texts)).mean(axis=1) / (DRAWS * rates.shape[1])
    level, variance = np.array(record["level"]), np.array(record["variance"])
    print(f"{name}: {record['positions'] / len(level):.1f} positions of a fact, {record['seconds']:.0f} s")
    for group, mine in {"all": level >= 0, "level 0": level == 0, "levels 1 to 4": level > 0}.items():
        told = {
            "facts": int(mine.sum()),
            "texts of a prompt": round(float(texts[mine].mean()), 2),
            "told error of R": round(float(variance[mine].mean() ** 0.5), 5),
            "of a full run": round(float(max(of_full[mine].mean(), 0.0) ** 0.5), 5),
        }
        print(f"{group:<14} {told}", flush=True)


def file_name(run: str) -> str:
    """The file of a run of this name."""
    return run.replace(", ", "-").replace(" ", "-")


def draw(told: dict[str, dict[str, Any]], path: Path) -> None:
    """Error of R against token positions of a fact, for hits and for expected hits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "knowshift", "font.size": 9}):
        drawing, axes = pyplot.subplots(figsize=(6.4, 3.8))
        points: dict[tuple[float, float], list[str]] = {}
        for name, line in told.items():
            height = line["told error of R" if name.startswith("expected") else "error of R"]
            points.setdefault((line["positions of a fact"], height), []).append(name)
        for at, names in points.items():
            name = " = ".join(names)
            expected = name.startswith("expected")
            axes.plot(*at, "o" if expected else "s", color="#c8553d" if expected else "#33658a")
            below = "sequential" in name or name.endswith("2")  # it lies close to another
            axes.annotate(name, at, textcoords="offset points", xytext=(6, -10 if below else 3), fontsize=8)
        axes.set_yscale("log")
        axes.margins(y=0.15)
        axes.set_xlim(0, 1.3 * max(line["positions of a fact"] for line in told.values()))
        axes.set_xlabel("token positions of a fact")
        axes.set_ylabel("error of R (root mean square)")
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(drawing)


def table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, print the table, write it to FOLDER/expected.json."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    facts = noted_facts(arguments)
    given = json.loads(arguments.reference.read_text()) if arguments.reference else None
    if given and (given["model"], given["dtype"]) != (load_model(arguments.model).identity, arguments.dtype):
        raise SystemExit(f"{arguments.reference}: of another model, or not in {arguments.dtype}")
    runs: dict[str, dict[str, Any]] = {} if given else {f"full, run {i}": {"seed": i} for i in (1, 2)}
    runs["expected"] = EXPECTED
    runs |= {f"expected, {n} texts": {**EXPECTED, "texts": n} for n in arguments.texts}
    runs |= {f"expected, weight {least:g}": {**EXPECTED, "least_weight": least} for least in arguments.least_weight}
    runs["expected, sequential"] = {**EXPECTED, "stopping": "sequential"}
    records = {
        name: measure(arguments, file_name(name), facts, **options)
        for name, options in reversed(runs.items())  # the cheap ones first
    }
    if given is None and arguments.counts:
        reference, draws = columns_of(reference_hits(arguments, facts), arguments.draws), arguments.draws
    elif given is None:
        reference, draws = measure(arguments, "reference", facts, seed=100, draws=arguments.draws), arguments.draws
    else:
        reference, draws = columns_of(given["reference"], given["draws"]), given["draws"]
        of_full = zip(given["runs"], given["positions"], strict=True)
        counted = {
            f"full, run {i}": {**columns_of(hits, DRAWS), "positions": read, "seconds": math.nan}
            for i, (hits, read) in enumerate(of_full, 1)
        }
        records |= dict(reversed(counted.items()))
    told = {name: compare(name, record, reference, draws) for name, record in reversed(records.items())}
    levels = [reference["level"].count(level) for level in range(LEVELS)]
    print(f"{len(facts)} facts, levels of the reference {levels}, mean R {np.mean(reference['rate']):.4f}")
    (arguments.folder / "expected.json").write_text(json.dumps({"levels": levels, **told}, indent=1))
    if arguments.figure:
        draw(told, arguments.figure)
    return {"levels": levels, **told}


def turn(text: str) -> tuple[int, int]:
    """Of "0/2": the first of two."""
    own, _, processes = text.partition("/")
    if not (own.isdigit() and processes.isdigit() and int(own) < int(processes)):
        raise argparse.ArgumentTypeError(f"expected K/N with K below N, found {text!r}")
    return int(own), int(processes)


def main() -> None:
    """Take the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="records, and expected.json")
    parser.add_argument("--model", default="world:tiny")
    parser.add_argument("--facts", default="world:tiny")
    parser.add_argument("--count", type=int, default=300, help="facts")
    parser.add_argument("--candidates", type=int, default=0, help="facts to choose from; 0 for no choice")
    parser.add_argument("--draws", type=int, default=100, help="of each prompt, for the reference")
    parser.add_argument("--texts", type=int, nargs="*", default=(2,), help="of each prompt, for expected hits")
    parser.add_argument("--least-weight", type=float, nargs="*", default=(2.0,), help="of a text, for expected hits")
    parser.add_argument("--told", action="store_true", help="expected hits alone, and what their record tells")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="of benchmarks/reference.py, with its facts")
    parser.add_argument("--figure", type=Path, help="SVG of error against positions")
    parser.add_argument("--counts", type=Path, help="folder of the reference's hits, ten facts a file")
    parser.add_argument("--turn", type=turn, help="K/N: measure every N-th file of --counts from the K-th on, alone")
    arguments = parser.parse_args()
    if arguments.turn is not None:
        if arguments.counts is None:
            parser.error("--turn: expected --counts FOLDER")
        arguments.folder.mkdir(parents=True, exist_ok=True)
        reference_hits(arguments, noted_facts(arguments))
        return
    arguments.turn = (0, 1)
    (tell if arguments.told else table)(arguments)


if __name__ == "__main__":
    main()
