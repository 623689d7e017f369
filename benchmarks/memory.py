"""Peak memory of a study's worker, by what it does: one training and all measures of the tuned model.

    python benchmarks/memory.py --model FOLDER --facts SOURCE [--size 8] [--probed 24] [--asked 2] [--dtype float32]
        [--threads N] [--room GB] [--results FILE.json]

A study of one level, one size and one draw runs in this process, in a temporary folder. Before each cell the system is
told to forget the highest resident memory of this process (``/proc/self/clear_refs``: Linux alone), and after it the
highest since then is read (``VmHWM``), beside what is resident then and the largest that torch has allocated on a GPU.
Bytes a weight are those above what the process held when the worker was about to load the model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import knowshift.training.sft  # noqa: F401 (what it imports is no part of a training)
from knowshift.studies import memory
from knowshift.studies.config import StudyConfig, parse_config
from knowshift.studies.readiness import find_base, weights_of
from knowshift.studies.work import Worker


def study(arguments: argparse.Namespace) -> StudyConfig:
    """One tuned model with every kind of measure."""
    return parse_config(
        json.dumps(
            {
                "name": "memory",
                "model": str(arguments.model),
                "facts": arguments.facts,
                "dtype": arguments.dtype,
                "device": arguments.device,
                "threads": arguments.threads,
                "levels": [arguments.level],
                "sizes": [arguments.size],
                "draws": 1,
                "control_rate": None,
                "keep_checkpoints": False,
                "mastery": {
                    "estimate": "expected",
                    "texts": 2,
                    "max_new_tokens": 4,
                    "train_facts": arguments.probed,
                    "test_facts": arguments.probed,
                },
                "training": {"bfloat16": arguments.bfloat16},
                "evaluation": {"facts_per_level": arguments.asked, "few_shot": 0},
                "restoration": {
                    "fractions": [0.2],
                    "criteria": ["relative"],
                    "train_set_facts": arguments.asked,
                    "train_set_fractions": [0.2],
                    "layer_group": 15,
                },
            }
        ),
        "memory",
    )


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {key}: this benchmark needs Linux")


def forget() -> None:
    """Let the highest resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def measure(arguments: argparse.Namespace) -> tuple[int, dict[str, dict[str, float]]]:
    """Weights of the model, and by kind of cell: peak and resident bytes above the start, peak on a GPU, seconds."""
    found: dict[str, dict[str, float]] = {}
    start = status("VmRSS")

    def note(name: str, began: float) -> None:
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        found[name] = {
            "peak": max(status("VmHWM") - start, found.get(name, {}).get("peak", 0)),
            "after": status("VmRSS") - start,
            "gpu": gpu,
            "seconds": time.perf_counter() - began,
        }

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        forget()
        worker = Worker(Path(folder), study(arguments))
        note("loading", began)

        def watched(kind: str, made: Callable[..., None]) -> Callable[..., None]:
            def make(*given: Any) -> None:
                began = time.perf_counter()
                forget()
                made(*given)
                note(kind, began)

            return make

        for kind in {cell.kind for cell in worker.plan.cells}:
            setattr(worker, f"_{kind}", watched(kind, getattr(worker, f"_{kind}")))
        for unit in worker.plan.units:
            worker.do(unit)
    return weights_of(find_base(worker.config)), found


def main() -> None:
    """Take the options, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--facts", required=True)
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--size", type=int, default=8, help="facts of the training set")
    parser.add_argument("--probed", type=int, default=24, help="facts probed of each split and domain")
    parser.add_argument("--asked", type=int, default=2, help="test facts of each domain and level")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--room", type=float, help="GB that a worker may take of a CPU; a small one: models in turns")
    parser.add_argument("--results", type=Path, help="JSON")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    arguments.model = arguments.model.resolve()
    if arguments.room is not None:
        memory.planned_room = lambda config: int(arguments.room * 1e9)
    weights, found = measure(arguments)
    print(f"{'':<16}{'peak, MB':>10}{'after, MB':>11}{'GPU, MB':>9}{'bytes a weight':>16}{'seconds':>9}")
    for kind, told in found.items():
        sizes = "".join(f"{told[key] / 1e6:>{width},.0f}" for key, width in (("peak", 10), ("after", 11), ("gpu", 9)))
        print(f"{kind:<16}{sizes}{told['peak'] / weights:>16.1f}{told['seconds']:>9.1f}")
    if arguments.results:
        arguments.results.write_text(json.dumps({"weights": weights, "kinds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
