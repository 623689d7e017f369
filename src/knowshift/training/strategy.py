"""What a strategy may change of a fine-tuning: a class with a method for each point at which it can act.

Every method of :class:`Strategy` does what plain supervised fine-tuning does; a strategy overrides what it is about,
and its fields are its settings. In the order of a training: which facts (:meth:`Strategy.facts`), which tokens of them
(:meth:`Strategy.examples`), which weights (:meth:`Strategy.trained`), which loss of a token (:meth:`Strategy.losses`),
what happens at each step (:meth:`Strategy.callbacks`), and what becomes of the tuned weights (:meth:`Strategy.after`).

Shapes: N scored tokens of a batch, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.known_facts import KnownFacts
from knowshift.training.draws import draw_mixed_set, draw_training_set

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, TrainerCallback

    from knowshift.models.loading import LoadedModel
    from knowshift.parameters.tensors import TensorReader

    #: The base model's weights by the names of its parameters: in memory, or read from its files.
    Weights = Mapping[str, torch.Tensor] | TensorReader

#: Mastery levels of facts that the base knows well.
KNOWN_LEVELS = (3, 4)

Kind = Literal["recipe", "weights", "data", "loss", "step", "after"]


def setting(default: Any, about: str, *, unit: str = "", least: float | None = None, most: float | None = None) -> Any:
    """A field of a strategy: its default, what it is, its unit, and the range of its values, both ends included."""
    return field(default=default, metadata={"about": about, "unit": unit, "least": least, "most": most})


@dataclass(frozen=True)
class Draw:
    """What training facts are drawn from: a mastery record, and which set of it."""

    known: KnownFacts
    level: int | None  # None: of all levels in turn
    size: int | None  # examples; None: all facts of the level
    draw: int
    seed: int
    levels: tuple[int, ...] = (0, 1, 2, 3, 4)  # of a mixed set

    def of(self, level: int | None, size: int | None) -> list[Fact]:
        """The set of this draw of a level, or a mixed one, in training order.

        Raises:
            InputError: fewer facts than asked.
        """
        if level is None:
            size = sum(len(self.known.of("train", one)) for one in self.levels) if size is None else size
            return draw_mixed_set(self.known, levels=self.levels, size=size, draw=self.draw, seed=self.seed)
        return draw_training_set(self.known, level=level, size=size, draw=self.draw, seed=self.seed)

    @cached_property
    def members(self) -> list[Fact]:
        """The facts of plain fine-tuning."""
        return self.of(self.level, self.size)


@dataclass(frozen=True)
class Scored:
    """The scored tokens of one batch."""

    logits: Tensor  # float32 [N, V], of the model in training
    targets: Tensor  # int64 [N]
    base: Callable[[], Tensor]  # the base model's logits at the same tokens, float32 [N, V], without gradients
    #: As ``base``, where each example stands answered before it is asked (:mod:`knowshift.training.shown`).
    shown: Callable[[], Tensor]


@dataclass(frozen=True)
class Training:
    """One training, as a strategy's steps see it."""

    loaded: LoadedModel  # whose model is trained
    trained: Any  # the model with its adapters, where there are some
    members: Sequence[Fact]
    seed: int
    known: KnownFacts | None = None  # facts with the base's mastery of them; None where the caller has none
    noted: dict[str, Any] = field(default_factory=dict)  # what steps have to say of the training, for its record


@dataclass(frozen=True)
class Held:
    """What a training holds at its peak beside plain fine-tuning and, where it is needed, the base; all near enough.

    In copies of all weights. Plain fine-tuning has four, in the weights' dtype: weights, gradients and the two moments
    of Adam. Measured by ``benchmarks/strategies.py`` on a Llama (docs/every_strategy.md).
    """

    there: float = 0.0  # where the model is, in the weights' dtype; below 0: fewer gradients and moments
    float32: float = 0.0  # where the model is, in float32 whatever the weights' dtype
    on_cpu: float = 0.0  # in the processor's memory, in the weights' dtype

    def bytes_of(self, weights: int, width: int, *, on_cpu: bool) -> int:
        """Bytes on the device of a model of so many weights of ``width`` bytes; ``on_cpu``: it is the processor."""
        copies = self.there + (self.on_cpu if on_cpu else 0.0)
        return round(weights * (copies * width + self.float32 * 4))


