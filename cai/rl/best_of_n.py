"""Best-of-n: how far it is from the policy it samples from, and its curve over n from one set of samples (no torch)."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BEST_OF_N", "best_of", "kl_bound"]

BEST_OF_N: Final = "best_of_n.json"  # in a policy's folder: {"n": ...}, how many samples to choose from


def kl_bound(n: int) -> float:
    """KL(best-of-n || the sampled policy) in nats is at most `log n - (n - 1) / n` (Stiennon et al. 2020, appendix G.3,
    as an equality). It is exact where no two samples are alike; a policy that repeats itself moves less far (Beirami et
    al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of(k: int, scores: NDArray[np.float64], columns: Sequence[NDArray[np.float64]]) -> list[float | None]:
    """Mean of each column over the best of k samples by `scores`, from n >= k samples: all arrays are (prompts, n).

    Every subset of k counts, which is the unbiased estimate of least variance (Nakano et al. 2021, appendix I): the
    sample of rank i is the best of C(i - 1, k - 1) of the C(n, k) subsets. NaN means that a column does not apply to a
    response; the mean is over those it applies to, and None when there is none.
    """
    n = scores.shape[1]
    by_rank = np.array([math.comb(i - 1, k - 1) / math.comb(n, k) for i in range(1, n + 1)])
    weights = np.empty_like(scores)
    np.put_along_axis(weights, scores.argsort(1, kind="stable"), np.broadcast_to(by_rank, scores.shape), 1)
    means: list[float | None] = []
    for column in columns:
        applies = ~np.isnan(column)
        total = weights[applies].sum()
        means.append(float((weights * np.nan_to_num(column))[applies].sum() / total) if total > 0 else None)
    return means
