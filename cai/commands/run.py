"""`cai run` and `cai compare`: settings in, run folders and a report out.

A run folder holds `config.yaml` (resolved), `run.json` (per step: fingerprint, path, seconds, facts) and the texts that
were used. Arms and jobs of a sweep are run folders of their own, side by side under one folder with the report.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Final

import yaml

from cai import config, constitution, paths, pipeline
from cai.errors import DataError, PromptError, unknown
from cai.records import write_json, write_text
from cai.store import Entry, Store

__all__ = ["compare", "run", "sweep"]

_VERSIONS: Final = ("cai", "torch", "transformers", "trl", "datasets", "numpy", "hydra-core")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One run, composed, checked and built; nothing has been loaded or written yet."""

    arm: str | None
    overrides: list[str]
    settings: config.Settings
    steps: list[pipeline.Planned]
    texts: dict[str, Path]


def run(overrides: Sequence[str]) -> None:
    """Run the pipeline (every arm of it) and write the report; its path is the last line on stdout."""
    settings = config.compose(overrides)
    folder = Path(settings.out).absolute() / (settings.name or config.run_name(overrides))
    print(_report(_run(list(overrides), folder), folder))


def sweep(overrides: Sequence[str]) -> None:
    """Run a job for each combination of the overrides' values, then write one report about all of them."""
    folder, swept = config.sweep_plan(overrides)

    def job(chosen: list[str]) -> None:
        varied = [override for override in chosen if override.partition("=")[0] in swept]
        print(f"--- job {' '.join(varied)}", flush=True)
        _run(chosen, folder / config.run_name(varied))

    config.sweep(overrides, folder, job)
    print(_report(_run_folders([folder]), folder))


def compare(runs: Sequence[str], output: str) -> None:
    """Write one report about finished runs."""
    print(_report(_run_folders([Path(run) for run in runs]), Path(output)))


def _run(overrides: list[str], folder: Path) -> list[Path]:
    """Run every arm, each in its folder below `folder` (a single run in `folder` itself); returns the run folders."""
    settings = config.compose(overrides)
    # All arms are composed and built before the first one runs: a mistake in the last arm shows at once.
    arms = [_prepare(overrides, arm, more) for arm, more in settings.arms.items()] or [_prepare(overrides, None, [])]
    if settings.num_threads:
        # torch reads these when it is first imported, which is after this.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(settings.num_threads)
    store = Store(Path(settings.store))
    finished = {}
    for prepared in arms:
        arm_folder = folder / prepared.arm if prepared.arm else folder
        if prepared.arm:
            print(f"--- arm {prepared.arm}: {' '.join(settings.arms[prepared.arm])}")
        finished[prepared.arm] = (arm_folder, prepared, _run_arm(prepared, arm_folder, store))
    for a, b in combinations(finished.values(), 2):
        _head_to_head(a, b, store)
    return [arm_folder for arm_folder, _, _ in finished.values()]


def _prepare(overrides: Sequence[str], arm: str | None, more: Sequence[str]) -> Prepared:
    settings = config.compose([*overrides, *more])
    texts = _texts(settings)
    keys = [step.key for step in pipeline.RECIPE if step.name in settings.steps]
    stages = config.build(settings, keys)
    steps = pipeline.plan(settings.steps, settings.nodes(), stages)
    return Prepared(arm, [*overrides, *more], settings, steps, texts)


def _run_arm(prepared: Prepared, folder: Path, store: Store) -> dict[str, Entry]:
    write_text(folder / "config.yaml", yaml.safe_dump(asdict(prepared.settings), sort_keys=False, allow_unicode=True))
    _keep(prepared.texts, folder)
    entries = pipeline.run_steps(prepared.steps, store, lambda done: _write_run(prepared, folder, done))
    print(pipeline.summary(entries))
    return entries


def _head_to_head(
    a: tuple[Path, Prepared, dict[str, Entry]], b: tuple[Path, Prepared, dict[str, Entry]], store: Store
) -> None:
    """Win rate of arm `a` over arm `b`; both are judged by the judge of `a`, which is the same in both."""
    folder, prepared, entries = a
    planned = next(p for p in prepared.steps if p.step.name == "win_rate")
    name = f"win_rate_over_{b[1].arm}"
    inputs = {"data": entries["data"], "a": entries["evaluate_policy"], "b": b[2]["evaluate_policy"]}
    entries[name] = pipeline.run_step(planned, inputs, store)
    print(pipeline.line(name, entries[name]), flush=True)
    _write_run(prepared, folder, entries)


def _write_run(prepared: Prepared, folder: Path, entries: dict[str, Entry]) -> None:
    stages = {
        name: {
            "fingerprint": entry.fingerprint,
            "path": str(entry.path),
            "seconds": entry.seconds,
            "cached": entry.cached,
            "facts": entry.facts,
        }
        for name, entry in entries.items()
    }
    write_json(
        folder / "run.json",
        {
            "name": folder.name,
            "arm": prepared.arm,
            "seed": prepared.settings.seed,
            "command": ["cai", "run", *prepared.overrides],
            "stages": stages,
            "versions": {package: _version(package) for package in _VERSIONS},
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _texts(settings: config.Settings) -> dict[str, Path]:
    """The constitution file and the folder of prompt templates, by the names they get in the run folder."""
    family = paths.search("prompts", settings.prompts)
    if family is None:
        raise PromptError(f"prompts: {unknown('prompt family', settings.prompts, paths.names('prompts'))}")
    return {"constitution.yaml": Path(constitution.load(settings.constitution).path), "prompts": family}


def _keep(texts: dict[str, Path], folder: Path) -> None:
    """Copy the texts into the run folder: what was used, not what is there later."""
    for name, path in texts.items():
        if path.is_dir():
            shutil.copytree(path, folder / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / name)


def _run_folders(roots: Sequence[Path]) -> list[Path]:
    """The run folders at or below each root, in the order given."""
    found: list[Path] = []
    for root in roots:
        below = sorted(path.parent for path in root.rglob("run.json"))
        if not below:
            raise DataError(f"{root}: no run folder (one with a run.json) there")
        found += [path for path in below if path not in found]
    return found


def _report(runs: Sequence[Path], folder: Path) -> Path:
    from cai.report import write_report

    return write_report(runs, folder)
