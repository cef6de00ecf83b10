"""`cai compare` and `cai compare-labelers`: which runs a page is about, and which it has to leave out."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cai.errors import DataError
from cai.records import read_json

__all__ = ["STATE", "compare", "compare_labelers", "finished", "report"]

STATE = "job.json"  # beside run.json (or in its place) in the folder of a sweep's job: how the job went


def compare(runs: Sequence[str], output: str) -> None:
    """Write one report about finished runs, and tables for a paper beside it."""
    folders, left_out = finished([Path(run) for run in runs])
    if not folders:
        name, why = next(iter(left_out.items()))
        raise DataError(f"{', '.join(runs)}: no finished run there to report on; {name}: {why}")
    print(report(folders, Path(output), left_out))


def compare_labelers(runs: Sequence[str], output: str) -> None:
    """Write a page about the labelers of runs, which labelled the same comparisons; what came after does not matter."""
    from cai.report.study import write_study

    folders = [folder for root in map(Path, runs) for folder in _below(root) if (folder / "run.json").is_file()]
    print(write_study(list(dict.fromkeys(folders)), Path(output)))


def finished(roots: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """The finished run folders at or below each root, in the order given; and the others by name, with the reason.

    Raises DataError for a root without any run.
    """
    folders: list[Path] = []
    left_out: dict[str, str] = {}
    for root in roots:
        for folder in _below(root):
            why = _unfinished(folder)
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
    """The folders of runs and jobs at or below `root`."""
    below = sorted({path.parent for name in ("run.json", STATE) for path in root.rglob(name)})
    if not below:
        raise DataError(f"{root}: no run folder (one with a run.json) there")
    return below


def _unfinished(folder: Path) -> str:
    """Why the run in `folder` cannot be reported on; empty when it can, or when there is none."""
    if (folder / STATE).is_file():
        job = read_json(folder / STATE)
        if job["state"] == "failed":
            return str(job["error"])
    if not (folder / "run.json").is_file():
        # the folder of a job with arms has the job's state, and the runs are below
        return "" if any(folder.glob("*/run.json")) else "stopped before its first step was done"
    run = read_json(folder / "run.json")
    missing = [step for step in run.get("steps", ()) if step not in run["stages"]]
    return f"stopped before {missing[0]}" if missing else ""


def _name(folder: Path, root: Path) -> str:
    return folder.name if folder == root else folder.relative_to(root).as_posix()
