"""Time and memory of each strategy of fine-tuning beside those of plain fine-tuning.

    python benchmarks/strategies.py --model world:tiny|FOLDER [--facts SOURCE] [--mastery FILE] [--strategies a,b]
        [--size 240] [--turns 3] [--layers N] [--output FILE.json]

Each strategy has a process of its own, a fork of one in which all libraries are imported. It does what ``knowshift
finetune`` does, from a loaded model to the tuned weights in memory, with the defaults of the strategy's settings.

**Memory** is taken in the first training of a process, after the model is loaded: the system is told to forget the
highest resident memory (``/proc/self/clear_refs``: Linux alone), and the highest since then (``VmHWM``) is read at the
end. The table has its difference to plain fine-tuning's in copies of all weights, in their dtype. It is a peak of a
whole training: what is taken and freed before or after that peak does not show, such as a copy of the weights that is
made once the gradients are gone. With short batches (``--batch-size 1``) it is the weights rather than the activations.

**Time** is taken after that, in turns: plain, strategy, plain, strategy; a first plain one is not counted. An update
is the mean of all but the first, which makes the optimiser's state. Before and after are what the rest of the training
took: copies, singular values and encoding, and what is done to the weights at the end; they do not grow with the
number of updates. The ratio is that of an update to the one of the plain training just before; processor time
hardly depends on what else the machine does. ``sft`` beside itself tells how far ratios and memory go by chance.

What FILE.json has already is not measured again: delete it to begin anew.

Strategies that need facts which the base knows take them from the mastery record; without one, four facts for each of
SIZE and 64 more are measured first (expected hits). ``--layers`` is for memory: it makes the model deeper by layers
that add next to nothing to what passes through them, so that it knows what it knew and its weights outweigh the rest.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft  # noqa: F401 (what is imported before the fork is no part of a training)
import torch
from transformers.utils.logging import disable_progress_bar

from knowshift.facts.sources.load import limited, load_facts
from knowshift.known_facts import KnownFacts, known_facts
from knowshift.models.loading import load_model
from knowshift.parameters.loaded import copy_of
from knowshift.probing.measure import Protocol, measure_mastery
from knowshift.system.allocator import give_back
from knowshift.system.threads import set_threads
from knowshift.system.workers import cores
from knowshift.training.sft import TrainingRecipe
from knowshift.training.strategy import Draw, Strategy
from knowshift.tuning.registry import STRATEGIES, strategy_of
from knowshift.tuning.run import reference_of, tune
from memory import forget, status

PLAIN = Strategy.name
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
#: What the output of deeper layers is multiplied by.
FAINT = 1e-3


def deeper(model: str, layers: int, folder: Path) -> None:
    """Write a Llama with so many layers, those beyond its own of random weights and next to no output."""
    loaded = load_model(model)
    config = loaded.model.config
    own = config.num_hidden_layers
    if layers < own:
        raise SystemExit(f"--layers: {model} has {own}; expected at least as many")
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    made = type(loaded.model)(config)
    made.load_state_dict(loaded.model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in made.model.layers[own:]:
            layer.self_attn.o_proj.weight.mul_(FAINT)
            layer.mlp.down_proj.weight.mul_(FAINT)
    disable_progress_bar()
    made.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def measure_known(model: str, source: str, count: int, file: Path) -> None:
    """Write a mastery record of so many training facts."""
    facts = limited([fact for fact in load_facts(source).facts if fact.split == "train"], count, 0)
    loaded = load_model(model)
    measure_mastery(loaded, facts, Protocol(estimate="expected")).write(file, loaded.about())


def level_of(known: KnownFacts) -> int:
    """The mastery level with most training facts."""
    return max(range(5), key=lambda level: len(known.of("train", level)))


def training(model: str, known: KnownFacts, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training: bytes of its highest memory above the loaded model, and seconds of its parts by each clock."""
    strategy = strategy_of(name)
    draw = Draw(known, level=arguments.level, size=arguments.size, draw=0, seed=0)
    members = strategy.facts(draw)
    recipe = TrainingRecipe(
        learning_rate=arguments.learning_rate * strategy.rate,
        batch_size=arguments.batch_size,
        shared_prefix=arguments.shared_prefix,
    )
    loaded = load_model(model)
    gc.collect()
    give_back()
    forget()
    start = status("VmRSS")
    marks = [now()]
    base = reference_of(loaded, strategy)
    before = copy_of(loaded.model) if strategy.kind == "after" else {}
    record = tune(
        loaded,
        members,
        recipe,
        strategy,
        before,
        seed=0,
        base=base,
        known=known,
        progress=lambda steps: marks.append(now()),
    )
    marks.append(now())
    taken: dict[str, Any] = {"peak": status("VmHWM") - start, "updates": record["steps"]}
    for clock in CLOCKS:
        begun, first, *_, last, ended = (mark[clock] for mark in marks)
        update = (last - first) / (record["steps"] - 1)
        taken[clock] = {"update": update, "before": first - begun - update, "after": ended - last}
    return taken


