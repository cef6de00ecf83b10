"""Stage rl: PPO against the reward model, with a KL penalty to SL-CAI (InstructGPT section 3.5)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from cai import rewards
from cai.errors import ConfigError, DataError, unknown
from cai.models.documents import Documents
from cai.progress import progress
from cai.records import read_records, write_json, write_rows
from cai.rewards import Part, check_parts, texts_of
from cai.rl.settings import DIAGNOSTICS, PPOSettings
from cai.scorers import Scorer
from cai.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from cai.rl.models import RewardModel, Row
    from cai.rl.ppo import PPOTrainer
    from cai.rl.rollout import Rollout

__all__ = ["PPO"]

_CHECKPOINTS: Final = "checkpoints.journal"  # the store drops what ends so


@dataclass(frozen=True, kw_only=True)
class PPO(PPOSettings):
    """Writes model/ (Hugging Face format), curve.jsonl (a row per update: what `cai.rl.ppo` reports, and the mean of
    each of the scorer's columns over the update's responses) and ppo.json (warnings, and which update was kept).

    `scorer` measures the responses and teaches nothing. `rewards` (`cai.rewards`) take the place of the reward model,
    and their weights that of `scale_rewards`; each is logged as `reward_<name>`. `ptx` are the documents of PPO-ptx.
    Every `validate_every` updates, `num_validation` prompts that nothing is learnt from are answered and measured as
    `validation_*`; with `select_by`, one of those columns (or `score_mean`), the policy that was best in it is kept and
    not the last one. Every `checkpoint_every` updates give a point to go on from. What the other settings mean is told
    by `cai.rl.settings.PPOSettings`.
    """

    version: ClassVar[int] = 6

    scorer: Scorer | None = None
    rewards: Sequence[Part] = ()
    ptx: Documents | None = None
    validate_every: int = 0
    num_validation: int = 64
    select_by: str | None = None
    checkpoint_every: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self.rewards)
        columns = self.scorer.columns if self.scorer else ()
        if taken := {"update", *DIAGNOSTICS} & set(columns):
            raise ConfigError(f"scorer: column {min(taken)!r} has the name of a diagnostic of PPO")
        if self.ptx_coefficient and self.ptx is None:
            raise ConfigError(f"ptx: ptx_coefficient is {self.ptx_coefficient}, but there are no documents to mix in")
        for name in ("validate_every", "num_validation", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        if self.select_by is not None:
            if self.select_by not in ("score_mean", *columns):
                raise ConfigError(f"select_by: {unknown('column', self.select_by, ('score_mean', *columns))}")
            if not (self.validate_every and self.num_validation):
                raise ConfigError("select_by: needs validate_every and num_validation above 0 to choose from")

    def texts(self) -> dict[str, str]:
        """What scorer, rewards and documents depend on; models and prompts are inputs."""
        sources = [source for source in (self.scorer, self.ptx) if source is not None]
        texts = {key: sha for source in sources for key, sha in source.texts().items()}
        return texts_of(self.rewards) | texts | self.lora_texts()

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` (rl prompts), `sft` (policy and reference), `reward` (scores, and where the value starts)."""
        from cai.rl.models import read_constants
        from cai.rl.networks import save_policy

        run = _Run(self, inputs, output / _CHECKPOINTS)
        run.go_on()
        with progress("ppo", total=self.num_updates - len(run.curve), unit="updates") as bar:
            while len(run.curve) < self.num_updates:
                row = run.update()
                bar.advance(note=f"score {row['score_mean']:.2f}, KL {row['kl']:.2f}")
        kept = run.keep_best()
        save_policy(run.trainer.policy, self, inputs["sft"] / "model", run.tokenizer, output / "model")
        write_rows(output / "curve.jsonl", run.curve)
        write_json(output / "ppo.json", {"kept_update": kept, "warnings": run.warnings})
        # Forwards of policy, reference, reward models and value; then the trained networks, forward and backward, which
        # takes a product per layer for the activations, and one for the weights unless they are frozen.
        trained = 1 if self.value == "shared" else 2
        frozen = 1 + read_constants(inputs["reward"] / "model").num_models
        passes = 2 * (trained + frozen) + (4 if self.lora_rank else 6) * trained * self.num_epochs
        return {
            "score": run.curve[-1]["score_mean"],
            "kl": run.curve[-1]["kl"],
            "num_episodes": self.num_updates * self.batch_size,
            "num_warnings": len(run.warnings),
            "num_tokens": run.num_tokens,
            "flops": float(passes * run.trainer.policy.model.num_parameters() * run.num_tokens),
        }


