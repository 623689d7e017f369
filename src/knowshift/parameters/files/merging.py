"""Adapters that are not read here, merged by PEFT itself into a checkpoint in a temporary folder.

The base is loaded in float32 (float64 where it is stored so), merged, and every tensor is rounded once to the dtype in
which the base stores it. So what an adapter leaves as it was comes back bit for bit, and no rounding of the merge is
taken for training.

PEFT's result is checked: the merged model must give the logits that the model with its adapter gives, every tensor
of the adapter must have found its place, and an initialisation that took a part of the base into the adapter must be
one that PEFT repeats exactly when it loads.

Departure from ``merge_and_unload``: where head and embeddings are tied and an adapter works on one of them (or on both
by matrices of their own), PEFT adds every change to the one shared matrix, which is not the model that was trained.
Here the two are untied first, and stay untied if their weights differ.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from knowshift.errors import InputError, KnowshiftWarning, border
from knowshift.files import check_space
from knowshift.parameters.files.adapter import CONFIG, Adapter
from knowshift.parameters.files.checkpoint import FLOATS, STORED_DTYPES, StoredTensors
from knowshift.parameters.files.companions import copy_files
from knowshift.parameters.regions import own_names, tied_table
from knowshift.parameters.tensors import number_of
from knowshift.system.quiet import no_bars_of_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: Initialisations that move a part of the base into the adapter, and that PEFT repeats to the bit when it loads one.
_REPEATED = ("pissa", "olora")
#: Initialisations that leave the base as it is.
_HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
_INITIALISATION = "init_lora_weights"
#: Tokens on which the merged model is compared with the adapter's.
_PROBED = (2, 16)
#: Largest difference of a logit by rounding in float32, relative to that logit and to the median one.
_CLOSE = 1e-3


class MergedTensors(StoredTensors):
    """The checkpoint that PEFT has made of base and adapter; its folder is removed with this object."""

    def __init__(self, scratch: tempfile.TemporaryDirectory[str], adapter: Adapter) -> None:
        super().__init__(Path(scratch.name))
        self.adapter = adapter
        self.merged_by = f"peft {importlib.metadata.version('peft')}"
        self._scratch = scratch  # removed when this goes


def merge(adapter: Adapter, base: StoredTensors, why: str) -> MergedTensors:
    """Let PEFT merge an adapter that :func:`~knowshift.parameters.files.adapter.not_read` says is not read here.

    Says so in one line (a :class:`KnowshiftWarning`), with ``why``.

    Raises:
        InputError: PEFT cannot merge it, or not to what the adapter says; there is not enough memory or space.
    """
    config = _refused(adapter)
    size = sum(number_of(shape) for shape in base.shapes.values())
    _check_room(adapter, base, size)
    stored = sum(shard.size for shard in base.shards)
    warnings.warn(
        f"{adapter.folder}: {why}, so PEFT merges it, in a temporary folder ({stored / 1e6:,.0f} MB)",
        KnowshiftWarning,
        stacklevel=2,
    )
    with border(f"{adapter.folder}: no temporary folder (TMPDIR) to merge it in"):
        scratch = tempfile.TemporaryDirectory(prefix="knowshift-merged-")
    try:
        _merge(adapter, base, config, Path(scratch.name))
        merged = MergedTensors(scratch, adapter)
        _check_all(merged, base)
        return merged
    except BaseException:
        scratch.cleanup()
        raise


def _check_all(merged: MergedTensors, base: StoredTensors) -> None:
    """Refuse a merge that loses tensors: of a model of text and images, PEFT merges the text part alone."""
    own, table = own_names(merged.shapes), tied_table(base.shapes, base.model_type, base.config)
    for name, shape in base.shapes.items():
        if own(name) is None and len(shape) > 1 and (table is None or shape != base.shapes[table]):
            raise InputError(
                f"{merged.adapter.folder}: PEFT merges only a part of {base.folder}: tensor {name!r} would be lost"
            )


def _refused(adapter: Adapter) -> Any:
    """The configuration as PEFT reads it; adapters that it cannot merge, or merges wrongly, are refused by name."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    told, kind = adapter.config, adapter.config.get("peft_type")
    of_kind = {str(getattr(known, "value", known)): config for known, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if not isinstance(kind, str) or kind not in of_kind:
        _refuse(adapter, f"adapter of type {kind!r}, which {_peft()} does not know")
    if not hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(kind), "merge_and_unload") or kind == "XLORA":
        _refuse(adapter, f"an adapter of type {kind!r} cannot be merged into weights")
    for field in ("megatron_config", "arrow_config"):
        if told.get(field):
            _refuse(adapter, f"{field} is set; merge the adapter where it was trained")
    start = told.get(_INITIALISATION, True)
    if kind == "LORA" and start == "loftq":
        _refuse(adapter, f"{_INITIALISATION} is 'loftq': merge it with the base that LoftQ made, where it was trained")
    if kind == "LORA" and isinstance(start, str) and start not in (*_REPEATED, *_HARMLESS):
        _refuse(
            adapter,
            f"{_INITIALISATION} is {start!r}, which moves a part of the base into the adapter in a way that cannot be "
            "repeated; save it with model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL)",
        )
    known = of_kind[kind].__dataclass_fields__
    for field, value in told.items():
        if value and field not in known:
            _refuse(adapter, f"{field} is set, which {_peft()} does not know; a newer peft may")
    with border(f"{adapter.folder / CONFIG}: PEFT cannot read it"):
        return of_kind[kind].from_pretrained(str(adapter.folder))