def now() -> dict[str, float]:
    return {name: clock() for name, clock in CLOCKS.items()}


def turns(model: str, known: KnownFacts, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The first training of a strategy, and pairs of a plain one and one of the strategy."""
    found: dict[str, Any] = {"first": training(model, known, name, arguments), "pairs": []}
    if arguments.turns:
        training(model, known, PLAIN, arguments)
    for _ in range(arguments.turns):
        found["pairs"].append([training(model, known, one, arguments) for one in (PLAIN, name)])
    return found


def in_a_fork(threads: int, work: Callable[..., Any], *given: Any) -> Any:
    """What ``work(*given)`` returns, in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def sent() -> None:
        set_threads(threads)
        there.send(work(*given))

    process = context.Process(target=sent)
    process.start()
    there.close()
    try:
        told = here.recv()
    except EOFError:  # it ended with an error, which it has printed
        told = None
    process.join()
    if process.exitcode:
        raise SystemExit(f"a process ended with status {process.exitcode}")
    return told


def summary(found: Mapping[str, Any], plain: Mapping[str, Any], weights: int, width: int) -> dict[str, Any]:
    """What is told of a strategy.

    ``memory``: copies of the weights above plain fine-tuning; by clock the ``ratio`` of an update, and seconds
    ``before`` and ``after`` the updates, medians, with those of plain fine-tuning subtracted.
    """
    told: dict[str, Any] = {
        "memory": round((found["first"]["peak"] - plain["first"]["peak"]) / (weights * width), 2),
        "peak_bytes": found["first"]["peak"],
        "updates": found["first"]["updates"],
    }
    if not found["pairs"]:
        return told
    for clock in CLOCKS:
        pairs = [(usual[clock], own[clock]) for usual, own in found["pairs"]]
        ratios = sorted(own["update"] / usual["update"] for usual, own in pairs)
        told[clock] = {
            "ratio": {
                "median": round(statistics.median(ratios), 3),
                "least": round(ratios[0], 3),
                "most": round(ratios[-1], 3),
            },
            "update": statistics.median(own["update"] for _, own in pairs),
            **{
                part: round(statistics.median(own[part] - usual[part] for usual, own in pairs), 3)
                for part in ("before", "after")
            },
        }
    return told


def machine(threads: int) -> dict[str, Any]:
    """What was measured on, and when."""
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def line_of(name: str, told: Mapping[str, Any]) -> str:
    """A line of the table."""
    line = f"{name:<18}{told['memory']:>+8.2f}"
    for clock in CLOCKS if "wall" in told else ():
        ratio = told[clock]["ratio"]
        line += f"{ratio['median']:>9.2f}  {ratio['least']:.2f} to {ratio['most']:.2f}"
        line += f"{told[clock]['before']:>+8.2f}{told[clock]['after']:>+8.2f}"
    return line


@contextmanager
def prepared(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The model's folder or name, and the mastery record, made where they must be."""
    with tempfile.TemporaryDirectory(prefix="knowshift-strategies-") as scratch:
        model, mastery = arguments.model, arguments.mastery
        if mastery is None:
            mastery = Path(scratch) / "mastery.parquet"
            in_a_fork(arguments.threads, measure_known, model, arguments.facts, 4 * arguments.size + 64, mastery)
        if arguments.layers is not None:
            folder = Path(scratch) / "deeper"
            in_a_fork(arguments.threads, deeper, model, arguments.layers, folder)
            model = str(folder)
        yield model, mastery


def main() -> None:
    """Take the options, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="world:tiny, or a folder")
    parser.add_argument("--facts", default="world:tiny")
    parser.add_argument("--mastery", type=Path, help="the model's record; where not given, some facts are measured")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="names, with commas between them")
    parser.add_argument("--level", type=int, help="of the training facts; where not given, the one with most of them")
    parser.add_argument("--size", type=int, default=240, help="training facts")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="times the strategy's own rate")
    parser.add_argument("--shared-prefix", action="store_true", help="every batch as one row")
    parser.add_argument("--turns", type=int, default=3, help="pairs; 0: memory alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, help="of a deeper Llama, for memory")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    names = [PLAIN, *(name for name in arguments.strategies.split(",") if name != PLAIN)]
    for name in names:
        strategy_of(name)
    if arguments.size < 3 * arguments.batch_size:
        parser.error("--size: expected three batches at least, since the first update is not counted")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    words = without(without(sys.argv[1:], "--output"), "--strategies")
    command = f"python benchmarks/strategies.py {' '.join(words)}"
    with prepared(arguments) as (model, mastery):
        known = known_facts(load_facts(arguments.facts).facts, mastery, arguments.facts)
        arguments.level = level_of(known) if arguments.level is None else arguments.level
        head = f"{'':<18}{'memory':>8}"
        for clock in CLOCKS if arguments.turns else ():
            head += f"{clock:>9}{'':>14}{'before':>8}{'after':>8}"
        print(head, flush=True)
        before = measured_before(arguments)
        rows = dict(before.get("strategies", {}))
        weights = width = 0
        plain: dict[str, Any] = {}
        for name in [PLAIN, *(name for name in names if name not in {PLAIN, *rows})]:
            found = in_a_fork(arguments.threads, turns, model, known, name, arguments)
            if not plain:
                plain = found
                weights, width = in_a_fork(arguments.threads, size_of, model)
            rows[name] = summary(found, plain, weights, width)
            print(line_of(name, rows[name]), flush=True)
            if arguments.output:  # after each, so that an interrupt leaves what was measured
                about = {"command": command, "machine": machine(arguments.threads), "weights": weights, "bytes": width}
                told = {**about, **used(arguments), **before, "strategies": rows}
                arguments.output.write_text(json.dumps(told, indent=1) + "\n")
    print("memory: copies of the weights; times: of plain fine-tuning's update (smallest to largest), and seconds")


def used(arguments: argparse.Namespace) -> dict[str, int]:
    """The options that figures of several runs must share."""
    return {"size": arguments.size, "batch_size": arguments.batch_size, "turns": arguments.turns}


def measured_before(arguments: argparse.Namespace) -> dict[str, Any]:
    """The output of an earlier run with the same options on the same kind of processor; nothing where there is none."""
    if arguments.output is None or not arguments.output.exists():
        return {}
    told = json.loads(arguments.output.read_text(encoding="utf-8"))
    here = machine(arguments.threads)
    if any(told[name] != value for name, value in used(arguments).items()) or any(
        told["machine"][name] != here[name] for name in ("processor", "cores", "threads", "torch", "peft")
    ):
        raise SystemExit(f"{arguments.output}: measured otherwise, or on another machine; choose another file")
    return dict(told)


def without(words: Sequence[str], option: str) -> list[str]:
    """The words of a command but an option and its value."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if option not in (before, word) and not word.startswith(f"{option}=")
    ]


def size_of(model: str) -> tuple[int, int]:
    """Weights of a model, and bytes of one."""
    loaded = load_model(model)
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    return count, loaded.weight_bytes // count


if __name__ == "__main__":
    main()
