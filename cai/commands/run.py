"""`cai run` and `cai compare`: settings in, run folders and a report out.

A run folder holds `config.yaml` (resolved), `run.json` (per step: fingerprint, path, seconds, facts, machine) and the
texts that were used. Arms and jobs of a sweep are run folders of their own, side by side under one folder with the
report. `plan.json` says what a folder is of: the same command goes on in it, and after an edit gets a folder beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations, count
from pathlib import Path
from typing import Any, Final

import yaml

from cai import config, constitution, pipeline
from cai.errors import CaiError, ConfigError, DataError, LabelsMissing, PromptError
from cai.prompts import PromptFamily
from cai.records import fingerprint, read_json, write_json, write_text
from cai.store import Entry, Store

__all__ = ["compare", "compare_labelers", "run", "sweep"]

_VERSIONS: Final = ("cai", "torch", "transformers", "trl", "datasets", "numpy", "hydra-core")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One run, composed, checked and built; nothing has been loaded or written yet. `texts` go by file name."""

    arm: str | None
    overrides: list[str]
    settings: config.Settings
    steps: list[pipeline.Planned]
    texts: dict[str, str]


def run(overrides: Sequence[str]) -> None:
    """Run the pipeline (every arm of it) and write the report; its path is the last line on stdout."""
    settings = config.compose(overrides)
    arms = _prepare(overrides, settings)
    folder = _place(Path(settings.out).absolute() / (settings.name or config.run_name(overrides)), _plan(arms))
    print(_report(_run(arms, folder), folder))


def sweep(overrides: Sequence[str]) -> None:
    """Run a job for each combination of the overrides' values, then write one report about all of them."""
    folder, swept, jobs = config.sweep_plan(overrides)
    folder = _place(folder, fingerprint([_plan_of_job(chosen) for chosen in jobs]))

    def job(chosen: list[str]) -> None:
        varied = [override for override in chosen if override.partition("=")[0] in swept]
        print(f"--- job {' '.join(varied)}", flush=True)
        arms = _prepare(chosen, config.compose(chosen))
        _run(arms, _place(folder / config.run_name(varied), _plan(arms)))

    config.sweep(overrides, folder, job)
    print(_report(_run_folders([folder]), folder))


def compare(runs: Sequence[str], output: str) -> None:
    """Write one report about finished runs."""
    print(_report(_run_folders([Path(run) for run in runs]), Path(output)))


def compare_labelers(runs: Sequence[str], output: str) -> None:
    """Write a page about the labelers of finished runs, which labelled the same comparisons."""
    from cai.report.study import write_study

    print(write_study(_run_folders([Path(run) for run in runs]), Path(output)))


# --- what a run is, and where it goes ---------------------------------------------------------------------------------


def _prepare(overrides: Sequence[str], settings: config.Settings) -> list[Prepared]:
    """The arms, or the single run, of a command: all composed and built, so that a mistake in the last arm shows before
    the first one runs.
    """
    if not settings.arms:
        return [_prepare_one(None, overrides, settings)]
    arms = []
    for arm, command in _commands(overrides, settings.arms).items():
        try:
            _check_arm(overrides, command)
            arms.append(_prepare_one(arm, overrides, config.compose(command)))
        except CaiError as error:
            raise type(error)(f"arm {arm}: {error}") from None
    return arms


