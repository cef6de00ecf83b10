"""Where stage outputs live: content-addressed, locked, resumable.

`<root>/<name>/<fingerprint>/` is a finished output: the stage's files, `MANIFEST.json` (what it was made from, size and
sha256 of every file) and `meta.json` (what may differ between two makings: seconds, facts, machine).
`partial-<fingerprint>/` is one in the making; it outlives a kill, so that the stage goes on from its journals. They are
deleted only once `meta.json` says that all work is done, so no work is lost whenever the process dies.
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
from typing import Any, Final

from filelock import FileLock, Timeout

from cai.errors import StoreError
from cai.records import digest_file, digest_folder, fingerprint, read_json, sync, write_json

__all__ = ["Entry", "Store", "locked"]

_MANIFEST: Final = "MANIFEST.json"
_META: Final = "meta.json"
_CLOCK: Final = "clock.journal"  # when the call that works in a partial folder began, and seconds spent before it
_SCRAPS: Final = ("*.journal", ".*.tmp")  # journals, and half-written files of `cai.records`
# Files up to this size are hashed whenever they are used (about 0.1 s); of larger ones only the size is compared.
_HASHED_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A finished output. `seconds`, `facts` and `machine` are those of its making, also when it is `cached`.

    An output that was `resumed` after an interruption cost at least `seconds`, and at least the tokens and FLOPs among
    the facts: what the interrupted process spent on tokens, and after its last journal entry, is known to nobody.
    `machine` is the device and the number of threads of torch, if torch was used.
    """

    name: str
    fingerprint: str
    path: Path
    facts: dict[str, float]
    seconds: float
    cached: bool
    resumed: bool
    machine: dict[str, str | int]


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
        with locked(folder.with_name(f"{key}.lock"), name):
            if folder.is_dir():  # made by the process that held the lock before us
                return _entry(name, key, folder, cached=True)
            partial = folder.with_name(f"partial-{key}")
            partial.mkdir(exist_ok=True)
            if not (partial / _META).is_file():  # written when all else is: with it, only publishing is left to do
                _make(partial, build)
            _publish(partial, folder, material)
        return _entry(name, key, folder, cached=False)


@contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock `path`, in a folder made for it; say so on stderr when that means waiting for another process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be written: {error.strerror}") from None
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        print(f"{name}: another process is at it; waiting for it to end", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(partial: Path, build: Callable[[Path], dict[str, float]]) -> None:
    """Build, sync what there is, and note the facts last."""
    resumed, before = _interrupted(partial)
    write_json(partial / _CLOCK, {"start": time.time(), "before": before})
    start = time.perf_counter()
    facts = build(partial)
    seconds = before + time.perf_counter() - start
    for path in (partial, *partial.rglob("*")):
        sync(path)
    finite = {name: value for name, value in facts.items() if math.isfinite(value)}  # NaN: does not apply
    meta = {"seconds": seconds, "resumed": resumed, "machine": _machine(), "facts": finite}
    write_json(partial / _META, meta)


def _interrupted(partial: Path) -> tuple[bool, float]:
    """Whether an earlier call left work in the folder, and the seconds until it last wrote there (a kill gives no
    time to note them).
    """
    clock = partial / _CLOCK
    left = [path.stat().st_mtime for path in partial.rglob("*") if path.is_file() and path != clock]
    if not left or not clock.is_file():
        return False, 0.0
    noted = read_json(clock)
    return True, noted["before"] + max(0.0, max(left) - noted["start"])


def _machine() -> dict[str, str | int]:
    """What changes the rounding of torch, and is not in the settings: asked of torch if the stage has loaded it."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "num_threads": torch.get_num_threads()}


def _publish(partial: Path, folder: Path, material: Mapping[str, object]) -> None:
    """Drop journals and half-written files, write the manifest, then make the output visible by one rename."""
    for pattern in _SCRAPS:
        for path in sorted(partial.rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    files = {
        name: {"bytes": (partial / name).stat().st_size, "sha256": digest}
        for name, digest in digest_folder(partial).items()
        if name not in (_META, _MANIFEST)
    }
    write_json(partial / _MANIFEST, {"material": material, "files": files})
    os.replace(partial, folder)
    sync(folder.parent)


def _entry(name: str, key: str, folder: Path, *, cached: bool) -> Entry:
    """Read a finished output, after comparing its files with its manifest."""
    if cached:
        _verify(folder)
    meta = read_json(folder / _META)
    facts = {str(fact): float(value) for fact, value in meta["facts"].items()}
    return Entry(
        name=name,
        fingerprint=key,
        path=folder,
        facts=facts,
        seconds=meta["seconds"],
        cached=cached,
        resumed=meta["resumed"],
        machine=meta["machine"],
    )


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
