"""Adapters: what they compute, what they leave alone, what is on disk; and PPO with all networks over one base."""

import json
import math
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import test_reward
import tiny_models
import torch
from safetensors import safe_open
from test_ppo import END, PROMPTS, count_of, rows_of, settings
from test_ppo_options import Texts
from test_resume import digests
from torch import Tensor
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cai import config
from cai.errors import ConfigError, ModelError
from cai.models.decoding import sample
from cai.models.digest import model_digest
from cai.models.flat import flat_states, is_plain_llama
from cai.models.llama import LlamaSteps
from cai.models.loading import load_causal_lm
from cai.models.lora import (
    add_adapter,
    load_adapter,
    load_trained,
    merge,
    save_adapter,
    trained_parameters,
    trained_state,
    view,
    whole_weight,
)
from cai.records import read_json, read_rows, write_records
from cai.rl.memory import budget
from cai.rl.models import ADAPTER, Policy, RewardModel, Row, pack, score_head
from cai.rl.networks import OneBase, load_networks, save_policy
from cai.rl.ppo import PPOTrainer
from cai.rl.settings import PPOSettings
from cai.stages.ppo import PPO
from cai.stages.reward import Reward
from cai.types import Prompt, Turn

LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0}


def adapted(base: PreTrainedModel, *, learnt: bool = True, seed: int = 0) -> PreTrainedModel:
    """A network over `base`; with an adapter that is not at its start if `learnt`."""
    model = view(base)
    add_adapter(model, rank=4, alpha=8.0, seed=seed)
    if learnt:
        generator = torch.Generator().manual_seed(seed)
        for parameter in trained_parameters(model):
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def gpt2(vocabulary: int) -> PreTrainedModel:
    """Transposed weights, biases, positions that are learnt: another family."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    ).eval()


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


# --- what an adapter computes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_models.llama, gpt2])
def test_a_new_adapter_changes_nothing_and_shares_every_weight(make: Callable[[int], PreTrainedModel]) -> None:
    base, rows = make(30), pack(rows_of([(3, 5), (1, 1), (7, 2)]))
    model = adapted(base, learnt=False)
    with torch.no_grad():
        assert torch.equal(Policy(model).logp(rows), Policy(base).logp(rows))
    shared = {tensor.data_ptr() for tensor in base.parameters()}
    own = [p for p in model.parameters() if p.data_ptr() not in shared]
    assert {id(p) for p in own} == {id(p) for p in trained_parameters(model)} and len(own) in (2 * 7 * 2, 2 * 4 * 2)
    assert len({p.data_ptr() for p in model.parameters()} & shared) == len(shared)
    again, other = adapted(base, learnt=False), adapted(base, learnt=False, seed=1)
    assert same(trained_state(model), trained_state(again)) and not same(trained_state(model), trained_state(other))


def test_adapters_leave_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    adapted(tiny_models.llama(30))  # seeds by itself
    torch.manual_seed(3)
    view_of = view(tiny_models.llama(30))
    torch.manual_seed(3)
    add_adapter(view_of, rank=4, alpha=8.0, seed=5)
    assert torch.equal(torch.rand(2), expected)


def test_the_trunk_without_padding_goes_through_adapters() -> None:
    model = adapted(tiny_models.llama(30))
    assert is_plain_llama(model)
    ids = torch.tensor([[1, 4, 9, 12, 7], [1, 5, 9, 9, 9], [3, 2, 4, 9, 9]])
    real = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    weights = torch.randn(int(real.sum()), 32, generator=torch.Generator().manual_seed(1))

    def gradient(states: Tensor) -> Tensor:
        model.zero_grad()
        (states * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in trained_parameters(model) if p.grad is not None])

    own = model.base_model(input_ids=ids, attention_mask=real.long(), use_cache=False).last_hidden_state[real]
    flat = flat_states(model, ids, real, real)
    plain = flat_states(tiny_models.llama(30), ids, real, real)
    assert torch.allclose(flat, own, atol=2e-5) and (flat - plain).abs().max() > 0.1
    expected, found = gradient(own), gradient(flat)
    assert len(expected) == sum(p.numel() for p in trained_parameters(model))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("make", [tiny_models.llama, gpt2])
def test_decoding_is_by_the_adapter(make: Callable[[int], PreTrainedModel]) -> None:
    base = make(30)
    model = adapted(base)
    assert LlamaSteps.fits(model) == (make is tiny_models.llama)  # both ways of decoding
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seeds": [1, 2, 3, 4], "stop_ids": [END]}
    found = sorted(sample(model, PROMPTS, **options), key=lambda one: one.index)
    for one, prompt in zip(found, PROMPTS, strict=True):
        exact = tiny_models.full_logps(model, [*prompt, *one.ids])[len(prompt) - 1 :]
        assert torch.allclose(torch.tensor(one.logps).double(), exact, atol=1e-5)
    plain = {one.index: one.ids for one in sample(base, PROMPTS, **options)}
    assert [one.ids for one in found] != [plain[one.index] for one in found]


def test_half_precision_decodes_through_the_layers() -> None:
    """Where adding an adapter to the weights would round it away."""
    base = tiny_models.llama(30).to(torch.bfloat16)
    model = adapted(base)
    assert LlamaSteps.fits(base) and not LlamaSteps.fits(model)
    assert {p.dtype for p in trained_parameters(model)} == {torch.float32}


@pytest.mark.parametrize("make", [tiny_models.llama, gpt2])
def test_merging_changes_no_probability(make: Callable[[int], PreTrainedModel]) -> None:
    base, rows = make(30), pack(rows_of([(3, 5), (1, 1), (7, 2)]))
    before = snapshot(base)
    model = adapted(base)
    with torch.no_grad():
        expected, plain = Policy(model).logp(rows), Policy(base).logp(rows)
    state = trained_state(model)
    merged = make(30)
    add_adapter(merged, rank=4, alpha=8.0, seed=9)
    load_trained(merged, state)
    merge(merged)
    with torch.no_grad():
        assert (Policy(merged).logp(rows) - expected).abs().max() < 1e-5 < (plain - expected).abs().max()
    assert snapshot(merged).keys() == before.keys() and not hasattr(merged.base_model, "peft_config")
    assert same(before, snapshot(base))


def test_the_whole_weight_is_base_plus_scaled_product() -> None:
    model = adapted(tiny_models.llama(30))
    layer: Any = model.base_model.layers[0].self_attn.q_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(whole_weight(layer), layer.base_layer.weight + 8.0 / 4 * product)


def test_weights_of_another_rank_are_refused() -> None:
    base = tiny_models.llama(30)
    state = trained_state(adapted(base))
    del state[min(state)]
    with pytest.raises(ModelError, match=r"of another model or rank: 'model\.layers\.0"):
        load_trained(adapted(base), state)


def test_a_trunk_without_linear_layers_is_refused() -> None:
    model = tiny_models.llama(30)
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: no place for adapters: [^\n]+$"):
        add_adapter(model, rank=4, alpha=8.0, seed=0)


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SL-CAI, a reward model that was trained on it as an adapter, and prompts."""
    folder, tokenizer = tmp_path_factory.mktemp("inputs"), tiny_models.word_tokenizer()
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder / "sft" / "model")
    test_reward.run(folder / "sft", folder / "reward", num_epochs=6, learning_rate=2e-2, **LORA)
    words = [" ".join(tiny_models.WORDS[i : i + 3 + i % 3]) for i in range(10)]
    prompts = [Prompt(id=f"p{i}", turns=(Turn("user", text),)) for i, text in enumerate(words)]
    write_records(folder / "data" / "rl.jsonl", prompts)
    return {"data": folder / "data", "sft": folder / "sft", "reward": folder / "reward" / "out"}


