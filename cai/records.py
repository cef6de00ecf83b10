"""Records on disk: JSONL and JSON files, journals that survive kill -9, fingerprints and seeds.

Reading is strict: a record is checked field by field against its dataclass, and an error names file, line and key.
Writing is atomic: a file is there whole or not at all. Files hold JSON only, so NaN and infinity are refused; a number
that does not apply is null.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cai.codec import field_names, from_json, shown, to_json
from cai.errors import DataError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "Journal",
    "canonical",
    "digest_file",
    "digest_folder",
    "fingerprint",
    "from_json",
    "read_json",
    "read_object",
    "read_records",
    "read_rows",
    "seed_of",
    "sync",
    "to_json",
    "write_json",
    "write_records",
    "write_rows",
    "write_text",
]

R = TypeVar("R", bound="DataclassInstance")


# --- files ------------------------------------------------------------------------------------------------------------


def write_records(path: Path, records: "Iterable[DataclassInstance]") -> None:
    """Write one record a line, atomically and synced to disk."""
    write_rows(path, (to_json(r) for r in records))


def read_records(path: Path, cls: type[R]) -> list[R]:
    """The records of a JSONL file, in order. Blank lines are passed over; anything else wrong is a DataError."""
    return [from_json(cls, obj, f"{path}:{n}") for n, obj in _parsed_lines(path, _read_bytes(path))]


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write plain JSON objects, one a line: tables that are no records (curves, scores)."""
    _write_atomic(path, b"".join(_line(row, path) for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSONL file, in order."""
    rows = []
    for n, obj in _parsed_lines(path, _read_bytes(path)):
        if not isinstance(obj, dict):
            raise DataError(f"{path}:{n}: must be an object, got {shown(obj)}")
        rows.append(obj)
    return rows


def write_json(path: Path, obj: object) -> None:
    """Write one indented JSON value, atomically; keys keep their order."""
    _write_atomic(path, _encode(obj, str(path), indent=2) + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file."""
    try:
        return json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{path}: not JSON: {error}") from None


def read_object(path: Path, *needed: str) -> dict[str, Any]:
    """The JSON object of a file, which has the keys `needed`."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be an object, got {shown(found)}")
    for key in needed:
        if key not in found:
            raise DataError(f"{path}: key {key!r} is missing")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), atomically and synced to disk."""
    _write_atomic(path, text.encode("utf-8"))


def _line(row: object, path: Path) -> bytes:
    return _encode(row, str(path)) + b"\n"


def _encode(obj: object, where: str, indent: int | None = None) -> bytes:
    try:
        text = json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: cannot be written as JSON: {error} (a number that does not apply is null)") from None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can name but UTF-8 cannot hold
        return json.dumps(obj, allow_nan=False, indent=indent).encode("ascii")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _parsed_lines(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    """(line number from 1, parsed JSON) of every line that is not blank."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _write_atomic(path: Path, data: bytes) -> None:
    """Write beside `path`, sync, rename. The temporary name is fixed, so that what a kill left is written over."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def sync(path: Path) -> None:
    """Bring a file or a folder (its names) to the disk, so that it survives a loss of power."""
    if sys.platform == "win32":  # folders cannot be opened there, nor files synced that are open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- journals ---------------------------------------------------------------------------------------------------------


class Journal(Generic[R]):
    """A JSONL file that grows while a stage works and outlives kill -9. One process writes it at a time.

    Every append is one write and one fsync, so at most its last line can be torn; `read` cuts a torn line away. Ids
    are unique: to append one twice is a DataError, because it would mean that work was done twice.
    """

    def __init__(self, path: Path, cls: type[R]) -> None:
        if "id" not in field_names(cls):
            raise TypeError(f"a journal needs records with an id; {cls.__name__} has none")
        self.path = path
        self._cls = cls
        self._ids: set[str] | None = None  # None: not read yet, or a write failed half-way

    def read(self) -> list[R]:
        """The whole records so far, in the order of their appending; a torn last line is removed from the file."""
        records = []
        ids: set[str] = set()
        if self.path.exists():
            data = _read_bytes(self.path)
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self.path, whole)
            for number, obj in _parsed_lines(self.path, data[:whole]):
                record = from_json(self._cls, obj, f"{self.path}:{number}")
                _claim(record, ids, f"{self.path}:{number}")
                records.append(record)
        self._ids = ids
        return records

    def append(self, records: Iterable[R]) -> None:
        """Add records durably: when this returns they survive a crash."""
        if self._ids is None:
            self.read()
        assert self._ids is not None
        batch = list(records)
        if not batch:
            return
        data = b"".join(_line(to_json(r), self.path) for r in batch)
        ids, self._ids = self._ids, None
        for record in batch:
            _claim(record, ids, str(self.path))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.path.parent)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from None
        self._ids = ids


_id: Callable[[object], str] = attrgetter("id")


def _claim(record: object, ids: set[str], where: str) -> None:
    name = _id(record)
    if name in ids:
        raise DataError(f"{where}: key 'id': {name!r} is there twice; ids in a journal are unique")
    ids.add(name)


# --- fingerprints and seeds -------------------------------------------------------------------------------------------


def canonical(obj: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings on every machine."""
    try:
        return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"cannot be fingerprinted: {error}") from None


def fingerprint(obj: object) -> str:
    """SHA-256, in hex, of the canonical JSON of `obj`."""
    return hashlib.sha256(canonical(obj).encode("ascii")).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def digest_folder(path: Path) -> dict[str, str]:
    """SHA-256 of every file below `path`, by its path relative to it, sorted."""
    if not path.is_dir():
        raise DataError(f"{path}: is not a folder")
    files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
    return {name: digest_file(file) for name, file in files}


def seed_of(seed: int, *parts: str | int) -> int:
    """A 63-bit seed that depends on `seed` and `parts` alone: randomness per item, whatever the order of items."""
    digest = hashlib.sha256(canonical([seed, *parts]).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
