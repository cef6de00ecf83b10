"""`cai run` and `cai compare`: settings in, run folders and a report out.

A run folder holds `config.yaml` (resolved), `run.json` (per step: fingerprint, path, seconds, facts) and the texts that
were used. Arms and jobs of a sweep are run folders of their own, side by side under one folder with the report.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
    folder: Path
    overrides: list[str]
    settings: config.Settings
    steps: list[pipeline.Planned]
    texts: dict[str, Path]


def run(overrides: Sequence[str]) -> None:
    """Run the pipeline (every arm of it) and write the report; its path is the last line on stdout."""
    settings = config.compose(overrides)
    folder = Path(settings.out).absolute() / (settings.name or config.run_name(overrides))
    print(_report(_run(overrides, settings, folder), folder))


def sweep(overrides: Sequence[str]) -> None:
    """Run a job for each combination of the overrides' values, then write one report about all of them."""
    folder, swept = config.sweep_plan(overrides)

    def job(chosen: list[str]) -> None:
        varied = [override for override in chosen if override.partition("=")[0] in swept]
        print(f"--- job {' '.join(varied)}", flush=True)
        _run(chosen, config.compose(chosen), folder / config.run_name(varied))

    config.sweep(overrides, folder, job)
    print(_report(_run_folders([folder]), folder))


def compare(runs: Sequence[str], output: str) -> None:
    """Write one report about finished runs."""
    print(_report(_run_folders([Path(run) for run in runs]), Path(output)))


def _run(overrides: Sequence[str], settings: config.Settings, folder: Path) -> list[Path]:
    """Run every arm, each in its folder below `folder` (a single run in `folder` itself); returns the run folders."""
    # All arms are composed and built before the first one runs: a mistake in the last arm shows at once.
    arms = [
        _prepare(arm, folder / arm, command, config.compose(command))
        for arm, command in ((arm, [*overrides, *more]) for arm, more in settings.arms.items())
    ] or [_prepare(None, folder, overrides, settings)]
    if settings.num_threads:
        # torch reads these when it is first imported, which is after this.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(settings.num_threads)
    store = Store(Path(settings.store))
    entries = [_run_arm(arm, store) for arm in arms]
    for (a, of_a), (b, of_b) in combinations(zip(arms, entries, strict=True), 2):
        name = f"win_rate_over_{b.arm}"
        of_a[name] = _head_to_head(a, of_a, of_b, store)
        print(pipeline.line(name, of_a[name]), flush=True)
        _write_run(a, of_a)
    return [arm.folder for arm in arms]


def _prepare(arm: str | None, folder: Path, overrides: Sequence[str], settings: config.Settings) -> Prepared:
    texts = _texts(settings)
    keys = [step.key for step in pipeline.RECIPE if step.name in settings.steps]
    stages = config.build(settings, keys)
    steps = pipeline.plan(settings.steps, settings.nodes(), stages)
    return Prepared(arm, folder, list(overrides), settings, steps, texts)


def _run_arm(arm: Prepared, store: Store) -> dict[str, Entry]:
    if arm.arm:
        print(f"--- arm {arm.arm}")
    settings = yaml.safe_dump(asdict(arm.settings), sort_keys=False, allow_unicode=True)
    write_text(arm.folder / "config.yaml", settings)
    _keep(arm.texts, arm.folder)
    entries = pipeline.run_steps(arm.steps, store, lambda done: _write_run(arm, done))
    print(pipeline.summary(entries))
    return entries


def _head_to_head(arm: Prepared, a: Mapping[str, Entry], b: Mapping[str, Entry], store: Store) -> Entry:
    """Win rate of the policy in `a` over the one in `b`; the judge is that of `arm`, and the same in every arm."""
    (planned,) = (planned for planned in arm.steps if planned.step.name == "win_rate")
    fresh = config.build(arm.settings, ["win_rate"])["win_rate"]  # so that its costs are its own
    inputs = {"data": a["data"], "a": a["evaluate_policy"], "b": b["evaluate_policy"]}
    return pipeline.run_step(replace(planned, stage=fresh), inputs, store)


def _write_run(arm: Prepared, entries: Mapping[str, Entry]) -> None:
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
        arm.folder / "run.json",
        {
            "name": arm.folder.name,
            "arm": arm.arm,
            "seed": arm.settings.seed,
            "command": ["cai", "run", *arm.overrides],
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
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(path, folder / name)
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
