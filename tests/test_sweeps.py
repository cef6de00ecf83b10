"""Sweeps of tiny stages: what jobs share, what a failure or a kill takes with it, what the folder tells afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_resume
import psutil
import pytest
from projects import TEST_PATH, project, read

from cai import cli, config
from cai.commands.compare import finished
from cai.errors import CaiError, DataError
from cai.records import digest_folder, read_json, write_json

__all__ = ["project"]  # a fixture

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def jobs(sweep: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_json(path) for path in sorted(sweep.glob("*/job.json"))}


def outputs(project: Path) -> dict[str, str]:
    """The digest of every file of every finished stage output, but for what says how long it took."""
    found = digest_folder(project / "store")
    return {name: digest for name, digest in found.items() if "meta.json" not in name and ".lock" not in name}


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_job_that_fails_is_told_of_and_takes_none_with_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "data.count=-1,2,-3,4"]) == 2
    captured = capsys.readouterr()
    said = captured.err.splitlines()[-1]
    assert said.startswith("cai: 2 of 4 jobs failed; data.count=-1: data: count: must be 0 or more, got -1")
    assert said.endswith("(and 1 more, see the report)")
    sweep = project / "runs" / "sweep-run-data.count=-1,2,-3,4"
    assert captured.out.splitlines()[-1] == str(sweep / "report.html")
    assert (sweep / "report.html").read_text().splitlines() == [str(sweep / f"run-data.count={n}") for n in (2, 4)]
    left_out = read_json(sweep / "left_out.json")
    assert list(left_out) == ["run-data.count=-1", "run-data.count=-3"]
    assert left_out["run-data.count=-3"].endswith("count: must be 0 or more, got -3")
    assert {name: job["state"] for name, job in jobs(sweep).items()} == {
        "run-data.count=-1": "failed", "run-data.count=-3": "failed",
        "run-data.count=2": "done", "run-data.count=4": "done"}  # fmt: skip


@pytest.mark.slow
def test_an_error_nobody_foresaw_is_kept_with_its_traceback(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "revise.factor=1.0,nonsense"]) == 2  # found when the settings are checked
    assert cli.main(["run", "-m", "seed=1,2", "revise._target_=tiny.Broken", "~revise.factor"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 2 jobs failed; seed=1: ZeroDivisionError: by hand (see error.txt)" in said
    (folder, _) = sorted((project / "runs").glob("sweep-run-revise._target_*/run-seed=*"))
    assert "line " in (folder / "error.txt").read_text()


@pytest.mark.slow
def test_when_all_jobs_fail_there_is_no_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "data.count=-1,-2"]) == 2
    captured = capsys.readouterr()
    assert "report.html" not in captured.out and "2 of 2 jobs failed" in captured.err


@pytest.mark.slow
def test_after_the_repair_the_same_sweep_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = project / "text"
    command = ["run", "-m", "seed=1,2", "name=mine", f"+revise.text={text}"]
    assert cli.main(command) == 2
    assert f"{text}: no such file" in capsys.readouterr().err
    text.write_text("one")
    assert cli.main(command) == 0
    sweep = next(path for path in (project / "runs").iterdir() if (path / "report.html").is_file())
    assert {job["state"] for job in jobs(sweep).values()} == {"done"}


@pytest.mark.parametrize("varied", ["num_threads=1,2", "+revise.text='a b','a_b'"])
def test_jobs_of_one_name_are_refused(varied: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second would take the first one's state for its own and never run."""
    assert cli.main(["run", "-m", varied]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("cai: jobs ") and "both would go to a folder 'run" in said
    assert not (project / "runs").exists()


def test_a_refused_sweep_leaves_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "seed=1,2", "data.nothing=1"]) == 2
    assert "data.nothing: unknown key 'nothing'" in capsys.readouterr().err
    assert list((project / "runs").rglob("*")) == []


