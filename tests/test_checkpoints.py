"""Checkpoints: what is whole comes back, what is damaged is passed over and said."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cai.errors import DataError
from cai.rl.checkpoints import load_latest, save


def state(number: int) -> dict[str, object]:
    return {"step": number, "weights": torch.full((100,), float(number)), "nested": {"rows": [(1, None), 0.5, "a"]}}


def three(folder: Path) -> Path:
    for number in (5, 10, 15):
        save(folder, number, state(number))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_and_two_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_latest(tmp_path / "none") is None
    folder = three(tmp_path / "checkpoints.journal")
    assert names(folder) == ["00000010.json", "00000010.pt", "00000015.json", "00000015.pt"]
    found = load_latest(folder)
    assert found is not None and found["step"] == 15 and found["nested"] == {"rows": [(1, None), 0.5, "a"]}
    assert torch.equal(found["weights"], torch.full((100,), 15.0))
    assert capsys.readouterr().err == ""


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    path.write_bytes((path.parent / "00000010.json").read_bytes())


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("00000015.pt", Path.unlink, "is missing"),
    ("00000015.pt", cut, "bytes, its marker says"),
    ("00000015.pt", flip, "its content is not what its marker says"),
    ("00000015.json", Path.unlink, "has no marker, so it may be cut"),
    ("00000015.json", cut, "its marker 00000015.json is damaged"),
    ("00000015.json", lambda path: path.write_text("[]"), "its marker 00000015.json is damaged"),
    ("00000015.json", swap, "its content is not what its marker says"),
]


@pytest.mark.parametrize(("name", "damage", "problem"), DAMAGES)
def test_a_damaged_one_is_passed_over_in_one_line(
    name: str, damage: Callable[[Path], None], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = three(tmp_path)
    damage(folder / name)
    found = load_latest(folder)
    assert found is not None and found["step"] == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert "00000015.pt: " in line and problem in line and line.endswith("; checkpoint 10 is tried")
    assert names(folder) == ["00000010.json", "00000010.pt"]
    save(folder, 15, state(15))
    again = load_latest(folder)
    assert again is not None and again["step"] == 15 and capsys.readouterr().err == ""


def test_with_none_whole_training_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = three(tmp_path)
    for path in folder.glob("*.pt"):
        cut(path)
    assert load_latest(folder) is None
    assert [line.rpartition("; ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "checkpoint 10 is tried",
        "training starts over",
    ]
    assert names(folder) == []


def test_a_half_written_file_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = three(tmp_path)
    (folder / ".00000020.pt.tmp").write_bytes(b"half")
    found = load_latest(folder)
    assert found is not None and found["step"] == 15 and capsys.readouterr().err == ""
    assert not list(folder.glob(".*"))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"00000001\.pt: cannot be written"):
        save(tmp_path / "file" / "checkpoints.journal", 1, state(1))
