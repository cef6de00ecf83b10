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
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from cai.models.lora import is_linear, whole_weight

__all__ = ["LlamaSteps"]

_MOST_PARAMETERS = 50_000_000  # above, arithmetic dominates and a second copy of the weights costs too much memory


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights: `qkv` ((H + 2 G) S, D), `out` (H S, D), `gate_up` (2 F, D), `down` (F, D).

    Those of the norms, and the scale of attention, are in the products; the rows of rotated pairs are side by side.
    """

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class LlamaSteps:
    """`model` reading prompts and then a token per row and step; weights are taken as they are now."""

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether `model` is a plain small Llama: no biases, SwiGLU; in full precision, because adapters, norms and
        scales go into the weights, which half precision would round.
        """
        if type(model) is not LlamaForCausalLM or model.num_parameters() > _MOST_PARAMETERS:
            return False
        config, projections = model.config, [m for name, m in model.named_modules() if name.endswith("_proj")]
        plain = model.dtype == torch.float32 and all(is_linear(module) for module in projections)
        return plain and not config.attention_bias and not config.mlp_bias and config.hidden_act == "silu"

    def __init__(self, model: LlamaForCausalLM, num_positions: int) -> None:
        """For rows of at most `num_positions` tokens."""
        config = model.config
        self.embed = model.model.embed_tokens
        self.eps = config.rms_norm_eps
        first = model.model.layers[0].self_attn
        self.size = first.head_dim
        self.num_keys = first.k_proj.out_features // self.size
        self.num_queries = first.q_proj.out_features // self.size
        like = model.lm_head.weight.detach()  # for its type and device
        cos, sin = model.model.rotary_emb(like, torch.arange(num_positions, device=model.device)[None])
        half = self.size // 2  # both halves turn by the same angles
        self.turns = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())  # (num_positions, S / 2)
        self.layers = [self._layer(layer) for layer in model.model.layers]
        self.head = _behind(model.model.norm, whole_weight(model.lm_head))

    def _layer(self, layer: LlamaDecoderLayer) -> _Layer:
        """Weights as `_Layer` has them."""
        attention, mlp = layer.self_attn, layer.mlp
        queries, keys, values = map(whole_weight, (attention.q_proj, attention.k_proj, attention.v_proj))
        qkv = torch.cat([self._paired(queries) * self.size**-0.5, self._paired(keys), values])
        gate_up = torch.cat([whole_weight(module) for module in (mlp.gate_proj, mlp.up_proj)])
        return _Layer(
            qkv=_behind(layer.input_layernorm, qkv),
            out=whole_weight(attention.o_proj).t(),
            gate_up=_behind(layer.post_attention_layernorm, gate_up),
            down=whole_weight(mlp.down_proj).t(),
        )

    def _paired(self, weight: Tensor) -> Tensor:
        """Rows of each head with the two of a rotated pair, S / 2 apart in the model, side by side."""
        return weight.view(-1, 2, self.size // 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)

    def read(self, ids: Tensor, cache: Cache) -> None:
        """Put the keys and values of `ids` (B, L) into `cache`, behind what is there; the last layer needs no more."""
        (num_rows, length), start = ids.shape, cache.get_seq_length()
        x: Tensor = self.embed(ids).flatten(0, 1)
        turns = self.turns[start : start + length, None]  # (L, 1, S / 2)
        later = torch.ones(length, start + length, dtype=torch.bool, device=ids.device).tril(start) if start else None
        for number, layer in enumerate(self.layers):
            heads = F.linear(self._normed(x), layer.qkv).view(num_rows, length, -1, self.size)
            queries, new_keys, new_values = (part.transpose(1, 2) for part in self._turned(heads, turns))
            keys, values = cache.update(new_keys, new_values, number)
            if number == len(self.layers) - 1:
                return
            shared = queries.shape[1] != keys.shape[1]
            seen = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=later, is_causal=not start, enable_gqa=shared, scale=1.0
            )
            x = self._rest(x, seen.transpose(1, 2).reshape(num_rows * length, -1), layer)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Cache, mask: Tensor | None) -> Tensor:
        """Logits (B, V) after `tokens` (B) at `positions` (B, 1); `mask` (B, 1, 1, T) is added to attention scores."""
        num_rows = len(tokens)
        x: Tensor = self.embed(tokens)
        turns = self.turns[positions]  # (B, 1, S / 2)
        for number, layer in enumerate(self.layers):
            heads = F.linear(self._normed(x), layer.qkv).view(num_rows, -1, self.size)  # (B, H + 2 G, S)
            queries, new_keys, new_values = self._turned(heads, turns)
            keys, values = cache.update(new_keys[:, :, None], new_values[:, :, None], number)  # (B, G, T, S)
            # Two batched products by hand: they stream through keys and values about twice as fast as the fused
            # kernel, which on a CPU is made for many queries.
            queries = queries.view(num_rows * self.num_keys, -1, self.size)
            scores = torch.bmm(queries, keys.flatten(0, 1).transpose(1, 2))  # (B G, H / G, T)
            if mask is not None:
                scores.view(num_rows, -1, scores.shape[-1]).add_(mask[:, 0])
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
            seen = torch.bmm(weights, values.flatten(0, 1))  # (B G, H / G, S)
            x = self._rest(x, seen.view(num_rows, -1), layer)
        return F.linear(self._normed(x), self.head)

    def _turned(self, heads: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries (..., H, S), keys and values (..., G, S) of `heads` (..., H + 2 G, S); the first two are turned
        by their positions, for which a rotation is a product of complex numbers.
        """
        ends = self.num_queries, self.num_queries + self.num_keys
        parts = heads[..., : ends[0], :], heads[..., ends[0] : ends[1], :]
        pairs = (torch.view_as_complex(part.float().view(*part.shape[:-1], -1, 2)) for part in parts)
        queries, keys = (torch.view_as_real(part * turns).flatten(-2).to(heads.dtype) for part in pairs)
        return queries, keys, heads[..., ends[1] :, :]

    def _normed(self, x: Tensor) -> Tensor:
        """Rows of length 1 (but for epsilon); `_behind` has the rest of the norm."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        rows: Tensor = wide * length.square_().add_(x.shape[-1] * self.eps).rsqrt_()
        return rows.to(x.dtype)

    def _rest(self, x: Tensor, seen: Tensor, layer: _Layer) -> Tensor:
        """What a layer makes of its input and of what its attention saw."""
        x = torch.addmm(x, seen, layer.out)
        gate, up = F.linear(self._normed(x), layer.gate_up).chunk(2, dim=-1)
        return torch.addmm(x, F.silu(gate).mul_(up), layer.down)


def _behind(norm: LlamaRMSNorm, weight: Tensor) -> Tensor:
    """`weight` (rows, D) for rows of length 1: `norm` would have made it sqrt(D) and counted columns by its weights."""
    scale: Tensor = norm.weight * norm.weight.shape[0] ** 0.5
    return weight * scale
