"""`cai doctor`: what machine, devices, versions and extras are here."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Final

__all__ = ["doctor"]

# One package that only the extra brings, for each extra that a person may want.
_EXTRAS: Final = {
    "serve": "fastapi",
    "postgres": "psycopg",
    "endpoint": "openai",
    "sweep": "hydra-joblib-launcher",
    "dev": "pytest",
}


def doctor() -> None:
    """Print one line per fact, aligned."""
    for name, value in _facts():
        print(f"{name:<14}{value}")


def _facts() -> list[tuple[str, str]]:
    import torch

    facts = [
        ("cai", _version("cai")),
        ("python", platform.python_version()),
        ("system", f"{platform.system()} {platform.machine()}, {_num_cores()} cores"),
        ("disk free", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB here"),
        ("torch", f"{_version('torch')}, {torch.get_num_threads()} threads"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            facts.append((f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"))
    else:
        facts.append(("cuda", "no device"))
    for package in ("transformers", "trl", "datasets", "accelerate", "numpy", "hydra-core"):
        facts.append((package, _version(package)))
    for extra, package in _EXTRAS.items():
        have = _version(package)
        facts.append((f"[{extra}]", have if have == "missing" else "installed"))
    return facts


def _num_cores() -> int | None:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
