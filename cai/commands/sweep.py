"""`cai run -m`: a job for each combination of values. A job that fails, or is killed, takes none of the others with it.

How a job goes is in its folder (`job.json`), because jobs may be processes, or machines, of their own: whoever starts
them reads it there. Nothing is lost when whoever starts them is killed: the same command goes on from the store.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from cai import config
from cai.commands import compare
from cai.commands.compare import STATE
from cai.commands.run import place, plan_of, prepare, run_arms
from cai.errors import CaiError
from cai.records import fingerprint, read_json, write_json, write_text
from cai.store import locked

__all__ = ["sweep"]

_STARTS: Final = 2  # a job whose process is killed (out of memory, say) is tried so often


def sweep(overrides: Sequence[str]) -> None:
    """Run all jobs, then write one report about those that went well. Raises CaiError where one failed."""
    folder, swept, jobs = config.sweep_plan(overrides)
    folder = place(folder, fingerprint([_plan_of_job(chosen) for chosen in jobs]))
    launch = uuid4().hex

    def job(chosen: list[str]) -> float | None:
        varied = [override for override in chosen if override.partition("=")[0] in swept]
        return _job(chosen, folder / config.run_name(varied), " ".join(varied), launch)

    for _ in range(_STARTS * len(jobs) + 1):  # every job may lose its process so often; then it is given up
        try:
            config.sweep(overrides, folder, job)
            break
        except BrokenProcessPool:
            print("sweep: the process of a job was killed; going on with the others", file=sys.stderr)
    else:
        raise CaiError(f"{folder}: the processes of the sweep are killed again and again (out of memory?)")
    _finish(folder, launch)


def _plan_of_job(overrides: Sequence[str]) -> str:
    """What a job computes; one with a mistake in it is known by the mistake, which is told at its turn."""
    try:
        return plan_of(prepare(overrides, config.compose(overrides)))
    except CaiError as error:
        return str(error)


def _job(overrides: Sequence[str], folder: Path, name: str, launch: str) -> float | None:
    """Run one job, once whoever began it before (a process that outlived its sweep) has ended; note how it went.

    Returns the job's `objective`, if the settings name one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "job.lock", f"job {name}"):
        return _locked_job(overrides, folder, name, launch)


def _locked_job(overrides: Sequence[str], folder: Path, name: str, launch: str) -> float | None:
    before = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    starts = before["starts"] if before.get("launch") == launch else 0
    if starts and before["state"] != "running":
        return before["objective"] and float(before["objective"])

    def note(state: str, **more: object) -> None:
        told = {"state": state, "job": name, "launch": launch, "starts": starts + 1, "pid": os.getpid()}
        write_json(folder / STATE, told | {"error": "", "objective": None} | more)

    if starts >= _STARTS:
        note("failed", error=f"its process was killed {starts} times (out of memory?)")
        return None
    note("running")
    print(f"--- job {name}", flush=True)
    try:
        settings = config.compose(overrides)
        arms = prepare(overrides, settings)
        objective = _objective(run_arms(arms, place(folder, plan_of(arms))), settings.objective)
    except Exception as error:  # whatever it is, it is this job's: the others go on
        if not isinstance(error, CaiError):
            write_text(folder / "error.txt", traceback.format_exc())
        text = str(error) if isinstance(error, CaiError) else f"{type(error).__name__}: {error} (see error.txt)"
        note("failed", error=" ".join(text.split()))
        print(f"job {name} failed: {' '.join(text.split())}", file=sys.stderr, flush=True)
        return None
    note("done", objective=objective)
    return objective


def _objective(runs: Sequence[Path], wanted: str | None) -> float | None:
    """The fact `step.name` of a job's only run: what a sweeper that searches is to make large."""
    if wanted is None:
        return None
    step, _, name = wanted.partition(".")
    stages = read_json(runs[0] / "run.json")["stages"]
    if len(runs) > 1 or step not in stages or name not in stages[step]["facts"]:
        known = [f"{s}.{f}" for s, stage in stages.items() for f in stage["facts"]]
        raise CaiError(f"objective: {wanted!r} is not what a run of one arm measures, such as {', '.join(known[-5:])}")
    return float(stages[step]["facts"][name])


def _finish(folder: Path, launch: str) -> None:
    """Report on what is finished; raise CaiError that names the first failure."""
    states: list[dict[str, Any]] = [read_json(path) for path in sorted(folder.glob(f"*/{STATE}"))]
    failed = [state for state in states if state["launch"] == launch and state["state"] == "failed"]
    runs, left_out = compare.finished([folder])
    if runs:
        print(compare.report(runs, folder, left_out))
    if failed:
        more = f" (and {len(failed) - 1} more, see the report)" if len(failed) > 1 else ""
        raise CaiError(f"{len(failed)} of {len(states)} jobs failed; {failed[0]['job']}: {failed[0]['error']}{more}")
