"""Decoder layers of Llama as one function each, and as one node of the graph of gradients.

A small model spends more time between its matrix products than in them: a layer of transformers is some forty
operations forward, and more backward. Within :func:`whole_layers` the same products and sums are made in the same
order by a third of the operations, so losses, gradients and logits are the same (:mod:`.loops` says where to the bit).
Only attention of a batch that is one row (:mod:`knowshift.training.one_row`) has another order: a token sees the few
tokens of its own example, and attention looks at these alone.

Only layers that are known to be just that are taken: Llama's own class, with plain linear maps, without biases and
hooks, as many heads of keys as of queries, float32 on the CPU, and the compiled loops. All others, and calls with
anything unusual, go the usual way.

Behind the last layer only some tokens are asked for: those before an answer's, or where a prompt ends. Of the others it
gives keys and values and no more, where the caller says which (:meth:`Layers.only`).

Shapes: B rows, T tokens of each, D width, H heads, W their width; K tokens of B T that are asked for.
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
from knowshift.models.layers.attention import some_rows
from knowshift.models.layers.loops import Keys

#: PyTorch's attention on the CPU; its gradient can be asked for by itself.
_ATTENTION = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_ATTENTION_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@dataclass(frozen=True)
class _Layer:
    """What a layer computes with: its weights and numbers."""

    module: Any
    heads: int
    width: int  # of a head
    scaling: float
    epsilons: tuple[float, float]

    def weights(self) -> tuple[Tensor, ...]:
        """Norm, q, k, v, o, norm, gate, up, down."""
        layer, attention, mlp = self.module, self.module.self_attn, self.module.mlp
        maps = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        own = (layer.input_layernorm, *maps, layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        return tuple(part.weight for part in own)


@dataclass
class Layers:
    """The layers of a model that are computed whole."""

    count: int = 0
    _asked: Tensor | None = None
    _keys: tuple[Tensor, int, Keys | None] | None = None  # of the last mask, and how often that had been written to

    def few_keys(self, mask: Tensor | None, rows: int, tokens: int) -> Keys | None:
        """The keys that each token of one row may see, where they are few; else None. All layers ask it in turn."""
        if mask is None or mask.dtype != torch.bool or mask.is_inference():
            return None
        if rows != 1 or mask.shape != (1, 1, tokens, tokens):
            return None
        if self._keys is None or self._keys[0] is not mask or self._keys[1] != mask._version:
            seen = mask[0, 0]
            self._keys = mask, mask._version, Keys.of(seen) if loops.few_keys(seen) else None
        return self._keys[2]

    @contextmanager
    def only(self, asked: Tensor | None) -> Iterator[None]:
        """Within the block, the last layer's output counts at these tokens alone, and may be 0 elsewhere.

        ``asked`` is int64 [K], numbers of distinct tokens of B T, ascending; None: all. They are heeded where B or T
        is 1.
        """
        assert asked is None or (asked.dtype == torch.int64 and asked.is_contiguous())  # loops take its address
        self._asked = asked
        try:
            yield
        finally:
            self._asked = None

    def asked_of(self, hidden: Tensor) -> Tensor | None:
        """The tokens of ``hidden`` [B, T, D] that are asked for; None: all."""
        rows, tokens = hidden.shape[:2]
        few = self._asked is not None and 1 in (rows, tokens) and 0 < len(self._asked) < rows * tokens
        return self._asked if few else None


@contextmanager
def whole_layers(model: nn.Module) -> Iterator[Layers]:
    """Within the block, layers and norms of ``model`` that are known are computed as a whole."""
    changed: list[nn.Module] = []
    layers = Layers()
    if loops.library() is not None and _ATTENTION is not None and _ATTENTION_BACKWARD is not None:
        for part in model.modules():
            if type(part) is LlamaDecoderLayer and (layer := _known(part)) is not None:
                last = layer.module.self_attn.layer_idx == layer.module.self_attn.config.num_hidden_layers - 1
                part.forward = _forward_of(layer, part.forward, layers, last)
                changed.append(part)
    layers.count = len(changed)
    try:
        yield layers
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
    return _Layer(module, len(attention.q_proj.weight) // width, width, attention.scaling, epsilons)


def _forward_of(layer: _Layer, usual: Callable[..., Any], layers: Layers, last: bool) -> Callable[..., Any]:
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
            asked = layers.asked_of(hidden_states) if last else None
            if not torch.is_grad_enabled():
                if hidden_states.shape[1] > 1:
                    asked = None  # what begins all rows is read once
                return _read(layer, hidden_states, attention_mask, past_key_values, position_embeddings, asked)
            weights = layer.weights()
            if past_key_values is None and _trainable(layer, hidden_states, attention_mask, weights):
                if hidden_states.shape[0] > 1:
                    asked = None
                return _Whole.apply(  # type: ignore[no-untyped-call]
                    hidden_states, *weights, *position_embeddings, attention_mask, layer, layers, asked
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


def _rotated(
    flat: Tensor, layer: _Layer, angles: tuple[Tensor, Tensor], asked: Tensor | None = None, back: bool = False
) -> Tensor:
    """[B T, H W], or the [K, H W] that are asked for, in place."""
    width = angles[0].shape[-1]
    cosine, sine = (one.view(-1, width) for one in angles)
    if asked is not None and len(cosine) > 1:
        cosine, sine = cosine.index_select(0, asked), sine.index_select(0, asked)
    loops.rotate(flat.view(len(flat), layer.heads, width), cosine, sine, back)
    return flat


def _some(of: Tensor, asked: Tensor | None) -> Tensor:
    """The rows that are asked for."""
    return of if asked is None else of.index_select(0, asked)


def _all(some: Tensor, asked: Tensor | None, rows: int) -> Tensor:
    """These rows among all, the others 0."""
    return some if asked is None else some.new_zeros(rows, some.shape[1]).index_copy_(0, asked, some)


def _paged(cache: Any, number: int) -> Any:
    """A layer of the cache where it gives memory for keys (:mod:`knowshift.models.sampling.pages`), else None."""
    layers = getattr(cache, "layers", ())
    return layers[number] if number < len(layers) and hasattr(layers[number], "room") else None


def _read(
    layer: _Layer,
    hidden: Tensor,
    mask: Tensor | None,
    cache: Any,
    angles: tuple[Tensor, Tensor],
    asked: Tensor | None,
) -> Tensor:
    """The layer's output [B, T, D], without gradients; T is 1 where some rows alone are asked for."""
    attention = layer.module.self_attn
    norm, wq, wk, wv, wo, second_norm, gate, up, down = layer.weights()
    x = hidden.view(-1, hidden.shape[2])
    h, _ = loops.norm(x, norm, layer.epsilons[0])
    query = _rotated(torch.mm(_some(h, asked), wq.t()), layer, angles, asked)
    width = query.shape[1] // layer.heads
    paged = _paged(cache, attention.layer_idx)
    key = value = None
    if paged is not None:  # products are written where they are kept
        held = paged.room(*hidden.shape[:2], (layer.heads, width), hidden)
        key, value = (of.view(len(h), -1) for of in held)
    key = _rotated(torch.mm(h, wk.t(), out=key), layer, angles)
    shape = (-1, hidden.shape[1], layer.heads, width)
    q, k, v = (one.view(shape).transpose(1, 2) for one in (query, key, torch.mm(h, wv.t(), out=value)))
    if paged is not None:
        k = paged.shown(k)
    elif cache is not None:
        k, v = cache.update(k, v, attention.layer_idx)
    if asked is not None:
        k, v = some_rows(asked, k, v)
        mask = None if mask is None else mask.expand(len(h), -1, -1, -1).index_select(0, asked)
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    seen, _ = attend(attention, q, k, v, mask, dropout=0.0, scaling=layer.scaling)
    flat = seen.reshape(len(query), -1)
    y, h, _ = loops.added_norm(_some(x, asked), torch.mm(flat, wo.t()), second_norm, layer.epsilons[1])
    inner = functional.silu(torch.mm(h, gate.t()), inplace=True).mul_(torch.mm(h, up.t()))
    return _all(torch.mm(inner, down.t()).add_(y), asked, len(x)).view(hidden.shape)


