"""Arguments of the verbs: models, facts and mastery records, in every form that is accepted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union, cast

import pyarrow as pa
import yaml

from knowshift.errors import InputError, border
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import FactSource
from knowshift.facts.sources.load import load_facts as _load_facts
from knowshift.files import digest
from knowshift.known_facts import KnownFacts, known_facts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from knowshift.api.measures import Mastery
    from knowshift.models.loading import LoadedModel

#: A folder, a hub id, ``world:tiny``, an adapter; or a model that is loaded already.
ModelLike: TypeAlias = Union[str, Path, "LoadedModel", "PreTrainedModel"]
#: A source by name (docs/facts.md), or facts.
FactsLike: TypeAlias = str | Path | FactSource | Sequence[Fact]
#: A mastery record: its file, what :func:`knowshift.mastery` returned, or its table.
MasteryLike: TypeAlias = Union[str, Path, "Mastery", pa.Table]


def load_model(
    model: ModelLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    base: str | None = None,
    base_revision: str | None = None,
) -> LoadedModel:
    """A model with its tokenizer, as every verb takes it: load it once, use it often.

    Args:
        model: a local folder, a hub id, ``world:tiny`` (the shipped model), ``world:PATH``, an adapter (PEFT), or a
            loaded transformers model, which is put into evaluation mode and used on its device, in its dtype. Its
            weights may have changed since they were loaded: ``identity`` in records is the digest of the present ones.
        tokenizer: of a loaded transformers model; where not given, that of the folder the model was loaded from.
        dtype: "float32", "bfloat16", "float16", or "auto" for the stored one.
        device: a torch device, or "auto" (cuda where there is one).
        base: the model an adapter is put on; where not given, what its configuration says.

    Raises:
        InputError: whatever is missing, pickled, damaged or not finite, and an option that the model cannot take.
    """
    from knowshift.models.loading import LoadedModel, weights_digest
    from knowshift.models.loading import load_model as load

    if tokenizer is not None and isinstance(model, (str, Path, LoadedModel)):
        raise InputError(
            f"tokenizer: {getattr(model, 'name', model)} brings its own; give one with a transformers model"
        )
    if not isinstance(model, (str, Path)):
        for option, value in (("revision", revision), ("base", base), ("base_revision", base_revision)):
            if value is not None:
                raise InputError(f"{option} {repr(value)[:80]}: for a model by name; this one is loaded already")
    if isinstance(model, LoadedModel):
        model.model.eval()
        return replace(model, identity=digest([model.identity, weights_digest(model.model)]))
    if isinstance(model, (str, Path)):
        options = {"revision": revision, "dtype": dtype, "device": device, "base": base}
        return load(str(model), base_revision=base_revision, **options)  # type: ignore[arg-type]
    return _in_memory(model, tokenizer)


def _in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
    """A loaded model with a temporary folder for the files beside its weights, so that it can be saved too."""
    from transformers import PreTrainedModel

    from knowshift.models.finding import ModelFiles, model_identity
    from knowshift.models.loading import LoadedModel, load_tokenizer, weights_digest
    from knowshift.models.vocabulary import check_vocabulary

    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"a model of type {type(model).__name__}; expected a folder, a hub id or a transformers model "
            "(of a PEFT model give the merged one, or the adapter's folder)"
        )
    name = str(model.name_or_path or "the loaded model")
    if tokenizer is None:
        if not Path(name).is_dir():
            raise InputError(f"{name}: no folder with a tokenizer; give load_model(model, tokenizer=...)")
        tokenizer = load_tokenizer(ModelFiles(name, Path(name)))
    scratch = tempfile.TemporaryDirectory(prefix="knowshift-model-")
    folder = Path(scratch.name)
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=name,
        folder=folder,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        identity=digest([model_identity(folder), weights_digest(model)]),
        scratch=scratch,
    )
    check_vocabulary(name, loaded.tokenizer, loaded.vocabulary, loaded.encoder.prefix)
    return loaded


def load_facts(source: FactsLike, *, aliases: bool = True) -> FactSource:
    """Facts by the name of their source: ``world:tiny``, ``entity-questions[:PATH]``, a table (docs/facts.md).

    ``aliases=False`` accepts the answers alone. A list of facts gets the name "facts".

    Raises:
        InputError: an unknown source, or a file that is missing or malformed.
    """
    if isinstance(source, FactSource):
        return source
    if isinstance(source, (str, Path)):
        return _load_facts(str(source), aliases)
    facts = cast("tuple[Fact, ...]", tuple(source) if isinstance(source, Sequence) else (source,))
    if other := next((fact for fact in facts if not isinstance(fact, Fact)), None):
        raise InputError(f"facts of type {type(other).__name__}; expected a source's name or knowshift.facts.fact.Fact")
    return FactSource("facts", facts)


def with_mastery(facts: FactsLike, mastery: MasteryLike) -> tuple[KnownFacts, str, str]:
    """What the base model knows of facts, and what records call the source (as it was given) and the mastery record.

    Raises:
        InputError: a bad source or record, or a record of other facts.
    """
    loaded = load_facts(facts)
    source = str(facts) if isinstance(facts, (str, Path)) else loaded.name
    if isinstance(mastery, (str, Path)):
        record: Path | pa.Table = Path(mastery)
        name = Path(mastery).name
    else:
        record = mastery if isinstance(mastery, pa.Table) else getattr(mastery, "table", None)
        if not isinstance(record, pa.Table):
            raise InputError(f"a mastery record of type {type(mastery).__name__}; expected a file or an Arrow table")
        name = "in memory"
    return known_facts(loaded.facts, record, source), source, name


#: Values by name, or texts KEY=VALUE with values in YAML.
Named = Mapping[str, Any] | Sequence[str]


def values_of(given: Named, option: str, example: str) -> dict[str, Any]:
    """Values by name, as they are given from Python or on a command line.

    Args:
        option: of the command line, for errors.
        example: a text that is none, for errors.

    Raises:
        InputError: a text that is not KEY=VALUE, or whose value is not YAML.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str):
        raise InputError(f"{option} {given!r}: expected a list of texts such as {example!r}, or values by name")
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} {text}: expected KEY=VALUE, such as {example}")
        with border(f"{option} {text}: the value is not YAML"):
            values[name.strip()] = yaml.safe_load(value)
    return values
