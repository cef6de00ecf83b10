"""`cai run`: run folders, what runs share, arms, sweeps, a run that was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from projects import CONSTITUTION, JUDGE, TEST_PATH, _report, digests, echo_experiment, project, read

from cai import cli, config, paths
from cai.commands.run import placed, plan_of, prepare
from cai.prompts import PromptFamily

__all__ = ["project"]  # fixture


def test_run_writes_a_run_folder_and_ends_with_the_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "seed=5"]) == 0
    folder = project / "runs" / "run-seed=5"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    run = read(folder / "run.json")
    assert run["seed"] == 5 and run["arm"] is None and run["command"] == ["cai", "run", "seed=5"]
    assert list(run["stages"]) == ["data", "revise"]
    assert run["stages"]["revise"]["facts"] == {"total": 36.0}  # (5 + 6 + 7) * 2
    assert Path(str(run["stages"]["revise"]["path"]), "deep", "sum.txt").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["seed"] == 5
    assert (folder / "constitution.yaml").read_text() == CONSTITUTION
    assert (folder / "prompts" / "plain" / "judge.jinja").read_text() == JUDGE
    assert run["texts"] == digests(folder, "constitution.yaml", "prompts/plain/judge.jinja")
    assert run["num_threads"] is None and run["stages"]["data"].keys() >= {"machine", "resumed"}


def test_second_run_reuses_what_it_shares_and_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run"])
    capsys.readouterr()
    assert cli.main(["run", "revise.factor=3.0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["data", "cached"] and lines[1].split()[0:2] != ["revise", "cached"]


def test_all_texts_that_stages_read_are_kept(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of one's own over a shipped family, and a judge of win rates with rules of its own."""
    monkeypatch.setattr("cai.commands.compare.report", _report)
    monkeypatch.setattr("cai.pipeline.run_steps", lambda steps, store, done: done({}) or {})
    (workdir / "prompts/sandbox").mkdir(parents=True)
    judge = (paths.packaged("prompts") / "sandbox/judge.jinja").read_text() + "\n"
    (workdir / "prompts/sandbox/judge.jinja").write_text(judge)
    (workdir / "other.yaml").write_text(CONSTITUTION)
    command = ["run", "experiment=rlaif", "name=mine", "win_rate.labeler.constitution.path=other.yaml"]
    assert cli.main([*command, "win_rate.labeler.prompts.name=chat"]) == 0
    folder = workdir / "runs" / "mine"
    for family in ("sandbox", "chat"):
        kept = {path.name: path.read_text() for path in (folder / "prompts" / family).iterdir()}
        assert kept == PromptFamily(family).sources()
    assert (folder / "prompts/sandbox/judge.jinja").read_text() == judge
    kept = sorted(path.name for path in (folder / "constitutions").iterdir())
    assert kept == ["win_rate.labeler.constitution.yaml"]
    assert (folder / "constitutions" / kept[0]).read_text() == CONSTITUTION
    shipped = paths.packaged("constitutions") / "sandbox.yaml"
    assert (folder / "constitution.yaml").read_text() == shipped.read_text()
    files = [path for path in folder.rglob("*") if path.parent != folder and path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    assert read(folder / "run.json")["texts"] == digests(folder, "constitution.yaml", *names)


def test_an_edit_gets_a_folder_of_its_own(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = project / "text"
    command = ["run", "name=mine", f"+revise.text={text}"]
    folders = [project / "runs" / name for name in ("mine", "mine-2", "mine-3")]
    text.write_text("one")
    assert cli.main(command) == 0
    before = {path.name: path.read_bytes() for path in folders[0].iterdir() if path.is_file()}
    text.write_text("two")
    for _ in range(2):  # the same command again goes on in the same folder
        capsys.readouterr()
        assert cli.main(command) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == f"{folders[0]} holds another run (settings, texts or versions differ); this one goes to mine-2"
        assert out[-1] == str(folders[1] / "report.html")
    assert {path.name: path.read_bytes() for path in folders[0].iterdir() if path.is_file()} == before
    assert cli.main([*command, "revise.factor=3.0"]) == 0
    text.write_text("one")
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "another run" not in capsys.readouterr().out
    assert sorted(path for path in (project / "runs").iterdir()) == folders


def test_a_folder_of_an_older_version_is_not_written_over(project: Path) -> None:
    (project / "runs/mine").mkdir(parents=True)
    (project / "runs/mine/notes.txt").write_text("not a run")
    assert cli.main(["run", "name=mine"]) == 0
    (project / "runs/mine/plan.json").unlink()
    assert cli.main(["run", "name=mine"]) == 0
    assert sorted(path.name for path in (project / "runs").iterdir()) == ["mine", "mine-2"]


def test_a_run_that_is_going_on_is_waited_for(project: Path) -> None:
    """The same command from another process writes nothing into the folder meanwhile."""
    folder = project / "runs/mine"
    program = "import sys, cai.commands.compare as c, cai.cli; c.report = lambda *_: 0; sys.exit(cai.cli.main())"
    with placed(folder, plan_of(prepare([], config.compose([])))):
        before = sorted(folder.rglob("*"))
        other = subprocess.Popen(
            [sys.executable, "-c", program, "run", "name=mine"],
            env={**os.environ, "PYTHONPATH": TEST_PATH},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert other.stderr and other.stderr.readline() == "mine: another process is at it; waiting for it to end\n"
        assert sorted(folder.rglob("*")) == before and other.poll() is None
    other.communicate()
    assert other.returncode == 0 and (folder / "run.json").is_file()


@pytest.mark.slow
def test_an_edited_sweep_goes_beside_the_old_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = project / "text"
    command = ["run", "-m", "seed=1,2", "name=mine", f"+revise.text={text}"]
    text.write_text("one")
    assert cli.main(command) == cli.main(command) == 0
    text.write_text("two")
    assert cli.main(command) == 0
    names = ["run-seed=1", "run-seed=2"]
    assert capsys.readouterr().out.splitlines()[-1] == str(project / "runs/sweep-mine-2/report.html")
    for sweep in ("sweep-mine", "sweep-mine-2"):
        report = (project / "runs" / sweep / "report.html").read_text().splitlines()
        assert report == [str(project / "runs" / sweep / name) for name in names]
    assert len(list((project / "runs").rglob("run.json"))) == 4


def test_run_can_be_named(project: Path) -> None:
    assert cli.main(["run", "name=mine", "out=elsewhere"]) == 0
    assert (project / "elsewhere" / "mine" / "run.json").is_file()


def test_arms_run_one_after_the_other_and_meet(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All steps of the recipe, wired; the arms share what comes before `label`."""
    echo_experiment(project, {"rlhf": ["labeler=simulated"], "rlaif": ["labeler=ai"]})
    assert cli.main(["run", "experiment=both"]) == 0
    out = capsys.readouterr().out
    folder = project / "runs" / "both"
    assert out.splitlines()[-1] == str(folder / "report.html")
    assert (folder / "report.html").read_text().splitlines() == [str(folder / "rlhf"), str(folder / "rlaif")]
    rlhf, rlaif = (read(folder / arm / "run.json") for arm in ("rlhf", "rlaif"))
    same = [n for n in rlaif["stages"] if rlaif["stages"][n]["fingerprint"] == rlhf["stages"][n]["fingerprint"]]
    assert same == [
        *("sets_base", "data", "revise", "sft", "sets_sl_cai", "sample", "evaluate_base", "evaluate_sl_cai")
    ]
    assert all(rlaif["stages"][name]["cached"] for name in same)
    assert (rlhf["arm"], rlaif["arm"]) == ("rlhf", "rlaif")
    assert rlaif["command"] == ["cai", "run", "experiment=both"]

    def echo(stage: str) -> str:
        return Path(str(rlhf["stages"][stage]["path"]), "echo.txt").read_text()

    data = "data()"
    sft = f"sft(revise=revise(data={data}))"
    assert echo("sft") == sft
    assert echo("label") == f"label:simulated(data={data}, sample=sample(data={data}, sft={sft}))"
    assert echo("rl").startswith(f"rl(data={data}, label=label:simulated(data={data}, sample=sample(")
    meeting = echo("win_rate_over_rlaif")
    assert meeting.startswith(f"win_rate(a=evaluate(data={data}, model=rl(") and meeting.count("label:ai") == 3
    assert meeting.index("label:simulated") < meeting.index("label:ai")


@pytest.mark.slow
def test_sweep_makes_a_run_per_value_and_one_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "seed=1,2", "revise.factor=3.0"]) == 0
    folder = project / "runs" / "sweep-run-revise.factor=3.0-seed=1,2"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    names = ["run-seed=1", "run-seed=2"]
    assert (folder / "report.html").read_text().splitlines() == [str(folder / name) for name in names]
    assert [read(folder / name / "run.json")["seed"] for name in names] == [1, 2]


@pytest.mark.slow
def test_sweep_may_come_last(project: Path) -> None:
    assert cli.main(["run", "seed=1,2", "-m"]) == 0
    assert cli.main(["run", "-m", "seed=range(1,3)"]) == 0


@pytest.mark.slow
def test_compare_takes_run_folders_and_folders_of_them(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "name=one"])
    cli.main(["run", "-m", "seed=1,2"])
    assert cli.main(["compare", "runs/one", "runs", "--output", "both"]) == 0
    assert len((project / "both" / "report.html").read_text().splitlines()) == 3
    assert cli.main(["compare", "conf"]) == 2
    assert "conf: no run folder" in capsys.readouterr().err


def test_killed_run_goes_on(project: Path) -> None:
    """The process dies inside a stage; the same command goes on from the stage's journal."""

    def run(die_at: int) -> int:
        program = "import sys, cai.commands.compare as c, cai.cli; c.report = lambda *_: 0; sys.exit(cai.cli.main())"
        environment = {**os.environ, "PYTHONPATH": TEST_PATH, "TINY_DIE_AT": str(die_at)}
        command = [sys.executable, "-c", program, "run", "data.count=6", "name=mine"]
        return subprocess.run(command, env=environment, check=False, capture_output=True).returncode

    assert run(die_at=4) == 9
    assert run(die_at=-1) == 0
    stages = read(project / "runs" / "mine" / "run.json")["stages"]
    assert stages["data"]["facts"] == {"num_tokens": 6.0, "num_computed": 2.0} and stages["data"]["resumed"] is True
    assert Path(str(stages["data"]["path"]), "numbers.txt").read_text().split() == list("012345")
