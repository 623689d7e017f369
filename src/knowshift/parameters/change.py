"""How much two sets of weights differ, and how far the difference is concentrated.

The concentration of a score is the share of its sum that the top fraction of weights holds (paper, section 4.2, for
the relative change r). It stands beside a **no-signal null**: each tensor's own |p| paired with its own |s - p| at
random. Dividing by a |p| near zero makes a heavy tail by itself, so only what exceeds the null says anything about
fine-tuning. Layers and modules whose weights are smaller, or changed more, hold more of the top-ranked weights by that
alone, so where these sit stands beside where the null's sit. The pairing leaves |s - p| itself as it is, so for
``absolute`` and ``squared`` the null equals the measurement.

Scores are float32, sums float64. Weights with p = 0 and s != p rank first but have no finite r: they are counted in
``base_zero`` and add nothing to the sum of r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knowshift.parameters.files.pair import check_shapes, refuse_not_finite
from knowshift.parameters.loaded import LoadedTensors, as_reader, model_region, parameters_of, shapes_of
from knowshift.parameters.null import NULL_BLOCK, null_relative
from knowshift.parameters.regions import PAPER_SCOPE, Place, Scope
from knowshift.parameters.rounding import Rounding, explained, rounding_of
from knowshift.parameters.selection import criteria
from knowshift.parameters.selection.radix import BINS, Refinement, find, first_key, tally, upper_of
from knowshift.parameters.selection.select import FRACTIONS, exact_count, fraction_name
from knowshift.parameters.tensors import Array, Stretch, TensorReader, WeightPair, stretches, workers

if TYPE_CHECKING:
    import torch

#: The fraction whose set the tables by layer and by module describe (paper, Tables 9 and 10).
TOP_SHARE = 0.2

#: Modules in the order of a layer; others follow.
MODULE_ORDER = ("q", "k", "v", "qkv", "o", "gate", "gate_up", "up", "down")

Shares = dict[str, float | None]


@dataclass(frozen=True)
class TensorChange:
    """One tensor: counts and float64 sums, from which every share can be recomputed."""

    name: str
    layer: int | None
    module: str
    size: int
    changed: int
    base_zero: int
    relative_sum: float
    absolute_sum: float
    squared_sum: float
    top: int  # how many of its weights are in the top 20% by relative change
    null_top: int  # the same under the null
    rounded: int | None  # how many changed by no more than rounding explains; None where both dtypes are equal

    @property
    def rms(self) -> float:
        """Root mean square of the tensor's changes."""
        return math.sqrt(self.squared_sum / self.size) if self.size else 0.0


