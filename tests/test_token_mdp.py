"""PPO's episodes against the formalism: states are prefixes, an action is a token, transitions are deterministic, and
an episode is a bandit's pull whose one reward is spread over its tokens.
"""

from dataclasses import dataclass

import pytest
import torch
from tiny_models import llama

from cai.rl.losses import gae, kl_k1, shaped_rewards
from cai.rl.models import Policy
from cai.rl.rollout import Rollout, sample_responses

State = tuple[int, ...]
STOP = 4
PROMPTS = [[3, 5, 6], [9, 8], [10, 11, 12, 13]] * 4


@dataclass(frozen=True)
class TokenMDP:
    """The decision process that a language model acts in; `prompt` is its first state."""

    prompt: State
    stop_id: int
    horizon: int

    def step(self, state: State, token: int) -> tuple[State, bool]:
        """The next state, and whether it is terminal."""
        num_taken = len(state) + 1 - len(self.prompt)
        return (*state, token), token == self.stop_id or num_taken == self.horizon


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return sample_responses(
        Policy(llama(40)), PROMPTS, seeds=range(len(PROMPTS)), max_new_tokens=6, stop_ids=[STOP], max_batch_tokens=4096
    )


def test_every_sampled_response_is_an_episode(rollout: Rollout) -> None:
    for row, mask, finished in zip(rollout.rows, rollout.mask, rollout.finished, strict=True):
        process = TokenMDP(tuple(row.ids[: row.num_prompt]), STOP, 6)
        state, ends = process.prompt, []
        for token in row.ids[row.num_prompt :]:
            state, terminal = process.step(state, token)
            ends.append(terminal)
        assert state == tuple(row.ids)
        assert ends == [False] * (len(ends) - 1) + [True]  # it ends where the process ends, and not before
        assert int(mask.sum()) == len(ends)
        assert bool(finished) == (state[-1] == STOP)
    assert set(rollout.finished.tolist()) == {True, False}  # both ways of ending are among them


def test_an_episode_is_one_pull_of_a_bandit(rollout: Rollout) -> None:
    """The rewards of an episode add up to score - beta * log-ratio, InstructGPT's objective of a (prompt, response)."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(PROMPTS), generator=generator)
    logp_ref = rollout.logp + 0.1 * torch.randn(rollout.logp.shape, generator=generator) * rollout.mask
    rewards = shaped_rewards(scores, kl_k1(rollout.logp, logp_ref), rollout.mask, beta=0.3)
    ratio = (rollout.logp - logp_ref).sum(1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * ratio)
    # Undiscounted, so with lambda = 1 the return of every state is what is still to come.
    to_come = rewards.flip(1).cumsum(1).flip(1)
    values = torch.randn(rewards.shape, generator=generator)
    _, returns = gae(rewards, values, rollout.mask, lam=1.0)
    torch.testing.assert_close(returns, to_come * rollout.mask, atol=1e-5, rtol=1e-5)
