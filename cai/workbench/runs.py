"""A finished run as the workbench takes it up: the settings it was asked for, and where its outputs are."""

from pathlib import Path
from typing import Any

from cai import config
from cai.arms import commands
from cai.errors import DataError
from cai.records import read_object

__all__ = ["command", "outputs"]


def command(run: Path) -> list[str]:
    """The overrides of a run, and of the arm that it is, without its constitution."""
    told = _run_json(run, "command")
    _cai, _run, *items = told["command"]
    if told.get("arm"):
        items = commands(items, config.compose(items).arms).get(told["arm"], items)
    return [item for item in items if item.partition("=")[0].lstrip("+") != "constitution"]


def outputs(run: Path) -> dict[str, Path]:
    """The folders of the steps up to the labels. DataError for a run that sampled no comparisons."""
    stages = _run_json(run, "stages")["stages"]
    for name in ("data", "revise", "sample"):
        if name not in stages:
            raise DataError(f"{run / 'run.json'}: the run has no step {name!r}, whose output is needed")
    return {name: run / entry["path"] for name, entry in stages.items()}


def _run_json(run: Path, needed: str) -> dict[str, Any]:
    if not (run / "run.json").is_file():
        below = [str(path.parent) for path in sorted(run.rglob("run.json"))]
        hint = f"; there are below it: {', '.join(below)}" if below else ""
        raise DataError(f"{run}: is no run folder (there is no run.json in it){hint}")
    return read_object(run / "run.json", needed)
