"""What the device of a study's worker must hold, and the way of holding models that fits: the one place that decides.

Two ways give the same records. **both**: base and tuned model stay in memory. **in turns**: one model at a time; the
base is trained in its own storage, and read again from its files when it is needed. With ``training.shards`` the
processes of a training hold the model together, and no other model is in memory meanwhile. With ``devices`` they do so
also while it is asked: its layers are divided, and embeddings, norms and head are whole on each device.

Weights in float32 are their own master copies, and autocast or FSDP2's mixed precision computes with copies of two
bytes: a step that is below the spacing of bfloat16 numbers is not lost. Weights in bfloat16 have no master copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from knowshift.errors import InputError
from knowshift.models.loading import torch_device
from knowshift.models.sampling.session import CACHE_BYTES, STAY_BYTES
from knowshift.studies.config import StudyConfig
from knowshift.studies.shape import Shape
from knowshift.system.allocator import free_bytes
from knowshift.system.workers import cores
from knowshift.tuning.registry import STRATEGIES

Way = Literal["both", "in turns"]

GPU_BYTES = 80 * 10**9
#: Bytes of a weight; "auto" is taken to be the 16 bits in which most checkpoints are stored.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
#: Tokens of an example, mean of EntityQuestions under SmolLM2's tokenizer in a batch of 8 padded to the longest.
EXAMPLE = 30
#: Devices among which a training is divided at most, for a proposal.
_MOST_SHARDS = 256


@dataclass(frozen=True)
class Widest:
    """The most devices among which a model can be divided, and bytes of a training on each of them."""

    devices: int
    training: int
    in_bfloat16: int | None  # the same with weights of two bytes; None where they have two


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker needs on its device, or on each of its devices, in the way that fits."""

    mastery: int  # weights and, at most, keys and values; with less memory it takes longer
    #: Tuned weights, gradients, two moments of Adam, activations, what a strategy holds; the base where both stay.
    training: int
    weights: int  # of one model, or of its part: all that is there while it is asked
    way: Way
    shards: int  # devices of a worker
    gpus: int | None  # of 80 GB, that hold a worker's models and trainings; None where no number that is offered does
    devices: int = 1  # among which a model is divided while it is asked
    widest: Widest | None = None  # where models are divided, or are larger than one GPU of 80 GB
    strategy: str | None = None  # that holds most beside plain fine-tuning; None where none holds more

    @property
    def held(self) -> str:
        """How models are held, in words."""
        if self.way == "both":
            return "base and tuned model stay in memory"
        among = f", divided among {self.devices} devices" if self.devices > 1 else ""
        return f"one at a time{among}; the base is trained in place and read again from its files"

    @property
    def on_gpus(self) -> str:
        """Whether GPUs of 80 GB, as many as the study says, hold a training, and one of them the model; in words."""
        asked, trained = self.weights <= GPU_BYTES, self.training <= GPU_BYTES
        if asked and trained:
            return "one holds a worker" if self.shards == 1 else f"{self.shards} hold a worker"
        if asked and self.strategy is not None:
            return f"one does not hold a training by {self.strategy!r} ({_gb(self.training)})"
        few = self.shards if asked else self.devices
        what = f"a training ({_gb(self.training)}" if asked else f"the model while it is asked ({_gb(self.weights)}"
        text = "one does not hold " if few == 1 else f"{few} do not hold "
        text += f"{what}{')' if few == 1 else ' each)'}"
        if self.gpus is not None:
            field = "training.shards" if self.widest is None else "devices"
            return f"{text}; {self.gpus} do: --set {field}={self.gpus}"
        if self.widest is None:
            return text
        most, narrow = self.widest, self.widest.in_bfloat16
        more = "" if narrow is None else f", {_gb(narrow)} with --set dtype=bfloat16"
        if asked and most.devices == self.devices:
            return f"{text}{more}, and no larger number is offered"
        return f"{text}; {most.devices} are the most offered: to train takes {_gb(most.training)} each{more}"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.0f} GB"


