"""What TRL's trainers share here: batches of similar length, no telemetry, one GPU, and checkpoints of our own.

Hugging Face's checkpoints are many files, of which one may be cut, and leave out what was summed up since the last row
of the curve. Ours are one state (`cai.rl.checkpoints`), put in and taken out where the trainer does it with its own.
On a CPU a training that was resumed ends with the same weights and the same curve, bit for bit.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from cai.models.loading import pick_device, quiet
from cai.models.lora import load_trained, trained_state
from cai.progress import progress
from cai.records import seed_of
from cai.rl.checkpoints import load_latest, save
from cai.rl.settings import TrainingSettings

__all__ = ["Checkpoints", "LengthSampler", "LocalTrainer", "Measure", "run_trainer", "trainer_arguments"]

# Batches of similar length are made within pools of this many batches, so that padding is low (a few percent) while
# what is in a batch still changes from epoch to epoch.
_POOL_BATCHES = 16


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a training saves its state, and after how many optimiser steps each time. A training of fewer saves none;
    a longer one saves its end too.
    """

    folder: Path
    every: int

    def due(self, step: int, last: int) -> bool:
        """Whether to save after `step` of `last` steps."""
        return step % self.every == 0 or self.every <= step == last


class Measure(Protocol):
    """Measures the model after every epoch, and remembers what a resumed training needs."""

    def __call__(self) -> dict[str, float]:
        """Figures for the curve."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember it again."""
        ...


class LocalTrainer:
    """Mixed into TRL's trainers: batches of similar length in random order, no message to a telemetry server, one GPU
    (where there are several, Hugging Face would spread a batch over all of them and make it as many times larger), and
    one state per checkpoint, where Hugging Face's trainer has files.
    """

    sampler: "LengthSampler"
    hooks: "_Hooks"
    checkpoints: Checkpoints | None
    resumed: dict[str, Any] | None  # the state to go on from

    def __init__(self, *, args: Any, **settings: Any) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # reading it first has it counted; it would be counted later, over this
        super().__init__(args=args, **settings)  # type: ignore[call-arg]  # of TRL

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:
        return self.sampler

    def _send_telemetry(self) -> None:
        return None

    def _save_checkpoint(self: Any, *_: object) -> None:
        save(
            self.checkpoints.folder,
            self.state.global_step,
            {
                "model": trained_state(self.model),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.lr_scheduler.state_dict(),
                "random": _random_state(),
                "trainer": json.dumps(dataclasses.asdict(self.state)),
                "loss_since_row": self._tr_loss,
                "step_of_row": self._globalstep_last_logged,
                "metrics_since_row": dict(self._metrics["train"]),
                "hooks": self.hooks.state_dict(),
            },
        )

    def _load_from_checkpoint(self: Any, *_: object) -> None:
        load_trained(self.model, self.resumed["model"])

    def _load_optimizer_and_scheduler(self: Any, folder: str | None) -> None:
        if folder is not None:
            self.optimizer.load_state_dict(self.resumed["optimizer"])
            self.lr_scheduler.load_state_dict(self.resumed["scheduler"])

    def _load_rng_state(self: Any, *_: object) -> None:
        """Called right before the first step, when the rows already learnt are passed over and all counters are 0."""
        _set_random_state(self.resumed["random"])
        self._tr_loss.copy_(self.resumed["loss_since_row"])
        self._globalstep_last_logged = self.resumed["step_of_row"]
        self._metrics["train"].update(self.resumed["metrics_since_row"])


