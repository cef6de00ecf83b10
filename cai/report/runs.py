"""Run folders as the report sees them: which runs belong to one arm, which evaluations to one policy.

A run folder has `run.json` (name, arm, seed, command, stages with fingerprint and path, versions) and `config.yaml`.
Whatever a run did not do is absent here too: every reader of a file returns None when there is no such file.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import yaml

from cai.errors import DataError
from cai.records import read_json, read_records, read_rows

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Output", "Policy", "Run", "Stages", "pairs_of_arms", "policies_of", "read_runs", "stages_of"]

R = TypeVar("R", bound="DataclassInstance")

_KNOWN_ARMS: Final = {"rlhf": "RLHF", "rlaif": "RLAIF"}
# Overrides that tell where, or which repetition, but not what kind of run it is.
_NEUTRAL: Final = {"experiment", "seed", "out", "store", "name", "num_threads"}


@dataclass(frozen=True, slots=True)
class Output:
    """The folder that one stage of a run wrote. `seconds` and `facts` are those of its making; when it was `resumed`
    after an interruption, its costs are at least these.
    """

    stage: str
    path: Path
    fingerprint: str
    seconds: float
    cached: bool
    resumed: bool
    facts: dict[str, float]

    def json(self, name: str) -> Any | None:
        """A JSON file of the folder."""
        return read_json(self.path / name) if (self.path / name).is_file() else None

    def rows(self, name: str) -> list[dict[str, Any]] | None:
        """A JSONL file of the folder, as plain objects."""
        return read_rows(self.path / name) if (self.path / name).is_file() else None

    def records(self, name: str, cls: type[R]) -> list[R] | None:
        """A JSONL file of the folder, as records."""
        return read_records(self.path / name, cls) if (self.path / name).is_file() else None


@dataclass(frozen=True, slots=True)
class Run:
    """One pass through the stages. `arm` is a label that runs which differ in the seed alone have in common."""

    folder: Path
    arm: str
    seed: int
    command: str
    outputs: dict[str, Output]
    versions: dict[str, str | None]
    config: dict[str, Any]


Stages = dict[int, Output]  # the output of one stage in every seed


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that was evaluated: its evaluations by seed. `arm` is None for models that come before the arms part."""

    name: str
    kind: str  # base, sl_cai or policy: the stage evaluate_<kind>
    arm: str | None
    evaluations: Stages
    runs: tuple[Run, ...]


# --- runs and arms ----------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Run folders, with their arms named, in order of arms and seeds. DataError for a folder that holds no run."""
    if not folders:
        raise DataError("no runs to report on")
    found = []
    for folder in folders:
        if not (folder / "run.json").is_file():
            raise DataError(f"{folder}: is no run folder (there is no run.json in it)")
        settings = folder / "config.yaml"
        config = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        found.append((folder, read_json(folder / "run.json"), config))
    labels = _arm_labels([(folder, run) for folder, run, _ in found])
    runs = [
        Run(
            folder=folder,
            arm=label,
            seed=_need(run, "seed", folder),
            command=" ".join(run.get("command") or ()),
            outputs={name: _output(name, entry, folder) for name, entry in _need(run, "stages", folder).items()},
            versions=run.get("versions") or {},
            config=config or {},
        )
        for (folder, run, config), label in zip(found, labels, strict=True)
    ]
    return [run for own in by_arm(runs).values() for run in sorted(own, key=lambda run: run.seed)]


def _output(name: str, entry: dict[str, Any], folder: Path) -> Output:
    path = folder / _need(entry, "path", folder)  # an absolute path stays what it is
    if not path.is_dir():
        raise DataError(f"{folder / 'run.json'}: stages.{name}.path: there is no folder {path}")
    return Output(
        stage=name,
        path=path,
        fingerprint=_need(entry, "fingerprint", folder),
        seconds=float(entry.get("seconds", 0.0)),
        cached=bool(entry.get("cached", False)),
        resumed=bool(entry.get("resumed", False)),
        facts=entry.get("facts") or {},
    )


def _need(run: dict[str, Any], key: str, folder: Path) -> Any:
    if key not in run:
        raise DataError(f"{folder / 'run.json'}: key {key!r} is missing")
    return run[key]


