"""A project of the user's own for tests of the command line: ./conf with tiny stages, ./constitutions, ./prompts."""

import json
import os
from pathlib import Path

import pytest
import yaml

from cai.pipeline import RECIPE
from cai.records import digest_file

TESTS = Path(__file__).parent
TEST_PATH = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))  # for processes of their own

CONFIG = """\
defaults:
  - schema
  - labeler: ai
  - _self_
  - experiment: null
  - override hydra/hydra_logging: none
  - override hydra/job_logging: none
seed: 0
constitution: plain
prompts: plain
model: {path: none, prompts: plain, max_tokens: 8, max_new_tokens: 8}
out: runs
store: store
steps: [data, revise]
data: {_target_: tiny.Numbers, count: 3, seed: "${seed}"}
revise: {_target_: tiny.Sum, factor: 2.0}
hydra:
  output_subdir: null
  sweep: {subdir: .}
"""

CONSTITUTION = """\
name: plain
description: one principle
principles:
  - id: kind
    axis: harmless
    statement: Be kind.
"""

JUDGE = """\
{% for turn in turns %}{{ turn.content }} {% endfor %}
{% for response in responses %}{{ response }} {% endfor %}
{{ principle.comparison }} {{ choice("A", "B") }}
"""


@pytest.fixture
def project(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings whose stages are tiny, and a report that lists its runs."""
    for folder in ("conf/labeler", "conf/experiment", "constitutions", "prompts/plain"):
        (workdir / folder).mkdir(parents=True)
    (workdir / "conf/config.yaml").write_text(CONFIG)
    for name in ("ai", "simulated"):
        (workdir / f"conf/labeler/{name}.yaml").write_text(f"who: {name}\n")
    (workdir / "constitutions/plain.yaml").write_text(CONSTITUTION)
    (workdir / "prompts/plain/judge.jinja").write_text(JUDGE)
    monkeypatch.setattr("cai.commands.compare.report", _report)
    return workdir


def _report(runs: list[Path], folder: Path, left_out: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "left_out.json").write_text(json.dumps(left_out or {}))
    (folder / "report.html").write_text("\n".join(str(run) for run in runs))
    return folder / "report.html"


def digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: digest_file(folder / name) for name in names}


def read(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(path.read_text())
    return loaded


def echo_experiment(project: Path, arms: dict[str, list[str]]) -> None:
    """experiment=both: every step of the recipe, as a stage that tells what it heard."""
    nodes = {step.key: {"_target_": "tiny.Echo", "word": step.key} for step in RECIPE}
    nodes["label"]["labeler"] = "${labeler.who}"
    steps = [step.name for step in RECIPE if step.name != "pretrain"]
    experiment = {"steps": steps, "arms": arms, **nodes}
    (project / "conf/config.yaml").write_text(CONFIG.replace("data: {_t", "#").replace("revise: {_t", "#"))
    text = yaml.safe_dump(experiment, sort_keys=False)
    (project / "conf/experiment/both.yaml").write_text(f"# @package _global_\n{text}")
