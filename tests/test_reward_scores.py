"""Pooling, ensembles and normalisation of reward heads, against numbers worked out by hand."""

import pytest
import torch

from cai.rl.reward_scores import Constants, ensemble_scores, normalised, pool_rewards


def test_pooling_by_hand() -> None:
    rewards = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0], [9.0, 9.0, 3.0, 9.0, 9.0]])
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]])
    assert pool_rewards(rewards, mask, "last").tolist() == [4.0, 3.0]
    assert pool_rewards(rewards, mask, "sum").tolist() == [7.0, 3.0]
    assert pool_rewards(rewards, mask, "mean").tolist() == pytest.approx([7 / 3, 3.0])
    assert pool_rewards(rewards, mask.bool(), "last").tolist() == [4.0, 3.0]


def test_an_ensemble_by_hand() -> None:
    """Outputs 1, 3 and 4, 4 with offsets 1 and -1: (2, 2) and (5, 3), so means 2, 4 and deviations 0, 1."""
    raw = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    constants = Constants(offset=1.0, other_offsets=(-1.0,), pessimism=0.5, gain=2.0)
    assert ensemble_scores(raw, constants).tolist() == [4.0, 7.0]
    one = Constants(offset=1.0, gain=2.0, pessimism=0.5)
    assert ensemble_scores(raw[:1], one).tolist() == [4.0, 10.0]


def test_bias_puts_the_anchors_at_zero_and_gain_the_spread_at_one() -> None:
    anchors, samples = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 5.0, 3.0]])
    bias = normalised(anchors, samples, Constants(temperature=3.0), "bias")
    assert bias.offset == -3.0 and bias.gain == 1.0 and bias.temperature == 3.0
    assert bias.std == pytest.approx((8 / 3) ** 0.5)
    both = normalised(anchors, samples, Constants(), "gain_and_bias")
    assert both.offset == -3.0 and both.std == 1.0 and both.gain == pytest.approx((3 / 8) ** 0.5)
    assert float(ensemble_scores(anchors, both).mean()) == pytest.approx(0, abs=1e-6)
    assert float(ensemble_scores(samples, both).std(correction=0)) == pytest.approx(1)
    flat = normalised(anchors, torch.ones(1, 3), Constants(), "gain_and_bias")
    assert flat.gain == 1.0 and flat.std == 0.0


@pytest.mark.parametrize("how", ["bias", "gain_and_bias"])
def test_an_ensembles_anchors_are_at_zero_whatever_pessimism_takes_away(how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, samples = torch.randn(3, 7, generator=generator) + 5, torch.randn(3, 9, generator=generator) * 2
    constants = normalised(anchors, samples, Constants(pessimism=1.5), how)  # type: ignore[arg-type]
    assert float(ensemble_scores(anchors, constants).mean()) == pytest.approx(0, abs=1e-5)
    assert len(constants.other_offsets) == 2
    spread = float(ensemble_scores(samples, constants).std(correction=0))
    assert spread == pytest.approx(constants.std, rel=1e-5)
    # models are centred before they are compared: a constant between them is no disagreement
    shifted = normalised(anchors + torch.tensor([[0.0], [9.0], [-4.0]]), samples, Constants(pessimism=1.5), "bias")
    assert shifted.other_offsets[0] - shifted.offset == pytest.approx(
        constants.other_offsets[0] - constants.offset - 9, abs=1e-5
    )
