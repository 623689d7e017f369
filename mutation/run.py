"""Mutation testing of the parts whose numbers people cite: ``make mutants``.

    python mutation/run.py measure    # which tests run which line, where source or tests have changed
    python mutation/run.py run        # a seeded sample of mutants, each against the tests that run its line
    python mutation/run.py table      # killed and survived by part, as it stands in docs/mutants.md
    python mutation/run.py survivors  # each survivor with its change

Results are appended to ``runs/mutants/results.jsonl``: a run that was stopped resumes.
"""

from __future__ import annotations

import argparse
import difflib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "mutation"))
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from covering import Covering  # noqa: E402
from parts import PARTS  # noqa: E402
from running import copy_tree, end_with_parent, in_child, measure, run_pytest, state_of, warm_up  # noqa: E402
from sites import Site, sample, sites  # noqa: E402

FOLDER = ROOT / "runs" / "mutants"
RESULTS = FOLDER / "results.jsonl"
#: Seconds of tests that a mutant is run against at most. More could only notice more of them.
BUDGET = 60.0
EQUIVALENT = ROOT / "mutation" / "equivalent.json"


def chosen(seed: int) -> list[Site]:
    """The sample: so many mutants of each part, less those judged equivalent."""
    equal = json.loads(EQUIVALENT.read_text())
    found = []
    for part in PARTS:
        files = part.files(ROOT / "src" / "knowshift")
        candidates = [site for file in files for site in sites(part.name, file, ROOT)]
        found += [site for site in sample(candidates, part.mutants, seed, ROOT) if site.key not in equal]
    return found


