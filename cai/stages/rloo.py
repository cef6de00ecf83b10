"""Stage rl by RLOO (Ahmadian et al. 2024): like PPO, with other samples of the same prompt in place of a critic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cai.errors import ConfigError
from cai.records import write_rows
from cai.rewards import Part, check_parts, texts_of
from cai.rl.sampling_settings import SamplingSettings
from cai.rl.settings import Schedule, TrainingSettings

if TYPE_CHECKING:
    from cai.rl.models import RewardModel
    from cai.rl.sampler import Samples

__all__ = ["RLOO"]


@dataclass(frozen=True, kw_only=True)
class RLOO(TrainingSettings, SamplingSettings):
    """Writes model/ (Hugging Face format) and curve.jsonl (a row per update, with the names of PPO's curve, on the
    responses that the update learnt from).

    Each of `num_updates` samples `rollout_size` responses, `num_generations` to a prompt, and learns from them in
    `num_epochs` passes of steps of `batch_size`. `beta`, `clip`, `missing_eos_penalty` and `scale_rewards` mean what
    they mean in PPO, but the probability ratio, which is clipped, and the KL are those of whole responses. `rewards`
    (`cai.rewards`) take the place of the reward model, and their weights that of `scale_rewards`. The other settings
    are told by `TrainingSettings` and `SamplingSettings`.
    """

    version: ClassVar[int] = 2

    num_updates: int = 24
    rollout_size: int = 128
    num_generations: int = 4
    learning_rate: float = 3e-4
    schedule: Schedule = "constant"
    beta: float = 0.08
    clip: float = 0.2
    missing_eos_penalty: float = 1.0
    scale_rewards: bool = True
    rewards: Sequence[Part] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self.rewards)
        self.check_sampling("num_updates", "rollout_size", "clip")
        for name in ("beta", "missing_eos_penalty"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)!r}")
        if self.num_generations < 2:
            raise ConfigError(f"num_generations: a baseline needs at least 2, got {self.num_generations}")
        for name in ("batch_size", "num_generations"):
            if self.rollout_size % getattr(self, name):
                raise ConfigError(f"{name}: must divide rollout_size ({self.rollout_size}), got {getattr(self, name)}")

    def texts(self) -> dict[str, str]:
        """What the scorer and the rewards depend on; models and prompts are inputs."""
        return super().texts() | texts_of(self.rewards)

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` (rl prompts), `sft` (policy and reference) and `reward`."""
        from cai.models.loading import load_causal_lm, load_tokenizer, pick_device, save_model
        from cai.rl.baselines import train_rloo
        from cai.rl.models import RewardModel
        from cai.rl.sampler import Sampler, in_epochs

        device = pick_device(self.device)
        tokenizer = load_tokenizer(inputs["sft"] / "model")
        model = load_causal_lm(inputs["sft"] / "model", device=device)
        reference = load_causal_lm(inputs["sft"] / "model", dtype=self.dtype, device=device)
        reward = RewardModel.load(inputs["reward"] / "model", dtype=self.dtype, device=device)
        sampler = Sampler(model, tokenizer, reward, self, self.rewards)
        prompts = sampler.read_prompts(inputs["data"] / "rl.jsonl", model)
        num_tokens = 0

        def rewards(samples: "Samples") -> list[float]:
            nonlocal num_tokens
            num_tokens += sum(len(row.ids) for row in samples.rollout.rows)
            return self._rewards(samples, reward)

        curve = train_rloo(
            model, reference, sampler, in_epochs(prompts, self.seed), self, num_updates=self.num_updates,
            rollout_size=self.rollout_size, num_generations=self.num_generations, beta=self.beta, clip=self.clip,
            reward=rewards,
        )  # fmt: skip
        save_model(model, tokenizer, output / "model")
        write_rows(output / "curve.jsonl", curve)
        # Forwards of the policy (twice), two references and the reward; then the policy forward and backward.
        passes = 2 * 5 + 6 * self.num_epochs
        return {
            "score": curve[-1]["score_mean"],
            "kl": curve[-1]["kl"],
            "num_episodes": self.num_updates * self.rollout_size,
            "num_tokens": num_tokens,
            "flops": float(passes * model.num_parameters() * num_tokens),
        }

    def _rewards(self, samples: "Samples", reward: "RewardModel") -> list[float]:
        """Scaled scores, less the penalty of those that were cut off."""
        scale = 1 / reward.std if self.scale_rewards and reward.std > 0 and not self.rewards else 1.0
        finished = samples.rollout.finished.tolist()
        pairs = zip(samples.scores, finished, strict=True)
        return [score * scale - self.missing_eos_penalty * (not done) for score, done in pairs]