def _added(mask: Tensor | None, asked: Tensor | None, tokens: int) -> Tensor | None:
    """The mask of the tokens of one row that are asked for, as what is added to their scores; None where all see all
    before them.
    """
    if asked is not None:
        if mask is None:
            mask = (torch.arange(tokens) <= asked[:, None])[None, None]
        elif mask.shape[2] > 1:
            mask = mask.index_select(2, asked)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return mask


class _Whole(torch.autograd.Function):
    """A layer with its gradients: the operations of transformers and PyTorch's autograd, in their order but for
    attention to few keys.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *given: Any) -> Tensor:
        *weights, cosine, sine, mask, layer, layers, asked = given
        norm, wq, wk, wv, wo, second_norm, gate, up, down = weights
        angles = (cosine, sine)
        x = hidden.view(-1, hidden.shape[2])
        h, r = loops.norm(x, norm, layer.epsilons[0])
        query = _rotated(torch.mm(_some(h, asked), wq.t()), layer, angles, asked)
        key = _rotated(torch.mm(h, wk.t()), layer, angles)
        heads = [one.view(hidden.shape[0], -1, layer.heads, layer.width) for one in (query, key, torch.mm(h, wv.t()))]
        keys = layers.few_keys(mask, *hidden.shape[:2])
        if keys is not None:
            causal, mask = False, None
            q, k, v = (one[0] for one in heads)
            seen, kept = loops.attend(q, k, v, keys, layer.scaling, asked)  # kept: for the gradient
            flat = seen.view(query.shape)
        else:
            mask = _added(mask, asked, len(x))
            causal = mask is None and hidden.shape[1] > 1
            q, k, v = (one.transpose(1, 2) for one in heads)
            seen, kept = _ATTENTION(q, k, v, 0.0, causal, attn_mask=mask, scale=layer.scaling)  # type: ignore[misc]
            flat = seen.transpose(1, 2).reshape(len(query), -1)
        y, h2, r2 = loops.added_norm(_some(x, asked), torch.mm(flat, wo.t()), second_norm, layer.epsilons[1])
        gated, upped = torch.mm(h2, gate.t()), torch.mm(h2, up.t())
        active = functional.silu(gated)
        inner = active * upped
        out = _all(torch.mm(inner, down.t()).add_(y), asked, len(x)).view(hidden.shape)
        ctx.layer, ctx.causal, ctx.keys = layer, causal, keys
        around, attention = (cosine, sine, mask, asked), (q, k, v, flat, seen, kept)
        ctx.save_for_backward(*weights, *around, *attention, x, h, r, y, h2, r2, gated, upped, active, inner)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layer, saved = ctx.layer, ctx.saved_tensors
        norm, wq, wk, wv, wo, second_norm, gate, up, down = saved[:9]
        cosine, sine, mask, asked = saved[9:13]
        q, k, v, flat, seen, kept = saved[13:19]
        x, h, r, y, h2, r2, gated, upped, active, inner = saved[19:]
        rows, width = x.shape
        g = _some(gradient.reshape(rows, width), asked)
        of_inner, of_down = torch.mm(g, down), torch.mm(g.t(), inner)
        of_up = of_inner * active
        of_gate = torch.ops.aten.silu_backward(of_inner.mul_(upped), gated)
        of_h = torch.mm(of_up, up).add_(torch.mm(of_gate, gate))
        gate_up = torch.mm(of_gate.t(), h2), torch.mm(of_up.t(), h2)
        g, of_second_norm = loops.norm_backward(y, r2, second_norm, of_h, g)
        of_flat, of_o = torch.mm(g, wo), torch.mm(g.t(), flat)
        if ctx.keys is not None:
            found = loops.attend_backward(of_flat.view(q.shape), q, k, v, kept, ctx.keys, layer.scaling, asked)
        else:
            of_seen = of_flat.view(seen.shape[0], -1, layer.heads, layer.width).transpose(1, 2)
            found = _ATTENTION_BACKWARD(  # type: ignore[misc]
                of_seen, q, k, v, seen, kept, 0.0, ctx.causal, attn_mask=mask, scale=layer.scaling
            )
            found = tuple(one.transpose(1, 2) for one in found)
        of_q, of_k, of_v = (one.reshape(-1, layer.heads * layer.width) for one in found)
        _rotated(of_q, layer, (cosine, sine), asked, back=True)
        _rotated(of_k, layer, (cosine, sine), back=True)
        of_h = torch.mm(of_v, wv).add_(torch.mm(of_k, wk)).add_(_all(torch.mm(of_q, wq), asked, rows))
        q_k_v = torch.mm(of_q.t(), _some(h, asked)), torch.mm(of_k.t(), h), torch.mm(of_v.t(), h)
        g, of_norm = loops.norm_backward(x, r, norm, of_h, _all(g, asked, rows))
        weights = (of_norm, *q_k_v, of_o, of_second_norm, *gate_up, of_down)
        return g.view(gradient.shape), *weights, *[None] * 6