@dataclass(frozen=True)
class WeightChange:
    """The measurement of one region. Fractions are written "0.01"; an undefined share is None."""

    region: str
    seed: int
    eligible: int
    changed: int
    changed_share: float
    base_zero: int
    concentration: dict[str, Shares]  # relative, absolute, squared -> fraction -> share of the sum
    null: dict[str, Shares]
    layers: dict[str, float]  # layer -> share of the top-20% set
    modules: dict[str, float]  # module -> share of the top-20% set
    null_layers: dict[str, float]  # layer -> share of the null's top-20% set
    null_modules: dict[str, float]
    layer_weights: dict[str, float]  # layer -> share of the region's weights: the share by chance
    module_weights: dict[str, float]
    rounding: Rounding | None  # None where both sides have equal dtypes
    tensors: list[TensorChange]

    def largest(self, number: int = 10) -> list[TensorChange]:
        """The tensors with the largest root mean square change, largest first."""
        return sorted(self.tensors, key=lambda tensor: -tensor.rms)[:number]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the keys are those that docs/weights.md lists."""
        return asdict(self)


def measure_change(
    base: Mapping[str, torch.Tensor] | torch.nn.Module | TensorReader,
    tuned: torch.nn.Module,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    *,
    scope: Scope = PAPER_SCOPE,
    stored: TensorReader | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda weights: None,
) -> WeightChange:
    """Measure a loaded model against its base (a mapping of tensors, a model, or a reader); see the module.

    ``stored`` reads the whole tensors of a model that is divided among processes.
    """
    places, shapes = model_region(tuned, scope), shapes_of(tuned)
    held = stored or LoadedTensors(parameters_of(tuned))
    reader = as_reader(base)
    check_shapes(reader.shapes, {place.name: shapes[place.name] for place in places})
    pair = WeightPair(reader, held, [place.name for place in places], strict=not scope.allow_nonfinite)
    try:
        return measure_pair(pair, places, fractions, seed, region=scope.region, threads=threads, progress=progress)
    except criteria.NotFinite:
        refuse_not_finite(pair, "the base", "the model")


def measure_pair(
    pair: WeightPair,
    places: Sequence[Place],
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    *,
    region: str = "layers",
    threads: int | None = None,
    piece: int = NULL_BLOCK,
    progress: Callable[[int], None] = lambda weights: None,
) -> WeightChange:
    """Measure any pair of readers, in three passes; ``progress`` is called with weights done, three times each."""
    sizes = pair.sizes
    eligible = sum(sizes)
    counts = {fraction_name(f): exact_count(f, eligible) for f in fractions}
    top_count = exact_count(TOP_SHARE, eligible)
    with workers(threads) as run:

        def passing(function: Callable[..., Any]) -> Iterator[Any]:
            results: Iterator[Any] = run(function, stretches(sizes, piece))
            for (_, start, stop), result in zip(stretches(sizes, piece), results, strict=True):
                progress(stop - start)
                yield result

        first = _Totals(len(sizes))
        for tensor, part in enumerate_tensors(passing(partial(_first_pass, pair, seed)), sizes, piece):
            first.add(tensor, part)
        wanted = [*counts.values(), top_count]
        curves = {
            "relative": _Curve(first.counts["relative"], first.sums["relative"], wanted),
            "absolute": _Curve(first.counts["absolute"], first.sums["absolute"], wanted),
            "null": _Curve(first.counts["null"], first.sums["null"], wanted),
        }
        squares = _Curve(first.counts["absolute"], first.sums["squared"], wanted, shared=curves["absolute"])
        null_top = _TopByTensor(curves["null"], top_count, len(sizes))
        second = passing(partial(_second_pass, pair, seed, curves, null_top.first))
        for tensor, (low, above) in enumerate_tensors(second, sizes, piece):
            for name, places_low in low.items():
                curves[name].refined.add(places_low)
            null_top.add(tensor, above, low["null"])
        shares = {
            "relative": curves["relative"].shares(counts),
            "absolute": curves["absolute"].shares(counts),
            "squared": squares.shares(counts, power=2),
        }
        null = {**shares, "relative": curves["null"].shares(counts)}
        key, taken = curves["relative"].threshold(top_count)
        top = [0] * len(sizes)
        equals = [0] * len(sizes)
        for tensor, (above, same) in enumerate_tensors(passing(partial(_third_pass, pair, key)), sizes, piece):
            top[tensor] += above
            equals[tensor] += same
    tops = zip(_with_equals(top, equals, taken), null_top.counts(), strict=True)
    tensors = [
        TensorChange(place.name, place.layer, place.module, sizes[i], *first.row(i), *both, first.rounded[i])
        for i, (place, both) in enumerate(zip(places, tops, strict=True))
    ]
    changed = sum(t.changed for t in tensors)
    by_layer = partial(_shares_of, tensors, lambda t: None if t.layer is None else str(t.layer))
    by_module = partial(_shares_of, tensors, lambda t: t.module)
    return WeightChange(
        region=region,
        seed=seed,
        eligible=eligible,
        changed=changed,
        changed_share=changed / eligible,
        base_zero=sum(t.base_zero for t in tensors),
        concentration=shares,
        null=null,
        layers=by_layer(lambda t: t.top),
        modules=by_module(lambda t: t.top),
        null_layers=by_layer(lambda t: t.null_top),
        null_modules=by_module(lambda t: t.null_top),
        layer_weights=by_layer(lambda t: t.size),
        module_weights=by_module(lambda t: t.size),
        rounding=rounding_of(first.dtypes, sizes, first.rounded, changed),
        tensors=tensors,
    )


def enumerate_tensors(results: Iterator[Any], sizes: Sequence[int], piece: int) -> Iterator[tuple[int, Any]]:
    """Results of a pass with the tensor each belongs to."""
    for (tensor, _, _), result in zip(stretches(sizes, piece), results, strict=True):
        yield tensor, result


def _with_equals(above: Sequence[int], equals: Sequence[int], taken: int) -> list[int]:
    """Weights of each tensor in a set: all above its threshold, and the first ``taken`` that equal it.

    Equals rank by tensor.
    """
    top = list(above)
    for tensor, same in enumerate(equals):
        here = min(same, taken)
        top[tensor] += here
        taken -= here
    return top


def _shares_of(
    tensors: Sequence[TensorChange],
    group: Callable[[TensorChange], str | None],
    amount: Callable[[TensorChange], int],
) -> dict[str, float]:
    total = sum(amount(t) for t in tensors)
    sums: dict[str, int] = {}
    for tensor in sorted(tensors, key=lambda t: (t.layer is None, t.layer or 0, _rank(MODULE_ORDER, t.module))):
        name = group(tensor)
        if name is not None:
            sums[name] = sums.get(name, 0) + amount(tensor)
    return {name: amount_ / total for name, amount_ in sums.items()} if total else {}


def _rank(order: Sequence[str], module: str) -> int:
    return order.index(module) if module in order else len(order)


class _Totals:
    """Sums of the first pass: counts and sums by the sort keys' upper bits, and a row for each tensor."""

    def __init__(self, tensors: int) -> None:
        names = ("relative", "absolute", "null")
        self.counts = {name: np.zeros(BINS, np.int64) for name in names}
        self.sums = {name: np.zeros(BINS, np.float64) for name in (*names, "squared")}
        self._rows = [[0, 0, 0.0, 0.0, 0.0] for _ in range(tensors)]
        self.dtypes = [("", "")] * tensors
        self.rounded: list[int | None] = [None] * tensors

    def add(self, tensor: int, part: _First) -> None:
        for name, (counts, sums, squares) in part.tallies.items():
            self.counts[name] += counts
            self.sums[name] += sums
            if name == "absolute":
                self.sums["squared"] += squares
        self.dtypes[tensor] = part.dtypes
        if part.rounded is not None:
            self.rounded[tensor] = (self.rounded[tensor] or 0) + part.rounded
        row = self._rows[tensor]
        row[0] += part.changed
        row[1] += part.base_zero
        _, relative, _ = part.tallies["relative"]
        _, absolute, squared = part.tallies["absolute"]
        for column, sums in enumerate((relative, absolute, squared), start=2):
            row[column] += float(sums.sum())

    def row(self, tensor: int) -> tuple[int, int, float, float, float]:
        changed, base_zero, relative, absolute, squared = self._rows[tensor]
        return int(changed), int(base_zero), relative, absolute, squared


