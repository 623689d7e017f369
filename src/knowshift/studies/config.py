"""What a study is: models, facts, levels, sizes, draws, fractions. One YAML file, checked in one place."""

from __future__ import annotations

import importlib.resources
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, field_validator

from knowshift.errors import InputError, border, nearest
from knowshift.parameters.methods import METHODS
from knowshift.parameters.regions import REGIONS
from knowshift.parameters.selection.published import SPECTRAL
from knowshift.training.precision import check_trainable

#: Criteria that a study restores by: every method that takes fractions.
RESTORED_BY = tuple(method for method in METHODS if method not in SPECTRAL)

#: Nested aliases expand to gigabytes from a few lines of YAML: messages show only the top of a value.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = 80

#: The size of a training set that holds every training fact of its level.
ALL: Literal["all"] = "all"
#: The name of the largest size trained again at a smaller rate: a variant of every study that does not say otherwise.
RATE_CONTROL = "learning_rate"
#: The levels of a training set that takes facts of every level in turn.
MIXED: Literal["mixed"] = "mixed"


def _size(value: object) -> int | Literal["all"]:
    if value == ALL:
        return ALL
    if type(value) is not int or value < 1:
        raise ValueError("expected a whole number, 1 or more, or 'all'")
    return value


Level = Annotated[int, Field(ge=0, le=4)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Size = Annotated[int | Literal["all"], PlainValidator(_size)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MasteryConfig(_Strict):
    """How the base model's knowledge is probed (paper 2.3)."""

    draws_per_prompt: int = Field(10, ge=1)  # samples of each completion prompt
    temperature: float = Field(0.7, gt=0, allow_inf_nan=False)
    max_new_tokens: int = Field(32, ge=1)
    stopping: Literal["full", "exact", "sequential"] = "full"  # exact: the same levels from fewer draws
    estimate: Literal["hits", "expected"] = "hits"  # expected: the model's own probabilities along few texts
    texts: int | None = Field(None, ge=2)  # of each prompt, for expected; where not given, as many as they differ by
    train_facts: int | None = Field(None, ge=1)  # probe only so many training facts of a seeded shuffle
    test_facts: int | None = Field(None, ge=1)  # likewise of the test facts of each domain
    facts_per_cell: int = Field(500, ge=1)  # one resumable piece of work
    servers: tuple[str, ...] = ()  # URLs of completions servers that are asked instead of the model in the workers
    dtype: Literal["bfloat16", "float16"] | None = None  # of the model that is probed, for a study in float32
    least_weight: float | None = Field(None, gt=0, allow_inf_nan=False)  # of a text drawn here, for expected; None: 0.1

    @field_validator("least_weight")
    @classmethod
    def _without_effect(cls, value: float | None, info: ValidationInfo) -> float | None:
        """None where nothing depends on it: a preset that has one may be asked for hits, or with servers."""
        return None if info.data.get("estimate") == "hits" or info.data.get("servers") else value


class TrainingConfig(_Strict):
    """Fine-tuning (paper 2.2)."""

    learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False)
    batch_size: int = Field(8, ge=1)  # facts of one update
    epochs: int = Field(1, ge=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    bfloat16: bool = False  # autocast over the loaded weights
    gradient_checkpointing: bool = False
    shared_prefix: bool = False  # every batch as one row, its common beginning once: the same gradients, faster
    shards: int = Field(1, ge=1)  # processes, each with a device of its own, among which the weights are divided
    report_to: str = "none"  # passed through to the Trainer


class LoraConfig(_Strict):
    """Low-rank adapters on all linear layers of the transformer, merged into the weights after training."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False)  # the update is scaled by alpha / rank


class VariantConfig(_Strict):
    """A training beside the grid. What is not given is as in the grid, at its largest size."""

    levels: tuple[Level, ...] | Literal["mixed"] | None = None  # mixed: all levels of the study in turn
    sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    draws: int | None = Field(None, ge=1)  # the first of the grid's, and no more than it has
    distinct_facts: int | None = Field(None, ge=1)  # of every training set; repeated, so that updates stay as many
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    batch_size: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    schedule: Literal["cosine", "linear", "constant"] | None = None
    dtype: Literal["bfloat16"] | None = None  # of the weights while they are trained
    lora: LoraConfig | None = None  # the strategy lora, with these settings
    strategy: str | None = None  # of `knowshift finetune --strategy help`
    settings: dict[str, bool | int | float | str] = {}  # of the strategy

    def changed(self) -> dict[str, Any]:
        """What of the training is otherwise than in the grid, beside levels, sizes and the learning rate.

        With all settings of a strategy: a default that is another one later makes another training.
        """
        from knowshift.tuning.registry import strategy_of

        fields = {"distinct_facts", "batch_size", "epochs", "schedule", "dtype", "lora", "strategy"}
        told = self.model_dump(mode="json", include=fields, exclude_none=True)
        settings = asdict(strategy_of(self.strategy, self.settings)) if self.strategy is not None else {}
        return {**told, "settings": settings} if settings else told


#: What a bench is told of a strategy: its settings, and more.
_Told = dict[str, bool | int | float | str | tuple[float, ...]]


class BenchConfig(_Strict):
    """Strategies on equal terms: the same facts, draws and number of updates, each at learning rates of its own."""

    #: Settings by strategy; under a name of one's own, "strategy" says which: {kl-strong: {strategy: kl, weight: 1}};
    #: "size" is the number of training facts of this one alone, "rates" are the rates of this one alone.
    strategies: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")], _Told] = {}
    rates: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (0.1, 0.3, 1.0, 3.0)  # of the study's own
    levels: tuple[Level, ...] | Literal["mixed"] = "mixed"  # mixed: all levels of the study in turn; or one level
    sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = None  # the largest where not given
    draws: int | None = Field(None, ge=1)  # the first of the grid's, and no more than it has
    train_facts: int = Field(100, ge=1)  # at most so many of each training set are asked
    texts: int = Field(60, ge=1)  # at most so many held-out texts

    def variants(self, learning_rate: float) -> dict[str, VariantConfig]:
        """Every training of the bench, by strategy and rate ("kl@0.0003"); rates are the strategy's own, times these.

        Raises:
            InputError: no such strategy, or a setting that it does not have.
        """
        from knowshift.tuning.registry import STRATEGIES, strategy_of

        found: dict[str, VariantConfig] = {}
        for label, told in self.strategies.items():
            place = f"bench.strategies.{label}"
            settings = {name: value for name, value in told.items() if not isinstance(value, tuple)}
            name, size = str(settings.pop("strategy", label)), settings.pop("size", None)
            if size is not None and not (type(size) is int and size > 0):
                raise InputError(f"{place}.size: expected a number of training facts, found {size!r}")
            rates = told.get("rates", self.rates)
            if not isinstance(rates, tuple) or not rates or len(set(rates)) < len(rates) or not _positive(rates):
                raise InputError(f"{place}.rates: expected distinct numbers above 0, found {_shown(rates)}")
            for several, value in told.items():
                if isinstance(value, tuple) and several != "rates":
                    raise InputError(f"{place}.{several}: expected one value, found {_shown(value)}")
            strategy_of(name, settings, place)
            for rate in rates:
                own = float(f"{learning_rate * STRATEGIES[name].rate * rate:.6g}")
                found[f"{label}@{own:g}"] = VariantConfig(
                    levels=self.levels,
                    sizes=self.sizes if size is None else (int(size),),
                    draws=self.draws,
                    learning_rate=own,
                    strategy=name,
                    settings=settings,
                )
        return found


def _positive(rates: Sequence[float]) -> bool:
    return all(0 < rate < math.inf for rate in rates)


def _shown(value: object) -> str:
    """As it stands in YAML."""
    return repr(list(value) if isinstance(value, tuple) else value)


class EvaluationConfig(_Strict):
    """Closed-book answers (paper 2.2)."""

    levels: tuple[Level, ...] | None = Field(None, min_length=1)  # of the test facts asked; all where not given
    facts_per_level: int | None = Field(None, ge=1)  # at most so many test facts of each domain and level
    few_shot: int = Field(4, ge=0)  # answered examples shown to the untuned base model


class RestorationConfig(_Strict):
    """Putting the most-changed weights back (paper 4.3), and the control that picks them at random."""

    fractions: tuple[Fraction, ...] = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)
    criteria: tuple[str, ...] = ("relative", "random")
    region: str = "layers"
    sizes: tuple[int, ...] | None = None  # training sizes whose models are restored; the largest where not given
    train_set_fractions: tuple[Fraction, ...] = (0.05, 0.2)  # the training set is asked after these (paper, Table 6)
    train_set_facts: int | None = Field(None, ge=1)  # at most so many facts of each training set, drawn at random
    layer_group: int = Field(4, ge=0)  # so many layers at a time are restored whole (paper, Table 11); 0: none
    tasks: tuple[str, ...] = ()  # other tasks asked of base, tuned and restored models (paper, Table 5)
    tasks_limit: int | None = Field(None, ge=1)  # at most so many items of each, a seeded choice
    texts: str | None = None  # a text file whose loss the task text_loss is; a world has sentences of its own


class StudyConfig(_Strict):
    """A whole study. Every field that is not given has the paper's value."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)  # of the run folder too
    model: str
    facts: str
    revision: str | None = None
    base: str | None = None  # the base of an adapter; where not given, the one that its configuration names
    base_revision: str | None = None
    instruct: str | None = (
        None  # another model that answers the test facts: its vendor's instruct model (paper, Table 7)
    )
    instruct_revision: str | None = None
    dtype: str = "float32"  # in which the model is loaded, tuned and measured; not float16
    device: str = "cpu"
    devices: int = Field(1, ge=1)  # of one worker, among which the layers of every model are divided
    threads: int = Field(1, ge=1)  # CPU threads of one worker; the same for every executor, so records are the same
    seed: int = Field(0, ge=0, lt=2**31)
    levels: tuple[Level, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    sizes: tuple[Size, ...] = Field((60, 240, 960, 1920), min_length=1)  # and "all": all facts of the level
    draws: int = Field(5, ge=1)  # random training sets of each level
    control_rate: float | None = Field(
        1 / 3, gt=0, allow_inf_nan=False
    )  # the largest size again at this share of the learning rate
    control_draws: int | None = Field(None, ge=1)  # draws of that control; as many as of the grid where not given
    variants: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")], VariantConfig] = {}  # by name
    bench: BenchConfig = BenchConfig()
    keep_checkpoints: bool = True  # off: a tuned model is made again if a measure of it is missing
    mastery: MasteryConfig = MasteryConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    restoration: RestorationConfig = RestorationConfig()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The sizes that are numbers; "all" is another number of facts for each level."""
        return tuple(size for size in self.sizes if not isinstance(size, str))

    @property
    def largest(self) -> int:
        """The largest number: the size of the learning-rate control, and of the models that are restored."""
        return max(self.numbers)

    @property
    def trained_otherwise(self) -> dict[str, VariantConfig]:
        """Every training beside the grid, by the coordinate "control": the learning-rate control, and the variants."""
        if self.control_rate is None:
            return self.variants
        rate = self.training.learning_rate * self.control_rate
        return {RATE_CONTROL: VariantConfig(learning_rate=rate, draws=self.control_draws), **self.variants}

    @cached_property
    def benched(self) -> dict[str, VariantConfig]:
        """The trainings of the bench, by the coordinate "control"."""
        return self.bench.variants(self.training.learning_rate)

    def sizes_of(self, variant: VariantConfig) -> tuple[int, ...]:
        """The sizes of a variant's training sets."""
        return variant.sizes or (self.largest,)

    @property
    def shards(self) -> int:
        """Devices of one worker, among which a training is divided."""
        return max(self.devices, self.training.shards)

    @property
    def restored_sizes(self) -> tuple[int, ...]:
        return self.restoration.sizes if self.restoration.sizes is not None else (self.largest,)

    def as_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def presets() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = importlib.resources.files("knowshift.studies") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """A shipped configuration; ``overrides`` as in :func:`parse_config`.

    Raises:
        InputError: no such preset; what :func:`parse_config` refuses.
    """
    if name not in presets():
        raise InputError(f"no preset {name!r}{nearest(name, presets())}")
    text = (importlib.resources.files("knowshift.studies") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_config(text, f"preset {name}", overrides)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """A configuration from a YAML file; ``overrides`` as in :func:`parse_config`.

    Raises:
        InputError: no such file, not YAML, an unknown key (with the nearest), a value of the wrong kind.
    """
    with border(f"{path}: cannot be read"):
        text = path.read_text(encoding="utf-8")
    return parse_config(text, str(path), overrides)


def parse_config(text: str, origin: str, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Parse and check YAML text; ``origin`` names it in errors.

    ``overrides`` are values by dotted key ("training.learning_rate") that replace those of the text. An error in one
    of them names "--set KEY" instead of ``origin``.
    """
    with border(f"{origin}: not YAML"):
        data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise InputError(f"{origin}: expected a mapping of keys to values, found {type(data).__name__}")
    for key, value in (overrides or {}).items():
        _override(data, key, value, origin)
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(
                f"{origin}: unknown key {where!r}{nearest(str(first['loc'][-1]), _keys(first['loc'][:-1]))}"
            ) from None
        given = any(f"{where}.".startswith(f"{key}.") for key in overrides or {})
        place = f"--set {where}" if given else f"{origin}: {where}"
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{place}: {said} (found {_SHORT.repr(first.get('input'))})") from None
    _check_together(config, origin)
    return config


def dotted_keys() -> list[str]:
    """Every field of a configuration: "seed", "training.learning_rate"."""
    return [
        f"{name}.{inner}" if inner else name
        for name, field in StudyConfig.model_fields.items()
        for inner in (_keys((name,)) if _is_section(field.annotation) else [""])
    ]


def _override(data: dict[Any, Any], key: str, value: Any, origin: str) -> None:
    """Put a value at a dotted key into the content of a file, whose section may be missing or no section."""
    if key not in (known := dotted_keys()):
        raise InputError(f"--set {key}: unknown key{nearest(key, known)}")
    section, _, name = key.rpartition(".")
    place = data if not section else data.setdefault(section, {})
    if not isinstance(place, dict):
        raise InputError(f"{origin}: {section}: expected a mapping, found {_SHORT.repr(place)}")
    place[name] = value


def _check_together(config: StudyConfig, origin: str) -> None:
    """Refuse values that are of the right kind, but not for one another or for this program."""
    check_trainable(f"{origin}: dtype", config.dtype)
    _check_mastery(origin, config)
    _check_shards(origin, config)
    if not config.numbers:
        raise InputError(f"{origin}: sizes: expected at least one number beside 'all', found {list(config.sizes)}")
    if missing := sorted(set(config.restored_sizes) - set(config.numbers)):
        raise InputError(f"{origin}: restoration.sizes: {missing[0]} is not among the sizes {list(config.sizes)}")
    restoration = config.restoration
    if len(set(restoration.tasks)) != len(restoration.tasks) or not all(restoration.tasks):
        raise InputError(f"{origin}: restoration.tasks: expected distinct names, found {list(restoration.tasks)}")
    for field, values in (("levels", config.levels), ("sizes", config.sizes), ("criteria", restoration.criteria)):
        if not values or len(set(values)) != len(values):
            raise InputError(f"{origin}: {field}: expected distinct values, found {list(values)}")
    for field, fractions in (
        ("fractions", restoration.fractions),
        ("train_set_fractions", restoration.train_set_fractions),
    ):
        if (field == "fractions" and not fractions) or sorted(set(fractions)) != list(fractions):
            raise InputError(f"{origin}: {field}: expected ascending values, found {list(fractions)}")
    for criterion in restoration.criteria:
        if criterion in SPECTRAL:
            raise InputError(f"{origin}: criterion {criterion!r} sets its own threshold and takes no fraction")
        if criterion not in RESTORED_BY:
            raise InputError(f"{origin}: criterion {criterion!r} is not known{nearest(criterion, RESTORED_BY)}")
    for name, variant in config.variants.items():
        _check_variant(f"{origin}: variants.{name}", config, variant)
    for name, variant in _benched(origin, config).items():
        _check_variant(f"{origin}: bench.strategies.{name}", config, variant)
    if restoration.region not in REGIONS:
        raise InputError(f"{origin}: region {restoration.region!r} is not known{nearest(restoration.region, REGIONS)}")


def _check_variant(place: str, config: StudyConfig, variant: VariantConfig) -> None:
    """Refuse a variant that cannot be trained, or that is the grid itself."""
    if place.endswith(f".{ALL}"):
        raise InputError(f"{place}: {ALL!r} names the training sets of all facts of a level; choose another name")
    if isinstance(variant.levels, tuple) and (not variant.levels or not set(variant.levels) <= set(config.levels)):
        raise InputError(f"{place}.levels: expected some of the levels {list(config.levels)}, or {MIXED!r}")
    for field, values in (("levels", variant.levels), ("sizes", variant.sizes)):
        if isinstance(values, tuple) and (not values or len(set(values)) != len(values)):
            raise InputError(f"{place}.{field}: expected distinct values, found {list(values)}")
    for size in config.sizes_of(variant) if variant.distinct_facts else ():
        if size % (variant.distinct_facts or 1):
            raise InputError(
                f"{place}.distinct_facts: {variant.distinct_facts} facts cannot be repeated to {size} evenly"
            )
    _check_strategy(place, config, variant)
    grid = {"dtype": config.dtype, **config.training.model_dump(include={"batch_size", "epochs", "schedule"})}
    for field, value in variant.changed().items():
        if grid.get(field) == value:
            raise InputError(f"{place}.{field}: {value!r} is the grid's own; leave it out")
    same_rate = variant.learning_rate in (None, config.training.learning_rate)
    if same_rate and not variant.changed() and variant.levels != MIXED:
        raise InputError(f"{place}: is the grid itself; give what is to differ, e.g. learning_rate, epochs or levels")


def _benched(origin: str, config: StudyConfig) -> dict[str, VariantConfig]:
    if not config.bench.rates or len(set(config.bench.rates)) != len(config.bench.rates):
        raise InputError(f"{origin}: bench.rates: expected distinct values, found {list(config.bench.rates)}")
    if isinstance(config.bench.levels, tuple) and len(config.bench.levels) != 1:
        raise InputError(f"{origin}: bench.levels: expected {MIXED!r} or one level, found {list(config.bench.levels)}")
    try:
        return config.benched
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _check_strategy(place: str, config: StudyConfig, variant: VariantConfig) -> None:
    """Refuse now what :func:`knowshift.tuning.registry.strategy_of` would, and what does not go together."""
    from knowshift.tuning.registry import strategy_of

    if variant.strategy is None:
        if variant.settings:
            raise InputError(f"{place}.settings: are those of a strategy; give strategy too")
        return
    strategy_of(variant.strategy, variant.settings, place)
    if variant.lora is not None or variant.dtype is not None:
        other = "lora" if variant.lora is not None else "dtype"
        raise InputError(f"{place}.{other}: a variant changes the strategy or this; expected one of them")
    if config.shards > 1:
        field = "devices" if config.devices > 1 else "training.shards"
        raise InputError(f"{place}.strategy: {variant.strategy!r} is trained by one process; expected {field}: 1")


def _check_shards(origin: str, config: StudyConfig) -> None:
    """Refuse what a training that is divided among processes cannot do."""
    shards, field = config.shards, "devices" if config.devices > 1 else "training.shards"
    if shards == 1:
        return
    if config.devices > 1 and config.training.shards not in (1, config.devices):
        raise InputError(
            f"{origin}: training.shards: a training is divided among the {config.devices} devices of a worker; "
            f"expected {config.devices} or no value, found {config.training.shards}"
        )
    if ":" in config.device:
        raise InputError(
            f"{origin}: {field}: {shards} processes take the first {shards} GPUs; expected device: cuda, "
            f"found {config.device!r} (CUDA_VISIBLE_DEVICES says which GPUs there are)"
        )
    for name, variant in config.variants.items():
        if variant.dtype is not None:
            raise InputError(
                f"{origin}: variants.{name}.dtype: a training of {shards} processes has the study's dtype; expected "
                f"{field}: 1"
            )
    if config.training.report_to != "none":
        raise InputError(
            f"{origin}: training.report_to: {config.training.report_to!r} logs a training of one process; "
            f"expected none with {shards} shards"
        )


def _check_mastery(origin: str, config: StudyConfig) -> None:
    """Refuse now what measuring would refuse."""
    from knowshift.models.server.settings import Address
    from knowshift.probing.measure import Protocol  # imports torch

    mastery = config.mastery
    try:
        Protocol(
            estimate=mastery.estimate,
            texts=mastery.texts,
            least_weight=mastery.least_weight,
            stopping=mastery.stopping,
        )
        addresses = [Address.parse(url) for url in mastery.servers]
    except InputError as error:
        raise InputError(f"{origin}: mastery: {error}") from None
    if mastery.dtype is not None and mastery.servers:
        raise InputError(
            f"{origin}: mastery.dtype: {mastery.dtype!r} is of a model in the workers, servers have their own; "
            "expected only one of mastery.dtype and mastery.servers"
        )
    if mastery.dtype is not None and config.dtype != "float32":
        raise InputError(
            f"{origin}: mastery.dtype: {mastery.dtype!r} is for a study in float32, and this one is in {config.dtype}; "
            "expected none"
        )
    if len(set(addresses)) != len(addresses):
        raise InputError(f"{origin}: mastery.servers: expected distinct addresses, found {list(mastery.servers)}")


def _keys(path: tuple[int | str, ...]) -> list[str]:
    """Valid keys of the section at ``path``."""
    place: Any = StudyConfig
    for part in path:
        if get_origin(place) is dict:  # of sections by name
            place = get_args(place)[1]
            continue
        annotation = place.model_fields[str(part)].annotation
        place = next((kind for kind in get_args(annotation) if _is_section(kind)), annotation)
        if get_origin(annotation) is dict:
            place = annotation
    return list(place.model_fields)


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


Executor = Literal["here", "processes", "ray"]
