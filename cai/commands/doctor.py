"""`cai doctor`: what machine, devices, versions and extras are here, and what a server can do."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from cai.errors import EngineError

__all__ = ["doctor", "server"]

# One package that only the extra brings, for each extra that a person may want.
_EXTRAS: Final = {
    "serve": "fastapi",
    "postgres": "psycopg",
    "endpoint": "openai",
    "sweep": "hydra-joblib-launcher",
    "lora": "peft",
    "optuna": "hydra-optuna-sweeper",
    "slurm": "hydra-submitit-launcher",
    "harness": "lm-eval",
    "dev": "pytest",
}


def doctor() -> None:
    """Print one line per fact, aligned."""
    for name, value in _facts():
        print(f"{name:<14}{value}")


def server(url: str, model: str, api_key_env: str | None) -> None:
    """Print what the server at `url` can do for `model`: for prompts with turns, and for prompts of text alone."""
    from cai.engines.endpoint import EndpointEngine

    engine = EndpointEngine(model=model, base_urls=[url], api_key_env=api_key_env, outage_seconds=10.0)
    print(f"{'server':<14}{url}, model {model}")
    for chat, kind in ((True, "chat"), (False, "text")):
        try:
            found = engine.abilities(chat=chat)
        except EngineError as error:
            if chat:
                raise
            print(f"{kind:<14}no: {error}")
            continue
        for mode, ability in found.items():
            more = "" if ability is None else _how(ability.top_logprobs, ability.dialect, ability.constrained)
            print(f"{kind + ' ' + mode:<14}{'no' if ability is None else 'yes' + more}")
    usage = engine.usage
    print(f"{'asked':<14}{usage.num_requests} requests, {usage.prompt_tokens + usage.new_tokens} tokens")


def _how(top_logprobs: int, dialect: str, constrained: bool) -> str:
    """In which way a server can do it."""
    if top_logprobs:
        return f", {top_logprobs} tokens in each place"
    return f", /{dialect}" if dialect else ", kept to the options" if constrained else ""


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
