"""Stage sft: supervised fine-tuning on revisions and helpful demonstrations gives SL-CAI (Bai et al. 2022b, 3.1)."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from cai.errors import DataError
from cai.models.digest import model_digest
from cai.records import read_records, write_rows
from cai.rl.settings import DType, Schedule, TrainingSettings
from cai.types import Demonstration

__all__ = ["SFT"]


class SFT:
    """Writes model/ (Hugging Face format) and curve.jsonl (step, epoch, loss, learning_rate, ...).

    The loss is the token mean over the response and its end-of-turn token; prompts are masked. What the settings mean
    is told by `cai.rl.settings.TrainingSettings`.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        model: str,
        seed: int,
        num_epochs: int = 2,
        batch_size: int = 32,
        microbatch_size: int | None = None,
        learning_rate: float = 1e-3,
        schedule: Schedule = "cosine",
        warmup_share: float = 0.05,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        max_tokens: int = 1024,
        drop_too_long: bool = False,
        device: str = "auto",
        dtype: DType = "float32",
    ) -> None:
        self._model = model
        self._settings = TrainingSettings(
            seed=seed,
            num_epochs=num_epochs,
            batch_size=batch_size,
            microbatch_size=microbatch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_share=warmup_share,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            max_tokens=max_tokens,
            drop_too_long=drop_too_long,
            device=device,
            dtype=dtype,
        )

    def texts(self) -> dict[str, str]:
        """The base model's files."""
        return {"model": model_digest(self._model)}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Input `revise`. Raises DataError for a demonstration that is too long, unless those are dropped."""
        from cai.models.loading import encode_dialogue, load_causal_lm, load_tokenizer, pick_device, save_model
        from cai.rl.trainers import short_enough, train_sft

        path = inputs["revise"] / "sft.jsonl"
        demonstrations = read_records(path, Demonstration)
        if not demonstrations:
            raise DataError(f"{path}: no demonstrations to train on")
        tokenizer = load_tokenizer(self._model)
        model = load_causal_lm(self._model, device=pick_device(self._settings.device))
        encoded = [encode_dialogue(tokenizer, d.prompt.turns, d.text) for d in demonstrations]
        kept = short_enough([len(ids) for ids, _ in encoded], model.config, self._settings, str(path))
        rows = [encoded[i] for i in kept]
        curve = train_sft(model, tokenizer, rows, self._settings)
        save_model(model, tokenizer, output / "model")
        write_rows(output / "curve.jsonl", curve)
        num_tokens = sum(len(ids) for ids, _ in rows) * self._settings.num_epochs
        sources = Counter(demonstrations[i].source for i in kept)
        return {
            "num_rows": len(rows),
            "num_too_long": len(encoded) - len(rows),
            "final_loss": curve[-1]["loss"],
            **{f"num_{source}": count for source, count in sorted(sources.items())},
            "num_tokens": num_tokens,
            "flops": 6.0 * model.num_parameters() * num_tokens,
        }
