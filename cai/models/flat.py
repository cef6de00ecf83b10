"""The trunk of a Llama over rows of unequal lengths without work on padding: tokens lie in one flat list, and only
attention, which needs rows, sees them padded.

On a CPU an update of PPO is bound by matrix products, and a quarter of a padded batch is padding. The last layer's
output projection and feed-forward are computed at the asked positions alone. The numbers are those of the model's own
forward up to rounding, gradients included (tested).

Letters of shapes: B rows, L tokens of the longest row, N real tokens of all rows, M asked positions, D model width,
H query heads, G key heads, S head size.
"""

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel, PreTrainedModel

from cai.models.lora import is_linear

__all__ = ["flat_states", "is_plain_llama"]


_known: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()  # every batch asks


def is_plain_llama(model: PreTrainedModel) -> bool:
    """Whether the trunk of `model` is a Llama without biases or another activation; LoRA adapters are no matter."""
    if model not in _known:
        _known[model] = _is_plain_llama(model)
    return _known[model]


def _is_plain_llama(model: PreTrainedModel) -> bool:
    body, config = model.base_model, model.config
    if type(body) is not LlamaModel or config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        return False
    return all(is_linear(module) for name, module in body.named_modules() if name.endswith("_proj"))


def flat_states(model: PreTrainedModel, ids: Tensor, real: Tensor, where: Tensor) -> Tensor:
    """Last hidden states (M, D) at the positions `where` (B, L) bool, row by row, of right-padded `ids` (B, L) whose
    tokens are at `real` (B, L) bool. `model` is one that `is_plain_llama` says yes to; with activation checkpointing a
    layer keeps its input alone for the backward pass, which computes the rest again.
    """
    body: Any = model.base_model
    (num_rows, length), slots = real.shape, real.flatten().nonzero().squeeze(1)
    asked = where[real].nonzero().squeeze(1)
    x: Tensor = body.embed_tokens(ids[real])  # (N, D)
    cos, sin = body.rotary_emb(x, (slots % length)[None])  # (1, N, S) each
    half = sin.shape[-1] // 2
    # x * cos + rotate_half(x) * sin, with the sign of rotate_half put into sin
    turn = cos[0, :, None], torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], dim=-1)
    for layer in body.layers:
        wanted = asked if layer is body.layers[-1] else None
        run = partial(_layer, layer, turn=turn, slots=slots, num_rows=num_rows, length=length, wanted=wanted)
        again = body.gradient_checkpointing and torch.is_grad_enabled()
        x = checkpoint(run, x, use_reentrant=False) if again else run(x)
    return _normed(x, body.norm)


def _layer(
    layer: Any,
    x: Tensor,
    *,
    turn: tuple[Tensor, Tensor],
    slots: Tensor,
    num_rows: int,
    length: int,
    wanted: Tensor | None,
) -> Tensor:
    """What a layer makes of `x` (N, D), at the places `wanted` (M) alone where these are given."""
    seen = _attention(layer.self_attn, _normed(x, layer.input_layernorm), turn, slots, num_rows, length)
    if wanted is not None:
        x, seen = x.index_select(0, wanted), seen.index_select(0, wanted)
    x = x + layer.self_attn.o_proj(seen)
    mlp, normed = layer.mlp, _normed(x, layer.post_attention_layernorm)
    return x + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))  # type: ignore[no-any-return]


def _normed(x: Tensor, norm: Any) -> Tensor:
    normed: Tensor = F.rms_norm(x.float(), (x.shape[-1],), norm.weight.float(), norm.variance_epsilon)
    return normed.to(x.dtype)


def _attention(layer: Any, x: Tensor, turn: tuple[Tensor, Tensor], slots: Tensor, num_rows: int, length: int) -> Tensor:
    """What every token sees, (N, H S), before the output projection."""
    cos, sin = turn
    size = cos.shape[-1]

    def rows(heads: Tensor) -> Tensor:
        """Heads of tokens (N, heads, S) as (B, heads, L, S)."""
        padded = heads.new_zeros(num_rows * length, *heads.shape[1:]).index_copy(0, slots, heads)
        return padded.view(num_rows, length, -1, size).transpose(1, 2)

    def turned(projection: nn.Module) -> Tensor:
        heads = projection(x).view(len(x), -1, size)
        # Not addcmul: one rounding less than the model's own forward takes is one that differs from it.
        return rows((heads * cos + heads.roll(size // 2, dims=-1) * sin).to(heads.dtype))

    queries, keys = turned(layer.q_proj), turned(layer.k_proj)
    values = rows(layer.v_proj(x).view(len(x), -1, size))
    # Rows are right-padded, so causal attention never looks at padding; what padding sees is thrown away.
    shared = queries.shape[1] != keys.shape[1]
    seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=shared)
    return seen.transpose(1, 2).reshape(num_rows * length, -1).index_select(0, slots)
