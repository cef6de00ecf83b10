"""`cai compare` and `cai compare-labelers`: which runs a page is about, and which it has to leave out."""

import sys
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path

from cai.errors import DataError
from cai.records import read_object

__all__ = ["STATE", "compare", "compare_labelers", "finished", "report"]

STATE = "job.json"  # beside run.json (or in its place) in the folder of a sweep's job: how the job went


def compare(runs: Sequence[str], output: str) -> None:
    """Write one report about finished runs, and tables for a paper beside it."""
    folders, left_out = finished([Path(run) for run in runs])
    if not folders:
        raise DataError(f"{', '.join(runs)}: no finished run there to report on; {_first(left_out)}")
    print(report(folders, Path(output), left_out))


def compare_labelers(runs: Sequence[str], output: str) -> None:
    """Write a page about the labelers of runs, which labelled the same comparisons; what came after does not matter."""
    from cai.report.study import write_study

    folders, left_out = _sorted_out([Path(run) for run in runs], _unlabelled)
    if not folders:
        raise DataError(f"{', '.join(runs)}: no run with labels there; {_first(left_out)}")
    for name, why in left_out.items():
        print(f"{name} is left out: {why}.", file=sys.stderr)
    print(write_study(folders, Path(output), left_out))


def finished(roots: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """The finished run folders at or below each root, in the order given (below a root: of jobs and arms, as their
    command has them); and the others by name, with the reason.

    Raises DataError for a root without any run.
    """
    return _sorted_out(roots, _unfinished)


def _sorted_out(roots: Sequence[Path], why_not: Callable[[Path], str]) -> tuple[list[Path], dict[str, str]]:
    """The run folders at or below each root for which `why_not` is empty, and the others by name with the reason."""
    folders: list[Path] = []
    left_out: dict[str, str] = {}
    for root in roots:
        for folder in _below(root):
            why = why_not(folder)
            if why:
                left_out[_name(folder, root)] = why
            elif (folder / "run.json").is_file() and folder not in folders:
                folders.append(folder)
    return folders, left_out


def report(folders: Sequence[Path], output: Path, left_out: Mapping[str, str] | None = None) -> Path:
    """Write the report about `folders`, saying on stderr what makes them hard to compare; returns its path."""
    from cai.report import gather, write

    gathered = gather(folders, left_out=left_out or {})
    for line in gathered.unequal:
        print(line, file=sys.stderr)
    return write(gathered, output)


def _below(root: Path) -> list[Path]:
    """The folders of runs and jobs at or below `root`: jobs by their number, arms as their command has them, and what
    has no such place by name, after them.
    """
    below = {path.parent for name in ("run.json", STATE) for path in root.rglob(name)}
    if not below:
        raise DataError(f"{root}: no run folder (one with a run.json) there")
    places = {folder: _place(folder) for folder in below}

    def order(folder: Path) -> list[tuple[float, str]]:
        way = [folder, *folder.parents][: len(folder.relative_to(root).parts)]
        return [(places.get(step, inf), step.name) for step in reversed(way)]

    return sorted(below, key=order)


def _place(folder: Path) -> float:
    """The number of a sweep's job, or the place of an arm among those of its command; inf where neither is known."""
    from cai.report.runs import read_run, read_settings

    if (folder / STATE).is_file():
        number = read_object(folder / STATE).get("number")
        return number if isinstance(number, int) else inf
    arms, arm = read_settings(folder).get("arms"), read_run(folder).get("arm")
    return list(arms).index(arm) if isinstance(arms, dict) and arm in arms else inf


def _unfinished(folder: Path) -> str:
    """Why the run in `folder` cannot be reported on; empty when it can, or when there is none."""
    from cai.report.runs import read_run

    if (folder / STATE).is_file():
        job = read_object(folder / STATE, "state", "error")
        if job["state"] in ("failed", "waiting"):
            return str(job["error"])
    if not (folder / "run.json").is_file():
        # the folder of a job with arms has the job's state, and the runs are below
        return "" if any(folder.glob("*/run.json")) else "stopped before its first step was done"
    run = read_run(folder)
    # an arm is whole without the win rates over another arm, which may wait for people
    own = [step for step in run.get("steps", ()) if not step.startswith("win_rate_over_")]
    missing = [step for step in own if step not in run["stages"]]
    return f"stopped before {missing[0]}" if missing else ""


def _unlabelled(folder: Path) -> str:
    """Why the labels of the run in `folder` cannot be compared; empty when they can, or when there is no run."""
    from cai.report.runs import read_run
    from cai.report.study import lacks

    return lacks(read_run(folder)["stages"]) if (folder / "run.json").is_file() else _unfinished(folder)


def _first(left_out: Mapping[str, str]) -> str:
    """One line about the first of the runs that are left out."""
    name, why = next(iter(left_out.items()))
    return f"{name}: {why}"


def _name(folder: Path, root: Path) -> str:
    return folder.name if folder == root else folder.relative_to(root).as_posix()
