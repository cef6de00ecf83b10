"""Held-out prompts: the same ones whatever else is there, and never on both sides."""

import pytest

from cai.datasets.splits import held_out
from cai.errors import DataError
from cai.types import Prompt, Turn

PROMPTS = [Prompt(id=f"p{i}", turns=(Turn("user", f"question {i}"),)) for i in range(400)]


def test_a_prompt_is_on_one_side_whatever_the_order_and_the_company() -> None:
    twice = PROMPTS + [Prompt(id=f"again-{p.id}", turns=p.turns, tags=("red_team",)) for p in PROMPTS[::7]]
    out = held_out(twice, 0.1)
    side = dict(zip((p.turns for p in twice), out, strict=True))
    assert [side[p.turns] for p in twice] == out
    assert 20 <= sum(side.values()) <= 60  # 40 of 400, give or take three standard deviations
    assert held_out(twice[::-1], 0.1) == out[::-1]
    assert held_out(PROMPTS[:100], 0.1) == out[:100]
    assert all(more for more, less in zip(held_out(PROMPTS, 0.3), out, strict=False) if less)


def test_no_side_is_empty() -> None:
    for share in (0.0, 0.001, 0.999, 1.0):
        for size in (2, 3, 10):
            assert 0 < sum(held_out(PROMPTS[:size], share)) < size
    with pytest.raises(DataError, match="3 prompts hold 1 dialogue; another is needed to hold out"):
        held_out([PROMPTS[0]] * 3, 0.1)
