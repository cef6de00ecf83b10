"""Plugins of Hydra that are extras: a launcher (submitit) and a sweeper that searches (Optuna) drive real sweeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from projects import TEST_PATH, project

from cai.records import read_json

__all__ = ["project"]  # a fixture

pytestmark = pytest.mark.slow


def swept(*overrides: str) -> Path:
    """The folder of the report of a sweep with these overrides, which succeeds."""
    command = [sys.executable, "-m", "cai", "run", "-m", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": TEST_PATH})
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1]).parent


def test_submitit_launches_the_jobs_and_the_command_waits(project: Path) -> None:
    """On this machine, as processes; on Slurm the same plugin submits them."""
    folder = swept("seed=1,2", "hydra/launcher=submitit_local")
    reported = [run["name"] for run in read_json(folder / "report.json")["runs"]]
    assert reported == ["run-seed=1", "run-seed=2"]
    assert list((folder / ".submitit").iterdir()), "the launcher left nothing: these jobs ran elsewhere"


def test_optuna_searches_for_what_the_objective_names(project: Path) -> None:
    search = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=4"]
    one_by_one = ["hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]
    folder = swept(*search, *one_by_one, "objective=revise.total", "data.count=range(1,6)")
    found = (folder / "optimization_results.yaml").read_text()
    jobs = [read_json(path) for path in folder.glob("*/run.json")]
    best = max(job["stages"]["revise"]["facts"]["total"] for job in jobs)
    assert f"best_value: {best}" in found and len(jobs) > 1
