#!/usr/bin/env python3
"""Set up and go, with nothing but Python 3.11 or later: make .venv, install what constraints.txt pins, start.

    python3 bootstrap.py run [overrides]     cai run experiment=demo [overrides]
    python3 bootstrap.py test [arguments]    pytest [arguments]

The first call installs (minutes); later ones start at once, until pyproject.toml or constraints.txt changes.
TORCH_INDEX=URL adds a package index for torch alone: the PyTorch project's CPU index saves gigabytes on a machine
without an NVIDIA GPU, if pip would otherwise take a CUDA build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "bootstrap-stamp"
OLDEST = (3, 11)


def find_python() -> str:
    """The interpreter for .venv: this one if it is new enough, else the newest `python3.N` on the PATH."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in range(20, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    sys.exit(f"bootstrap: needs Python 3.11 or later; this is {sys.version.split()[0]}, and the PATH has no newer one")


def stamp() -> str:
    """What the installation depends on, as one hash."""
    digest = hashlib.sha256(str(VENV).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def install() -> None:
    """Bring .venv up to date, unless its stamp says that it is. The stamp is written last, so a broken-off
    installation is done again."""
    wanted = stamp()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    print("bootstrap: installing into .venv (once; some minutes)", file=sys.stderr)
    call([find_python(), "-m", "venv", str(VENV)])
    pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    index = os.environ.get("TORCH_INDEX")
    # torch first and alone: it is most of the download, and the only one that a second index may serve
    call([*pip, *(["--extra-index-url", index] if index else []), "torch"])
    call([*pip, "-e", f"{ROOT}[dev]"])
    STAMP.write_text(wanted)
    print(f"bootstrap: installed; `source {BIN.relative_to(ROOT)}/activate` puts `cai` on the PATH", file=sys.stderr)


def call(command: list[str]) -> None:
    """Run one command; its output goes to stderr, so that stdout is the started program's alone."""
    done = subprocess.run(command, stdout=sys.stderr)
    if done.returncode != 0:
        sys.exit(f"bootstrap: failed ({done.returncode}): {' '.join(command)}")


def command(words: list[str]) -> list[str]:
    """The command line to start for `words`, the arguments of this script."""
    verb, rest = words[0], words[1:]
    if verb == "run":
        preset = [] if any(word.startswith("experiment=") for word in rest) else ["experiment=demo"]
        return [str(BIN / "cai"), "run", *preset, *rest]
    return [str(BIN / "python"), "-m", "pytest", *rest]


def main() -> None:
    """Install if need be, then become the program asked for."""
    words = sys.argv[1:]
    if not words or words[0] not in ("run", "test"):
        sys.exit((__doc__ or "").strip())
    install()
    line = command(words)
    if os.name == "nt":
        sys.exit(subprocess.call(line))
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
