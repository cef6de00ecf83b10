"""Runs of the recipe for benchmarks: `cai run` in a process of its own; where each stage's output went."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cai.records import read_json

__all__ = ["recipe_run"]


def recipe_run(name: str, overrides: Sequence[str], work: Path) -> dict[str, Path]:
    """Run with a store in `work` that all runs share; returns the output folder of every step."""
    place = [f"out={work / 'runs'}", f"store={work / 'store'}", f"name={name}"]
    subprocess.run([sys.executable, "-m", "cai", "run", *overrides, *place], check=True)
    return {step: Path(entry["path"]) for step, entry in read_json(work / "runs" / name / "run.json")["stages"].items()}
