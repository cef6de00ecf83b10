"""Settings of the stages beside PPO that sample from a policy to learn or to measure, checked; no torch in here."""

import math
from dataclasses import dataclass
from typing import Final

from cai.errors import ConfigError
from cai.models.digest import check_device
from cai.rl.settings import DType
from cai.scorers import Scorer

__all__ = ["MEASURES", "SamplingSettings"]

# What `cai.rl.sampler.measure` reports, under the names that PPO has for it; scorers may use other names.
MEASURES: Final = (
    *("score_mean", "score_std", "kl", "kl_per_token", "kl_k3", "entropy", "num_response_tokens", "eos_rate"),
)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Responses of at most `max_new_tokens` at `temperature`, in passes of at most `max_batch_tokens` padded tokens.

    `scorer` measures and teaches nothing.
    """

    seed: int
    max_new_tokens: int = 48
    temperature: float = 1.0
    max_batch_tokens: int = 16384
    scorer: Scorer | None = None
    device: str = "auto"
    dtype: DType = "float32"

    def check_sampling(self, *more: str) -> None:
        """Raise ConfigError for a number out of range (also of the fields `more`), or a name that is taken."""
        for name in ("max_new_tokens", "temperature", "max_batch_tokens", *more):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: must be above 0, got {value!r}")
        check_device(self.device)
        if taken := {"update", *MEASURES} & set(self.scorer.columns if self.scorer else ()):
            raise ConfigError(f"scorer: column {min(taken)!r} has the name of a column of the curve")

    def texts(self) -> dict[str, str]:
        """What the scorer depends on; models and prompts are inputs."""
        return self.scorer.texts() if self.scorer else {}
