"""The torch side of pre-training: a small Llama, and data-parallel updates of it.

Muon on the matrices, AdamW on embeddings and norms. One process with one thread per core is faster on few cores than
one process with several threads, and less hurt by a shared machine. Batches are right-padded: with causal attention
that needs no mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from cai.models.muon import Muon

__all__ = ["Trainer", "build_llama", "pad"]


def build_llama(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    seed: int,
) -> LlamaForCausalLM:
    """A Llama with random weights, embeddings tied; same arguments, same weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    model.train()
    return model


def pad(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
    """A tensor (rows, longest), filled up on the right with `value`."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=dtype)


class Trainer:
    """One process' copy of the model with its optimisers; `rank` of `world_size` that update in step (gloo)."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        *,
        lr_matrices: float,
        lr_rest: float,
        weight_decay: float,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.model, self.world_size = model, world_size
        self.lr_matrices, self.lr_rest = lr_matrices, lr_rest
        named = dict(model.named_parameters())
        matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        chosen = {id(p) for p in matrices}
        rest = [p for p in named.values() if id(p) not in chosen]
        self.muon = Muon(matrices, weight_decay=weight_decay, rank=rank, world_size=world_size)
        self.adam = torch.optim.AdamW(rest, lr=lr_rest, betas=(0.9, 0.98), weight_decay=0.0)
        # Gradients live in one flat buffer, so that one all_reduce averages them all.
        self._flat_grad = torch.zeros(sum(p.numel() for p in named.values()))
        start = 0
        for p in named.values():
            p.grad = self._flat_grad[start : start + p.numel()].view_as(p)
            start += p.numel()

    def update(self, ids: Tensor, weights: Tensor, *, rate: float, num_tokens: int) -> list[float]:
        """One optimiser step on ids and loss weights, each (documents, longest); padding has weight 0.

        The loss is the weighted sum of -log p(token) over all processes, divided by `num_tokens`: a constant divisor,
        so that a token counts the same whatever else is in its batch. `rate` scales both learning rates. Returns the
        weighted mean loss of each document of this process, in nats.
        """
        hidden = self.model.model(input_ids=ids).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1])
        nll = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        weighted = (nll * weights[:, 1:]).sum(dim=1)
        loss = weighted.sum() * self.world_size / num_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        if self.world_size > 1:
            dist.all_reduce(self._flat_grad)
            self._flat_grad /= self.world_size
        self.muon.step(self.lr_matrices * rate)
        for group in self.adam.param_groups:
            group["lr"] = self.lr_rest * rate
        self.adam.step()
        self._flat_grad.zero_()
        means: list[float] = (weighted.detach() / weights[:, 1:].sum(dim=1).clamp(min=1e-6)).tolist()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        torch.set_rng_state(state["rng"])
