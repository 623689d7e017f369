"""`knowshift weights` and `knowshift restore`: compare two checkpoints, and put part of the change back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.allocator import steady_heap
from knowshift.cli.output import BaseRevisionOption, JsonOption, PathOption, SeedOption, console, emit
from knowshift.errors import InputError
from knowshift.files import expanded

if TYPE_CHECKING:
    from rich.progress import Progress

    from knowshift.parameters.change import WeightChange

BaseArgument = Annotated[str, typer.Argument(help="Before fine-tuning: a local folder, a hub id, or world:tiny.")]
TunedArgument = Annotated[str, typer.Argument(help="After it: a local folder, a hub id, or an adapter's (PEFT).")]
RegionOption = Annotated[str, typer.Option(help="layers, attention, mlp, embeddings, norms or all.")]
LayersOption = Annotated[
    str | None, typer.Option("--layers", help="Only these transformer layers, first to last: 0-3, or 5.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; one a core where not given.")]
NonfiniteOption = Annotated[bool, typer.Option("--allow-nonfinite", help="Accept weights that are NaN or infinite.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of TUNED on the hub.")]


def register(app: typer.Typer) -> None:
    app.command(name="weights")(weights)
    app.command(name="restore")(restore)


def weights(
    base: BaseArgument,
    tuned: TunedArgument,
    region: RegionOption = "layers",
    layers: LayersOption = None,
    fraction: Annotated[
        list[str] | None, typer.Option(help="Top fractions to tabulate; the paper's seven where not given.")
    ] = None,
    figure: Annotated[Path | None, PathOption(help="Write the figure here, as SVG.")] = None,
    output: Annotated[Path | None, PathOption(help="Write one row a tensor here, as Parquet.")] = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    allow_nonfinite: NonfiniteOption = False,
    revision: RevisionOption = None,
    base_revision: BaseRevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """How much two checkpoints differ and where: concentration beside its no-signal null, by layer and by module."""
    _one_core_each()
    from knowshift.parameters.change import measure_pair
    from knowshift.parameters.files.pair import open_pair, refuse_not_finite
    from knowshift.parameters.files.restored import identity
    from knowshift.parameters.selection.criteria import NotFinite
    from knowshift.parameters.selection.select import FRACTIONS, exact_count

    steady_heap()
    fractions = list(_fractions(fraction).values()) if fraction else list(FRACTIONS)
    for one in fractions:
        exact_count(one, 0)
    base_folder, tuned_folder = _folder(base, base_revision), _folder(tuned, revision)
    _check_files([path for path in (figure, output) if path is not None], [base_folder, tuned_folder])
    pair = open_pair(
        base_folder,
        tuned_folder,
        region,
        layers=_layers(layers),
        allow_nonfinite=allow_nonfinite,
    )
    with _progress() as progress:
        task = progress.add_task("reading weights", total=3 * sum(pair.weights.sizes))
        try:
            change = measure_pair(
                pair.weights,
                pair.places,
                fractions,
                seed,
                region=region,
                threads=threads,
                progress=lambda done: progress.advance(task, done),
            )
        except NotFinite:
            refuse_not_finite(pair.weights, base, tuned)
    _print_change(change, base, tuned)
    result: dict[str, Any] = {**change.to_json(), "base": base, "tuned": tuned}
    if output is not None:
        from knowshift.parameters.record import write_record

        write_record(output, change, identity(pair))
        result["output"] = str(output)
        console.print(f"one row a tensor: {output}")
    if figure is not None:
        from knowshift.parameters.figure import write_figure

        write_figure(figure, change)
        result["figure"] = str(figure)
        console.print(f"figure: {figure}")
    emit(result, as_json)


def restore(
    base: BaseArgument,
    tuned: TunedArgument,
    output_dir: Annotated[Path, PathOption(help="New folder; with several fractions, one folder in it for each.")],
    fraction: Annotated[
        list[str] | None, typer.Option(help="Share of the region's weights to put back, 0 to 1; may be repeated.")
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="relative (the paper), absolute, random, least, magnitude, authors, same-norm; "
            "interpolate, dare, ties, breadcrumbs, fapm, lines, dg-hard."
        ),
    ] = "relative",
    region: RegionOption = "layers",
    layers: LayersOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    allow_nonfinite: NonfiniteOption = False,
    revision: RevisionOption = None,
    base_revision: BaseRevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the tuned checkpoint with part of its change undone; transformers loads the result as it is."""
    _one_core_each()
    from knowshift.parameters.files.restored import restore_checkpoints

    steady_heap()
    base_folder, tuned_folder = _folder(base, base_revision), _folder(tuned, revision)
    with _progress() as progress:
        selecting = progress.add_task("ranking weights", total=None)
        writing = progress.add_task("writing (MB)", total=None)
        done = restore_checkpoints(
            base_folder,
            tuned_folder,
            output_dir,
            _fractions(fraction) if fraction else _whole(criterion, layers),
            criterion=criterion,
            region=region,
            layers=_layers(layers),
            seed=seed,
            allow_nonfinite=allow_nonfinite,
            threads=threads,
            about={"base_name": base, "tuned_name": tuned, "revision": revision, "base_revision": base_revision},
            selecting=lambda count: progress.advance(selecting, count),
            writing=lambda size: progress.advance(writing, size / 1e6),
        )
    for name, folder in done.output.items():
        console.print(f"{done.restored[name]:,} of {done.eligible:,} weights put back ({name}): {folder}")
    emit(
        {
            "restored": done.restored,
            "eligible": done.eligible,
            "threshold": done.threshold,
            "output": {name: str(folder) for name, folder in done.output.items()},
            "criterion": criterion,
            "region": region,
            "seed": seed,
        },
        as_json,
    )


