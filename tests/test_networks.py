"""The networks of PPO: what is loaded, what memory that needs, and all of them over one base."""

import math
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import test_reward
import tiny_models
import torch
from adapters import LORA, adapted, inputs, ppo, same, snapshot
from policies import END, PROMPTS, count_of, rows_of, settings
from test_ppo_options import Texts
from test_resume import digests
from torch import Tensor
from transformers import PreTrainedModel

from cai import config
from cai.errors import ConfigError, ModelError
from cai.models.loading import load_causal_lm
from cai.models.lora import (
    trained_parameters,
    trained_state,
)
from cai.rl.memory import Budget, budget
from cai.rl.models import Policy, RewardModel, Row, pack, score_head
from cai.rl.networks import Networks, OneBase, load_networks, save_policy
from cai.rl.ppo import PPOTrainer
from cai.rl.settings import PPOSettings
from cai.rl.values import ValueModel
from cai.stages.ppo import PPO
from cai.stages.reward import Reward

__all__ = ["inputs"]  # the fixture


# --- what is loaded ---------------------------------------------------------------------------------------------------


def loaded(inputs: dict[str, Path], **changes: Any) -> Networks:
    paths = inputs["sft"] / "model", inputs["reward"] / "model"
    return load_networks(settings(device="cpu", **changes), *paths, longest_prompt=9, scaled=True)