def _check_room(adapter: Adapter, base: StoredTensors, size: int) -> None:
    import psutil

    # The model, a head of its own where it was tied, the largest tensor's change twice over, the adapter.
    largest = max(number_of(shape) for shape in base.shapes.values())
    needed = (size + 3 * largest) * (8 if _double(base) else 4) + 3 * adapter.shard.size
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{adapter.folder}: merging takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; "
            "merge the adapter on a larger machine (PeftModel.merge_and_unload)"
        )
    with border(f"{adapter.folder}: no temporary folder (TMPDIR) to merge it in"):
        place = Path(tempfile.gettempdir())
    check_space(place, sum(shard.size for shard in base.shards) + (1 << 26))


def _merge(adapter: Adapter, base: StoredTensors, config: Any, target: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with (
        no_bars_of_transformers(),
        warnings.catch_warnings(),
        border(f"{adapter.folder / CONFIG}: PEFT cannot merge it into {base.folder}"),
    ):
        warnings.simplefilter("ignore")  # what PEFT warns of is checked below
        model, info = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=torch.float64 if _double(base) else torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            _refuse(adapter, f"weights are missing in the base, the first is {min(info['missing_keys'])!r}")
        tied = _shared(model) is not None
        adapted = PeftModel.from_pretrained(model, str(adapter.folder), config=config).eval()
        _check_loaded(adapter, adapted)
        untied = _untie(model)
        before = _probe(adapted, model)
        merged = adapted.merge_and_unload()
        _check_merged(adapter, before, _probe(merged, merged))
        if untied:
            _tie_again(merged, bool(adapter.config.get("ensure_weight_tying")))
        _round(merged, base)
        merged.save_pretrained(target, max_shard_size="5GB")
    _describe(base, target, untied=tied and _shared(merged) is None)


def _check_loaded(adapter: Adapter, adapted: Any) -> None:
    """Every tensor of the file must have a place in the model, and every place a tensor."""
    result = adapted.load_adapter(str(adapter.folder), "default")
    again = {key.replace(".modules_to_save.", ".modules_to_save.default.") for key in adapter.again}
    unexpected = set(result.unexpected_keys) - adapter.again - again
    for what, keys in (("has no place in", unexpected), ("is missing for", result.missing_keys)):
        if keys:
            _refuse(adapter, f"tensor {min(keys)!r} {what} the base")


def _shared(model: PreTrainedModel) -> torch.nn.Parameter | None:
    """The one parameter that is both head and embeddings, or None."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or table is None:
        return None
    weights = [getattr(_layer(module), "weight", None) for module in (head, table)]
    return weights[0] if weights[0] is weights[1] else None


def _layer(module: Any) -> Any:
    """The base's own layer inside the wrapper of PEFT."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def _untie(model: PreTrainedModel) -> bool:
    """Untie head and embeddings where an adapter's matrices change one of them; whether that was so."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared = _shared(model)
    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    if shared is None or not any(isinstance(module, BaseTunerLayer) for module in ends):
        return False
    head = _layer(ends[0])
    head.weight = torch.nn.Parameter(shared.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return True


def _tie_again(model: PreTrainedModel, meant: bool) -> None:
    """Tie head and embeddings again if their weights are equal (up to rounding, if they were ``meant`` to be tied)."""
    import torch

    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    same = torch.equal(head.weight, table.weight)
    if same or (meant and torch.allclose(head.weight, table.weight, rtol=1e-5, atol=1e-7)):
        head.weight = table.weight
        model.config.tie_word_embeddings = True


def _probe(model: Any, inner: PreTrainedModel) -> torch.Tensor:
    """Logits after a few random tokens."""
    import torch

    rows = int(_layer(inner.get_input_embeddings()).weight.shape[0])
    ids = torch.randint(rows, _PROBED, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _check_merged(adapter: Adapter, before: torch.Tensor, after: torch.Tensor) -> None:
    """Logit by logit: those of a vocabulary's padding may be huge, and must not hide the others."""
    difference, size = (after - before).abs(), before.abs()
    middle = size.median()
    if not bool((difference <= _CLOSE * (size + middle)).all()):
        _refuse(
            adapter,
            "the model that PEFT merges is not the one with its adapter: logits differ by up to "
            f"{float(difference.max()):.2g}, the middle one is {float(middle):.2g}",
        )


def _round(model: PreTrainedModel, base: StoredTensors) -> None:
    """Every parameter in the dtype in which the base stores it; fused ones, and a new head, in the most common one."""
    import torch

    stored = {name: tensor.dtype for name, tensor in base.tensors.items() if tensor.dtype in FLOATS}
    weights: Counter[str] = Counter()
    for name, dtype in stored.items():
        weights[dtype] += number_of(base.shapes[name])
    [(most, _)] = weights.most_common(1)
    own = own_names(base.shapes)
    for name, parameter in model.named_parameters():
        dtype = stored.get(own(name) or "", most)
        parameter.data = parameter.data.to(getattr(torch, STORED_DTYPES[dtype].name))


def _describe(base: StoredTensors, target: Path, untied: bool) -> None:
    """Write the files beside the weights: the base's; the configuration says whether head and embeddings are untied."""
    for file in ("config.json", "generation_config.json"):
        (target / file).unlink(missing_ok=True)
    copy_files(base.folder, target)
    if untied:
        config: dict[str, Any] = {**base.config, "tie_word_embeddings": False}
        if isinstance(text := config.get("text_config"), Mapping) and "tie_word_embeddings" in text:
            config["text_config"] = {**text, "tie_word_embeddings": False}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _double(base: StoredTensors) -> bool:
    return any(tensor.dtype == "F64" for tensor in base.tensors.values())


def _peft() -> str:
    return f"peft {importlib.metadata.version('peft')}"


def _refuse(adapter: Adapter, what: str) -> NoReturn:
    raise InputError(f"{adapter.folder / CONFIG}: {' '.join(what.split())[:400]}") from None