def _one_core_each() -> None:
    """Said before numpy is imported: every thread of ours has matrices of its own, which need no threads in turn."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _folder(name: str, revision: str | None) -> Path:
    """A local folder as it is; anything else is looked up (hub ids, world:tiny), which needs heavier imports."""
    path = expanded(name)
    if path.is_dir():
        return path
    from knowshift.models.finding import model_folder

    return model_folder(name, revision=revision)


def _check_files(files: list[Path], inputs: list[Path]) -> None:
    """Refuse, before anything is read, files that could not be written or would lie among the inputs."""
    from knowshift.files import check_output_file

    for path in files:
        if any(folder.resolve() in path.resolve().parents for folder in inputs):
            raise InputError(f"{path}: lies in one of the inputs; expected a file elsewhere")
        try:
            check_output_file(path)
        except PermissionError as error:  # not even its folder may be looked at
            raise InputError(f"{path}: {error.strerror}") from None
    if len({path.resolve() for path in files}) < len(files):
        raise InputError(f"{files[0]}: asked for as --figure and as --output; expected two files")


def _whole(criterion: str, layers: str | None) -> dict[str, float]:
    """What is restored where no fraction is given: all of it, where that can be meant."""
    if criterion == "dg-hard":
        return {criterion: 1.0}
    if layers is not None:
        return {"1": 1.0}
    raise InputError("--fraction is missing: expected a number from 0 to 1 (or --layers, to put whole layers back)")


def _fractions(given: list[str]) -> dict[str, float]:
    """The fractions by the name that each was given by."""
    fractions: dict[str, float] = {}
    for text in given:
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"--fraction {text!r}: expected a number from 0 to 1") from None
        if value in fractions.values():
            raise InputError(f"--fraction {text}: given twice")
        fractions[text.strip()] = value
    return fractions


def _layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if found is None:
        raise InputError(f"--layers {text!r}: expected a layer or a range such as 0-3")
    return int(found[1]), int(found[2] or found[1])


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # elsewhere it would leave an empty line before a refusal
    )


def _print_change(change: WeightChange, base: str, tuned: str) -> None:
    from rich.table import Table

    console.print(
        f"{tuned} against {base}: {change.changed_share:.2%} of the {change.eligible:,} weights "
        f"of region {change.region!r} changed",
    )
    if change.rounding is not None:
        console.print(change.rounding.told(base, tuned, change.eligible))
    table = Table(title="Share of the summed change in the top weights, % (null: own |p| with own |change| at random)")
    table.add_column("top")
    for name in change.concentration:
        table.add_column(name, justify="right")
        table.add_column("null", justify="right")
    for fraction in change.concentration["relative"]:
        row = [f"{float(fraction):.4g}"]
        for name in change.concentration:
            row += [_percent(change.concentration[name][fraction]), _percent(change.null[name][fraction])]
        table.add_row(*row)
    console.print(table)
    for title, held, chance in (
        ("layer", change.layers, change.layer_weights),
        ("module", change.modules, change.module_weights),
    ):
        table = Table(title=f"The top 20% by relative change, by {title}, %")
        table.add_column(title)
        table.add_column("share", justify="right")
        table.add_column("share of weights", justify="right")
        for name, share in held.items():
            table.add_row(name, _percent(share), _percent(chance[name]))
        console.print(table)
    table = Table(title="Tensors changed most, by the root mean square of their changes")
    for column in ("tensor", "changed", "rms change"):
        table.add_column(column, justify="left" if column == "tensor" else "right")
    for tensor in change.largest():
        table.add_row(tensor.name, _percent(tensor.changed / tensor.size if tensor.size else None), f"{tensor.rms:.3g}")
    console.print(table)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
