"""Stage rl: PPO against the reward model, with a KL penalty to SL-CAI (InstructGPT section 3.5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cai.errors import ConfigError, DataError
from cai.progress import progress
from cai.records import read_records, seed_of, write_rows
from cai.rl.settings import DIAGNOSTICS, PPOSettings
from cai.scorers import Scorer
from cai.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from cai.rl.ppo import PPOTrainer, Update

__all__ = ["PPO"]


@dataclass(frozen=True, kw_only=True)
class PPO(PPOSettings):
    """Writes model/ (Hugging Face format) and curve.jsonl (a row per update: what `cai.rl.ppo` reports, and the mean of
    each of the scorer's columns over the update's responses).

    `scorer` measures the responses and teaches nothing. What the other settings mean is told by
    `cai.rl.settings.PPOSettings`.
    """

    version: ClassVar[int] = 2

    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if taken := {"update", *DIAGNOSTICS} & set(self.scorer.columns if self.scorer else ()):
            raise ConfigError(f"scorer: column {min(taken)!r} has the name of a diagnostic of PPO")

    def texts(self) -> dict[str, str]:
        """What the scorer depends on; models and prompts are inputs."""
        return self.scorer.texts() if self.scorer else {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` (rl prompts), `sft` (policy and reference), `reward` (scores, and where the value starts)."""
        from cai.models.loading import encode_dialogue, load_tokenizer, save_model

        path = inputs["data"] / "rl.jsonl"
        prompts = read_records(path, Prompt)
        if not prompts:
            raise DataError(f"{path}: no prompts to learn from")
        tokenizer = load_tokenizer(inputs["sft"] / "model")
        trainer = self._trainer(tokenizer, inputs)
        ids = [encode_dialogue(tokenizer, prompt.turns)[0] for prompt in prompts]
        self._check_lengths(ids, trainer.policy.model.config, str(path))
        order = prompt_order(len(prompts), self.seed)
        curve: list[dict[str, Any]] = []
        num_tokens = 0
        with progress("ppo", total=self.num_updates, unit="updates") as bar:
            for number in range(1, self.num_updates + 1):
                drawn = [next(order) for _ in range(self.batch_size)]
                update = trainer.update([ids[i] for i in drawn])
                num_tokens += sum(len(row.ids) for row in update.rollout.rows)
                measured = self._measure(tokenizer, [prompts[i] for i in drawn], update)
                curve.append({"update": number, **update.diagnostics, **measured})
                bar.advance(note=f"score {curve[-1]['score_mean']:.2f}, KL {curve[-1]['kl']:.2f}")
        save_model(trainer.policy.model, tokenizer, output / "model")
        write_rows(output / "curve.jsonl", curve)
        # Forwards of policy, reference, reward and value; then both trained networks, forward and backward.
        passes = 2 * 4 + 2 * 6 * self.num_epochs
        return {
            "score": curve[-1]["score_mean"],
            "kl": curve[-1]["kl"],
            "num_episodes": self.num_updates * self.batch_size,
            "num_tokens": num_tokens,
            "flops": float(passes * trainer.policy.model.num_parameters() * num_tokens),
        }

    def _trainer(self, tokenizer: "PreTrainedTokenizerBase", inputs: Mapping[str, Path]) -> "PPOTrainer":
        """Load the four networks: trained ones in float32, frozen ones in `dtype`."""
        from cai.models.loading import end_of_turn_id, end_of_turn_ids, load_causal_lm, pick_device
        from cai.rl.models import Policy, RewardModel, ValueModel
        from cai.rl.ppo import PPOTrainer

        device, dtype, temperature = pick_device(self.device), self.dtype, self.temperature
        model = load_causal_lm(inputs["sft"] / "model", device=device)
        frozen = load_causal_lm(inputs["sft"] / "model", dtype=dtype, device=device)
        reward = RewardModel.load(inputs["reward"] / "model", dtype=dtype, device=device)
        critic = RewardModel.load(inputs["reward"] / "model", device=device)
        scale = 1 / reward.std if self.scale_rewards and reward.std > 0 else 1.0
        end = end_of_turn_id(tokenizer)
        return PPOTrainer(
            policy=Policy(model, temperature=temperature),
            reference=Policy(frozen, temperature=temperature),
            value=ValueModel(critic.model, offset=critic.offset, scale=scale),
            reward=lambda rows: reward.score_rows(rows, max_batch_tokens=self.max_batch_tokens),
            reward_scale=scale,
            stop_ids=[end, *sorted(end_of_turn_ids(model, tokenizer) - {end})],
            settings=self,
        )

    def _check_lengths(self, ids: Sequence[list[int]], config: "PreTrainedConfig", path: str) -> None:
        """Raise DataError for a prompt that leaves no room for a response."""
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, ids))
        if context is not None and longest + self.max_new_tokens > context:
            raise DataError(
                f"{path}: the longest prompt has {longest} tokens, which with max_new_tokens {self.max_new_tokens} is "
                f"more than the model's context of {context}; data.max_prompt_tokens leaves long prompts out"
            )

    def _measure(
        self, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt], update: "Update"
    ) -> dict[str, float | None]:
        """Mean of each of the scorer's columns over the responses it applies to; None where it applies to none."""
        if self.scorer is None:
            return {}
        import numpy as np

        ended = update.rollout.finished.tolist()
        ids = [
            row.ids[row.num_prompt : len(row.ids) - end] for row, end in zip(update.rollout.rows, ended, strict=True)
        ]
        texts = [str(tokenizer.decode(response, skip_special_tokens=False)).strip() for response in ids]
        columns = self.scorer.score(prompts, texts)
        means = {}
        for name, values in columns.items():
            applies = [value for value in values if not np.isnan(value)]
            means[name] = float(np.mean(applies)) if applies else None
        return means


def prompt_order(num_prompts: int, seed: int) -> Iterator[int]:
    """Indices of prompts without end: epoch after epoch, each in an order of its own."""
    import numpy as np

    epoch = 0
    while True:
        yield from np.random.default_rng(seed_of(seed, "prompts", epoch)).permutation(num_prompts).tolist()
        epoch += 1
