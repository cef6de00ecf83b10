"""Run folders as the report sees them: which runs belong to one arm, which evaluations to one policy.

A run folder has `run.json` (name, arm, seed, command, stages with fingerprint and path, versions) and `config.yaml`.
Whatever a run did not do is absent here too: every reader of a file returns None when there is no such file.
"""

import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import yaml

from cai.codec import shown
from cai.errors import DataError
from cai.records import digest_file, read_json, read_object, read_records, read_rows

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "MANY",
    "Output",
    "Policy",
    "Run",
    "Stages",
    "by_arm",
    "leads_to",
    "num_seeds",
    "pairs_of_arms",
    "policies_of",
    "read_run",
    "read_runs",
    "read_settings",
    "stages_of",
]

R = TypeVar("R", bound="DataclassInstance")

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is some ten times faster
_KNOWN_ARMS: Final = {"rlhf": "RLHF", "rlaif": "RLAIF"}
# Overrides that tell where, or which repetition, but not what kind of run it is.
_NEUTRAL: Final = {"seed", "out", "store", "name", "num_threads"}
MANY: Final = 3  # of more arms than these, words speak of what was varied, and each is compared with the first only


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
        """A JSONL file of the folder, as plain objects. DataError for a number in it that is not finite."""
        rows = read_rows(self.path / name) if (self.path / name).is_file() else None
        for number, row in enumerate(rows or (), start=1):
            for key, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    where = f"{self.path / name}: object {number}: key {key!r}"
                    raise DataError(f"{where}: must be a finite number, or null where none applies; got {shown(value)}")
        return rows

    def records(self, name: str, cls: type[R]) -> list[R] | None:
        """A JSONL file of the folder, as records."""
        return read_records(self.path / name, cls) if (self.path / name).is_file() else None


@dataclass(frozen=True, slots=True)
class Run:
    """One pass through the stages. `arm` is a label that runs which differ in the seed alone have in common; `choices`
    are the overrides that say what kind of run it is, with the name of its arm, if it is one.
    """

    folder: Path
    arm: str
    seed: int
    command: str
    outputs: dict[str, Output]
    versions: dict[str, str | None]
    config: dict[str, Any]
    choices: dict[str, str] = field(default_factory=dict)


Stages = dict[int, Output]  # the output of one stage in every seed


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that was evaluated: its evaluations by seed. `arms` are those that it is of, or that were made from it;
    empty for models that come before all arms part.
    """

    name: str
    kind: str  # base, sl_cai or policy: the step evaluate_<kind> or sets_<kind>
    arms: tuple[str, ...]
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
        found.append((folder, read_run(folder), read_settings(folder)))
    labels = _arm_labels([(folder, run) for folder, run, _ in found])
    runs = [
        Run(
            folder=folder,
            arm=label,
            seed=_need(run, "seed", int, folder),
            command=shlex.join(run.get("command") or ()),
            outputs={name: _output(name, entry, folder) for name, entry in run["stages"].items()},
            versions=run.get("versions") or {},
            config=config,
            choices=_choices(run),
        )
        for (folder, run, config), label in zip(found, labels, strict=True)
    ]
    return [run for own in by_arm(runs).values() for run in sorted(own, key=lambda run: run.seed)]


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run folder: an object with the steps that are done, by name, under `stages`."""
    run = read_object(folder / "run.json", "stages")
    for name, entry in _need(run, "stages", dict, folder).items():
        if not isinstance(entry, dict):
            raise DataError(f"{folder / 'run.json'}: key 'stages.{name}': must be an object, got {shown(entry)}")
    return run


def read_settings(folder: Path) -> dict[str, Any]:
    """config.yaml of a run folder: the resolved settings; empty where there is no such file."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        found = yaml.load(path.read_bytes(), _LOADER)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text, dates that are none
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict | None):
        raise DataError(f"{path}: must hold the settings of a run, as key: value; got {shown(found)}")
    return found or {}


def _output(name: str, entry: dict[str, Any], folder: Path) -> Output:
    path = folder / _need(entry, "path", str, folder, f"stages.{name}.")  # an absolute path stays what it is
    if not path.is_dir():
        raise DataError(f"{folder / 'run.json'}: stages.{name}.path: there is no folder {path}")
    return Output(
        stage=name,
        path=path,
        fingerprint=_need(entry, "fingerprint", str, folder, f"stages.{name}."),
        seconds=float(entry.get("seconds", 0.0)),
        cached=bool(entry.get("cached", False)),
        resumed=bool(entry.get("resumed", False)),
        facts=entry.get("facts") or {},
    )


def _need(obj: dict[str, Any], key: str, kind: type, folder: Path, of: str = "") -> Any:
    """The value of `key`, which is of this kind, in run.json or in the object `of` there."""
    where, kinds = f"{folder / 'run.json'}: key {of + key!r}", {int: "a whole number", str: "text", dict: "an object"}
    if key not in obj:
        raise DataError(f"{where} is missing")
    if not isinstance(obj[key], kind):
        raise DataError(f"{where}: must be {kinds[kind]}, got {shown(obj[key])}")
    return obj[key]


def _arm_labels(runs: Sequence[tuple[Path, dict[str, Any]]]) -> list[str]:
    """A label per run: the arm's name (or experiment), and the overrides that set it apart from others of that name.

    Two runs of one arm and seed (the same command after an edit, say) are told apart by their folders, or by those of
    their sweeps; DataError if even those have one name.
    """
    choices = [_choices(run) for _, run in runs]
    folders = [folder.parent if folder.name == run.get("arm") else folder for folder, run in runs]
    names = [
        own.get("arm") or own.get("experiment") or _given_name(folder)
        for own, folder in zip(choices, folders, strict=True)
    ]
    labels = []
    for name, own in zip(names, choices, strict=True):
        rivals = [o for n, o in zip(names, choices, strict=True) if n == name]
        apart = [
            f"{k}={_short(v)}"
            for k, v in own.items()
            if k not in ("arm", "experiment") and any(o.get(k) != v for o in rivals)
        ]
        labels.append(" ".join([*filter(None, [_KNOWN_ARMS.get(name, name)]), *apart]) or "run")
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
    same = [str(own) for (own, run), x in zip(runs, by_run, strict=True) if (x, run.get("seed", 0)) == (label, seed)]
    raise DataError(
        f"two runs are both {label!r} with seed {seed}, {' and '.join(same[:2])}; give them names (name=...) or leave "
        "one out to compare them"
    )


def _twice(labels: Sequence[str], runs: Sequence[tuple[Path, dict[str, Any]]]) -> list[tuple[str, int]]:
    """Labels that more than one run of the same seed has."""
    taken = Counter((label, run.get("seed", 0)) for label, (_, run) in zip(labels, runs, strict=True))
    return [key for key, count in taken.items() if count > 1]


def _choices(run: dict[str, Any]) -> dict[str, str]:
    """The overrides of the command that say what kind of run it is, and `arm`."""
    pairs = (item.partition("=") for item in run.get("command") or () if "=" in item)
    own = {key: value for key, _, value in pairs if key not in _NEUTRAL and not key.startswith("hydra")}
    return own | ({"arm": run["arm"]} if run.get("arm") else {})


def _given_name(folder: Path) -> str:
    """What the run was called; nothing for a name that was made of its overrides, which are told anyway."""
    name = _seedless(folder.name)
    return "" if name == "run" or name.startswith("run-") else name


def _short(value: str) -> str:
    """A path's last part; any other value as it is."""
    return Path(value).name if "/" in value else value


