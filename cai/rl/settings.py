"""Numbers of the trainers, checked when they are made (before any model is loaded); no torch in here."""

import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

from cai.errors import ConfigError, unknown
from cai.models.digest import check_device

__all__ = ["DIAGNOSTICS", "DType", "LoRASettings", "PPOSettings", "Schedule", "TrainingSettings"]

Schedule = Literal["linear", "cosine", "constant"]
DType = Literal["float32", "bfloat16"]

# What an update of PPO reports about itself; scorers may use other names.
DIAGNOSTICS: Final = (
    *("score_mean", "score_std", "objective", "kl", "kl_per_token", "kl_k3", "entropy", "explained_variance"),
    *("num_response_tokens", "eos_rate", "beta", "learning_rate", "policy_loss", "value_loss", "clipfrac"),
    *("value_clipfrac", "approx_kl", "first_approx_kl", "num_steps", "policy_grad_norm", "value_grad_norm", "ptx_loss"),
)


def _check(settings: object, positive: tuple[str, ...], not_negative: tuple[str, ...]) -> None:
    """Raise ConfigError for the first named field that is out of range."""
    for name in positive + not_negative:
        value = getattr(settings, name)
        low = "above 0" if name in positive else "0 or more"
        if not math.isfinite(value) or value < 0 or (value == 0 and name in positive):
            raise ConfigError(f"{name}: must be {low}, got {value!r}")


