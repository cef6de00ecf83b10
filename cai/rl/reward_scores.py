"""From the outputs of a reward head to a score: pooling over tokens, ensembles, normalisation (pure tensor maths).

Shape letters: B = rows, L = tokens of the longest row, K = models of an ensemble, N = responses.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # stages name the choices here in their settings, and those load no torch
    from torch import Tensor

__all__ = ["Constants", "Head", "Normalise", "ensemble_scores", "normalised", "pool_rewards", "snippet_rewards"]

# last: the head's output at the end-of-turn token (Stiennon et al. 2020). sum, mean: its outputs at all tokens of the
# response: the reward of a trajectory is the sum over its states (T-REX, Brown et al. 2019, eq. 1), which grows with
# its length; the mean does not.
Head = Literal["last", "sum", "mean"]
Normalise = Literal["bias", "gain_and_bias"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What `reward.json` holds: all that a score depends on besides the networks.

    `offset` is added to the first model's output and `other_offsets` to those of the other models of an ensemble;
    `std` is the spread of the scores over the SFT policy's own samples. Dividing a difference of scores by
    `temperature` gives calibrated log-odds; scores themselves are never divided by it.
    """

    offset: float = 0.0
    std: float = 1.0
    gain: float = 1.0
    temperature: float = 1.0
    pessimism: float = 0.0
    head: str = "last"
    other_offsets: tuple[float, ...] = ()

    @property
    def num_models(self) -> int:
        """Of the ensemble."""
        return 1 + len(self.other_offsets)


def pool_rewards(rewards: "Tensor", mask: "Tensor", head: Head) -> "Tensor":
    """One reward per row, (B), of the head's outputs at every token, `rewards` (B, L); `mask` (B, L) is 1 for the
    tokens of the response.
    """
    if head == "last":
        last = (mask.cumsum(1) * mask).argmax(1, keepdim=True)
        return rewards.gather(1, last).squeeze(1)
    total = (rewards.float() * mask).sum(1)
    return total if head == "sum" else total / mask.sum(1)


def snippet_rewards(outputs: "Tensor", rows: "Tensor", starts: "Tensor", sizes: "Tensor", head: Head) -> "Tensor":
    """Rewards (S) of snippets: of the head's outputs at tokens `starts` (S) to `starts + sizes` of rows `rows` (S), the
    sum or mean (T-REX, eq. 1). `outputs` (B, L).
    """
    columns = starts.new_tensor(range(outputs.shape[1]))
    inside = (columns >= starts[:, None]) & (columns < (starts + sizes)[:, None])
    return pool_rewards(outputs[rows], inside, head)


def ensemble_scores(raw: "Tensor", constants: Constants) -> "Tensor":
    """`gain * (mean - pessimism * std)` over the models of `raw + offsets`, with the biased standard deviation.

    `raw` (K, N) -> (N). Where models that saw the same labels disagree, the score is worth less (Coste et al. 2023,
    "Reward model ensembles help mitigate overoptimization", who subtract the variance: here it is in units of reward).
    """
    offsets = raw.new_tensor([constants.offset, *constants.other_offsets])
    scores = raw + offsets[:, None]
    if len(scores) == 1:
        return scores[0] * constants.gain
    return (scores.mean(0) - constants.pessimism * scores.std(0, correction=0)) * constants.gain


def normalised(raw_anchors: "Tensor", raw_samples: "Tensor", constants: Constants, how: Normalise) -> Constants:
    """`constants` with the offsets at which the anchors (demonstrations) score 0 on average, for each model of an
    ensemble and for the ensemble, and the spread of the samples' scores; with `gain_and_bias` a gain makes that 1.

    `raw_anchors` (K, A) and `raw_samples` (K, N) are outputs of the heads. InstructGPT, section 3.2, has the bias;
    Ziegler et al. 2019, section 2.1, normalise mean and variance.
    """
    first, *others = (-raw_anchors.mean(1)).tolist()
    centred = replace(constants, offset=first, other_offsets=tuple(others), gain=1.0)
    if others:  # what pessimism takes away on average
        rest = float(ensemble_scores(raw_anchors, centred).mean())
        centred = replace(centred, offset=first - rest, other_offsets=tuple(other - rest for other in others))
    std = float(ensemble_scores(raw_samples, centred).std(correction=0))
    if how == "bias" or std == 0:
        return replace(centred, std=std)
    return replace(centred, std=1.0, gain=1 / std)
