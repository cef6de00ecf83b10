"""PPO on tiny models: exact log-probabilities, invariances, known optima, and the stage."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, PreTrainedModel

from cai.errors import ConfigError, DataError, ModelError
from cai.models.documents import Documents
from cai.models.loading import encode_dialogue, load_causal_lm, load_tokenizer
from cai.records import digest_folder, read_records, read_rows, write_records
from cai.rl.learner import rate_factor
from cai.rl.models import Policy, RewardModel, Row, pack, plan_batches, score_head
from cai.rl.ppo import PPOTrainer
from cai.rl.rollout import sample_responses
from cai.rl.sampler import prompt_order
from cai.rl.settings import DIAGNOSTICS, PPOSettings
from cai.rl.values import SharedValue, ValueModel
from cai.stages.ppo import PPO
from cai.types import Prompt, Turn

END = 2
PROMPTS = [[1, 4, 9, 12], [1, 4, 7, 8, 10, 5], [1, 5], [1, 4, 11, 5, 6, 6, 7]]


def rows_of(lengths: Sequence[tuple[int, int]], vocabulary: int = 30) -> list[Row]:
    """Random rows with these numbers of prompt and response tokens."""
    generator = torch.Generator().manual_seed(0)
    return [Row(torch.randint(vocabulary, (p + r,), generator=generator).tolist(), p) for p, r in lengths]


def settings(**changes: Any) -> PPOSettings:
    numbers: dict[str, Any] = {"seed": 0, "num_updates": 10, "batch_size": 4, "minibatch_size": 4, "num_epochs": 1}
    numbers |= {"learning_rate": 1e-3, "value_learning_rate": 1e-3, "schedule": "constant", "num_warmup_updates": 0}
    numbers |= {"max_grad_norm": 1.0, "beta": 0.1, "clip": 0.2, "value_clip": 0.2, "lam": 0.95, "max_new_tokens": 8}
    numbers |= {"temperature": 1.0, "missing_eos_penalty": 1.0, "scale_rewards": False, "max_batch_tokens": 4096}
    return PPOSettings(**{**numbers, "dtype": "float32", **changes})


def value_model(folder: Path, **constants: float) -> ValueModel:
    """A value network on the trunk of the tiny policy."""
    if not (folder / "config.json").exists():
        tokenizer = tiny_models.word_tokenizer()
        tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder)
    model = RewardModel.from_language_model(folder, seed=0).model
    return ValueModel(model, **{"offset": 0.0, "scale": 1.0, **constants})


def trainer(
    folder: Path,
    reward: Callable[[Sequence[Row]], Tensor],
    *,
    reward_scale: float = 1.0,
    stop_ids: Sequence[int] = (END,),
    ptx: Documents | None = None,
    **changes: Any,
) -> PPOTrainer:
    size, given = len(tiny_models.word_tokenizer()), settings(**changes)
    policy = Policy(tiny_models.llama(size), temperature=given.temperature)
    shared = given.value == "shared"
    return PPOTrainer(
        policy=policy,
        reference=Policy(tiny_models.llama(size), temperature=given.temperature),
        value=SharedValue(policy, coefficient=given.value_coefficient) if shared else value_model(folder),
        reward=reward,
        reward_scale=reward_scale,
        stop_ids=stop_ids,
        settings=given,
        ptx=ptx,
    )


def count_of(token: int) -> Callable[[Sequence[Row]], Tensor]:
    """A reward: how often the response has `token`."""
    return lambda rows: torch.tensor([float(row.ids[row.num_prompt :].count(token)) for row in rows])


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- log-probabilities and values -------------------------------------------------------------------------------------


def gemma2(vocabulary: int) -> PreTrainedModel:
    """Caps its logits, which its output head does not show."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0, initializer_range=0.3,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def granite(vocabulary: int) -> PreTrainedModel:
    """Divides its logits."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=3.0, initializer_range=0.3,
    )  # fmt: skip
    return GraniteForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_models.llama, gemma2, granite])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logps_are_those_of_single_rows(make: Callable[[int], PreTrainedModel], temperature: float) -> None:
    """Unequal lengths, a one-token prompt and response, and padding (id 0) that is also a real token here."""
    model, rows = make(30), rows_of([(3, 5), (1, 1), (7, 2), (2, 9)])
    rows[0].ids[-1] = rows[1].ids[-1] = 0
    with torch.no_grad():
        packed = Policy(model, temperature=temperature).logp(pack(rows))
    singles = [tiny_models.full_logps(model, row.ids, temperature)[row.num_prompt - 1 :] for row in rows]
    assert torch.allclose(packed.double(), torch.cat(singles), atol=1e-5)


def test_values_are_read_before_each_response_token(tmp_path: Path) -> None:
    value, rows = value_model(tmp_path, offset=0.5, scale=2.0), rows_of([(3, 4), (1, 2), (5, 1)])
    with torch.no_grad():
        packed = value.values(pack(rows))
        expected = []
        for row in rows:
            hidden = value.model.base_model(torch.tensor([row.ids])).last_hidden_state[0]
            prefixes = hidden[row.num_prompt - 1 : -1]
            expected.append((score_head(value.model)(prefixes).squeeze(-1) + 0.5) * 2.0)
    assert torch.allclose(packed, torch.cat(expected), atol=1e-5)


def test_a_value_network_starts_as_the_scaled_reward_model(tmp_path: Path) -> None:
    """One token beyond a response, the value of the prefix that is the whole response is its scaled score."""
    value = value_model(tmp_path, offset=0.5, scale=2.0)
    reward = RewardModel(value.model, tiny_models.word_tokenizer(), offset=0.5)
    row = rows_of([(3, 4)])[0]
    with torch.no_grad():
        value_at_end = value.values(pack([Row([*row.ids, 9], row.num_prompt)]))[-1]
    assert float(value_at_end) == pytest.approx(2 * float(reward.score_rows([row])), abs=1e-5)


def test_batches_are_planned_within_their_budget() -> None:
    lengths = [5, 9, 1, 7, 7, 3, 30]
    batches = plan_batches(lengths, max_tokens=21)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 21 for batch in batches if len(batch) > 1)
    assert batches == [[2, 5, 0], [3, 4], [1], [6]]


# --- rollouts ---------------------------------------------------------------------------------------------------------


def roll(policy: Policy, seeds: Sequence[int], prompts: list[list[int]] = PROMPTS, **changes: Any) -> Any:
    given = {"max_new_tokens": 8, "stop_ids": [END], "max_batch_tokens": 4096} | changes
    return sample_responses(policy, prompts, seeds=seeds, **given)


def test_a_rollout_holds_what_was_sampled() -> None:
    policy = Policy(tiny_models.llama(30), temperature=0.8)
    rollout = roll(policy, range(64), PROMPTS * 16)
    assert 0 < int(rollout.finished.sum()) < 64
    for row, mask, logp, done in zip(rollout.rows, rollout.mask, rollout.logp, rollout.finished, strict=True):
        response = row.ids[row.num_prompt :]
        assert int(mask.sum()) == len(response) <= 8 and mask[: len(response)].all()
        assert bool(done) == (response[-1] == END) and END not in response[:-1]
        exact = tiny_models.full_logps(policy.model, row.ids, 0.8)[row.num_prompt - 1 :]
        assert torch.allclose(logp[: len(response)].double(), exact, atol=1e-5) and not logp[len(response) :].any()
    closed = rollout.closed(END)
    assert all(row.ids[-1] == END and row.ids.count(END) == 1 for row in closed)


def test_a_row_depends_on_its_own_seed_alone() -> None:
    policy = Policy(tiny_models.llama(30))
    rows = roll(policy, [3, 4, 5, 6]).rows
    assert roll(policy, [6, 5, 4, 3], PROMPTS[::-1]).rows == rows[::-1]
    assert roll(policy, [3, 4, 5, 6], max_batch_tokens=20).rows == rows
    assert roll(policy, [3, 4, 5, 7]).rows[:3] == rows[:3]


# --- one update -------------------------------------------------------------------------------------------------------


def test_before_the_first_step_ratio_is_one_and_kl_zero(tmp_path: Path) -> None:
    update = trainer(tmp_path, count_of(8)).update(PROMPTS)
    figures = update.diagnostics
    assert sorted([*figures, "ptx_loss"]) == sorted(DIAGNOSTICS)
    assert figures["first_approx_kl"] < 1e-10 and figures["clipfrac"] == 0 and figures["value_clipfrac"] == 0
    assert abs(figures["kl"]) < 1e-4 and figures["kl_k3"] < 1e-6
    # at ratio 1 the policy loss is minus the mean whitened advantage: 0
    assert abs(figures["policy_loss"]) < 1e-5
    assert figures["entropy"] == pytest.approx(-float((update.rollout.logp).sum() / update.rollout.mask.sum()))


def test_each_minibatch_of_each_epoch_is_a_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, count_of(8), batch_size=8, minibatch_size=2, num_epochs=3)
    made.update(PROMPTS * 2)
    for optimizer in made.learner._optimizers:
        assert {int(state["step"]) for state in optimizer.state.values()} == {12}


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 40])
def test_microbatches_do_not_change_the_update(max_batch_tokens: int, tmp_path: Path) -> None:
    """Gradients, so weights after a plain step; Adam would turn rounding near 0 into whole steps."""

    def gradients(size: int) -> Tensor:
        sizes = {"max_batch_tokens": size, "minibatch_size": 8, "batch_size": 8}
        made = trainer(tmp_path, count_of(8), learning_rate=1.0, value_learning_rate=1.0, **sizes)
        made.learner._optimizers = [torch.optim.SGD(o.param_groups[0]["params"]) for o in made.learner._optimizers]
        before = weights(made.policy.model), weights(made.value.model)
        made.update(PROMPTS * 2)
        return torch.cat([weights(made.policy.model) - before[0], weights(made.value.model) - before[1]])

    whole = gradients(4096)
    assert whole.abs().max() > 1e-2
    assert torch.allclose(gradients(max_batch_tokens), whole, atol=1e-5)


def test_a_response_that_was_cut_off_is_closed_scored_and_penalised(tmp_path: Path) -> None:
    seen: list[Row] = []

    def reward(rows: Sequence[Row]) -> Tensor:
        seen.extend(rows)
        return torch.ones(len(rows))

    stop_ids = [END, *range(5, 15)]
    changes = {"missing_eos_penalty": 0.75, "beta": 0.0, "lam": 1.0, "max_new_tokens": 2}
    made = trainer(tmp_path, reward, reward_scale=3.0, stop_ids=stop_ids, **changes)
    update = made.update(PROMPTS * 8)
    finished = update.rollout.finished
    assert all(
        row.ids[-1] in stop_ids if done else row.ids[-1] == END for row, done in zip(seen, finished, strict=True)
    )
    assert [len(row.ids) for row in seen] == [
        len(row.ids) + (not done) for row, done in zip(update.rollout.rows, finished.tolist(), strict=True)
    ]
    assert 0 < float(finished.float().mean()) == update.diagnostics["eos_rate"] < 1
    expected = torch.where(finished, 3.0, 3.0 - 0.75)
    assert torch.allclose(update.returns[:, 0], expected, atol=1e-5)
    assert update.diagnostics["score_mean"] == 1.0
    assert update.diagnostics["objective"] == pytest.approx(float(expected.mean()))


def test_kl_is_measured_and_charged(tmp_path: Path) -> None:
    """A policy that is not the reference: k1 per sequence is the log-ratio of single rows, and lowers the returns."""
    made = trainer(tmp_path, lambda rows: torch.zeros(len(rows)), beta=0.5, lam=1.0, missing_eos_penalty=0.0)
    made.policy = Policy(tiny_models.llama(len(tiny_models.word_tokenizer()), seed=1))
    reference = made.reference.model
    policy = tiny_models.llama(len(tiny_models.word_tokenizer()), seed=1)
    update = made.update(PROMPTS)
    ratios = []
    for row in update.rollout.rows:
        start = row.num_prompt - 1
        ratios.append(
            (tiny_models.full_logps(policy, row.ids) - tiny_models.full_logps(reference, row.ids))[start:].sum()
        )
    kl = torch.stack(ratios)
    assert update.diagnostics["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert torch.allclose(update.returns[:, 0].double(), -0.5 * kl, atol=1e-4)
    assert update.diagnostics["objective"] == pytest.approx(-0.5 * float(kl.mean()), rel=1e-4)


def test_learning_rates_warm_up_then_fall_or_stay(tmp_path: Path) -> None:
    def rates(**changes: Any) -> list[float]:
        return [rate_factor(settings(num_updates=4, **changes), update) for update in range(4)]

    assert rates(num_warmup_updates=1) == [0.5, 1.0, 1.0, 1.0]
    assert rates(schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(schedule="linear", num_warmup_updates=3) == [0.25, 0.375, 0.375, 0.25]
    made = trainer(tmp_path, count_of(8), num_updates=2, schedule="linear")
    assert [made.update(PROMPTS).diagnostics["learning_rate"] for _ in range(2)] == [1e-3, 5e-4]


# --- known optima -----------------------------------------------------------------------------------------------------


def test_a_token_that_pays_is_learnt(tmp_path: Path) -> None:
    """No KL penalty, one unit per `key`: eight tokens of it are the optimum, chance is a thirtieth of that."""
    made = trainer(
        tmp_path, count_of(8), beta=0.0, learning_rate=5e-3, value_learning_rate=5e-3, missing_eos_penalty=0.0,
        batch_size=64, minibatch_size=16, value_clip=10.0, num_updates=25,
    )  # fmt: skip
    updates = [made.update(PROMPTS * 16) for _ in range(25)]
    scores = [update.diagnostics["score_mean"] for update in updates]
    assert scores[0] < 1.5 and scores[-1] > 7.0
    assert updates[-1].diagnostics["kl"] > 5  # nothing held it back
    # The critic comes from below nothing to explaining some of the returns, until they no longer vary.
    explained = [update.diagnostics["explained_variance"] for update in updates]
    assert explained[0] < -5 and max(explained[:10]) > 0.1


@pytest.mark.parametrize(
    "beta", [pytest.param(0.3, marks=pytest.mark.slow), 1.0, pytest.param(3.0, marks=pytest.mark.slow)]
)
def test_the_one_step_bandit_reaches_its_closed_form(beta: float, tmp_path: Path) -> None:
    """One token per response: the optimum of E[r] - beta KL is the reference times exp(r / beta), normalised."""
    size = len(tiny_models.word_tokenizer())
    rewards = torch.sin(torch.arange(size) * 2.0)
    made = trainer(
        tmp_path, lambda rows: rewards[[row.ids[row.num_prompt] for row in rows]], beta=beta, max_new_tokens=1,
        missing_eos_penalty=0.0, batch_size=128, minibatch_size=64, num_updates=40, learning_rate=4e-3,
        value_learning_rate=4e-3, schedule="linear", value_clip=10.0,
    )  # fmt: skip
    prompt = torch.tensor([PROMPTS[0]])

    def distribution(model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return model(prompt).logits[0, -1].double().log_softmax(-1)

    reference = distribution(made.reference.model)
    optimum = (reference + rewards / beta).log_softmax(-1)

    def regret(logp: Tensor) -> float:
        """How far a policy's E[r] - beta KL is below the optimum: beta KL(policy || optimum)."""
        return beta * float((logp.exp() * (logp - optimum)).sum())

    start = regret(reference)
    for _ in range(40):
        made.update([PROMPTS[0]] * 128)
    assert regret(distribution(made.policy.model)) < 0.01 * start
    assert start > 0.05


