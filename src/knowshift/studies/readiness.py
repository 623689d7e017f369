"""What must be ready before a study can start, and what of it is at hand; only :func:`find_base` asks the network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from knowshift.errors import InputError, border
from knowshift.facts.fact import Fact
from knowshift.facts.sources.fetching import URL, cached_entity_questions
from knowshift.files import digest
from knowshift.models.divided import check_divisible
from knowshift.models.finding import WANTED, ModelFiles, check_model_files, find_model, hub_id, model_folder
from knowshift.models.loading import load_tokenizer
from knowshift.parameters.files.adapter import is_adapter, read_adapter
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.studies.config import Executor, StudyConfig
from knowshift.studies.shape import Shape, known_models
from knowshift.tasks.measured import Task
from knowshift.tasks.other import OWN, check_tasks, read_tasks
from knowshift.tasks.text_loss import NAME, read_text

#: Facts of EntityQuestions after the paper's filter: in-domain training, in-domain test, out-of-domain test.
ENTITY_QUESTIONS = (75_944, 9_555, 11_613)
#: A task of lm-eval whose documents come with the package.
SHIPPED = ("knowshift_world_tiny",)


def find_base(config: StudyConfig) -> ModelFiles:
    """Where the model of a study lies; a hub id is fetched."""
    return find_model(config.model, revision=config.revision, base=config.base, base_revision=config.base_revision)


def find_instruct(config: StudyConfig) -> ModelFiles | None:
    """Where the instruct model of a study lies; a hub id is fetched. None where there is none."""
    return None if config.instruct is None else find_model(config.instruct, revision=config.instruct_revision)


def inputs_beside(config: StudyConfig) -> dict[str, dict[str, Any]]:
    """Inputs of cells that only a study with an instruct model or with other tasks has, by kind of cell.

    Raises:
        InputError: an instruct model that is not found or has no tokenizer, a task that is not known, texts that
            cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    if (files := find_instruct(config)) is not None:
        load_tokenizer(files)
        found["instruct"] = {"instruct": files.identity()}
    if config.restoration.tasks or config.restoration.texts is not None:
        names, texts = config.restoration.tasks, _texts(config)
        check_tasks((*names, NAME) if config.bench.strategies else names, texts)
        told: dict[str, Any] = {}
        if not set(names) <= set(OWN):
            told["lm_eval"] = importlib.metadata.version("lm_eval")
        if texts is not None:
            told["texts"] = digest(read_text(texts))
        found["tasks"] = told
    return found


def check_texts(config: StudyConfig, wanted: str | None) -> None:
    """Refuse texts that are not those of the plan: of a file edited meanwhile, or of another one on another node.

    Raises:
        InputError: names the file.
    """
    texts = _texts(config)
    if texts is not None and digest(read_text(texts)) != wanted:
        raise InputError(f"{texts}: is not the file that the study was planned with; start the study again")


def other_tasks(config: StudyConfig, facts: Sequence[Fact]) -> list[Task]:
    """The tasks that a study asks beside facts, ready to be asked; data sets are fetched.

    Raises:
        InputError: as :func:`knowshift.tasks.other.read_tasks`.
    """
    restoration, texts = config.restoration, _texts(config)
    return read_tasks(
        restoration.tasks,
        limit=restoration.tasks_limit,
        seed=config.seed,
        source=config.facts,
        facts=facts,
        texts=texts,
    )


def held_out_texts(config: StudyConfig, facts: Sequence[Fact]) -> Task | None:
    """The texts whose loss a bench tells: ``restoration.texts``, or sentences of a world; None where there are none."""
    texts = _texts(config)
    if texts is None and not config.facts.startswith("world:"):
        return None
    return read_tasks(
        (NAME,), limit=config.bench.texts, seed=config.seed, source=config.facts, facts=facts, texts=texts
    )[0]


def _texts(config: StudyConfig) -> Path | None:
    return None if config.restoration.texts is None else Path(config.restoration.texts)


def weights_of(files: ModelFiles) -> int:
    """Weights of a model on disk, from the headers of its files."""
    return sum(math.prod(shape) for shape in StoredTensors(files.weights).shapes.values())


@dataclass(frozen=True)
class Readiness:
    """What of a study is at hand, and what its user must still do, one line each."""

    model: bool
    facts: bool
    device: bool
    packages: bool
    to_do: tuple[str, ...]

    @property
    def all(self) -> bool:
        """Whether the plan can be made with the digests of its cells."""
        return self.model and self.facts and self.device and self.packages


