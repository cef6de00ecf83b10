"""Adapters: what they compute, what they leave alone, what is on disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from adapters import adapted, inputs, ppo, same, snapshot
from policies import END, PROMPTS, rows_of
from safetensors import safe_open
from test_resume import digests
from torch import Tensor
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cai.errors import ModelError
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
from cai.records import read_json, read_rows
from cai.rl.models import ADAPTER, Policy, RewardModel, Row, pack, score_head

__all__ = ["inputs"]  # the fixture


def gpt2(vocabulary: int) -> PreTrainedModel:
    """Transposed weights, biases, positions that are learnt: another family."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    ).eval()


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
    """Where adding an adapter, a norm or a scale to the weights would round it."""
    base = tiny_models.llama(30).to(torch.bfloat16)
    model = adapted(base)
    assert not LlamaSteps.fits(base) and not LlamaSteps.fits(model)
    assert LlamaSteps.fits(tiny_models.llama(30))
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
