"""What PPO can do besides its default: other penalties, adaptive beta, shared trunk, PPO-ptx, early stops; resuming."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
from policies import PROMPTS, Lengths, count_of, inputs, run, trainer, weights
from torch import Tensor
from worlds import finished

from cai.errors import ConfigError, DataError, ModelError
from cai.models.loading import load_causal_lm
from cai.records import read_json, read_rows
from cai.rewards import ColumnReward, Part
from cai.rl.losses import adapted_beta, kl_k3
from cai.rl.models import Policy, Row, pack
from cai.rl.ppo import PPOTrainer
from cai.rl.values import SharedValue
from cai.stages.ppo import PPO

__all__ = ["inputs"]  # the fixture


class Text(NamedTuple):
    """A document."""

    kind: str
    ids: list[int]
    weights: list[float]


class Texts:
    """Documents that say the same few tokens, in other lengths; their first half has no weight."""

    def documents(self, seed: str, progress: float, num_tokens: int) -> Sequence[Text]:
        """Three of them."""
        return [Text("text", [1, *[9, 10] * n], [0.0] * n + [1.0] * (n + 1)) for n in (3, 5, 2)]

    def texts(self) -> dict[str, str]:
        """One."""
        return {"documents": "abc"}


def grown(made: PPOTrainer, num_updates: int = 3) -> Tensor:
    for _ in range(num_updates):
        made.update(PROMPTS)
    return torch.cat([weights(made.policy.model), *(p.detach().flatten() for p in made.value.parameters())])


# --- penalties and rewards --------------------------------------------------------------------------------------------


def test_beta_follows_its_target() -> None:
    """Ziegler et al. 2019: 256 of 10,000 episodes, error clipped to a fifth."""
    assert adapted_beta(0.1, 12.0, 6.0, 256, 10_000) == pytest.approx(0.1 * (1 + 0.2 * 0.0256))
    assert adapted_beta(0.1, 6.6, 6.0, 256, 10_000) == pytest.approx(0.1 * (1 + 0.1 * 0.0256))
    assert adapted_beta(0.1, -3.0, 6.0, 256, 10_000) == pytest.approx(0.1 * (1 - 0.2 * 0.0256))
    assert adapted_beta(0.1, 6.0, 6.0, 256, 10_000) == 0.1


def test_an_adaptive_beta_is_used_and_reported(tmp_path: Path) -> None:
    made = trainer(tmp_path, count_of(8), kl_target=3.0, kl_horizon=8, beta=0.5)
    first, second = made.update(PROMPTS).diagnostics, made.update(PROMPTS).diagnostics
    assert first["beta"] == 0.5
    assert second["beta"] == pytest.approx(adapted_beta(0.5, first["kl"], 3.0, 4, 8)) == pytest.approx(0.45, abs=0.01)


def test_the_penalty_can_be_k3(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"beta": 0.5, "lam": 1.0, "missing_eos_penalty": 0.0, "penalty": "k3"}
    made = trainer(tmp_path, lambda rows: torch.zeros(len(rows)), **changes)
    made.policy = Policy(tiny_models.llama(len(tiny_models.word_tokenizer()), seed=1))
    update = made.update(PROMPTS)
    charged = kl_k3(update.rollout.logp, update.logp_ref) * update.rollout.mask
    assert float(charged.min()) >= 0 and torch.allclose(update.returns[:, 0], -0.5 * charged.sum(1), atol=1e-4)


def test_scaled_scores_are_clipped_before_the_missing_end_is_charged(tmp_path: Path) -> None:
    scores = torch.tensor([-9.0, 0.2, 9.0, 0.5])
    changes = {"score_clip": 1.5, "beta": 0.0, "lam": 1.0, "missing_eos_penalty": 10.0, "max_new_tokens": 1}
    update = trainer(tmp_path, lambda rows: scores, reward_scale=2.0, stop_ids=(29,), **changes).update(PROMPTS)
    assert not update.rollout.finished.any()
    assert update.returns[:, 0].tolist() == pytest.approx([-11.5, -9.6, -8.5, -9.0])
    assert update.diagnostics["score_mean"] == pytest.approx(0.175)  # reported as they are


def test_a_score_that_is_not_finite_is_refused_and_nothing_is_learnt(tmp_path: Path) -> None:
    for wrong in (math.nan, math.inf):
        made = trainer(tmp_path, lambda rows, wrong=wrong: torch.tensor([0.5, wrong, 1.0, 2.0]))  # type: ignore[misc]
        before = weights(made.policy.model)
        with pytest.raises(ModelError, match=rf"rollout 1: 1 of 4 rewards are not finite, .* response 2: {wrong};"):
            made.update(PROMPTS)
        assert torch.equal(weights(made.policy.model), before)


def test_steps_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, count_of(8), learning_rate=1e30, num_epochs=3)
    with pytest.raises(ModelError, match=r"update 1: \w+ is (nan|inf): a smaller learning_rate may help"):
        made.update(PROMPTS)


def test_an_update_stops_when_it_is_too_far_from_its_rollout(tmp_path: Path) -> None:
    changes = {"num_epochs": 6, "learning_rate": 3e-2, "batch_size": 4, "minibatch_size": 2}
    free = trainer(tmp_path, count_of(8), **changes).update(PROMPTS).diagnostics
    held = trainer(tmp_path, count_of(8), stop_kl=0.02, **changes).update(PROMPTS).diagnostics
    assert free["num_steps"] == 12 and 1 <= held["num_steps"] < 12
    assert held["approx_kl"] <= 0.02 < free["approx_kl"]  # of the minibatches that were learnt from
    assert free["approx_kl"] > held["approx_kl"] and held["first_approx_kl"] < 1e-8


def test_tf_adam_takes_tensorflows_step(tmp_path: Path) -> None:
    """`lr_t m / (sqrt(v) + eps)` with `lr_t = lr sqrt(1 - b2^t) / (1 - b1^t)`, over three updates by hand."""
    made = trainer(tmp_path, count_of(8), tf_adam=True, max_grad_norm=1e9)
    (group,) = made.learner._optimizers[0].param_groups
    parameter, gradients = group["params"][0], []
    parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.detach().clone()))
    expected = parameter.detach().clone().double()
    for _ in range(3):
        made.update(PROMPTS)
    m = v = torch.zeros_like(expected)
    for step, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.double() ** 2
        rate = 1e-3 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        expected -= rate * m / (v.sqrt() + 1e-5)
    assert len(gradients) == 3 and torch.allclose(parameter.double(), expected, atol=1e-7)
    plain = trainer(tmp_path, count_of(8))
    assert grown(plain, 1).sub(grown(trainer(tmp_path, count_of(8), tf_adam=True), 1)).abs().max() > 1e-5


# --- the value on the policy's trunk ----------------------------------------------------------------------------------


def test_a_shared_value_starts_at_zero_and_costs_no_second_forward(tmp_path: Path) -> None:
    made = trainer(tmp_path, count_of(8), value="shared")
    batch = pack([Row([1, 4, 9, 8, 2], 3), Row([1, 5, 7], 2)])
    logp, values = made.value.both(made.policy, batch)
    assert torch.equal(logp, made.policy.logp(batch)) and values.shape == logp.shape and not values.any()
    calls: list[int] = []
    made.policy.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    made.value.both(made.policy, batch)
    assert len(calls) == 1
    assert made.update(PROMPTS).diagnostics["value_loss"] > 0
    assert made.value.values(batch).abs().max() > 0


def test_a_shared_value_learns_and_moves_the_trunk(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"value": "shared", "beta": 0.0, "value_clip": 10.0, "missing_eos_penalty": 0.0}
    changes |= {"batch_size": 64, "minibatch_size": 16, "num_updates": 20, "learning_rate": 5e-3}
    made = trainer(tmp_path, count_of(8), value_learning_rate=5e-2, **changes)
    updates = [made.update(PROMPTS * 16).diagnostics for _ in range(20)]
    assert updates[-1]["score_mean"] > 5 * updates[0]["score_mean"]
    assert max(update["explained_variance"] for update in updates[:12]) > 0.1
    weak = grown(trainer(tmp_path, count_of(8), value="shared", value_coefficient=1e-9), 1)
    strong = grown(trainer(tmp_path, count_of(8), value="shared", value_coefficient=1.0), 1)
    assert (weak - strong).abs().max() > 1e-4


def test_a_trunk_whose_logits_are_capped_is_not_shared() -> None:
    policy = Policy(tiny_models.llama(30))
    policy.has_plain_head = False
    with pytest.raises(ModelError, match="value=shared: LlamaForCausalLM does more to its logits"):
        SharedValue(policy, coefficient=0.1)


# --- PPO-ptx ----------------------------------------------------------------------------------------------------------


def test_without_a_coefficient_documents_change_nothing(tmp_path: Path) -> None:
    plain, zero = trainer(tmp_path, count_of(8)), trainer(tmp_path, count_of(8), ptx=Texts(), ptx_coefficient=0.0)
    assert torch.equal(grown(plain), grown(zero))


@pytest.mark.parametrize("max_batch_tokens", [4096, 8])
def test_the_gradient_is_ppos_plus_the_weighted_one_of_the_documents(tmp_path: Path, max_batch_tokens: int) -> None:
    """InstructGPT eq. 2; at temperature 1 whatever rollouts are sampled at, and however the documents are cut."""

    def gradient(coefficient: float) -> Tensor:
        changes: dict[str, Any] = {"ptx_coefficient": coefficient, "temperature": 0.7, "learning_rate": 1.0}
        made = trainer(tmp_path, count_of(8), ptx=Texts(), max_grad_norm=1e9, **changes)
        made.learner.max_tokens = max_batch_tokens
        made.learner._optimizers = [torch.optim.SGD(o.param_groups[0]["params"]) for o in made.learner._optimizers]
        before = weights(made.policy.model)
        made.update(PROMPTS)
        return before - weights(made.policy.model)

    model = tiny_models.llama(len(tiny_models.word_tokenizer()))
    total = torch.zeros(())
    for document in Texts().documents("", 0.0, 0):
        logps = model(torch.tensor([document.ids])).logits[0, :-1].log_softmax(-1)
        picked = logps.gather(1, torch.tensor(document.ids[1:])[:, None]).squeeze(1)
        total = total - (picked * torch.tensor(document.weights[1:])).sum()
    (total / sum(sum(d.weights[1:]) for d in Texts().documents("", 0.0, 0))).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(gradient(3.0) - gradient(0.0), 3.0 * expected, atol=2e-5)
    assert expected.abs().max() > 0.01


@pytest.mark.slow
def test_the_documents_are_not_forgotten(tmp_path: Path) -> None:
    losses = {}
    for coefficient in (0.0, 3.0):
        made = trainer(tmp_path, count_of(8), ptx=Texts(), ptx_coefficient=coefficient, learning_rate=3e-3)
        figures = [made.update(PROMPTS * 2).diagnostics for _ in range(12)]
        ids = torch.tensor([[1, *[9, 10] * 5]])
        with torch.no_grad():
            losses[coefficient] = float(made.policy.model(ids, labels=ids).loss)
    assert figures[-1]["ptx_loss"] < 0.5 * figures[0]["ptx_loss"] and losses[3.0] < 0.5 * losses[0.0]


# --- other rewards ----------------------------------------------------------------------------------------------------


def test_rewards_take_the_place_of_the_reward_model_and_are_logged_apart(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    words = ColumnReward(scorer=Lengths(), column="words")
    parts = [Part(name="long", weight=-0.5, reward=words), Part(name="learnt", weight=2.0)]
    changes: dict[str, Any] = {"num_updates": 1, "beta": 0.0, "missing_eos_penalty": 0.0, "scorer": Lengths()}
    run(inputs, tmp_path / "plain", **changes)
    run(inputs, tmp_path / "parts", rewards=parts, **changes)
    plain, row = (read_rows(tmp_path / name / "curve.jsonl")[0] for name in ("plain", "parts"))
    assert row["reward_long"] == row["words"] == plain["words"]
    assert row["reward_learnt"] == pytest.approx(plain["score_mean"])
    assert (
        row["score_mean"] == row["objective"] == pytest.approx(2 * plain["score_mean"] - 0.5 * plain["words"], rel=1e-5)
    )
    assert PPO(seed=0, rewards=parts).texts() == {"rewards.long.scorer": "abc"}
    with pytest.raises(ConfigError, match="rewards: names must differ, got a, a"):
        PPO(seed=0, rewards=[Part(name="a"), Part(name="a")])


# --- going on after a kill --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"value": "shared"}, {"kl_target": 1.0, "kl_horizon": 8, "tf_adam": True}])
def test_a_trainer_goes_on_from_its_state(changes: dict[str, Any], tmp_path: Path) -> None:
    changes = {"batch_size": 4, "minibatch_size": 2, "num_warmup_updates": 3, **changes}
    whole = grown(trainer(tmp_path, count_of(8), **changes), 4)
    first = trainer(tmp_path, count_of(8), **changes)
    grown(first, 2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = trainer(tmp_path, count_of(8), **changes)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(grown(second, 2), whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["none", "newest gone", "newest cut", "all gone"])
def test_a_killed_stage_ends_with_the_same_bytes(
    damage: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    changes: dict[str, Any] = {"num_updates": 6, "checkpoint_every": 2, "scorer": Lengths(), "validate_every": 2}
    changes |= {"num_validation": 3, "select_by": "words", "kl_target": 1.0}
    run(inputs, tmp_path / "whole", **changes)
    done, update = [0], PPOTrainer.update

    def dying(self: PPOTrainer, prompts: Sequence[list[int]]) -> Any:
        done[0] += 1
        if done[0] == 6:
            raise KeyboardInterrupt
        return update(self, prompts)

    monkeypatch.setattr(PPOTrainer, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut", **changes)
    files = sorted((tmp_path / "cut" / "checkpoints.journal").glob("*.pt"))
    assert [file.stem for file in files] == ["00000002", "00000004"]
    for file in {"none": [], "all gone": files}.get(damage, files[1:]):
        file.unlink() if "gone" in damage else file.write_bytes(file.read_bytes()[:-9])
    PPO(**{"seed": 0, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "device": "cpu"} | changes).run(
        inputs, tmp_path / "cut"
    )
    assert done[0] == 6 + {"none": 2, "all gone": 6}.get(damage, 4)  # from the last good point on
    kept = [
        {name: digest for name, digest in finished(tmp_path / folder).items() if "checkpoints" not in name}
        for folder in ("cut", "whole")
    ]
    assert kept[0] == kept[1] and {"model/model.safetensors", "curve.jsonl", "ppo.json"} <= kept[0].keys()
    assert ("checkpoint" in capsys.readouterr().err or "starts over" in damage) == (damage != "none")


# --- which policy is kept ---------------------------------------------------------------------------------------------


def test_the_policy_that_held_out_prompts_like_best_is_kept(inputs: dict[str, Path], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_updates": 6, "learning_rate": 3e-2, "validate_every": 1, "num_validation": 4}
    facts = run(inputs, tmp_path / "out", scorer=Lengths(), select_by="words", **changes)
    curve = read_rows(tmp_path / "out" / "curve.jsonl")
    words = [row["validation_words"] for row in curve]
    kept = read_json(tmp_path / "out" / "ppo.json")["kept_update"]
    assert kept == words.index(max(words)) + 1 and len(set(words)) > 1
    assert {"validation_score_mean", "validation_never"} <= curve[0].keys()
    run(inputs, tmp_path / "short", scorer=Lengths(), **{**changes, "num_updates": kept, "schedule": "constant"})
    models = [weights(load_causal_lm(tmp_path / name / "model")) for name in ("out", "short")]
    assert torch.equal(*models)
    assert facts["num_episodes"] == 48
    with pytest.raises(ConfigError, match="select_by: unknown column 'wrods'; did you mean 'words'"):
        PPO(seed=0, scorer=Lengths(), select_by="wrods", validate_every=1)
    with pytest.raises(ConfigError, match="select_by: needs validate_every"):
        PPO(seed=0, scorer=Lengths(), select_by="words")
    with pytest.raises(ConfigError, match=r"ptx: ptx_coefficient is 1\.0, but there are no documents"):
        PPO(seed=0, ptx_coefficient=1.0)
    with pytest.raises(DataError, match="10 prompts to learn from; num_validation 10 are held out"):
        run(inputs, tmp_path / "none", validate_every=1, num_validation=10)
