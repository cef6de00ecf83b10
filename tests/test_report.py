"""The report: what it reads, what it says, and what it leaves out, on made-up run folders."""

import math
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_runs import HOSTILE, NOTICE, make_runs

from cai import config
from cai.errors import DataError
from cai.records import read_json, read_rows, write_json
from cai.report.judged import judged_by_arm
from cai.report.labels import read_labels
from cai.report.layout import render
from cai.report.measures import Column, Difference
from cai.report.page import Report, as_json, gather, pictures, write
from cai.report.runs import policies_of, read_runs
from cai.report.statistics import Bootstrap, Estimate
from cai.report.words import figure, interval, joined, plain, signed, verdict, with_interval


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("made-up"), seeds=(0, 1))


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> str:
    return write(gather(runs), runs[0].parents[1] / "report").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figures(page: str, runs: list[Path]) -> dict[str, Any]:
    found: dict[str, Any] = read_json(runs[0].parents[1] / "report" / "report.json")
    return found


def quick(folders: list[Path]) -> Report:
    return gather(folders, num_draws=50)


def scores(folder: Path, stage: str) -> list[dict[str, Any]]:
    return read_rows(Path(read_json(folder / "run.json")["stages"][stage]["path"]) / "scores.jsonl")


# --- the page ---------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Checks that tags close in order; collects ids, addresses and the text of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "img", "link", "object", "form")
        for name, value in attributes:
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src", "xlink:href"):
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_page_stands_alone_and_runs_nothing(page: str) -> None:
    found = outline(page)
    assert "default-src 'none'" in page
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"url\((?!#)", page)
    assert len(page) < 2_000_000


def test_first_words_are_the_notice_of_the_data(page: str) -> None:
    assert outline(page).texts[:3] == [
        "RLHF and RLAIF compared",
        NOTICE,
        "RLHF and RLAIF compared",
    ]  # title, notice, h1


def test_real_runs_on_the_sandbox_say_so_first(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, arms={"rlaif": "ai"}, num_prompts=4, num_comparisons=4)
    settings = asdict(config.compose(["experiment=rlaif"]))
    (folders[0] / "config.yaml").write_text(yaml.safe_dump(settings))
    assert quick(folders).notice.startswith("Made on the embedded sandbox")


@pytest.mark.slow
def test_what_was_interrupted_cost_at_least_this(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=8, num_comparisons=8)
    run = read_json(folders[0] / "run.json")
    run["stages"]["label"]["resumed"] = True
    run["stages"]["label"]["facts"]["cost"] = 1.254  # a server's bill
    write_json(folders[0] / "run.json", run)
    report = quick(folders)
    assert [(c.stage, c.arms, c.usd) for c in report.costs if c.at_least] == [("label", ("RLHF",), 1.254)]
    page = render(report, {**dict.fromkeys(pictures(report), "")})
    assert page.count("<b>at least ") == 2  # the stage, and the total of its column
    assert page.count(" USD") == 1 and ", 1.25 USD" in page


def test_every_constitution_and_template_that_was_used_is_told(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=8, num_comparisons=8)
    other = yaml.safe_load((folders[0] / "constitution.yaml").read_text())
    (folders[1] / "constitutions").mkdir()
    (folders[1] / "constitutions" / "win_rate.labeler.constitution.yaml").write_text(
        yaml.safe_dump({**other, "name": "other"})
    )
    (folders[1] / "prompts" / "judge.jinja").write_text("which is worse?")
    (folders[1] / "prompts" / "critique.jinja").write_text("what is bad?")
    own, judges = quick(folders).constitutions
    assert judges.arms == ("RLAIF (win_rate.labeler.constitution)",)
    assert judges.constitution is not None and judges.constitution.name == "other"
    assert own.arms == ("RLHF", "RLAIF")
    assert list(own.templates) == ["judge.jinja", "critique.jinja", "judge.jinja (RLAIF, 0)"]


def test_texts_of_models_and_people_are_escaped(page: str) -> None:
    assert "<script" not in page and "<b>{{" not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; {{ 7 * 7 }}" in page
    assert "\u202e" not in page and "\x07" not in page
    assert "\u202e" in HOSTILE  # so that the line above means something


def test_every_part_is_there_in_order(page: str) -> None:
    parts = re.findall(r'<section id="(\w+)">', page)
    assert parts == ["responses", "differences", "wins", "labels", "reward", "rl", "principles", "samples",
                     "constitution", "revise", "cost", "limits", "provenance"]  # fmt: skip
    assert [int(n) for n in re.findall(r"<b>Figure (\d)\.</b>", page)] == list(range(1, 9))
    assert 'class="absent"' not in page