class _Run:
    """One call of the stage: the trainer, the prompts, and what has been seen so far."""

    def __init__(self, stage: PPO, inputs: Mapping[str, Path], checkpoints: Path) -> None:
        from cai.models.loading import encode_dialogue, load_config, load_tokenizer
        from cai.rl.sampler import check_room

        path = inputs["data"] / "rl.jsonl"
        prompts = read_records(path, Prompt)
        num_held = stage.num_validation if stage.validate_every else 0
        if len(prompts) <= num_held:
            wanted = f"; num_validation {num_held} are held out" if num_held else ""
            raise DataError(f"{path}: {len(prompts) or 'no'} prompts to learn from{wanted}")
        self.stage, self.checkpoints = stage, checkpoints
        self.held, self.prompts = prompts[:num_held], prompts[num_held:]
        self.tokenizer = load_tokenizer(inputs["sft"] / "model")
        self.ids = {prompt.id: encode_dialogue(self.tokenizer, prompt.turns)[0] for prompt in prompts}
        longest = max(map(len, self.ids.values()))
        self.asked: Sequence[Prompt] = ()  # what the responses that are being scored answer
        self.parts: dict[str, list[float]] = {}  # of their scores
        check_room(path, longest, stage.max_new_tokens, load_config(inputs["sft"] / "model"))
        self.trainer = _trainer(stage, self.tokenizer, inputs, longest, self._score)
        self.curve: list[dict[str, Any]] = []
        self.num_tokens = 0
        self.warnings: dict[str, str] = {}
        self.best: dict[str, Any] | None = None

    def go_on(self) -> None:
        """Take up the last whole checkpoint, or fit the value function to the policy as it is."""
        from cai.rl.checkpoints import load_latest

        state = load_latest(self.checkpoints)
        if state is not None:
            self.trainer.load_state_dict(state["trainer"])
            self.curve, self.num_tokens = state["curve"], state["num_tokens"]
            self.warnings, self.best = state["warnings"], state["best"]
        elif self.stage.fit_value:  # to other responses than the first update will have, to the same prompts
            rollout = self.trainer.fit_value([self.ids[prompt.id] for prompt in self._draw(0)])
            self.num_tokens = sum(len(row.ids) for row in rollout.rows)

    def update(self) -> dict[str, Any]:
        """One update, with its row of the curve, warnings and checkpoint."""
        from cai.rl.checkpoints import save
        from cai.rl.diagnostics import warn

        s, number = self.stage, len(self.curve) + 1
        drawn = self._draw(len(self.curve))
        update = self.trainer.update([self.ids[prompt.id] for prompt in drawn])
        self.num_tokens += sum(len(row.ids) for row in update.rollout.rows)
        measured = self._measure(drawn, update.rollout)
        self.curve.append({"update": number, **update.diagnostics, **measured, **self._validate(number)})
        for kind, text in warn(self.curve).items():
            if kind not in self.warnings:
                self.warnings[kind] = f"update {number}: {text}"
                print(f"ppo: {self.warnings[kind]}", file=sys.stderr)
        if s.checkpoint_every and number % s.checkpoint_every == 0 and number < s.num_updates:
            state = {"trainer": self.trainer.state_dict(), "curve": self.curve, "num_tokens": self.num_tokens}
            save(self.checkpoints, number, {**state, "warnings": self.warnings, "best": self.best})
        return self.curve[-1]

    def _draw(self, number: int) -> list[Prompt]:
        """The prompts of update `number` (from 0), which are asked from now on."""
        from cai.rl.sampler import prompt_order

        order = prompt_order(len(self.prompts), self.stage.seed, skip=number * self.stage.batch_size)
        self.asked = drawn = [self.prompts[next(order)] for _ in range(self.stage.batch_size)]
        return drawn

    def keep_best(self) -> int:
        """Put back the weights of the best update by `select_by`; returns the number of the update that is kept."""
        if self.best is None:
            return len(self.curve)
        self.trainer.policy.load_state_dict(self.best["policy"])
        return int(self.best["update"])

    def _validate(self, number: int) -> dict[str, float | None]:
        """What the policy after update `number` does on the held-out prompts; remembers the best."""
        s = self.stage
        if not s.validate_every or (number % s.validate_every and number != s.num_updates):
            return {}
        self.asked = self.held
        rollout, scores = self.trainer.try_out([self.ids[prompt.id] for prompt in self.held])
        figures = {"score_mean": float(scores.mean()), **self._measure(self.held, rollout)}
        value = figures.get(s.select_by or "")
        if value is not None and (self.best is None or value > self.best["value"]):
            weights = {name: tensor.cpu().clone() for name, tensor in self.trainer.policy.state_dict().items()}
            self.best = {"update": number, "value": value, "policy": weights}
        return {f"validation_{name}": figure for name, figure in figures.items()}

    def _score(self, reward: "RewardModel", rows: Sequence["Row"]) -> "Tensor":
        """The score of closed responses to the prompts that are asked."""
        import torch

        from cai.rl.sampler import response_texts

        learnt = reward.score_rows(rows, max_batch_tokens=self.stage.max_batch_tokens)
        if not self.stage.rewards:
            return learnt
        texts = response_texts(self.tokenizer, rows, [True] * len(rows))
        scored = rewards.score(self.stage.rewards, self.asked, texts, learnt.tolist())
        self.parts = scored.parts
        return torch.tensor(scored.total)

    def _measure(self, prompts: Sequence[Prompt], rollout: "Rollout") -> dict[str, float | None]:
        """Mean of each part of the reward and each of the scorer's columns, over the responses it applies to."""
        from cai.rl.sampler import mean_columns, response_texts

        columns = {f"reward_{name}": values for name, values in self.parts.items()}
        if self.stage.scorer is not None:
            texts = response_texts(self.tokenizer, rollout.rows, rollout.finished.tolist())
            columns |= self.stage.scorer.score(prompts, texts)
        return mean_columns(columns)


def _trainer(
    stage: PPO,
    tokenizer: "PreTrainedTokenizerBase",
    inputs: Mapping[str, Path],
    longest_prompt: int,
    score: Callable[["RewardModel", Sequence["Row"]], "Tensor"],
) -> "PPOTrainer":
    """Load the networks; `score` is asked with the reward model."""
    from cai.models.loading import end_of_turn_id, end_of_turn_ids
    from cai.rl.networks import load_networks
    from cai.rl.ppo import PPOTrainer

    paths = inputs["sft"] / "model", inputs["reward"] / "model"
    scaled = stage.scale_rewards and not stage.rewards
    networks = load_networks(stage, *paths, longest_prompt=longest_prompt, scaled=scaled)
    end = end_of_turn_id(tokenizer)
    return PPOTrainer(
        policy=networks.policy,
        reference=networks.reference,
        value=networks.value,
        reward=lambda rows: score(networks.reward, rows),
        reward_scale=networks.reward_scale,
        stop_ids=[end, *sorted(end_of_turn_ids(networks.policy.model, tokenizer) - {end})],
        settings=stage,
        ptx=stage.ptx,
    )
