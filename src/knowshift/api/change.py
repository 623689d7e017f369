"""Two sets of weights: how much they differ and where, and part of the difference undone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from knowshift.errors import InputError, check_whole
from knowshift.files import check_output_file, expanded
from knowshift.parameters.regions import Scope
from knowshift.system.allocator import steady_heap
from knowshift.system.progress import bar

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from knowshift.models.loading import LoadedModel
    from knowshift.parameters.change import WeightChange
    from knowshift.parameters.files.restored import Restoration
    from knowshift.parameters.tensors import TensorReader

#: A checkpoint by folder or name, or a loaded model.
WeightsLike = Union[str, Path, "LoadedModel", "torch.nn.Module"]
#: A share of the region's weights, or several; a text ("0.20") is kept as the fraction's name.
Fractions = float | str | Sequence[float | str]
#: First and last transformer layer, both included; or as the option has it: "0-3", "5".
Layers = str | tuple[int, int]


@dataclass(frozen=True)
class WeightComparison:
    """How much two sets of weights differ, beside the no-signal null; and the files that were asked for."""

    change: WeightChange
    output: Path | None
    figure: Path | None

    def to_pandas(self) -> pd.DataFrame:
        """One row per tensor."""
        import pandas as pd

        return pd.DataFrame([vars(tensor) for tensor in self.change.tensors])


def weights(
    base: WeightsLike,
    tuned: WeightsLike,
    *,
    region: str = "layers",
    layers: Layers | None = None,
    fraction: Fractions | None = None,
    figure: str | Path | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    allow_nonfinite: bool = False,
    revision: str | None = None,
    base_revision: str | None = None,
    progress: bool | None = None,
) -> WeightComparison:
    """How much two checkpoints differ and where: concentration beside its no-signal null, by layer and by module.

    Args:
        region: "layers" (paper 4.2), "attention", "mlp", "embeddings", "norms" or "all".
        layers: only these transformer layers.
        fraction: top fractions to tabulate; the paper's seven where not given.
        figure: also write the figure here, as SVG.
        output: also write one row per tensor here, as Parquet.
        seed: of the null's random pairing.
        threads: on the CPU; one per core where not given.
        allow_nonfinite: accept weights that are NaN or infinite.
        revision: of ``tuned`` on the hub.

    Raises:
        InputError: bad input of any kind: what does not match is named with its tensor and file.
    """
    _one_core_each()
    from knowshift.parameters.change import measure_change, measure_pair
    from knowshift.parameters.files.pair import open_pair, refuse_not_finite
    from knowshift.parameters.files.restored import identity
    from knowshift.parameters.selection.criteria import NotFinite
    from knowshift.parameters.selection.select import FRACTIONS, exact_count

    steady_heap()
    fractions = list(FRACTIONS) if fraction is None else list(named_fractions(fraction).values())
    for one in fractions:
        exact_count(one, 0)
    _check_numbers(seed, threads)
    scope = Scope(region, _layers(layers), allow_nonfinite)
    files = [Path(path) for path in (figure, output) if path is not None]
    if isinstance(base, (str, Path)) and isinstance(tuned, (str, Path)):
        base_folder, tuned_folder = _folder(base, base_revision), _folder(tuned, revision)
        _check_files(files, [base_folder, tuned_folder])
        pair = open_pair(base_folder, tuned_folder, scope)
        about: Mapping[str, Any] = identity(pair)
        with bar("reading weights", 3 * sum(pair.weights.sizes), "weight", progress) as advance:
            try:
                change = measure_pair(
                    pair.weights, pair.places, fractions, seed, region=region, threads=threads, progress=advance
                )
            except NotFinite:
                refuse_not_finite(pair.weights, str(base), str(tuned))
    else:
        _check_files(files, [])
        held, before = _module(tuned, revision), _reader(base, base_revision)
        about = {"base": _told(base), "tuned": _told(tuned)}
        with bar("reading weights", None, "weight", progress) as advance:
            change = measure_change(before, held, fractions, seed, scope=scope, threads=threads, progress=advance)
    if output is not None:
        from knowshift.parameters.record import write_record

        write_record(Path(output), change, about)
    if figure is not None:
        from knowshift.parameters.figure import write_figure

        write_figure(Path(figure), change)
    return WeightComparison(change, None if output is None else Path(output), None if figure is None else Path(figure))


def restore(
    base: WeightsLike,
    tuned: WeightsLike,
    *,
    output_dir: str | Path | None = None,
    fraction: Fractions | None = None,
    criterion: str = "relative",
    region: str = "layers",
    layers: Layers | None = None,
    seed: int = 0,
    threads: int | None = None,
    allow_nonfinite: bool = False,
    as_adapter: bool = False,
    revision: str | None = None,
    base_revision: str | None = None,
    progress: bool | None = None,
) -> Restoration:
    """Undo part of a fine-tuning: the weights that a criterion ranks first get their pre-trained values back.

    Checkpoints on disk are restored into new folders, which transformers loads as they are. A *loaded* tuned model is
    restored in place, to one fraction, and no folder is written.

    Args:
        output_dir: new folder; with several fractions, one folder in it for each.
        fraction: share of the region's weights to put back, 0 to 1; or several.
        criterion: "relative" (the paper), "absolute", "random", "least", "magnitude", "authors", "same-norm";
            "interpolate", "dare", "ties", "breadcrumbs", "fapm", "lines", "dg-hard" (docs/weights.md).
        region, layers, threads, allow_nonfinite, revision: as in :func:`weights`.
        seed: of criteria that draw random numbers.
        as_adapter: write an adapter with scaled weights, of a tuned one and by "interpolate" or "lines", instead of a
            whole checkpoint.

    Raises:
        InputError: bad input of any kind; no output is left then.
    """
    _one_core_each()
    from knowshift.parameters.files.restored import Restoration, restore_checkpoints

    steady_heap()
    _check_numbers(seed, threads)
    scope = Scope(region, _layers(layers), allow_nonfinite)
    fractions = _whole(criterion, scope) if fraction is None else named_fractions(fraction)
    if isinstance(tuned, (str, Path)):
        if output_dir is None:
            raise InputError("output_dir is missing: checkpoints on disk are restored into a new folder")
        if not isinstance(base, (str, Path)):
            raise InputError(f"{tuned}: on disk, its base is loaded; give the base's folder or name")
        base_folder, tuned_folder = _folder(base, base_revision), _folder(tuned, revision)
        about = {
            "base_name": str(base),
            "tuned_name": str(tuned),
            "revision": revision,
            "base_revision": base_revision,
        }
        if as_adapter:
            from knowshift.parameters.files.scaled import restore_adapter

            return restore_adapter(
                base_folder, tuned_folder, Path(output_dir), fractions, scope, criterion=criterion, about=about
            )
        with (
            bar("ranking weights", None, "weight", progress) as selecting,
            bar("writing", None, "B", progress) as writing,
        ):
            return restore_checkpoints(
                base_folder,
                tuned_folder,
                Path(output_dir),
                fractions,
                scope,
                criterion=criterion,
                seed=seed,
                threads=threads,
                about=about,
                selecting=selecting,
                writing=writing,
            )
    from knowshift.parameters.restore import RestorationSweep

    if output_dir is not None:
        raise InputError(f"{output_dir}: a loaded model is restored in place; save it afterwards")
    if as_adapter:
        raise InputError("as_adapter: a loaded model is restored in place; expected an adapter on disk")
    if len(fractions) != 1:
        raise InputError("a loaded model is restored to one fraction; RestorationSweep goes through several")
    sweep = RestorationSweep(
        _module(tuned, revision), _reader(base, base_revision), criterion, scope, seed, threads=threads
    )
    ((name, share),) = fractions.items()
    ((_, restored),) = sweep.run([share])
    return Restoration(sweep.eligible, {name: restored}, {name: sweep.thresholds[share]}, {})


def named_fractions(given: Fractions) -> dict[str, float]:
    """The fractions by the name that each was given by.

    Raises:
        InputError: not a number, or one given twice.
    """
    from knowshift.parameters.selection.select import fraction_name

    fractions: dict[str, float] = {}
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not several:
        raise InputError("--fraction: none given; expected a number from 0 to 1")
    for one in several:
        try:
            value = float("true" if isinstance(one, bool) else one)  # True is no fraction, though Python makes it 1
        except (TypeError, ValueError):
            raise InputError(f"--fraction {repr(one)[:80]}: expected a number from 0 to 1") from None
        if value in fractions.values():
            raise InputError(f"--fraction {one}: given twice")
        fractions[one.strip() if isinstance(one, str) else fraction_name(value)] = value
    return fractions


def _check_numbers(seed: int, threads: int | None) -> None:
    check_whole("seed", seed)
    if threads is not None:
        check_whole("threads", threads, 1)


def _one_core_each() -> None:
    """Set before numpy is imported: our threads multiply different matrices, so BLAS needs no threads of its own."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _folder(name: str | Path, revision: str | None) -> Path:
    """A local folder as it is; anything else is looked up (hub ids, world:tiny), which needs heavier imports."""
    path = expanded(str(name))
    if path.is_dir():
        return path
    from knowshift.models.finding import model_folder

    return model_folder(str(name), revision=revision)


