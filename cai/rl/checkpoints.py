"""Checkpoints of a training that is under way, which are trusted only when their digest says that they are whole.

`<number>.pt` holds a state, `<number>.json` its marker: size and sha256, written after it. A file without its marker,
a marker without its file and a file that is not what its marker says are passed over, with a line on stderr, for the
checkpoint before. Put the folder where the store drops it, under a name that ends in `.journal`.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import torch

from cai.errors import DataError
from cai.records import digest_file, read_json, sync, write_json

__all__ = ["load_latest", "save"]

_KEPT: Final = 2  # the newest, and one to fall back on


def save(folder: Path, number: int, state: dict[str, Any]) -> None:
    """Write checkpoint `number` durably, then delete all but the two newest. `state` is made of tensors, numbers,
    strings, and dicts, lists and tuples of them.
    """
    path, marker = _paths(folder, number)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        facts = {"bytes": temporary.stat().st_size, "sha256": digest_file(temporary)}
        marker.unlink(missing_ok=True)  # of an earlier file with this number
        os.replace(temporary, path)
        sync(folder)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError, on a full disk for one
        raise DataError(f"{path}: cannot be written: {' '.join(str(error).split())}") from None
    write_json(marker, facts)
    for old in _numbers(folder)[:-_KEPT]:
        _delete(folder, old)


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest state that is whole, on the CPU; None when there is none. Each newer one, damaged, gets a line on
    stderr and is deleted, so that it is never counted among those to fall back on.
    """
    for cut in folder.glob(".*.tmp"):  # a kill while it was written
        cut.unlink()
    numbers = _numbers(folder)
    for at in reversed(range(len(numbers))):
        path, _ = _paths(folder, numbers[at])
        problem = _problem(folder, numbers[at])
        if problem is None:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        rest = f"checkpoint {numbers[at - 1]} is tried" if at else "training starts over"
        print(f"{path}: {problem}; {rest}", file=sys.stderr)
        _delete(folder, numbers[at])
    return None


def _problem(folder: Path, number: int) -> str | None:
    """What is wrong with a checkpoint; None when it is whole."""
    path, marker = _paths(folder, number)
    if not marker.is_file():
        return "has no marker, so it may be cut"
    if not path.is_file():
        return "is missing"
    try:
        facts = read_json(marker)
        bytes_, sha256 = facts["bytes"], facts["sha256"]
    except (DataError, KeyError, TypeError):
        return f"its marker {marker.name} is damaged"
    if path.stat().st_size != bytes_:
        return f"has {path.stat().st_size} bytes, its marker says {bytes_}"
    return None if digest_file(path) == sha256 else "its content is not what its marker says"


def _numbers(folder: Path) -> list[int]:
    """Numbers of which there is a file or a marker, ascending."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted({int(name.split(".")[0]) for name in names if re.fullmatch(r"\d+\.(pt|json)", name)})


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:08d}.pt", folder / f"{number:08d}.json"


def _delete(folder: Path, number: int) -> None:
    path, marker = _paths(folder, number)
    marker.unlink(missing_ok=True)  # first: a kill in between must leave nothing that looks whole
    path.unlink(missing_ok=True)
