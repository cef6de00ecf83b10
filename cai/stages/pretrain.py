"""Stage pretrain: a small Llama from generated documents. Step 0 of the recipe, run for the embedded model only.

Documents come from a `DocumentSource`, so this file knows no world. They are batched with others of like length; the
learning rate is constant and then falls linearly to zero. Interrupted, training goes on from the last checkpoint and
ends with the same weights (same machine, same number of processes).
"""

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from cai.errors import ConfigError, ModelError
from cai.models.documents import Document, Documents
from cai.progress import progress
from cai.records import read_json, write_json, write_rows

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from cai.models.pretraining import Trainer

__all__ = ["DocumentSource", "Pretrain"]

_CHECKPOINT: Final = "checkpoint.journal"  # the store drops journals from what it keeps
_CHUNK: Final = 40  # updates whose documents are drawn together, to batch by length


class DocumentSource(Documents, Protocol):
    """Where documents come from, what tokens they are made of, and how to try a model trained on them."""

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the ids."""

    def probe(self, model: "LlamaForCausalLM", seed: int) -> dict[str, float]:
        """A quick look at what the model can do, as figures for the curve."""


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Writes model/ (Hugging Face format, with record.json: settings, data hash, counts, scores) and curve.jsonl.

    `num_tokens` are trained on in all and `batch_tokens` in one update, over all `num_processes`; the former counts
    padding. `lr_matrices` is Muon's, `lr_rest` AdamW's. Learning rates warm up over `warmup_share` of the updates and
    stay until `constant_share` of them. Every `log_every` updates give a row of mean losses, every `probe_every` a row
    of the source's figures and the model so far, every `checkpoint_every` a point to go on from.
    """

    version: ClassVar[int] = 1

    source: DocumentSource
    seed: int
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 384
    num_tokens: int = 36_000_000
    batch_tokens: int = 2048
    lr_matrices: float = 0.015
    lr_rest: float = 1.8e-3
    warmup_share: float = 0.005
    constant_share: float = 0.35
    weight_decay: float = 0.02
    num_processes: int = 2
    log_every: int = 100
    probe_every: int = 1500
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "num_tokens", "batch_tokens")
        for name in (*sizes, "num_processes", "log_every", "probe_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be 1 or more, got {getattr(self, name)}")
        for small, large in (("num_heads", "hidden_size"), ("num_processes", "batch_tokens")):
            if getattr(self, large) % getattr(self, small):
                raise ConfigError(f"{small}: must divide {large} ({getattr(self, large)}), got {getattr(self, small)}")
        for name in ("warmup_share", "constant_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be from 0 to below 1, got {getattr(self, name)}")

    def texts(self) -> dict[str, str]:
        """The source's."""
        return self.source.texts()

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Train from scratch, or on from the checkpoint in `output`. No inputs."""
        if self.num_processes == 1:
            _train(0, self, output, None)
        else:
            from torch.multiprocessing.spawn import spawn

            with tempfile.TemporaryDirectory() as meeting:
                arguments = (self, output, Path(meeting) / "store")
                spawn(_train, args=arguments, nprocs=self.num_processes)  # type: ignore[no-untyped-call]
        record = read_json(output / "model" / "record.json")
        return {**record["scores"], "num_tokens": record["num_tokens"], "flops": record["flops"]}

    @property
    def num_updates(self) -> int:
        """How many updates."""
        return max(self.num_tokens // self.batch_tokens, 1)

    def rate(self, update: int) -> float:
        """The factor on both learning rates at an update: warm-up, constant, linear decay to zero."""
        warm = min(1.0, (update + 1) / max(1.0, self.warmup_share * self.num_updates))
        return warm * min(1.0, (1 - update / self.num_updates) / (1 - self.constant_share))


def _train(rank: int, stage: Pretrain, output: Path, meeting: Path | None) -> None:
    """What each process does; several meet in the file `meeting`."""
    if meeting is not None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=stage.num_processes)
    try:
        _Worker(rank, stage, output).train()
    finally:
        if meeting is not None:
            dist.destroy_process_group()


class _Batches:
    """This process' stream of batches; its position is a few values, so that it can be taken up again."""

    def __init__(self, stage: Pretrain, rank: int) -> None:
        self.stage, self.rank = stage, rank
        self.chunk, self.at, self.num_tokens, self.progress, self.digest = -1, 0, 0, 0.0, ""
        self._groups: list[list[Document]] = []

    def state(self) -> dict[str, Any]:
        names = ("chunk", "at", "num_tokens", "progress", "digest")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        self.chunk, self.progress = state["chunk"], state["progress"]
        self._fill()
        self.at, self.num_tokens, self.digest = state["at"], state["num_tokens"], state["digest"]

    def next(self, progress: float) -> list[Document]:
        """The next documents, all of about one length; `progress` decides what a new chunk is made of."""
        if self.at == len(self._groups):
            self.chunk, self.at, self.progress = self.chunk + 1, 0, progress
            self._fill()
        found = self._groups[self.at]
        self.at += 1
        self.num_tokens += sum(len(document.ids) for document in found)
        return found

    def _fill(self) -> None:
        name = f"{self.stage.seed}-{self.rank}-{self.chunk}"
        size = self.stage.batch_tokens // self.stage.num_processes
        documents = list(self.stage.source.documents(name, self.progress, _CHUNK * size))
        rng = random.Random(f"order-{name}")
        rng.shuffle(documents)
        documents.sort(key=lambda d: len(d.ids))  # stable: documents of one length stay shuffled
        content = hashlib.sha256(repr([d.ids for d in documents]).encode()).hexdigest()
        self.digest = hashlib.sha256((self.digest + content).encode()).hexdigest()
        groups: list[list[Document]] = [[]]
        for document in documents:
            if (len(groups[-1]) + 1) * len(document.ids) > size and groups[-1]:
                groups.append([])
            groups[-1].append(document)
        rng.shuffle(groups)
        self._groups = groups


