"""`cai run -m`: a job for each combination of values. A job that fails, or is killed, takes none of the others with it.

How a job goes is in its folder (`job.json`), because jobs may be processes, or machines, of their own: whoever starts
them reads it there. Nothing is lost when whoever starts them is killed: the same command goes on from the store.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from cai import config
from cai.commands import compare
from cai.commands.compare import STATE
from cai.commands.run import placed, plan_of, prepare, run_arms
from cai.errors import CaiError, ConfigError, LabelsMissing
from cai.records import fingerprint, read_json, write_json, write_text
from cai.store import locked

__all__ = ["sweep"]

_BREAKS: Final = 3  # so often may the processes be killed while none is at a job


def sweep(overrides: Sequence[str]) -> None:
    """Run all jobs, then write one report about those that went well. Raises CaiError where one failed, LabelsMissing
    where none did but one waits for people, and ConfigError where two would have the same folder.
    """
    folder, swept, jobs = config.sweep_plan(overrides)

    def varied(chosen: Sequence[str]) -> list[str]:
        return [override for override in chosen if override.partition("=")[0] in swept]

    _check_names([varied(chosen) for chosen in jobs])
    plan = fingerprint([_plan_of_job(chosen, _name(varied(chosen))) for chosen in jobs])
    launch = uuid4().hex
    with placed(folder, plan) as taken:

        def job(chosen: list[str], number: int) -> float | None:
            own = varied(chosen)
            return _job(chosen, taken / config.run_name(own), _name(own), number, launch)

        _launch(overrides, taken, job, launch)
        _finish(taken, launch)


def _name(varied: Sequence[str]) -> str:
    """What a job is called in messages; in a sweep of one job, as its folder."""
    return " ".join(varied) or config.run_name(varied)


def _launch(overrides: Sequence[str], folder: Path, job: Callable[[list[str], int], float | None], launch: str) -> None:
    """Begin every job, and those once more, alone, whose process was killed."""
    breaks = 0
    while True:
        try:
            config.sweep(overrides, folder, job)
            break
        except BrokenProcessPool:  # then all jobs under way are stopped, though one alone was killed
            print("sweep: the process of a job was killed; going on with the others", file=sys.stderr)
        stopped = [own for own, state in _states(folder) if state["launch"] == launch and state["state"] == "running"]
        breaks += not stopped
        if breaks == _BREAKS:
            raise CaiError(f"{folder}: the processes of the sweep are killed again and again (out of memory?)")
        for own in stopped:
            _alone(own)


def _check_names(jobs: Sequence[Sequence[str]]) -> None:
    """Raise ConfigError where two jobs, known by what is varied, would go to one folder."""
    seen: dict[str, str] = {}
    for varied in jobs:
        name, job = config.run_name(varied), " ".join(varied)
        if name in seen:
            raise ConfigError(
                f"jobs {seen[name]!r} and {job!r}: both would go to a folder {name!r}; values must differ in letters "
                "or digits, and those of num_threads, out, store, name and hydra are no jobs of their own"
            )
        seen[name] = job


def _states(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The folder of every job that has begun, and how it goes."""
    return [(path.parent, read_json(path)) for path in sorted(folder.glob(f"*/{STATE}"))]


def _alone(folder: Path) -> None:
    """Run a job that was stopped once more, in a process of its own with no other beside it: when that is killed too,
    it is this job's doing, and it is given up.
    """
    told = read_json(folder / STATE)
    arguments = (told["overrides"], folder, told["job"], told["number"], told["launch"])
    process = multiprocessing.get_context("spawn").Process(target=_job, args=arguments)
    process.start()
    process.join()
    told = read_json(folder / STATE)
    if told["state"] == "running":
        error = "its process was killed 2 times, the second time with no other job beside it (out of memory?)"
        write_json(folder / STATE, told | {"state": "failed", "error": error})


def _plan_of_job(overrides: Sequence[str], name: str) -> str:
    """What a job computes; one with a mistake in it is known by the mistake, told now and at its turn."""
    try:
        return plan_of(prepare(overrides, config.compose(overrides)))
    except CaiError as error:
        print(f"job {name} will fail: {_line(error)}", file=sys.stderr, flush=True)
        return str(error)


def _job(overrides: Sequence[str], folder: Path, name: str, number: int, launch: str) -> float | None:
    """Run one job, once whoever began it before (a process that outlived its sweep) has ended; note how it went.

    Returns the job's `objective`, if the settings name one.
    """
    with locked(folder / "job.lock", f"job {name}"):
        return _locked_job(overrides, folder, name, number, launch)


def _locked_job(overrides: Sequence[str], folder: Path, name: str, number: int, launch: str) -> float | None:
    before = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    if before.get("launch") == launch and before["state"] != "running":
        return before["objective"] and float(before["objective"])

    def note(state: str, **more: object) -> None:
        told = {"state": state, "job": name, "number": number, "overrides": list(overrides), "launch": launch}
        write_json(folder / STATE, told | {"pid": os.getpid(), "error": "", "objective": None} | more)

    note("running")
    print(f"--- job {name}", flush=True)
    try:
        settings = config.compose(overrides)
        arms = prepare(overrides, settings)
        with placed(folder, plan_of(arms)) as own:
            objective = _objective(run_arms(arms, own)[0], settings.objective)
    except LabelsMissing as error:
        note("waiting", error=_line(error))
        print(f"job {name} waits: {_line(error)}", file=sys.stderr, flush=True)
        return None
    except Exception as error:  # whatever it is, it is this job's: the others go on
        text = _line(error)
        if not isinstance(error, CaiError):
            write_text(folder / "error.txt", traceback.format_exc())
            text += " (see error.txt)"
        note("failed", error=text)
        print(f"job {name} failed: {text}", file=sys.stderr, flush=True)
        return None
    note("done", objective=objective)
    return objective


def _line(error: Exception) -> str:
    """An error in one line, with its type if it is none of this package's own."""
    kind = "" if isinstance(error, CaiError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def _objective(run: Path, wanted: str | None) -> float | None:
    """The fact `step.name` of a job's run: what a sweeper that searches is to make large."""
    if wanted is None:
        return None
    step, _, name = wanted.partition(".")
    stages = read_json(run / "run.json")["stages"]
    if step not in stages or name not in stages[step]["facts"]:
        known = [f"{s}.{f}" for s, stage in stages.items() for f in stage["facts"]]
        raise CaiError(f"objective: {wanted!r} is not what a run of one arm measures, such as {', '.join(known[-5:])}")
    return float(stages[step]["facts"][name])


def _finish(folder: Path, launch: str) -> None:
    """Report on what is finished; raise CaiError that names the first failure, or else whom jobs wait for."""
    states = [state for _, state in _states(folder)]
    own = [state for state in states if state["launch"] == launch]
    failed, waiting = ([state for state in own if state["state"] == kind] for kind in ("failed", "waiting"))
    runs, left_out = compare.finished([folder])
    if runs:
        print(compare.report(runs, folder, left_out))
    if failed:
        where = "see the report" if runs else f"see {STATE} in their folders"
        more = f" (and {len(failed) - 1} more, {where})" if len(failed) > 1 else ""
        raise CaiError(f"{len(failed)} of {len(states)} jobs failed; {failed[0]['job']}: {failed[0]['error']}{more}")
    if waiting:
        told = "; ".join(f"{state['job']}: {state['error']}" for state in waiting)
        raise LabelsMissing(f"{len(waiting)} of {len(states)} jobs wait for people; {told}")
