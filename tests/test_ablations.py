"""benchmarks/ablations.py reads the report that its sweep wrote, wherever that went."""

from pathlib import Path

import pytest
from ablations import swept
from projects import TEST_PATH, project

from cai.records import read_json, write_json

__all__ = ["project"]  # a fixture


@pytest.mark.slow
def test_a_folder_that_holds_another_sweep_is_not_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", TEST_PATH)
    (project / "conf/experiment/ablation_own.yaml").write_text("# @package _global_\nseed: 1\n")
    other = project / "runs/sweep-ablation_own-seed=0,1"
    write_json(other / "plan.json", {"plan": "of other settings"})
    write_json(other / "report.json", {"title": "of others"})
    assert swept("own", "0,1", project) == read_json(other.with_name(f"{other.name}-2") / "report.json")
