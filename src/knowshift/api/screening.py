"""A first look at many facts: which of them to measure, so that all mastery levels are among them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from knowshift.api.inputs import FactsLike, ModelLike, load_facts, load_model
from knowshift.errors import InputError, check_whole
from knowshift.facts.fact import Fact
from knowshift.files import check_output_file
from knowshift.system.progress import Shown, count

#: The largest value of a number.
_MOST = {"times": 1e6, "likely": 1.0}


@dataclass(frozen=True)
class Screening:
    """Facts that were kept by a look, which ``load_facts(output)`` and every ``facts`` take."""

    facts: tuple[Fact, ...]
    promises: Mapping[str, float]  # by id, of every fact looked at: about the probability of an answer
    likely: int  # of the facts kept, those that promise 0.01 and more
    output: Path | None
    seconds: float


def screen(
    model: ModelLike,
    facts: FactsLike,
    *,
    train_facts: int,
    test_facts: int,
    output: str | Path | None = None,
    times: float = 5.0,
    likely: float = 2 / 3,
    seed: int = 0,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Shown = None,
) -> Screening:
    """Choose facts of which a model may know many, for a study of a model that knows few.

    Three prompts of each fact are read, and no text is made (docs/facts.md). Of each pool, the training facts and the
    test facts of each domain, a seeded sample balanced over relations is looked at.

    Args:
        model: as in :func:`knowshift.load_model`; no server.
        train_facts: how many training facts are kept.
        test_facts: how many test facts of each domain are kept.
        output: a Parquet table of the facts kept, in the order of ``facts``, with what each promised.
        times: how many times as many are looked at.
        likely: share of the kept that promise most, a fraction of 1; the others are drawn at random from the rest, so
            that unknown facts are not only those that look known.
        dtype: as in :func:`knowshift.mastery`.

    Raises:
        InputError: bad input of any kind, and facts without completion prompts. Nothing is written then.
    """
    began = time.monotonic()
    from knowshift.facts.sources.tables import write_facts
    from knowshift.models.dtypes import fitting_dtype
    from knowshift.models.finding import find_model
    from knowshift.models.loading import torch_device
    from knowshift.probing.budget.screening import LIKELY, Share, few_prompts, promised
    from knowshift.probing.engines import is_server

    check_whole("train_facts", train_facts, 0)
    check_whole("test_facts", test_facts, 0)
    for name, value, least in (("times", times, 1.0), ("likely", likely, 0.0)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= _MOST[name]:
            raise InputError(f"{name} {repr(value)[:80]}: expected a number from {least:g} to {_MOST[name]:g}")
    if train_facts + test_facts == 0:
        raise InputError("train_facts 0 and test_facts 0: expected facts to keep of either")
    if isinstance(model, (str, Path)) and is_server(str(model)):
        raise InputError(f"{str(model)[:200]}: a server, whose probabilities are not read here; expected a model")
    source = load_facts(facts)
    kept_in = None if output is None else Path(output)
    if kept_in is not None:
        _check_output(kept_in, facts)
    share = Share(train_facts, test_facts, times, likely)
    looked_at = share.looked_at(source.facts, seed)
    if not looked_at:
        raise InputError(f"{source.name}: none of its facts is of a set that is asked for; expected facts to look at")
    asked = list(few_prompts(looked_at, seed))
    if dtype is None and isinstance(model, (str, Path)):
        files = find_model(str(model), revision=revision, base=base, base_revision=base_revision)
        dtype = fitting_dtype(files, torch_device(device))
    loaded = load_model(
        model,
        revision=revision,
        base=base,
        base_revision=base_revision,
        device=device,
        **({} if dtype is None else {"dtype": dtype}),
    )
    with count("screening", len(asked), "fact", progress) as tell:

        def told(done: int) -> bool:
            tell(done)
            return True

        promises = promised(loaded, asked, told)
    kept = tuple(share.kept(promises, source.facts, seed))
    if kept_in is not None:
        about = {"source": source.name, "model": loaded.about(), "seed": seed, "looked_at": len(asked)}
        _check_read_back(source.name, kept)
        write_facts(kept_in, kept, promises, {**about, "times": times, "likely": likely})
    promising = sum(promises[fact.id] >= LIKELY for fact in kept)
    return Screening(kept, promises, promising, kept_in, time.monotonic() - began)


def _check_read_back(source: str, facts: Sequence[Fact]) -> None:
    """Refuse facts that a table would give otherwise, such as a question with a slot in it."""
    from knowshift.facts.sources.tables import read_table_facts, write_facts

    expected = [replace(fact, aliases=tuple(dict.fromkeys(fact.accepted))[1:]) for fact in facts]  # each answer once
    with tempfile.TemporaryDirectory(prefix="knowshift-screen-") as scratch:
        table = Path(scratch) / "facts.parquet"
        write_facts(table, facts)
        try:
            found = read_table_facts(table)
        except InputError as error:
            raise InputError(f"{source}: a fact cannot stand in a table ({str(error).partition(': ')[2]})") from None
    other = next((one.id for one, read in zip(expected, found, strict=True) if one != read), None)
    if other is not None:
        raise InputError(f"{source}: fact {other!r} would be read otherwise from a table; expected no blanks at ends")


def _check_output(output: Path, facts: FactsLike) -> None:
    """Refuse what is no table to write, and the table that the facts come from."""
    if output.suffix.lower() != ".parquet":
        raise InputError(f"{output}: expected a file that ends with .parquet")
    check_output_file(output)
    if isinstance(facts, (str, Path)) and output.exists() and Path(facts).exists() and output.samefile(facts):
        raise InputError(f"{output}: holds the facts that are looked at; expected another file")
