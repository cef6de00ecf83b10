"""PPO's update against TRL 1.12.0's on a frozen rollout, and against itself where nothing may change.

`trl_update.safetensors` holds what TRL's own trainer computed (`benchmarks/trl_golden.py`, which also says where it is
known to differ and how that was matched). The rollout of `benchmarks/frozen.py` has responses of one token, responses
that are cut off, and an end-of-turn token whose id is also that of the padding.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import frozen
import pytest
import torch
from frozen import CASES, Case, Outcome, distance, our_update, rows
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cai.rl import learner
from cai.rl.models import Packed, Row, pack

FIXTURE = Path(__file__).parent / "trl_update.safetensors"
UPDATE, STEP = CASES


@pytest.fixture(scope="module")
def whole() -> Outcome:
    """The single step from an old rollout, with all rows in one microbatch, in order."""
    return our_update(STEP, rows(), [list(range(frozen.NUM_ROWS))], max_batch_tokens=4096)


def differences(ours: Outcome, theirs: Outcome) -> float:
    """The largest relative difference of gradients, and of losses."""
    gradients = [distance(ours.gradients[name], theirs.gradients[name]) for name in theirs.gradients]
    losses = [abs(ours.averages[name] / theirs.averages[name] - 1) for name in ("policy_loss", "value_loss")]
    return max(gradients + losses)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_update_is_that_of_trl(case: Case) -> None:
    """Scores, losses and the first gradients to a millionth; after all steps, weights to 1e-5 of the way they went."""
    theirs = load_file(FIXTURE)
    with safe_open(FIXTURE, "pt") as file:
        notes = file.metadata()
    ours = our_update(case, rows(), case.permutations)
    assert torch.allclose(ours.scores, theirs[f"{case.name}.scores"], atol=1e-6)
    for name in ("policy", "value"):
        assert len(ours.gradients[name]) == case.num_epochs * case.num_minibatches
        assert distance(ours.gradients[name][0], theirs[f"{case.name}.{name}.gradient"]) < 1e-6
        assert distance(ours.changes[name], theirs[f"{case.name}.{name}.change"]) < 1e-5
    for name in ("kl", "objective", "policy_loss", "value_loss", "clipfrac", "value_clipfrac"):
        assert ours.averages[name] == pytest.approx(float(notes[f"{case.name}.{name}"]), rel=1e-6, abs=1e-7), name


def test_the_frozen_update_is_no_easy_case() -> None:
    """Ratios and values are clipped, and the policy is away from its reference: else equality would say little."""
    with safe_open(FIXTURE, "pt") as file:
        notes = {name: float(value) for name, value in file.metadata().items() if "." in name[:7]}
    assert notes["update.clipfrac"] > 0.1 and notes["update.value_clipfrac"] > 0.1 and notes["step.clipfrac"] > 0.1
    assert abs(notes["update.kl"]) > 0.1
    lengths = [len(row.ids) - row.num_prompt for row in rows()]
    assert lengths.count(1) == 2 and any(row.ids[-1] != frozen.END for row in rows())


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 60])
def test_microbatches_and_their_padding_change_nothing(max_batch_tokens: int, whole: Outcome) -> None:
    """From every row alone, without any padding, to two microbatches."""
    ours = our_update(STEP, rows(), [list(range(frozen.NUM_ROWS))], max_batch_tokens=max_batch_tokens)
    assert differences(ours, whole) < 1e-6


def test_what_the_padding_holds_changes_nothing(whole: Outcome) -> None:
    """Random tokens, the end-of-turn token among them, in place of id 0."""
    seen: list[int] = []

    def littered(given: Sequence[Row], device: torch.device | str = "cpu") -> Packed:
        packed = pack(given, device)
        padding = torch.arange(packed.ids.shape[1]) > packed.last[:, None]
        seen.append(int(padding.sum()))
        litter = torch.randint(frozen.VOCABULARY, packed.ids.shape, generator=torch.Generator().manual_seed(0))
        return replace(packed, ids=torch.where(padding, litter, packed.ids))

    with mock.patch.object(learner, "pack", littered):
        ours = our_update(STEP, rows(), [list(range(frozen.NUM_ROWS))], max_batch_tokens=4096)
    assert sum(seen) > 50
    assert differences(ours, whole) < 1e-6


def test_the_order_of_rows_changes_nothing(whole: Outcome) -> None:
    """Neither that of the rollout, nor that of a minibatch."""
    (order,) = STEP.permutations
    shuffled = [rows()[i] for i in order]
    assert shuffled != rows()
    for given, minibatch in ((shuffled, sorted(order)), (rows(), order)):
        assert differences(our_update(STEP, given, [minibatch], max_batch_tokens=40), whole) < 1e-6


def test_before_the_first_step_the_ratio_is_one() -> None:
    """A fresh rollout and one minibatch: approximate KL 0, nothing clipped, and so a policy loss of 0."""
    fresh = replace(STEP, stale=False)
    averages = our_update(fresh, rows(), fresh.permutations).averages
    assert averages["approx_kl"] < 1e-12 and averages["clipfrac"] == 0 == averages["value_clipfrac"]
    assert abs(averages["policy_loss"]) < 1e-6


def test_distance_is_relative() -> None:
    assert distance(Tensor([3.0, 4.0]), Tensor([3.0, 3.0])) == pytest.approx(1 / 18**0.5)