def results() -> dict[str, dict[str, Any]]:
    """The last result of each mutant."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def _each(jobs: int, work: Any, queue: list[Any]) -> Iterator[Any]:
    """Work through a queue in processes that stay, each with a copy of the tree."""
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for item in queue:
        todo.put(item)
    workers = [context.Process(target=work, args=(number, todo, done)) for number in range(jobs)]
    for worker in workers:
        todo.put(None)
        worker.start()
    for _ in queue:
        yield done.get()
    for worker in workers:
        worker.join()


def _begin(number: int) -> Path:
    """What a worker needs: its own copy of the tree, the libraries, and an end when its parent ends."""
    end_with_parent()
    copy = FOLDER / f"copy-{number}"
    copy_tree(ROOT, copy)
    warm_up()
    return copy


def _measuring(number: int, todo: Any, done: Any) -> None:
    copy = _begin(number)
    while (name := todo.get()) is not None:
        ended, _ = measure(copy, f"tests/{name}", _data(name), FOLDER / f"log-{number}.txt")
        done.put((name, ended.status, ended.seconds, ended.output[-3000:]))


def test_files() -> list[str]:
    """Files of tests, as paths below ``tests/``."""
    return sorted(path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py"))


def _data(name: str) -> Path:
    """Where the coverage of a file of tests is kept; seconds and failures stand beside it, as JSON."""
    return FOLDER / "coverage" / f"{name.replace('/', '.')}.data"


def _is_measured(name: str) -> bool:
    told = _data(name).with_suffix(".json")
    return told.exists() and json.loads(told.read_text()).get("state") == state_of(ROOT, f"tests/{name}")


def measure_all(jobs: int) -> None:
    folder = FOLDER / "coverage"
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in test_files() if not _is_measured(name)]
    names.sort(key=lambda name: (name not in LONG, name))
    for old in (file for name in names for file in folder.glob(f"{_data(name).stem}.*")):
        old.unlink()
    for name, status, seconds, output in _each(jobs, _measuring, names):
        print(f"{name:40} status {status}  {seconds:6.1f} s", flush=True)
        if status:
            print(output, flush=True)


#: Begun first, so that no process waits for the other at the end.
LONG = {
    "studies/test_study.py",
    "probing/test_mastery_run.py",
    "parameters/test_adapters_peft.py",
    "reports/test_report.py",
}


def _mutating(number: int, todo: Any, done: Any) -> None:
    copy = _begin(number)
    while (item := todo.get()) is not None:
        site, tests, limit = item
        file = copy / site.path
        text = file.read_text(encoding="utf-8")
        try:
            file.write_text(site.mutated(text), encoding="utf-8")
            ended = in_child(lambda tests=tests: run_pytest(copy, ["-x", *tests]), FOLDER / f"log-{number}.txt", limit)
        finally:
            file.write_text(text, encoding="utf-8")
        outcome = "survived" if ended.status == 0 else "timeout" if ended.status is None else "killed"
        by = ended.first_failure or (ended.output[-300:] if outcome == "killed" else "")
        done.put(
            {**site.as_record(), "outcome": outcome, "seconds": round(ended.seconds, 2), "tests": len(tests), "by": by}
        )


def run_all(jobs: int, seed: int, again: bool, part: str | None) -> None:
    data = [_data(name) for name in test_files()]
    if changed := [name for name in test_files() if not _is_measured(name)]:
        sys.exit(f"source or tests changed: run 'measure' first ({len(changed)} files of tests)")
    told = [json.loads(file.with_suffix(".json").read_text()) for file in data]
    seconds = {name: took for one in told for name, took in one["seconds"].items()}
    failing = {name for one in told for name in one["failed"]}
    covering = Covering(data, ROOT, [FOLDER / f"copy-{number}" for number in range(64)], seconds)
    known = results()
    queue = []
    for site in chosen(seed):
        row = known.get(site.key)
        if (part and site.part != part) or (row and not (again and row["outcome"] in ("survived", "uncovered"))):
            continue
        tests = covering.of(site.path, site.line) - failing
        if not tests:
            _keep({**site.as_record(), "outcome": "uncovered", "seconds": 0, "tests": 0, "by": ""})
            continue
        ordered = _ordered(tests, seconds)
        queue.append((site, ordered, 60 + 4 * sum(seconds[name] for name in ordered)))
    print(
        f"{len(queue)} mutants to run; {len(failing)} tests left out that fail unmutated: {sorted(failing)}", flush=True
    )
    for number, row in enumerate(_each(jobs, _mutating, queue), 1):
        _keep(row)
        place = f"{row['path']}:{row['line']}"
        print(f"{number}/{len(queue)} {row['outcome']:8} {row['seconds']:6.1f} s {place} {row['by'][:90]}", flush=True)


def _keep(row: dict[str, Any]) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _ordered(tests: set[str], seconds: dict[str, float]) -> list[str]:
    """The quickest of them for :data:`BUDGET` seconds, file by file: fixtures of a file are made once."""
    files: dict[str, list[str]] = {}
    spent = 0.0
    for name in sorted(tests, key=lambda test: seconds[test]):
        spent += seconds[name]
        if files and spent > BUDGET:
            break
        files.setdefault(name.split("::")[0], []).append(name)
    return [name for file in sorted(files.values(), key=lambda names: sum(seconds[n] for n in names)) for name in file]


def print_table(seed: int) -> bool:
    """Print the table; true where every part reaches 85%."""
    known, fine = results(), True
    equal = json.loads(EQUIVALENT.read_text())
    print("| part | mutants | killed | survived | not covered | killed, % |\n|---|---:|---:|---:|---:|---:|")
    for part in PARTS:
        rows = [known[site.key] for site in chosen(seed) if site.part == part.name and site.key in known]
        killed = sum(row["outcome"] in ("killed", "timeout") for row in rows)
        survived = sum(row["outcome"] == "survived" for row in rows)
        share = 100 * killed / max(1, len(rows))
        fine &= share >= 85
        print(f"| {part.name} | {len(rows)} | {killed} | {survived} | {len(rows) - killed - survived} | {share:.0f} |")
    print(f"\n{len(equal)} mutants were judged equivalent and are left out: mutation/equivalent.json.")
    return fine


def print_survivors(seed: int) -> None:
    known = results()
    for site in chosen(seed):
        row = known.get(site.key)
        if row and row["outcome"] in ("survived", "uncovered"):
            text = (ROOT / site.path).read_text(encoding="utf-8")
            place = f"{site.path}:{site.line} {site.function}"
            print(f"\n{site.key} {row['outcome']} {site.part} {place} ({row['tests']} tests)")
            for line in difflib.unified_diff(text.splitlines(), site.mutated(text).splitlines(), lineterm="", n=0):
                if not line.startswith(("---", "+++", "@@")):
                    print("   ", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "run", "table", "survivors"))
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=11, help="which sample")
    parser.add_argument("--part", help="only this part")
    parser.add_argument("--again", action="store_true", help="run survivors again")
    options = parser.parse_args()
    if options.what == "measure":
        measure_all(options.jobs)
    elif options.what == "run":
        run_all(options.jobs, options.seed, options.again, options.part)
    elif options.what == "table":
        sys.exit(0 if print_table(options.seed) else 1)
    else:
        print_survivors(options.seed)


if __name__ == "__main__":
    main()
