"""A small study by one process, by two, and on Ray with two workers, in turns; the tables of all are compared.

    python benchmarks/executors.py --folder FOLDER [--turns 3] [--facts 1200] [--draws 2] [--results FILE.json]

Each run is `knowshift study` in a process of its own and in a folder of its own, from start to report, on the shipped
world: mastery, and trainings with all their measures. Loading, starting workers and starting Ray on this machine are
part of it, so a longer study has larger ratios. Told are the seconds of every turn, and the medians over turns of the
ratios to one and to two processes in the same turn. Give it two cores and nothing else to do; RAY_ADDRESS is not used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STUDY = """
name: executors
model: world:tiny
facts: world:tiny
levels: [0, 4]
sizes: [30, 60]
draws: {draws}
keep_checkpoints: false
mastery: {{train_facts: {train}, test_facts: {test}, facts_per_cell: 50}}
training: {{learning_rate: 3.0e-4}}
evaluation: {{facts_per_level: 20}}
"""

#: Options of `knowshift study` by name. Ray starts with as many cores as there are workers to compare with.
WAYS = {
    "one process": ("--executor", "processes", "--workers", "1"),
    "two processes": ("--executor", "processes", "--workers", "2"),
    "ray": ("--executor", "ray"),
}


def seconds_of(config: Path, run: Path, words: tuple[str, ...]) -> float:
    """How long one study takes by the clock."""
    shutil.rmtree(run, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "knowshift", "study", str(config), "--output-dir", str(run), *words]
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def tables_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "tables").iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are written, and removed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--facts", type=int, default=1200, help="facts probed: half for training")
    parser.add_argument("--draws", type=int, default=2, help="training sets of each level and size")
    parser.add_argument("--results", type=Path, help="also write the numbers here, as JSON")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    config = asked.folder / "executors.yaml"
    config.write_text(STUDY.format(draws=asked.draws, train=asked.facts // 2, test=asked.facts // 4), encoding="utf-8")
    turns: list[dict[str, float]] = []
    for turn in range(asked.turns):
        found = {}
        names = [*WAYS][turn % 3 :] + [*WAYS][: turn % 3]  # none is always the first
        for name in names:
            found[name] = seconds_of(config, asked.folder / name.replace(" ", "-"), WAYS[name])
        first, *others = (tables_of(asked.folder / name.replace(" ", "-")) for name in names)
        assert all(other == first for other in others), "the tables differ"
        turns.append(found)
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {found[name]:.1f} s" for name in WAYS), flush=True)
    ratios = {
        "two processes against one": statistics.median(its["one process"] / its["two processes"] for its in turns),
        "ray against two processes": statistics.median(its["two processes"] / its["ray"] for its in turns),
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} times as fast (median of {len(turns)})")
    told: dict[str, Any] = {"turns": turns, "ratios": ratios, "cores": len(os.sched_getaffinity(0))}
    if asked.results is not None:
        asked.results.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
