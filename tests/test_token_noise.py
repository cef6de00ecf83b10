"""Epsilon-random tokens: how often, which ones, never the end, and each row by its own randomness alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from cai.engines.base import EnginePrompt, Sampling
from cai.engines.endpoint import EndpointEngine
from cai.engines.transformers import TransformersEngine
from cai.errors import ConfigError, EngineError
from cai.models.decoding import Decoded, sample
from cai.models.noise import TokenNoise, plain_ids
from cai.types import Turn

PROMPTS = [[3, 4, 5], [10, 11, 12, 1, 2], [9], [10, 11, 12, 0, 0, 31]]
STOPS = (4, 31)
IDS = torch.tensor([5, 6, 7, 20])


def decode(epsilon: float | None, prompts=PROMPTS, seeds=None, new=20, temperature=1.0) -> list[Decoded]:
    noise = None if epsilon is None else TokenNoise(epsilon, IDS)
    rows = sample(
        tiny_models.llama(40), prompts, max_new_tokens=new, temperature=temperature,
        seeds=range(len(prompts)) if seeds is None else seeds, stop_ids=STOPS, noise=noise,
    )  # fmt: skip
    return sorted(rows, key=lambda row: row.index)


def test_replaced_by_hand() -> None:
    """0.05 and 0.0 are below 0.1, but the third token ends its row and stays; 0.6 of 4 ids is the third of them."""
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3))
    tokens, logp = TokenNoise(0.1, torch.tensor([0, 1, 2, 3]))(
        torch.tensor([1, 1, 3]), torch.tensor([9.0, 9.0, 9.0]), logits,
        torch.tensor([[0.05, 0.6], [0.1, 0.6], [0.0, 0.6]]), torch.tensor([3]), 1.0,
    )  # fmt: skip
    assert tokens.tolist() == [2, 1, 3]
    assert logp.tolist() == pytest.approx([np.log(0.3), 9.0, 9.0])


def test_no_noise_is_no_change() -> None:
    assert decode(0.0) == decode(None)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_log_probabilities_are_the_models_own(temperature: float) -> None:
    for row in decode(0.5, temperature=temperature):
        prompt = PROMPTS[row.index]
        expected = tiny_models.full_logps(tiny_models.llama(40), prompt + row.ids, temperature or 1.0)
        np.testing.assert_allclose(row.logps, expected[len(prompt) - 1 :], atol=1e-5)


def test_all_noise_is_even_over_the_ids_and_ends_are_the_models() -> None:
    rows = decode(1.0, PROMPTS * 25, new=40)
    counts = Counter(token for row in rows for token in row.ids if token not in STOPS)
    assert set(counts) == set(IDS.tolist())
    total = sum(counts.values())  # four standard deviations of a share of a quarter
    assert all(abs(n / total - 0.25) < 4 * (0.25 * 0.75 / total) ** 0.5 for n in counts.values()) and total > 500
    assert any(row.finished for row in rows) and all(row.finished == (row.ids[-1] in STOPS) for row in rows)


def test_a_row_depends_on_its_seed_and_not_on_its_batch() -> None:
    together = decode(0.3, seeds=[5, 6, 7, 8])
    assert decode(0.3, seeds=[5, 6, 7, 8]) == together
    for row in together:
        (alone,) = decode(0.3, [PROMPTS[row.index]], [5 + row.index])
        assert alone.ids == row.ids
    assert decode(0.3, seeds=[9, 10, 11, 12])[0].ids != together[0].ids
    shorter = decode(0.3, seeds=[5, 6, 7, 8], new=6)
    assert [row.ids for row in shorter] == [row.ids[:6] for row in together]


def test_little_noise_leaves_what_came_before_it() -> None:
    """The randomness that samples is that of the clean row: both say the same up to the first replaced token."""
    clean, noisy = decode(None, [PROMPTS[0]] * 60), decode(0.1, [PROMPTS[0]] * 60)
    firsts = [one.ids[0] == other.ids[0] for one, other in zip(clean, noisy, strict=True)]
    assert 0.75 < np.mean(firsts) < 1.0
    assert any(one.ids != other.ids for one, other in zip(clean, noisy, strict=True))


def test_the_engine_draws_words_and_no_markers(tmp_path: Path) -> None:
    tokenizer = tiny_models.word_tokenizer()
    ids = plain_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == list(dict.fromkeys(tiny_models.WORDS))
    folder = tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, tmp_path)
    engine = TransformersEngine(model=str(folder), device="cpu")
    prompts = [EnginePrompt(turns=(Turn("user", "how do i open the door ?"),))] * 8
    found = list(engine.generate(prompts, Sampling(max_new_tokens=30, epsilon=1.0), seed=0, keys=list("abcdefgh")))
    words = {word for one in found for word in one.text.split()}
    assert words <= set(tiny_models.WORDS) and len(words) > 15
    for epsilon in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=f"epsilon: must be a probability from 0 to 1, got {epsilon}"):
            Sampling(max_new_tokens=1, epsilon=epsilon)


def test_a_server_cannot_and_says_so() -> None:
    engine = EndpointEngine(model="m", base_urls=["http://127.0.0.1:9/v1"])
    asked = engine.generate([EnginePrompt(text="a")], Sampling(max_new_tokens=1, epsilon=0.2), seed=0, keys=["a"])
    with pytest.raises(EngineError, match=r"endpoint: no server puts random tokens into an answer \(epsilon 0\.2\)"):
        next(iter(asked))