# --- the stage --------------------------------------------------------------------------------------------------------


class Lengths:
    """A scorer: words of the response, and for benign prompts a column of its own."""

    columns: tuple[str, ...] = ("words", "benign_words", "never")

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"scorer": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        words = [float(len(response.split())) for response in responses]
        benign = [w if "benign" in p.tags else math.nan for w, p in zip(words, prompts, strict=True)]
        return {"words": words, "benign_words": benign, "never": [math.nan] * len(words)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("inputs"), tiny_models.word_tokenizer()
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder / "sft" / "model")
    plain = RewardModel.from_language_model(folder / "sft" / "model", seed=5)
    reward = RewardModel(plain.model, plain.tokenizer, offset=0.25, std=0.5)
    reward.save(folder / "reward" / "model")
    prompts = [
        Prompt(id=f"p{i}", turns=(Turn("user", " ".join(tiny_models.WORDS[i : i + 3 + i % 3])),), tags=tags)
        for i, tags in enumerate([("benign",), ()] * 5)
    ]
    write_records(folder / "data" / "rl.jsonl", prompts)
    return {name: folder / name for name in ("data", "sft", "reward")}


def run(inputs: dict[str, Path], output: Path, **changes: Any) -> dict[str, float]:
    output.mkdir()
    given = {"seed": 0, "num_updates": 3, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "device": "cpu"}
    return PPO(**{**given, **changes}).run(inputs, output)


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
