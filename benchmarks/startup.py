"""How long commands take to start: processor time (user + system) and wall-clock time of whole processes.

    python benchmarks/startup.py [--runs 10]

Processor time hardly depends on what else the machine does; wall-clock time is comparable on an idle one only. Runs
of the commands are interleaved. The files are in the disk cache after the first run, which is not counted.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

COMMANDS = (
    ("python -c pass", ("-c", "pass")),
    ("import knowshift", ("-c", "import knowshift")),
    ("knowshift --version", ("-m", "knowshift", "--version")),
    ("knowshift --help", ("-m", "knowshift", "--help")),
    ("knowshift restore --help", ("-m", "knowshift", "restore", "--help")),
)


def seconds(arguments: tuple[str, ...]) -> tuple[float, float]:
    """(processor, wall-clock) seconds of one Python process."""
    before, start = _processor(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return _processor() - before, time.perf_counter() - start


def _processor() -> float:
    """Of all processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in COMMANDS}
    for run in range(runs + 1):
        for name, arguments in COMMANDS:
            found = seconds(arguments)
            if run:
                taken[name].append(found)
    print(f"{'':26} processor time, s    wall clock, s\n{'':26}   best  median      best  median")
    for name, found in taken.items():
        processor, wall = zip(*found, strict=True)
        middle = [statistics.median(of) for of in (processor, wall)]
        print(f"{name:26} {min(processor):6.2f} {middle[0]:7.2f}    {min(wall):6.2f} {middle[1]:7.2f}")


if __name__ == "__main__":
    main()
