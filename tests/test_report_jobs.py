"""Several jobs of one experiment with arms, as a sweep makes them: what belongs to which job."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from reports import quick
from synthetic_runs import ARMS, make_runs

from cai.records import read_json, write_json
from cai.report.runs import policies_of, read_runs
from cai.report.wins import judged_pair


def job(root: Path, constitution: str, *, own_samples: bool, arms: Mapping[str, str] = ARMS) -> list[Path]:
    """The runs of one job; with `own_samples` its comparisons have the usual ids and other texts."""
    folders = make_runs(root / constitution, arms=arms, seeds=(0, 1), num_prompts=10, num_comparisons=20)
    for folder in folders:
        run = read_json(folder / "run.json")
        run["command"].append(f"constitution={constitution}")
        if own_samples:
            run["stages"]["sample"]["fingerprint"] += constitution
        write_json(folder / "run.json", run)
    return folders


def test_an_arm_met_the_other_arm_of_its_own_job(tmp_path: Path) -> None:
    folders = [folder for name in "ab" for folder in job(tmp_path, name, own_samples=False)]
    runs = read_runs(folders)
    policies = policies_of(runs)
    pairs = [judged_pair("win_rate_over_rlaif", run, policies) for run in runs if run.folder.name == "rlhf"]
    assert pairs == [(f"RLAIF constitution={c}", f"RLHF constitution={c}", True) for c in "aabb"]
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")  # runs that are moved together stay together
    moved = [tmp_path / "elsewhere" / folder.relative_to(tmp_path / "a") for folder in folders[:4]]
    for folder in moved:
        run = read_json(folder / "run.json")
        for stage in run["stages"].values():
            stage["path"] = stage["path"].replace(str(tmp_path / "a"), str(tmp_path / "elsewhere"))
        write_json(folder / "run.json", run)
    rates = {(r.first, r.second): r.estimate.num for r in quick([*moved, *folders[4:]]).win_rates if "RLHF" in r.second}
    assert set(rates) == {(f"RLAIF constitution={c}", f"RLHF constitution={c}") for c in "ab"}
    assert set(rates.values()) == {40}  # two seeds each, none under the other job's name


@pytest.mark.parametrize("own_samples", [False, True])
def test_labels_are_compared_where_they_are_about_the_same_responses(tmp_path: Path, own_samples: bool) -> None:
    folders = [folder for name in "ab" for folder in job(tmp_path, name, own_samples=own_samples)]
    report = quick(folders)
    assert report.labels is not None
    pairs = {(a.first.split()[1] == a.second.split()[1]) for a in report.labels.between}
    assert (len(report.labels.between), len(report.labels.apart)) == ((2, 4) if own_samples else (6, 0))
    assert pairs == ({True} if own_samples else {True, False})
    told = "Labels are compared only where they are about the same responses, which 4 pairs of arms are not"
    assert any(text.startswith(told) for text in report.limits) == own_samples
    assert "The labels of" not in dict(report.findings)["Labels and reward models"]  # four arms: the table tells


def test_of_few_arms_it_is_said_whose_labels_are_apart(tmp_path: Path) -> None:
    folders = [folder for name in "ab" for folder in job(tmp_path, name, own_samples=True, arms={"rlaif": "ai"})]
    report = quick(folders)
    assert report.labels is not None and report.labels.between == ()
    told = "those of RLAIF constitution=a and RLAIF constitution=b are not in all seeds."
    assert any(text.endswith(told) for text in report.limits)