def _arm_labels(runs: Sequence[tuple[Path, dict[str, Any]]]) -> list[str]:
    """A label per run: the arm's name (or experiment), and the overrides that set it apart from others of that name.

    Two runs of one arm and seed (the same command after an edit, say) are told apart by their folders, or by those of
    their sweeps; DataError if even those have one name.
    """
    overrides = [_overrides(run) for _, run in runs]
    folders = [folder.parent if folder.name == run.get("arm") else folder for folder, run in runs]
    names = [
        run.get("arm") or own.get("experiment") or _seedless(folder.name)
        for (_, run), own, folder in zip(runs, overrides, folders, strict=True)
    ]
    labels = []
    for name, own in zip(names, overrides, strict=True):
        rivals = [o for n, o in zip(names, overrides, strict=True) if n == name]
        apart = [f"{k}={v}" for k, v in own.items() if k not in _NEUTRAL and any(o.get(k) != v for o in rivals)]
        labels.append(" ".join([_KNOWN_ARMS.get(name, name), *apart]))
    clash = {label for label, _ in _twice(labels, runs)}
    by_run, by_sweep = (
        [f"{x} ({_seedless(place.name)})" if x in clash else x for x, place in zip(labels, places, strict=True)]
        for places in (folders, [folder.parent for folder in folders])
    )
    if not _twice(by_run, runs):
        return by_run
    if not _twice(by_sweep, runs):
        return by_sweep
    label, seed = _twice(by_run, runs)[0]
    raise DataError(f"two runs are both {label!r} with seed {seed}; give them names (name=...) to compare them")


def _twice(labels: Sequence[str], runs: Sequence[tuple[Path, dict[str, Any]]]) -> list[tuple[str, int]]:
    """Labels that more than one run of the same seed has."""
    taken = Counter((label, run.get("seed", 0)) for label, (_, run) in zip(labels, runs, strict=True))
    return [key for key, count in taken.items() if count > 1]


def _overrides(run: dict[str, Any]) -> dict[str, str]:
    pairs = (item.partition("=") for item in run.get("command") or () if "=" in item)
    return {key: value for key, _, value in pairs}


def _seedless(name: str) -> str:
    return re.sub(r"[-_,. ]*seed=?\d+(,\d+)*", "", name) or name


def pairs_of_arms(policies: Sequence[Policy]) -> list[tuple[Policy, Policy]]:
    """Every two trained policies, the later one first (`RLAIF` against `RLHF`)."""
    trained = [p for p in policies if p.kind == "policy"]
    return [(b, a) for i, a in enumerate(trained) for b in trained[i + 1 :]]


# --- policies ---------------------------------------------------------------------------------------------------------


def stages_of(runs: Sequence[Run], stage: str) -> Stages:
    """The outputs of one stage by seed, of runs that are one arm (or share the stage)."""
    return {run.seed: run.outputs[stage] for run in runs if stage in run.outputs}


def policies_of(runs: Sequence[Run]) -> list[Policy]:
    """Base, SL-CAI, then one policy per arm. Arms that do not share their base or SL-CAI have one each."""
    policies = []
    for kind, name in (("base", "Base"), ("sl_cai", "SL-CAI")):
        policies += _shared(runs, kind, name)
    return policies + [
        Policy(arm, "policy", arm, stages, tuple(own))
        for arm, own in by_arm(runs).items()
        if (stages := stages_of(own, "evaluate_policy"))
    ]


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm: RLHF, RLAIF, then the others in the order given."""
    order = [*_KNOWN_ARMS.values(), *(run.arm for run in runs)]
    arms = sorted({run.arm for run in runs}, key=order.index)
    return {arm: [run for run in runs if run.arm == arm] for arm in arms}


def _shared(runs: Sequence[Run], kind: str, name: str) -> list[Policy]:
    stage = f"evaluate_{kind}"
    having = [run for run in runs if stage in run.outputs]
    made = {(run.seed, run.outputs[stage].fingerprint) for run in having}
    if len(made) == len({seed for seed, _ in made}):
        return [Policy(name, kind, None, stages_of(having, stage), tuple(having))] if having else []
    arms = by_arm(having)
    return [Policy(f"{name} of {arm}", kind, arm, stages_of(own, stage), tuple(own)) for arm, own in arms.items()]
