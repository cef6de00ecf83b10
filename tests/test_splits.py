"""Held-out prompts: the same ones whatever else is there, and never on both sides."""

from dataclasses import replace

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


def test_a_user_is_on_one_side() -> None:
    prompts = [replace(p, user=f"u{i % 60}" if i % 4 else "") for i, p in enumerate(PROMPTS)]
    out = held_out(prompts, 0.2)
    sides = {
        user: {held for p, held in zip(prompts, out, strict=True) if p.user == user}
        for user in {p.user for p in prompts}
    }
    assert all(len(side) == 1 for user, side in sides.items() if user)
    assert len(sides[""]) == 2 and 40 < sum(out) < 130
    alone = [p for p in prompts if not p.user]
    assert held_out(alone, 0.2) == [held for p, held in zip(prompts, out, strict=True) if not p.user]
    with pytest.raises(DataError, match="400 prompts hold 1 user; another is needed to hold out"):
        held_out([replace(p, user="ada") for p in PROMPTS], 0.1)