@pytest.mark.slow
def test_same_runs_in_any_order_same_bytes(runs: list[Path], tmp_path: Path, page: str) -> None:
    again = write(gather(runs[::-1]), tmp_path)
    assert again.read_text(encoding="utf-8") == page
    assert (tmp_path / "report.json").read_bytes() == (runs[0].parents[1] / "report" / "report.json").read_bytes()


# --- figures ----------------------------------------------------------------------------------------------------------


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
    refused = [r for r in rows if r["refusal"] or (r["evasive"] and r["refusal"] is not None)]
    evasive = sum(r["evasive"] for r in refused) / len(refused)
    assert found["evasive_share"]["value"] == pytest.approx(evasive)


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


# --- what is not there ------------------------------------------------------------------------------------------------


TRAINED = ("rl", "reward", "label", "win_rate", "win_rate_over_rlaif", "revise", "evaluate_policy")


def test_missing_stages_are_named_and_never_zero(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=20, num_comparisons=20, leave_out=TRAINED)
    for folder in folders:
        (folder / "constitution.yaml").write_text("name: old\nprinciples: <none>\n")  # breaks rules that came later
    report = quick(folders)
    page = render(report, {})
    outline(page)
    assert [p.name for p in report.policies] == ["Base", "SL-CAI"]
    for text in ("No policy of RLHF and RLAIF was evaluated", "No win rates", "No labels", "No reward model",
                 "No RL stage", "No critiques or revisions", "cannot be read by this version"):  # fmt: skip
        assert text in page
    found = as_json(report)
    assert found["labels"] is None and found["reward_models"] == [] and found["curves"] == {}
    assert "RLHF" not in found["measures"]["figures"]


def test_columns_come_from_the_scorer(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=20, num_comparisons=20, columns=("refusal", "num_fillers"))
    for folder in folders:  # nobody labels by gold, nobody measures it
        label = Path(read_json(folder / "run.json")["stages"]["label"]["path"])
        text = re.sub(r'"gold": \[[^]]*\]', '"other": 0', (label / "judgments.jsonl").read_text())
        (label / "judgments.jsonl").write_text(text)
        write_json(label / "label.json", {"gold": None})
    report = quick(folders)
    page = render(report, pictures(report))
    outline(page)
    assert [c.name for c in report.measures.columns] == ["length", "kl", "refusal", "num_fillers", "finished"]
    units = {c.name: c.unit for c in report.measures.columns}
    assert (units["refusal"], units["num_fillers"]) == ("%", "")
    for text in ("There is no gold score", "trade-off between helpfulness and harmlessness is left out",
                 "agreement with gold is left out", "No gold score was recorded during training"):  # fmt: skip
        assert text in page
    assert not any(rate.judge == "gold" for rate in report.win_rates)
    assert {"pareto", "gold"} <= set(report.absent)


def test_run_without_evaluations(tmp_path: Path) -> None:
    leave_out = (*TRAINED, "evaluate_base", "evaluate_sl_cai", "sample")
    report = quick(make_runs(tmp_path, num_prompts=10, num_comparisons=10, leave_out=leave_out))
    assert pictures(report) == {}
    assert "No model was evaluated" in render(report, {})


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no runs to report on"):
        gather([])
    with pytest.raises(DataError, match=r"is no run folder \(there is no run.json in it\)"):
        gather([tmp_path])
    write_json(tmp_path / "run.json", {"name": "x", "stages": {}})
    with pytest.raises(DataError, match=r"run.json: key 'seed' is missing"):
        gather([tmp_path])
    write_json(tmp_path / "run.json", {"seed": 0, "stages": {"data": {"path": "gone", "fingerprint": "0"}}})
    with pytest.raises(DataError, match=r"stages.data.path: there is no folder"):
        gather([tmp_path])


# --- arms -------------------------------------------------------------------------------------------------------------


def run_folder(root: Path, name: str, command: list[str], *, arm: str | None = None, seed: int = 0) -> Path:
    folder = root / name
    stages: dict[str, Any] = {}
    for stage in ("evaluate_base", "evaluate_sl_cai", "evaluate_policy"):
        key = "base" if stage == "evaluate_base" else f"{seed}-{name}-{stage}"
        path = root / "store" / key
        path.mkdir(parents=True, exist_ok=True)
        stages[stage] = {"fingerprint": key, "path": str(path)}
    run = {"name": name, "arm": arm, "seed": seed, "command": ["cai", "run", *command], "stages": stages}
    write_json(folder / "run.json", run)
    return folder


