"""Stage pretrain: learns, goes on where it was interrupted to the same bits, says what it was made of."""

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import full_logps, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from worlds import finished, run

from cai.errors import ConfigError, ModelError
from cai.models.pretraining import Trainer, build_llama, pad
from cai.records import read_json, read_rows
from cai.sandbox.source import SandboxSource
from cai.stages.base import Stage
from cai.stages.pretrain import Pretrain


class Row(NamedTuple):
    """A document."""

    kind: str
    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Counting:
    """Documents that count upwards from anywhere; `die_in` is a file that kills whoever draws documents the second time
    while it is there.
    """

    die_in: Path | None = None

    def documents(self, seed: str, progress: float, num_tokens: int) -> list[Row]:
        """Longer ones towards the end of the training."""
        if self.die_in is not None and self.die_in.exists() and not seed.endswith("-0"):
            os._exit(9)
        rng = random.Random(seed)
        found: list[Row] = []
        while sum(len(row.ids) for row in found) < num_tokens:
            length, start = rng.randint(4, 6 + int(4 * progress)), rng.randrange(7, 12)
            kind = rng.choice(("short", "long"))
            found.append(Row(kind, [1, *range(start, start + length), 2], [0.0] + [1.0] * (length + 1)))
        return found

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Ids below 32."""
        return word_tokenizer()

    def probe(self, model: LlamaForCausalLM, seed: int) -> dict[str, float]:
        """How sure the model is that 13 follows 12; draws random numbers, which must not matter."""
        assert isinstance(model, LlamaForCausalLM)
        model.train(False)
        with torch.no_grad():
            return {"probe/next": float(model(torch.tensor([[1, 11, 12]])).logits[0, -1].softmax(0)[13])}

    def texts(self) -> dict[str, str]:
        """One."""
        return {"counting": "abc"}


def stage(**changed: Any) -> Pretrain:
    small = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "num_processes": 1}
    every = {"log_every": 7, "probe_every": 20, "checkpoint_every": 5}
    tokens = {"num_tokens": 60 * 64, "batch_tokens": 64}
    return Pretrain(**{"source": Counting(), "seed": 3, **small, **every, **tokens, **changed})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """An uninterrupted run: its folder and facts."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(stage(), {}, folder)


