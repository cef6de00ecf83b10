"""bootstrap.py with a fake pip: what it installs, when it does, and what it starts. Its real work is done by CI."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module whose project is an empty folder."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "BIN", tmp_path / ".venv" / "bin")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "stamp")
    (tmp_path / ".venv").mkdir()
    return module


@pytest.fixture
def calls(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every command that would have been run."""
    made: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "call", made.append)
    return made


def test_first_call_installs_torch_alone_and_then_the_rest(bootstrap: ModuleType, calls: list[list[str]]) -> None:
    bootstrap.install()
    venv, torch, rest = calls
    assert venv[1:3] == ["-m", "venv"]
    assert torch[-1] == "torch" and "--extra-index-url" not in torch
    assert rest[-2:] == ["-e", f"{bootstrap.ROOT}[dev]"]
    for command in (torch, rest):
        assert command[command.index("-c") + 1] == str(bootstrap.ROOT / "constraints.txt")


def test_index_for_torch_is_for_torch_alone(
    bootstrap: ModuleType, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_INDEX", "http://wheels.example")
    bootstrap.install()
    assert [("http://wheels.example" in command) for command in calls] == [False, True, False]


def test_second_call_installs_nothing_until_a_pin_changes(bootstrap: ModuleType, calls: list[list[str]]) -> None:
    bootstrap.install()
    calls.clear()
    bootstrap.install()
    assert calls == []
    (bootstrap.ROOT / "constraints.txt").write_text("torch==2.14.0\n")
    bootstrap.install()
    assert len(calls) == 3


def test_broken_off_installation_is_done_again(
    bootstrap: ModuleType, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str]) -> None:
        if command[-1] == "torch":
            sys.exit("no network")

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "call", fail)
        with pytest.raises(SystemExit, match="no network"):
            bootstrap.install()
    bootstrap.install()
    assert len(calls) == 3


def test_failing_command_is_named(bootstrap: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"bootstrap: failed \(3\): .*exit\(3\)"):
        bootstrap.call([sys.executable, "-c", "exit(3)"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run"], ["cai", "run", "experiment=demo"]),
        (["run", "seed=1"], ["cai", "run", "experiment=demo", "seed=1"]),
        (["run", "experiment=rlaif", "-m", "seed=1,2"], ["cai", "run", "experiment=rlaif", "-m", "seed=1,2"]),
        (["test"], ["python", "-m", "pytest"]),
        (["test", "-m", "slow"], ["python", "-m", "pytest", "-m", "slow"]),
    ],
)
def test_what_is_started(bootstrap: ModuleType, words: list[str], line: list[str]) -> None:
    program, *arguments = bootstrap.command(words)
    assert [Path(program).name, *arguments] == line


def test_without_a_verb_it_says_how_to_use_it() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "bootstrap.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "bootstrap.py run" in done.stderr


def test_it_needs_the_standard_library_alone() -> None:
    code = f"import runpy; runpy.run_path({str(ROOT / 'bootstrap.py')!r}, run_name='not-main')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_an_old_python_without_a_newer_one_is_refused(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 99))
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or later"):
        bootstrap.find_python()


def test_everything_asked_for_is_pinned() -> None:
    """constraints.txt pins each requirement of the project and of the extras that are installed here, exactly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert all("==" in line for line in lines)
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["dev"], *extras["sweep"]]:
        name = requirement.split("[")[0].split(">")[0].split("<")[0].lower()
        assert name in pinned or name == "cai", requirement
