"""User files come first, shipped ones after, from a checkout and from a wheel alike."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cai import paths

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("conf", "constitutions", "prompts")


def test_the_users_own_file_comes_first(workdir: Path) -> None:
    shipped = paths.search("constitutions", "minimal", ".yaml")
    assert shipped == paths.packaged("constitutions") / "minimal.yaml"
    (workdir / "constitutions").mkdir()
    (workdir / "constitutions" / "minimal.yaml").write_text("")
    assert paths.search("constitutions", "minimal", ".yaml") == workdir / "constitutions" / "minimal.yaml"
    assert paths.search("constitutions", "hhh", ".yaml") == paths.packaged("constitutions") / "hhh.yaml"
    assert paths.search("constitutions", "nowhere", ".yaml") is None


def test_names_are_those_of_both_folders(workdir: Path) -> None:
    (workdir / "constitutions").mkdir()
    (workdir / "constitutions" / "own.yaml").write_text("")
    assert {"own", "minimal"} <= set(paths.names("constitutions", ".yaml"))
    (workdir / "prompts" / "own").mkdir(parents=True)
    assert {"own", "few_shot"} <= set(paths.names("prompts"))


def test_in_the_checkout_the_two_folders_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert paths.folders("conf") == (paths.packaged("conf"),)


@pytest.mark.slow
def test_the_wheel_carries_every_user_file_and_finds_it(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for kind in KINDS:
        tracked = [path for path in (ROOT / kind).rglob("*") if path.is_file()]
        assert tracked
        for path in tracked:
            assert f"cai/shipped/{path.relative_to(ROOT).as_posix()}" in held
    assert not [name for name in held if name.startswith("tests")]
    folders = (ROOT / "cai" / name for name in ("report", "serve"))
    pages = [path for folder in folders for path in folder.rglob("*") if path.suffix not in (".py", ".pyc", "")]
    assert {path.suffix for path in pages} == {".jinja", ".js", ".css", ".svg", ".txt"}
    assert {path.relative_to(ROOT).as_posix() for path in pages} <= held

    program = (
        "import cai.paths, cai.cli\n"
        "print(cai.paths.packaged('conf'))\n"
        "assert cai.cli.main(['constitution', 'check', 'minimal']) == 0\n"
        "assert cai.cli.main(['run', 'labeler=a']) == 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[0] == str(tmp_path / "installed/cai/shipped/conf")
    assert "labeler: unknown option 'a'" in done.stderr
