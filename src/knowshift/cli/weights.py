"""`knowshift weights` and `knowshift restore`: compare two checkpoints, and put part of the change back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knowshift.cli.output import BaseRevisionOption, JsonOption, PathOption, SeedOption, console, emit

if TYPE_CHECKING:
    from knowshift.parameters.change import WeightChange

BaseArgument = Annotated[str, typer.Argument(help="Before fine-tuning: a local folder, a hub id, or world:tiny.")]
TunedArgument = Annotated[
    str, typer.Argument(help="After fine-tuning: a local folder, a hub id, or an adapter (PEFT).")
]
RegionOption = Annotated[str, typer.Option(help="layers, attention, mlp, embeddings, norms or all.")]
LayersOption = Annotated[
    str | None, typer.Option("--layers", help="Only these transformer layers, first to last: 0-3, or 5.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core where not given.")]
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
    output: Annotated[Path | None, PathOption(help="Write one row per tensor here, as Parquet.")] = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    allow_nonfinite: NonfiniteOption = False,
    revision: RevisionOption = None,
    base_revision: BaseRevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """How much two checkpoints differ and where: concentration beside its no-signal null, by layer and by module."""
    import knowshift

    found = knowshift.weights(
        base,
        tuned,
        region=region,
        layers=layers,
        fraction=fraction or None,
        figure=figure,
        output=output,
        seed=seed,
        threads=threads,
        allow_nonfinite=allow_nonfinite,
        revision=revision,
        base_revision=base_revision,
    )
    _print_change(found.change, base, tuned)
    result: dict[str, Any] = {**found.change.to_json(), "base": base, "tuned": tuned}
    if output is not None:
        result["output"] = str(output)
        console.print(f"one row per tensor: {output}", soft_wrap=True)
    if figure is not None:
        result["figure"] = str(figure)
        console.print(f"figure: {figure}", soft_wrap=True)
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
    as_adapter: Annotated[
        bool,
        typer.Option(
            "--as-adapter", help="Of an adapter, by interpolate or lines: write an adapter with scaled weights."
        ),
    ] = False,
    revision: RevisionOption = None,
    base_revision: BaseRevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the tuned checkpoint with part of its change undone; transformers loads the result as it is."""
    import knowshift

    done = knowshift.restore(
        base,
        tuned,
        output_dir=output_dir,
        fraction=fraction or None,
        criterion=criterion,
        region=region,
        layers=layers,
        seed=seed,
        threads=threads,
        allow_nonfinite=allow_nonfinite,
        as_adapter=as_adapter,
        revision=revision,
        base_revision=base_revision,
    )
    for name, folder in done.output.items():
        what = f"{done.restored[name]:,} of {done.eligible:,} weights put back"
        console.print(f"{'an adapter, scaled' if as_adapter else what} ({name}): {folder}")
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


def _print_change(change: WeightChange, base: str, tuned: str) -> None:
    from rich.table import Table

    console.print(
        f"{tuned} against {base}: {change.changed_share:.2%} of the {change.eligible:,} weights "
        f"of region {change.region!r} changed",
    )
    if change.rounding is not None:
        console.print(change.rounding.sentence(base, tuned, change.eligible))
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
    for title, held, null, chance in (
        ("layer", change.layers, change.null_layers, change.layer_weights),
        ("module", change.modules, change.null_modules, change.module_weights),
    ):
        table = Table(title=f"The top 20% by relative change, by {title}, %")
        table.add_column(title)
        for column in ("share", "null", "share of weights"):
            table.add_column(column, justify="right")
        for name, share in held.items():
            table.add_row(name, _percent(share), _percent(null[name]), _percent(chance[name]))
        console.print(table)
    table = Table(title="Tensors changed most, by the root mean square of their changes")
    for column in ("tensor", "changed", "rms change"):
        table.add_column(column, justify="left" if column == "tensor" else "right")
    for tensor in change.largest():
        table.add_row(tensor.name, _percent(tensor.changed / tensor.size if tensor.size else None), f"{tensor.rms:.3g}")
    console.print(table)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
