"""Where stage outputs live: content-addressed, locked, resumable.

`<root>/<name>/<fingerprint>/` is a finished output: the stage's files, `MANIFEST.json` (what it was made from, size and
sha256 of every file) and `meta.json` (seconds and facts, which may differ between two makings of the same bytes).
`partial-<fingerprint>/` is one in the making; it outlives a kill, so that the stage goes on from its journals.
An output becomes visible by one atomic rename, under a lock that decides which of several processes computes it.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from cai.errors import StoreError
from cai.records import digest_file, digest_folder, fingerprint, read_json, write_json

__all__ = ["Entry", "Store"]

_MANIFEST: Final = "MANIFEST.json"
_META: Final = "meta.json"
_SCRAPS: Final = ("*.journal", ".*.tmp")  # journals, and half-written files of `cai.records`
# Files up to this size are hashed whenever they are used (about 0.1 s); of larger ones only the size is compared.
_HASHED_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A finished output. `seconds` and `facts` are those of its making, also when it is `cached`."""

    name: str
    fingerprint: str
    path: Path
    facts: dict[str, float]
    seconds: float
    cached: bool


class Store:
    """A folder of finished stage outputs that runs, arms and sweep jobs share."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def get(self, material: Mapping[str, object], build: Callable[[Path], dict[str, float]], *, name: str) -> Entry:
        """The output made from `material`: found, or made now by `build(folder) -> facts`.

        `material` is JSON that decides every byte of the output; its fingerprint is the address. `build` gets a folder
        that may hold the journals of an interrupted call with the same material. Files ending in `.journal` are gone
        from the finished output. Raises StoreError when a finished output does not match its manifest.
        """
        key = fingerprint(material)
        folder = self.root / name / key
        if folder.is_dir():
            return _entry(name, key, folder, cached=True)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"store {self.root}: cannot be written: {error.strerror}") from None
        with _locked(folder.with_name(f"{key}.lock"), name):
            if folder.is_dir():  # made by the process that held the lock before us
                return _entry(name, key, folder, cached=True)
            partial = folder.with_name(f"partial-{key}")
            partial.mkdir(exist_ok=True)
            if not (partial / _META).is_file():  # written when all else is: with it, only publishing is left to do
                _make(partial, build)
            _publish(partial, folder, material)
        return _entry(name, key, folder, cached=False)


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock `path`; say so on stderr when that means waiting for another process."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        print(f"{name}: another process is computing this output; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(partial: Path, build: Callable[[Path], dict[str, float]]) -> None:
    """Build, drop journals and half-written files, sync what is left, and note the facts last."""
    start = time.perf_counter()
    facts = build(partial)
    seconds = time.perf_counter() - start
    for pattern in _SCRAPS:
        for path in sorted(partial.rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (partial, *partial.rglob("*")):
        _sync(path)
    finite = {name: value for name, value in facts.items() if math.isfinite(value)}  # NaN: does not apply
    write_json(partial / _META, {"seconds": seconds, "facts": finite})


def _publish(partial: Path, folder: Path, material: Mapping[str, object]) -> None:
    """Write the manifest, then make the output visible by one rename."""
    files = {
        name: {"bytes": (partial / name).stat().st_size, "sha256": digest}
        for name, digest in digest_folder(partial).items()
        if name not in (_META, _MANIFEST, f".{_MANIFEST}.tmp")
    }
    write_json(partial / _MANIFEST, {"material": material, "files": files})
    os.replace(partial, folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entry(name: str, key: str, folder: Path, *, cached: bool) -> Entry:
    """Read a finished output, after comparing its files with its manifest."""
    if cached:
        _verify(folder)
    meta = read_json(folder / _META)
    facts = {str(fact): float(value) for fact, value in meta["facts"].items()}
    return Entry(name=name, fingerprint=key, path=folder, facts=facts, seconds=meta["seconds"], cached=cached)


def _verify(folder: Path) -> None:
    remedy = f"delete the folder {folder} to compute it again"
    for name in (_MANIFEST, _META):
        if not (folder / name).is_file():
            raise StoreError(f"{folder / name}: missing; {remedy}")
    for name, facts in read_json(folder / _MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file():
            raise StoreError(f"{path}: missing; {remedy}")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise StoreError(f"{path}: has {size} bytes, the manifest says {facts['bytes']}; {remedy}")
        if size <= _HASHED_BYTES and digest_file(path) != facts["sha256"]:
            raise StoreError(f"{path}: its content is not what the manifest says; {remedy}")
