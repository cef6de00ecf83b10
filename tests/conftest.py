"""What every test gets: no network by accident, and a folder of its own to run in where it asks for one."""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The models of tests are tiny: threads would wait for each other, and round differently on another machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# torch and its like make millions of objects that stay: looking through them again and again takes seconds.
gc.disable()

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """All modules are loaded: what they made is left alone from now on, and what tests make is looked at less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