@dataclass(frozen=True)
class Strategy:
    """Plain supervised fine-tuning (paper 2.2); see the module. Subclasses are frozen dataclasses of their settings."""

    #: Name on the command line and in configs; one line for people; where it comes from; what it costs beside plain
    #: fine-tuning, in time and memory.
    name: ClassVar[str] = "sft"
    about: ClassVar[str] = "all weights, the loss on the answer"
    source: ClassVar[str] = "the paper, 2.2; TRL's SFTTrainer"
    cost: ClassVar[str] = "none"
    #: What it holds in memory beside plain fine-tuning, with the defaults of its settings.
    held: ClassVar[Held] = Held()
    kind: ClassVar[Kind] = "weights"
    #: Whether the base model must be in memory beside the one that is trained.
    needs_base: ClassVar[bool] = False
    #: Whether it needs training facts of :data:`KNOWN_LEVELS`.
    needs_known: ClassVar[bool] = False
    #: A rate to begin with, in rates of plain fine-tuning: adapters need larger ones.
    rate: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = _checked(f"{self.name}: {one.name}", getattr(self, one.name), one.metadata, one.default)
            object.__setattr__(self, one.name, value)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name, as records carry them."""
        return asdict(self)

    @classmethod
    def has_own_facts(cls) -> bool:
        """Whether its training facts may be others than those of plain fine-tuning."""
        return cls.facts is not Strategy.facts

    def facts(self, draw: Draw) -> list[Fact]:
        """The training facts, in training order; as many as plain fine-tuning has, so that updates are as many."""
        return draw.members

    def examples(self, loaded: LoadedModel, members: Sequence[Fact], usual: Callable[..., Any]) -> Any:
        """The examples of the facts; ``usual(questions, answers, ask=...)`` encodes questions in the form ``ask``."""
        return usual([fact.question for fact in members], [fact.answer for fact in members])

    @contextmanager
    def trained(
        self, loaded: LoadedModel, members: Sequence[Fact], seed: int, known: KnownFacts | None
    ) -> Iterator[Any]:
        """The model to train, such as ``loaded.model`` with adapters on it; ``known`` as in :class:`Training`.

        After the block all is as it was but the weights. After an error in it, those that adapters or a part of the
        model stand in for are as before too; where all weights are trained, the caller drops the model.
        """
        yield loaded.model

    def wrapped(self, model: PreTrainedModel, seed: int) -> Any | None:
        """The model with the adapters that :meth:`trained` puts on it, by PEFT; None where all weights are trained.

        For trainings that are divided among processes, which merge them by themselves.
        """
        return None

    def options(self) -> dict[str, Any]:
        """Arguments of TRL's ``SFTConfig`` that are otherwise."""
        return {}

    #: The loss of each scored token [N], from :class:`Scored`; None: cross entropy.
    losses: ClassVar[Callable[[Any, Scored], Tensor] | None] = None

    def callbacks(self, training: Training) -> list[TrainerCallback]:
        """What is called at each step, in this order, after the guard that watches the training."""
        return []

    def after(self, base: Weights, model: PreTrainedModel, seed: int) -> None:
        """Change the tuned weights in place, once training has ended."""


#: Plain supervised fine-tuning, with nothing else.
PLAIN = Strategy()


def _checked(place: str, value: Any, about: Mapping[str, Any], default: Any) -> Any:
    """A setting in the type of its default; another type's value, or one outside its range, is refused.

    YAML takes 1e-2, without a point, for a text.
    """
    if isinstance(value, str) and not isinstance(default, str):
        with suppress(ValueError):
            value = float(value)
    whole = isinstance(default, int) and not isinstance(default, bool)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, (bool, str)):
        fits, expected = type(value) is type(default), "true or false" if isinstance(default, bool) else "a text"
    elif whole:
        fits, expected = number and float(value).is_integer(), "a whole number"
    else:
        fits, expected = number and value == value, "a number"
    least, most = about.get("least"), about.get("most")
    if fits and number and not isinstance(default, str):
        fits = (least is None or value >= least) and (most is None or value <= most)
    if not fits:
        if least is not None:
            expected += f" of {least:g} to {most:g}" if most is not None else f" of at least {least:g}"
        raise InputError(f"{place}: expected {expected}, found {value!r}")
    return int(value) if whole else float(value) if isinstance(default, float) else value
