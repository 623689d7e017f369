"""`knowshift world build|describe`: pocket worlds whose every fact and number of exposures are known."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.cli.output import JsonOption, PathOption, SeedOption, console, emit, lines_for_a_log
from knowshift.errors import InputError
from knowshift.system.progress import Count, count

if TYPE_CHECKING:
    from knowshift.world.build import Progress
    from knowshift.world.invent import ExposureBand, Repetition


def register(app: typer.Typer) -> None:
    world = typer.Typer(
        help="Build or describe a world of known facts with its pre-trained base model.", no_args_is_help=True
    )
    world.command()(build)
    world.command()(describe)
    world.command()(levels)
    app.add_typer(world, name="world")


def build(
    output_dir: Annotated[Path, PathOption(help="New folder for the world.")],
    facts: Annotated[
        str | None, typer.Option(help="Real facts, e.g. entity-questions:PATH; invented where not given.")
    ] = None,
    train_facts: Annotated[int, typer.Option(min=1, help="Training facts of each in-domain relation.")] = 2100,
    test_facts: Annotated[int, typer.Option(min=1, help="Test facts of each in-domain relation.")] = 200,
    out_of_domain_facts: Annotated[int, typer.Option(min=1, help="Test facts of each out-of-domain relation.")] = 150,
    band: Annotated[
        list[str] | None,
        typer.Option(help="SHARE:LOW-HIGH, a share of the facts and how often they are written; once for each band."),
    ] = None,
    repetition: Annotated[
        str | None,
        typer.Option(
            help="LOW-HIGH:LEAST-MOST, or none: facts written LOW to HIGH times are written LEAST to MOST times more, "
            "in a second corpus."
        ),
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=300, max=65535, help="Tokens of the BPE vocabulary.")] = 4096,
    hidden: Annotated[int, typer.Option(min=32, help="Hidden size; a multiple of 32.")] = 160,
    layers: Annotated[int, typer.Option(min=1)] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Rows of 96 tokens in one step.")] = 24,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=1.0)] = 2e-3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    seed: SeedOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Draw exposures, write the corpus, train the tokenizer and pre-train the base model in one pass."""
    import torch

    import knowshift
    from knowshift.files import check_parent
    from knowshift.models.loading import torch_device
    from knowshift.world.build import build_world, continue_world, sample_facts, without_exposures
    from knowshift.world.invent import DEFAULT_BANDS, DEFAULT_REPETITION, invent_facts
    from knowshift.world.pretrain import Recipe

    if output_dir.exists():
        raise InputError(f"{output_dir}: exists already; a world is written to a new folder")
    check_parent(output_dir)
    place = torch_device(device)
    if hidden % 32:
        raise InputError(f"--hidden {hidden}: expected a multiple of 32 (heads of 32)")
    sizes = {
        "train_per_relation": train_facts,
        "test_per_relation": test_facts,
        "out_of_domain_per_relation": out_of_domain_facts,
    }
    if facts is None:
        chosen, origin, longest = invent_facts(seed, **sizes), "invented", 4
    else:
        source = knowshift.load_facts(facts)
        # Only the name is recorded: the content does not depend on where the file lay.
        origin, longest = f"{facts.split(':')[0]} (facts {source.digest()})", None
        chosen = without_exposures(sample_facts(source.facts, seed, **sizes))
    bands = DEFAULT_BANDS if not band else tuple(_band(text) for text in band)
    # With --band, the default repetition is off; only --repetition sets one.
    second = _repetition(repetition) if repetition else None if band else DEFAULT_REPETITION
    torch.set_num_threads(threads)
    recipe = replace(
        Recipe(),
        vocabulary=vocabulary,
        hidden=hidden,
        feed_forward=hidden * 14 // 5,
        layers=layers,
        heads=hidden // 32,
        batch=batch,
        learning_rate=learning_rate,
    )
    with tempfile.TemporaryDirectory(prefix="knowshift-world-") as scratch:
        first = output_dir if second is None else Path(scratch) / "first"
        with _steps("pre-training") as tell:
            record = build_world(
                first,
                chosen,
                seed=seed,
                recipe=recipe,
                origin=origin,
                bands=bands,
                longest_name=longest,
                device=str(place),
                progress=tell,
            )
        if second is not None:
            with _steps("second corpus") as tell:
                record = continue_world(
                    first, output_dir, second, recipe=recipe, seed=seed, device=str(place), progress=tell
                )
    console.print(
        f"{record['facts']} facts in {record['sentences']} sentences, {record['weights']:,} weights, "
        f"loss {record['pretraining']['final_loss']:.3f}; wrote {output_dir}",
    )
    emit({**record, "output": str(output_dir)}, as_json)


