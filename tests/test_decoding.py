"""Sampling: its log-probabilities are those of a plain forward, its tokens depend on a row's own seed alone."""

import numpy as np
import pytest
import torch
from tiny_models import full_logps, llama
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

import cai.models.decoding as decoding
from cai.errors import ModelError
from cai.models.decoding import Decoded, Work, common_prefix, draw, sample, uniforms
from cai.models.llama import LlamaSteps
from cai.models.masks import takes_masks

SHARED = list(range(10, 22))
# Lengths from 1 to 16, two alike, four that begin alike; id 0 (a usual padding id) and stop ids inside a prompt.
PROMPTS = [[3, 4, 5], [*SHARED, 1, 2], [9], [*SHARED, 0, 0, 0, 31], [*SHARED, 1, 2], [*SHARED, 30]]
SHARING = [[*SHARED, 1, 2], [*SHARED, 0, 0, 0, 31], [*SHARED, 30], [*SHARED, 5, 6, 7, 8, 9]]
STOPS = (4, 30, 31)


def sliding_model() -> PreTrainedModel:
    """A model that forgets what is more than 4 tokens back, which no mask of ours expresses."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.2,
    )
    return MistralForCausalLM(config).eval()


def decode(
    model: PreTrainedModel, prompts=PROMPTS, *, temperature=1.0, seeds=None, new=20, **settings
) -> list[Decoded]:
    seeds = range(len(prompts)) if seeds is None else seeds
    rows = list(
        sample(model, prompts, max_new_tokens=new, temperature=temperature, seeds=seeds, stop_ids=STOPS, **settings)
    )
    assert sorted(row.index for row in rows) == list(range(len(prompts)))
    return sorted(rows, key=lambda row: row.index)


@pytest.mark.parametrize("model", [llama(40), llama(40, kv_heads=4), sliding_model()], ids=["gqa", "mha", "sliding"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_log_probabilities_are_those_of_a_plain_forward(model: PreTrainedModel, temperature: float):
    for row in decode(model, temperature=temperature):
        prompt = PROMPTS[row.index]
        expected = full_logps(model, prompt + row.ids, temperature or 1.0)[len(prompt) - 1 :]
        np.testing.assert_allclose(row.logps, expected, atol=1e-5)


def test_rows_end_at_a_stop_token_or_at_the_limit():
    rows = decode(llama(40), new=12)
    assert {row.finished for row in rows} == {True, False}  # the fixture shows both cases
    for row in rows:
        assert row.finished == (row.ids[-1] in STOPS)
        assert not set(row.ids[:-1]) & set(STOPS)
        assert len(row.ids) == len(row.logps) <= 12
        assert row.finished or len(row.ids) == 12


@pytest.mark.parametrize("model", [llama(40), sliding_model()], ids=["plain", "sliding"])
def test_greedy_is_what_generate_gives(model: PreTrainedModel):
    for row in decode(model, temperature=0.0):
        prompt = torch.tensor([PROMPTS[row.index]])
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),  # or generate takes each 0 in a prompt for padding
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=list(STOPS),
            pad_token_id=0,
        )
        assert row.ids == expected[0, prompt.shape[1] :].tolist()


def test_dropping_rows_and_growing_memory_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model = llama(40)
    prompts = PROMPTS * 3
    monkeypatch.setattr(decoding, "_KEEP", 0.0)
    kept = decode(model, prompts)
    monkeypatch.setattr(decoding, "_KEEP", 1.0)
    monkeypatch.setattr(decoding, "_GROWTH", 1)
    dropped = decode(model, prompts)
    assert [row.ids for row in kept] == [row.ids for row in dropped]
    assert len({len(row.ids) for row in kept}) > 4  # rows did end at different steps


def test_a_row_depends_on_its_seed_and_not_on_its_batch():
    model = llama(40)
    together = decode(model, seeds=[5, 6, 7, 8, 9, 10])
    for row in together:
        (alone,) = decode(model, [PROMPTS[row.index]], seeds=[5 + row.index])
        assert alone.ids == row.ids
    assert together[1].ids != together[4].ids  # equal prompts, other seeds
    again = decode(model, [PROMPTS[1], PROMPTS[1]], seeds=[6, 6])
    assert again[0].ids == again[1].ids == together[1].ids


def test_finished_rows_are_yielded_before_the_last_one_is_done():
    finished = [row.finished for row in sample(
        llama(40), PROMPTS * 3, max_new_tokens=40, temperature=1.0, seeds=range(18), stop_ids=STOPS
    )]  # fmt: skip
    lengths = [len(row.ids) for row in sample(
        llama(40), PROMPTS * 3, max_new_tokens=40, temperature=1.0, seeds=range(18), stop_ids=STOPS
    )]  # fmt: skip
    assert finished[0] and lengths[0] < max(lengths)
    assert lengths != sorted(lengths, reverse=True)


def test_common_prefixes_are_read_once():
    work = Work()
    decode(llama(40), [*[[*SHARED, 1]] * 3, [*SHARED, 2, 3]], new=1, work=work)
    # 12 shared tokens, then nothing for three prompts and one token for the last; four last tokens
    assert work.read == 12 + 1 + 4
    assert work.shared == 3 * 13 + 14 - work.read
    assert work.made == 0
    work = Work()
    decode(llama(40), [[1, 2], [1, 3, 4]], new=3, work=work)
    assert (work.read, work.shared) == (5, 0)
    assert work.made <= 4


def test_stopping_by_a_function_of_the_ids():
    rows = decode(llama(40), new=40, should_stop=lambda ids: len(ids) >= 16)
    longest = max(len(row.ids) for row in rows)
    assert longest == 16 and all(row.finished for row in rows)


@pytest.mark.parametrize("prompts", [PROMPTS, SHARING], ids=["apart", "sharing"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_quick_steps_equal_the_models_own(prompts, kv_heads: int, monkeypatch: pytest.MonkeyPatch):
    model = llama(40, kv_heads=kv_heads)
    assert LlamaSteps.fits(model) and not LlamaSteps.fits(sliding_model())
    quick = decode(model, prompts)
    monkeypatch.setattr(LlamaSteps, "fits", staticmethod(lambda model: False))
    own = decode(model, prompts)
    assert [row.ids for row in quick] == [row.ids for row in own]
    for one, other in zip(quick, own, strict=True):
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)


def test_masks_are_tried_out():
    assert takes_masks(llama(40)) and not takes_masks(sliding_model())


def test_a_model_that_ignores_masks_is_found_out(monkeypatch: pytest.MonkeyPatch):
    model = llama(40)
    own = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: own(**{**inputs, "attention_mask": None}))
    assert not takes_masks(model)


def test_uniforms_are_a_stream_of_their_seed():
    assert (uniforms(7, 5) == uniforms(7, 9)[:5]).all()
    assert (uniforms(7, 5) != uniforms(8, 5)).all()
    many = uniforms(2**63 - 1, 4000)
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.02


def test_drawing_inverts_the_distribution():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0]]).expand(4000, 4)
    tokens, logps = draw(logits, torch.from_numpy(uniforms(1, 4000)), 2.0)
    expected = (logits[0] / 2).softmax(-1)
    # four standard deviations of a frequency at n = 4000 are at most 0.032
    assert torch.allclose(tokens.bincount(minlength=4) / 4000, expected, atol=0.032)
    assert not (tokens == 1).any()
    assert torch.allclose(logps, expected.log()[tokens], atol=1e-6)
    edges, _ = draw(logits[:2], torch.tensor([0.0, 1 - 2.0**-32], dtype=torch.float64), 1.0)
    assert edges.tolist() == [0, 3]


def test_common_prefix():
    assert [common_prefix([], [1]), common_prefix([1, 2], [1, 2, 3]), common_prefix([1, 2], [1, 3])] == [0, 2, 1]


def test_what_cannot_be_sampled_is_refused():
    assert decode(llama(40), []) == []
    with pytest.raises(ModelError, match="prompt of no tokens"):
        decode(llama(40), [[1], []])
    broken = llama(40)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        decode(broken)