def test_the_reward_stage_learns_an_adapter_and_writes_both(inputs: dict[str, Path]) -> None:
    rows = read_rows(inputs["reward"] / "held_out.jsonl")
    clear = [row for row in rows if row["p"] != 0.5]
    assert sum((row["delta"] > 0) == (row["p"] > 0.5) for row in clear) > 0.85 * len(clear)
    merged = load_causal_lm(inputs["sft"] / "model").base_model.state_dict()
    trained = RewardModel.load(inputs["reward"] / "model").model.base_model.state_dict()
    moved = {name for name, tensor in merged.items() if not torch.equal(tensor, trained[name])}
    assert merged.keys() == trained.keys() and moved == {name for name in merged if "_proj" in name}
    facts = read_json(inputs["reward"] / "model" / ADAPTER / "adapter_config.json")
    assert facts["r"] == 4 and facts["lora_alpha"] == 8.0 and len(facts["target_modules"]) == 7
    assert "/" not in json.dumps(facts)
    with safe_open(inputs["reward"] / "model" / ADAPTER / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"base": model_digest(inputs["sft"] / "model")}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft of transformers
def test_peft_reads_the_adapter_too(inputs: dict[str, Path]) -> None:
    from peft import PeftModel

    reward = RewardModel.load(inputs["reward"] / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(inputs["sft"] / "model", num_labels=1)
    plain.config.pad_token_id = 0
    theirs = PeftModel.from_pretrained(plain, inputs["reward"] / "model" / ADAPTER).eval()
    for row in rows_of([(3, 5), (1, 1), (7, 2)]):
        with torch.no_grad():
            score = float(theirs(torch.tensor([[*row.ids, END]])).logits)
        assert score + reward.offset == pytest.approx(float(reward.score_rows([Row([*row.ids, END], 1)])), abs=1e-5)


def test_the_same_adapter_is_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        model = RewardModel.from_language_model(_saved(tmp_path / "base"), seed=0).model
        add_adapter(model, rank=2, alpha=4.0, seed=1, head=score_head(model))
        save_adapter(model, tmp_path / name, base="x")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert set(digests(tmp_path / "a")) == {"adapter_config.json", "adapter_model.safetensors"}


def _saved(folder: Path, **changes: Any) -> Path:
    tokenizer = tiny_models.word_tokenizer()
    return tiny_models.save(tiny_models.llama(len(tokenizer), **changes), tokenizer, folder)


def _lost(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:99])


