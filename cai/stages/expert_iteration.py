"""Stage rl by expert iteration: sample n responses, keep the best by the reward model, fine-tune on them, and again.

Anthony et al. 2017 gave it its name; for language models it is RAFT (Dong et al. 2023) and one "improve" step for each
"grow" step of ReST (Gulcehre et al. 2023).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cai.errors import ConfigError, DataError
from cai.records import seed_of, write_rows
from cai.rewards import Part, check_parts, texts_of
from cai.rl.sampling_settings import SamplingSettings
from cai.rl.settings import TrainingSettings

if TYPE_CHECKING:
    from cai.rl.sampler import Samples

__all__ = ["ExpertIteration"]


@dataclass(frozen=True, kw_only=True)
class ExpertIteration(TrainingSettings, SamplingSettings):
    """Writes model/ (Hugging Face format) and curve.jsonl: a row per round with the names of PPO's curve, on the
    responses (all n) that the round chose from, and one on fresh samples after the last round.

    Each of `num_rounds` samples `n` responses of the current policy to each of `num_prompts` rl prompts and fine-tunes
    it, as the stage sft does, on the one that scores best; a response that was cut off is never kept, as it would teach
    not to end. There is no KL penalty: the number of rounds limits how far the policy goes. Batch sizes count
    responses. `rewards` (`cai.rewards`) take the place of the reward model. The other settings are told by
    `TrainingSettings` and `SamplingSettings`.
    """

    version: ClassVar[int] = 2

    num_rounds: int = 3
    num_prompts: int = 512
    n: int = 8
    rewards: Sequence[Part] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self.rewards)
        self.check_sampling("num_rounds", "num_prompts")
        if self.n < 2:
            raise ConfigError(f"n: there must be at least 2 samples to choose from, got {self.n}")

    def texts(self) -> dict[str, str]:
        """What the scorer and the rewards depend on; models and prompts are inputs."""
        return super().texts() | texts_of(self.rewards)

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` (rl prompts), `sft` (where it starts, and the reference of KL) and `reward`."""
        from cai.models.loading import load_causal_lm, load_tokenizer, pick_device, save_model
        from cai.rl.models import Policy, RewardModel
        from cai.rl.sampler import Sampler, in_epochs
        from cai.rl.trainers import short_enough, train_sft

        device = pick_device(self.device)
        tokenizer = load_tokenizer(inputs["sft"] / "model")
        model = load_causal_lm(inputs["sft"] / "model", device=device)
        frozen = load_causal_lm(inputs["sft"] / "model", dtype=self.dtype, device=device)
        reference = Policy(frozen, temperature=self.temperature)
        reward = RewardModel.load(inputs["reward"] / "model", dtype=self.dtype, device=device)
        sampler = Sampler(model, tokenizer, reward, self, self.rewards)
        path = inputs["data"] / "rl.jsonl"
        order = in_epochs(sampler.read_prompts(path, model), self.seed)
        curve: list[dict[str, Any]] = []
        num_sampled = num_trained = num_kept = 0
        for number in range(1, self.num_rounds + 2):
            last = number > self.num_rounds
            copies = 1 if last else self.n
            asked = [prompt for prompt in islice(order, self.num_prompts) for _ in range(copies)]
            seeds = [seed_of(self.seed, "round", number, row) for row in range(len(asked))]
            samples = sampler(model, asked, seeds)
            num_sampled += sum(len(row.ids) for row in samples.rollout.rows)
            curve.append({"update": number, **sampler.measure(samples, reference)})
            told = f"score {curve[-1]['score_mean']:.2f}, KL {curve[-1]['kl']:.2f}"
            print(f"expert iteration: after {number - 1} of {self.num_rounds} rounds, {told}", file=sys.stderr)
            if last:
                break
            best = _best(samples, self.n)
            if not best:
                raise DataError(f"{path}: in round {number} no response ended within {self.max_new_tokens} tokens")
            kept = [best[i] for i in short_enough([len(ids) for ids, _ in best], model.config, self, str(path))]
            num_kept += len(kept)
            num_trained += self.num_epochs * sum(len(ids) for ids, _ in kept)
            learnt = train_sft(model, tokenizer, kept, replace(self, seed=seed_of(self.seed, "round", number)))
            curve[-1]["policy_loss"] = learnt[-1]["loss"]
        save_model(model, tokenizer, output / "model")
        write_rows(output / "curve.jsonl", curve)
        return {
            "score": curve[-1]["score_mean"],
            "kl": curve[-1]["kl"],
            "num_kept": num_kept,
            "num_tokens": num_sampled + num_trained,
            "flops": float(model.num_parameters() * (2 * 3 * num_sampled + 6 * num_trained)),
        }


def _best(samples: "Samples", n: int) -> list[tuple[list[int], int]]:
    """Of every n samples the one with the best score among those that ended, as (token ids, number of prompt tokens);
    none where all were cut off.
    """
    finished = samples.rollout.finished.tolist()
    best = []
    for start in range(0, len(finished), n):
        ended = [i for i in range(start, start + n) if finished[i]]
        if ended:
            row = samples.rollout.rows[max(ended, key=lambda i: samples.scores[i])]
            best.append((row.ids, row.num_prompt))
    return best
