"""The three measures: mastery of facts, answers of a model, token shift between two."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from knowshift.api.inputs import FactsLike, MasteryLike, ModelLike, load_facts, load_model, with_mastery
from knowshift.errors import InputError, check_whole
from knowshift.facts.sources.load import limited
from knowshift.files import check_output_file, check_parent
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT, as_table, estimate_of, read_table
from knowshift.system.progress import Count, Shown, count, say

if TYPE_CHECKING:
    import pandas as pd

#: Said before and while the pace of a budget is measured.
PACING = "measuring the pace: {:,} facts so far"


@dataclass(frozen=True)
class Record:
    """A record: one row a fact, and the file that holds it (None where it was not written)."""

    table: pa.Table
    output: Path | None

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a DataFrame."""
        return self.table.to_pandas()


@dataclass(frozen=True)
class Mastery(Record):
    """How well a model knows each fact: columns as in docs/records.md, levels 0 to 4 from hits / draws (paper 2.3)."""

    levels: list[int]  # facts of each level [n0..n4]
    draws: int  # draws made; with expected hits, texts
    positions: int  # token positions computed
    seconds: float
    resumed: int = 0  # facts that were recorded before this call
    more: dict[str, Any] = field(default_factory=dict)  # of budget, compare, certainty and prompts, where asked for


@dataclass(frozen=True)
class Evaluation(Record):
    """Closed-book answers: raw texts and both grades."""

    #: By domain: ``levels`` [a0..a4], their ``mean`` (the paper's headline), ``counts`` [n0..n4]; fractions of 1.
    accuracy: dict[str, dict[str, Any]]
    empty_rate: float | None  # share of the answers that hold no text


@dataclass(frozen=True)
class Shift(Record):
    """KL(tuned || base) on the first answer token of level-4 test facts, in nats (paper 4.1)."""

    kl_mean: float | None  # over the facts that have one
    facts: int  # that have one
    level_4_facts: int


