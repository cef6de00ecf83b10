import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cai.errors import StoreError
from cai.records import digest_folder
from cai.store import Entry, Store


def writer(text: str, calls: list[str]) -> Callable[[Path], dict[str, float]]:
    def build(output: Path) -> dict[str, float]:
        calls.append(text)
        (output / "sub").mkdir(exist_ok=True)
        (output / "a.txt").write_text(text)
        (output / "sub" / "b.txt").write_text(text * 2)
        return {"num_letters": len(text), "ratio": float("nan")}

    return build


def get(store: Store, calls: list[str], text: str = "hello", **material: object) -> Entry:
    return store.get({"text": text, **material}, writer(text, calls), name="words")


def test_same_material_is_built_once_and_found_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first = get(Store(tmp_path), calls)
    second = get(Store(tmp_path), calls)
    assert calls == ["hello"]
    assert (first.cached, second.cached) == (False, True)
    assert (second.path, second.fingerprint, second.seconds) == (first.path, first.fingerprint, first.seconds)
    assert second.facts == {"num_letters": 5}  # what does not apply (NaN) is left out
    assert (second.path / "sub" / "b.txt").read_text() == "hellohello"


def test_other_material_is_another_output(tmp_path: Path) -> None:
    calls: list[str] = []
    store = Store(tmp_path)
    assert get(store, calls, seed=1).path != get(store, calls, seed=2).path
    assert len(calls) == 2


def test_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.get({"a": 1, "b": {"c": 2, "d": 3}}, lambda _: {}, name="x")
    assert store.get({"b": {"d": 3, "c": 2}, "a": 1}, lambda _: {}, name="x").cached is True
    assert first.cached is False


def test_manifest_holds_material_and_digests_but_no_times(tmp_path: Path) -> None:
    entry = get(Store(tmp_path), [])
    manifest = json.loads((entry.path / "MANIFEST.json").read_text())
    assert manifest["material"] == {"text": "hello"}
    assert sorted(manifest["files"]) == ["a.txt", "sub/b.txt"]
    assert manifest["files"]["a.txt"] == {
        "bytes": 5,
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    }
    assert "seconds" not in (entry.path / "MANIFEST.json").read_text()


def test_two_makings_differ_in_meta_alone(tmp_path: Path) -> None:
    first, second = (digest_folder(get(Store(tmp_path / name), []).path) for name in ("x", "y"))
    assert first.pop("meta.json") and second.pop("meta.json")
    assert first == second


