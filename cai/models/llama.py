"""One decoding step of a small Llama, in fewer and larger operations than its modules take.

A step of a small model on a CPU spends as long on starting operations as on arithmetic. Fusing projections and leaving
out the module machinery halves a step of the sandbox model; the numbers are the same up to rounding (tested).

Letters of shapes: B rows, D model width, H query heads, G key heads, S head size, F width of the feed-forward, T keys.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

__all__ = ["LlamaStep"]

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


class LlamaStep:
    """The forward of `model` for one token per row; weights are taken as they are now."""

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether `model` is a plain small Llama: no biases, no adapters, SwiGLU."""
        if type(model) is not LlamaForCausalLM or model.num_parameters() > _MOST_PARAMETERS:
            return False
        config = model.config
        plain = all(type(m) is nn.Linear for name, m in model.named_modules() if name.endswith("_proj"))
        return plain and not config.attention_bias and not config.mlp_bias and config.hidden_act == "silu"

    def __init__(self, model: LlamaForCausalLM) -> None:
        config = model.config
        self.model = model
        self.eps = config.rms_norm_eps
        first = model.model.layers[0].self_attn
        self.size = first.head_dim
        self.num_keys = first.k_proj.out_features // self.size
        self.num_rotated = first.q_proj.out_features // self.size + self.num_keys
        self.layers = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self.layers.append(
                _Layer(
                    before=layer.input_layernorm.weight,
                    qkv=torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
                    out=attention.o_proj.weight.t(),
                    between=layer.post_attention_layernorm.weight,
                    gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                    down=mlp.down_proj.weight.t(),
                )
            )

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Cache, mask: Tensor | None) -> Tensor:
        """Logits (B, V) after `tokens` (B) at `positions` (B, 1); `mask` (B, 1, 1, T) is added to attention scores."""
        body, width, half = self.model.model, self.model.config.hidden_size, self.size // 2
        num_rows = len(tokens)
        x: Tensor = body.embed_tokens(tokens)
        cos, sin = body.rotary_emb(x, positions)  # (B, 1, S) each
        # x * cos + rotate_half(x) * sin, with the sign of rotate_half put into sin
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        for number, layer in enumerate(self.layers):
            heads = F.linear(F.rms_norm(x, (width,), layer.before, self.eps), layer.qkv)
            heads = heads.view(num_rows, -1, self.size)  # (B, H + 2 G, S)
            turned = heads[:, : self.num_rotated]
            turned = torch.addcmul(turned * cos, turned.roll(half, dims=-1), sin)
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
            x = torch.addmm(x, seen.reshape(num_rows, -1), layer.out)
            gate, up = F.linear(F.rms_norm(x, (width,), layer.between, self.eps), layer.gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), layer.down)
        return F.linear(F.rms_norm(x, (width,), body.norm.weight, self.eps), self.model.lm_head.weight)
