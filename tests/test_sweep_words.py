"""What a sweep tells of jobs that cannot run, or that wait; and when."""

from pathlib import Path

import pytest
from projects import echo_experiment, project

from cai import cli
from cai.records import read_json

__all__ = ["project"]  # a fixture


@pytest.mark.slow
def test_all_mistakes_that_can_be_known_are_told_before_the_first_job(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "-m", "data.count=1,-1,-2", "constitution=plain,lost.yaml"]) == 2
    said = capfd.readouterr().err.splitlines()
    first = said.index("data ...")  # a step begins
    told = [line for line in said[:first] if " will fail: " in line]
    assert [line.partition(" will fail: ")[0] for line in told] == [
        "job data.count=1 constitution=lost.yaml",
        *(f"job data.count={n} constitution={name}" for n in (-1, -2) for name in ("plain", "lost.yaml")),
    ]
    assert "constitution: lost.yaml: no such file" in told[0] and "data: count: must be 0 or more, got -1" in told[1]
    assert said[-1].startswith("cai: 5 of 6 jobs failed; ") and said[-1].endswith(" more, see the report)")


def test_an_objective_that_no_step_has_is_told_first(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "seed=1,2", "objective=revize.total"]) == 2
    said = capsys.readouterr().err.splitlines()
    mistake = "objective: unknown step 'revize'; did you mean 'revise'? Allowed: data, revise; write step.fact"
    assert said[:2] == [f"job seed={seed} will fail: {mistake}" for seed in (1, 2)]
    assert not (project / "store").exists()


def test_an_objective_is_of_one_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    echo_experiment(project, {"rlhf": ["labeler=simulated"], "rlaif": ["labeler=ai"]})
    assert cli.main(["run", "experiment=both", "objective=rl.num_tokens"]) == 2
    said = capsys.readouterr().err
    assert said == "cai: objective: 'rl.num_tokens' is a fact of one run; there are arms: rlhf, rlaif\n"


@pytest.mark.parametrize(("swept", "job"), [("experiment=one,zz", "experiment=zz"), ("seed=0,x", "seed=x")])
def test_a_sweep_that_hydra_refuses_leaves_nothing(
    project: Path, swept: str, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "conf/experiment/one.yaml").write_text("# @package _global_\nseed: 1\n")
    assert cli.main(["run", "-m", swept]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"cai: job {job}: ")
    assert not (project / "runs").exists()


def test_where_failures_are_told_when_there_is_no_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "data.count=-1,-2"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("got -1 (and 1 more, see job.json in their folders)")


def test_a_sweep_of_one_job_calls_it_by_its_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "seed=3"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "--- job run"


@pytest.mark.slow
def test_a_sweep_that_waits_for_people_has_not_failed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = ["~revise.factor", "revise._target_=tiny.People", "+revise.who=ada,nobody"]
    assert cli.main(["run", "-m", *people]) == 3
    captured = capsys.readouterr()
    assert (
        captured.err.splitlines()[-1] == "cai: 1 of 2 jobs wait for people; +revise.who=ada: ada has not labelled yet"
    )
    (sweep,) = (project / "runs").iterdir()
    states = {path.parent.name: read_json(path)["state"] for path in sweep.glob("*/job.json")}
    assert states == {"run-+revise.who=ada": "waiting", "run-+revise.who=nobody": "done"}
    assert (sweep / "report.html").read_text().splitlines() == [str(sweep / "run-+revise.who=nobody")]
    assert cli.main(["run", "-m", *people, "data.count=-1,3"]) == 2, "what failed comes first"