def test_failed_build_leaves_its_journal_and_nothing_visible(tmp_path: Path) -> None:
    def fail(output: Path) -> dict[str, float]:
        (output / "rows.journal").write_text("1\n")
        raise RuntimeError("power cut")

    def go_on(output: Path) -> dict[str, float]:
        (output / "rows.txt").write_text((output / "rows.journal").read_text() + "2\n")
        (output / "deep.journal").mkdir()
        (output / "deep.journal" / "state").write_text("x")
        return {}

    with pytest.raises(RuntimeError, match="power cut"):
        Store(tmp_path).get({}, fail, name="rows")
    assert [path.name[:8] for path in (tmp_path / "rows").iterdir() if path.is_dir()] == ["partial-"]
    entry = Store(tmp_path).get({}, go_on, name="rows")
    assert (entry.path / "rows.txt").read_text() == "1\n2\n"
    assert sorted(path.name for path in entry.path.iterdir()) == ["MANIFEST.json", "meta.json", "rows.txt"]
    assert not list(tmp_path.rglob("partial-*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "a.txt").unlink(), r"a\.txt: missing; delete the folder"),
        (lambda path: (path / "a.txt").write_text("hell"), r"a\.txt: has 4 bytes, the manifest says 5; delete"),
        (lambda path: (path / "sub" / "b.txt").write_text("hellohallo"), r"b\.txt: its content is not what"),
        (lambda path: (path / "MANIFEST.json").unlink(), r"MANIFEST\.json: missing; delete the folder"),
        (lambda path: (path / "meta.json").unlink(), r"meta\.json: missing; delete the folder"),
    ],
)
def test_damage_is_named_and_never_used(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(get(Store(tmp_path), []).path)
    with pytest.raises(StoreError, match=message):
        get(Store(tmp_path), [])


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        get(Store(tmp_path / "file"), [])


# Dies (no clean-up) at a chosen file-system call.
DIES = """
import os, sys
from pathlib import Path
from cai.records import write_json
from cai.store import Store

root, die_at, calls = Path(sys.argv[1]), int(sys.argv[2]), 0

def count(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == die_at:
            os._exit(9)
        return real(*args, **kwargs)
    return call

for name in ("replace", "fsync", "unlink"):
    setattr(os, name, count(getattr(os, name)))

die = count(lambda: None)

def build(output):
    journal = output / "rows.journal"
    for number in range(len(journal.read_text().split()) if journal.exists() else 0, 2):
        for path in (root / "work.log", journal):
            with path.open("a") as file:
                file.write(f"{number}\\n")
        die()
    write_json(output / "rows.json", journal.read_text().split())
    return {}

root.mkdir(exist_ok=True)
Store(root).get({"x": 1}, build, name="rows")
"""


@pytest.mark.slow
def test_kill_at_every_point_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """A process that dies (no clean-up) at a chosen file-system call, then a whole one: as if nothing had happened, and
    no unit of work that reached the journal was done twice.
    """

    def run(root: Path, die_at: int) -> int:
        return subprocess.run([sys.executable, "-c", DIES, str(root), str(die_at)], check=False).returncode

    assert run(tmp_path / "whole", 0) == 0
    (whole,) = (tmp_path / "whole" / "rows").glob("*/")
    wanted = digest_folder(whole)
    wanted.pop("meta.json")
    codes = []
    for die_at in range(1, 60):
        root = tmp_path / str(die_at)
        codes.append(run(root, die_at))
        assert run(root, 0) == 0
        (entry,) = (root / "rows").glob("*/")
        found = digest_folder(entry)
        found.pop("meta.json")
        assert found == wanted, f"died at call {die_at}"
        assert (root / "work.log").read_text().split() == ["0", "1"], f"died at call {die_at}"
        if codes[-1] == 0:
            break
    assert codes.count(9) >= 8 and codes[-1] == 0


def _compete(root: str, results: "multiprocessing.Queue[bool]") -> None:
    def build(output: Path) -> dict[str, float]:
        with (output / "built.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return {}

    results.put(Store(Path(root)).get({"x": 1}, build, name="rows").cached)


def test_seconds_of_interrupted_calls_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that worked for 100 s by the times of its journal and died, then another of 50 s, then a whole one."""
    now = time.time()

    def work(output: Path, seconds: float) -> None:
        (output / "rows.journal").touch()
        os.utime(output / "rows.journal", (now, time.time() + seconds))
        raise RuntimeError("power cut")

    def go_on(output: Path) -> dict[str, float]:
        return {"num_tokens": 5}

    store = Store(tmp_path)
    for seconds in (100, 50):
        with pytest.raises(RuntimeError):
            store.get({}, lambda output, seconds=seconds: work(output, seconds), name="rows")  # type: ignore[misc]
    first = store.get({}, go_on, name="rows")
    assert first.resumed and first.seconds == pytest.approx(150, abs=2)
    again = Store(tmp_path).get({}, go_on, name="rows")
    assert (again.resumed, again.seconds, again.cached) == (True, first.seconds, True)
    assert not get(store, []).resumed


def test_the_machine_is_noted_when_torch_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert get(Store(tmp_path), [], seed=1).machine == {}
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "NVIDIA H200")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 7, cuda=cuda))
    assert get(Store(tmp_path), [], seed=2).machine == {"device": "NVIDIA H200", "num_threads": 7}
    assert get(Store(tmp_path), [], seed=1).machine == {}  # of the making, not of the finding


def test_of_several_processes_one_computes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[bool] = context.Queue()
    processes = [context.Process(target=_compete, args=(str(tmp_path), results)) for _ in range(4)]
    for process in processes:
        process.start()
    cached = sorted(results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert cached == [False, True, True, True]
    (built,) = tmp_path.rglob("built.txt")
    assert len(built.read_text().split()) == 1
