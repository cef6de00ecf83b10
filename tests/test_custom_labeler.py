"""docs/labelers.md, word for word: its labeler runs from a file in the current folder, and its table is whole."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import comparison, run

from cai import cli, config
from cai.labelers.base import Labeler
from cai.paths import packaged
from cai.records import read_json, read_records, write_records
from cai.types import Judgment, Preference

DOCS = (Path(__file__).resolve().parent.parent / "docs" / "labelers.md").read_text(encoding="utf-8")
FILE = re.search(r"```python\n(# (\S+\.py)\n.*?)```", DOCS, re.S)
COMMAND = re.search(r"```\n(cai run labeler=custom .*?)\n", DOCS)
SMALL = [f"data.source.num_{name}=8" for name in ("red_team", "demonstrations", "comparisons", "rl", "evaluation")]


@pytest.fixture
def overrides(workdir: Path) -> list[str]:
    """Writes the file of the page, and gives what its command overrides."""
    assert FILE and COMMAND
    (workdir / FILE[2]).write_text(FILE[1])
    sys.modules.pop(FILE[2].removesuffix(".py"), None)
    return shlex.split(COMMAND[1])[2:]


def test_the_page_s_labeler_is_built_by_the_page_s_command_and_labels(workdir: Path, overrides: list[str]) -> None:
    settings = config.compose(overrides)
    assert settings.labeler == {"_target_": "my_file.MyLabeler", "sharpness": 0.5}
    stage = config.build(settings, ["label"])["label"]
    assert isinstance(stage._labeler, Labeler)
    items = [comparison("a", "one", "one two three"), comparison("b", "x y", "x"), comparison("c", "same", "size")]
    write_records(workdir / "sample" / "comparisons.jsonl", items)
    stage._scorer = None
    run(stage, {"sample": workdir / "sample"}, workdir / "out")
    labels = {p.id: p.pairs[0].p for p in read_records(workdir / "out" / "preferences.jsonl", Preference)}
    assert labels.keys() == {"a", "b"} and labels["a"] > 0.7 and labels["b"] < 0.4
    assert read_json(workdir / "out" / "label.json")["abstained"] == {"same_length": 1}
    edited = (workdir / "my_file.py").read_text().replace("fewer", "less")
    before = stage.texts()
    (workdir / "my_file.py").write_text(edited)
    assert stage.texts() != before, "labels are made anew after an edit"


@pytest.mark.slow
def test_the_page_s_command_runs(workdir: Path, overrides: list[str]) -> None:
    """In a process that does not look into the current folder by itself, as the installed command does not."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "cai",
        "run",
        *overrides,
        *SMALL,
        "steps=[data,revise,sft,sample,label]",
        "name=own",
    ]
    subprocess.run(
        command, check=True, cwd=workdir, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    )
    (path,) = (workdir / "store" / "label").glob("*/judgments.jsonl")
    assert {j.labeler for j in read_records(path, Judgment)} == {"brevity"}


def test_a_labeler_that_is_not_there_is_one_line(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "mine.py").write_text("class MyLabeler:\n    pass\n")
    for override, message in (
        ("labeler._target_=mine.MyLabler", "unknown name in mine 'MyLabler'; did you mean 'MyLabeler'"),
        ("labeler._target_=yours.MyLabeler", "cannot import 'yours.MyLabeler': No module named 'yours'"),
    ):
        assert cli.main(["run", "labeler=custom", override]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["run", "labeler=custom"]) == 2
    assert "labeler._target_: has no value yet; give it one: labeler._target_=..." in capsys.readouterr().err


@pytest.mark.slow
def test_every_command_of_the_page_builds(workdir: Path, overrides: list[str]) -> None:
    commands = re.findall(r"^cai run (?!experiment)(.*)$", DOCS, re.M)
    assert len(commands) > 12
    for command in commands:
        settings = config.compose(shlex.split(command, comments=True))
        assert isinstance(config.build(settings, ["label"])["label"]._labeler, Labeler), command


def test_the_table_has_every_labeler() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", DOCS, re.M))
    assert {path.stem for path in (packaged("conf") / "labeler").glob("*.yaml")} <= rows
