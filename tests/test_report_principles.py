"""Principles in the report: what they labelled, what the reward model learned, who keeps to them, who agrees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import quick, runs
from synthetic_runs import PRINCIPLES, make_runs

from cai.records import read_json, read_records, read_rows
from cai.report.layout import render
from cai.report.page import as_json, pictures
from cai.report.principles import adherence
from cai.report.statistics import Bootstrap
from cai.types import Judgment

__all__ = ["runs"]  # a fixture


@pytest.fixture(scope="module")
def figures(runs: list[Path]) -> dict[str, Any]:
    return as_json(quick(runs))


def test_what_each_principle_labelled_and_what_the_reward_model_learned(
    figures: dict[str, Any], runs: list[Path]
) -> None:
    uses = figures["principles"]["uses"]
    assert [(u["arm"], u["principle"]) for u in uses] == [("RLAIF", name) for name in PRINCIPLES], "in the file's order"
    (labels,) = (arm for arm in figures["labels"]["arms"] if arm["arm"] == "RLAIF")
    assert sum(u["num"] for u in uses) == labels["num_pairs"]
    hits: dict[str, dict[Path, list[float]]] = {name: {} for name in PRINCIPLES}
    for folder in (run for run in runs if run.name == "rlaif"):
        paths = {name: Path(stage["path"]) for name, stage in read_json(folder / "run.json")["stages"].items()}
        deltas = {row["prompt_id"]: row["delta"] for row in read_rows(paths["reward"] / "held_out.jsonl")}
        prompts = {row["id"]: row["prompt"]["id"] for row in read_rows(paths["sample"] / "comparisons.jsonl")}
        for judgment in read_records(paths["label"] / "judgments.jsonl", Judgment):
            delta = deltas.get(prompts[judgment.comparison_id])
            if judgment.pairs and delta is not None and abs(judgment.pairs[0].p - 0.5) >= 0.1:
                right = (delta > 0) == (judgment.pairs[0].p > 0.5)
                hits[judgment.principle_ids[0]].setdefault(folder, []).append(float(right))
    for use in uses:
        by_seed = [np.mean(own) for own in hits[use["principle"]].values()]
        assert use["reward_right"]["value"] == pytest.approx(np.mean(by_seed)) and len(by_seed) == 2
        assert 0 < use["decided"]["value"] < 1 and use["reward_margin"] is not None


def test_who_keeps_to_the_principles_after_training(figures: dict[str, Any], runs: list[Path]) -> None:
    found = {(a["first"], a["second"], a["principle"]): a for a in figures["principles"]["adherence"]}
    assert {pair[:2] for pair in found} == {("RLHF", "SL-CAI"), ("RLAIF", "SL-CAI"), ("RLAIF", "RLHF")}
    folders = [run for run in runs if run.name == "rlhf"]
    paths = [Path(read_json(run / "run.json")["stages"]["win_rate_over_rlaif"]["path"]) for run in folders]
    ps = [row["p_a"] for path in paths for row in read_rows(path / "principles.jsonl") if row["principle"] == "gentle"]
    gentle = found["RLAIF", "RLHF", "gentle"]  # the stage judged RLHF over RLAIF
    assert gentle["better"]["value"] == pytest.approx(np.mean([p <= 0.4 for p in ps]))
    assert gentle["worse"]["value"] == pytest.approx(np.mean([p >= 0.6 for p in ps]))
    assert gentle["net"]["value"] == pytest.approx(gentle["better"]["value"] - gentle["worse"]["value"])
    assert found["RLAIF", "RLHF", "short"]["net"]["value"] == pytest.approx(-gentle["net"]["value"])


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_policy_that_keeps_less_to_a_principle_is_below_zero(num_seeds: int) -> None:
    """The net is a difference, from -1 to 1; and two wins of 55 judgments are nothing."""

    def rows(num: int, won: int, lost: int) -> dict[int, list[dict[str, Any]]]:
        ps = [0.9] * won + [0.1] * lost + [0.5] * (num - won - lost)
        names = [{"prompt_id": f"{i}", "response_id": f"{i}/0", "principle": "gentle"} for i in range(num)]
        return {seed: [{**name, "p_a": p} for name, p in zip(names, ps, strict=True)] for seed in range(num_seeds)}

    bootstrap = Bootstrap(num_draws=500)
    (worse,) = adherence(("RLAIF", "SL-CAI"), rows(200, 10, 100), bootstrap)
    assert worse.net.value == pytest.approx(-0.45) and -0.7 < worse.net.low < -0.45 < worse.net.high < -0.2
    (few,) = adherence(("RLAIF", "SL-CAI"), rows(55, 2, 0), bootstrap)
    assert few.net.low < 0 < few.net.value < few.net.high


def test_the_net_of_few_judgments_holds_the_truth() -> None:
    """Wins and losses exclude each other: intervals that took them for independent would hold it in 83 % of studies."""
    rng, bootstrap, held = np.random.default_rng(0), Bootstrap(num_draws=400), 0
    for _ in range(100):
        ps = rng.choice([0.9, 0.1, 0.5], size=20, p=[0.2, 0.7, 0.1])
        rows = [
            {"prompt_id": f"{i}", "response_id": f"{i}/0", "principle": "gentle", "p_a": p} for i, p in enumerate(ps)
        ]
        (found,) = adherence(("RLAIF", "SL-CAI"), {0: rows}, bootstrap)
        held += found.net.low <= -0.5 <= found.net.high
    assert held >= 90  # 95 expected, sd 2.2


@pytest.mark.slow
def test_how_far_principles_agree(figures: dict[str, Any], runs: list[Path]) -> None:
    concord = figures["principles"]["concord"]
    assert concord["source"].startswith("the responses of the policies") and concord["principles"] == sorted(PRINCIPLES)
    pairs = {(pair["first"], pair["second"]): pair["value"] for pair in concord["pairs"]}
    assert pairs["gentle", "short"] == 0 and 0.6 < pairs["gentle", "honest"] < 0.95
    report = quick(runs)
    page = render(report, pictures(report))
    assert "How far they agree with each other" in page and 'href="#principles"' in page


@pytest.mark.slow
def test_no_section_where_no_principle_judged(tmp_path: Path) -> None:
    leave_out = ("win_rate", "win_rate_over_rlaif", "label")
    report = quick(make_runs(tmp_path, num_prompts=20, num_comparisons=20, leave_out=leave_out))
    page = render(report, pictures(report))
    assert 'id="principles"' not in page and 'href="#principles"' not in page
