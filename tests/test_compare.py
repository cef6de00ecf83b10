"""`cai compare` and `cai compare-labelers`: the order of what they find, and folders that are not as they should be."""

from pathlib import Path

import pytest
from projects import echo_experiment, project
from synthetic_runs import make_runs

from cai import cli
from cai.commands.compare import compare_labelers, finished
from cai.records import read_json, write_json

__all__ = ["project"]  # a fixture

# --- order ------------------------------------------------------------------------------------------------------------


def listed(page: Path) -> list[str]:
    return [Path(line).name for line in page.read_text().splitlines()]


def test_jobs_are_in_the_order_of_their_values(project: Path) -> None:
    """The first value is the baseline, whatever it is called."""
    assert cli.main(["run", "-m", "data.count=9,10,2"]) == 0
    (sweep,) = (project / "runs").iterdir()
    assert listed(sweep / "report.html") == [f"run-data.count={n}" for n in (9, 10, 2)]
    assert cli.main(["compare", str(sweep), "--output", "again"]) == 0
    assert listed(project / "again/report.html") == [f"run-data.count={n}" for n in (9, 10, 2)]
    assert cli.main(["compare", str(sweep / "run-data.count=2"), str(sweep), "--output", "own"]) == 0
    assert listed(project / "own/report.html") == [f"run-data.count={n}" for n in (2, 9, 10)]


@pytest.mark.slow
def test_arms_are_in_the_order_of_the_preset(project: Path) -> None:
    echo_experiment(project, {name: [f"labeler={who}"] for name, who in (("z", "ai"), ("a", "simulated"))})
    assert cli.main(["run", "experiment=both", "name=one"]) == 0
    assert cli.main(["run", "-m", "experiment=both", "seed=2,1", "name=jobs"]) == 0
    assert [folder.name for folder in finished([project / "runs/one"])[0]] == ["z", "a"]
    found = [folder.relative_to(project / "runs").parts[-2:] for folder in finished([project / "runs/sweep-jobs"])[0]]
    assert found == [(f"run-seed={seed}", arm) for seed in (2, 1) for arm in "za"]


def test_folders_of_earlier_versions_are_read(project: Path) -> None:
    """Their jobs have no number: they go by name, after those that have one."""
    assert cli.main(["run", "-m", "data.count=9,7,8,6"]) == 0
    (sweep,) = (project / "runs").iterdir()
    for count in (6, 7, 9):
        path = sweep / f"run-data.count={count}" / "job.json"
        write_json(path, {key: value for key, value in read_json(path).items() if key != "number"})
    assert [folder.name[-1] for folder in finished([sweep])[0]] == ["8", "6", "7", "9"]


# --- folders that are not as they should be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.json", "[]", "run.json: must be an object, got []"),
        ("run.json", "{}", "run.json: key 'stages' is missing"),
        ("run.json", '{"stages": []}', "run.json: key 'stages': must be an object, got []"),
        ("run.json", '{"stages": {"data": 1}}', "run.json: key 'stages.data': must be an object, got 1"),
        ("run.json", '{"stages": {}, "seed": "0"}', "run.json: key 'seed': must be a whole number, got \"0\""),
        ("run.json", '{"stages": {"data": {}}, "seed": 0}', "run.json: key 'stages.data.path' is missing"),
        ("job.json", "{}", "job.json: key 'state' is missing"),
        ("job.json", "3", "job.json: must be an object, got 3"),
        ("config.yaml", "seed: 0\n  arms: [\n", "config.yaml:2: not valid YAML: mapping values are not allowed"),
        ("config.yaml", "seed: \x07", "config.yaml: not valid YAML: "),
        ("config.yaml", "- seed", "config.yaml: must hold the settings of a run, as key: value; got"),
    ],
)
def test_a_damaged_folder_is_one_line(
    tmp_path: Path, name: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = make_runs(tmp_path, num_prompts=4, num_comparisons=4)
    (folders[0] / name).write_text(text)
    assert cli.main(["compare", str(folders[0].parent), "--output", str(tmp_path / "page")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"cai: {folders[0]}/{said}") and err.count("\n") == 1


# --- labelers ---------------------------------------------------------------------------------------------------------


def without(folder: Path, stage: str) -> None:
    run = read_json(folder / "run.json")
    del run["stages"][stage]
    write_json(folder / "run.json", run)


def test_a_job_without_labels_is_left_out_of_the_labelers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = make_runs(tmp_path, seeds=(0, 1), num_prompts=4, num_comparisons=10)
    without(folders[1], "label")
    write_json(tmp_path / "runs" / "killed" / "job.json", {"state": "failed", "error": "out of memory"})
    compare_labelers([str(tmp_path / "runs")], str(tmp_path / "page"))
    missing = "has no stage 'label'; labelers are compared on what they labelled"
    left_out = {"demo-seed=0/rlaif": missing, "killed": "out of memory"}
    assert capsys.readouterr().err.splitlines() == [f"{name} is left out: {why}." for name, why in left_out.items()]
    found = read_json(tmp_path / "page" / "labelers.json")
    assert found["left_out"] == left_out
    assert [(run["name"], run["seed"]) for run in found["runs"]] == [("rlhf", 0), ("rlhf", 1), ("rlaif", 1)]
    assert "killed is left out: out of memory." in (tmp_path / "page" / "labelers.html").read_text()


def test_arms_that_need_not_wait_for_people_meet_and_can_be_compared(project: Path) -> None:
    waiting = ["~label.word", "~label.labeler", "label._target_=tiny.People", "+label.who=ada"]
    echo_experiment(project, {"rlhf": ["labeler=simulated"], "human": waiting, "rlaif": ["labeler=ai"]})
    assert cli.main(["run", "experiment=both"]) == 3
    folders, left_out = finished([project / "runs/both"])
    assert [folder.name for folder in folders] == ["rlhf", "rlaif"]
    assert left_out.keys() == {"human"} and left_out["human"].startswith("stopped before ")
    assert "win_rate_over_rlaif" in read_json(folders[0] / "run.json")["stages"]
