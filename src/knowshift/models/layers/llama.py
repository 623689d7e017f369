"""Decoder layers of Llama as one function each, and as one node of the graph of gradients.

A small model spends more time between its matrix products than in them: a layer of transformers is some forty
operations forward, and more backward. Within :func:`whole_layers` the same products and sums are made in the same
order by a third of the operations, so losses, gradients and logits are the same (:mod:`.loops` says where to the bit).

Only layers that are known to be just that are taken: Llama's own class, with plain linear maps, without biases and
hooks, as many heads of keys as of queries, float32 on the CPU, and the compiled loops. All others, and calls with
anything unusual, go the usual way.

Shapes: B rows, T tokens of each, D width, H heads, W their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from knowshift.models.layers import loops

#: PyTorch's attention on the CPU; its gradient can be asked for by itself.
_ATTENTION = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_ATTENTION_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@dataclass(frozen=True)
class _Layer:
    """What a layer computes with: its weights and numbers."""

    module: Any
    heads: int
    scaling: float
    epsilons: tuple[float, float]

    def weights(self) -> tuple[Tensor, ...]:
        """Norm, q, k, v, o, norm, gate, up, down."""
        layer, attention, mlp = self.module, self.module.self_attn, self.module.mlp
        maps = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        own = (layer.input_layernorm, *maps, layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        return tuple(part.weight for part in own)


@contextmanager
def whole_layers(model: nn.Module) -> Iterator[int]:
    """Within the block, layers and norms of ``model`` that are known are computed as a whole; yields how many are."""
    changed: list[nn.Module] = []
    if loops.library() is not None and _ATTENTION is not None and _ATTENTION_BACKWARD is not None:
        for part in model.modules():
            if type(part) is LlamaDecoderLayer and (layer := _known(part)) is not None:
                part.forward = _forward_of(layer, part.forward)
                changed.append(part)
    try:
        yield len(changed)
    finally:
        for part in changed:
            del part.forward


def _known(module: Any) -> _Layer | None:
    """The layer, if it is nothing but what :func:`_read` and :class:`_Whole` compute."""
    attention, mlp = module.self_attn, module.mlp
    norms = (module.input_layernorm, module.post_attention_layernorm)
    maps = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    maps += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if type(attention) is not LlamaAttention or type(mlp) is not LlamaMLP or "forward" in vars(module):
        return None
    if any(type(part) is not LlamaRMSNorm for part in norms) or any(type(part) is not nn.Linear for part in maps):
        return None
    for part in module.modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        if any(hooks) or getattr(part, "bias", None) is not None:
            return None
    for weight in module.parameters():
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
            return None
        if type(weight) is not nn.Parameter:
            return None
    width = attention.head_dim
    if attention.num_key_value_groups != 1 or width % 2 or len(attention.q_proj.weight) % width:
        return None
    if getattr(module.config if hasattr(module, "config") else attention.config, "hidden_act", None) != "silu":
        return None
    epsilons = (norms[0].variance_epsilon, norms[1].variance_epsilon)
    return _Layer(module, len(attention.q_proj.weight) // width, attention.scaling, epsilons)


def _forward_of(layer: _Layer, usual: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **more: Any,
    ) -> Any:
        if position_embeddings is not None and _plain(layer, hidden_states, position_embeddings, more):
            if not torch.is_grad_enabled():
                return _read(layer, hidden_states, attention_mask, past_key_values, position_embeddings)
            weights = layer.weights()
            if past_key_values is None and _trainable(layer, hidden_states, attention_mask, weights):
                return _Whole.apply(  # type: ignore[no-untyped-call]
                    hidden_states, *weights, *position_embeddings, attention_mask, layer
                )
        return usual(
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **more,
        )

    return forward


def _plain(layer: _Layer, x: Tensor, angles: tuple[Tensor, Tensor], more: dict[str, Any]) -> bool:
    """Whether this call asks for nothing that is not computed here."""
    if any(value is not None and value is not False for value in more.values()) or torch.is_autocast_enabled("cpu"):
        return False
    if layer.module.self_attn.config._attn_implementation not in ALL_ATTENTION_FUNCTIONS:
        return False
    fit = all(one.shape[0] in (1, x.shape[0]) and one.shape[1] == x.shape[1] for one in angles)
    return fit and all(one.dtype == torch.float32 and one.is_contiguous() for one in (x, *angles))


def _trainable(layer: _Layer, x: Tensor, mask: Tensor | None, weights: tuple[Tensor, ...]) -> bool:
    module = layer.module
    if (module.gradient_checkpointing or module.self_attn.attention_dropout) and module.training:
        return False
    if module.self_attn.config._attn_implementation != "sdpa":
        return False
    return x.requires_grad and all(weight.requires_grad for weight in weights) and (mask is None or mask.dim() == 4)


def _rotated(flat: Tensor, layer: _Layer, angles: tuple[Tensor, Tensor], back: bool = False) -> Tensor:
    """[B T, H W] in place."""
    width = angles[0].shape[-1]
    cosine, sine = (one.view(-1, width) for one in angles)
    loops.rotate(flat.view(len(flat), layer.heads, width), cosine, sine, back)
    return flat


def _read(
    layer: _Layer,
    hidden: Tensor,
    mask: Tensor | None,
    cache: Any,
    angles: tuple[Tensor, Tensor],
) -> Tensor:
    """The layer's output [B, T, D], without gradients."""
    attention = layer.module.self_attn
    norm, wq, wk, wv, wo, second_norm, gate, up, down = layer.weights()
    x = hidden.view(-1, hidden.shape[2])
    h, _ = loops.norm(x, norm, layer.epsilons[0])
    query, key = (_rotated(torch.mm(h, one.t()), layer, angles) for one in (wq, wk))
    shape = (*hidden.shape[:2], layer.heads, -1)
    q, k, v = (one.view(shape).transpose(1, 2) for one in (query, key, torch.mm(h, wv.t())))
    if cache is not None:
        k, v = cache.update(k, v, attention.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    seen, _ = attend(attention, q, k, v, mask, dropout=0.0, scaling=layer.scaling)
    x, h, _ = loops.added_norm(x, torch.mm(seen.reshape(len(x), -1), wo.t()), second_norm, layer.epsilons[1])
    inner = functional.silu(torch.mm(h, gate.t())).mul_(torch.mm(h, up.t()))
    return torch.mm(inner, down.t()).add_(x).view(hidden.shape)


class _Whole(torch.autograd.Function):
    """A layer with its gradients: the operations of transformers and PyTorch's autograd in their order."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *given: Any) -> Tensor:
        *weights, cosine, sine, mask, layer = given
        norm, wq, wk, wv, wo, second_norm, gate, up, down = weights
        angles = (cosine, sine)
        x = hidden.view(-1, hidden.shape[2])
        h, r = loops.norm(x, norm, layer.epsilons[0])
        query, key = (_rotated(torch.mm(h, one.t()), layer, angles) for one in (wq, wk))
        shape = (*hidden.shape[:2], layer.heads, -1)
        q, k, v = (one.view(shape).transpose(1, 2) for one in (query, key, torch.mm(h, wv.t())))
        causal = mask is None and hidden.shape[1] > 1
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        seen, logs = _ATTENTION(q, k, v, 0.0, causal, attn_mask=mask, scale=layer.scaling)  # type: ignore[misc]
        flat = seen.transpose(1, 2).reshape(len(x), -1)
        y, h2, r2 = loops.added_norm(x, torch.mm(flat, wo.t()), second_norm, layer.epsilons[1])
        gated, upped = torch.mm(h2, gate.t()), torch.mm(h2, up.t())
        active = functional.silu(gated)
        inner = active * upped
        out = torch.mm(inner, down.t()).add_(y).view(hidden.shape)
        ctx.layer, ctx.causal = layer, causal
        ctx.save_for_backward(
            *weights, cosine, sine, mask, x, h, r, q, k, v, seen, logs, y, h2, r2, gated, upped, active, inner
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layer, saved = ctx.layer, ctx.saved_tensors
        norm, wq, wk, wv, wo, second_norm, gate, up, down = saved[:9]
        cosine, sine, mask, x, h, r, q, k, v, seen, logs, y, h2, r2, gated, upped, active, inner = saved[9:]
        rows, width = x.shape
        g = gradient.reshape(rows, width)
        of_inner, of_down = torch.mm(g, down), torch.mm(g.t(), inner)
        of_up = of_inner * active
        of_gate = torch.ops.aten.silu_backward(of_inner.mul_(upped), gated)
        of_h = torch.mm(of_up, up).add_(torch.mm(of_gate, gate))
        gate_up = torch.mm(of_gate.t(), h2), torch.mm(of_up.t(), h2)
        g, of_second_norm = loops.norm_backward(y, r2, second_norm, of_h, g)
        shape = (seen.shape[0], seen.shape[2], layer.heads, -1)
        of_seen = torch.mm(g, wo).view(shape).transpose(1, 2)
        of_o = torch.mm(g.t(), seen.transpose(1, 2).reshape(rows, -1))
        found = _ATTENTION_BACKWARD(  # type: ignore[misc]
            of_seen, q, k, v, seen, logs, 0.0, ctx.causal, attn_mask=mask, scale=layer.scaling
        )
        of_q, of_k, of_v = (one.transpose(1, 2).reshape(rows, -1) for one in found)
        for one in (of_q, of_k):
            _rotated(one, layer, (cosine, sine), back=True)
        of_h = torch.mm(of_v, wv).add_(torch.mm(of_k, wk)).add_(torch.mm(of_q, wq))
        q_k_v = (torch.mm(one.t(), h) for one in (of_q, of_k, of_v))
        g, of_norm = loops.norm_backward(x, r, norm, of_h, g)
        return g.view(gradient.shape), of_norm, *q_k_v, of_o, of_second_norm, *gate_up, of_down, None, None, None, None
