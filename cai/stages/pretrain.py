"""Pre-trains a small Llama from generated documents: step 0 of the recipe, run for the embedded sandbox only.

Data-parallel processes with one thread each (faster on few cores than one process with several threads, and less
hurt by a shared machine), batches of documents of like length, right-padded: with causal attention that needs no
mask. Muon on the matrices, AdamW on the rest, constant learning rate and then a linear decay to zero. The documents
come from a `DocumentSource`, so this file knows no sandbox. Interrupted, it goes on from the last checkpoint and
ends with the same weights (same machine, same number of processes).
"""

import hashlib
import json
import os
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

__all__ = ["DocumentSource", "Encoded", "Pretrain"]


class Encoded(NamedTuple):
    """A document as token ids, with the weight of each token's loss."""

    kind: str
    ids: list[int]
    weights: list[float]


class DocumentSource(Protocol):
    """Where documents come from, what tokens they are made of, and how to try a model trained on them."""

    def documents(self, seed: str, progress: float, num_tokens: int) -> list[Encoded]:
        """Documents of about `num_tokens` tokens for this point (0 to 1) of the training; same arguments, same list."""
        ...

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the ids."""
        ...

    def probe(self, model: "LlamaForCausalLM", seed: int) -> dict[str, float]:
        """A quick look at what the model can do."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """The stage. Sizes and rates are its fields; `run` trains and writes `model/` and `curve.jsonl`."""

    version: ClassVar[int] = 1

    source: DocumentSource
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 384
    num_tokens: int = 36_000_000  # trained on in all, over every process
    batch_tokens: int = 2048  # per update, over every process
    lr_matrices: float = 0.015
    lr_rest: float = 1.8e-3
    warmup_share: float = 0.005
    constant_share: float = 0.35  # of all updates, before the rate decays linearly to zero
    weight_decay: float = 0.02
    seed: int = 0
    num_processes: int = 1
    compile: bool = False
    log_every: int = 50
    probe_every: int = 1000
    checkpoint_every: int = 500

    def texts(self) -> dict[str, str]:
        """Nothing but the code decides what the documents say."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Train from scratch, or on from the checkpoint in `output`; returns tokens, seconds, FLOPs and scores."""
        output.mkdir(parents=True, exist_ok=True)
        rendezvous = output / "rendezvous"
        rendezvous.unlink(missing_ok=True)
        if self.num_processes == 1:
            _train(0, self, output)
        else:
            from torch.multiprocessing.spawn import spawn

            spawn(_train, args=(self, output), nprocs=self.num_processes)  # type: ignore[no-untyped-call]
        rendezvous.unlink(missing_ok=True)
        facts: dict[str, float] = json.loads((output / "model" / "record.json").read_text())["facts"]
        return facts

    @property
    def num_steps(self) -> int:
        """How many updates."""
        return max(self.num_tokens // self.batch_tokens, 1)

    def rate(self, step: int) -> float:
        """The factor on both learning rates at an update: warm-up, constant, linear decay to zero."""
        progress = step / self.num_steps
        warm = min(1.0, (step + 1) / max(1.0, self.warmup_share * self.num_steps))
        return warm * min(1.0, (1 - progress) / (1 - self.constant_share))


def _train(rank: int, stage: Pretrain, output: Path) -> None:
    import torch
    import torch.distributed as dist

    if stage.num_processes > 1:
        torch.set_num_threads(1)
        store = f"file://{(output / 'rendezvous').resolve()}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=stage.num_processes)
    try:
        _Worker(rank, stage, output).train()
    finally:
        if stage.num_processes > 1:
            dist.destroy_process_group()


class _Batches:
    """This process' stream of padded batches; its position is four numbers, so that it can be taken up again."""

    def __init__(self, stage: Pretrain, rank: int) -> None:
        self.stage, self.rank = stage, rank
        self.chunk, self.at, self.progress, self.digest = -1, 0, 0.0, ""
        self._groups: list[list[Encoded]] = []

    def state(self) -> dict[str, Any]:
        return {"chunk": self.chunk, "at": self.at, "progress": self.progress, "digest": self.digest}

    def restore(self, state: dict[str, Any]) -> None:
        self.chunk, self.progress = state["chunk"], state["progress"]
        self._fill()
        self.at, self.digest = state["at"], state["digest"]

    def next(self, progress: float) -> list[Encoded]:
        """The next documents, all of about one length."""
        if self.at == len(self._groups):
            self.chunk, self.at, self.progress = self.chunk + 1, 0, progress
            self._fill()
        self.at += 1
        return self._groups[self.at - 1]

    def _fill(self) -> None:
        name = f"{self.stage.seed}-{self.rank}-{self.chunk}"
        size = self.stage.batch_tokens // self.stage.num_processes
        documents = self.stage.source.documents(name, self.progress, 40 * size)
        rng = random.Random(f"order-{name}")
        rng.shuffle(documents)
        documents.sort(key=lambda d: len(d.ids))  # stable: documents of one length stay shuffled
        content = hashlib.sha256(repr([d.ids for d in documents]).encode()).hexdigest()
        self.digest = hashlib.sha256((self.digest + content).encode()).hexdigest()
        groups: list[list[Encoded]] = [[]]
        for document in documents:
            if (len(groups[-1]) + 1) * len(document.ids) > size and groups[-1]:
                groups.append([])
            groups[-1].append(document)
        rng.shuffle(groups)
        self._groups = groups


class _Worker:
    """One process of the training: model, optimisers, batches, and the files that rank 0 writes."""

    def __init__(self, rank: int, stage: Pretrain, output: Path) -> None:
        import torch

        from cai.sandbox.muon import Muon

        self.rank, self.stage, self.output = rank, stage, output
        self.tokenizer = stage.source.tokenizer()
        self.model = _build_model(stage, self.tokenizer)
        named = dict(self.model.named_parameters())
        matrices = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        chosen = {id(p) for p in matrices}
        rest = [p for p in named.values() if id(p) not in chosen]
        self.muon = Muon(matrices, weight_decay=stage.weight_decay, rank=rank, world_size=stage.num_processes)
        self.adam = torch.optim.AdamW(rest, lr=stage.lr_rest, betas=(0.9, 0.98), weight_decay=0.0)
        # Gradients live in one flat buffer, so that one all_reduce averages them all.
        self.flat_grad = torch.zeros(sum(p.numel() for p in named.values()))
        start = 0
        for p in named.values():
            p.grad = self.flat_grad[start : start + p.numel()].view_as(p)
            start += p.numel()
        self.body = torch.compile(self.model.model, dynamic=True) if stage.compile else self.model.model
        self.batches = _Batches(stage, rank)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.losses: dict[str, list[float]] = defaultdict(list)
        self._resume()

    def train(self) -> None:
        """All updates that are left, then the model folder."""
        stage, started, before = self.stage, time.monotonic(), self.seconds
        while self.step < stage.num_steps:
            self._update()
            self.step += 1
            self.seconds = before + time.monotonic() - started
            last = self.step == stage.num_steps
            if self.step % stage.log_every == 0 or last:
                self._log({f"loss/{kind}": sum(v) / len(v) for kind, v in sorted(self.losses.items())})
                self.losses.clear()
            if self.rank == 0 and (self.step % stage.probe_every == 0 or last):
                self._log(stage.source.probe(self.model, stage.seed))
                self.model.train()
                self._save_model(self.output / "snapshot")
            if self.step % stage.checkpoint_every == 0 or last:
                self._checkpoint()
        digests = self._gather(self.batches.digest)
        if self.rank == 0:
            data_hash = hashlib.sha256("".join(digests).encode()).hexdigest()
            self._save_model(self.output / "model", data_hash)

    def _update(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.nn.functional import cross_entropy

        stage = self.stage
        documents = self.batches.next(self.step / stage.num_steps)
        ids, weights = _pad(documents, self.tokenizer.pad_token_id)
        hidden = self.body(input_ids=ids).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1])
        nll = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(documents), -1)
        weighted = (nll * weights[:, 1:]).sum(dim=1)
        # A constant divisor: a token counts the same whatever else is in its batch.
        loss = weighted.sum() * stage.num_processes / stage.batch_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        if stage.num_processes > 1:
            dist.all_reduce(self.flat_grad)
            self.flat_grad /= stage.num_processes
        rate = stage.rate(self.step)
        self.muon.step(stage.lr_matrices * rate)
        for group in self.adam.param_groups:
            group["lr"] = stage.lr_rest * rate
        self.adam.step()
        self.flat_grad.zero_()
        self.tokens += sum(len(d.ids) for d in documents) * stage.num_processes
        means = weighted.detach() / weights[:, 1:].sum(dim=1).clamp(min=1e-6)
        for document, mean in zip(documents, means.tolist(), strict=True):
            self.losses[document.kind].append(mean)
        assert torch.isfinite(weighted.detach()).all(), f"loss is not finite at update {self.step}"

    def _gather(self, text: str) -> list[str]:
        import torch.distributed as dist

        if self.stage.num_processes == 1:
            return [text]
        texts: list[Any] = [None] * self.stage.num_processes
        dist.all_gather_object(texts, text)
        return texts

    def _log(self, values: dict[str, float]) -> None:
        if self.rank == 0:
            row = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1)}
            row |= {name: round(value, 5) for name, value in values.items()}
            with (self.output / "curve.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)

    def _checkpoint(self) -> None:
        import torch

        states = self._gather(json.dumps(self.batches.state()))
        if self.rank == 0:
            state = {
                "model": self.model.state_dict(),
                "muon": self.muon.state_dict(),
                "adam": self.adam.state_dict(),
                "rng": torch.get_rng_state(),
                "batches": [json.loads(s) for s in states],
                "step": self.step,
                "tokens": self.tokens,
                "seconds": self.seconds,
            }
            torch.save(state, self.output / "checkpoint.tmp")
            os.replace(self.output / "checkpoint.tmp", self.output / "checkpoint.pt")

    def _resume(self) -> None:
        import torch

        path = self.output / "checkpoint.pt"
        if not path.exists():
            (self.output / "curve.jsonl").unlink(missing_ok=True) if self.rank == 0 else None
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        torch.set_rng_state(state["rng"])
        self.batches.restore(state["batches"][self.rank])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        if self.rank == 0:  # rows after the checkpoint will be written again
            curve = self.output / "curve.jsonl"
            rows = [line for line in curve.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            curve.write_text("".join(f"{line}\n" for line in rows))

    def _save_model(self, folder: Path, data_hash: str | None = None) -> None:
        """Write a model folder beside its place, then swap it in."""
        new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
        self.model.save_pretrained(new)
        self.tokenizer.save_pretrained(new)
        curve = [json.loads(line) for line in (self.output / "curve.jsonl").read_text().splitlines()]
        scores = [row for row in curve if not any(name.startswith("loss/") for name in row)][-1:]
        num_parameters = sum(p.numel() for p in self.model.parameters())
        facts = {"tokens": float(self.tokens), "seconds": self.seconds, "flops": 6.0 * num_parameters * self.tokens}
        record = {
            "settings": asdict(self.stage) | {"source": repr(self.stage.source)},
            "data_hash": data_hash,
            "num_parameters": num_parameters,
            "step": self.step,
            "facts": facts,
            "scores": scores[0] if scores else {},
            "curve": curve,
        }
        (new / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _build_model(stage: Pretrain, tokenizer: "PreTrainedTokenizerBase") -> "LlamaForCausalLM":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(stage.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=stage.hidden_size,
        intermediate_size=stage.intermediate_size,
        num_hidden_layers=stage.num_layers,
        num_attention_heads=stage.num_heads,
        num_key_value_heads=stage.num_heads,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    model.train()
    return model


def _pad(documents: list[Encoded], pad_id: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Ids and weights, each (documents, longest); padding has weight 0."""
    import torch

    longest = max(len(d.ids) for d in documents)
    ids = torch.tensor([d.ids + [pad_id] * (longest - len(d.ids)) for d in documents])
    weights = torch.tensor([d.weights + [0.0] * (longest - len(d.ids)) for d in documents])
    return ids, weights
