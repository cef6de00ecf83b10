"""Rollouts, and the exact log-probabilities and values that are read from them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny_models
import torch
from policies import END, PROMPTS, rows_of
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, PreTrainedModel

from cai.rl.models import Policy, pack, plan_batches
from cai.rl.rollout import sample_responses

# --- log-probabilities and values -------------------------------------------------------------------------------------


def gemma2(vocabulary: int) -> PreTrainedModel:
    """Caps its logits, which its output head does not show."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0, initializer_range=0.3,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def granite(vocabulary: int) -> PreTrainedModel:
    """Divides its logits."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=3.0, initializer_range=0.3,
    )  # fmt: skip
    return GraniteForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_models.llama, gemma2, granite])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logps_are_those_of_single_rows(make: Callable[[int], PreTrainedModel], temperature: float) -> None:
    """Unequal lengths, a one-token prompt and response, and padding (id 0) that is also a real token here."""
    model, rows = make(30), rows_of([(3, 5), (1, 1), (7, 2), (2, 9)])
    rows[0].ids[-1] = rows[1].ids[-1] = 0
    with torch.no_grad():
        packed = Policy(model, temperature=temperature).logp(pack(rows))
    singles = [tiny_models.full_logps(model, row.ids, temperature)[row.num_prompt - 1 :] for row in rows]
    assert torch.allclose(packed.double(), torch.cat(singles), atol=1e-5)


def test_batches_are_planned_within_their_budget() -> None:
    lengths = [5, 9, 1, 7, 7, 3, 30]
    batches = plan_batches(lengths, max_tokens=21)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 21 for batch in batches if len(batch) > 1)
    assert batches == [[2, 5, 0], [3, 4], [1], [6]]


# --- rollouts ---------------------------------------------------------------------------------------------------------


def roll(policy: Policy, seeds: Sequence[int], prompts: list[list[int]] = PROMPTS, **changes: Any) -> Any:
    given = {"max_new_tokens": 8, "stop_ids": [END], "max_batch_tokens": 4096} | changes
    return sample_responses(policy, prompts, seeds=seeds, **given)


def test_a_rollout_holds_what_was_sampled() -> None:
    policy = Policy(tiny_models.llama(30), temperature=0.8)
    rollout = roll(policy, range(64), PROMPTS * 16)
    assert 0 < int(rollout.finished.sum()) < 64
    for row, mask, logp, done in zip(rollout.rows, rollout.mask, rollout.logp, rollout.finished, strict=True):
        response = row.ids[row.num_prompt :]
        assert int(mask.sum()) == len(response) <= 8 and mask[: len(response)].all()
        assert bool(done) == (response[-1] == END) and END not in response[:-1]
        exact = tiny_models.full_logps(policy.model, row.ids, 0.8)[row.num_prompt - 1 :]
        assert torch.allclose(logp[: len(response)].double(), exact, atol=1e-5) and not logp[len(response) :].any()
    closed = rollout.closed(END)
    assert all(row.ids[-1] == END and row.ids.count(END) == 1 for row in closed)


def test_a_row_depends_on_its_own_seed_alone() -> None:
    policy = Policy(tiny_models.llama(30))
    rows = roll(policy, [3, 4, 5, 6]).rows
    assert roll(policy, [6, 5, 4, 3], PROMPTS[::-1]).rows == rows[::-1]
    assert roll(policy, [3, 4, 5, 6], max_batch_tokens=20).rows == rows
    assert roll(policy, [3, 4, 5, 7]).rows[:3] == rows[:3]
