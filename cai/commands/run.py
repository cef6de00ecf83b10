"""`cai run`: settings in, run folders and a report out.

A run folder holds `config.yaml` (resolved), `run.json` (the steps there are to do, and of each that is done:
fingerprint, path, seconds, facts, machine) and the texts that were used. Arms and jobs of a sweep are run folders of
their own, side by side under one folder with the report. `plan.json` says what a folder is of: the same command goes on
in it, and after an edit gets a folder beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations, count
from pathlib import Path
from typing import Any, Final

import yaml

from cai import config, constitution, pipeline
from cai.arms import commands
from cai.commands import compare
from cai.errors import CaiError, ConfigError, ConstitutionError, LabelsMissing, PromptError
from cai.prompts import PromptFamily
from cai.records import fingerprint, read_json, write_json, write_text
from cai.store import Entry, Store, locked

__all__ = ["Prepared", "placed", "plan_of", "prepare", "run", "run_arms"]

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
    arms = prepare(overrides, settings)
    wanted = Path(settings.out).absolute() / (settings.name or config.run_name(overrides))
    with placed(wanted, plan_of(arms)) as folder:
        print(compare.report(run_arms(arms, folder), folder))


# --- what a run is, and where it goes ---------------------------------------------------------------------------------


def prepare(overrides: Sequence[str], settings: config.Settings) -> list[Prepared]:
    """The arms, or the single run, of a command: all composed and built, so that a mistake in the last arm shows before
    the first one runs.
    """
    if not settings.arms:
        return [_prepare_one(None, overrides, settings)]
    arms = []
    for arm, command in commands(overrides, settings.arms).items():
        try:
            _check_arm(arm, overrides, command)
            arms.append(_prepare_one(arm, overrides, config.compose(command)))
        except CaiError as error:
            raise type(error)(f"arm {arm}: {error}") from None
    return arms


def _check_arm(arm: str, overrides: Sequence[str], command: Sequence[str]) -> None:
    """Raise ConfigError where an arm would replace what was asked for, in silence."""
    last = {item.partition("=")[0]: item for item in command}
    for asked in overrides:
        item = last.get(asked.partition("=")[0], asked)
        if item != asked and asked in command:
            raise ConfigError(
                f"{asked} has no effect, since this arm has {item} and not every arm sets that key; change the arm's "
                f'own list: "arms.{arm}=[...]"'
            )


def _prepare_one(arm: str | None, overrides: Sequence[str], settings: config.Settings) -> Prepared:
    keys = list(dict.fromkeys(step.key for step in pipeline.chosen(settings.steps, settings.nodes())))
    stages = config.build(settings, keys)
    texts = _texts(settings, keys)
    steps = pipeline.plan(settings.steps, settings.nodes(), stages)
    return Prepared(arm, list(overrides), settings, steps, texts)


def plan_of(arms: Sequence[Prepared]) -> str:
    """A hash of everything that decides what these runs compute."""
    return fingerprint([[arm.arm, pipeline.plan_fingerprint(arm.steps)] for arm in arms])


@contextmanager
def placed(folder: Path, plan: str) -> Iterator[Path]:
    """`folder`, or the first of `folder`-2, -3, ... that holds no run or one of this plan; marked as taken, and locked:
    of one command that is started twice at once, the second waits for the first, and finds all in the store.
    """
    for number in count(1):
        own = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not _is_free(own, plan):
            continue
        with locked(own / "plan.lock", own.name):
            if not _is_free(own, plan):  # another plan took it at the same moment
                continue
            write_json(own / "plan.json", {"plan": plan})
        if own != folder:
            print(f"{folder} holds another run (settings, texts or versions differ); this one goes to {own.name}")
        with locked(own / "run.lock", own.name):
            yield own
        return


def _is_free(folder: Path, plan: str) -> bool:
    marker = folder / "plan.json"
    return bool(read_json(marker)["plan"] == plan) if marker.is_file() else not any(folder.rglob("run.json"))


# --- running ----------------------------------------------------------------------------------------------------------


def run_arms(arms: Sequence[Prepared], folder: Path) -> list[Path]:
    """Run every arm, each in its folder below `folder` (a single run in `folder` itself); returns the run folders."""
    settings = arms[0].settings
    config.limit_threads(settings)
    store = Store(Path(settings.store))
    rivals = {
        arm.arm: [b.arm for a, b in combinations(arms, 2) if a is arm and _judged(a) and _judged(b)] for arm in arms
    }
    todo = {arm.arm: [*_names(arm), *(f"win_rate_over_{rival}" for rival in rivals[arm.arm])] for arm in arms}
    folders = [folder / (arm.arm or "") for arm in arms]
    done: dict[str | None, dict[str, Entry]] = {}
    waiting: list[str] = []
    for arm, own in zip(arms, folders, strict=True):
        try:
            done[arm.arm] = _run_arm(arm, own, store, todo[arm.arm])
        except LabelsMissing as error:  # the other arms need not wait for this one's people
            waiting.append(f"arm {arm.arm}: {error}" if arm.arm else str(error))
    for arm, own in zip(arms, folders, strict=True):
        for rival in rivals[arm.arm] if arm.arm in done else ():
            if rival not in done:
                continue
            entries = done[arm.arm]
            name = f"win_rate_over_{rival}"
            entries[name] = _head_to_head(arm, entries, done[rival], store)
            print(pipeline.line(name, entries[name]), flush=True)
            _write_run(arm, own, entries, todo[arm.arm])
    if waiting:
        raise LabelsMissing("; ".join(waiting))
    return folders


def _names(arm: Prepared) -> list[str]:
    return [planned.step.name for planned in arm.steps]


def _judged(arm: Prepared) -> bool:
    """Whether the arm has a policy that can meet that of another arm; some end with SL-CAI."""
    return "win_rate" in _names(arm)


def _run_arm(arm: Prepared, folder: Path, store: Store, todo: Sequence[str]) -> dict[str, Entry]:
    if arm.arm:
        print(f"--- arm {arm.arm}")
    settings = yaml.safe_dump(asdict(arm.settings), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", settings)
    for name, text in arm.texts.items():
        write_text(folder / name, text)
    entries = pipeline.run_steps(arm.steps, store, lambda done: _write_run(arm, folder, done, todo))
    print(pipeline.summary(entries))
    return entries


def _head_to_head(arm: Prepared, a: Mapping[str, Entry], b: Mapping[str, Entry], store: Store) -> Entry:
    """Win rate of the policy in `a` over the one in `b`, by the judge of `arm`."""
    (planned,) = (planned for planned in arm.steps if planned.step.name == "win_rate")
    fresh = config.build(arm.settings, ["win_rate"])["win_rate"]  # so that its costs are its own
    inputs = {"data": a["data"], "a": a["evaluate_policy"], "b": b["evaluate_policy"]}
    return pipeline.run_step(replace(planned, stage=fresh), inputs, store)


def _write_run(arm: Prepared, folder: Path, entries: Mapping[str, Entry], todo: Sequence[str]) -> None:
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
            "steps": list(todo),
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
        try:
            text = Path(constitution.load(path).path).read_text(encoding="utf-8-sig")
        except ConstitutionError as error:
            raise ConstitutionError(f"{where}: {error}") from None
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