@dataclass(frozen=True)
class _First:
    """One stretch in the first pass: for each score what :func:`~knowshift.parameters.selection.radix.tally` gives."""

    tallies: dict[str, tuple[Array, Array, Array]]
    changed: int
    base_zero: int
    dtypes: tuple[str, str]
    rounded: int | None  # None where the dtypes are equal


def _scores(
    pair: WeightPair, seed: int, stretch: Stretch, base: Array, tuned: Array, strict: bool
) -> dict[str, NDArray[np.float32]]:
    """The float32 scores of a stretch as read: ``relative``, ``absolute``, and ``relative`` under the null."""
    return {
        "relative": criteria.keys("relative", base, tuned, strict).view(np.float32),
        "absolute": criteria.keys("absolute", base, tuned).view(np.float32),
        "null": null_relative(pair, seed, *stretch),
    }


def _first_pass(pair: WeightPair, seed: int, tensor: int, start: int, stop: int) -> _First:
    base, tuned = pair.read(tensor, start, stop)
    scores = _scores(pair, seed, (tensor, start, stop), base, tuned, pair.strict)
    changed = int(np.count_nonzero(scores["absolute"]))
    base_zero = int(np.count_nonzero(scores["relative"].view(np.int32) == criteria.INFINITE))
    rounded = None
    if base.dtype != tuned.dtype:
        rounded = explained(base, tuned, scores["absolute"])
    tallies = {name: tally(score) for name, score in scores.items()}
    return _First(tallies, changed, base_zero, (base.dtype.name, tuned.dtype.name), rounded)


def _second_pass(
    pair: WeightPair, seed: int, curves: Mapping[str, _Curve], first: int, tensor: int, start: int, stop: int
) -> tuple[dict[str, NDArray[np.int32]], int]:
    """What falls in the chosen bins of each score, and how many weights the null ranks from the key ``first`` on."""
    scores = _scores(pair, seed, (tensor, start, stop), *pair.read(tensor, start, stop), False)
    keys = {name: score.view(np.int32) for name, score in scores.items()}
    low = {name: curves[name].refined.inside(its) for name, its in keys.items()}
    return low, int(np.count_nonzero(keys["null"] >= first))