def memory_of(config: StudyConfig, weights: int, shape: Shape | None, room: int | None = None) -> Memory:
    """The memory of one worker, for a model of so many weights; without a shape, without its activations.

    Args:
        room: bytes of the device; where not given, those of :func:`planned_room`.
    """
    kind = "cpu" if on_cpu(config) else "cuda"
    room = planned_room(config) if room is None else room
    shards = config.shards
    own = held_bytes(config, weights, shape, config.devices)
    strategy, more = most_held(config, weights)
    training, way = training_bytes(config, weights, shape, shards) + more, "in turns"
    if shards == 1 and training + own <= room:
        training, way = training + own, "both"
    probed = own
    if config.mastery.dtype is not None:  # another model, beside the base where there is room
        probed = own // BYTES[config.dtype] * BYTES[config.mastery.dtype] + (own if way == "both" else 0)
    numbers, widest = list(range(1, _MOST_SHARDS)), None
    if config.devices > 1 or held_bytes(config, weights, shape, 1) > GPU_BYTES:
        numbers, widest = divisors(shape), _widest(config, weights, shape)
    fitting = [
        n
        for n in numbers
        if training_bytes(config, weights, shape, n) <= GPU_BYTES
        and (widest is None or held_bytes(config, weights, shape, n) <= GPU_BYTES)
    ]
    return Memory(
        probed + CACHE_BYTES[kind] + STAY_BYTES[kind],
        training,
        own,
        way,  # type: ignore[arg-type]
        shards,
        fitting[0] if fitting else None,
        config.devices,
        widest,
        strategy,
    )


def _widest(config: StudyConfig, weights: int, shape: Shape | None) -> Widest:
    most = divisors(shape)[-1]
    narrow = None
    if BYTES[config.dtype] > 2:
        narrow = training_bytes(config.model_copy(update={"dtype": "bfloat16"}), weights, shape, most)
    return Widest(most, training_bytes(config, weights, shape, most), narrow)


def divisors(shape: Shape | None) -> list[int]:
    """Numbers of devices among which the heads of a model can be divided, ascending."""
    heads = 1 if shape is None else math.gcd(shape.heads, shape.key_value_heads)
    return [n for n in range(1, heads + 1) if heads % n == 0]


