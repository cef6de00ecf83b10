"""Stage sft: supervised fine-tuning on revisions and helpful demonstrations gives SL-CAI (Bai et al. 2022b, 3.1)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cai.datasets.splits import held_out
from cai.errors import ConfigError, DataError
from cai.models.digest import model_digest
from cai.noise import kept_name
from cai.records import read_records, seed_of, write_rows
from cai.rl.settings import Schedule, TrainingSettings
from cai.types import Demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SFT"]

_BATCH_TOKENS = 16384  # of one forward pass over held-out demonstrations


@dataclass(frozen=True, kw_only=True)
class SFT(TrainingSettings):
    """Writes model/ (Hugging Face format) and curve.jsonl (step, epoch, loss, learning_rate, ...; after each epoch the
    validation_loss, in nats per response token).

    The loss is the token mean over the response and its end-of-turn token; prompts are masked. `model` is the base
    model. The demonstrations of a `validation_share` of the prompts are held out. With `select_by`, the model folder of
    a reward stage, the epoch whose samples on the held-out prompts score best is kept (InstructGPT section 3.5 selects
    like this), else the last. Every `checkpoint_every` steps the training saves what it needs to go on after a kill (0:
    never). The models that had a share of `keep_left` of their steps still to come (1: the base model) are kept beside
    model/ as left-<share>/, for a ladder of checkpoints (`cai.noise.Ladder`). The other settings are told by
    `cai.rl.settings.TrainingSettings`.
    """

    version: ClassVar[int] = 3

    model: str
    num_epochs: int = 2
    schedule: Schedule = "cosine"
    validation_share: float = 0.05
    select_by: str | None = None
    max_new_tokens: int = 256
    checkpoint_every: int = 0
    keep_left: Sequence[float] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every < 0:
            raise ConfigError(f"checkpoint_every: must be 0 (never) or more, got {self.checkpoint_every!r}")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share: must be from 0 to below 1, got {self.validation_share!r}")
        if self.select_by is not None and not self.validation_share:
            raise ConfigError("select_by: needs held-out prompts to sample on, but validation_share is 0")
        for share in self.keep_left:
            if not 0 <= share <= 1:
                raise ConfigError(f"keep_left: shares are from 0 to 1, got {share!r}")

    def texts(self) -> dict[str, str]:
        """The files of the base model, and of the reward model that selects."""
        selecting = {} if self.select_by is None else {"select_by": model_digest(self.select_by)}
        return {"model": model_digest(self.model), **selecting}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Input `revise`. Raises DataError for a demonstration that is too long, unless those are dropped."""
        from cai.models.loading import encode_dialogue, load_causal_lm, load_tokenizer, pick_device, save_model
        from cai.rl.local_trainer import Checkpoints
        from cai.rl.sampler import check_room
        from cai.rl.trainers import short_enough, train_sft

        path = inputs["revise"] / "sft.jsonl"
        demonstrations = read_records(path, Demonstration)
        if not demonstrations:
            raise DataError(f"{path}: no demonstrations to train on")
        tokenizer = load_tokenizer(self.model)
        model = load_causal_lm(self.model, device=pick_device(self.device))
        encoded = [encode_dialogue(tokenizer, d.prompt.turns, d.text) for d in demonstrations]
        kept = short_enough([len(ids) for ids, _ in encoded], model.config, self, str(path))
        share = self.validation_share
        out = held_out([demonstrations[i].prompt for i in kept], share) if share else [False] * len(kept)
        train = [i for i, held in zip(kept, out, strict=True) if not held]
        validation = [encoded[i] for i, held in zip(kept, out, strict=True) if held]
        if self.select_by is not None and validation:
            check_room(path, max(start for _, start in validation), self.max_new_tokens, model.config)
        measure = _Validation(self, model, tokenizer, validation) if validation else None
        every = self.checkpoint_every
        checkpoints = Checkpoints(output / "checkpoints.journal", every) if every else None
        rows = [encoded[i] for i in train]
        num_steps = -(-len(rows) // self.batch_size) * self.num_epochs
        keep = {output / kept_name(share): round((1 - share) * num_steps) for share in self.keep_left if share > 0}

        def at_step(step: int) -> None:
            for folder in (folder for folder, kept in keep.items() if kept == step):
                save_model(model, tokenizer, folder)

        curve = train_sft(model, tokenizer, rows, self, after_epoch=measure, checkpoints=checkpoints, at_step=at_step)
        if measure is not None:
            measure.keep_best()
        save_model(model, tokenizer, output / "model")
        write_rows(output / "curve.jsonl", curve)
        num_tokens = sum(len(encoded[i][0]) for i in train) * self.num_epochs
        sources = Counter(demonstrations[i].source for i in train)
        return {
            "num_rows": len(train),
            "num_too_long": len(encoded) - len(kept),
            "final_loss": [row["loss"] for row in curve if "loss" in row][-1],
            **(measure.facts() if measure else {}),
            **{f"num_{source}": count for source, count in sorted(sources.items())},
            "num_tokens": num_tokens,
            "flops": 6.0 * model.num_parameters() * num_tokens,
        }


class _Validation:
    """Measures the model after every epoch on held-out rows (token ids, number of prompt tokens)."""

    def __init__(
        self,
        stage: SFT,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[tuple[list[int], int]],
    ) -> None:
        from cai.models.loading import end_of_turn_id, end_of_turn_ids
        from cai.rl.models import RewardModel, Row

        self.stage, self.model = stage, model
        self.rows = [Row(*row) for row in rows]
        self.prompts = [list(ids) for ids in dict.fromkeys(tuple(ids[:start]) for ids, start in rows)]
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.end_id, self.end_ids = end_of_turn_id(tokenizer), end_of_turn_ids(model, tokenizer)
        path = stage.select_by
        self.reward = None if path is None else RewardModel.load(path, device=str(model.device))

    def __call__(self) -> dict[str, float]:
        """`validation_loss` and, with a reward model, `validation_reward`: the mean score of one sample per prompt."""
        import torch

        self.model.train(False)
        with torch.no_grad():
            found = {"validation_loss": self._loss()}
            if self.reward is not None:
                found["validation_reward"] = self._reward()
                if all(found["validation_reward"] > before["validation_reward"] for before in self.history):
                    self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.history.append(found)
        self.model.train()
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was measured, and the best weights."""
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.history, self.best = state["history"], state["best"]

    def keep_best(self) -> None:
        """Put back the weights of the best epoch by reward; without a reward model, nothing."""
        if self.best is not None:
            self.model.load_state_dict(self.best)

    def facts(self) -> dict[str, float]:
        """The figures of the epoch that is kept."""
        if self.reward is None:
            return {"num_validation": len(self.rows), **self.history[-1]}
        best = max(range(len(self.history)), key=lambda epoch: self.history[epoch]["validation_reward"])
        return {"num_validation": len(self.rows), **self.history[best], "best_epoch": best + 1}

    def _loss(self) -> float:
        from cai.rl.models import Policy, autocast, batch_budget, pack, plan_batches

        policy, device = Policy(self.model), self.model.device
        total, num_tokens = 0.0, 0
        for indices in plan_batches([len(row.ids) for row in self.rows], batch_budget(_BATCH_TOKENS, device)):
            with autocast(device, self.stage.dtype):
                logp = policy.logp(pack([self.rows[i] for i in indices], device))
            total -= float(logp.sum())
            num_tokens += len(logp)
        return total / num_tokens

    def _reward(self) -> float:
        from cai.rl.models import Policy
        from cai.rl.rollout import sample_responses

        assert self.reward is not None
        rollout = sample_responses(
            Policy(self.model),
            self.prompts,
            seeds=[seed_of(self.stage.seed, "validation", number) for number in range(len(self.prompts))],
            max_new_tokens=self.stage.max_new_tokens,
            stop_ids=self.end_ids,
            max_batch_tokens=_BATCH_TOKENS,
        )
        return float(self.reward.score_rows(rollout.closed(self.end_id)).mean())
