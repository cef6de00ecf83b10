"""Sweeps in the report: arms of a grid, main effects, the Pareto front, what is not alike, tables for a paper."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from cai.records import read_json, write_json, write_records, write_rows
from cai.report.alike import differing, unequal
from cai.report.effects import factors_of, fronts, main_effects
from cai.report.layout import main_columns, render
from cai.report.measures import measured
from cai.report.page import Report, gather, pictures, write
from cai.report.runs import pairs_of_arms, policies_of, read_runs
from cai.report.statistics import Bootstrap
from cai.report.tables import paper_tables
from cai.types import Response

GRID = [(c, b) for c in ("soft", "hard") for b in ("0.05", "0.2")]
# what each choice adds to the logit of a harmful answer, and of a helpful one
EFFECTS = {"soft": (1.0, 0.5), "hard": (-1.0, 0.0), "0.05": (-0.5, 0.0), "0.2": (0.5, 0.0)}


def rates(*choices: str) -> tuple[float, float]:
    harm, help_ = (sum(EFFECTS[c][k] for c in choices) + base for k, base in ((0, -1.0), (1, 1.0)))
    return 1 / (1 + float(np.exp(-harm))), 1 / (1 + float(np.exp(-help_)))


def evaluation(folder: Path, name: str, seed: int, harm: float, help_: float, num: int = 120) -> dict[str, str]:
    """Scores of the made-up model `name` on prompts of the seed."""
    rng = np.random.default_rng([seed, *name.encode()])
    rows = []
    for i in range(num):
        harmful = i % 2 == 0
        happens = float(rng.random() < (harm if harmful else help_))
        rows.append({"prompt_id": f"{seed}-{i}", "response_id": f"{seed}-{i}/0", "num_tokens": int(rng.integers(5, 9)),
                     "harmful_compliance": happens if harmful else None, "helpful": None if harmful else happens,
                     "logp": -3.0, "logp_reference": -3.5})  # fmt: skip
    path = folder / "store" / f"{name}-{seed}"
    write_rows(path / "scores.jsonl", rows)
    records = [
        Response(id=r["response_id"], prompt_id=r["prompt_id"], text=name, model=name, num_tokens=5, finished=True)
        for r in rows
    ]
    write_records(path / "responses.jsonl", records)
    return {"fingerprint": f"{name}-{seed}", "path": str(path)}


def grid(root: Path, points: Sequence[tuple[str, str]] = GRID, seeds: Sequence[int] = (0, 1, 2)) -> list[Path]:
    """A run for every point (constitution, beta) and seed; SL-CAI hangs on the constitution, the base on nothing."""
    folders = []
    for constitution, beta in points:
        for seed in seeds:
            folder = root / f"run-constitution={constitution}-rl.beta={beta}-seed={seed}"
            arm = f"{constitution}-{beta}"
            base = evaluation(root, "base", seed, 0.7, 0.7)
            stages = {
                "evaluate_base": base | {"fingerprint": f"base-under-{constitution}-{seed}"},
                "evaluate_sl_cai": evaluation(root, f"sl-{constitution}", seed, 0.5, 0.7),
                "evaluate_policy": evaluation(root, arm, seed, *rates(constitution, beta)),
            }
            command = ["cai", "run", f"constitution={constitution}", f"rl.beta={beta}", f"seed={seed}"]
            write_json(folder / "run.json", {"seed": seed, "command": command, "stages": stages, "versions": {}})
            config = {
                "seed": seed,
                "data": {"source": {"seed": seed, "num_rl": 10}},
                "rl": {"beta": float(beta)},
                "revise": {"constitution": {"path": constitution}},
            }
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def report(folders: list[Path]) -> Report:
    return gather(folders, num_draws=1000)


# --- arms -------------------------------------------------------------------------------------------------------------


def test_arms_of_a_sweep_are_named_by_what_was_swept(report: Report) -> None:
    assert [p.name for p in report.policies] == [
        "Base",  # one, although each constitution has its own distance to SL-CAI
        "SL-CAI of constitution=soft",
        "SL-CAI of constitution=hard",
        *(f"constitution={c} rl.beta={b}" for c, b in GRID),
    ]
    assert "kl" not in report.measures.figures["Base"] and "kl" in report.measures.figures[report.policies[3].name]
    compared = {(d.first, d.second) for d in report.measures.differences}
    assert ("constitution=soft rl.beta=0.2", "SL-CAI of constitution=soft") in compared
    assert ("constitution=soft rl.beta=0.2", "SL-CAI of constitution=hard") not in compared
    assert ("SL-CAI of constitution=hard", "Base") in compared


def test_many_arms_are_compared_with_the_first(tmp_path: Path) -> None:
    points = [("soft", b) for b in ("0.05", "0.2")] + [("hard", b) for b in ("0.05", "0.2")]
    EFFECTS.update({"1": (0.0, 0.0), "2": (0.0, 0.0)})
    policies = policies_of(read_runs(grid(tmp_path, [*points, ("soft", "1"), ("soft", "2")], seeds=(0,))))
    assert {b.name for _, b in pairs_of_arms(policies)} == {"constitution=soft rl.beta=0.05"}
    assert len(pairs_of_arms(policies)) == 5


# --- main effects -----------------------------------------------------------------------------------------------------


def test_main_effects_are_means_over_the_other_key(report: Report) -> None:
    effects = {(e.key, e.level): e for e in report.effects}
    assert list(effects) == [("constitution", "hard"), ("rl.beta", "0.2")]
    for (key, level), effect in effects.items():
        assert effect.num_settings == 2 and effect.reference in ("soft", "0.05")
        values = {c: report.measures.figures[f"constitution={c[0]} rl.beta={c[1]}"]["harmful_compliance"] for c in GRID}
        own = [e.value for point, e in values.items() if level in point]
        others = [e.value for point, e in values.items() if effect.reference in point]
        assert effect.columns["harmful_compliance"].value == pytest.approx((sum(own) - sum(others)) / 2), key
    truth = np.mean([rates("hard", b)[0] - rates("soft", b)[0] for b in ("0.05", "0.2")])
    harm = effects["constitution", "hard"].columns["harmful_compliance"]
    assert harm.low < truth < harm.high < 0 and harm.method == "seeds" and list(harm.per_seed) == [0, 1, 2]
    assert effects["constitution", "hard"].p_holm["harmful_compliance"] < 0.05
    assert effects["rl.beta", "0.2"].p_holm["helpful"] > 0.05


def test_levels_that_never_met_have_no_effect(tmp_path: Path) -> None:
    """One job of four is missing: its key is judged by the setting that both levels have."""
    runs = read_runs(grid(tmp_path, GRID[:3]))
    policies = policies_of(runs)
    assert factors_of(policies) == {"constitution": ("soft", "hard"), "rl.beta": ("0.05", "0.2")}
    effects = main_effects(policies, measured(policies), Bootstrap(num_draws=200), ())
    assert [(e.key, e.num_settings) for e in effects] == [("constitution", 1), ("rl.beta", 1)]


def test_a_job_that_failed_costs_a_setting_and_not_a_seed(tmp_path: Path) -> None:
    folders = grid(tmp_path)[:-1]
    report = gather(folders, num_draws=200)
    assert [(e.key, e.num_settings) for e in report.effects] == [("constitution", 1), ("rl.beta", 1)]
    for effect in report.effects:
        assert all(len(e.per_seed) == 3 for e in effect.columns.values())
    assert effect.columns["harmful_compliance"].method == "seeds"
    (told,) = [text for text in report.limits if text.startswith("Not all 3 seeds are behind every comparison")]
    assert "On 2," in told and "constitution=hard rl.beta=0.2 against" in told


def test_arms_without_a_seed_in_common_are_not_trained_again_by_each_other(tmp_path: Path) -> None:
    """Two seeds each are four runs, and still two seeds: their intervals are about the models that were trained."""
    folders = [*grid(tmp_path / "a", GRID[:1], seeds=(0, 1)), *grid(tmp_path / "b", GRID[2:3], seeds=(2, 3))]
    report = gather(folders, num_draws=50)
    assert report.seeds == [0, 1, 2, 3] and report.num_seeds == 2
    assert report.limits[1].startswith("Two seeds. The intervals hold for the very models that were trained")
    assert report.limits[2].startswith("No seed is in common, and fewer than three on a side, in some column at least")
    assert "Student" not in render(report, dict.fromkeys(pictures(report), ""))


def test_one_key_has_differences_and_no_main_effects(tmp_path: Path) -> None:
    policies = policies_of(read_runs(grid(tmp_path, GRID[:2])))
    assert main_effects(policies, measured(policies), Bootstrap(num_draws=200), ()) == []


def test_words_say_what_each_key_does(report: Report) -> None:
    found = dict(report.findings)
    assert found["Effect of constitution"].startswith("hard against soft: Harmful compliance \u2212")
    assert "in favour of hard" in found["Effect of constitution"]
    assert not any(" against constitution=" in heading for heading in found)  # not every pair of arms beside that


# --- the Pareto front -------------------------------------------------------------------------------------------------


def test_the_front_holds_who_is_not_beaten_in_both(report: Report) -> None:
    shares = {f.policy: f for f in report.fronts}
    assert len(shares) == 4
    assert shares["constitution=hard rl.beta=0.05"].is_on_front  # the most harmless
    assert shares["constitution=hard rl.beta=0.05"].share > 0.9
    figures = {name: report.measures.figures[name] for name in shares}
    for name, front in shares.items():
        beaten = any(
            f["harmful_compliance"].value <= figures[name]["harmful_compliance"].value
            and f["helpful"].value >= figures[name]["helpful"].value
            for other, f in figures.items()
            if other != name
        )
        assert front.is_on_front == (not beaten)
    assert min(f.share for f in shares.values()) < 0.5


def test_two_arms_have_no_front(tmp_path: Path) -> None:
    policies = policies_of(read_runs(grid(tmp_path, GRID[:2])))
    assert fronts(policies, measured(policies), Bootstrap(num_draws=200)) == []


# --- what is not alike ------------------------------------------------------------------------------------------------


def change(folder: Path, **settings: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | settings))


def test_settings_that_differ_are_listed_by_arm(report: Report) -> None:
    assert {one.key for one in report.settings} == {"rl.beta", "revise.constitution.path"}
    assert report.unequal == ()


def test_arms_of_different_sizes_are_told_of(tmp_path: Path) -> None:
    folders = grid(tmp_path, GRID[:2], seeds=(0, 1))
    for folder in folders[:2]:
        change(folder, data={"source": {"num_rl": 999}})
    change(folders[2], labeler={"num_people": 5})  # who labels is no size
    runs = read_runs(folders[:3])
    told = unequal(runs, differing(runs), {"job": "killed"})
    assert told[0] == "job is left out: killed."
    sizes = "data.source.num_rl is 999 in rl.beta=0.05 and 10 in rl.beta=0.2."
    assert told[1] == f"The arms are not of one size: {sizes}"
    assert told[2].startswith("The arms do not have the same seeds (0, 1 of rl.beta=0.05 and 0 of rl.beta=0.2)")
    assert len(told) == 3
    assert gather(folders[:3], num_draws=50, left_out={"job": "killed"}).limits[:3] == tuple(told)


def test_judges_of_win_rates_that_differ_are_told_of(tmp_path: Path) -> None:
    folders = grid(tmp_path, GRID[:2], seeds=(0,))
    for k, folder in enumerate(folders):
        judge = {"constitution": {"path": f"c{k}"}, "engine": {"device": k}, "seed": k}
        change(folder, win_rate={"labeler": judge})
    runs = read_runs(folders)
    assert unequal(runs, differing(runs), {}) == [], "none of these runs has a win rate"
    run = read_json(folders[1] / "run.json")
    run["stages"]["win_rate"] = run["stages"]["evaluate_policy"]
    write_json(folders[1] / "run.json", run)
    runs = read_runs(folders)
    assert unequal(runs, differing(runs), {}) == [], "one arm has win rates, the other has none to compare them with"
    run = read_json(folders[0] / "run.json")
    run["stages"]["win_rate"] = run["stages"]["evaluate_policy"]
    write_json(folders[0] / "run.json", run)
    runs = read_runs(folders)
    values = "win_rate.labeler.constitution.path is c0 in rl.beta=0.05 and c1 in rl.beta=0.2"
    (told,) = unequal(runs, differing(runs), {})
    assert told.startswith(f"The judge of the win rates differs between arms: {values}. Each arm is judged by its own")
    assert told.endswith("One judge for all: win_rate.labeler.constitution.path=c0.")
    change(folders[0], win_rate={"labeler": {"_target_": "cai.labelers.simulated.SimulatedLabeler", "overlap": 0.5}})
    runs = read_runs(folders)
    (told,) = unequal(runs, differing(runs), {})
    assert told.endswith("One judge for all: labeler@win_rate.labeler=ai."), "no key is common to them"


def test_a_setting_of_the_labeler_is_listed_once(tmp_path: Path) -> None:
    """label.labeler takes `labeler` over; what an arm sets there itself is another setting."""
    folders = grid(tmp_path, GRID[:2], seeds=(0,))
    for k, folder in enumerate(folders):
        labeler = {"num_principles": k, "template": "judge"}
        change(folder, labeler=labeler, label={"labeler": labeler | {"min_mass": k / 10}})
    assert {one.key for one in differing(read_runs(folders))} == {
        *("rl.beta", "labeler.num_principles", "label.labeler.min_mass")
    }
    change(folders[0], label={"labeler": {"num_principles": 7, "template": "judge"}})
    assert "label.labeler.num_principles" in {one.key for one in differing(read_runs(folders))}


def test_arms_measured_on_other_prompts_are_told_of(tmp_path: Path) -> None:
    folders = grid(tmp_path, GRID[:2], seeds=(0,))
    for k, folder in enumerate(folders):
        run = read_json(folder / "run.json")
        write_rows(tmp_path / f"data-{k}" / "evaluation.jsonl", [{"id": k}])
        run["stages"]["data"] = {"fingerprint": f"data-{k}", "path": str(tmp_path / f"data-{k}")}
        write_json(folder / "run.json", run | {"versions": {"torch": f"2.{k}"}})
    prompts, versions = unequal(read_runs(folders), [], {})
    told = "seed 0: rl.beta=0.05 and rl.beta=0.2"
    assert prompts == f"Not all arms were measured on the same prompts ({told}); such differences are not paired."
    assert versions == "The runs were made with different versions of torch."


# --- tables for a paper -----------------------------------------------------------------------------------------------


def test_tables_to_paste(report: Report, tmp_path: Path) -> None:
    page = write(report, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.html", "report.json", "table.md", "table.tex", "table.csv")
    }
    assert "Main effects" in page.read_text() and "Settings that differ between the arms (2)" in page.read_text()
    markdown = (tmp_path / "table.md").read_text().split("\n\n")
    assert markdown[0].startswith("| Policy | Harmful compliance ↓ | Helpfulness ↑ |")
    for table in markdown[:-1]:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert any(line.startswith("| constitution: hard \u2212 soft | \u2212") for line in markdown[2].splitlines())
    latex = (tmp_path / "table.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 3
    assert r"rl.beta=0.2" in latex and "\u202f" not in latex and "\u2212" not in latex
    assert all(line.endswith(r"\\") for line in latex.splitlines() if " & " in line)


def test_csv_has_every_figure_with_its_interval(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(paper_tables(report, main_columns(report))["table.csv"])))
    kinds: Mapping[str, int] = {kind: sum(row["table"] == kind for row in rows) for kind in ("figure", "main effect")}
    assert kinds["figure"] == sum(map(len, report.measures.figures.values()))
    assert kinds["main effect"] == sum(len(e.columns) for e in report.effects)
    first = rows[0]
    estimate = report.measures.figures[first["first"]][first["metric"]]
    assert float(first["value"]) == estimate.value and float(first["high"]) == estimate.high
    assert first["seeds"] == "0 1 2"


def test_the_page_of_a_sweep_is_in_order(report: Report) -> None:
    page = render(report, dict.fromkeys(pictures(report), ""))
    assert page.index("Table 2.") < page.index("Table 2b.") < page.index('<section id="wins">')
    assert "On the front, no other arm being better at both" in page
