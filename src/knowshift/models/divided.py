"""A model whose layers are divided among the processes of a group, each with a device of its own: tensor parallelism.

The plan is the one that transformers has for an architecture: of some linear maps every process holds rows, of those
behind them columns, whose products the processes add up (Shoeybi et al. 2019, Megatron-LM). Embeddings, norms and the
output head are whole in each. A process holds as many attention heads, and their part of the cache, as it has rows for;
so heads must be divided evenly. Slices are plain parameters that are read from the model's files, each process its own.

transformers divides models by itself. That is not used: 5.23 announces the end of the argument ``tp_plan`` that the
releases supported here (from 5.16) have, and files are read here by stretches, as restoring needs it.

All processes compute the same logits but for the rounding of what each computes whole; those of the first are taken by
all, so that all choose the same next tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from knowshift.errors import InputError, border
from knowshift.models.dtypes import TORCH_DTYPES
from knowshift.parameters.files.adapter import AdaptedTensors
from knowshift.parameters.files.checkpoint import StoredTensors
from knowshift.parameters.loaded import as_array, as_tensor, read_as
from knowshift.parameters.slices import Slice, even_slice, keep_slices, slices_of
from knowshift.parameters.tensors import number_of, stretches, workers
from knowshift.system import group

#: How a plan's styles divide a linear map: the dimension of its weight.
_DIVIDED = {"colwise": 0, "colwise_gather_output": 0, "colwise_rep": 0, "rowwise": 1, "rowwise_split_input": 1}
#: Styles that divide nothing.
_WHOLE = ("replicate", "replicated_with_grad_allreduce")
#: Maps whose rows are heads of keys.
_KEYS = ("k_proj", "qkv_proj", "query_key_value")
#: The attribute in which a linear map keeps its bias while it computes.
_HIDDEN = "knowshift_bias"


def check_divisible(name: str, told: Mapping[str, Any], devices: int) -> None:
    """Refuse a model that cannot be divided among so many devices, by the content of its config.json.

    Raises:
        InputError: there is no plan for its architecture, or not one that can be followed here; heads or widths that
            cannot be divided, with the numbers of devices that divide them.
    """
    with border(f"{name}: its configuration cannot be read"):
        config = AutoConfig.for_model(**told)
    plan = _plan(name, config)
    own = config.get_text_config()
    heads = int(own.num_attention_heads)
    extents = {"feed-forward units": own.intermediate_size}
    if _heads_are_divided(plan):
        extents = {
            "attention heads": heads,
            "key-value heads": getattr(own, "num_key_value_heads", None) or heads,
            **extents,
        }
    else:
        extents = {"hidden units": own.hidden_size, **extents}
    for what, extent in extents.items():
        if extent % devices:
            fitting = [n for n in range(1, 65) if not any(other % n for other in extents.values())]
            raise InputError(
                f"devices: {devices} do not divide the {extent} {what} of {name}; "
                f"expected one of {', '.join(map(str, fitting))}"
            )


def divides_heads(model: Any) -> bool:
    """Whether this process holds its part of the heads of a model, and of their keys and values."""
    if slices_of(model) is None:
        return False
    plan = getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {}
    return _heads_are_divided(plan)


def _heads_are_divided(plan: Mapping[str, str]) -> bool:
    return any(style == "colwise" and key.rsplit(".", 1)[-1] in _KEYS for key, style in plan.items())


def _plan(name: str, config: PreTrainedConfig) -> dict[str, str]:
    """Style of each linear map, by its name below the base model with * for the number of a layer."""
    own = config.get_text_config()
    plan: dict[str, str] = dict(getattr(own, "base_model_tp_plan", None) or {})
    if not plan:
        raise InputError(
            f"devices: transformers has no plan to divide the architecture {own.model_type!r} of {name}; "
            "expected devices: 1"
        )
    for key, style in plan.items():
        if style not in _DIVIDED and style not in _WHOLE:
            raise InputError(
                f"devices: the architecture {own.model_type!r} of {name} divides {key} by {style!r}, which is not "
                "supported; expected devices: 1"
            )
    return plan


def load_divided(name: str, files: StoredTensors | AdaptedTensors, dtype: str, place: torch.device) -> PreTrainedModel:
    """This process's part of a model, on its device; all processes of the group load theirs.

    Raises:
        InputError: as :func:`check_divisible`, and files that do not hold each tensor as the model has it.
    """
    from accelerate import init_empty_weights

    folder = files.base.folder if isinstance(files, AdaptedTensors) else files.folder
    with border(f"{name}: cannot load this process's part of the model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        plan = _plan(name, config)
        asked = config.dtype or torch.float32 if dtype == "auto" else TORCH_DTYPES[dtype]
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=asked, trust_remote_code=False)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    model.tie_weights()
    slices = _divide(name, model, plan)
    shapes = {key: slices[key].shape if key in slices else tuple(held.shape) for key, held in model.named_parameters()}
    _make(model, slices, place)
    dtypes = {key: as_array(held.detach()[:0]).dtype for key, held in model.named_parameters()}
    reader = read_as(files, shapes, dtypes)
    if reader is None:
        raise InputError(
            f"devices: the files of {name} hold its tensors otherwise than the model has them, and cannot be read by "
            "slices; expected devices: 1"
        )
    held = {key: parameter.detach() for key, parameter in model.named_parameters()}
    names = list(held)

    def fill(tensor: int, start: int, stop: int) -> None:
        key = names[tensor]
        own = slices.get(key)
        if own is None:
            held[key].view(-1)[start:stop].copy_(as_tensor(reader.read(key, start, stop)))
        elif own.touches(start, stop):
            own.put(held[key], start, stop, as_tensor(reader.read(key, start, stop)))

    with workers(torch.get_num_threads()) as run:
        for _ in run(fill, stretches([number_of(shapes[key]) for key in names])):
            pass
    keep_slices(model, slices)
    _take_the_first_ones_logits(model)
    return model


def _divide(name: str, model: PreTrainedModel, plan: Mapping[str, str]) -> dict[str, Slice]:
    """Let each linear map of the plan compute with a slice of its weight; the slices, by names of parameters.

    The parameters are without memory still, and keep their whole shapes.
    """
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    base = dict(model.base_model.named_modules())
    slices: dict[str, Slice] = {}
    for key, module in base.items():
        style = plan.get(re.sub(r"\b\d+\b", "*", key))
        if style not in _DIVIDED:
            continue
        if type(module) is not nn.Linear:
            raise InputError(
                f"devices: {key} of {name} is a {type(module).__name__}, which cannot be divided; expected devices: 1"
            )
        shape, dim = tuple(module.weight.shape), _DIVIDED[style]
        if shape[dim] % group.size():
            raise InputError(f"devices: {group.size()} do not divide the {shape[dim]} units of {key} of {name}")
        slices[f"{prefix}{key}.weight"] = group_slice(shape, dim)
        if module.bias is not None and dim == 0:
            slices[f"{prefix}{key}.bias"] = group_slice(tuple(module.bias.shape), 0)
        if style in ("colwise_gather_output", "colwise_rep"):
            module.register_forward_hook(_gather)
        if style == "rowwise_split_input":
            module.register_forward_pre_hook(_split)
        if dim == 1:
            module.register_forward_pre_hook(_hide_bias)
            module.register_forward_hook(_add_up)
    return slices


def group_slice(shape: tuple[int, ...], dim: int) -> Slice:
    """The slice of this process."""
    return even_slice(shape, dim, group.number(), group.size())


def _make(model: PreTrainedModel, slices: Mapping[str, Slice], place: torch.device) -> None:
    """Give every parameter memory on the device, of its slice where it is one; tied ones once."""
    made: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for own, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                key = f"{prefix}.{own}" if prefix else own
                shape = slices[key].own_shape if key in slices else parameter.shape
                held = torch.empty(shape, dtype=parameter.dtype, device=place)
                made[id(parameter)] = nn.Parameter(held, requires_grad=parameter.requires_grad)
            setattr(module, own, made[id(parameter)])
    model.to(place)  # what is no parameter


def _split(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Of what all processes have whole, the columns of this one."""
    width = inputs[0].shape[-1] // group.size()
    return (inputs[0].narrow(-1, group.number() * width, width), *inputs[1:])


def _hide_bias(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Until what the processes have is added up: it is added once."""
    setattr(module, _HIDDEN, [module._parameters["bias"]])
    module._parameters["bias"] = None


def _add_up(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """The sum over the processes of what each has from its columns."""
    import torch.distributed as dist

    (bias,) = getattr(module, _HIDDEN)
    module._parameters["bias"] = bias
    output = output.contiguous()
    dist.all_reduce(output)
    return output if bias is None else output + bias


def _gather(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """What all processes have from their rows, side by side."""
    import torch.distributed as dist

    parts = [torch.empty_like(output) for _ in range(group.size())]
    dist.all_gather(parts, output.contiguous())
    return torch.cat(parts, dim=-1)


def _take_the_first_ones_logits(model: PreTrainedModel) -> None:
    import torch.distributed as dist

    def take(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        output = output.contiguous()
        dist.broadcast(output, src=0)
        return output

    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an output head"
    head.register_forward_hook(take)