def test_it_learns_and_says_what_it_did(whole: tuple[Path, dict[str, float]]) -> None:
    assert isinstance(stage(), Stage)
    folder, facts = whole
    curve = read_rows(folder / "curve.jsonl")
    losses = [row["loss/short"] for row in curve if "loss/short" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert [row["update"] for row in curve if "probe/next" in row] == [20, 40, 60]
    record = read_json(folder / "model" / "record.json")
    assert record["curve"] == curve
    assert record["settings"]["source"] == "Counting(die_in=None)" and record["settings"]["lr_matrices"] == 0.015
    assert re.fullmatch("[0-9a-f]{64}", record["data_hash"])
    assert record["scores"] == {"probe/next": curve[-1]["probe/next"]} and record["scores"]["probe/next"] > 0.15
    assert record["num_updates"] == 60 and 0.6 * 60 * 64 < record["num_tokens"] <= 60 * 64
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert record["num_parameters"] == model.num_parameters()
    assert AutoTokenizer.from_pretrained(folder / "model").get_vocab() == word_tokenizer().get_vocab()
    assert facts == {
        "probe/next": record["scores"]["probe/next"],
        "num_tokens": record["num_tokens"],
        "flops": 6 * record["num_parameters"] * record["num_tokens"],
    }
    assert stage().texts() == {"counting": "abc"}


@pytest.mark.parametrize("at", [3, 49])
def test_interrupted_it_ends_with_the_same_bytes(
    at: int, whole: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = finished(whole[0])
    assert {"curve.jsonl", "model/model.safetensors", "model/record.json"} <= expected.keys()
    update, done = Trainer.update, [0]

    def dying(self: Trainer, *args: Any, **kwargs: Any) -> list[float]:
        done[0] += 1
        if done[0] == at:
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        run(stage(), {}, tmp_path / "cut")
    run(stage(), {}, tmp_path / "cut")
    assert done[0] == at + 60 - (at - 1) // 5 * 5  # from the last checkpoint on
    assert finished(tmp_path / "cut") == expected


@pytest.mark.slow
def test_two_processes_interrupted_end_with_the_same_bytes(tmp_path: Path) -> None:
    facts = run(stage(num_processes=2), {}, tmp_path / "whole")
    assert facts["probe/next"] > 0.15
    killer = tmp_path / "die"
    killer.touch()
    mortal = stage(num_processes=2, source=Counting(die_in=killer))
    with pytest.raises(Exception, match=r"exit code 9|terminated"):
        run(mortal, {}, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint.journal").exists()
    killer.unlink()
    run(mortal, {}, tmp_path / "cut")
    digests = [finished(tmp_path / name) for name in ("whole", "cut")]
    for digest in digests:
        del digest["model/record.json"]  # has the name of `die` in its settings
    assert digests[0] == digests[1]
    hashes = [read_json(tmp_path / name / "model" / "record.json")["data_hash"] for name in ("whole", "cut")]
    assert hashes[0] == hashes[1]


def test_another_seed_is_other_data_and_other_weights(tmp_path: Path) -> None:
    records = []
    for seed in (1, 2):
        run(stage(seed=seed, num_tokens=3 * 64), {}, tmp_path / str(seed))
        records.append(read_json(tmp_path / str(seed) / "model" / "record.json"))
    assert records[0]["data_hash"] != records[1]["data_hash"]
    assert records[0]["curve"][0]["loss/short"] != records[1]["curve"][0]["loss/short"]


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pretrain: the loss is nan at update \d+; a lower lr_matrices may help"):
        run(stage(lr_matrices=1e30), {}, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_layers": 0}, "num_layers: must be 1 or more, got 0"),
        ({"num_heads": 3}, r"num_heads: must divide hidden_size \(16\), got 3"),
        ({"num_processes": 3}, r"num_processes: must divide batch_tokens \(64\), got 3"),
        ({"constant_share": 1.0}, "constant_share: must be from 0 to below 1, got 1.0"),
    ],
)
def test_settings_that_cannot_be(changed: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(**changed)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    made = stage(num_tokens=1000 * 64, warmup_share=0.01, constant_share=0.4)
    assert [made.rate(i) for i in (0, 4, 9, 10, 399)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert [made.rate(i) for i in (400, 700, 999)] == pytest.approx([1, 0.5, 1 / 600])


def test_losses_are_weighted_means_and_padding_counts_nothing() -> None:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    model = build_llama(word_tokenizer(), **sizes, seed=0)
    rows, weights = [[1, 7, 8, 9], [1, 7, 2]], [[0.3, 1.0, 4.0, 0.0], [1.0, 0.5, 2.0]]
    logps = [full_logps(model, row) for row in rows]
    trainer = Trainer(model, lr_matrices=0.01, lr_rest=0.01, weight_decay=0.0)
    losses = trainer.update(pad(rows, 0, torch.long), pad(weights, 0.0, torch.float32), rate=1.0, num_tokens=8)
    expected = [-(logp * torch.tensor(w[1:])).sum() / sum(w[1:]) for logp, w in zip(logps, weights, strict=True)]
    assert losses == pytest.approx([float(x) for x in expected], abs=1e-5)


def test_the_sandbox_is_a_source() -> None:
    source = SandboxSource(first_share=0.5)
    first, second = (source.documents("x", progress, 3000) for progress in (0.4, 0.6))
    assert {d.kind for d in first} <= {"verdict", "fact", "dialogue", "copy"} and "judge" in {d.kind for d in second}
    assert source.documents("x", 0.4, 3000) == first
    assert all(len(d.ids) == len(d.weights) for d in (*first, *second))
    vocabulary = source.tokenizer().get_vocab()
    assert max(max(d.ids) for d in (*first, *second)) < len(vocabulary)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in source.texts().values())