def ensemble(inputs: dict[str, Path], folder: Path) -> dict[str, Path]:
    """A reward model of three, with a gain."""
    models = [RewardModel.from_language_model(inputs["sft"] / "model", seed=seed) for seed in range(3)]
    others, constants = [model.model for model in models[1:]], {"offset": 0.25, "std": 0.5, "gain": 3.0}
    made = RewardModel(models[0].model, models[0].tokenizer, others=others, other_offsets=(0.0, 0.0), **constants)
    made.save(folder / "model")
    return inputs | {"reward": folder}


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded(inputs)
    assert re.fullmatch(r"ppo: needs about \d+ MiB \(networks .*\d GiB free\n", capsys.readouterr().err)
    monkeypatch.setattr("cai.rl.networks.free_bytes", lambda device: 1000)
    monkeypatch.setattr("cai.rl.networks.load_causal_lm", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.setattr(OneBase, "__init__", lambda *_: pytest.fail("was loaded"))
    for rank in (0, 4):
        with pytest.raises(ModelError, match=r"0 MiB free: a smaller model, adapters \(lora_rank\)"):
            loaded(inputs, lora_rank=rank)


@pytest.mark.parametrize("changes", [{}, {"value": "shared"}, LORA], ids=["apart", "shared", "one base"])
def test_the_budget_is_what_the_networks_take(
    changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained weights four times (gradients, two moments), all others once; an ensemble whole."""
    told: list[Budget] = []
    monkeypatch.setattr("cai.rl.networks.check_budget", lambda needed, free: str(told.append(needed)))
    made = loaded(inputs if changes is LORA else ensemble(inputs, tmp_path), **changes)
    networks = [made.policy.model, made.reference.model, made.reward.model, *made.reward.others]
    if isinstance(made.value, ValueModel):
        networks.append(made.value.model)
    trained = {p.data_ptr(): p.numel() for net in (made.policy, made.value) for p in net.parameters()}
    everything = {p.data_ptr(): p.numel() for model in networks for p in model.parameters()}
    real = 4 * (sum(everything.values()) + 3 * sum(trained.values()))
    assert told[0].networks == pytest.approx(real, rel=0.03)  # reward models have no output head, but a scalar one


def test_a_value_network_starts_as_the_first_reward_model_scaled(inputs: dict[str, Path], tmp_path: Path) -> None:
    made = loaded(ensemble(inputs, tmp_path))
    assert isinstance(made.value, ValueModel) and made.reward_scale == 1 / 0.5
    heads = score_head(made.value.model).weight, score_head(made.reward.model).weight
    for mine, scorers in zip(made.value.model.parameters(), made.reward.model.parameters(), strict=True):
        assert (mine is heads[0] or torch.equal(mine, scorers)) and mine.data_ptr() != scorers.data_ptr()
    factor = 3.0 / 0.5  # gain and spread: it starts as the scaled reward model
    assert torch.allclose(heads[0], factor * heads[1]) and made.value.offset == factor * 0.25


@pytest.mark.parametrize("changes", [{}, {"value": "shared"}, LORA], ids=["apart", "shared", "one base"])
def test_activation_checkpointing_is_for_what_is_trained(changes: dict[str, Any], inputs: dict[str, Path]) -> None:
    plain, made = loaded(inputs, **changes), loaded(inputs, activation_checkpointing=True, **changes)

    def recomputes(model: PreTrainedModel) -> bool:
        return bool(model.base_model.gradient_checkpointing)  # type: ignore[union-attr]

    assert recomputes(made.policy.model) and not recomputes(plain.policy.model)
    assert not recomputes(made.reference.model) and not recomputes(made.reward.model)
    if isinstance(made.value, ValueModel):
        assert recomputes(made.value.model)


def test_values_are_in_full_precision_under_autocast(inputs: dict[str, Path]) -> None:
    value = loaded(inputs).value
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        values = value.values(pack(rows_of([(3, 5), (1, 4)])))
    assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())


# --- one base under all networks --------------------------------------------------------------------------------------


def over_one_base(
    inputs: dict[str, Path], reward: Callable[..., Tensor] | None = None, ptx: Texts | None = None, **changes: Any
) -> PPOTrainer:
    given = settings(device="cpu", **{**LORA, **changes})
    paths = inputs["sft"] / "model", inputs["reward"] / "model"
    made = load_networks(given, *paths, longest_prompt=9, scaled=False)
    return PPOTrainer(
        policy=made.policy,
        reference=made.reference,
        value=made.value,
        reward=reward or made.reward.score_rows,
        reward_scale=made.reward_scale,
        stop_ids=[END],
        settings=given,
        ptx=ptx,
    )


def test_there_is_one_copy_of_the_weights(inputs: dict[str, Path]) -> None:
    given = settings(device="cpu", **LORA)
    made = load_networks(given, inputs["sft"] / "model", inputs["reward"] / "model", longest_prompt=9, scaled=False)
    models = [made.policy.model, made.reference.model, made.value.model, made.reward.model]  # type: ignore[union-attr]
    distinct = {p.data_ptr(): p.numel() for model in models for p in model.parameters()}
    base = sum(p.numel() for p in load_causal_lm(inputs["sft"] / "model").parameters())
    adapter = sum(p.numel() for p in made.policy.parameters())
    assert sum(distinct.values()) == base + 3 * adapter + 2 * 32  # two heads
    trained = [sum(p.numel() for p in network.parameters()) for network in (made.policy, made.value)]
    assert trained == [adapter, adapter + 32] and not any(True for _ in trained_parameters(made.reward.model))


def test_before_the_first_step_nothing_differs(inputs: dict[str, Path]) -> None:
    """Ratio 1, KL 0; the reward is the merged reward model's, and the value beyond a response is its score."""
    made = over_one_base(inputs)
    figures = made.update(PROMPTS).diagnostics
    assert figures["first_approx_kl"] < 1e-10 and figures["clipfrac"] == 0 and abs(figures["kl"]) < 1e-4
    assert abs(figures["policy_loss"]) < 1e-5
    made = over_one_base(inputs)
    rows, reward = rows_of([(3, 4), (1, 2), (5, 1)]), RewardModel.load(inputs["reward"] / "model")
    scores = reward.score_rows(rows)
    assert torch.allclose(made.reward(rows), scores, atol=1e-5)
    with torch.no_grad():
        values = [made.value.values(pack([Row([*row.ids, 9], row.num_prompt)]))[-1] for row in rows]
        batch = pack(rows)
        assert torch.equal(made.policy.logp(batch), made.reference.logp(batch))
    assert torch.allclose(torch.stack(values), scores, atol=1e-5) and float(scores.std()) > 0.01


def test_updates_leave_the_base_and_the_reward_model_alone(inputs: dict[str, Path]) -> None:
    given = {"learning_rate": 1e-2, "value_learning_rate": 1e-2, "ptx_coefficient": 0.0}
    made = over_one_base(inputs, **given)
    rows = rows_of([(3, 4), (1, 2)])
    before, scores = snapshot(made.reference.model), made.reward(rows)
    start = trained_state(made.policy.model), trained_state(made.value.model)  # type: ignore[union-attr]
    start = tuple({name: tensor.clone() for name, tensor in state.items()} for state in start)
    for _ in range(2):
        made.update(PROMPTS)
    assert same(before, snapshot(made.reference.model)) and torch.equal(made.reward(rows), scores)
    on_disk = load_causal_lm(inputs["sft"] / "model").state_dict()
    assert same(on_disk, made.reference.model.state_dict())
    after = trained_state(made.policy.model), trained_state(made.value.model)  # type: ignore[union-attr]
    for old, new in zip(start, after, strict=True):
        assert all(not torch.equal(tensor, new[name]) for name, tensor in old.items())


@pytest.mark.parametrize("value", ["reward_model", pytest.param("shared", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_token_that_pays_is_learnt(value: str, inputs: dict[str, Path]) -> None:
    """As without adapters: eight tokens of `key` are the optimum, chance is a thirtieth of that."""
    made = over_one_base(
        inputs, count_of(8), value=value, beta=0.0, learning_rate=2e-2, value_learning_rate=2e-2, batch_size=64,
        missing_eos_penalty=0.0, minibatch_size=16, value_clip=10.0, num_updates=20,
    )  # fmt: skip
    scores = [made.update(PROMPTS * 16).diagnostics["score_mean"] for _ in range(20)]
    assert scores[0] < 1.5 and scores[-1] > 6.5


def test_documents_are_mixed_in(inputs: dict[str, Path]) -> None:
    made = over_one_base(inputs, ptx=Texts(), ptx_coefficient=3.0, learning_rate=2e-2)
    before = snapshot(made.reference.model)
    losses = [made.update(PROMPTS).diagnostics["ptx_loss"] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0] and same(before, snapshot(made.reference.model))


@pytest.mark.slow
def test_the_one_step_bandit_reaches_what_an_adapter_can(inputs: dict[str, Path]) -> None:
    """The optimum of E[r] - KL among policies that are the base with an adapter, found by its exact gradient."""
    rewards = torch.sin(torch.arange(len(tiny_models.word_tokenizer())) * 2.0)
    made = over_one_base(
        inputs, lambda rows: rewards[[row.ids[row.num_prompt] for row in rows]], beta=1.0, max_new_tokens=1,
        missing_eos_penalty=0.0, batch_size=128, minibatch_size=64, num_updates=30, learning_rate=2e-2,
        value_learning_rate=2e-2, schedule="linear", value_clip=10.0,
    )  # fmt: skip

    def logp(model: PreTrainedModel) -> Tensor:
        return model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)

    reference = logp(made.reference.model).detach()
    optimum = (reference + rewards).log_softmax(-1)  # of all policies

    def regret(model: PreTrainedModel) -> Tensor:
        return (logp(model).exp() * (logp(model) - optimum)).sum()

    exact = adapted(made.reference.model, learnt=False)
    optimizer = torch.optim.Adam(trained_parameters(exact), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        regret(exact).backward()
        optimizer.step()
    for _ in range(30):
        made.update([PROMPTS[0]] * 128)
    start, best, reached = (float(regret(model).detach()) for model in (made.reference.model, exact, made.policy.model))
    assert start > 0.1 > 0.03 > best and reached - best < 0.03 * start


def test_half_precision_runs_with_adapters_in_full(inputs: dict[str, Path]) -> None:
    made = over_one_base(inputs, dtype="bfloat16", learning_rate=1e-2)
    assert made.reference.model.dtype == torch.bfloat16
    assert {p.dtype for p in (*made.policy.parameters(), *made.value.parameters())} == {torch.float32}
    figures = [made.update(PROMPTS).diagnostics for _ in range(2)]
    assert all(math.isfinite(row[name]) for row in figures for name in ("policy_loss", "value_loss", "score_mean"))
    assert abs(figures[0]["kl"]) < 0.5


@pytest.mark.slow
def test_an_ensemble_of_adapters_scores_as_its_merged_models_do(inputs: dict[str, Path], tmp_path: Path) -> None:
    test_reward.run(inputs["sft"], tmp_path, num_epochs=1, num_models=2, pessimism=0.5, learning_rate=1e-2, **LORA)
    given = settings(device="cpu", **LORA)
    source = OneBase(given, inputs["sft"] / "model", tmp_path / "out" / "model", "cpu")
    reward, merged, rows = source.reward(), RewardModel.load(tmp_path / "out" / "model"), rows_of([(3, 5), (7, 2)])
    raw = merged.raw_scores(rows)
    assert (
        torch.allclose(reward.raw_scores(rows), raw, atol=1e-5) and len({round(v, 3) for v in raw[:, 0].tolist()}) == 2
    )
    assert torch.allclose(reward.score_rows(rows), merged.score_rows(rows), atol=1e-5)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_saves_a_plain_policy(inputs: dict[str, Path], tmp_path: Path) -> None:
    facts = ppo(inputs, tmp_path / "out", validate_every=1, num_validation=2, select_by="score_mean")
    base, policy = (load_causal_lm(folder / "model") for folder in (inputs["sft"], tmp_path / "out"))
    moved = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, policy.state_dict()[name])}
    assert moved == {name for name in base.state_dict() if "_proj" in name}
    assert {p.name for p in (tmp_path / "out" / "model").iterdir()} == {
        p.name for p in (inputs["sft"] / "model").iterdir()
    }
    full = ppo(inputs, tmp_path / "full", lora_rank=0)
    assert 0 < facts["flops"] < full["flops"]


def test_the_saved_policy_is_the_one_that_was_trained(inputs: dict[str, Path], tmp_path: Path) -> None:
    made = over_one_base(inputs, learning_rate=1e-2)
    for _ in range(3):
        made.update(PROMPTS)
    tokenizer = RewardModel.load(inputs["reward"] / "model").tokenizer
    save_policy(made.policy, made.settings, inputs["sft"] / "model", tokenizer, tmp_path / "model")
    batch, saved = pack(rows_of([(3, 5), (1, 4)])), Policy(load_causal_lm(tmp_path / "model"))
    with torch.no_grad():
        logp = made.policy.logp(batch)
        assert (saved.logp(batch) - logp).abs().max() < 1e-5 < (made.reference.logp(batch) - logp).abs().max()


@pytest.mark.parametrize("changes", [{}, pytest.param({"value": "shared"}, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bytes(
    changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"num_updates": 5, "checkpoint_every": 2, "kl_target": 1.0, "validate_every": 2, **changes}
    changes |= {"num_validation": 2, "select_by": "score_mean"}
    ppo(inputs, tmp_path / "whole", **changes)
    update, done = PPOTrainer.update, [0]

    def dying(self: PPOTrainer, prompts: Any) -> Any:
        done[0] += 1
        if done[0] in (2, 5):
            raise KeyboardInterrupt
        return update(self, prompts)

    monkeypatch.setattr(PPOTrainer, "update", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ppo(inputs, tmp_path / "cut", **changes)
    state = torch.load(min((tmp_path / "cut" / "checkpoints.journal").glob("*.pt")), weights_only=True)
    weights = state["trainer"]["learner"]
    assert all("lora" in name for name in weights["policy"]), "frozen weights need no checkpoint"
    value = weights["value"].get("model", weights["value"])
    assert all("lora" in name or name in ("score.weight", "weight", "bias") for name in value)
    ppo(inputs, tmp_path / "cut", **changes)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole") and done[0] > 7


def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (PPO, Reward):
        with pytest.raises(ConfigError, match="lora_rank: must be 0 or more, got -1"):
            stage(seed=0, lora_rank=-1)
        with pytest.raises(ConfigError, match="lora_alpha: must be above 0, got 0"):
            stage(seed=0, lora_rank=4, lora_alpha=0)
        assert stage(seed=0).texts() == {} and list(stage(seed=0, lora_rank=4).texts()) == ["peft"]

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("cai.rl.settings.version", missing)
    with pytest.raises(
        ConfigError, match=r"lora_rank: 4 needs peft, which is not installed: pip install 'cai\[lora\]'"
    ):
        PPO(seed=0, lora_rank=4)
    assert PPO(seed=0).lora_rank == 0


def test_one_key_asks_for_adapters_in_both_stages() -> None:
    chosen = config.compose(["reward.lora_rank=8"])
    assert chosen.reward["lora_rank"] == chosen.rl["lora_rank"] == 8
    assert config.compose(["reward.lora_rank=8", "rl.lora_rank=0"]).rl["lora_rank"] == 0
    with pytest.raises(ConfigError, match=r"rl\.lora_rank: with 8 .*; set reward\.lora_rank, or rl\.lora_rank=0"):
        config.compose(["rl.lora_rank=8"])


def test_the_memory_budget_counts_the_base_once() -> None:
    """A pencil: the base, an adapter for the reward model, and two adapters with a gradient and two moments."""
    model = tiny_models.llama(30)
    given = PPOSettings(seed=0, lora_rank=4)
    found = budget(given, model.config, 1100, num_frozen=1000, longest_prompt=5, max_tokens=9)
    assert found.networks == 4 * 1000 + 4 * 100 + 2 * 16 * 100
    half = budget(PPOSettings(seed=0, lora_rank=4, dtype="bfloat16"), model.config, 1100, num_frozen=1000,
                  longest_prompt=5, max_tokens=9)  # fmt: skip
    assert half.networks == 2 * 1000 + 4 * 100 + 2 * 16 * 100