def held_bytes(config: StudyConfig, weights: int, shape: Shape | None, devices: int) -> int:
    """Bytes of a model on each of the devices among which its layers are divided."""
    divided = weights if shape is None else shape.layer_weights
    return (weights - divided + divided // devices) * BYTES[config.dtype]


def training_bytes(config: StudyConfig, weights: int, shape: Shape | None, shards: int) -> int:
    """Bytes of a training alone, on each of so many devices."""
    wide, autocast = BYTES[config.dtype], config.training.bfloat16
    narrow = 2 if autocast else wide
    states = weights * 4 * wide // shards  # weights, gradients, two moments
    if shards == 1:
        # Autocast keeps a copy of the weights in two bytes for the backward pass.
        states += weights * 2 if autocast and wide > 2 else 0
    if shape is None:
        return states
    if shards > 1:
        # What is whole for a while: embeddings and head, and two layers (one is fetched ahead), with their gradients,
        # which are added up in the width of the weights.
        outside = (1 if shape.tied else 2) * shape.vocabulary * shape.hidden
        states += (outside + 2 * shape.layer_weights // shape.layers) * (2 * narrow + wide)
    batch = max(config.training.batch_size, *(variant.batch_size or 0 for variant in config.variants.values()), 0)
    tokens = -(-batch // shards) * EXAMPLE
    of_layer = tokens * (10 * shape.hidden + 4 * shape.feed_forward) * narrow
    kept = tokens * shape.hidden * narrow * shape.layers + of_layer
    activations = kept if config.training.gradient_checkpointing else shape.layers * of_layer
    # Logits, their float32, their gradients.
    return states + activations + 3 * 4 * tokens * shape.vocabulary


def most_held(config: StudyConfig, weights: int) -> tuple[str | None, int]:
    """The strategy of a study that holds most beside plain fine-tuning, and its bytes; (None, 0) where none does.

    The grid is trained plainly, so one that holds less changes nothing.
    """
    found: dict[str, int] = {}
    for variant in {**config.variants, **config.benched}.values():
        if variant.strategy is not None:
            held = STRATEGIES[variant.strategy].held
            found[variant.strategy] = held.bytes_of(weights, BYTES[config.dtype], on_cpu=on_cpu(config))
    most = max(found, key=lambda name: found[name], default=None)
    return (most, found[most]) if most is not None and found[most] > 0 else (None, 0)


def planned_room(config: StudyConfig) -> int:
    """Bytes that a plan gives to a worker: a GPU of 80 GB, or its share of this machine's memory by its threads."""
    if not on_cpu(config):
        return GPU_BYTES
    import psutil  # slow to import

    total: int = psutil.virtual_memory().total
    return int(total * min(1.0, config.threads * config.shards / cores()))


def room_of(config: StudyConfig) -> int:
    """Bytes that a worker may take on its device: what is free on a GPU, and of a CPU as :func:`planned_room`."""
    place = torch_device(config.device)
    if place.type != "cuda":
        return planned_room(config)
    return free_bytes(place)


def check_device(config: StudyConfig, weights: int, shape: Shape | None) -> Memory:
    """The memory of a worker on this machine's device; a GPU that is too small for it is refused.

    Raises:
        InputError: as :func:`check_memory`, and fewer GPUs than ``devices`` or ``training.shards``.
    """
    place, room, shards = torch_device(config.device), room_of(config), config.shards
    memory = memory_of(config, weights, shape, room)
    if place.type == "cuda":
        if shards > torch.cuda.device_count():
            raise InputError(
                f"{_field(config)}: {shards} GPUs asked, this machine has {torch.cuda.device_count()} usable ones"
            )
        more = [n for n in divisors(shape) if n > shards]
        numbers = range(shards + 1, _MOST_SHARDS) if config.devices == 1 else more
        enough = next((n for n in numbers if training_bytes(config, weights, shape, n) <= room), None)
        check_memory(config, training_bytes(config, weights, shape, shards), room, enough)
        check_held(config, memory, room)
        enough = next((n for n in more if held_bytes(config, weights, shape, n) <= room), None)
        check_memory(config, memory.weights, room, enough, doing="asking")
    _check_base(config, memory)
    return memory


def _check_base(config: StudyConfig, memory: Memory) -> None:
    """Refuse strategies that ask the base model at every step, where it does not stay in memory."""
    if memory.way == "both":
        return
    for name, variant in {**config.variants, **config.benched}.items():
        if variant.strategy is not None and STRATEGIES[variant.strategy].needs_base:
            raise InputError(
                f"{config.device}: {name}: strategy {variant.strategy!r} asks the base model at every step, and there "
                f"is no room for it beside a training of {memory.training / 1e9:.1f} GB; expected a device with more "
                "memory, or a strategy that does without"
            )


def check_held(config: StudyConfig, memory: Memory, free: int) -> None:
    """Refuse a device that holds plain fine-tuning, but not what a strategy holds beside it.

    Raises:
        InputError: names the strategy and says both numbers.
    """
    if memory.strategy is not None and memory.training > free:
        raise InputError(
            f"{config.device}: training {config.model} in {config.dtype} by strategy {memory.strategy!r} takes about "
            f"{memory.training / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; expected a study without it, a smaller "
            "model or a device with more memory"
        )


def _field(config: StudyConfig, doing: str = "training") -> str:
    """What says among how many devices it is divided."""
    return "devices" if config.devices > 1 or doing != "training" else "training.shards"


def check_memory(
    config: StudyConfig, needed: int, free: int, enough: int | None = None, *, doing: str = "training"
) -> None:
    """Refuse a device that is too small for a training, or for being asked.

    Args:
        needed: bytes on each device (:func:`memory_of`).
        free: bytes free on the device.
        enough: the smallest ``training.shards``, or ``devices``, that would do.

    Raises:
        InputError: says both numbers, and what needs less.
    """
    if needed <= free:
        return
    less = [] if BYTES[config.dtype] == 2 else ["--set dtype=bfloat16 (small steps are then lost)"]
    less = [f"--set {_field(config, doing)}={enough} (so many GPUs)", *less] if enough else less
    shards = config.shards if doing == "training" else config.devices
    divided = f" on each of {shards} devices" if shards > 1 else ""
    raise InputError(
        f"{config.device}: {doing} {config.model} in {config.dtype}{divided} takes about {needed / 1e9:.1f} GB, "
        f"{free / 1e9:.1f} GB are free; use "
        f"{', '.join([*less, 'a smaller model'])} or a device with more memory"
    )


def on_cpu(config: StudyConfig) -> bool:
    """Whether a study runs on processors alone."""
    return config.device.split(":")[0] == "cpu"