def _seedless(name: str) -> str:
    return re.sub(r"[-_,. ]*seed=?\d+(,\d+)*", "", name) or name


def pairs_of_arms(policies: Sequence[Policy]) -> list[tuple[Policy, Policy]]:
    """Every two trained policies, the later one first (`RLAIF` against `RLHF`); of many, each against the first."""
    trained = [p for p in policies if p.kind == "policy"]
    firsts = trained[:1] if len(trained) > MANY else trained
    return [(b, a) for i, a in enumerate(firsts) for b in trained[i + 1 :]]


def leads_to(earlier: Policy, later: Policy) -> bool:
    """Whether `later` (of the next kind) was made from `earlier`."""
    return not earlier.arms or set(later.arms) <= set(earlier.arms)


# --- policies ---------------------------------------------------------------------------------------------------------


def stages_of(runs: Sequence[Run], stage: str) -> Stages:
    """The outputs of one stage by seed, of runs that are one arm (or share the stage)."""
    return {run.seed: run.outputs[stage] for run in runs if stage in run.outputs}


def policies_of(runs: Sequence[Run], stage: str = "evaluate") -> list[Policy]:
    """Base, SL-CAI, then one policy per arm, of those that `stage` (evaluate or sets) measured; a base or SL-CAI for
    each group of arms that share one.
    """
    policies = []
    for kind, name in (("base", "Base"), ("sl_cai", "SL-CAI")):
        policies += _shared(runs, f"{stage}_{kind}", kind, name)
    return policies + [
        Policy(arm, "policy", (arm,), stages, tuple(own))
        for arm, own in by_arm(runs).items()
        if (stages := stages_of(own, f"{stage}_policy"))
    ]


def num_seeds(runs: Sequence[Run]) -> int:
    """The most that one arm has: arms that share no seed are not trained again by each other's."""
    return max(len({run.seed for run in own}) for own in by_arm(runs).values())


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm: RLHF, RLAIF, then the others in the order given."""
    order = [*_KNOWN_ARMS.values(), *(run.arm for run in runs)]
    arms = sorted({run.arm for run in runs}, key=order.index)
    return {arm: [run for run in runs if run.arm == arm] for arm in arms}


def _shared(runs: Sequence[Run], stage: str, kind: str, name: str) -> list[Policy]:
    """One policy for each group of arms whose outputs are the same in every seed that they have in common."""
    groups: list[tuple[list[str], dict[int, str], list[Run]]] = []
    arms = by_arm([run for run in runs if stage in run.outputs])
    for arm, own in arms.items():
        made = {run.seed: _identity(run.outputs.get(f"evaluate_{kind}", run.outputs[stage])) for run in own}
        for names, theirs, members in groups:
            common = made.keys() & theirs.keys()
            if common and all(made[seed] == theirs[seed] for seed in common):
                names.append(arm)
                theirs.update(made)
                members.extend(own)
                break
        else:
            groups.append(([arm], made, list(own)))
    if len(groups) == 1:
        return [Policy(name, kind, (), stages_of(groups[0][2], stage), tuple(groups[0][2]))]
    return [
        Policy(
            f"{name} of {_in_common(names, list(arms))}", kind, tuple(names), stages_of(members, stage), tuple(members)
        )
        for names, _, members in groups
    ]


def _identity(output: Output) -> str:
    """What tells one evaluated model from another: its responses. It is the same whatever came after, and where arms
    have other data for what comes after; what else its evaluation holds (of the base, the distance to SL-CAI) is not.
    """
    responses = output.path / "responses.jsonl"
    return digest_file(responses) if responses.is_file() else output.fingerprint


def _in_common(group: Sequence[str], arms: Sequence[str]) -> str:
    """What the labels of a group have in common that not all arms have: `constitution=a`; else all its labels."""
    words = [word for word in group[0].split() if all(word in label.split() for label in group)]
    own = [word for word in words if not all(word in label.split() for label in arms)]
    return " ".join(own) if own and len(group) > 1 else " and ".join(group)