def readiness(config: StudyConfig, executor: Executor) -> Readiness:
    """What is at hand of model, facts, packages and device.

    Raises:
        InputError: a path of the config that is not there, a task that is not known.
    """
    to_do = []
    model = config.base or config.model
    cached = cached_model(config)
    if cached is None:
        known = known_models().get(model)
        size = f", about {2 * known.shape.weights / 1e9:,.0f} GB in 16 bits" if known else ""
        gated = (
            f"; gated: accept its licence at https://huggingface.co/{model}, then `hf auth login` or HF_TOKEN"
            if known and known.gated
            else ""
        )
        to_do.append(f"model: {model} is fetched from the hub at the first run{size}{gated}")
    facts = config.facts != "entity-questions" or cached_entity_questions() is not None
    if not facts:
        to_do.append(f"facts: fetched at the first run from {URL}; or give --facts entity-questions:PATH")
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        to_do.append("package: pip install 'knowshift[ray]'")
    report_to = config.training.report_to
    if report_to not in ("none", "all") and not _installed(report_to):
        to_do.append(f"package: pip install {report_to}, for training.report_to")
    instruct = _instruct_at_hand(config)
    if not instruct:
        to_do.append(f"model: {config.instruct} is fetched from the hub at the first run{_as_the_base(model)}")
    theirs = [name for name in config.restoration.tasks if name not in OWN]
    harness = not theirs or _installed("lm_eval")
    if harness:
        check_tasks(config.restoration.tasks, _texts(config))
    else:
        to_do.append("package: pip install 'knowshift[lm-eval]', for restoration.tasks")
    if fetched := [name for name in theirs if name not in SHIPPED]:
        to_do.append(
            f"data: lm-eval fetches the data sets of {', '.join(fetched)} at the first run, if they are not cached"
        )
    device = config.device.split(":")[0] != "cuda" or torch.cuda.is_available()
    if not device:
        to_do.append(f"device: {config.device}, which this machine does not have")
    return Readiness(cached is not None and instruct, facts, device, harness, tuple(to_do))


def _as_the_base(model: str) -> str:
    """Of a vendor's other model, what its base's terms let expect."""
    known = known_models().get(model)
    return f"; gated, where it asks for the same licence as {model}" if known and known.gated else ""


def _instruct_at_hand(config: StudyConfig) -> bool:
    """Whether there is none, or it needs no network."""
    if config.instruct is None:
        return True
    name = hub_id(config.instruct)
    if name is None:
        find_instruct(config)
        return True
    return _in_cache(name, config.instruct_revision) is not None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ValueError, ImportError):  # no name of a module, or a part of one that is not there
        return False


def cached_model(config: StudyConfig) -> Path | None:
    """The folder of a study's model, or of an adapter's base: a local one, or one in the hub's cache; else None."""
    name, revision = hub_id(config.model), config.revision
    if name is None:
        folder = model_folder(config.model)
        adapter = read_adapter(folder) if is_adapter(folder) else None
        base = None if adapter is None else config.base or adapter.base_name
        name = None if base is None else hub_id(base)
        if adapter is None or base is None or name is None:
            return find_base(config).weights
        revision = config.base_revision or (None if config.base else adapter.config.get("revision"))
    return _in_cache(name, revision)


def _in_cache(name: str, revision: str | None) -> Path | None:
    """The folder of a whole model in the hub's cache."""
    try:
        with border(f"{name}: cannot be looked up in the hub's cache"):
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=WANTED))
        if is_adapter(folder):
            return None
        check_model_files(name, folder)
    except InputError:  # not there, or only a part of it
        return None
    return folder


def shape_at_hand(config: StudyConfig) -> Shape | None:
    """The shape of a study's model: from its files where they are at hand, else as the presets know it."""
    folder = cached_model(config)
    if folder is None:
        known = known_models().get(config.base or config.model)
        return None if known is None else known.shape
    return Shape.of(StoredTensors(folder).config)


def check_dividable(config: StudyConfig) -> None:
    """Refuse a model that cannot be divided among the devices of a worker, by its configuration, if that is at hand.

    Raises:
        InputError: as :func:`knowshift.models.divided.check_divisible`, of the model or the instruct model.
    """
    if config.devices == 1:
        return
    folder, known = cached_model(config), known_models().get(config.base or config.model)
    if folder is not None:
        check_divisible(config.model, StoredTensors(folder).config, config.devices)
    elif known is not None:
        check_divisible(config.model, known.config, config.devices)
    if config.instruct is not None and _instruct_at_hand(config):
        files = find_instruct(config)
        assert files is not None
        check_divisible(config.instruct, StoredTensors(files.weights).config, config.devices)


def probed_of(config: StudyConfig) -> tuple[int, int]:
    """(training, test) facts of EntityQuestions that are probed, from its known totals."""
    train, *tests = ENTITY_QUESTIONS
    mastery = config.mastery
    most = mastery.test_facts
    return min(train, mastery.train_facts or train), sum(min(test, most or test) for test in tests)
