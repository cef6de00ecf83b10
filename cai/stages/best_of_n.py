"""Stage rl by best-of-n: nothing is trained; the policy is the best of n samples of SL-CAI by their reward."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cai.errors import ConfigError
from cai.records import seed_of, write_json, write_rows
from cai.rewards import Part, check_parts, texts_of
from cai.rl.best_of_n import BEST_OF_N, best_of, kl_bound
from cai.rl.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from cai.rl.sampler import Sampler, Samples

__all__ = ["BestOfN"]


@dataclass(frozen=True, kw_only=True)
class BestOfN(SamplingSettings):
    """Writes model/ (SL-CAI's files), best_of_n.json ({"n": ...}, by which the stage evaluate samples n responses and
    keeps the best) and curve.jsonl: a row for the best of 1, 2, 4, ... and n, from n responses to each of the first
    `num_prompts` rl prompts, with the names of PPO's curve. `rewards` (`cai.rewards`) choose in place of the
    reward model. `kl` is the upper bound of `cai.rl.best_of_n.kl_bound`.
    """

    version: ClassVar[int] = 2

    n: int = 16
    num_prompts: int = 128
    rewards: Sequence[Part] = ()

    def __post_init__(self) -> None:
        self.check_sampling("num_prompts")
        if self.n < 2:
            raise ConfigError(f"n: there must be at least 2 samples to choose from, got {self.n}")
        check_parts(self.rewards)

    def texts(self) -> dict[str, str]:
        """What the scorer and the rewards depend on; models and prompts are inputs."""
        return super().texts() | texts_of(self.rewards)

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` (rl prompts), `sft` (what is sampled from) and `reward` (what chooses)."""
        from cai.models.loading import load_causal_lm, load_tokenizer, pick_device
        from cai.rl.models import RewardModel
        from cai.rl.sampler import Sampler

        device = pick_device(self.device)
        folder = inputs["sft"] / "model"
        model = load_causal_lm(folder, dtype=self.dtype, device=device)
        reward = RewardModel.load(inputs["reward"] / "model", dtype=self.dtype, device=device)
        sampler = Sampler(model, load_tokenizer(folder), reward, self, self.rewards)
        prompts = sampler.read_prompts(inputs["data"] / "rl.jsonl", model)[: self.num_prompts]
        asked = [prompt for prompt in prompts for _ in range(self.n)]
        samples = sampler(model, asked, [seed_of(self.seed, "best-of-n", number) for number in range(len(asked))])
        curve = self._curve(sampler, samples)
        shutil.copytree(folder, output / "model", dirs_exist_ok=True)
        write_json(output / BEST_OF_N, {"n": self.n})
        write_rows(output / "curve.jsonl", curve)
        num_tokens = sum(len(row.ids) for row in samples.rollout.rows)
        return {
            "score": curve[-1]["score_mean"],
            "kl_bound": curve[-1]["kl"],
            "num_samples": len(asked),
            "num_tokens": num_tokens,
            "flops": 2.0 * 2 * model.num_parameters() * num_tokens,
        }

    def _curve(self, sampler: "Sampler", samples: "Samples") -> list[dict[str, Any]]:
        """A row for each k; columns are means over the best of k."""
        import numpy as np

        columns = {
            "score_mean": samples.scores,
            "num_response_tokens": samples.rollout.mask.sum(1).tolist(),
            "eos_rate": samples.rollout.finished.float().tolist(),
            **{f"reward_{name}": values for name, values in samples.parts.items()},
            **(self.scorer.score(samples.prompts, samples.texts) if self.scorer else {}),
        }
        tables = [np.array(values, dtype=np.float64).reshape(-1, self.n) for values in columns.values()]
        rows: list[dict[str, Any]] = []
        k = 1
        while k <= self.n:
            means = best_of(k, tables[0], tables)
            rows.append({"update": len(rows) + 1, "n": k, "kl": kl_bound(k), **dict(zip(columns, means, strict=True))})
            k = self.n if k < self.n < 2 * k else 2 * k
        return rows