def test_jobs_of_a_sweep_are_arms_over_seeds(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path, f"c={c}-s={s}", ["experiment=rlaif", f"constitution={c}", f"seed={s}"], seed=s)
        for c in ("minimal", "harmless")
        for s in (0, 1)
    ]
    runs = read_runs(folders)
    assert [(r.arm, r.seed) for r in runs] == [
        (f"RLAIF constitution={c}", s) for c in ("minimal", "harmless") for s in (0, 1)
    ]
    policies = policies_of(runs)
    assert [p.name for p in policies] == [
        "Base",
        "SL-CAI of RLAIF constitution=minimal",
        "SL-CAI of RLAIF constitution=harmless",
        "RLAIF constitution=minimal",
        "RLAIF constitution=harmless",
    ]
    assert sorted(policies[0].evaluations) == [0, 1]


def test_seeds_alone_are_one_arm(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path, f"rlaif-seed={s}", ["experiment=rlaif", f"seed={s}"], seed=s) for s in (0, 1, 2)]
    assert {run.arm for run in read_runs(folders)} == {"RLAIF"}


def test_the_same_command_twice_is_told_apart_by_folder(tmp_path: Path) -> None:
    command = ["experiment=rlaif", "constitution=mine"]
    folders = [run_folder(tmp_path, name, [*command, f"name={name}"]) for name in ("before", "after")]
    assert {run.arm for run in read_runs(folders)} == {"RLAIF (before)", "RLAIF (after)"}
    sweeps = [
        run_folder(tmp_path / n, f"rlaif-seed={s}", command, seed=s)
        for n in ("sweep-x-seed=0,1", "sweep-x-seed=0,1-2")
        for s in (0, 1)
    ]
    assert {run.arm for run in read_runs(sweeps)} == {"RLAIF (sweep-x)", "RLAIF (sweep-x-2)"}
    other = tmp_path / "elsewhere" / "after"
    shutil.copytree(folders[1], other)
    with pytest.raises(DataError, match="two runs are both 'RLAIF \\(after\\)' with seed 0"):
        read_runs([*folders, other])


# --- words ------------------------------------------------------------------------------------------------------------


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 100, 100)


def shown(text: str) -> str:
    """With plain spaces and signs, for reading."""
    return text.replace("\u202f", " ").replace("\u00a0", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1234567.0, 0, "1 234 567"), (-0.04, 1, "0.0"), (-1.25, 1, "-1.2"), (-1234.5, 1, "-1 234.5"), (0.0, 2, "0.00")],
)
def test_plain(value: float, decimals: int, text: str) -> None:
    assert shown(plain(value, decimals)) == text


def test_numbers_with_intervals() -> None:
    assert shown(with_interval(estimate(0.713, 0.672, 0.752), "%")) == "71 % [67, 75]"
    assert shown(with_interval(estimate(0.013, 0.005, 0.024), "%")) == "1.3 % [0.5, 2.4]"
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
    assert verdict(difference(-0.2, -0.3, -0.1, 0.001), lower) == "in favour of A"
    assert verdict(difference(0.2, 0.1, 0.3, 0.001), lower) == "in favour of B"
    assert verdict(difference(0.2, 0.01, 0.3, 0.2), neither) == (
        "higher, but not after correction for the number of comparisons"
    )


def test_findings_say_what_happened(figures: dict[str, Any]) -> None:
    found = {heading: shown(text) for heading, text in figures["findings"]}
    assert list(found) == ["Harmful compliance", "Helpfulness", "Side effects", "Against SL-CAI", "RLAIF against RLHF",
                           "Labels and reward models"]  # fmt: skip
    harm = r"Base is at \d+ % \[\d+, \d+\]\. SL-CAI lowers it to .* RLHF lowers it to .* and RLAIF to "
    assert re.match(harm, found["Harmful compliance"])
    assert "ties count half" in found["Against SL-CAI"]
    assert "so that even the truth would match about" in found["Labels and reward models"]


def test_limits_follow_from_the_runs(runs: list[Path], figures: dict[str, Any]) -> None:
    text = " ".join(figures["limits"])
    assert text.startswith("Two seeds. The intervals hold for the very models that were trained")
    assert "Declared beforehand to be what counts: harmful compliance and helpfulness." in text
    assert "the model that labelled for RLAIF," in text
    assert "RLHF was labelled by simulated people, whose values are exactly the gold score" in text
    alone = " ".join(quick([r for r in runs if "seed=0" in str(r) and r.name == "rlhf"]).limits)
    assert alone.startswith("One seed.") and "that labelled for" not in alone


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


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_has_nothing_to_complain_about(page: str, runs: list[Path], scheme: Any) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: the page was not opened in a browser")
    messages: list[str] = []
    with sync_api.sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = window.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("request", lambda request: messages.append(request.url))
        tab.goto((runs[0].parents[1] / "report" / "report.html").as_uri())
        messages.remove((runs[0].parents[1] / "report" / "report.html").as_uri())
        assert messages == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1200
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 23, 27)"}[scheme]
        window.close()
