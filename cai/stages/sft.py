"""Stage sft: supervised fine-tuning on revisions and helpful demonstrations gives SL-CAI (Bai et al. 2022b, 3.1)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cai.errors import DataError
from cai.models.digest import model_digest
from cai.records import read_records, write_rows
from cai.rl.settings import Schedule, TrainingSettings
from cai.types import Demonstration

__all__ = ["SFT"]


@dataclass(frozen=True, kw_only=True)
class SFT(TrainingSettings):
    """Writes model/ (Hugging Face format) and curve.jsonl (step, epoch, loss, learning_rate, ...).

    The loss is the token mean over the response and its end-of-turn token; prompts are masked. `model` is the base
    model; the other settings are told by `cai.rl.settings.TrainingSettings`.
    """

    version: ClassVar[int] = 1

    model: str
    num_epochs: int = 2
    schedule: Schedule = "cosine"

    def texts(self) -> dict[str, str]:
        """The base model's files."""
        return {"model": model_digest(self.model)}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Input `revise`. Raises DataError for a demonstration that is too long, unless those are dropped."""
        from cai.models.loading import encode_dialogue, load_causal_lm, load_tokenizer, pick_device, save_model
        from cai.rl.trainers import short_enough, train_sft

        path = inputs["revise"] / "sft.jsonl"
        demonstrations = read_records(path, Demonstration)
        if not demonstrations:
            raise DataError(f"{path}: no demonstrations to train on")
        tokenizer = load_tokenizer(self.model)
        model = load_causal_lm(self.model, device=pick_device(self.device))
        encoded = [encode_dialogue(tokenizer, d.prompt.turns, d.text) for d in demonstrations]
        kept = short_enough([len(ids) for ids, _ in encoded], model.config, self, str(path))
        rows = [encoded[i] for i in kept]
        curve = train_sft(model, tokenizer, rows, self)
        save_model(model, tokenizer, output / "model")
        write_rows(output / "curve.jsonl", curve)
        num_tokens = sum(len(ids) for ids, _ in rows) * self.num_epochs
        sources = Counter(demonstrations[i].source for i in kept)
        return {
            "num_rows": len(rows),
            "num_too_long": len(encoded) - len(rows),
            "final_loss": curve[-1]["loss"],
            **{f"num_{source}": count for source, count in sorted(sources.items())},
            "num_tokens": num_tokens,
            "flops": 6.0 * model.num_parameters() * num_tokens,
        }
