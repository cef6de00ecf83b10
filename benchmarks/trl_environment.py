"""An environment with TRL 1.12.0, the last release that has PPO, beside the project's own.

    python benchmarks/trl_environment.py [--folder runs/trl-1.12]

prints the path of its interpreter. Only TRL is installed: all else, `cai` included, is seen through a path file in the
interpreter's site-packages, so both trainers run on the same torch and transformers and can share a process. The other
benchmarks call `reenter`, which makes the environment if need be and starts them again inside it.
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

VERSION = "1.12.0"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "trl-1.12"


def make(folder: Path) -> Path:
    """The interpreter of the environment at `folder`, made if it is not there yet."""
    places = {"base": str(folder), "platbase": str(folder)}
    python = Path(sysconfig.get_path("scripts", "venv", places)) / Path(sys.executable).name
    packages = Path(sysconfig.get_path("purelib", "venv", places))
    layer = packages / "layer.pth"
    if not layer.exists():
        venv.create(folder, with_pip=False)
        wanted = ["--no-deps", "--target", str(packages), f"trl=={VERSION}"]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
        # Behind the environment's own packages, so that its TRL is found first; written last, as the sign that all is
        # there. `addsitedir` and not a bare path: it reads the path file through which `cai` is found.
        layer.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


def reenter() -> None:
    """Go on in the environment: returns at once there, and elsewhere becomes the same command under its interpreter."""
    if importlib.metadata.version("trl") != VERSION:
        python = str(make(FOLDER))
        # It warns of what this environment is for, and waits for a telemetry server where there is no network.
        os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
        os.execv(python, [python, *sys.argv])


def main() -> None:
    """Make it and say where its interpreter is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to make it; git ignores runs/")
    print(make(parser.parse_args().folder.resolve()))


if __name__ == "__main__":
    main()
