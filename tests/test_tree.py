"""Scoring as trees: exact against separate forwards, whatever is shared and wherever trees are cut."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoding import sliding_model
from tiny_models import full_logps, llama

import cai.models.tree as tree
from cai.errors import ModelError
from cai.models.decoding import Work, common_prefix
from cai.models.masks import takes_masks
from cai.models.tree import Question, continuation_logps

MODEL = llama(40)
SLIDING = sliding_model()
BASE = [7, 3, 9, 9, 1, 0, 5, 7, 3, 2]


def expected(model, question: Question) -> list[float]:
    return [
        float(full_logps(model, [*question.prompt, *ids])[len(question.prompt) - 1 :].sum())
        for ids in question.continuations
    ]


# Few distinct tokens and prompts cut from one text, so that prefixes are shared at every depth.
tokens = st.integers(0, 2)
prompts = st.tuples(st.integers(0, len(BASE)), st.lists(tokens, max_size=6)).map(lambda t: BASE[: t[0]] + t[1])
questions = st.builds(
    Question,
    prompts.filter(bool),
    st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(questions, min_size=1, max_size=8), st.sampled_from([1, 20, 1000]), st.sampled_from([MODEL, SLIDING]))
def test_scores_equal_those_of_separate_forwards(asked: list[Question], max_tokens: int, model):
    found = continuation_logps(model, asked, max_tokens=max_tokens)
    assert [len(array) for array in found] == [len(question.continuations) for question in asked]
    for question, array in zip(asked, found, strict=True):
        np.testing.assert_allclose(array, expected(model, question), atol=1e-5)


def judge_questions() -> list[Question]:
    """Two principles on one pair, as an inline-verdict judge asks: each prompt begins the next one."""
    pair, asked = list(range(12, 30)), []
    for principle in ([31, 32, 33], [31, 34]):
        head = [*pair, *principle, 2]
        asked.append(Question(head, [[10], [11]]))
        for verdict in (10, 11):
            longer = [*head, verdict, *reversed(pair), *principle, 2]
            asked.append(Question(longer, [[10], [11]]))
            asked += [Question([*longer, other, 4], [[5], [6]]) for other in (10, 11)]
    return asked


def test_a_judge_reads_what_its_questions_share_once():
    asked, work = judge_questions(), Work()
    found = continuation_logps(MODEL, asked, max_tokens=10_000, work=work)
    nodes = {tuple(q.prompt[:n]) for q in asked for n in range(1, len(q.prompt) + 1)}
    alone = sum(len(question.prompt) for question in asked)
    assert work.read + work.shared == alone
    # Cutting costs a few repeated tokens where that is cheaper than the mask; here one tree is.
    assert work.read == len(nodes) < alone / 3
    for question, array in zip(asked, found, strict=True):
        np.testing.assert_allclose(array, expected(MODEL, question), atol=1e-5)


def test_order_of_the_questions_does_not_matter():
    asked = judge_questions()
    forward = continuation_logps(MODEL, asked, max_tokens=500)
    backward = continuation_logps(MODEL, asked[::-1], max_tokens=500)
    for one, other in zip(forward, backward[::-1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("start_flops", "max_tokens"), [(0.0, 10**6), (1e6, 10**6), (1e9, 10**6), (1e9, 70)])
def test_cuts_are_the_cheapest_of_all(monkeypatch: pytest.MonkeyPatch, start_flops: float, max_tokens: int):
    monkeypatch.setattr(tree, "_START_FLOPS", {"cpu": start_flops})
    sequences = sorted({tuple(question.prompt) for question in judge_questions()})[:9]
    shared = [0, *(common_prefix(a, b) for a, b in itertools.pairwise(sequences))]
    linear, attention = 2.0 * MODEL.num_parameters(exclude_embeddings=True), 4.0 * 2 * 32

    def cost(cuts: tuple[int, ...]) -> float:
        total, start = 0.0, 0
        for end in cuts:
            size = len(sequences[start]) + sum(len(sequences[n]) - shared[n] for n in range(start + 1, end))
            if size > max_tokens and end - start > 1:
                return float("inf")
            total += linear * size + attention * size**2 + start_flops
            start = end
        return total

    inner = range(1, len(sequences))
    every = ((*cut, len(sequences)) for n in range(len(sequences)) for cut in itertools.combinations(inner, n))
    found = tuple(tree._cuts(MODEL, sequences, shared, max_tokens))
    assert cost(found) == min(map(cost, every))


def test_a_long_prompt_by_itself_needs_no_mask(monkeypatch: pytest.MonkeyPatch):
    seen = []
    continuation_logps(MODEL, judge_questions(), max_tokens=10_000)  # the model's first use tries masks on it
    forward = MODEL.forward
    monkeypatch.setattr(MODEL, "forward", lambda *ids, **inputs: seen.append(inputs) or forward(*ids, **inputs))
    question = Question([k % 40 for k in range(300)], [[3], [4]])
    (array,) = continuation_logps(MODEL, [question], max_tokens=100)
    assert len(seen) == 1 and "attention_mask" not in seen[0]
    np.testing.assert_allclose(array, expected(MODEL, question), atol=1e-5)


def test_the_head_sees_only_what_is_asked(monkeypatch: pytest.MonkeyPatch):
    assert takes_masks(MODEL)
    rows = []
    monkeypatch.setattr(
        MODEL.lm_head, "forward", lambda x, own=MODEL.lm_head.forward: rows.append(x.shape[1]) or own(x)
    )
    continuation_logps(MODEL, judge_questions(), max_tokens=10_000)
    assert sum(rows) == len(judge_questions())


def test_what_cannot_be_scored_is_refused():
    assert continuation_logps(MODEL, [], max_tokens=10) == []
    for prompt, continuations in (([], [[1]]), ([1], [[]])):
        with pytest.raises(ModelError, match="at least one token"):
            continuation_logps(MODEL, [Question(prompt, continuations)], max_tokens=10)
    broken = llama(40)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        continuation_logps(broken, [Question([1, 2], [[3]])], max_tokens=10)
