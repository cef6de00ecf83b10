"""Snippets of ranked responses: where they may lie, what their loss is, that they teach a reward of whole responses."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_reward import PREFERENCES, prompt, run
from test_reward_model import settings

from cai.errors import ConfigError
from cai.records import digest_folder, read_json
from cai.rl.losses import bradley_terry_loss
from cai.rl.models import RewardModel, score_head
from cai.rl.reward_scores import snippet_rewards
from cai.rl.snippets import Snippets
from cai.rl.trainers import Group, collate_groups, in_snippets, train_reward
from cai.stages.reward import Reward

TEXTS = ["yes", "first take a key and turn it slowly", "no push the door"]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_models.word_tokenizer()
    folder = tmp_path_factory.mktemp("sft")
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder / "model")
    return folder


def group(reward: RewardModel) -> Group:
    rows = reward.encode([prompt(0)] * 3, TEXTS)
    labels = ([0, 0, 1], [1, 2, 2], [0.8, 1.0, 0.3], [2.0, 1.0, 0.5], [0.5, 0.0, 1.0])
    return Group([row.ids for row in rows], *labels, [row.num_prompt for row in rows])


# --- drawing ----------------------------------------------------------------------------------------------------------


@given(
    first=st.integers(1, 40), second=st.integers(1, 40), low=st.integers(1, 12), more=st.integers(0, 12),
    seed=st.integers(0, 2**62),
)  # fmt: skip
def test_snippets_lie_inside_and_are_equally_long(first: int, second: int, low: int, more: int, seed: int) -> None:
    snippets = Snippets(num=5, min_tokens=low, max_tokens=low + more)
    spans = snippets.draw(first, second, seed=seed)
    assert spans == snippets.draw(first, second, seed=seed) and len(spans) == 5
    shorter = min(first, second)
    for one, other, size in spans:
        assert min(low, shorter) <= size <= min(low + more, shorter)
        assert 0 <= one <= first - size and 0 <= other <= second - size


def test_all_places_and_lengths_are_drawn() -> None:
    spans = Snippets(num=2000, min_tokens=2, max_tokens=3).draw(4, 3, seed=1)
    assert {size for *_, size in spans} == {2, 3}
    assert {(one, other) for one, other, size in spans if size == 2} == {(i, j) for i in range(3) for j in range(2)}
    assert {(one, other) for one, other, size in spans if size == 3} == {(0, 0), (1, 0)}
    assert spans != Snippets(num=2000, min_tokens=2, max_tokens=3).draw(4, 3, seed=2)


def test_snippets_never_reach_into_the_prompt(sft: Path) -> None:
    whole = group(RewardModel.from_language_model(sft / "model", seed=1))
    cut = in_snippets(whole, Snippets(num=50, min_tokens=1, max_tokens=9), seed=3)
    assert cut == in_snippets(whole, Snippets(num=50, min_tokens=1, max_tokens=9), seed=3)
    assert len(cut.spans) == len(cut.first) == len(cut.p) == len(cut.weight) == len(cut.margin) == 150
    labels = list(zip(whole.first, whole.second, whole.p, whole.weight, whole.margin, strict=True))
    assert list(zip(cut.first, cut.second, cut.p, cut.weight, cut.margin, strict=True)) == [
        label for label in labels for _ in range(50)
    ]
    for i, j, (one, other, size) in zip(cut.first, cut.second, cut.spans, strict=True):
        for row, start in ((i, one), (j, other)):
            assert whole.starts[row] <= start and start + size <= len(whole.rows[row])
    ends = {one + size == len(whole.rows[i]) for i, (one, _, size) in zip(cut.first, cut.spans, strict=True)}
    assert ends == {True, False}  # the token that ends the turn is one of the response's


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_rewards_of_snippets_by_hand() -> None:
    outputs = torch.tensor([[9.0, 1.0, 2.0, 4.0], [9.0, 9.0, 3.0, 5.0]])
    where = (torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), torch.tensor([3, 1, 2]))
    assert snippet_rewards(outputs, *where, "sum").tolist() == [7.0, 2.0, 8.0]
    assert snippet_rewards(outputs, *where, "mean").tolist() == pytest.approx([7 / 3, 2.0, 4.0])


def test_a_batch_of_snippets() -> None:
    one = {"rows": [[1, 2, 3], [1, 4]], "first": [0, 0], "second": [1, 1], "p": [1.0, 1.0], "spans": [[1, 1, 1]] * 2}
    two = {"rows": [[5, 6], [5, 7]], "first": [0], "second": [1], "p": [0.0], "spans": [[0, 1, 1]]}
    batch = collate_groups([one, two], pad_id=0)
    assert batch["spans"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1]]
    assert batch["first"].tolist() == [0, 0, 2] and batch["weight"].tolist() == [0.5, 0.5, 1.0]
    assert "spans" not in collate_groups([{**one, "spans": []}], pad_id=0)


@pytest.mark.parametrize("head", ["sum", "mean"])
def test_the_first_loss_is_that_of_the_snippets(head: Any, sft: Path) -> None:
    """Against rewards that are read off the head's outputs one token at a time."""
    reward = RewardModel.from_language_model(sft / "model", seed=1, head=head)
    cut = in_snippets(group(reward), Snippets(num=4, min_tokens=1, max_tokens=4), seed=3)
    with torch.no_grad():
        states = [reward.model.base_model(torch.tensor([row])).last_hidden_state[0] for row in cut.rows]
        outputs = [score_head(reward.model)(state)[:, 0].tolist() for state in states]
    rewards, first, second = [], [], []
    for i, j, (one, other, size) in zip(cut.first, cut.second, cut.spans, strict=True):
        first.append(len(rewards))
        rewards.append(sum(outputs[i][one : one + size]) / (size if head == "mean" else 1))
        second.append(len(rewards))
        rewards.append(sum(outputs[j][other : other + size]) / (size if head == "mean" else 1))
    tensors = [torch.tensor(values) for values in (rewards, first, second, cut.p, cut.weight, cut.margin)]
    (row,) = train_reward(reward.model, reward.tokenizer, [cut], settings(num_epochs=1), head=head)
    assert row["loss"] == pytest.approx(float(bradley_terry_loss(*tensors)), rel=1e-5)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_snippets_teach_a_reward_of_whole_responses(sft: Path, tmp_path: Path) -> None:
    snippets = Snippets(num=4, min_tokens=1, max_tokens=4)
    facts = run(sft, tmp_path, head="mean", snippets=snippets, num_epochs=6)
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["log_loss"] < 0.95 * math.log(2) and facts["accuracy"] > 0.6
    assert facts["num_train_pairs"] + facts["num_held_out_pairs"] == sum(len(p.pairs) for p in PREFERENCES)
    assert RewardModel.load(tmp_path / "out" / "model").constants.head == "mean"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_other_snippets_others(sft: Path, tmp_path: Path) -> None:
    cases = [("a", 4), ("b", 4), ("c", 5)]
    for name, num in cases:
        run(sft, tmp_path / name, head="sum", snippets=Snippets(num=num), num_epochs=1, num_models=2)
    a, b, c = (digest_folder(tmp_path / name / "out") for name, _ in cases)
    assert a == b and a["model/model.safetensors"] != c["model/model.safetensors"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Snippets(num=0), "num: must be 1 or more, got 0"),
        (lambda: Snippets(min_tokens=0), r"min_tokens: must be from 1 to max_tokens \(16\), got 0"),
        (lambda: Snippets(min_tokens=17), r"min_tokens: must be from 1 to max_tokens \(16\), got 17"),
        (lambda: Reward(seed=0, snippets=Snippets()), "snippets: .* needs head sum or mean, got 'last'"),
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
