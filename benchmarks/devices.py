"""The same commands on two devices: how far the records agree, and in what time.

    python benchmarks/devices.py --folder SCRATCH [--devices cpu cuda] [--facts 300]

Measures mastery, tunes, evaluates and compares first tokens on each device, from the shipped world, each command a
process of its own. A device changes the order of sums, so samples and trainings diverge at near ties: the output says
how often.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from knowshift.probing.agreement import agreement


def run(*words: str | Path) -> tuple[dict[str, Any], float]:
    """One command's JSON, and its seconds from start to end."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "knowshift", *map(str, words), "--json"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr.strip().splitlines()[-1]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told, time.monotonic() - began


def column(path: Path, name: str) -> list[Any]:
    return list(pq.read_table(path, columns=[name])[name].to_pylist())


def same(first: list[Any], second: list[Any]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty scratch folder")
    parser.add_argument("--devices", nargs=2, default=("cpu", "cuda"))
    parser.add_argument("--facts", type=int, default=300)
    options = parser.parse_args()
    world, limit = "world:tiny", ("--limit", str(options.facts))
    records: list[Path] = []
    for device in options.devices:
        folder = options.folder / device.replace(":", "-")
        folder.mkdir(parents=True)
        records.append(folder)
        mastery, tuned, on = folder / "mastery.parquet", folder / "tuned", ("--device", device)
        known = options.folder / options.devices[0].replace(":", "-")  # the same facts are taught and asked
        steps = {
            "mastery": (world, "--facts", world, "--output", mastery, *limit, *on),
            "finetune": (
                *(world, "--facts", world, "--mastery", known / "mastery.parquet", "--level", "1", "--size", "16"),
                *("--output-dir", tuned, *on),
            ),
            "evaluate": (
                *(tuned, "--facts", world, "--mastery", known / "mastery.parquet"),
                *("--output", folder / "answers.parquet", *on),
            ),
            "tokens": (
                *(world, known / "tuned", "--facts", world, "--mastery", known / "mastery.parquet"),
                *("--output", folder / "tokens.parquet", *on),
            ),
        }
        for command, words in steps.items():
            told, seconds = run(command, *words)
            print(f"{device} {command}: {seconds:.1f} s {json.dumps(told)[:200]}", flush=True)
    one, other = records
    levels = [column(folder / "mastery.parquet", "level") for folder in records]
    hits = [sum(column(folder / "mastery.parquet", "hits")) for folder in records]
    found = agreement(*levels)
    print(f"hits {hits[0]} and {hits[1]}; levels: {found.same:.3f} the same, {found.within_one:.3f} within one")
    texts = [column(folder / "answers.parquet", "text") for folder in records]
    print(f"answers of the two tuned models: {same(*texts):.3f} the same")
    kl = [[value for value in column(folder / "tokens.parquet", "kl") if value is not None] for folder in records]
    apart = [a - b for a, b in zip(*kl, strict=True)]
    print(f"KL of one tuned model: {len(kl[0])} facts, largest difference {max(map(abs, apart), default=0):.2e} nats")
    print(f"records in {one} and {other}; {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