def _module(model: WeightsLike, revision: str | None) -> torch.nn.Module:
    """A loaded model's module; a checkpoint on disk is loaded in its stored dtype."""
    from knowshift.models.loading import LoadedModel, load_model

    if isinstance(model, (str, Path)):
        model = load_model(str(model), revision=revision, dtype="auto")
    if isinstance(model, LoadedModel):
        held: torch.nn.Module = model.model
        return held
    return model


def _reader(base: WeightsLike, revision: str | None) -> torch.nn.Module | TensorReader:
    """The base of a loaded model: a module, or a reader of a checkpoint, which is not loaded as a whole."""
    from knowshift.parameters.files.adapter import is_adapter
    from knowshift.parameters.files.checkpoint import StoredTensors

    if isinstance(base, (str, Path)):
        folder = _folder(base, revision)
        if is_adapter(folder):
            raise InputError(f"{folder}: an adapter folder; BASE must be a whole checkpoint")
        return StoredTensors(folder)
    return _module(base, None)


def _told(model: WeightsLike) -> dict[str, str]:
    """What a record says of a model where one of the two was in memory."""
    name = str(model) if isinstance(model, (str, Path)) else str(getattr(model, "name", type(model).__name__))
    return {"model": name, "held": "on disk" if isinstance(model, (str, Path)) else "in memory"}


