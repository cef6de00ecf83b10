"""Activation checkpointing changes what is kept for the backward pass, and no number."""

from collections.abc import Callable

import pytest
import torch
from test_decoding import sliding_model
from tiny_models import llama
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from cai.models.flat import is_plain_llama
from cai.rl.models import Policy, Row, pack, recompute_activations, states
from cai.rl.rollout import sample_responses

ROWS = [Row([1, 5, 9, 12, 7, 7], 3), Row([1, 5, 6], 1), Row([1, 5, 6, 6, 7, 8, 9, 10, 11], 4)]


def opt() -> PreTrainedModel:
    """Its layers drop out by themselves when they are in training mode."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = OPTConfig(vocab_size=40, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.3, **sizes)
    return OPTForCausalLM(config).eval()


MODELS = [
    pytest.param(lambda: llama(40), id="flat"),
    pytest.param(sliding_model, id="the model's own forward"),
    pytest.param(opt, id="with dropout"),
]


def gradients_and_kept(model: PreTrainedModel) -> tuple[list[Tensor], int]:
    """Of the summed log-probabilities: the gradients, and how many numbers were kept for them beside the weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    num_kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal num_kept
        num_kept += 0 if tensor.data_ptr() in weights else tensor.numel()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = Policy(model).logp(pack(ROWS)).sum()
    before_backward = num_kept
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], before_backward


@pytest.mark.parametrize("make", MODELS)
def test_same_gradients_with_less_kept(make: Callable[[], PreTrainedModel]) -> None:
    plain, checkpointed = make(), make()
    recompute_activations(checkpointed)
    expected, all_kept = gradients_and_kept(plain)
    found, some_kept = gradients_and_kept(checkpointed)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    assert some_kept < all_kept / 2


@pytest.mark.parametrize("make", MODELS)
def test_sampling_and_scoring_are_as_before(make: Callable[[], PreTrainedModel]) -> None:
    """Hugging Face's layers would drop the key-value cache while they checkpoint."""
    plain, checkpointed = make(), make()
    recompute_activations(checkpointed)
    gradients_and_kept(checkpointed)  # leaves nothing switched on
    assert not any(module.training for module in checkpointed.modules())
    sampled = [
        sample_responses(
            Policy(model), [[3, 5], [8]], seeds=[0, 1], max_new_tokens=8, stop_ids=[4], max_batch_tokens=999
        )
        for model in (plain, checkpointed)
    ]
    assert [row.ids for row in sampled[0].rows] == [row.ids for row in sampled[1].rows]
    batch = pack(ROWS)
    with torch.no_grad():
        torch.testing.assert_close(*(states(model, batch, batch.predicts) for model in (plain, checkpointed)))


def test_both_paths_are_tried() -> None:
    assert is_plain_llama(llama(40)) and not is_plain_llama(sliding_model())
