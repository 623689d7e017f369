"""What mastery costs beside ``model.generate``, whether it is the same distribution, and what stopping early loses.

    python benchmarks/mastery.py --part PART [--model world:tiny] [--count 500] [--seed 0] [--results FILE.json]

PART is one of

- ``batches``: ``generate`` on a tenth of the prompts at several batch sizes, as one process with all cores and as one
  process a core, to find its best;
- ``speed``: every prompt of COUNT facts, 10 draws each, with ``generate`` at that best (``--batch-size``,
  ``--processes``) and with ours: token positions computed, and seconds;
- ``never-ending``: the same where no text ends before 32 tokens: the logit of every stop token is set to minus
  infinity in the model itself, for both sides. Once with draws that still end at an answer, once with an answer that
  never comes, so that nothing ends at all;
- ``rules``: ``full``, ``exact`` and ``sequential`` on the same facts: draws, positions, seconds, levels;
- ``omnibus``: hit counts against ``generate`` on 400 prompts, 100 draws each, by a Monte Carlo test of all tables at
  once; and, so that it is known to notice something, against ours at a slightly wrong temperature;
- ``memory``: peak resident memory of the process that runs and writes 10,000, 100,000 and a million facts, on an
  engine that costs nothing (a coin instead of a model), so that what is seen is the bookkeeping;
- ``real``: the table and figure of ``benchmarks/expected.py`` for a real model, in ``--folder``: expected hits and full
  runs of COUNT facts, balanced over relations and over known and unknown, beside 2,100 draws of each. Hours; resumes;
- ``agreement``: how often ``sequential`` gives the level of an independent full run, over error rates, beside what
  a second full run gives. Draws the curve with ``--figure FILE.svg``.

Models are loaded and warmed up before a clock starts. ``generate`` gets prompts sorted by length, and only its own
calls are timed, not the decoding and grading of its texts; ours is timed with grading. Positions are counted in the
model's forward calls. Results are merged into ``--results`` part by part.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

import expected
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.sampling.session import sample
from knowshift.models.sampling.settings import Sampling
from knowshift.probing.agreement import agreement
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.probing.prompts import write_prompts
from knowshift.probing.run import run_mastery
from knowshift.probing.stopping import ERROR
from reference import NEW_TOKENS, TEMPERATURE, generate, not_drawn

DRAWS = 10
BATCHES = (16, 32, 64, 128, 256)
ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
#: An answer that no text holds.
NOWHERE = "there is no such answer"


# -- workers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompted:
    """One prompt, and what counts as a hit."""

    text: str
    accepted: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Cost:
    """What a run has taken."""

    positions: int  # token positions computed
    seconds: float  # on the clock
    busy: float  # processor seconds of all processes and threads, which other work on the machine disturbs less


class Crew:
    """Processes with the model loaded; the work of one call is timed from its start to its last result."""

    def __init__(self, model: str, processes: int, threads: int, endless: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes = processes
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=context,
            initializer=_open,
            initargs=(model, threads, endless, context.Barrier(processes)),
        )
        list(self._pool.map(_meet, range(processes)))

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> tuple[list[Any], float]:
        """Results of the jobs in order, and the seconds until all were there."""
        start = time.perf_counter()
        results = list(self._pool.map(function, *zip(*jobs, strict=True)))
        return results, time.perf_counter() - start

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *told: object) -> None:
        self._pool.shutdown()


_loaded: LoadedModel
_met: Any


def _open(model: str, threads: int, endless: bool, met: Any) -> None:
    global _loaded, _met
    torch.set_num_threads(threads)
    _loaded, _met = load_model(model), met
    if endless:
        _loaded.model.register_forward_hook(_never_stop)
    sample(_loaded, ["It is"] * 8, [["x"]] * 8, Sampling(seed=0), streams=[str(i) for i in range(8)])


def _meet(turn: int) -> None:
    _met.wait()


def _never_stop(model: Any, inputs: Any, output: Any) -> None:
    output.logits[..., _loaded.stop_ids()] = -torch.inf


def _generate(prompts: Sequence[Prompted], draws: int, seed: int) -> tuple[list[int], int, float, float]:
    """Hits of each prompt, positions, seconds and processor seconds of ``generate``."""
    positions = 0

    def count(model: Any, inputs: Any, named: dict[str, Any]) -> None:
        nonlocal positions
        positions += named["input_ids"].numel()

    tokenizer, model = _loaded.tokenizer, _loaded.model
    ids = _loaded.encoder.prompts([prompt.text for prompt in prompts])
    encoded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    torch.manual_seed(seed)
    never = not_drawn(_loaded)
    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    start, busy = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        new = generate(_loaded, encoded, draws, never)
    took, busy = time.perf_counter() - start, time.process_time() - busy
    hook.remove()
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    hits = [
        sum(any(answer in text for answer in prompt.accepted) for text in texts[i * draws : (i + 1) * draws])
        for i, prompt in enumerate(prompts)
    ]
    return hits, positions, took, busy


def _measure(facts: Sequence[Fact], protocol: Protocol) -> tuple[dict[str, list[Any]], int, float]:
    """The columns of the record, positions, processor seconds."""
    busy = time.process_time()
    record = measure_mastery(_loaded, facts, protocol)
    return record.columns, record.positions, time.process_time() - busy


def _sample(prompts: Sequence[Prompted], draws: int, seed: int, temperature: float) -> tuple[list[int], int]:
    found = sample(
        _loaded,
        [prompt.text for prompt in prompts],
        [prompt.accepted for prompt in prompts],
        Sampling(seed=seed, draws_per_prompt=draws, temperature=temperature, max_new_tokens=NEW_TOKENS),
        streams=[prompt.key for prompt in prompts],
    )
    return found.hits.tolist(), found.positions


# -- what is measured -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """The command's arguments, and the facts they choose."""

    arguments: argparse.Namespace

    def facts(self, count: int | None = None) -> list[Fact]:
        """``count`` facts of the source by a seeded shuffle."""
        facts = load_facts(self.arguments.facts).facts
        chosen = np.random.default_rng([self.arguments.seed, 4]).permutation(len(facts))
        return [facts[i] for i in sorted(chosen[: count or self.arguments.count].tolist())]

    def crew(self, processes: int | None = None, endless: bool = False) -> Crew:
        """One process a core, or ``processes`` that share the cores."""
        cores = self.arguments.cores
        processes = processes or cores
        return Crew(self.arguments.model, processes, max(1, cores // processes), endless)


def _prompts(facts: Sequence[Fact]) -> list[Prompted]:
    return [
        Prompted(text, fact.accepted, f"{fact.id}/{i}")
        for fact in facts
        for i, text in enumerate(completion_prompts(fact))
    ]


def _batches(prompts: Sequence[Prompted], size: int) -> list[list[Prompted]]:
    """Prompts by length, longest first, so that little is padded and the last batches are the short ones."""
    order = sorted(prompts, key=lambda prompt: -len(prompt.text))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _by_generate(crew: Crew, prompts: Sequence[Prompted], batch: int, seed: int) -> tuple[int, Cost]:
    """Hits, and the cost of ``generate`` alone: its seconds summed over processes and divided by their number."""
    jobs = [(part, DRAWS, 1000 * seed + i) for i, part in enumerate(_batches(prompts, batch))]
    results, wall = crew.run(_generate, jobs)
    spent = sum(result[2] for result in results) / crew.processes
    cost = Cost(sum(result[1] for result in results), min(spent, wall), sum(result[3] for result in results))
    return sum(hit for result in results for hit in result[0]), cost


def _by_us(crew: Crew, facts: Sequence[Fact], protocol: Protocol) -> tuple[dict[str, list[Any]], Cost]:
    """The columns of the record in the facts' order, and the cost."""
    size = -(-len(facts) // crew.processes)
    parts = [facts[start : start + min(size, 500)] for start in range(0, len(facts), min(size, 500))]
    results, seconds = crew.run(_measure, [(part, protocol) for part in parts])
    columns = {name: [value for result in results for value in result[0][name]] for name in results[0][0]}
    return columns, Cost(sum(result[1] for result in results), seconds, sum(result[2] for result in results))


def part_batches(task: Task) -> dict[str, Any]:
    """Prompts per second of ``generate`` by processes and batch size."""
    prompts = _prompts(task.facts())[::10]
    found: dict[str, Any] = {}
    for processes in sorted({1, task.arguments.cores}):
        with task.crew(processes) as crew:
            for batch in BATCHES:
                seconds = _by_generate(crew, prompts, batch, task.arguments.seed)[1].seconds
                found[f"{processes}x{batch}"] = round(len(prompts) / seconds, 1)
                print(f"{processes} process(es), batches of {batch:>4}: {len(prompts) / seconds:7.1f} prompts/s")
    best = max(found, key=lambda name: found[name])
    print(f"best: {best}")
    return {"prompts": len(prompts), "prompts_per_second": found, "best": best}


def part_speed(task: Task, endless: bool = False, answers: bool = True) -> dict[str, Any]:
    """Positions and seconds of ``generate`` and of the tree, and their ratios."""
    facts = task.facts()
    if not answers:
        facts = [dataclasses.replace(fact, answer=NOWHERE, aliases=()) for fact in facts]
    prompts = _prompts(facts)
    told: dict[str, Any] = {"facts": len(facts), "prompts": len(prompts), "draws": len(prompts) * DRAWS}
    with task.crew(task.arguments.processes, endless) as crew:
        hits, cost = _by_generate(crew, prompts, task.arguments.batch_size, task.arguments.seed)
        told["generate"] = _line("generate", hits, len(prompts) * DRAWS, cost)
    with task.crew(endless=endless) as crew:
        columns, cost = _by_us(crew, facts, Protocol(seed=task.arguments.seed))
        told["tree"] = _line("tree", sum(columns["hits"]), sum(columns["draws"]), cost)
    for what in ("positions", "seconds", "processor seconds"):
        told[f"ratio of {what}"] = round(told["generate"][what] / told["tree"][what], 2)
        print(f"generate : tree, {what}: {told[f'ratio of {what}']}")
    return told


def part_never_ending(task: Task) -> dict[str, Any]:
    """The same where no text ends before its 32 tokens, with answers found and with none."""
    told = {}
    for answers in (True, False):
        name = "ends at an answer" if answers else "never ends"
        print(f"-- {name}")
        told[name] = part_speed(task, endless=True, answers=answers)
    return told


def part_rules(task: Task) -> dict[str, Any]:
    """Cost and levels of the three rules on the same facts with the same seed."""
    facts = task.facts()
    told: dict[str, Any] = {}
    with task.crew() as crew:
        full: list[int] = []
        for rule in ("full", "exact", "sequential"):
            columns, cost = _by_us(crew, facts, Protocol(seed=task.arguments.seed, stopping=rule))
            full = full or columns["level"]
            told[rule] = _line(rule, sum(columns["hits"]), sum(columns["draws"]), cost)
            told[rule] |= {
                "levels": [columns["level"].count(level) for level in range(5)],
                "same level as full": round(agreement(full, columns["level"]).same, 4),
            }
            print(f"   levels {told[rule]['levels']}, as full: {told[rule]['same level as full']:.1%}")
    return told


def part_omnibus(task: Task, prompts: int = 400, draws: int = 100) -> dict[str, Any]:
    """Whether hit counts of tree and ``generate`` on the same prompts could come from one distribution."""
    seed = task.arguments.seed
    every = _prompts(task.facts())
    chosen = np.random.default_rng([seed, 5]).permutation(len(every))[:prompts]
    asked = sorted((every[i] for i in chosen), key=lambda prompt: -len(prompt.text))
    batch = max(1, task.arguments.batch_size * DRAWS // draws)
    parts = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    told: dict[str, Any] = {"prompts": len(asked), "draws of each": draws}
    with task.crew() as crew:
        results, _ = crew.run(_generate, [(part, draws, 7000 * (seed + 1) + i) for i, part in enumerate(parts)])
        theirs = np.array([hit for result in results for hit in result[0]])
        for name, temperature in (("tree", TEMPERATURE), ("tree at temperature 0.75", 0.75)):
            results, _ = crew.run(_sample, [(part, draws, seed, temperature) for part in parts])
            mine = np.array([hit for result in results for hit in result[0]])
            told[name] = same_distribution(mine, theirs, draws, seed)
            told[name] |= {"hits": int(mine.sum()), "hits of generate": int(theirs.sum())}
            print(f"{name}: {told[name]}")
    return told


def same_distribution(
    first: NDArray[np.int64], second: NDArray[np.int64], draws: int, seed: int, trials: int = 20_000
) -> dict[str, Any]:
    """Two p-values for "each prompt has one rate": of all prompts' tables at once, and of the total alone.

    ``first`` and ``second`` are hits [prompts] of ``draws`` each. Given a prompt's hits in both, those of the first
    are hypergeometric; the sum of the tables' chi-squares is compared with ``trials`` sums drawn that way, so no
    table needs to be large. The total is compared with the same draws, two-sided.
    """
    both = first + second
    some = (both > 0) & (both < 2 * draws)
    variance = both[some] * (2 * draws - both[some]) / (4.0 * (2 * draws - 1))

    def statistic(hits: NDArray[np.int64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = ((hits - both[some] / 2) ** 2 / variance).sum(axis=-1)
        return result

    rng = np.random.default_rng([seed, 6])
    null = rng.hypergeometric(both[some], 2 * draws - both[some], draws, size=(trials, int(some.sum())))
    reached = (statistic(null) >= statistic(first[some])).sum()
    off = abs(null.sum(axis=1) - both[some].sum() / 2) >= abs(first[some].sum() - both[some].sum() / 2)
    return {
        "tables that can differ": int(some.sum()),
        "chi-square": round(float(statistic(first[some])), 1),
        "p of all tables": round(float((reached + 1) / (trials + 1)), 4),
        "p of the total": round(float((off.sum() + 1) / (trials + 1)), 4),
    }


def part_agreement(task: Task) -> dict[str, Any]:
    """Agreement with independent full runs by error rate; the ceiling is what full runs have with one another."""
    facts, runs = task.facts(), task.arguments.runs
    seed = task.arguments.seed
    with task.crew() as crew:
        full = [_by_us(crew, facts, Protocol(seed=seed + run))[0]["level"] for run in range(runs)]
        pairs = [_same(full[a], full[b]) for a in range(runs) for b in range(a)]
        ceiling = np.mean(pairs, axis=0)
        told: dict[str, Any] = {"facts": len(facts), "full runs": runs, "ceiling": _share(ceiling)}
        told["levels of the first"] = [full[0].count(level) for level in range(5)]
        print(f"ceiling: {told['ceiling']}, levels {told['levels of the first']}")
        told["sequential"] = []
        for error in task.arguments.errors:
            same, draws = [], 0
            by_level = np.zeros((5, 5), dtype=np.int64)
            for run in range(task.arguments.sequential_runs):
                protocol = Protocol(seed=seed + 1000 + run, stopping="sequential", error=error)
                columns, cost = _by_us(crew, facts, protocol)
                draws += sum(columns["draws"])
                for other in full:
                    same.append(_same(columns["level"], other))
                    by_level += np.array(agreement(other, columns["level"]).table)
            every = sum(map(len, map(completion_prompts, facts))) * DRAWS * task.arguments.sequential_runs
            found = np.mean(same, axis=0)
            told["sequential"].append(
                {
                    "error": error,
                    "draws": round(draws / every, 4),
                    "agreement": _share(found),
                    "below the ceiling": _share(ceiling - found),
                    "positions of the last run": cost.positions,
                    "processor seconds of the last run": round(cost.busy, 1),
                    "table": by_level.tolist(),
                }
            )
            print(told["sequential"][-1])
    if task.arguments.figure:
        draw_curve(told, task.arguments.figure)
    return told


class Coins:
    """An engine without a model: every draw is a hit with the fact's own chance."""

    def about(self) -> dict[str, Any]:
        return {"engine": "coins", "model": "none", "identity": "none", "dtype": "none", "device": "none"}

    def session(self, prompts: Sequence[str], accepted: Any, *, seed: int, draws: int, **told: Any) -> Coins:
        self.hit = np.full((len(prompts), draws), -1, dtype=np.int8)
        self.positions = 0
        self._random = np.random.default_rng([seed, len(prompts)])
        return self

    def draw(self, numbers: Sequence[NDArray[np.int64]], begun: Callable[[int], None]) -> None:
        for row, mine in zip(self.hit, numbers, strict=True):
            row[mine] = self._random.random(len(mine)) < 0.3


@dataclass(frozen=True)
class CoinSpec(EngineSpec):
    def open(self, worker: int = 0) -> Any:
        return Coins()


def _coordinate(count: int) -> tuple[float, float, float]:
    """Peak resident MB with the facts alone and after the run, and its seconds, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        facts = [
            Fact(f"P19.train.{i}", "P19", "train", "in_domain", f"Person {i}", f"Where was {i} born?", f"Town {i}")
            for i in range(count)
        ]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.perf_counter()
        run_mastery(CoinSpec("coins"), facts, Path(folder) / "m.parquet", Protocol())
        took = time.perf_counter() - start
        write_prompts(Path(folder) / "m.parquet", Path(folder) / "prompts")
        return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, took


def part_memory(task: Task) -> dict[str, Any]:
    """Peak memory by number of facts."""
    told: dict[str, Any] = {}
    for count in task.arguments.sizes:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            before, after, took = pool.submit(_coordinate, count).result()
        told[str(count)] = {"facts MB": round(before), "peak MB": round(after), "seconds": round(took, 1)}
        print(f"{count:>9,} facts: {before:6.0f} MB with the facts, {after:6.0f} MB at most, {took:.1f} s")
    return told


def _same(first: Sequence[int], second: Sequence[int]) -> NDArray[np.float64]:
    return np.array(first, dtype=float) == np.array(second, dtype=float)


def _share(values: NDArray[np.float64]) -> list[float]:
    """Mean over facts and its standard error, as fractions."""
    return [round(float(np.mean(values)), 4), round(float(stats.sem(values)), 4)]


def draw_curve(told: dict[str, Any], path: Path) -> None:
    """Agreement against the share of draws made, one point an error rate, under the ceiling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ceiling = 100 * told["ceiling"][0]
    shares = [100 * row["draws"] for row in told["sequential"]]
    heights = [100 * row["agreement"][0] for row in told["sequential"]]
    # What is read off is the distance from the ceiling, so its error bar is shown, not that of the height.
    errors = [100 * row["below the ceiling"][1] for row in told["sequential"]]
    with pyplot.rc_context({"svg.hashsalt": "knowshift", "font.size": 9}):
        drawing, axes = pyplot.subplots(figsize=(6.4, 3.8))
        axes.axhspan(ceiling - 1, ceiling, color="#d9e6f2", lw=0)
        axes.axhline(ceiling, color="#33658a", lw=1.2)
        axes.text(99.5, ceiling, "a second full run ", ha="right", va="bottom", color="#33658a")
        axes.text(99.5, ceiling - 1, "one point below ", ha="right", va="top", color="#33658a", fontsize=8)
        axes.errorbar(shares, heights, yerr=errors, color="#444444", lw=1, marker="o", ms=4, capsize=2)
        for row, x, y in zip(told["sequential"], shares, heights, strict=True):
            default = row["error"] == ERROR
            if default:
                axes.plot([x], [y], "o", ms=8, color="#c8553d", zorder=3)
            axes.annotate(
                f"{row['error']:g}" + (" (default)" if default else ""),
                (x, y),
                textcoords="offset points",
                xytext=(6, 3),
                color="#c8553d" if default else "#444444",
            )
        axes.set_xlim(0, 100)
        highest = max(height + error for height, error in zip(heights, errors, strict=True))
        axes.set_ylim(min(min(heights), ceiling) - 2, max(ceiling, highest) + 0.5)
        axes.set_xlabel("draws made, % of a full run (210 a fact)")
        axes.set_ylabel("same level as a full run, % of facts")
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(drawing)


def _line(name: str, hits: int, draws: int, cost: Cost) -> dict[str, Any]:
    print(
        f"{name:<24} {cost.positions:>10,} positions  {cost.seconds:7.2f} s  {cost.busy:7.2f} processor s  "
        f"{draws:>7,} draws  hit rate {hits / draws:.4f}",
        flush=True,
    )
    return {
        "positions": cost.positions,
        "seconds": round(cost.seconds, 2),
        "processor seconds": round(cost.busy, 2),
        "draws": draws,
        "hit rate": round(hits / draws, 4),
    }


def part_real(task: Task) -> dict[str, Any]:
    """Expected hits and counted hits of a real model beside many more draws."""
    if task.arguments.folder is None:
        raise SystemExit("--part real: expected --folder FOLDER, where its records are kept")
    settings = {"draws": 100, "texts": (), "least_weight": (), "turn": (0, 1), "device": "cpu"}
    return expected.table(argparse.Namespace(**vars(task.arguments), **settings))


PARTS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "batches": part_batches,
    "speed": part_speed,
    "never-ending": part_never_ending,
    "rules": part_rules,
    "omnibus": part_omnibus,
    "memory": part_memory,
    "agreement": part_agreement,
    "real": part_real,
}


def main() -> None:
    """Run one part, print what it finds and merge it into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=PARTS)
    parser.add_argument("--model", default="world:tiny")
    parser.add_argument("--facts", default="world:tiny")
    parser.add_argument("--count", type=int, default=500, help="facts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=64, help="of generate, in prompts")
    parser.add_argument("--processes", type=int, default=None, help="of generate; where not given, one per core")
    parser.add_argument("--runs", type=int, default=3, help="full runs (agreement)")
    parser.add_argument("--sequential-runs", type=int, default=1, help="at each error rate (agreement)")
    parser.add_argument("--errors", type=float, nargs="+", default=ERRORS, help="error rates (agreement)")
    parser.add_argument("--sizes", type=int, nargs="+", default=(10_000, 100_000, 1_000_000), help="facts (memory)")
    parser.add_argument("--folder", type=Path, help="where records are kept (real)")
    parser.add_argument("--counts", type=Path, help="hits of the reference, which expected.py has made (real)")
    parser.add_argument("--candidates", type=int, default=1000, help="facts to choose from (real)")
    parser.add_argument("--dtype", default="float32", help="of the model (real)")
    parser.add_argument("--reference", type=Path, help="what benchmarks/reference.py has written (real)")
    parser.add_argument("--figure", type=Path, help="SVG of the curve (agreement, real)")
    parser.add_argument("--results", type=Path, help="JSON to merge the part's results into")
    arguments = parser.parse_args()
    found = PARTS[arguments.part](Task(arguments))
    if arguments.results:
        told = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
        told[arguments.part] = found
        arguments.results.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
