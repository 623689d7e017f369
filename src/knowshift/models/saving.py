"""Saving a tuned model: new weights, and beside them the very files of the model it was made from.

What a Trainer leaves on a model (no cache, another pad token, more end tokens, a patched forward) is not part of the
tuned model: :func:`unchanged` undoes it in memory, and :func:`save_model` writes none of it.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from knowshift.models.loading import LoadedModel
from knowshift.parameters.files.companions import TOKENIZER, copy_files
from knowshift.parameters.slices import slices_of
from knowshift.system.quiet import no_bars_of_transformers

_CONFIG = "config.json"
#: A dtype in the text of a config, under its name of now or of before transformers 5.
_DTYPE = re.compile(rb'("(?:torch_)?dtype"\s*:\s*")(?:torch\.)?(?:float|bfloat)\d+(")')


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write a checkpoint into ``folder`` (existing, empty): the weights in memory, the rest as in ``loaded.folder``.

    The tokenizer's files are those that it was loaded from. Every file beside the weights is copied byte for byte; in
    config.json only the dtype is that of the weights. A file that the source lacks (a generation config, say) is not
    written. Records of an earlier training and indexes of other weight files are not copied
    (:mod:`knowshift.parameters.files.companions`).

    A model that is divided among processes is one that is on disk already: its folder is copied.

    Of a model of text and images that is loaded as a language model, the text part is all that is written, under the
    names it has in the source.
    """
    model = loaded.model
    if slices_of(model) is not None:  # no process has all of it but on disk
        shutil.copytree(loaded.folder, folder, dirs_exist_ok=True)
        return
    with no_bars_of_transformers(), unchanged(model):
        # Not written: transformers refuses to save some generation configs that it loads with a warning.
        model.generation_config = GenerationConfig()
        model.save_pretrained(folder)
    for made in folder.iterdir():
        if ".safetensors" not in made.name:
            made.unlink()
    save_beside(loaded, folder)


def save_beside(loaded: LoadedModel, folder: Path) -> None:
    """All that :func:`save_model` writes but the weights."""
    dtype = str(loaded.model.dtype).removeprefix("torch.").encode()
    config = (loaded.folder / _CONFIG).read_bytes()
    (folder / _CONFIG).write_bytes(_DTYPE.sub(rb"\g<1>" + dtype + rb"\g<2>", config))
    copy_files(loaded.own_tokenizer or loaded.folder, folder, TOKENIZER)
    copy_files(loaded.folder, folder, without=TOKENIZER)


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """After the block all of a model is as before, except its weights, its mode and hooks on its modules.

    That is the model's own attributes (a Trainer replaces ``forward``: under autocast every later answer would be
    computed in bfloat16), its config with the parts of it, and its generation config.
    """
    attributes = dict(vars(model))
    told = [(config, _content(config)) for config in _configs(model)]
    try:
        yield
    finally:
        vars(model).clear()
        vars(model).update(attributes)
        for config, content in told:
            vars(config).clear()
            vars(config).update(content)


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig | GenerationConfig]:
    """Every config object that the model or a module of it holds, each once."""
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    found.append(model.generation_config)
    for config in found:  # grows by the parts of composite ones
        if isinstance(config, PreTrainedConfig):
            found.extend(part for part in vars(config).values() if isinstance(part, PreTrainedConfig))
    return list(
        {id(config): config for config in found if isinstance(config, (PreTrainedConfig, GenerationConfig))}.values()
    )


def _content(config: PreTrainedConfig | GenerationConfig) -> dict[str, Any]:
    """A copy of its attributes; parts that are configs themselves stay the same objects."""
    return {
        key: value if isinstance(value, PreTrainedConfig) else copy.deepcopy(value)
        for key, value in vars(config).items()
    }