def _check_files(files: list[Path], inputs: list[Path]) -> None:
    """Refuse, before anything is read, files that could not be written or would lie among the inputs."""
    for path in files:
        if any(folder.resolve() in path.resolve().parents for folder in inputs):
            raise InputError(f"{path}: lies in one of the inputs; expected a file elsewhere")
        try:
            check_output_file(path)
        except PermissionError as error:  # its folder cannot be searched
            raise InputError(f"{path}: {error.strerror}") from None
    if len({path.resolve() for path in files}) < len(files):
        raise InputError(f"{files[0]}: asked for as --figure and as --output; expected two files")


def _whole(criterion: str, scope: Scope) -> dict[str, float]:
    """The fraction where none is given: 1 for DG-Hard and for a choice of layers, else an error."""
    if criterion == "dg-hard":
        return {criterion: 1.0}
    if scope.layers is not None:
        return {"1": 1.0}
    raise InputError("--fraction is missing: expected a number from 0 to 1 (or --layers, to put whole layers back)")


def _layers(given: Layers | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if not isinstance(given, str):
        if not (isinstance(given, tuple) and len(given) == 2):
            raise InputError(f"layers {repr(given)[:80]}: expected (first, last), or a text such as '0-3'")
        for layer in given:
            check_whole("layer", layer)
        return given
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", given.strip())
    if found is None:
        raise InputError(f"--layers {given!r}: expected a layer or a range such as 0-3")
    return int(found[1]), int(found[2] or found[1])
