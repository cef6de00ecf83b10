"""Small formulas: Wilson's interval of a rate, Holm's correction of p-values."""

import math
from collections.abc import Sequence

from scipy.special import ndtri

__all__ = ["holm", "score_interval", "wilson"]


def wilson(num_events: float, num: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927)."""
    return score_interval(num_events, num, float(ndtri((1 + level) / 2)))


def score_interval(num_events: float, num: float, z: float) -> tuple[float, float]:
    """The same for any quantile `z`, as of Student's t; from 0 to 1 where nothing was tried."""
    if num <= 0:
        return 0.0, 1.0
    rate = num_events / num
    centre = (rate + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(rate * (1 - rate) / num + z * z / (4 * num * num))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the order given."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