class LengthSampler(Sampler[int]):
    """Indices such that consecutive `batch_size` of them have similar lengths; batches come in random order.

    Hugging Face's own grouping sorts whole pools from long to short, so that an epoch ends on its shortest rows.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        self.epoch += 1
        shuffled = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = _POOL_BATCHES * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), pool):
            rows = sorted(shuffled[start : start + pool], key=lambda i: self.lengths[i])
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        # A batch that is not full must come last: the trainer cuts the stream of indices every `batch_size`.
        ragged = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        order = torch.randperm(len(full), generator=generator).tolist()
        for batch in [*(full[i] for i in order), *ragged]:
            yield from batch


class _Hooks(TrainerCallback):
    """Shows progress, measures after each epoch, and says when to save."""

    def __init__(
        self,
        advance: Callable[[], None],
        after_epoch: Measure | None,
        checkpoints: Checkpoints | None,
        steps_per_epoch: int,
        at_step: Callable[[int], None],
    ) -> None:
        self.at_step = at_step
        self.advance = advance
        self.after_epoch = after_epoch
        self.checkpoints = checkpoints
        self.steps_per_epoch = steps_per_epoch
        self.measured: list[dict[str, float]] = []

    def on_train_begin(self, args: object, state: Any, control: Any, **_: object) -> None:
        if state.global_step == 0:
            self.at_step(0)

    def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        self.advance()
        self.at_step(state.global_step)
        if state.global_step % self.steps_per_epoch:
            control.should_save = self._due(state)

    def on_epoch_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        if self.after_epoch is not None:
            self.measured.append({"step": state.global_step, "epoch": round(state.epoch, 6), **self.after_epoch()})
        control.should_save = self._due(state)  # only now: what was measured belongs into it

    def _due(self, state: Any) -> bool:
        return self.checkpoints is not None and self.checkpoints.due(state.global_step, state.max_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured, "after_epoch": self.after_epoch and self.after_epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = state["measured"]
        if self.after_epoch is not None:
            self.after_epoch.load_state_dict(state["after_epoch"])


def run_trainer(
    build: Callable[[str], Any],
    lengths: Sequence[int],
    settings: TrainingSettings,
    label: str,
    *,
    after_epoch: Measure | None = None,
    checkpoints: Checkpoints | None = None,
    at_step: Callable[[int], None] = lambda step: None,
) -> list[dict[str, float]]:
    """Train with what `build` makes (a `LocalTrainer`) in a folder of its own, which is thrown away with all that is in
    it; go on from the last checkpoint if there is one. `at_step` is called before the first step, with 0, and after
    each, with its number, before that step is in any checkpoint. Returns the curve.
    """
    resumed = None if checkpoints is None else load_latest(checkpoints.folder)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = build(folder)
        steps_per_epoch = -(-len(lengths) // settings.batch_size)
        trainer.sampler = LengthSampler(lengths, settings.batch_size, settings.seed)
        trainer.checkpoints, trainer.resumed = checkpoints, resumed
        trainer.remove_callback(PrinterCallback)
        with progress(label, total=steps_per_epoch * settings.num_epochs, unit="steps") as bar:
            trainer.hooks = _Hooks(bar.advance, after_epoch, checkpoints, steps_per_epoch, at_step)
            trainer.add_callback(trainer.hooks)
            if resumed is not None:
                # The trainer finds step and history in a file; how many rows to pass over follows from the step.
                (Path(folder) / "trainer_state.json").write_text(resumed["trainer"])
                step = json.loads(resumed["trainer"])["global_step"]
                trainer.sampler.epoch = step // steps_per_epoch
                trainer.hooks.load_state_dict(resumed["hooks"])
                bar.advance(step)
            trainer.train(resume_from_checkpoint=None if resumed is None else folder)
        trainer.model.eval()  # dropout must not be in what is measured next
        kept = ("step", "epoch", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")
        rows = [{key: entry[key] for key in kept if key in entry} for entry in trainer.state.log_history]
    # the last entry of the history is clocks
    return sorted([row for row in rows if "loss" in row] + trainer.hooks.measured, key=lambda row: row["step"])


_SCHEDULES: dict[str, str] = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def trainer_arguments(settings: TrainingSettings, folder: str, num_rows: int) -> dict[str, Any]:
    """Arguments of TRL's configurations. Their own defaults, bf16 and activation checkpointing, are three times slower
    on a CPU; nothing is saved, reported or logged but some 50 points of the curve.
    """
    steps = -(-num_rows // settings.batch_size) * settings.num_epochs
    rows = settings.microbatch_size or settings.batch_size
    return {
        "output_dir": folder,
        "seed": settings.seed % 2**32,  # numpy's limit
        "num_train_epochs": settings.num_epochs,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": settings.batch_size // rows,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": _SCHEDULES[settings.schedule],
        "warmup_steps": round(settings.warmup_share * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "max_length": None,
        "bf16": settings.dtype == "bfloat16",
        "activation_checkpointing": False,
        "use_cpu": pick_device(settings.device) == "cpu",
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": max(1, steps // 50),
    }


def _random_state() -> dict[str, Tensor]:
    """Of torch, which alone draws numbers in training (dropout, where a model has it)."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
