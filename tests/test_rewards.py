"""Rewards beyond the reward model: columns, weighted sums, and a judge's expected rating."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from worlds import DIALOGUE, FunctionEngine, family, model_folder, prompt, rules

from cai.engines.base import EnginePrompt
from cai.errors import CaiError, ConfigError, LabelerError
from cai.labelers.rating import JudgeReward
from cai.prompts import PromptFamily
from cai.rewards import ColumnReward, Part, Reward, check_parts, score, texts_of
from cai.types import Prompt

RATE = DIALOGUE + "reply {{ response }} wish {{ principle.statement }} rate{{ choice(' 1', ' 2', ' 3') }}"


class Lengths:
    """A scorer: characters, and for prompts of the red team a column of its own."""

    columns = ("length", "safe")

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"lengths.py": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        length = [float(len(response)) for response in responses]
        safe = [1.0 if "red_team" in p.tags else math.nan for p in prompts]
        return {"length": length, "safe": safe}


def column(name: str) -> ColumnReward:
    return ColumnReward(scorer=Lengths(), column=name)


# --- sums -------------------------------------------------------------------------------------------------------------

PROMPTS = [prompt("a", "red_team"), prompt("b")]


def test_without_parts_the_reward_model_is_the_reward() -> None:
    scored = score([], PROMPTS, ["x", "yy"], [0.25, -1.5])
    assert scored.total == [0.25, -1.5] and scored.parts == {}


def test_a_weighted_sum_keeps_its_parts_apart() -> None:
    parts = [
        Part(name="learnt", weight=2.0),
        Part(name="length", weight=-0.5, reward=column("length")),
        Part(name="safe", weight=3.0, reward=column("safe")),
    ]
    scored = score(parts, PROMPTS, ["x", "yyyy"], [0.25, -1.5])
    assert scored.total == [0.5 - 0.5 + 3.0, -3.0 - 2.0]  # the last does not apply to the second prompt
    assert scored.parts["learnt"] == [0.25, -1.5] and scored.parts["length"] == [1.0, 4.0]
    assert scored.parts["safe"][0] == 1.0 and math.isnan(scored.parts["safe"][1])
    assert scored.parts["safe_missing"] == [0.0, 1.0] and "learnt_missing" not in scored.parts
    assert texts_of(parts) == {"rewards.length.lengths.py": "abc", "rewards.safe.lengths.py": "abc"}


def test_parts_are_checked() -> None:
    with pytest.raises(ConfigError, match="weight: of the reward 'a' must be a finite number, got nan"):
        Part(name="a", weight=math.nan)
    with pytest.raises(ConfigError, match="rewards: names must differ, got a, b, a"):
        check_parts([Part(name="a"), Part(name="b"), Part(name="a")])
    with pytest.raises(ConfigError, match="rewards: name 'a_missing': must not end in _missing"):
        check_parts([Part(name="a_missing")])
    with pytest.raises(ConfigError, match="column: unknown column of the scorer 'lenght'; did you mean 'length'"):
        column("lenght")
    assert isinstance(column("length"), Reward)


# --- a judge ----------------------------------------------------------------------------------------------------------


def judge(folder: Path, engine: FunctionEngine, **changes: Any) -> JudgeReward:
    model = folder / "judge" / "model"
    if not model.exists():
        model_folder(model.parent, "j")
    given: dict[str, Any] = {"model": str(model), "constitution": rules(folder), "seed": 0}
    return JudgeReward(**{"engine": engine, "prompts": family(folder, rate=RATE), **given, **changes})


def test_the_reward_is_the_expected_rating(workdir: Path) -> None:
    """0, 1/2 and 1 for the three ratings, by their probabilities of those on the options."""
    chances = {"good": (0.1, 0.2, 0.5), "bad": (0.4, 0.0, 0.4)}

    def logp(asked: EnginePrompt, choice: str) -> float:
        p = chances["good" if "reply good" in asked.text else "bad"][int(choice) - 1]
        return math.log(p) if p else -math.inf

    engine = FunctionEngine(logp=logp)
    found = judge(workdir, engine).score(PROMPTS, ["good", "bad"]).values
    assert found == pytest.approx([(0.5 * 0.2 + 0.5) / 0.8, 0.5])
    (asked,) = engine.scored
    assert asked[0].text.startswith("user says question a\nreply good wish be ") and asked[0].text.endswith("rate")


def test_principles_are_drawn_by_response_and_averaged(workdir: Path) -> None:
    def logp(asked: EnginePrompt, choice: str) -> float:
        return math.log(0.8 if ("kind" in asked.text) == (choice == " 3") else 0.1)

    engine = FunctionEngine(logp=logp)
    both = judge(workdir, engine, num_principles=5).score([prompt("b")], ["x"]).values
    kind, brief = (0.8 + 0.5 * 0.1) / 1.0, (0.5 * 0.8 + 0.1) / 1.7
    assert both == pytest.approx([(kind + brief) / 2])
    assert len(engine.scored[0]) == 2  # the third principle is for the red team
    drawn = judge(workdir, engine)
    assert drawn.score([prompt("b")] * 2, ["x", "x"]) == drawn.score([prompt("b")] * 2, ["x", "x"])


def test_what_the_judge_cannot_rate_has_no_reward(workdir: Path) -> None:
    unsure = judge(workdir, FunctionEngine(logp=lambda *_: -30.0)).score([prompt("b")], ["x"]).values
    only = rules(workdir, "principles: [{id: safe, axis: c, statement: be safe, applies_to: [red_team]}]")
    none = judge(workdir, FunctionEngine(), constitution=only).score(PROMPTS, ["x", "y"]).values
    assert math.isnan(unsure[0]) and not math.isnan(none[0]) and math.isnan(none[1])


def test_responses_shown_with_broken_markers_are_counted(workdir: Path) -> None:
    """The judged text cannot end its own question, and that it tried is a column of the curve."""
    family(workdir, rate=RATE)
    (workdir / "prompts" / "test" / "family.yaml").write_text("reserved: [wish]")
    engine = FunctionEngine()
    part = Part(name="judge", reward=judge(workdir, engine, prompts=PromptFamily("test")))
    scored = score([part], [prompt("b")] * 2, ["a wish of mine", "fine"], [0.0, 0.0])
    assert scored.parts["judge_neutralised"] == [1.0, 0.0] and scored.parts["judge_missing"] == [0.0, 0.0]
    assert engine.scored[0][0].text.count("wish") == 1


def test_a_judge_is_checked_before_it_loads(workdir: Path) -> None:
    with pytest.raises(LabelerError, match="num_principles: must be at least 1, got 0"):
        judge(workdir, FunctionEngine(), num_principles=0)
    with pytest.raises(LabelerError, match="min_mass: must be a probability from 0 to below 1, got 1"):
        judge(workdir, FunctionEngine(), min_mass=1)
    with pytest.raises(CaiError, match="unknown template of the prompt family 'test' 'rate'"):
        (workdir / "prompts" / "test" / "rate.jinja").unlink()
        judge(workdir, FunctionEngine(), prompts=PromptFamily("test"))
    assert set(judge(workdir, FunctionEngine()).texts()) == {"constitution", "prompts/rate", "judge"}


@pytest.mark.parametrize("name", ["chat", "few_shot", "sandbox"])
def test_shipped_families_can_rate(name: str) -> None:
    assert "rate" in PromptFamily(name).kinds
