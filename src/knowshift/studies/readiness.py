"""What must be ready before a study can start, and what of it is at hand; only :func:`find_base` asks the network."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from knowshift.errors import InputError, border
from knowshift.facts.sources.fetching import URL, cached_entity_questions
from knowshift.models.finding import WANTED, ModelFiles, check_model_files, find_model, hub_id, model_folder
from knowshift.parameters.files.adapter import is_adapter, read_adapter
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.studies.config import Executor, StudyConfig
from knowshift.studies.shape import Shape, known_models

#: Facts of EntityQuestions after the paper's filter: in-domain training, in-domain test, out-of-domain test.
ENTITY_QUESTIONS = (75_944, 9_555, 11_613)


def find_base(config: StudyConfig) -> ModelFiles:
    """Where the model of a study lies; a hub id is fetched."""
    return find_model(config.model, revision=config.revision, base=config.base, base_revision=config.base_revision)


def weights_of(files: ModelFiles) -> int:
    """Weights of a model on disk, from the headers of its files."""
    return sum(math.prod(shape) for shape in StoredTensors(files.weights).shapes.values())


@dataclass(frozen=True)
class Readiness:
    """What of a study is at hand, and what its user must still do, one line each."""

    model: bool
    facts: bool
    device: bool
    to_do: tuple[str, ...]

    @property
    def all(self) -> bool:
        """Whether the plan can be made with the digests of its cells."""
        return self.model and self.facts and self.device


def readiness(config: StudyConfig, executor: Executor) -> Readiness:
    """What is at hand of model, facts, packages and device.

    Raises:
        InputError: a path of the config that is not there.
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
    device = config.device.split(":")[0] != "cuda" or torch.cuda.is_available()
    if not device:
        to_do.append(f"device: {config.device}, which this machine does not have")
    return Readiness(cached is not None, facts, device, tuple(to_do))


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


def probed_of(config: StudyConfig) -> tuple[int, int]:
    """(training, test) facts of EntityQuestions that are probed, from its known totals."""
    train, *tests = ENTITY_QUESTIONS
    mastery = config.mastery
    most = mastery.test_facts
    return min(train, mastery.train_facts or train), sum(min(test, most or test) for test in tests)
