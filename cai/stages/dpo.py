"""Stage rl by DPO (Rafailov et al. 2023): SL-CAI learns the preferences directly; the reward model only measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cai.errors import DataError
from cai.records import read_records, write_rows
from cai.rl.sampling_settings import SamplingSettings
from cai.rl.settings import TrainingSettings
from cai.types import Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai.rl.baselines import DPOPair

__all__ = ["DPO"]


@dataclass(frozen=True, kw_only=True)
class DPO(TrainingSettings, SamplingSettings):
    """Writes model/ (Hugging Face format) and curve.jsonl (a row before training and `num_measurements` on the way: the
    names of PPO's curve, on responses to the first `num_measured` rl prompts, and what DPO says about its pairs).

    TRL's DPO takes hard pairs, so of a soft label the response that is more probably preferred counts as chosen, as it
    would in the data that DPO was made for; even labels are dropped and counted. Weights and margins of labels are the
    reward model's alone. `beta` weighs the KL to SL-CAI, as in the paper. Batch sizes count pairs; the other settings
    are told by `TrainingSettings` and `SamplingSettings`.
    """

    version: ClassVar[int] = 2

    beta: float = 0.1
    num_measurements: int = 12
    num_measured: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_sampling("beta", "num_measurements", "num_measured")

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `label` (preferences), `sft` (policy and reference), `data` (rl prompts) and `reward`, which measure.
        Raises DataError for a pair that is too long, unless those are dropped.
        """
        from cai.models.loading import load_causal_lm, load_tokenizer, pick_device, save_model
        from cai.rl.baselines import train_dpo
        from cai.rl.models import RewardModel
        from cai.rl.sampler import Sampler
        from cai.rl.trainers import short_enough

        device = pick_device(self.device)
        tokenizer = load_tokenizer(inputs["sft"] / "model")
        model = load_causal_lm(inputs["sft"] / "model", device=device)
        reference = load_causal_lm(inputs["sft"] / "model", dtype=self.dtype, device=device)
        reward = RewardModel.load(inputs["reward"] / "model", dtype=self.dtype, device=device)
        sampler = Sampler(model, tokenizer, reward, self)
        prompts = sampler.read_prompts(inputs["data"] / "rl.jsonl", model)[: self.num_measured]
        path = inputs["label"] / "preferences.jsonl"
        pairs, num_ties = hard_pairs(tokenizer, read_records(path, Preference))
        if not pairs:
            raise DataError(f"{path}: no pairs to learn from ({num_ties} have an even label)")
        lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
        kept = [pairs[i] for i in short_enough(lengths, model.config, self, str(path))]
        curve = train_dpo(
            model, reference, sampler, kept, prompts, self, beta=self.beta, num_measurements=self.num_measurements
        )
        save_model(model, tokenizer, output / "model")
        write_rows(output / "curve.jsonl", curve)
        num_tokens = self.num_epochs * sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in kept)
        return {
            "score": curve[-1]["score_mean"],
            "kl": curve[-1]["kl"],
            "num_pairs": len(kept),
            "num_ties": num_ties,
            "num_too_long": len(pairs) - len(kept),
            "num_tokens": num_tokens,
            "flops": (6.0 + 2.0) * model.num_parameters() * num_tokens,
        }


def hard_pairs(tokenizer: "PreTrainedTokenizerBase", preferences: Sequence[Preference]) -> "tuple[list[DPOPair], int]":
    """Every labelled pair with the more probable response as the chosen one; and how many even labels were dropped."""
    from cai.models.loading import encode_dialogue
    from cai.rl.baselines import DPOPair

    pairs = []
    num_ties = 0
    for preference in preferences:
        rows = [encode_dialogue(tokenizer, preference.prompt.turns, response) for response in preference.responses]
        for pair in preference.pairs:
            if pair.p == 0.5:
                num_ties += 1
                continue
            better, worse = (pair.first, pair.second) if pair.p > 0.5 else (pair.second, pair.first)
            (chosen, start), (rejected, _) = rows[better], rows[worse]
            pairs.append(DPOPair(chosen[:start], chosen[start:], rejected[start:]))
    return pairs, num_ties