def _divides(small: str, small_value: int, large: str, large_value: int) -> None:
    if large_value % small_value:
        raise ConfigError(f"{small}: must divide {large} ({large_value}), got {small_value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: {unknown('choice', value, allowed)}")


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """What is trained: with a `lora_rank` above 0, adapters of that rank (Hu et al. 2021) beside the linear layers of
    the trunk, whose products count `lora_alpha / lora_rank`; with 0 all weights.
    """

    lora_rank: int = 0
    lora_alpha: float = 32.0

    def __post_init__(self) -> None:
        _check(self, ("lora_alpha",), ("lora_rank",))
        self.lora_texts()

    def lora_texts(self) -> dict[str, str]:
        """The version of the package that makes adapters, for fingerprints. Raises ConfigError when it is missing."""
        try:
            return {"peft": version("peft")} if self.lora_rank else {}
        except PackageNotFoundError:
            raise ConfigError(
                f"lora_rank: {self.lora_rank} needs peft, which is not installed: pip install 'cai[lora]'"
            ) from None


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How TRL's trainers train; the stages that use them add what is their own.

    `batch_size` rows (SFT) or prompts with all their responses (reward) make a step, `microbatch_size` of them at a
    time (None: all). `max_tokens` is the longest row, prompt and response; longer ones are refused, or dropped and
    counted when `drop_too_long`. The learning rate warms up over `warmup_share` of the steps, then follows `schedule`.
    `dtype` bfloat16 is mixed precision: weights and optimiser stay in float32. Hugging Face's trainer works on the
    first GPU that it sees, so `device` names no other one.
    """

    seed: int
    num_epochs: int = 1
    batch_size: int = 32
    microbatch_size: int | None = None
    learning_rate: float = 1e-3
    schedule: Schedule = "linear"
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_tokens: int = 1024
    drop_too_long: bool = False
    device: str = "auto"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        positive = ("num_epochs", "batch_size", "learning_rate", "max_grad_norm", "max_tokens")
        _check(self, positive, ("warmup_share", "weight_decay"))
        if self.warmup_share >= 1:
            raise ConfigError(f"warmup_share: must be below 1, got {self.warmup_share!r}")
        if self.microbatch_size is not None:
            _check(self, ("microbatch_size",), ())
            _divides("microbatch_size", self.microbatch_size, "batch_size", self.batch_size)
        _one_of("schedule", self.schedule, ("linear", "cosine", "constant"))
        _one_of("dtype", self.dtype, ("float32", "bfloat16"))
        check_device(self.device)
        kind, _, number = self.device.partition(":")
        if int(number or 0) > 0:
            raise ConfigError(
                f"device: this trainer takes the first GPU it sees, got {self.device!r}; "
                f"set CUDA_VISIBLE_DEVICES={number} and device={kind}"
            )


@dataclass(frozen=True, kw_only=True)
class PPOSettings(LoRASettings):
    """How PPO trains; `ppo.py` has the formulas.

    An update samples `batch_size` responses of at most `max_new_tokens` at `temperature` and learns from them in
    `num_epochs` passes of minibatches. `beta` weighs the KL to the reference in rewards of unit spread (see
    `scale_rewards`), by the estimator `penalty`; with a `kl_target` (nats per response) it is only the first one and
    adapts over `kl_horizon` responses. `clip` and `value_clip` bound the steps, `lam` is GAE's lambda; an update's
    steps end before a minibatch that is `stop_kl` nats per token away from the rollout. Scaled scores are clipped to
    +-`score_clip`; `missing_eos_penalty` is then subtracted where a response was cut off. Learning rates warm up over
    `num_warmup_updates`, then fall linearly to 0 or stay; `tf_adam` puts Adam's epsilon where TensorFlow has it, which
    makes the first steps smaller. `value` is a network of its own on the reward model's trunk, or a head on the
    policy's trunk whose loss counts `value_coefficient`; with `fit_value` its head is fitted to one batch of responses
    before the first update. `ptx_coefficient` weighs the gradient of the mean loss on
    `ptx_tokens` tokens of documents in every step (InstructGPT's gamma). `max_batch_tokens` bounds a pass (rows x
    longest row) of scoring or training, which takes no more than 512 on a CPU; sampling, which keeps no activations,
    takes 8 times as many. With `activation_checkpointing` layers keep their input alone for the backward pass and
    compute the rest again: slower, in less memory. With a `lora_rank`, policy, reference, reward model and value
    are adapters, or none, over one copy of the SL-CAI weights, which stay as they are; the reward
    model must have been trained as an adapter too.

    `scale_rewards` divides scores by their standard deviation over the SFT policy's samples, which leaves their mean
    (Ziegler et al. 2019 normalise likewise): soft labels give a reward model of small spread, hard ones of large, and
    without it one beta, one value learning rate and one value clip would mean different things in different arms.
    """

    seed: int
    num_updates: int = 24
    batch_size: int = 128
    minibatch_size: int = 32
    num_epochs: int = 1
    learning_rate: float = 3e-4
    value_learning_rate: float = 1e-3
    schedule: Literal["linear", "constant"] = "constant"
    num_warmup_updates: int = 2
    max_grad_norm: float = 1.0
    beta: float = 0.08
    clip: float = 0.2
    value_clip: float = 0.2
    lam: float = 0.95
    max_new_tokens: int = 48
    temperature: float = 1.0
    missing_eos_penalty: float = 1.0
    scale_rewards: bool = True
    score_clip: float | None = None
    penalty: Literal["k1", "k3"] = "k1"
    kl_target: float | None = None
    kl_horizon: int = 10_000
    stop_kl: float | None = None
    tf_adam: bool = False
    value: Literal["reward_model", "shared"] = "reward_model"
    value_coefficient: float = 0.1
    fit_value: bool = True
    ptx_coefficient: float = 0.0
    ptx_tokens: int = 1024
    max_batch_tokens: int = 16384
    activation_checkpointing: bool = False
    device: str = "auto"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("num_updates", "batch_size", "minibatch_size", "num_epochs", "max_new_tokens", "max_batch_tokens")
        rates = ("learning_rate", "value_learning_rate", "max_grad_norm", "clip", "value_clip", "temperature")
        set_ones = tuple(n for n in ("score_clip", "kl_target", "stop_kl") if getattr(self, n) is not None)
        positive = (*sizes, *rates, *set_ones, "kl_horizon", "value_coefficient", "ptx_tokens")
        _check(self, positive, ("beta", "lam", "num_warmup_updates", "missing_eos_penalty", "ptx_coefficient"))
        if self.kl_target is not None and self.beta == 0:
            raise ConfigError(f"kl_target: beta adapts from where it starts, which must be above 0, got {self.beta}")
        if self.lam > 1:
            raise ConfigError(f"lam: must be at most 1, got {self.lam!r}")
        _divides("minibatch_size", self.minibatch_size, "batch_size", self.batch_size)
        _one_of("penalty", self.penalty, ("k1", "k3"))
        _one_of("value", self.value, ("reward_model", "shared"))
        _one_of("schedule", self.schedule, ("linear", "constant"))
        _one_of("dtype", self.dtype, ("float32", "bfloat16"))
        check_device(self.device)