def _thinned(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(file.read_text().replace('"r"', '"rank"'))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_lost, r"adapter: no adapter here; .* set reward\.lora_rank, or rl\.lora_rank=0"),
        (_cut, "adapter: cannot read the adapter"),
        (_thinned, "adapter: cannot read the adapter: 'r'"),
    ],
)
def test_an_adapter_that_is_missing_or_damaged_is_one_line(
    damage: Callable[[Path], None], problem: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(inputs["reward"], tmp_path / "reward")
    damage(tmp_path / "reward" / "model" / ADAPTER)
    with pytest.raises(ModelError, match=problem) as caught:
        ppo(inputs | {"reward": tmp_path / "reward"}, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_adapter_goes_on_no_other_base(inputs: dict[str, Path], tmp_path: Path) -> None:
    _saved(tmp_path / "sft" / "model", seed=1)
    with pytest.raises(ModelError, match="was trained on another model"):
        ppo(inputs | {"sft": tmp_path / "sft"}, tmp_path / "out")
    model = RewardModel.from_language_model(_saved(tmp_path / "other"), seed=0).model
    cropped = model.base_model
    cropped.layers = cropped.layers[:1]
    digest = model_digest(inputs["sft"] / "model")
    with pytest.raises(ModelError, match="of another architecture"):
        load_adapter(model, inputs["reward"] / "model" / ADAPTER, base=digest, head=score_head(model))


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


def ppo(inputs: dict[str, Path], output: Path, **changes: Any) -> dict[str, float]:
    output.mkdir(exist_ok=True)
    given = {"seed": 0, "num_updates": 3, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "device": "cpu"}
    return PPO(**{**given, "learning_rate": 1e-2, **LORA, **changes}).run(inputs, output)


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
    assert all("lora" in name or name in ("score.weight", "weight", "bias") for name in weights["value"])
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
    apart = budget(PPOSettings(seed=0), model.config, 1000, longest_prompt=5, max_tokens=9)
    assert apart.networks > 9 * half.networks / 1.5