# --- what may be compared ---------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_left_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "name=whole"]) == cli.main(["run", "name=half", "seed=1"]) == 0
    run = read_json(project / "runs/half/run.json")
    assert run["steps"] == ["data", "revise"]
    del run["stages"]["revise"]
    write_json(project / "runs/half/run.json", run)
    assert cli.main(["compare", "runs/whole", "runs/half", "--output", "both"]) == 0
    assert (project / "both/report.html").read_text().splitlines() == [str(Path("runs/whole"))]
    assert read_json(project / "both/left_out.json") == {"half": "stopped before revise"}
    assert cli.main(["compare", "runs/half"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "cai: runs/half: no finished run there to report on; half: stopped before revise"


def test_a_job_that_never_began_is_left_out_too(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep/a/job.json", {"state": "running", "error": ""})
    write_json(tmp_path / "sweep/b/job.json", {"state": "failed", "error": "no such file"})
    write_json(tmp_path / "sweep/c/job.json", {"state": "waiting", "error": "8 of 8 labels are missing"})
    folders, left_out = finished([tmp_path / "sweep"])
    told = {"b": "no such file", "c": "8 of 8 labels are missing"}
    assert folders == [] and left_out == {"a": "stopped before its first step was done", **told}
    with pytest.raises(DataError, match="no run folder"):
        finished([tmp_path / "elsewhere"])


# --- objectives, for sweepers that search -----------------------------------------------------------------------------


def objectives(project: Path, overrides: list[str]) -> list[object]:
    """What the jobs return to Hydra."""
    from cai.commands import sweep

    seen: list[object] = []
    real = config.sweep

    def watched(overrides: Any, folder: Path, job: Callable[[list[str], int], float | None]) -> None:
        real(overrides, folder, lambda *chosen: seen.append(job(*chosen)))  # type: ignore[arg-type, return-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "sweep", watched)
        sweep.sweep(overrides)
    return seen


@pytest.mark.slow
def test_a_job_returns_its_objective(project: Path) -> None:
    assert objectives(project, ["seed=1,2", "objective=revise.total"]) == [12.0, 18.0]
    assert objectives(project, ["seed=1,2"]) == [None, None]
    with pytest.raises(
        CaiError, match=r"objective: 'revise.sum' is not what a run of one arm measures, such as data\.num"
    ):
        objectives(project, ["seed=1,2", "objective=revise.sum"])


def test_sweepers_and_launchers_that_are_not_installed_are_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for group, name in (("hydra/sweeper", "ax"), ("hydra/launcher", "ray")):
        assert cli.main(["run", "-m", "seed=1,2", f"{group}={name}"]) == 2
        assert f"{group}: unknown option {name!r}" in capsys.readouterr().err


# --- several processes, and kills ------------------------------------------------------------------------------------


def start(project: Path, *overrides: str, said: str = "said") -> "subprocess.Popen[bytes]":
    """A sweep in a process of its own, with a report that only lists; what it says on stderr is in the file `said`."""
    program = (
        "import sys, cai.commands.compare as c, cai.cli\n"
        "def report(runs, folder, left_out=None):\n"
        "    (folder / 'report.html').write_text('\\n'.join(map(str, runs)))\n"
        "    return folder / 'report.html'\n"
        "c.report = report\n"
        "sys.exit(cai.cli.main())"
    )
    command = [sys.executable, "-c", program, "run", "-m", *overrides]
    environment = {**os.environ, "PYTHONPATH": TEST_PATH}
    with (project / said).open("wb") as file:
        return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=file)


def wait_for(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as it is true."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def holders(launcher: int) -> list[psutil.Process]:
    """Processes below the launcher that hold the lock of an output in the making."""
    found = []
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            paths = [Path(file.path) for file in process.open_files()]
        except psutil.Error:
            continue
        if any(path.suffix == ".lock" and path.with_name(f"partial-{path.stem}").is_dir() for path in paths):
            found.append(process)
    return found


SWEEP = ["seed=1,2", "revise.factor=1.0,2.0", "+revise.seconds=0.5", *JOBLIB]


@pytest.fixture
def undisturbed(project: Path) -> dict[str, str]:
    """The outputs of SWEEP by one process, which are then moved out of the way."""
    process = start(project, *SWEEP[:-2])
    assert process.wait() == 0
    found = outputs(project)
    for name in ("store", "runs"):
        (project / name).rename(project / f"{name}-before")
    return found


@pytest.mark.slow
def test_parallel_jobs_share_what_they_have_in_common(project: Path, undisturbed: dict[str, str]) -> None:
    """Two processes want the same `data`; one computes it, the other waits. The bytes are those of one process."""
    assert start(project, *SWEEP).wait() == 0
    runs = [read(path)["stages"] for path in (project / "runs").rglob("run.json")]
    assert len(runs) == 4
    assert [run["data"]["cached"] for run in runs].count(False) == 2  # one for each seed
    assert outputs(project) == undisturbed


@pytest.mark.slow
def test_one_sweep_started_twice_at_once_is_done_once(project: Path) -> None:
    """The second waits for the first, rather than writing into its folders."""
    first = start(project, "seed=1,2", "+revise.seconds=3")
    (running,) = wait_for(lambda: list((project / "runs").glob("*/run-seed=1/run.json")))
    second = start(project, "seed=1,2", "+revise.seconds=3", said="said-too")
    sweep = running.parent.parent
    wait_for(lambda: f"{sweep.name}: another process is at it" in (project / "said-too").read_text())
    assert first.poll() is None and first.wait() == second.wait() == 0
    runs = [read(path)["stages"] for path in sweep.glob("*/run.json")]
    assert [stage["cached"] for run in runs for stage in run.values()] == [True] * 4
    assert len((sweep / "report.html").read_text().splitlines()) == 2


@pytest.mark.slow
def test_killed_launcher(project: Path, undisturbed: dict[str, str]) -> None:
    """kill -9 of the process that started the sweep: the same command again finishes it, whatever its workers do."""
    launcher = start(project, *SWEEP)
    wait_for(lambda: holders(launcher.pid))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert start(project, *SWEEP).wait() == 0
    (sweep,) = (project / "runs").iterdir()
    assert {job["state"] for job in jobs(sweep).values()} == {"done"} and len(jobs(sweep)) == 4
    assert len((sweep / "report.html").read_text().splitlines()) == 4
    assert outputs(project) == undisturbed


@pytest.mark.slow
def test_killed_holder_of_a_lock(project: Path, undisturbed: dict[str, str]) -> None:
    """kill -9 of a worker in the middle of a stage: the sweep goes on by itself."""
    launcher = start(project, *SWEEP)
    for holder in wait_for(lambda: holders(launcher.pid)):
        holder.kill()
    assert launcher.wait() == 0
    assert "the process of a job was killed; going on" in (project / "said").read_text()
    assert outputs(project) == undisturbed
    assert not list((project / "store").glob("*/partial-*"))


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_is_given_up(project: Path) -> None:
    """Out of memory, say: the others are still done."""
    assert start(project, "data.count=2,3,99", "+data.die_at=99", *JOBLIB).wait() == 2
    said = (project / "said").read_text()
    assert "1 of 3 jobs failed; data.count=99: its process was killed 2 times" in said
    (sweep,) = (project / "runs").iterdir()
    assert len((sweep / "report.html").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_job_is_not_given_up_for_what_another_does(project: Path) -> None:
    """The innocent one is stopped with the pool whenever the other one dies; left in peace, it is done."""
    assert start(project, "data.count=99,3", "+data.die_at=99", "+revise.seconds=4", *JOBLIB).wait() == 2
    (sweep,) = (project / "runs").iterdir()
    killed, innocent = (jobs(sweep)[f"run-data.count={count}"] for count in (99, 3))
    assert (killed["state"], innocent["state"]) == ("failed", "done")
    assert "killed 2 times, the second time with no other job beside it" in killed["error"]
    assert len((sweep / "report.html").read_text().splitlines()) == 1


@pytest.mark.slow
def test_the_whole_recipe_in_two_processes_killed_once(tmp_path: Path) -> None:
    """Two seeds: by one process undisturbed; by two, whose launcher is killed, and again. Same bytes."""

    def command(work: str, *more: str) -> list[str]:
        places = [f"out={tmp_path / work / 'runs'}", f"store={tmp_path / work / 'store'}"]
        return [
            sys.executable,
            "-m",
            "cai",
            "run",
            "-m",
            "experiment=smoke",
            "seed=0,1",
            "num_threads=1",
            *places,
            *more,
        ]

    subprocess.run(command("one"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    launcher = subprocess.Popen(command("two", *JOBLIB), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "two" / "store").glob("sft/*/MANIFEST.json")))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    said = subprocess.run(command("two", *JOBLIB), check=True, capture_output=True, text=True).stdout
    report = read_json(Path(said.splitlines()[-1]).with_name("report.json"))
    assert [policy["name"] for policy in report["policies"]] == ["Base", "SL-CAI", "RLHF", "RLAIF"]
    assert all(policy["seeds"] == [0, 1] for policy in report["policies"])
    assert kill_resume.digests(tmp_path / "two") == kill_resume.digests(tmp_path / "one")
    assert not list((tmp_path / "two" / "store").glob("*/partial-*"))


def test_states_are_json_that_others_can_read(project: Path) -> None:
    assert cli.main(["run", "-m", "seed=1,2"]) == 0
    (first, _) = jobs(project / "runs" / "sweep-run-seed=1,2").values()
    assert first.keys() == {"state", "job", "number", "overrides", "launch", "pid", "error", "objective"}
    assert (first["job"], first["number"]) == ("seed=1", 0) and json.dumps(first)
