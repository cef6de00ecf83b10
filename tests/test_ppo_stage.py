"""The stage that trains with PPO: what it writes, how it scales and orders, what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from policies import Lengths, inputs, run, weights

from cai.errors import ConfigError, DataError, ModelError
from cai.models.loading import encode_dialogue, load_causal_lm, load_tokenizer
from cai.records import digest_folder, read_records, read_rows, write_records
from cai.rl.sampler import prompt_order
from cai.stages.ppo import PPO
from cai.types import Prompt

__all__ = ["inputs"]  # fixture


def test_the_stage_writes_a_policy_and_its_curve(inputs: dict[str, Path], tmp_path: Path) -> None:
    facts = run(inputs, tmp_path / "out", scorer=Lengths())
    curve = read_rows(tmp_path / "out" / "curve.jsonl")
    assert [row["update"] for row in curve] == [1, 2, 3]
    assert set(curve[0]) == {
        "update", "score_mean", "score_std", "objective", "kl", "kl_per_token", "kl_k3", "entropy",
        "explained_variance", "num_response_tokens", "eos_rate", "beta", "policy_loss", "value_loss", "clipfrac",
        "value_clipfrac", "approx_kl", "first_approx_kl", "num_steps", "policy_grad_norm", "value_grad_norm",
        "learning_rate", "words", "benign_words", "never",
    }  # fmt: skip
    assert abs(curve[0]["kl"]) < 1e-4 < abs(curve[-1]["kl"]) and curve[0]["never"] is None
    assert curve[0]["words"] > 0 and curve[0]["benign_words"] != curve[0]["words"]
    assert facts["score"] == curve[-1]["score_mean"] and facts["num_episodes"] == 24
    assert set(digest_folder(tmp_path / "out")) >= {"model/model.safetensors", "model/tokenizer.json", "curve.jsonl"}
    trained, base = (load_causal_lm(folder / "model") for folder in (tmp_path / "out", inputs["sft"]))
    assert (weights(trained) - weights(base)).abs().max() > 1e-4


def test_the_value_is_fitted_unless_told_otherwise(inputs: dict[str, Path], tmp_path: Path) -> None:
    """One more batch is sampled for it, and the first update's values are those of the fit."""
    facts = {
        name: run(inputs, tmp_path / str(name), num_updates=1, batch_size=64, fit_value=name) for name in (True, False)
    }
    fitted, plain = (read_rows(tmp_path / name / "curve.jsonl")[0] for name in ("True", "False"))
    assert fitted["score_mean"] == plain["score_mean"], "the first rollout is the same"
    assert plain["explained_variance"] < fitted["explained_variance"]
    assert facts[True]["num_tokens"] > 1.5 * facts[False]["num_tokens"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_a_scorer_changes_none(inputs: dict[str, Path], tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {}, {"scorer": Lengths()}, {"seed": 1}]
    for number, change in enumerate(changes):
        run(inputs, tmp_path / str(number), **change)
    digests = [digest_folder(tmp_path / str(number)) for number in range(4)]
    assert digests[0] == digests[1]
    models = [digest["model/model.safetensors"] for digest in digests]
    assert models[0] == models[2] != models[3]


def test_rewards_are_scaled_by_their_spread_and_keep_their_mean(inputs: dict[str, Path], tmp_path: Path) -> None:
    """The reward model says std .5: scores count double in the objective, and are reported as they are."""
    run(inputs, tmp_path / "a", beta=0.0, missing_eos_penalty=0.0, num_updates=1)
    run(inputs, tmp_path / "b", beta=0.0, missing_eos_penalty=0.0, num_updates=1, scale_rewards=False)
    scaled, plain = (read_rows(tmp_path / name / "curve.jsonl")[0] for name in "ab")
    assert scaled["score_mean"] == plain["score_mean"] != 0
    assert scaled["objective"] == pytest.approx(2 * plain["objective"]) == pytest.approx(2 * scaled["score_mean"])


def test_prompts_come_round_in_epochs() -> None:
    order = prompt_order(7, seed=0)
    epochs = [[next(order) for _ in range(7)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = prompt_order(7, seed=0)
    whole = [i for epoch in epochs for i in epoch]
    assert [next(again) for _ in range(21)] == whole
    for skip in (0, 3, 7, 16):
        later = prompt_order(7, seed=0, skip=skip)
        assert [next(later) for _ in range(21 - skip)] == whole[skip:]


def encoded(inputs: dict[str, Path]) -> list[list[int]]:
    tokenizer = load_tokenizer(inputs["sft"] / "model")
    prompts = read_records(inputs["data"] / "rl.jsonl", Prompt)
    return [encode_dialogue(tokenizer, prompt.turns)[0] for prompt in prompts]


def test_errors(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"minibatch_size: must divide batch_size \(8\), got 3"):
        PPO(seed=0, batch_size=8, minibatch_size=3)
    with pytest.raises(ConfigError, match=r"lam: must be at most 1"):
        PPO(seed=0, lam=1.5)
    with pytest.raises(ConfigError, match=r"temperature: must be above 0"):
        PPO(seed=0, temperature=0.0)

    class Clash(Lengths):
        columns = ("words", "kl")

    with pytest.raises(ConfigError, match="column 'kl' has the name of a diagnostic"):
        PPO(seed=0, scorer=Clash())
    with pytest.raises(ModelError, match="unknown device 'cudaa'; did you mean 'cuda'"):
        PPO(seed=0, device="cudaa")
    with pytest.raises(DataError, match=r"rl\.jsonl: the longest prompt has \d+ tokens, which with"):
        run(inputs, tmp_path / "long", max_new_tokens=511)
    longest = max(len(ids) for ids in encoded(inputs))
    with pytest.raises(DataError, match=r"and the end-of-turn token is more than the model's context of 512"):
        run(inputs, tmp_path / "full", max_new_tokens=512 - longest)  # which closes a response that was cut off
    run(inputs, tmp_path / "fits", max_new_tokens=511 - longest, num_updates=1)
    write_records(tmp_path / "data" / "rl.jsonl", [])
    with pytest.raises(DataError, match=r"rl\.jsonl: no prompts"):
        run(inputs | {"data": tmp_path / "data"}, tmp_path / "b")