@contextmanager
def _steps(what: str) -> Iterator[Progress]:
    """Tells the steps of a pre-training, whose number is known with the first of them."""
    with ExitStack() as stack:
        counts: list[Count] = []

        def tell(step: int, steps: int, loss: float) -> None:
            if not counts:
                counts.append(stack.enter_context(count(what, steps, "step", lines_for_a_log())))
                counts[0](0)
            counts[0](step, f"loss {loss:.3f}")

        yield tell


def _record(world: str) -> dict[str, Any]:
    """The record of how a world was made."""
    from knowshift.models.finding import model_folder
    from knowshift.world.record import read_world_record

    if not world.startswith("world:"):
        raise InputError(f"{world}: expected world:tiny or world:PATH")
    return read_world_record(model_folder(world))


def _band(text: str) -> ExposureBand:
    from knowshift.world.invent import ExposureBand

    found = re.fullmatch(r"(0?\.\d+|0|1|1\.0):(\d+)-(\d+)", text)
    if found is None:
        raise InputError(f"--band {text!r}: expected SHARE:LOW-HIGH, e.g. 0.7:9-36")
    return ExposureBand(float(found[1]), int(found[2]), int(found[3]))


def _repetition(text: str) -> Repetition | None:
    from knowshift.world.invent import Repetition

    if text == "none":
        return None
    found = re.fullmatch(r"(\d+)-(\d+):(\d+)-(\d+)", text)
    if found is None:
        raise InputError(f"--repetition {text!r}: expected LOW-HIGH:LEAST-MOST or none, e.g. 22-44:3-14")
    return Repetition(*(int(number) for number in found.groups()))


def describe(
    world: Annotated[str, typer.Argument(help="world:tiny or world:PATH.")] = "world:tiny",
    as_json: JsonOption = False,
) -> None:
    """How a world was made, and the distribution of its facts and exposures."""
    from collections import Counter

    import knowshift

    record = _record(world)
    facts = knowshift.load_facts(world).facts
    groups = Counter(f"{fact.split} {fact.domain}" for fact in facts)
    spread = Counter(_bin(fact.exposures or 0) for fact in facts)
    for key, value in record.items():
        console.print(f"{key}: {value}")
    for name, members in groups.items():
        console.print(f"{name}: {members} facts")
    console.print("written: " + ", ".join(f"{name} {spread[name]}" for name in _BINS))
    emit({**record, "groups": dict(groups), "exposures": {name: spread[name] for name in _BINS}}, as_json)


def levels(
    world: Annotated[str, typer.Argument(help="world:PATH, a world that was built.")],
    output: Annotated[Path, PathOption(help="Mastery record to write or to resume (Parquet).")],
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure the mastery level of every fact of a world, and keep the counts of each level in its record."""
    from collections import Counter

    import knowshift
    from knowshift.files import write_json
    from knowshift.models.finding import model_folder
    from knowshift.world.record import RECORD

    record, draws = _record(world), 10
    done = knowshift.mastery(world, world, output=output, draws=draws, stopping="exact", workers=workers, seed=seed)
    rows = done.table.select(["split", "domain", "level"]).to_pylist()
    counts = Counter((f"{row['split']} {row['domain']}", row["level"]) for row in rows)
    found = {group: [counts[group, level] for level in range(5)] for group in sorted({group for group, _ in counts})}
    record["levels"] = {**found, "seed": seed, "draws_per_prompt": draws}
    write_json(model_folder(world) / RECORD, record)
    for group, those in found.items():
        console.print(f"{group}: levels 0..4 {those}")
    emit({"levels": found, "output": str(output)}, as_json)


_BINS = ("never", "1-4", "5-12", "13-26", "27-100", "over 100")


def _bin(exposures: int) -> str:
    for name, most in zip(_BINS, (0, 4, 12, 26, 100), strict=False):
        if exposures <= most:
            return name
    return _BINS[-1]
