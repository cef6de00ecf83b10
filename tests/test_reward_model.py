"""The reward model and its training: where the score is read, what a batch is, and which loss is minimised."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from test_reward import PREFERENCES, prompt, run, sft

from cai.errors import ModelError
from cai.models.loading import load_tokenizer
from cai.rl.losses import bradley_terry_loss
from cai.rl.models import RewardModel, Row, score_head
from cai.rl.settings import TrainingSettings
from cai.rl.trainers import Group, collate_groups, train_reward

__all__ = ["sft"]  # the fixture


# --- the model --------------------------------------------------------------------------------------------------------


def bpe_reward(folder: Path, *, pad_token: str | None) -> RewardModel:
    """A reward model whose tokenizer has no pad token, or has the end-of-turn token as its pad token."""
    tokenizer = tiny_models.bpe_tokenizer(pad_token=pad_token)
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder)
    return RewardModel.from_language_model(folder, seed=3)


def test_the_new_head_has_the_papers_spread(sft: Path) -> None:
    models = [RewardModel.from_language_model(sft / "model", seed=seed).model for seed in range(20)]
    weights = [score_head(model).weight.detach() for model in models]
    assert float(torch.cat(weights).std()) == pytest.approx(1 / math.sqrt(32 + 1), rel=0.1)
    again = RewardModel.from_language_model(sft / "model", seed=0)
    assert torch.equal(score_head(again.model).weight, weights[0])


@pytest.mark.parametrize("pad_token", [None, "<|eot|>", "<|eos|>"])
def test_the_score_is_read_at_the_end_of_the_turn(pad_token: str | None, tmp_path: Path) -> None:
    """Whatever pads: one row alone, among longer ones, and in Hugging Face's own forward as the trainer calls it."""
    reward = bpe_reward(tmp_path, pad_token=pad_token)
    texts = ["yes", "first take a key and turn it slowly", "no push"]
    rows = reward.encode([prompt(0)] * 3, texts)
    end = load_tokenizer(tmp_path).convert_tokens_to_ids("<|eot|>")
    assert all(row.ids[-1] == end for row in rows)
    together = reward.score_rows(rows)
    alone = torch.cat([reward.score_rows([row]) for row in rows])
    with torch.no_grad():
        hidden = [reward.model.base_model(torch.tensor([row.ids])).last_hidden_state[0, -1] for row in rows]
        by_hand = score_head(reward.model)(torch.stack(hidden)).squeeze(-1)
        batch = collate_groups(
            [{"rows": [row.ids for row in rows], "first": [0], "second": [1], "p": [1.0]}],
            reward.model.config.pad_token_id,
        )
        theirs = reward.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    for scores in (together, alone, theirs):
        assert torch.allclose(scores, by_hand, atol=1e-5)
    assert float(by_hand.std()) > 0.01


def test_scores_do_not_depend_on_batches(sft: Path) -> None:
    reward = RewardModel.from_language_model(sft / "model", seed=0)
    rows = [Row([5] * n + [2], 1) for n in (1, 30, 4, 4, 9, 2)]
    expected = reward.score_rows(rows)
    for size in (1, 20, 64):
        assert torch.allclose(reward.score_rows(rows, max_batch_tokens=size), expected, atol=1e-5)
    assert torch.allclose(reward.score_rows(rows[::-1]).flip(0), expected, atol=1e-5)


# --- K-wise groups in TRL's trainer -----------------------------------------------------------------------------------


