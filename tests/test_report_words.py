"""The words of the report: numbers with intervals, verdicts, findings, limits."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from reports import estimate, figures, page, quick, runs, shown

from cai.report.measures import Column, Difference
from cai.report.words import figure, interval, joined, label_findings, move, plain, signed, verdict, with_interval

__all__ = ["figures", "page", "runs"]  # fixtures


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1234567.0, 0, "1 234 567"), (-0.04, 1, "0.0"), (-1.25, 1, "-1.2"), (-1234.5, 1, "-1 234.5"), (0.0, 2, "0.00")],
)
def test_plain(value: float, decimals: int, text: str) -> None:
    assert shown(plain(value, decimals)) == text


def test_numbers_with_intervals() -> None:
    assert shown(with_interval(estimate(0.713, 0.672, 0.752), "%")) == "71 % [67, 75]"
    assert shown(with_interval(estimate(0.013, 0.005, 0.024), "%")) == "1.3 % [0.5, 2.4]"
    assert shown(with_interval(estimate(0.003, 0.0, 0.04), "%")) == "0.3 % [0.0, 4.0]", "not zero"
    assert shown(with_interval(estimate(0.03, 0.004, 0.05), "%")) == "3.0 % [0.4, 5.0]"
    assert shown(with_interval(estimate(0.0, 0.0, 0.04), "%")) == "0 % [0, 4]"
    assert shown(with_interval(estimate(1.474, 1.2, 1.75), "nats")) == "1.47 nats [1.20, 1.75]"
    assert shown(figure(12.04, "tokens")) == "12.0 tokens"
    assert shown(interval(estimate(-0.5, -1, 0), "")) == "[-1.00, 0.00]"
    assert shown(signed(estimate(0.03, -0.012, 0.06), "%")) == "+3 points [-1, +6]"
    assert shown(signed(estimate(-0.02, -0.041, -0.004), "%")) == "-2.0 points [-4.1, -0.4]"
    assert joined(["a", "b", "c"]) == "a, b and c"


def difference(value: float, low: float, high: float, p_holm: float) -> Difference:
    return Difference("A", "B", "rate", estimate(value, low, high), p_holm)


def test_verdicts_hedge() -> None:
    lower, neither = Column("rate", "Rate", "%", "lower"), Column("rate", "Rate", "")
    assert verdict(difference(0.01, -0.10, 0.12, 1.0), lower) == "no difference detected"
    near = replace(difference(0.01, -0.02, 0.04, 1.0), estimate=replace(estimate(0.01, -0.02, 0.04), p_equal=0.01))
    assert verdict(near, lower) == "no difference detected, and equal within 5 points"
    at_odds = difference(-0.035, -0.069, 0.004, 0.03)
    assert verdict(at_odds, lower) == "no difference detected" and not at_odds.is_detected, "its interval holds 0"
    assert verdict(difference(-0.2, -0.3, -0.1, 0.001), lower) == "in favour of A"
    assert verdict(difference(0.2, 0.1, 0.3, 0.001), lower) == "in favour of B"
    assert verdict(difference(0.2, 0.01, 0.3, 0.2), neither) == (
        "higher, but not after correction for the number of comparisons"
    )


def test_the_summary_says_which_way_only_beyond_doubt() -> None:
    assert move(None) == ""
    assert move(difference(0.01, -0.10, 0.12, 1.0)) == "no difference from B detected"
    assert move(difference(-0.2, -0.3, -0.01, 0.138)) == (
        "below B, but not after correction for the number of comparisons"
    )
    assert (move(difference(-0.2, -0.3, -0.1, 0.001)), move(difference(0.2, 0.1, 0.3, 0.001))) == ("lowers", "raises")


def test_findings_say_what_happened(figures: dict[str, Any]) -> None:
    found = {heading: shown(text) for heading, text in figures["findings"]}
    assert list(found) == ["Harmful compliance", "Helpfulness", "Side effects", "Against SL-CAI", "RLAIF against RLHF",
                           "Labels and reward models"]  # fmt: skip
    harm = r"Base is at \d+ % \[\d+, \d+\]\. SL-CAI lowers it to .* RLHF lowers it to .* and RLAIF to "
    assert re.match(harm, found["Harmful compliance"])
    assert "ties count half" in found["Against SL-CAI"]
    assert re.search("so that even the truth would match .* of their labels at most", found["Labels and reward models"])


def test_limits_follow_from_the_runs(runs: list[Path], figures: dict[str, Any]) -> None:
    text = " ".join(figures["limits"])
    assert text.startswith("Two seeds. The intervals hold for the very models that were trained")
    assert "Declared beforehand to be what counts: harmful compliance and helpfulness." in text
    assert "the model that labelled for RLAIF," in text
    assert "RLHF was labelled by simulated people, whose values are exactly the gold score" in text
    alone = " ".join(quick([r for r in runs if "seed=0" in str(r) and r.name == "rlhf"]).limits)
    assert alone.startswith("One seed.") and "that labelled for" not in alone


def test_of_many_arms_the_summary_has_the_range(runs: list[Path]) -> None:
    report = quick(runs)
    models = [replace(report.reward_models[0], arm=f"{n}", accuracy=estimate(n / 10, 0, 1)) for n in (6, 5, 8, 7)]
    ((_, told),) = label_findings(None, models)
    assert shown(told) == "On held-out pairs reward models predict 50 % to 80 % of the labels of their arm."


def test_limits_say_that_arms_have_different_judges(runs: list[Path], tmp_path: Path) -> None:
    alike = quick(runs)
    assert not any("differs between arms" in text for text in alike.limits)
    assert dict(alike.findings)["Against SL-CAI"].startswith("By the AI judge, RLHF wins ")
    copied = []
    for run in runs:
        folder = tmp_path / run.parent.name / run.name
        shutil.copytree(run, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        judge = {"constitution": {"path": f"of_{run.name}"}, "seed": config["seed"], "engine": {"device": run.name}}
        config["win_rate"]["labeler"] |= judge
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        copied.append(folder)
    report = quick(copied)
    told = [text for text in report.limits if "judge" in text and "is the model that labelled" not in text]
    assert told == [
        "The judge of the win rates differs between arms: win_rate.labeler.constitution.path is of_rlhf in RLHF and "
        "of_rlaif in RLAIF. Each arm is judged by its own, and one arm against another by that of the arm listed "
        "first: rates of different arms cannot be compared. One judge for all: "
        "win_rate.labeler.constitution.path=of_rlhf."
    ]
    summary = dict(report.findings)["Against SL-CAI"]
    assert summary.startswith("By the AI judge of each arm, not one and the same (see Limits), RLHF wins ")
    assert "By the gold score, RLHF wins" in summary


def test_limits_look_into_labelers_that_are_made_of_labelers(runs: list[Path], tmp_path: Path) -> None:
    """People of other values are not at home on gold; a judge inside of `mixed` is still the judge."""
    people = {"_target_": "cai.labelers.simulated.Labeler", "groups": {"polite": {"gold": 1, "polite": 2}}}
    labelers = {"ai": {"_target_": "cai.labelers.ai.Labeler"}, "simulated": people}
    copied = []
    for run in (r for r in runs if r.name == "rlhf"):
        folder = tmp_path / run.parent.name / "rlhf"
        shutil.copytree(run, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["label"]["labeler"] = {"_target_": "cai.labelers.mixed.Labeler", "labelers": labelers}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        copied.append(folder)
    text = " ".join(quick(copied).limits)
    assert "RLHF was labelled by simulated people, who value columns of the scorer" in text
    assert "is the model that labelled for RLHF," in text