def _third_pass(pair: WeightPair, key: int, tensor: int, start: int, stop: int) -> tuple[int, int]:
    keys = criteria.keys("relative", *pair.read(tensor, start, stop))
    return int(np.count_nonzero(keys > key)), int(np.count_nonzero(keys == key))


class _Curve:
    """How much of a score's sum its top weights hold, for any of the counts that it was made for."""

    def __init__(
        self, counts: NDArray[np.int64], sums: NDArray[np.float64], wanted: Sequence[int], shared: _Curve | None = None
    ) -> None:
        self._sums = sums
        self._total = float(sums.sum())
        self._bins = {count: find(counts, count) for count in wanted if count > 0}
        self.refined: Refinement = shared.refined if shared else Refinement(bin_ for bin_, _ in self._bins.values())

    def bin_of(self, count: int) -> int | None:
        """The bin of the ``count``-th weight, which is known before the bins are refined; None for no weight."""
        return self._bins[count][0] if count else None

    def threshold(self, count: int) -> tuple[int, int]:
        """The sort key of the ``count``-th weight, and how many of its equals are among the first ``count``."""
        if count == 0:
            return (1 << 31) - 1, 0
        bin_, above = self._bins[count]
        low, higher = find(self.refined.of(bin_), count - above)
        return ((bin_ - BINS // 2) << 16) + low, count - above - higher

    def shares(self, counts: Mapping[str, int], power: int = 1) -> Shares:
        """The share of the sum in the first weights, by fraction; None where nothing changed at all."""
        if self._total == 0.0:
            return dict.fromkeys(counts)
        return {name: self._sum(count, power) / self._total if count else 0.0 for name, count in counts.items()}

    def _sum(self, count: int, power: int) -> float:
        key, taken = self.threshold(count)
        bin_, low = upper_of(key), key & 0xFFFF
        inside = self.refined.of(bin_)[low:].copy()  # every value of a refined bin is one float32, known exactly
        inside[0] = taken
        values = np.arange(key, key - low + (1 << 16), dtype=np.int64).astype(np.int32).view(np.float32)
        held = np.where(np.isfinite(values), values, 0.0).astype(np.float64) ** power @ inside.astype(np.float64)
        return float(self._sums[bin_ + 1 :].sum() + held)


class _TopByTensor:
    """How many of each tensor's weights a score ranks among its first ``count``, told in the second pass.

    Only the bin of the threshold is known then. Weights above the bin are counted; of those inside it, some thousandths
    of all, the lower halves of the keys are counted tensor by tensor, until the pass has told the threshold itself. So
    scores that are dear to make need no third pass. Tensors come in order.
    """

    def __init__(self, curve: _Curve, count: int, tensors: int) -> None:
        self._curve, self._count = curve, count
        self._above = [0] * tensors
        self._inside: list[tuple[NDArray[np.uint16], NDArray[np.unsignedinteger[Any]]]] = []
        self._lower = np.zeros(1 << 16, np.int64)  # of the tensor that is being read
        bin_ = curve.bin_of(count)
        self._row = None if bin_ is None else curve.refined.row(bin_)
        #: The smallest key above the bin.
        self.first = (1 << 31) - 1 if bin_ is None else first_key(bin_ + 1)

    def add(self, tensor: int, above: int, places: NDArray[np.int32]) -> None:
        """Count one stretch: how many keys lie above the bin, and where keys fell in the bins that are refined."""
        self._close(tensor)
        self._above[tensor] += above
        if self._row is not None:
            np.add.at(self._lower, places[places >> 16 == self._row] & 0xFFFF, 1)

    def counts(self) -> list[int]:
        """Weights of each tensor in the set, once the pass is over."""
        self._close(len(self._above))
        key, taken = self._curve.threshold(self._count)
        low = key & 0xFFFF
        above = [
            known + int(numbers[lower > low].sum())
            for known, (lower, numbers) in zip(self._above, self._inside, strict=True)
        ]
        return _with_equals(above, [int(numbers[lower == low].sum()) for lower, numbers in self._inside], taken)

    def _close(self, tensor: int) -> None:
        """Keep what the tensors before this one have inside the bin, in as few bytes as hold it."""
        while len(self._inside) < tensor:
            lower = np.flatnonzero(self._lower)
            numbers = self._lower[lower]
            self._inside.append((lower.astype(np.uint16), numbers.astype(np.min_scalar_type(numbers.max(initial=0)))))
            self._lower[:] = 0