class _Worker:
    """One process of the training; rank 0 also keeps the curve and writes the files."""

    def __init__(self, rank: int, stage: Pretrain, output: Path) -> None:
        self.rank, self.stage, self.output = rank, stage, output
        self.tokenizer = stage.source.tokenizer()
        self.trainer = _trainer(rank, stage, self.tokenizer)
        self.batches = _Batches(stage, rank)
        self.done, self.num_tokens = 0, 0  # updates, and tokens of every process in them
        self.curve: list[dict[str, float]] = []
        self.losses: dict[str, list[float]] = defaultdict(list)
        self._resume()

    def train(self) -> None:
        """All updates that are left, then the model folder."""
        stage = self.stage
        bars = progress("pretrain", total=stage.num_updates - self.done, unit="updates")
        with bars if self.rank == 0 else nullcontext() as bar:
            while self.done < stage.num_updates:
                loss = self._update()
                self.done += 1
                last = self.done == stage.num_updates
                if self.done % stage.log_every == 0 or last:
                    self.num_tokens = sum(map(int, self._gather(str(self.batches.num_tokens))))
                    self._log({f"loss/{kind}": sum(v) / len(v) for kind, v in sorted(self.losses.items())})
                    self.losses.clear()
                if self.rank == 0 and (self.done % stage.probe_every == 0 or last):
                    self._log(stage.source.probe(self.trainer.model, stage.seed))
                    self.trainer.model.train()
                    self._save_model()
                if self.done % stage.checkpoint_every == 0 or last:
                    self._checkpoint()
                if bar:
                    bar.advance(note=f"loss {loss:.2f}")
        data_hash = hashlib.sha256("".join(self._gather(self.batches.digest)).encode()).hexdigest()
        if self.rank == 0:
            self._save_model(data_hash)

    def _update(self) -> float:
        import torch

        from cai.models.pretraining import pad

        stage = self.stage
        documents = self.batches.next(self.done / stage.num_updates)
        ids = pad([d.ids for d in documents], self.tokenizer.pad_token_id, torch.long)
        weights = pad([d.weights for d in documents], 0.0, torch.float32)
        rate = stage.rate(self.done)
        losses = self.trainer.update(ids, weights, rate=rate, num_tokens=stage.batch_tokens)
        for document, loss in zip(documents, losses, strict=True):
            self.losses[document.kind].append(loss)
        mean = sum(losses) / len(losses)
        if not mean < float("inf"):
            raise ModelError(f"pretrain: the loss is {mean} at update {self.done + 1}; a lower lr_matrices may help")
        return mean

    def _gather(self, text: str) -> list[str]:
        """The text of every process."""
        if self.stage.num_processes == 1:
            return [text]
        import torch.distributed as dist

        texts: list[Any] = [None] * self.stage.num_processes
        dist.all_gather_object(texts, text)
        return texts

    def _log(self, values: Mapping[str, float]) -> None:
        if self.rank == 0:
            row = {name: round(value, 5) for name, value in values.items()}
            self.curve.append({"update": self.done, "num_tokens": self.num_tokens, **row})
            write_rows(self.output / "curve.jsonl", self.curve)

    def _checkpoint(self) -> None:
        import torch

        states = self._gather(json.dumps(self.batches.state()))
        if self.rank == 0:
            state = {
                "trainer": self.trainer.state_dict(),
                "batches": [json.loads(state) for state in states],
                "done": self.done,
                "num_tokens": self.num_tokens,
                "curve": self.curve,
                "losses": dict(self.losses),
            }
            new = self.output / f".{_CHECKPOINT}.tmp"
            torch.save(state, new)
            os.replace(new, self.output / _CHECKPOINT)

    def _resume(self) -> None:
        import torch

        if (path := self.output / _CHECKPOINT).exists():
            state = torch.load(path, weights_only=True)
            self.trainer.load_state_dict(state["trainer"])
            self.batches.restore(state["batches"][self.rank])
            self.done, self.num_tokens, self.curve = state["done"], state["num_tokens"], state["curve"]
            self.losses.update(state["losses"])
            if self.rank == 0:  # the curve may hold rows of updates that are done again
                write_rows(self.output / "curve.jsonl", self.curve)

    def _save_model(self, data_hash: str | None = None) -> None:
        """The model so far with its record; `data_hash` comes with the last."""
        num_parameters = self.trainer.model.num_parameters()
        scores = [row for row in self.curve if not any(name.startswith("loss/") for name in row)][-1]
        record = {
            "settings": {**asdict(self.stage), "source": repr(self.stage.source)},
            "data_hash": data_hash,
            "num_parameters": num_parameters,
            "num_updates": self.done,
            "num_tokens": self.num_tokens,
            "flops": 6.0 * num_parameters * self.num_tokens,
            "scores": {name: value for name, value in scores.items() if name not in ("update", "num_tokens")},
            "curve": self.curve,
        }
        _write_model(self.trainer.model, self.tokenizer, record, self.output / "model")


def _trainer(rank: int, stage: Pretrain, tokenizer: "PreTrainedTokenizerBase") -> "Trainer":
    from cai.models.pretraining import Trainer, build_llama

    model = build_llama(
        tokenizer,
        hidden_size=stage.hidden_size,
        intermediate_size=stage.intermediate_size,
        num_layers=stage.num_layers,
        num_heads=stage.num_heads,
        seed=stage.seed,
    )
    return Trainer(
        model,
        lr_matrices=stage.lr_matrices,
        lr_rest=stage.lr_rest,
        weight_decay=stage.weight_decay,
        rank=rank,
        world_size=stage.num_processes,
    )


def _write_model(
    model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", record: Mapping[str, Any], folder: Path
) -> None:
    """Write the folder beside its place, then swap it in."""
    from cai.models.loading import save_model

    new, old = folder.with_name("new.journal"), folder.with_name("old.journal")
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    save_model(model, tokenizer, new)
    write_json(new / "record.json", record)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
