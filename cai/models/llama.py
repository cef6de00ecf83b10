"""Decoding with a small Llama, in fewer and larger operations than its modules take.

A step of a small model on a CPU spends as long on starting operations as on arithmetic. Fusing projections and leaving
out the module machinery halves a step of the sandbox model, and reading a prompt stops at the last layer's keys and
values; the numbers are the same up to rounding (tested).

Letters of shapes: B rows, D model width, H query heads, G key heads, S head size, F width of the feed-forward, T keys,
L tokens to read.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from cai.models.lora import has_adapter, is_linear, whole_weight

__all__ = ["LlamaSteps"]

_MOST_PARAMETERS = 50_000_000  # above, arithmetic dominates and a second copy of the weights costs too much memory


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights: norms (D), `qkv` ((H + 2 G) S, D), `out` (H S, D), `gate_up` (2 F, D), `down` (F, D)."""

    before: Tensor
    qkv: Tensor
    out: Tensor
    between: Tensor
    gate_up: Tensor
    down: Tensor


class LlamaSteps:
    """`model` reading prompts and then a token per row and step; weights are taken as they are now."""

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether `model` is a plain small Llama: no biases, SwiGLU. Adapters are added to the weights, which half
        precision would round away.
        """
        if type(model) is not LlamaForCausalLM or model.num_parameters() > _MOST_PARAMETERS:
            return False
        config, projections = model.config, [m for name, m in model.named_modules() if name.endswith("_proj")]
        if model.dtype != torch.float32 and any(has_adapter(module) for module in projections):
            return False
        plain = all(is_linear(module) for module in projections)
        return plain and not config.attention_bias and not config.mlp_bias and config.hidden_act == "silu"

    def __init__(self, model: LlamaForCausalLM, num_positions: int) -> None:
        """For rows of at most `num_positions` tokens."""
        config = model.config
        self.model = model
        self.eps = config.rms_norm_eps
        first = model.model.layers[0].self_attn
        self.size = first.head_dim
        self.num_keys = first.k_proj.out_features // self.size
        self.num_rotated = first.q_proj.out_features // self.size + self.num_keys
        cos, sin = model.model.rotary_emb(model.lm_head.weight, torch.arange(num_positions, device=model.device)[None])
        half = self.size // 2  # both halves turn by the same angles
        self.cos, self.sin = cos[0, :, :half], sin[0, :, :half]  # (num_positions, S / 2)
        self.layers = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            queries, keys, values = attention.q_proj, attention.k_proj, attention.v_proj
            self.layers.append(
                _Layer(
                    before=layer.input_layernorm.weight,
                    qkv=torch.cat([whole_weight(module) for module in (queries, keys, values)]),
                    out=whole_weight(attention.o_proj).t(),
                    between=layer.post_attention_layernorm.weight,
                    gate_up=torch.cat([whole_weight(module) for module in (mlp.gate_proj, mlp.up_proj)]),
                    down=whole_weight(mlp.down_proj).t(),
                )
            )

    def read(self, ids: Tensor, cache: Cache) -> None:
        """Put the keys and values of `ids` (B, L) into `cache`, behind what is there; the last layer needs no more."""
        (num_rows, length), start = ids.shape, cache.get_seq_length()
        x: Tensor = self.model.model.embed_tokens(ids).flatten(0, 1)
        turn = self.cos[start : start + length, None], self.sin[start : start + length, None]  # (L, 1, S / 2) each
        later = torch.ones(length, start + length, dtype=torch.bool, device=ids.device).tril(start) if start else None
        for number, layer in enumerate(self.layers):
            heads = self._heads(x, layer).view(num_rows, length, -1, self.size)
            turned = self._turned(heads, *turn)
            keys, values = cache.update(
                turned[:, :, -self.num_keys :].transpose(1, 2), heads[:, :, self.num_rotated :].transpose(1, 2), number
            )
            if number == len(self.layers) - 1:
                return
            queries = turned[:, :, : -self.num_keys].transpose(1, 2)
            shared = queries.shape[1] != keys.shape[1]
            seen = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=later, is_causal=not start, enable_gqa=shared
            )
            x = self._rest(x, seen.transpose(1, 2).reshape(num_rows * length, -1), layer)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Cache, mask: Tensor | None) -> Tensor:
        """Logits (B, V) after `tokens` (B) at `positions` (B, 1); `mask` (B, 1, 1, T) is added to attention scores."""
        num_rows = len(tokens)
        x: Tensor = self.model.model.embed_tokens(tokens)
        turn = self.cos[positions], self.sin[positions]  # (B, 1, S / 2) each
        for number, layer in enumerate(self.layers):
            heads = self._heads(x, layer).view(num_rows, -1, self.size)  # (B, H + 2 G, S)
            turned = self._turned(heads, *turn)
            keys, values = cache.update(
                turned[:, -self.num_keys :, None], heads[:, self.num_rotated :, None], number
            )  # (B, G, T, S)
            queries = turned[:, : -self.num_keys].mul(self.size**-0.5).view(num_rows * self.num_keys, -1, self.size)
            # Two batched products by hand: they stream through keys and values about twice as fast as the fused
            # kernel, which on a CPU is made for many queries.
            scores = torch.bmm(queries, keys.flatten(0, 1).transpose(1, 2))  # (B G, H / G, T)
            if mask is not None:
                scores.view(num_rows, -1, scores.shape[-1]).add_(mask[:, 0])
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
            seen = torch.bmm(weights, values.flatten(0, 1))  # (B G, H / G, S)
            x = self._rest(x, seen.reshape(num_rows, -1), layer)
        return F.linear(self._normed(x, self.model.model.norm.weight), self.model.lm_head.weight)

    def _turned(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The queries and keys (..., H + G, S) of `heads` (..., H + 2 G, S), turned by their positions."""
        turned = torch.empty_like(heads[..., : self.num_rotated, :])
        first, second = heads[..., : self.num_rotated, :].chunk(2, dim=-1)
        first_out, second_out = turned.chunk(2, dim=-1)
        torch.addcmul(first * cos, second, sin, value=-1, out=first_out)
        torch.addcmul(second * cos, first, sin, out=second_out)
        return turned

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _heads(self, x: Tensor, layer: _Layer) -> Tensor:
        return F.linear(self._normed(x, layer.before), layer.qkv)

    def _rest(self, x: Tensor, seen: Tensor, layer: _Layer) -> Tensor:
        """What a layer makes of its input and of what its attention saw."""
        x = torch.addmm(x, seen, layer.out)
        gate, up = F.linear(self._normed(x, layer.between), layer.gate_up).chunk(2, dim=-1)
        return torch.addmm(x, F.silu(gate).mul_(up), layer.down)
