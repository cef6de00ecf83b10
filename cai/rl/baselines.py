"""TRL's DPO and RLOO trainers as this project uses them: the same rows, samples, scores and curve as PPO.

Both start from one policy, keep it as the reference, and write a row of the curve whenever they log. TRL's parts that
would make rows of their own are replaced: prompts come as token ids of our chat template, responses end with our
end-of-turn token, and RLOO samples with `cai.models.decoding`, which is seeded row by row and faster.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler as TorchSampler
from transformers import PreTrainedModel, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from cai.records import seed_of
from cai.rl.local_trainer import LocalTrainer, run_trainer, trainer_arguments
from cai.rl.models import Policy
from cai.rl.sampler import Sampler, Samples
from cai.rl.settings import TrainingSettings
from cai.types import Prompt

__all__ = ["DPOPair", "train_dpo", "train_rloo"]

Curve = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class DPOPair:
    """Token ids of a prompt and of two responses to it, each with its end-of-turn token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


# --- DPO --------------------------------------------------------------------------------------------------------------


class _DPOTrainer(LocalTrainer, DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset  # tokenised already


def train_dpo(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    sampler: Sampler,
    pairs: Sequence[DPOPair],
    prompts: Sequence[Prompt],
    settings: TrainingSettings,
    *,
    beta: float,
    num_measurements: int,
) -> Curve:
    """Train `model` in place by DPO (Rafailov et al. 2023, eq. 7) with `reference` fixed. Returns the curve: at
    `num_measurements` steps spread over the training, and before it, what samples on `prompts` measure.
    """
    data = Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )
    frozen = Policy(reference, temperature=sampler.settings.temperature)

    def measure() -> dict[str, float | None]:
        seeds = [seed_of(settings.seed, "measure", number) for number in range(len(prompts))]
        return sampler.measure(sampler(model, prompts, seeds), frozen)

    recorder = _Recorder(measure, _DPO_METRICS)

    def build(folder: str) -> DPOTrainer:
        arguments = trainer_arguments(settings, folder, len(pairs))
        steps = -(-len(pairs) // settings.batch_size) * settings.num_epochs
        every = {"logging_steps": -(-steps // num_measurements)}
        return _DPOTrainer(
            model=model,
            ref_model=reference,
            args=DPOConfig(**{**arguments, **every}, beta=beta),
            train_dataset=data,
            processing_class=sampler.tokenizer,
            callbacks=[recorder],
        )

    lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    recorder.record(0, {})
    with _own_warnings():
        run_trainer(build, lengths, settings, "dpo")
    return recorder.rows


# --- RLOO -------------------------------------------------------------------------------------------------------------


class _RLOOTrainer(LocalTrainer, RLOOTrainer):
    """TRL's RLOOTrainer on our own samples: `draw` gives those of the prompts whose numbers it gets."""

    draw: Callable[[list[int]], Samples]

    def _get_train_sampler(self, train_dataset: Any = None) -> TorchSampler[int]:
        sampler: TorchSampler[int] = RLOOTrainer._get_train_sampler(self, train_dataset)  # a prompt's samples together
        return sampler

    def _generate(self, prompts: list[int]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        samples = self.draw(prompts)
        rows = samples.rollout.rows
        ids = [row.ids[: row.num_prompt] for row in rows], [row.ids[row.num_prompt :] for row in rows]
        return *ids, samples.texts


def train_rloo(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    sampler: Sampler,
    prompts: Iterator[Prompt],
    settings: TrainingSettings,
    *,
    num_updates: int,
    rollout_size: int,
    num_generations: int,
    beta: float,
    clip: float,
    reward: Callable[[Samples], list[float]],
) -> Curve:
    """Train `model` in place by RLOO (Ahmadian et al. 2024): each of `num_updates` samples `rollout_size` responses,
    `num_generations` to a prompt, of which each one's baseline is the mean reward of the others; `beta` times the KL to
    SL-CAI of the whole response is taken off its reward. Returns the curve, a row for every update.
    """
    drawn = list(islice(prompts, num_updates * rollout_size // num_generations))
    frozen = Policy(reference, temperature=sampler.settings.temperature)
    last: list[Samples] = []

    def draw(numbers: list[int]) -> Samples:
        update = len(recorder.rows)
        seeds = [seed_of(settings.seed, "rollout", update, row) for row in range(len(numbers))]
        last[:] = [sampler(model, [drawn[number] for number in numbers], seeds)]
        return last[0]

    recorder = _Recorder(lambda: sampler.measure(last[0], frozen), _RLOO_METRICS)

    def build(folder: str) -> RLOOTrainer:
        arguments = trainer_arguments(settings, folder, num_updates * rollout_size)
        del arguments["max_length"]
        steps = rollout_size // settings.batch_size * settings.num_epochs
        args = RLOOConfig(
            **{**arguments, "num_train_epochs": 1, "logging_steps": steps},
            max_steps=num_updates * steps,
            num_generations=num_generations,
            generation_batch_size=rollout_size,
            num_iterations=settings.num_epochs,
            shuffle_dataset=False,
            max_completion_length=sampler.settings.max_new_tokens,
            temperature=sampler.settings.temperature,
            beta=beta,
            epsilon=clip,
        )
        trainer = _RLOOTrainer(
            model=model,
            reward_funcs=lambda **_: reward(last[0]),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": list(range(len(drawn)))}),
            processing_class=sampler.tokenizer,
            callbacks=[recorder],
        )
        trainer.draw = draw
        return trainer

    with _own_warnings():
        run_trainer(build, [1] * (num_updates * rollout_size), settings, "rloo")
    return recorder.rows


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Without the warning that TRL 1.16 gets for a name that transformers is about to drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


# --- the curve --------------------------------------------------------------------------------------------------------

# TRL's names of what a log entry tells, and ours.
_DPO_METRICS = {
    "loss": "policy_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "policy_grad_norm",
    "rewards/accuracies": "implicit_accuracy",
    "rewards/margins": "implicit_margin",
}
_RLOO_METRICS = {
    "loss": "policy_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "policy_grad_norm",
    "clip_ratio/region_mean": "clipfrac",
}


class _Recorder(TrainerCallback):
    """Makes a row of the curve of every entry that the trainer logs: `measure` now, and the entry's `metrics`."""

    def __init__(self, measure: Callable[[], dict[str, float | None]], metrics: Mapping[str, str]) -> None:
        self.measure = measure
        self.metrics = metrics
        self.rows: Curve = []

    def on_log(self, args: object, state: Any, control: object, **told: Any) -> None:
        if "loss" in told["logs"]:  # the last entry is clocks
            self.record(state.global_step, told["logs"])

    def on_train_end(self, args: object, state: Any, control: object, **_: object) -> None:
        if self.rows and self.rows[-1]["step"] != state.global_step:
            self.record(state.global_step, {})

    def record(self, step: int, logs: Mapping[str, Any]) -> None:
        """A row about now."""
        told = {ours: float(logs[name]) for name, ours in self.metrics.items() if logs.get(name) is not None}
        self.rows.append({"update": len(self.rows) + 1, "step": step, **self.measure(), **told})
