"""The commands besides `cai run`, and what loads no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from projects import CONSTITUTION, TESTS, project

from cai import cli, paths

__all__ = ["project"]  # fixture


def test_init_copies_what_is_shipped(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "mine"]) == 0
    assert (workdir / "mine/conf/config.yaml").read_text() == (paths.packaged("conf") / "config.yaml").read_text()
    capsys.readouterr()
    assert cli.main(["init", "mine"]) == 2
    assert "exists; cai init writes over nothing" in capsys.readouterr().err


def test_constitution_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["constitution", "check", "plain"]) == 0
    assert capsys.readouterr().out == "plain: ok\n"
    path = project / "constitutions/plain.yaml"
    path.write_text(CONSTITUTION.replace("statement", "statemnt"))
    assert cli.main(["constitution", "check", "plain"]) == 2
    captured = capsys.readouterr()
    assert "plain.yaml:4" in captured.out and "statemnt" in captured.out
    assert captured.err.count("\n") == 1


def test_doctor_tells_versions_devices_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace("disk free", "free").splitlines())
    assert {"cai", "python", "torch", "cuda" if "cuda" in facts else "cuda:0", "[sweep]", "[serve]"} <= set(facts)
    assert facts["[dev]"] == "installed"


def test_doctor_works_where_the_system_tells_no_affinity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cli.main(["doctor"]) == 0
    assert ", 12 cores" in capsys.readouterr().out


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "--nonsense"])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "seed=1"])
    capsys.readouterr()
    for arguments, message in (
        (["preview", "sandbox", "--nun", "1"], "cai constitution preview: error: unknown arguments: --nun 1"),
        (["diff", "sandbox"], "cai constitution diff: error: the following arguments are required: NEW"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["constitution", *arguments])
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith(f"usage: cai constitution {arguments[0]} ") and said[-1] == message


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["constitution", "check", "plain"]])
def test_light_commands_load_no_torch(project: Path, arguments: list[str]) -> None:
    program = (
        "import sys, cai.cli\n"
        "try: code = cai.cli.main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(sorted({'torch', 'transformers', 'trl', 'matplotlib', 'scipy'} & set(sys.modules)), code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize("arguments", [["constitution", "check"], ["constitution", "diff", "sandbox", "sandbox"]])
def test_a_reader_who_leaves_ends_a_command_quietly(workdir: Path, arguments: list[str]) -> None:
    """As in `cai ... | head`, also where rich writes; the exit code is what the shell has for SIGPIPE."""
    command = [sys.executable, "-c", "import sys, cai.cli; sys.exit(cai.cli.main())", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_breaks_is_no_reader_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: object) -> int:
        raise BrokenPipeError("a worker's queue")

    monkeypatch.setattr(cli, "_main", broken)
    with pytest.raises(BrokenPipeError, match="a worker's queue"):
        cli.main(["doctor"])


def test_a_mistake_is_found_without_torch(project: Path) -> None:
    program = "import sys, cai.cli; print(cai.cli.main(), 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, "run", "revise.factor=two"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "2 False\n"
