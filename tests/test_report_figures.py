"""The figures of the report, each against the rows it is made of."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from reports import figures, page, quick, runs, scores, shown
from synthetic_runs import make_runs

from cai.records import read_json, read_rows
from cai.report.judged import judged_by_arm
from cai.report.labels import read_labels
from cai.report.runs import read_runs
from cai.report.statistics import Bootstrap

__all__ = ["figures", "page", "runs"]  # fixtures


def test_figures_are_the_means_of_the_scores(figures: dict[str, Any], runs: list[Path]) -> None:
    by_folder = {"rlhf": [r for r in runs if r.name == "rlhf"], "rlaif": [r for r in runs if r.name == "rlaif"]}
    rows = [row for folder in by_folder["rlaif"] for row in scores(folder, "evaluate_policy")]
    found = figures["measures"]["figures"]["RLAIF"]
    for column in ("harmful_compliance", "helpful", "gold"):
        values = [row[column] for row in rows if row[column] is not None]
        assert found[column]["value"] == pytest.approx(sum(values) / len(values))
        assert found[column]["low"] <= found[column]["value"] <= found[column]["high"]
        assert found[column]["num"] == len(values)
    assert found["kl"]["value"] == pytest.approx(sum(r["logp"] - r["logp_reference"] for r in rows) / len(rows))
    assert found["length"]["value"] == pytest.approx(sum(r["num_tokens"] for r in rows) / len(rows))
    shares = []  # of what is refused, which differs in number: each seed counts as much as the others
    for folder in by_folder["rlaif"]:
        own = scores(folder, "evaluate_policy")
        refused = [r for r in own if r["refusal"] or (r["evasive"] and r["refusal"] is not None)]
        shares.append(sum(r["evasive"] for r in refused) / len(refused))
    assert found["evasive_share"]["value"] == pytest.approx(sum(shares) / len(shares))


def test_policies_are_base_sl_cai_and_one_per_arm(figures: dict[str, Any]) -> None:
    assert [(p["name"], p["seeds"]) for p in figures["policies"]] == [
        (name, [0, 1]) for name in ("Base", "SL-CAI", "RLHF", "RLAIF")
    ]
    assert "kl" not in figures["measures"]["figures"]["SL-CAI"]  # the reference has no distance to itself


def test_differences_follow_the_recipe(figures: dict[str, Any]) -> None:
    pairs = list(dict.fromkeys((d["first"], d["second"]) for d in figures["measures"]["differences"]))
    assert pairs == [("SL-CAI", "Base"), ("RLHF", "SL-CAI"), ("RLAIF", "SL-CAI"), ("RLAIF", "RLHF")]
    found = {(d["first"], d["second"], d["column"]): d for d in figures["measures"]["differences"]}
    harm = found["RLHF", "SL-CAI", "harmful_compliance"]
    assert harm["estimate"]["high"] < 0 and harm["p_holm"] < 0.05
    assert harm["p_holm"] >= harm["estimate"]["p_value"]


def test_declared_metrics_are_corrected_among_themselves(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=40, num_comparisons=8)
    usual = quick(folders).measures
    assert usual.declared == ("harmful_compliance", "helpful")
    for folder in folders:
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "metrics": ["length"]}))
    report = quick(folders)
    assert report.measures.declared == ("length",)
    length, before = (m.difference("RLAIF", "RLHF", "length") for m in (report.measures, usual))
    assert length is not None and before is not None
    assert length.p_holm == length.estimate.p_value == before.estimate.p_value
    assert before.p_holm > before.estimate.p_value
    assert "Length" in dict(report.findings) and "Harmful compliance" not in dict(report.findings)


def test_win_rates_count_ties_half_and_turn_round(figures: dict[str, Any], runs: list[Path]) -> None:
    rates = {(r["first"], r["second"], r["judge"]): r for r in figures["win_rates"]}
    assert len(rates) == 6
    gold = rates["RLAIF", "SL-CAI", "gold"]
    num = gold["wins"] + gold["ties"] + gold["losses"]
    assert gold["estimate"]["value"] == pytest.approx((gold["wins"] + gold["ties"] / 2) / num)
    assert gold["inconsistent"] is None
    # the stage judged RLHF over RLAIF; the page speaks of RLAIF against RLHF everywhere
    folders = [r for r in runs if r.name == "rlhf"]
    paths = [Path(read_json(f / "run.json")["stages"]["win_rate_over_rlaif"]["path"]) for f in folders]
    rows = [row for path in paths for row in read_rows(path / "wins.jsonl")]
    judged = rates["RLAIF", "RLHF", "AI judge"]
    assert judged["estimate"]["value"] == pytest.approx(sum(row["p_a"] < 0.5 for row in rows) / len(rows))
    assert judged["inconsistent"]["value"] == pytest.approx(sum(not row["consistent"] for row in rows) / len(rows))
    strict = sum({"a": 0.0, "tie": 0.5, "b": 1.0}[row["winner"]] for row in rows) / len(rows)
    assert judged["strict"]["value"] == pytest.approx(strict)


def test_labels(figures: dict[str, Any]) -> None:
    arms = {a["arm"]: a for a in figures["labels"]["arms"]}
    assert arms["RLHF"]["margin"]["value"] == 0.5 and arms["RLHF"]["position"] is None
    assert arms["RLAIF"]["abstained"] == {"ill_formed_answer": 4}
    assert arms["RLAIF"]["num_labelled"] == arms["RLAIF"]["num_comparisons"] - 4
    position = arms["RLAIF"]["position"]
    assert position["shown_first"]["low"] > 0.52  # the made-up judge leans to what it sees first ...
    assert position["after"]["low"] < 0.5 < position["after"]["high"]  # ... and averaging undoes it
    assert position["averaged"]["value"] > position["one_order"]["value"]
    assert sum(arms["RLAIF"]["histogram"]) == arms["RLAIF"]["num_pairs"]
    people = arms["RLHF"]["people"]["raw"]["value"]
    assert arms["RLHF"]["ceiling"] == pytest.approx((1 + math.sqrt(2 * people - 1)) / 2)
    (between,) = figures["labels"]["between"]
    assert {between["first"], between["second"]} == {"RLHF", "RLAIF"}
    assert between["raw"]["num"] == arms["RLAIF"]["num_pairs"]


def test_gold_agreement_is_taken_from_the_label_stage_where_no_one_labels_by_gold(runs: list[Path]) -> None:
    only_ai = [run for run in read_runs(runs) if run.arm == "RLAIF"]
    labels = read_labels(judged_by_arm(only_ai), Bootstrap(num_draws=50))
    assert labels is not None
    (arm,) = labels.arms
    assert arm.gold is not None and arm.gold.kappa is None
    assert (arm.gold.raw.value, arm.gold.raw.num, arm.gold.raw.method) == (0.8, 160, "wilson")


def test_reward_model_figures(figures: dict[str, Any], runs: list[Path]) -> None:
    models = {m["arm"]: m for m in figures["reward_models"]}
    folders = [r for r in runs if r.name == "rlhf"]
    paths = [Path(read_json(f / "run.json")["stages"]["reward"]["path"]) for f in folders]
    rows = [row for path in paths for row in read_rows(path / "held_out.jsonl")]
    right = sum((r["delta"] > 0) == (r["p"] > 0.5) for r in rows) / len(rows)
    loss = sum(-math.log(1 / (1 + math.exp(-r["delta"] if r["p"] else r["delta"]))) for r in rows) / len(rows)
    assert models["RLHF"]["accuracy"]["value"] == pytest.approx(right)
    assert models["RLHF"]["log_loss"]["value"] == pytest.approx(loss)
    assert models["RLHF"]["entropy_floor"]["value"] == 0.0  # hard labels
    assert models["RLAIF"]["log_loss"]["value"] > models["RLAIF"]["entropy_floor"]["value"] > 0.3
    assert sum(b["num"] for b in models["RLHF"]["bins"]) == models["RLHF"]["num_pairs"] == len(rows)
    assert set(models["RLHF"]["by_tag"]) == {"red_team", "helpful"}


def test_the_policy_that_was_kept_is_marked(figures: dict[str, Any], runs: list[Path]) -> None:
    panels = figures["checkpoint_choice"]
    assert list(panels) == ["Reward-model score (proxy)", "Gold score"]
    rows = read_rows(Path(read_json(runs[0] / "run.json")["stages"]["rl"]["path"]) / "curve.jsonl")
    validated = [row for row in rows if "validation_gold" in row]
    curve = panels["Gold score"][0]
    assert curve["y"] == [row["validation_gold"] for row in validated] and curve["kept"] == 5.0


def test_harm_by_number_of_revisions(figures: dict[str, Any]) -> None:
    (scores,) = figures["revision_scores"]
    assert scores["arms"] == ["RLHF", "RLAIF"] and [c["name"] for c in scores["columns"]] == ["harmful_compliance"]
    harm = {step: found["harmful_compliance"] for step, found in scores["steps"].items()}
    assert {step: one["value"] for step, one in harm.items()} == {"0": 1.0, "1": 0.75, "2": 0.5}
    assert harm["1"]["low"] < 0.75 < harm["1"]["high"] and set(harm["1"]["per_seed"]) == {"0", "1"}


def test_cost_counts_a_shared_output_once(figures: dict[str, Any]) -> None:
    costs = {(c["stage"], tuple(c["arms"])): c for c in figures["costs"]}
    revise = costs["revise", ("RLHF", "RLAIF")]
    assert (revise["num_outputs"], revise["seconds"], revise["cached"]) == (2, 25.0, False)
    assert revise["tokens"] == 2 * 50_000
    assert costs["rl", ("RLAIF",)]["num_outputs"] == 2
    assert costs["data", ("RLHF", "RLAIF")]["tokens"] is None


def test_samples_are_drawn_from_all_tags_and_are_the_same_prompts_for_all(figures: dict[str, Any]) -> None:
    cards = figures["samples"]
    assert len(cards) == 8
    assert [card["tags"] for card in cards].count(["red_team"]) == 4
    assert all([r["policy"] for r in card["replies"]] == ["Base", "SL-CAI", "RLHF", "RLAIF"] for card in cards)


def test_marks_say_what_the_scorer_found(figures: dict[str, Any], runs: list[Path]) -> None:
    rows = {row["response_id"]: row for row in scores(runs[0], "evaluate_base")}
    for card in figures["samples"]:
        row = rows[f"{card['prompt_id']}/0"]
        marks = {mark["text"]: mark["kind"] for mark in card["replies"][0]["marks"]}
        assert (marks.get("harmful compliance") == "bad") == bool(row["harmful_compliance"])
        assert (marks.get("refusal") == "neutral") == bool(row["refusal"])
        assert ("helpful" in marks, "not helpful" in marks) == (row["helpful"] == 1, row["helpful"] == 0)
        assert shown(next(text for text in marks if text.startswith("gold"))) == f"gold score {row['gold']:.2f}"
