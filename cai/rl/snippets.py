"""Snippets of ranked responses: the training pairs of T-REX (Brown, Goo, Nagarajan & Niekum 2019, "Extrapolating Beyond
Suboptimal Demonstrations via Inverse Reinforcement Learning from Observations", section 4).

A pair of snippets has the label of the responses that it was cut from. Short stretches in large number say which states
are good, where whole trajectories could be told apart by one lucky token, and they leave no length to go by.
"""

from dataclasses import dataclass

import numpy as np

from cai.errors import ConfigError

__all__ = ["Snippets", "Span"]

# Where a pair of snippets begins in the first and in the second response, and the tokens of each.
Span = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Snippets:
    """`num` pairs of snippets for every labelled pair of responses, of `min_tokens` to `max_tokens` tokens each, the
    two of a pair equally long; where the shorter response has fewer than `min_tokens`, as many as it has.

    Length and both places are drawn evenly and independently. The authors' code has the better snippet begin no earlier
    than the worse one, because a game's score only grows; of a text's worth that is not known, so nothing like it here.
    """

    num: int = 8
    min_tokens: int = 4
    max_tokens: int = 16

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"num: must be 1 or more, got {self.num}")
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise ConfigError(f"min_tokens: must be from 1 to max_tokens ({self.max_tokens}), got {self.min_tokens}")

    def draw(self, first: int, second: int, *, seed: int) -> list[Span]:
        """`num` pairs of snippets of two responses with `first` and `second` tokens; `seed` alone decides them."""
        rng = np.random.default_rng(seed)
        shorter = min(first, second)
        low, high = min(self.min_tokens, shorter), min(self.max_tokens, shorter)
        spans = []
        for size in rng.integers(low, high, size=self.num, endpoint=True).tolist():
            starts = [int(rng.integers(length - size, endpoint=True)) for length in (first, second)]
            spans.append((starts[0], starts[1], int(size)))
        return spans