def mastery(
    model: ModelLike | None,
    facts: FactsLike,
    *,
    server: str | Sequence[str] = (),
    output: str | Path | None = None,
    limit: int | None = None,
    budget: str | float | None = None,
    draws: int = 10,
    temperature: float = 0.7,
    max_new_tokens: int = 32,
    stopping: str = "full",
    error: float = 0.2,
    estimate: str = "hits",
    texts: int | None = None,
    least_weight: float | None = None,
    grading: str = "substring",
    compare: str | Path | None = None,
    certainty: str | Path | None = None,
    prompts: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Shown = None,
) -> Mastery:
    """Sample the completion prompts of every fact; count the draws that hold an accepted answer (paper 2.3).

    Args:
        model: as in :func:`knowshift.load_model`, or the URL of a completions server (docs/servers.md).
        server: URLs of servers with one model, which share the work with that of ``model``, or do it alone where
            ``model`` is None.
        output: where the record is kept. Parts of it are written as they come, and the same call goes on where an
            earlier one stopped. None keeps nothing but what is returned.
        limit: measure the first so many facts of a seeded shuffle.
        budget: the time that the call may take, start included: seconds, or a text such as "90s", "10m" or "1h30m". As
            many facts are measured as fit, a seeded sample balanced over relations; ``more["budget"]`` says how many,
            and what they can tell (docs/mastery.md). A call that goes on keeps the facts that were chosen first.
        draws: of each prompt (paper: 10).
        stopping: "full": every draw (paper); "exact": the same levels with fewer; "sequential": fewer still.
        error: what "sequential" may err.
        estimate: "hits" counts draws (paper); "expected" takes the model's probability of an answer along few texts.
        texts: of each prompt, for "expected": how many "full" makes, or "sequential" makes at most. Without it, "full"
            makes two, and up to 10 where they differ; "sequential" makes at most 10.
        least_weight: of a text, for "expected"; 0.1 where not given. One that falls below it goes on with a
            probability, and then has this weight, so that R stays unbiased. With 2 half of the texts or more end at
            the prompt: where a model answers at once or never this saves a quarter of the positions; elsewhere it costs
            precision, as the variances in the record tell.
        grading: what a hit is: "substring" (paper), or "word", at word boundaries.
        compare: another record of these facts: ``more["agreement"]`` says how far levels agree.
        certainty: also write intervals and level probabilities to this file.
        prompts: also write prompts.csv and prompts.svg to this folder.
        workers: processes; where not given, one a core or a GPU. A loaded model is used in this process.
        dtype: "float32", "bfloat16", "float16", "auto" for the stored one, or None for the stored one where this
            device is fast in it and float32 elsewhere. The record says which it was.
        progress: whether a bar is shown; None shows one in a terminal and in a notebook. A function is given lines for
            a log: one after five seconds, then one every half minute.

    Raises:
        InputError: bad input of any kind; nothing that was recorded is lost.
    """
    began = time.monotonic()
    from knowshift.probing.budget.plan import Budget, Plan, seconds_of
    from knowshift.probing.engines import EngineSpec
    from knowshift.probing.measure import Protocol
    from knowshift.probing.run import run_mastery

    given = None if budget is None else Budget(seconds_of(budget), began)
    if workers is not None:
        check_whole("workers", workers, 1)
    servers = _servers(model, server)
    asked = limited(load_facts(facts).facts, limit, seed)
    protocol = Protocol(
        draws, temperature, max_new_tokens, seed, grading, stopping, error, estimate, texts, least_weight
    )
    _check_extras(compare, estimate, certainty, prompts)
    if servers:
        spec = EngineSpec(servers[0], servers=servers[1:])
    elif isinstance(model, (str, Path)):
        spec = EngineSpec(str(model), revision, dtype, base=base, base_revision=base_revision)
    else:
        loaded = load_model(cast(ModelLike, model), revision=revision, base=base, base_revision=base_revision)
        spec = EngineSpec(loaded.name, dtype=loaded.dtype, devices=(loaded.device,), loaded=loaded)
    spec, processes = spec.placed(device, workers, len(asked))
    if given is None:
        began = time.monotonic()
    resumed: list[int] = []
    plans: list[Plan] = []
    paced = 0
    with _kept(output) as path, ExitStack() as stack:
        started, counted = began, cast("Count | None", None)

        def pacing(measured: int) -> None:
            nonlocal paced
            paced = measured
            say(PACING.format(measured), progress)

        def tell(done: int, total: int, positions: int) -> None:
            nonlocal started, counted
            now = time.monotonic()
            if counted is None:
                if plans:  # and not before: a run may be refused
                    say(plans[0].line(), progress)
                counted = stack.enter_context(count("mastery", total, "fact", progress))
                resumed.append(done - paced)
                started = now
            counted(done, f"{positions / (now - started):,.0f} positions/s" if positions else "")

        outcome = run_mastery(
            spec,
            asked,
            path,
            protocol,
            workers=processes,
            progress=tell,
            budget=given,
            pacing=pacing,
            planned=plans.append,
        )
        seconds = time.monotonic() - began
        table, _ = read_table(path, MASTERY, "mastery")
        more = _extras(path, compare, certainty, prompts)
    if plans:
        more["budget"] = plans[0].told()
    kept = None if output is None else path
    return Mastery(table, kept, outcome.levels, outcome.draws, outcome.positions, seconds, resumed[0], more)


def _servers(model: ModelLike | None, server: str | Sequence[str]) -> tuple[str, ...]:
    """URLs of several servers; none where ``model`` stands alone."""
    from knowshift.probing.engines import is_server

    named = (server,) if isinstance(server, str) else tuple(server)
    if not named:
        if model is None:
            raise InputError("no model: expected MODEL, or --server with the URL of a server")
        return ()
    urls = named if model is None else (model, *named)
    for url in urls:
        if not isinstance(url, str) or not is_server(url):
            what = repr(url) if isinstance(url, (str, Path)) else f"a model of type {type(url).__name__}"
            raise InputError(f"{what[:200]} among servers: expected http://host:port or https://host")
    return cast("tuple[str, ...]", urls)


@contextmanager
def _kept(output: str | Path | None) -> Iterator[Path]:
    """Where the record goes: the file asked for, or one that is gone after the block."""
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="knowshift-mastery-") as folder:
        yield Path(folder) / "mastery.parquet"