def _commands(overrides: Sequence[str], arms: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The overrides of every arm. When all arms set one key (the demo's: `labeler`) and the command chooses for it what
    none of them has, that is an arm of its own, called by what it chose, and `labeler.agreement=...` belongs to it.
    """
    keys = set.intersection(*({item.partition("=")[0] for item in own} for own in arms.values()))
    for choice in overrides:
        key, _, value = choice.partition("=")
        if key not in keys:
            continue
        own = [o for o in overrides if o == choice or o.lstrip("+~").startswith((f"{key}.", f"{key}@{key}."))]
        rest = [o for o in overrides if o not in own]
        found = {arm: [*rest, *more] for arm, more in arms.items()}
        if len(own) > 1 or not any(choice in more for more in arms.values()):
            found[value] = list(overrides)
        return found
    return {arm: [*overrides, *more] for arm, more in arms.items()}


def _check_arm(overrides: Sequence[str], command: Sequence[str]) -> None:
    """Raise ConfigError where an arm would replace what was asked for, in silence."""
    last = {item.partition("=")[0]: item for item in command}
    for asked in overrides:
        item = last.get(asked.partition("=")[0], asked)
        if item != asked and asked in command:
            raise ConfigError(f"{asked} has no effect, since this arm has {item}; change the arm's own list")


def _prepare_one(arm: str | None, overrides: Sequence[str], settings: config.Settings) -> Prepared:
    keys = list(dict.fromkeys(step.key for step in pipeline.chosen(settings.steps, settings.nodes())))
    stages = config.build(settings, keys)
    texts = _texts(settings, keys)
    steps = pipeline.plan(settings.steps, settings.nodes(), stages)
    return Prepared(arm, list(overrides), settings, steps, texts)


def _plan(arms: Sequence[Prepared]) -> str:
    """A hash of everything that decides what these runs compute."""
    return fingerprint([[arm.arm, pipeline.plan_fingerprint(arm.steps)] for arm in arms])


def _plan_of_job(overrides: Sequence[str]) -> str:
    """The same of a job of a sweep; one with a mistake in it is known by the mistake, which is told at its turn."""
    try:
        return _plan(_prepare(overrides, config.compose(overrides)))
    except CaiError as error:
        return str(error)


def _place(folder: Path, plan: str) -> Path:
    """`folder`, or the first of `folder`-2, -3, ... that holds no run or one of this plan; marked as taken."""
    for number in count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        marker = place / "plan.json"
        if read_json(marker)["plan"] == plan if marker.is_file() else not any(place.rglob("run.json")):
            break
    if place != folder:
        print(f"{folder} holds another run (settings, texts or versions differ); this one goes to {place.name}")
    write_json(marker, {"plan": plan})
    return place


# --- running ----------------------------------------------------------------------------------------------------------


def _run(arms: Sequence[Prepared], folder: Path) -> list[Path]:
    """Run every arm, each in its folder below `folder` (a single run in `folder` itself); returns the run folders."""
    settings = arms[0].settings
    config.limit_threads(settings)
    store = Store(Path(settings.store))
    folders = [folder / (arm.arm or "") for arm in arms]
    runs = []
    waiting: list[str] = []
    for arm, own in zip(arms, folders, strict=True):
        try:
            runs.append((arm, own, _run_arm(arm, own, store)))
        except LabelsMissing as error:  # the other arms need not wait for this one's people
            waiting.append(f"arm {arm.arm}: {error}" if arm.arm else str(error))
    if waiting:
        raise LabelsMissing("; ".join(waiting))
    for (a, own, of_a), (b, _, of_b) in combinations(runs, 2):
        if "win_rate" not in of_a or "win_rate" not in of_b:  # arms that end with SL-CAI
            continue
        name = f"win_rate_over_{b.arm}"
        of_a[name] = _head_to_head(a, of_a, of_b, store)
        print(pipeline.line(name, of_a[name]), flush=True)
        _write_run(a, own, of_a)
    return folders


def _run_arm(arm: Prepared, folder: Path, store: Store) -> dict[str, Entry]:
    if arm.arm:
        print(f"--- arm {arm.arm}")
    settings = yaml.safe_dump(asdict(arm.settings), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", settings)
    for name, text in arm.texts.items():
        write_text(folder / name, text)
    entries = pipeline.run_steps(arm.steps, store, lambda done: _write_run(arm, folder, done))
    print(pipeline.summary(entries))
    return entries


def _head_to_head(arm: Prepared, a: Mapping[str, Entry], b: Mapping[str, Entry], store: Store) -> Entry:
    """Win rate of the policy in `a` over the one in `b`; the judge is that of `arm`, and the same in every arm."""
    (planned,) = (planned for planned in arm.steps if planned.step.name == "win_rate")
    fresh = config.build(arm.settings, ["win_rate"])["win_rate"]  # so that its costs are its own
    inputs = {"data": a["data"], "a": a["evaluate_policy"], "b": b["evaluate_policy"]}
    return pipeline.run_step(replace(planned, stage=fresh), inputs, store)


def _write_run(arm: Prepared, folder: Path, entries: Mapping[str, Entry]) -> None:
    stages = {
        name: {
            "fingerprint": entry.fingerprint,
            "path": str(entry.path),
            "seconds": entry.seconds,
            "cached": entry.cached,
            "resumed": entry.resumed,
            "machine": entry.machine,
            "facts": entry.facts,
        }
        for name, entry in entries.items()
    }
    write_json(
        folder / "run.json",
        {
            "name": folder.name,
            "arm": arm.arm,
            "seed": arm.settings.seed,
            "command": ["cai", "run", *arm.overrides],
            "num_threads": arm.settings.num_threads,
            "stages": stages,
            "texts": {name: sha256(text.encode()).hexdigest() for name, text in arm.texts.items()},
            "versions": {package: _version(package) for package in _VERSIONS},
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _texts(settings: config.Settings, keys: Sequence[str]) -> dict[str, str]:
    """The constitutions and the templates that the stages `keys` read, by the names they get in the run folder.

    `constitution.yaml` is the run's own; another one that a node names is `constitutions/<key of the node>.yaml`.
    """
    families, paths = {"prompts": settings.prompts}, {"constitution": settings.constitution}
    for key in keys:
        for where, node in _targets(settings.nodes()[key], key):
            if node["_target_"] == "cai.prompts.PromptFamily":
                families[where] = node["name"]
            elif node["_target_"] == "cai.constitution.load":
                paths[where] = node["path"]
    texts: dict[str, str] = {}
    for where, path in paths.items():
        text = Path(constitution.load(path).path).read_text(encoding="utf-8-sig")
        if where == "constitution":
            texts["constitution.yaml"] = text
        elif text != texts["constitution.yaml"]:
            texts[f"constitutions/{where}.yaml"] = text
    for where, name in families.items():
        try:
            texts |= {f"prompts/{name}/{file}": text for file, text in PromptFamily(name).sources().items()}
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None
    return texts


def _targets(node: object, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with a `_target_` in `node`, itself included, with its dotted key."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from _targets(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{key}[{index}]")


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
