"""Names and figures whose truth is known, for tests of the statistics."""

import numpy as np

from cai.report.resampling import Table, mean_table


def names(num: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{i}" for i in range(num)]


def simulated_study(rng: np.random.Generator, num_prompts: int, num_samples: int, spread: float) -> Table:
    """Responses whose mean is 0, with an effect of the prompt that its responses share."""
    effect = rng.normal(0, spread, size=num_prompts)
    values = effect[:, None] + rng.normal(size=(num_prompts, num_samples))
    return mean_table(0, [p for p in names(num_prompts) for _ in range(num_samples)], values.ravel())
