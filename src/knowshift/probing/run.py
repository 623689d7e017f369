"""Measuring the mastery of many facts: records written as they come, resumed where they stopped, on any workers.

A run is cut into parts of ``EngineSpec.part`` facts in the order of the source. A finished part is a file in
``OUTPUT.parts/``; when all are there they become OUTPUT and the folder goes. A part does not depend on the others, on
who computes it or when, so a run that was killed ends in the same record as one that was not. With a budget, the facts
that its pace was measured with are one part more, and the others are cut.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from knowshift.errors import InputError
from knowshift.facts.fact import LEVELS, Fact, completion_prompts
from knowshift.facts.grading import gradable
from knowshift.files import check_output_file, digest, file_beside, folder_beside, read_json, write_json
from knowshift.models.loading import LoadedModel, torch_device
from knowshift.probing.budget.pace import plan_budget
from knowshift.probing.budget.plan import Budget, Plan
from knowshift.probing.crew import Crew, of_worker
from knowshift.probing.engines import LIGHT, EngineSpec
from knowshift.probing.measure import (
    Engine,
    MasteryRecord,
    Protocol,
    check_engine,
    joined_records,
    measure_mastery,
)
from knowshift.probing.meter import Meter, Progress
from knowshift.records import MASTERY, MASTERY_BY_ESTIMATE, count_in, read_about, read_columns, read_table
from knowshift.system.allocator import give_back
from knowshift.system.workers import results

#: Rows of the final record that are gathered before they are written as one row group.
ROWS_OF_A_GROUP = 1 << 15
#: What may differ between the start of a run and its resumption, because it changes no record.
PLACE = ("model", "device")
#: What a record that does not say it is.
UNSAID: dict[str, Any] = {"estimate": "hits", "least_weight": None, "budget": None}

#: In the folder of parts: what they are parts of.
LABEL = "about.json"
#: In the folder of parts: the facts that the pace was measured with.
BEGUN = "begun.parquet"

#: Seconds between two looks at what workers have done.
LOOK = 1.0


@dataclass(frozen=True)
class Outcome:
    """What a run comes to: facts of each level [n0..n4], draws made, token positions computed."""

    facts: int
    levels: list[int]
    draws: int
    positions: int


def run_mastery(
    spec: EngineSpec,
    facts: Sequence[Fact],
    output: Path,
    protocol: Protocol,
    *,
    workers: int = 1,
    progress: Progress = lambda done, total, positions: None,
    budget: Budget | None = None,
    pacing: Callable[[int], None] = lambda facts: None,
    planned: Callable[[Plan], None] = lambda plan: None,
    order: Sequence[int] | None = None,
) -> Outcome:
    """Measure all facts into ``output``, going on from what an earlier run with the same inputs has left.

    Args:
        budget: measure as many of the facts as fit into it; a run that goes on keeps those that were chosen first.
        order: places of facts, of which a budget takes the first; balanced over relations, where not given.
        pacing: called with the facts measured so far while a budget's pace is measured.
        planned: called with the facts chosen, before ``progress``, where there is a budget.
        progress: called with (facts done, facts in all, positions computed), first with what was there already, then
            whenever more facts are done, those of unfinished parts included.

    Raises:
        InputError: a fact cannot be asked, or ``output`` cannot be written, or it or its parts belong to another
            model, other facts, prompts or settings, or another process is writing them, or the budget is too small
            for one fact. Nothing that was recorded is lost.
    """
    check_output_file(output)
    check_facts(facts)
    with spec.shared() if workers > 1 else nullcontext(spec) as opened:
        engine, about = _checked_engine(opened, facts, protocol, workers)
        with Crew(opened, engine, workers) as crew:
            begun: list[MasteryRecord] = []
            if budget is not None:
                plan = _recorded_plan(output, budget, facts, protocol.seed, order)
                if plan is None:
                    plan, begun = plan_budget(budget, crew, facts, protocol, order, pacing)
                facts, about["budget"] = plan.facts, plan.about()
                planned(plan)
            about["facts"] = facts_digest(facts)
            return _run_mastery(crew, about, facts, begun, output, protocol, progress)


def _run_mastery(
    crew: Crew,
    about: Mapping[str, Any],
    facts: Sequence[Fact],
    begun: Sequence[MasteryRecord],
    output: Path,
    protocol: Protocol,
    progress: Progress,
) -> Outcome:
    if output.exists():
        _, told = read_table(output, MASTERY, "mastery")
        _check_same(output, about, told)
        progress(len(facts), len(facts), 0)
        return _outcome(output)
    folder = _folder_of_parts(output)
    _check_parts(folder, about, begun)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder}: another process is writing there; expected another --output") from None
    try:
        size = crew.spec.part
        already = [folder / BEGUN] if (folder / BEGUN).exists() else []
        known = {name for path in already for name in read_columns(path, ["fact"])["fact"].to_pylist()}
        others = [fact for fact in facts if fact.id not in known]
        parts = {start: others[start : start + size] for start in range(0, len(others), size)}
        missing = {start: part for start, part in parts.items() if not _part(folder, start).exists()}
        done = len(facts) - sum(map(len, missing.values()))
        progress(done, len(facts), 0)
        asked = sum(len(completion_prompts(fact)) for part in missing.values() for fact in part)
        meter = Meter(progress, done, len(facts), asked)
        for finished in _measure(crew, missing, folder, protocol, meter):
            done += finished
            meter.finished(done)
        made = [*already, *(_part(folder, start) for start in parts)]
        _merge(made, output, about, [fact.id for fact in facts] if already else None)
    finally:
        lock.release()
    shutil.rmtree(folder)
    return _outcome(output)


def _checked_engine(
    spec: EngineSpec, facts: Sequence[Fact], protocol: Protocol, workers: int
) -> tuple[LoadedModel | Engine | None, dict[str, Any]]:
    """Refuse what this engine cannot do; the engine, None where workers open their own, and what records say of it.

    Workers load copies of their own. One on the CPU does for the checks, and is gone before they start.
    """
    if not spec.is_server:
        for device in spec.devices:
            torch_device(device)
    engine = spec.open() if workers == 1 else replace(spec, devices=("cpu",)).open()
    check_engine(engine, protocol)
    _check_prompts(engine, facts, protocol.max_new_tokens)
    about = {**engine.about(), **protocol.about(), "part": spec.part}
    if isinstance(engine, LoadedModel):
        about["device"] = str(torch_device(spec.devices[0]))
    return engine if workers == 1 else None, about


def check_facts(facts: Sequence[Fact]) -> None:
    """Refuse facts that cannot be asked or graded, before anything runs."""
    if not facts:
        raise InputError("no facts to measure")
    seen: set[str] = set()
    for fact in facts:
        if fact.id in seen:
            raise InputError(f"fact {fact.id} occurs twice; expected distinct ids")
        seen.add(fact.id)
        completion_prompts(fact)  # an error where there are none
        for answer in fact.accepted:
            if not gradable(answer):
                raise InputError(f"fact {fact.id}: answer {answer!r} is empty after normalisation")


def _check_prompts(engine: LoadedModel | Engine, facts: Sequence[Fact], new_tokens: int) -> None:
    """Refuse prompts that the model cannot read now, and not when their turn comes in a long run."""
    if not isinstance(engine, LoadedModel):
        return
    unreadable, encoder = len(engine.vocabulary.without_embedding) > 0, engine.encoder
    for fact in facts:
        asked = completion_prompts(fact)
        doubtful = [prompt for prompt in asked if unreadable or encoder.may_not_fit(prompt, new_tokens)]
        try:
            encoder.prompts(doubtful, new_tokens)
        except InputError as error:
            raise InputError(f"fact {fact.id}: {error}") from None


def facts_digest(facts: Sequence[Fact]) -> str:
    """Sixteen hex digits over all that a record holds of facts or was made of, in order.

    These are id, relation, split, domain, exposures, completion prompts and accepted answers.
    """
    told = "0"
    for fact in facts:
        kept = [fact.id, fact.relation, fact.split, fact.domain, fact.exposures]
        told = digest([told, *kept, completion_prompts(fact), fact.accepted])
    return told


# -- parts ----------------------------------------------------------------------------------------------------


def _folder_of_parts(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


def _recorded_plan(
    output: Path, budget: Budget, facts: Sequence[Fact], seed: int, order: Sequence[int] | None
) -> Plan | None:
    """What an earlier run with a budget chose, whatever the pace is now; None where nothing is recorded."""
    label = _folder_of_parts(output) / LABEL
    if output.exists():
        where, told = output, read_about(output, "mastery")
    elif label.exists():
        where, told = label.parent, read_json(label)
    else:
        return None
    chosen = told.get("budget")
    if not isinstance(chosen, dict):
        raise InputError(f"{where}: recorded without a budget; it stays as it is, choose another --output")
    return Plan.of_sample(budget.seconds, facts, count_in(where, chosen, "facts"), seed, order=order)


def _part(folder: Path, start: int) -> Path:
    return folder / f"part-{start:09d}.parquet"


def _check_parts(folder: Path, about: Mapping[str, Any], begun: Sequence[MasteryRecord]) -> None:
    """Start the folder of parts with what is measured, or make sure that the one that is there is of this run."""
    label = folder / LABEL
    if folder.exists():
        try:
            told = read_json(label)
        except InputError as error:
            raise InputError(f"{folder}: exists, but holds no parts of a mastery run ({error})") from None
        _check_same(folder, about, told)
        return
    with folder_beside(folder) as started:
        if begun:
            together = joined_records(begun)
            together.write(started / BEGUN, {"positions": together.positions})
        write_json(started / label.name, about)


def _check_same(where: Path, about: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    for key, value in {**UNSAID, **about}.items():
        if key not in PLACE and told.get(key, UNSAID.get(key)) != value:
            what = {"identity": "model", "facts": "facts, prompts or answers"}.get(key, key)
            raise InputError(
                f"{where}: recorded with another {what} ({key} {told.get(key)!r}, now {value!r}); it stays as it is, "
                "choose another --output"
            )


def _measure(
    crew: Crew, missing: Mapping[int, Sequence[Fact]], folder: Path, protocol: Protocol, meter: Meter
) -> Iterator[int]:
    """Compute the missing parts; yields the facts of each part as it is written."""
    if not missing:
        return
    workers = crew.pool(len(missing))
    if workers is None:
        for start, part in missing.items():
            _write_part(crew.engine, part, _part(folder, start), protocol, meter.tell)
            yield len(part)
        return
    pool, tally = workers
    meter.follow(tally)
    calls = ((list(part), str(_part(folder, start)), protocol) for start, part in missing.items())
    yield from results(pool, _worker_part, calls, ahead=2 * crew.workers, meanwhile=meter.look, every=LOOK)


def _worker_part(facts: list[Fact], path: str, protocol: Protocol) -> int:
    engine, tally = of_worker()
    _write_part(engine, facts, Path(path), protocol, tally.add)
    return len(facts)


def _write_part(
    engine: LoadedModel | Engine,
    facts: Sequence[Fact],
    path: Path,
    protocol: Protocol,
    tell: Callable[[int, int], None],
) -> None:
    if isinstance(engine, LoadedModel) and engine.weight_bytes > LIGHT:
        give_back()  # what the caches of the part before have left, in pieces that the next do not fit into
    record = measure_mastery(engine, facts, protocol, progress=tell)
    record.write(path, {"positions": record.positions})


def _merge(parts: Sequence[Path], output: Path, about: Mapping[str, Any], order: Sequence[str] | None) -> None:
    """Write the parts as one record beside ``output`` and rename: as they are, a bounded number of rows at a time, or
    with their facts in an order."""
    positions = sum(count_in(part, read_about(part, "mastery"), "positions") for part in parts)
    told = json.dumps({**about, "positions": positions}, sort_keys=True)
    schema = MASTERY_BY_ESTIMATE[{**UNSAID, **about}["estimate"]].with_metadata({"knowshift": told})
    with file_beside(output) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        held: list[pa.Table] = []
        for table in _tables(parts, order):
            held.append(table.replace_schema_metadata(schema.metadata))
            if sum(table.num_rows for table in held) >= ROWS_OF_A_GROUP:
                writer.write_table(pa.concat_tables(held).combine_chunks())
                held = []
        if held:
            writer.write_table(pa.concat_tables(held).combine_chunks())


def _tables(parts: Sequence[Path], order: Sequence[str] | None) -> Iterator[pa.Table]:
    tables = (read_table(part, MASTERY, "mastery")[0].replace_schema_metadata(None) for part in parts)
    if order is None:
        yield from tables
        return
    together = pa.concat_tables(tables)
    row = {name: at for at, name in enumerate(together["fact"].to_pylist())}
    yield together.take([row[name] for name in order])


def _outcome(output: Path) -> Outcome:
    table = read_columns(output, ["level", "draws"])
    levels = table["level"].to_pylist()
    counts = [levels.count(level) for level in range(LEVELS)]
    draws = sum(table["draws"].to_pylist())
    positions = count_in(output, read_about(output, "mastery"), "positions")
    return Outcome(len(levels), counts, draws, positions)