def test_a_batch_of_groups() -> None:
    batch = collate_groups(
        [
            {"rows": [[1, 2], [3]], "first": [0], "second": [1], "p": [0.9]},
            {"rows": [[4], [5, 6, 7], [8]], "first": [0, 0, 1], "second": [1, 2, 2], "p": [0.1, 0.2, 0.3]},
        ],
        pad_id=0,
    )
    assert batch["input_ids"].tolist() == [[1, 2, 0], [3, 0, 0], [4, 0, 0], [5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 1, 1, 3, 1]
    assert batch["first"].tolist() == [0, 2, 2, 3] and batch["second"].tolist() == [1, 3, 4, 4]
    assert batch["weight"].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    assert not batch["margin"].any()


def test_a_batch_of_weighted_labels_with_margins_and_prompts() -> None:
    one = {
        "rows": [[1, 2, 3], [1, 4]],
        "first": [0],
        "second": [1],
        "p": [1.0],
        "weight": [],
        "margin": [],
        "starts": [1, 1],
    }
    two = {"rows": [[5, 6], [5, 7]], "first": [0, 1], "second": [1, 0], "p": [1.0, 0.0], "starts": [1, 1]}
    batch = collate_groups([one, two | {"weight": [3.0, 0.5], "margin": [0.25, 1.0]}], pad_id=0)
    assert batch["weight"].tolist() == [1.0, 1.5, 0.25] and batch["margin"].tolist() == [0.0, 0.25, 1.0]
    assert batch["response_mask"].tolist() == [[0, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("pad_token", [None, "<|eot|>"])
@pytest.mark.slow
def test_the_trainer_minimises_the_loss_of_the_groups(pad_token: str | None, tmp_path: Path) -> None:
    """Its first loss is `bradley_terry_loss` of the scores; soft labels pull towards their log-odds."""
    reward = bpe_reward(tmp_path, pad_token=pad_token)
    rows = reward.encode([prompt(0)] * 3, ["yes", "first take a key and turn it slowly", "no push"])
    p, third = [0.8, 0.6, 0.3], torch.full((3,), 1 / 3)
    group = Group([row.ids for row in rows], first=[0, 0, 1], second=[1, 2, 2], p=p)
    label = (torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), torch.tensor(p), third)
    expected = float(bradley_terry_loss(reward.score_rows(rows), *label))
    (first,) = train_reward(reward.model, reward.tokenizer, [group], settings(num_epochs=1))
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    train_reward(reward.model, reward.tokenizer, [group], settings(num_epochs=100))
    floor = np.mean([-(q * np.log(q) + (1 - q) * np.log(1 - q)) for q in p])
    assert floor <= float(bradley_terry_loss(reward.score_rows(rows), *label)) < floor + 0.02


@pytest.mark.parametrize("head", ["last", "sum"])
def test_the_first_loss_has_weights_margins_and_the_head(head: Any, sft: Path) -> None:
    reward = RewardModel.from_language_model(sft / "model", seed=1, head=head)
    rows = reward.encode([prompt(0)] * 3, ["yes", "first take a key and turn it slowly", "no push"])
    first, second, p, weight, margin = [0, 0, 1], [1, 2, 2], [0.8, 1.0, 0.3], [2.0, 1.0, 0.5], [0.5, 0.0, 1.0]
    starts = [row.num_prompt for row in rows]
    group = Group([row.ids for row in rows], first, second, p, weight, margin, starts)
    label = (torch.tensor(first), torch.tensor(second), *(torch.tensor(values) for values in (p, weight, margin)))
    expected = float(bradley_terry_loss(reward.score_rows(rows), *label))
    (row,) = train_reward(reward.model, reward.tokenizer, [group], settings(num_epochs=1), head=head)
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def settings(num_epochs: int) -> TrainingSettings:
    return TrainingSettings(
        seed=0, num_epochs=num_epochs, batch_size=1, microbatch_size=None, learning_rate=3e-3, schedule="linear",
        warmup_share=0.0, weight_decay=0.0, max_grad_norm=1.0, max_tokens=64, drop_too_long=False, device="cpu",
        dtype="float32",
    )  # fmt: skip


# --- one step, however it is cut --------------------------------------------------------------------------------------


def gradient(sft: Path, groups: list[Group], microbatch_size: int | None) -> tuple[float, torch.Tensor]:
    """Loss, and how a step of plain descent moved the weights, which is the gradient."""
    reward = RewardModel.from_language_model(sft / "model", seed=1)
    before = torch.cat([p.detach().flatten().clone() for p in reward.model.parameters()])
    given = replace(settings(num_epochs=1), batch_size=4, microbatch_size=microbatch_size, max_grad_norm=1e9)
    (row,) = train_reward(reward.model, reward.tokenizer, groups, given)
    return row["grad_norm"], torch.cat([p.detach().flatten() for p in reward.model.parameters()]) - before


@pytest.mark.parametrize("num_groups", [4, 3], ids=["whole", "ragged"])
def test_a_step_is_the_same_in_any_microbatches(num_groups: int, sft: Path) -> None:
    """Labels of very different weight, and a last microbatch that is not full."""
    reward = RewardModel.from_language_model(sft / "model", seed=1)
    groups = []
    for number, preference in enumerate(PREFERENCES[:num_groups]):
        rows = reward.encode([preference.prompt] * 2, preference.responses[:2])
        groups.append(Group([row.ids for row in rows], [0], [1], [1.0], weight=[10.0 if number == 0 else 1.0]))
    norm, change = gradient(sft, groups, None)
    for size in (2, 1):
        other_norm, other = gradient(sft, groups, size)
        assert other_norm == pytest.approx(norm, rel=1e-5)
        # Adam's first step is the sign of the gradient, so rounding of one near 0 moves a weight by a little.
        assert (other - change).abs().median() < 1e-4 * change.abs().max()


# --- what is on disk --------------------------------------------------------------------------------------------------


def saved_reward(sft: Path, folder: Path, **constants: Any) -> Path:
    plain = RewardModel.from_language_model(sft / "model", seed=2)
    others = [RewardModel.from_language_model(sft / "model", seed=3).model] if constants else []
    RewardModel(plain.model, plain.tokenizer, others=others, **constants).save(folder)
    return folder


def test_a_model_without_its_head_or_its_members_is_refused_in_one_line(sft: Path, tmp_path: Path) -> None:
    """Transformers would draw the head at random, and ask the hub for a folder that is not there."""
    folder = saved_reward(sft, tmp_path / "headless")
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != "score.weight"}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"headless: not a whole model: its weights lack 'score\.weight'$"):
        RewardModel.load(folder)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"headless: cannot load it: [^\n]+$"):
        RewardModel.load(folder)
    folder = saved_reward(sft, tmp_path / "ensemble", other_offsets=(0.5,))
    assert RewardModel.load(folder).constants.num_models == 2
    shutil.rmtree(folder / "member-2")
    with pytest.raises(ModelError, match=r"ensemble/member-2: no such folder[^\n]+$"):
        RewardModel.load(folder)


def test_scores_are_in_full_precision_when_the_trunk_is_not(sft: Path, tmp_path: Path) -> None:
    """Rounded to bfloat16, scores between 2 and 4 would have steps of 1/64."""
    reward = RewardModel.load(saved_reward(sft, tmp_path), dtype="bfloat16")
    scores = reward.score([prompt(n) for n in range(8)], ["yes turn it slowly"] * 8)
    assert scores.dtype == torch.float32 and not torch.equal(scores, scores.bfloat16().float())


# --- what the scores are scaled by ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_corrections_are_no_samples_of_the_policy(sft: Path, tmp_path: Path) -> None:
    """The spread that scales rewards is of sampled responses, whether a labeler corrects them or not."""
    plain = [replace(p, responses=p.responses[:2], pairs=p.pairs[:1]) for p in PREFERENCES]
    corrected = [replace(p, responses=(*p.responses, "key key key key"), num_corrections=1) for p in plain]
    spreads = []
    for number, preferences in enumerate((plain, corrected)):
        run(sft, tmp_path / str(number), preferences, num_epochs=1)
        spreads.append(RewardModel.load(tmp_path / str(number) / "out" / "model").std)
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-6)