def _check_extras(
    compare: str | Path | None, estimate: str, certainty: str | Path | None, prompts: str | Path | None
) -> None:
    """Refuse what could not be read or written at the end, before the work."""
    if compare is not None:
        held = estimate_of(read_table(Path(compare), MASTERY, "mastery")[0].column_names)
        if held != estimate:
            raise InputError(f"{compare}: holds {held!r}, asked is {estimate!r}; expected records of one --estimate")
    if certainty is not None:
        check_output_file(Path(certainty))
    if prompts is not None:
        check_parent(Path(prompts) / "prompts.csv")
        if Path(prompts).is_file():
            raise InputError(f"{prompts}: is a file; expected a folder")


def _extras(
    record: Path, compare: str | Path | None, certainty: str | Path | None, prompts: str | Path | None
) -> dict[str, Any]:
    """What is asked for beside the record, made from the record."""
    more: dict[str, Any] = {}
    if compare is not None:
        from knowshift.probing.agreement import agreement_of

        found = agreement_of(Path(compare), record)
        more["agreement"] = {"facts": found.facts, "same": found.same, "within_one": found.within_one}
        more["agreement"]["kappa"] = None if found.kappa != found.kappa else found.kappa
    if certainty is not None:
        from knowshift.probing.certainty_record import write_certainty

        write_certainty(record, Path(certainty))
        more["certainty"] = str(certainty)
    if prompts is not None:
        from knowshift.probing.prompts import write_prompts

        table, figure = write_prompts(record, Path(prompts))
        more["prompts"] = {"table": str(table), "figure": str(figure)}
    return more


def evaluate(
    model: ModelLike,
    facts: FactsLike,
    mastery: MasteryLike,
    *,
    output: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Evaluation:
    """Closed-book accuracy on test facts, by the base model's mastery level (paper 2.2).

    Args:
        mastery: the *base* model's record; its test facts are asked.
        output: where the answers are written, as Parquet.
        limit: ask the first so many facts of a seeded shuffle.

    Raises:
        InputError: bad input of any kind.
    """
    from knowshift import evaluation

    if output is not None:
        check_output_file(Path(output))
    known, source, record = with_mastery(facts, mastery)
    asked = limited(known.of("test"), limit, seed)
    loaded = load_model(model, revision=revision, dtype=dtype, device=device, base=base, base_revision=base_revision)
    answers = evaluation.evaluate(loaded, asked, known.levels)
    if output is not None:
        about = {"source": source, "mastery": record, "seed": seed, "limit": limit}
        answers.write(Path(output), {**loaded.about(), **about})
    return Evaluation(
        as_table(ANSWERS, answers.columns),
        None if output is None else Path(output),
        evaluation.accuracy_by_level(answers),
        evaluation.empty_rate(answers),
    )


def tokens(
    base: ModelLike,
    tuned: ModelLike,
    facts: FactsLike,
    mastery: MasteryLike,
    *,
    output: str | Path | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Shift:
    """KL between tuned and base on the first answer token of level-4 test facts (paper 4.1).

    Args:
        tuned: after fine-tuning; an adapter is put on ``base``.
        mastery: the base model's record.
        output: where the record is written, as Parquet.
        revision: of ``tuned`` on the hub.

    Raises:
        InputError: bad input of any kind.
    """
    from knowshift import token_shift
    from knowshift.models.finding import model_folder
    from knowshift.parameters.files.adapter import is_adapter

    if output is not None:
        check_output_file(Path(output))
    known, source, record = with_mastery(facts, mastery)
    before = load_model(base, revision=base_revision, dtype=dtype, device=device)
    on_base = isinstance(tuned, (str, Path)) and is_adapter(model_folder(str(tuned), revision=revision))
    if on_base and not isinstance(base, (str, Path)):
        raise InputError(f"{tuned}: an adapter, to be put on a loaded model; give the base's folder or name")
    after = load_model(
        tuned,
        revision=revision,
        dtype=dtype,
        device=device,
        base=str(base) if on_base else None,
        base_revision=base_revision if on_base else None,
    )
    items = token_shift.items_of(before, known, known.of("test"))
    shift = token_shift.token_shift(before, after, items)
    if output is not None:
        about = {"base": before.about(), "tuned": after.about(), "source": source, "mastery": record}
        shift.write(Path(output), about)
    scored = sum(1 for value in shift.columns["kl"] if value is not None)
    kept = None if output is None else Path(output)
    return Shift(as_table(TOKEN_SHIFT, shift.columns), kept, shift.mean, scored, len(items.facts))
