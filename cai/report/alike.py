"""Whether arms can be compared: in which settings they differ, and what in them makes a comparison unfair."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cai.records import digest_file
from cai.report.runs import MANY, Run, by_arm
from cai.report.words import joined

__all__ = ["Differing", "differing", "judges", "unequal"]

# What repeats a run, says where it goes or how it is shown, and not what it computes.
_NEUTRAL: Final = {"seed", "out", "store", "name", "num_threads", "notice", "arms", "metrics", "objective", "steps"}
_ABSENT: Final = "absent"
_SIZE: Final = re.compile(r"(data|sample|sft|reward|rl|evaluate)\.(.+\.)?(num_\w+|batch_size|max_new_tokens)")
_JUDGE: Final = re.compile(r"win_rate\.labeler\.(?!engine\.).+")
_AS_TYPED: Final = {"None": "null", "True": "true", "False": "false"}


@dataclass(frozen=True, slots=True)
class Differing:
    """A setting whose value is not the same in all arms, by arm; a value is what JSON would say, or absent."""

    key: str
    values: dict[str, str]


def differing(runs: Sequence[Run]) -> list[Differing]:
    """Settings of the resolved configuration that differ between arms; seeds are no such setting. What the stage label
    takes over from `labeler` is told under that key alone, by which the user sets it.
    """
    arms = by_arm(runs)
    flat = {arm: dict(_leaves(own[0].config)) for arm, own in arms.items()}
    keys = dict.fromkeys(key for own in flat.values() for key in own)
    found = [Differing(key, {arm: own.get(key, _ABSENT) for arm, own in flat.items()}) for key in keys]
    apart = [one for one in found if len(set(one.values.values())) > 1]
    taken = {f"label.{one.key}": one.values for one in apart if one.key.startswith("labeler.")}
    return [one for one in apart if taken.get(one.key) != one.values]


def judges(runs: Sequence[Run], settings: Sequence[Differing]) -> list[Differing]:
    """The settings by which the judge of win rates is not the same in all arms that have win rates."""
    judged = {run.arm for run in runs if any(name.startswith("win_rate") for name in run.outputs)}
    found = [Differing(s.key, {a: v for a, v in s.values.items() if a in judged}) for s in settings]
    return [one for one in found if _JUDGE.fullmatch(one.key) and len(set(one.values.values())) > 1]


def unequal(runs: Sequence[Run], settings: Sequence[Differing], left_out: Mapping[str, str]) -> list[str]:
    """Sentences on what makes these runs hard to compare; none for runs that differ in what was meant to differ."""
    found = [f"{name} is left out: {why}." for name, why in left_out.items()]
    for one in settings:
        if not _SIZE.fullmatch(one.key) or _ABSENT in one.values.values():
            continue
        values = joined([f"{value} in {arm}" for arm, value in one.values.items()])
        found.append(f"The arms are not of one size: {one.key} is {values}.")
    found += _own_judges(judges(runs, settings))
    found += _seeds(runs)
    found += _prompts(runs)
    versions = {(name, v) for run in runs for name, v in run.versions.items() if v}
    twice = {name for name, _ in versions if len([v for n, v in versions if n == name]) > 1}
    if twice:
        found.append(f"The runs were made with different versions of {joined(sorted(twice))}.")
    return found


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name not in _NEUTRAL:
                yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, str(node)


def _own_judges(differing: Sequence[Differing]) -> Iterator[str]:
    """A sentence where judges of win rates differ: in what, what that forbids, and the way out."""
    if not differing:
        return
    told = [f"{s.key} is {joined([f'{value} in {arms}' for value, arms in _by_value(s).items()])}" for s in differing]
    firsts = [(one.key, next(iter(one.values.values()))) for one in differing]
    remedy = " ".join(f"{key}={_AS_TYPED.get(value, value)}" for key, value in firsts)
    if any(one.key.endswith(".labeler._target_") or _ABSENT in one.values.values() for one in differing):
        remedy = "labeler@win_rate.labeler=ai"  # judges of different kinds, whose keys are not the same
    yield (
        f"The judge of the win rates differs between arms: {'; '.join(told)}. Each arm is judged by its own, and one "
        "arm against another by that of the arm listed first: rates of different arms cannot be compared. One judge "
        f"for all: {remedy}."
    )


def _by_value(setting: Differing) -> dict[str, str]:
    """The arms of every value, by name; of many, their number."""
    arms: dict[str, list[str]] = {}
    for arm, value in setting.values.items():
        arms.setdefault(value, []).append(arm)
    return {value: joined(own) if len(own) <= MANY else f"{len(own)} arms" for value, own in arms.items()}


def _seeds(runs: Sequence[Run]) -> list[str]:
    seeds = {arm: sorted({run.seed for run in own}) for arm, own in by_arm(runs).items()}
    if len({tuple(own) for own in seeds.values()}) < 2:
        return []
    told = joined([f"{', '.join(map(str, own))} of {arm}" for arm, own in seeds.items()])
    return [
        f"The arms do not have the same seeds ({told}): differences are taken over those that they have in common, or, "
        "where these are fewer than three and each has three, as between arms of different seeds."
    ]


def _prompts(runs: Sequence[Run]) -> list[str]:
    """A sentence where arms with the same seed were measured on different prompts."""
    sets: dict[int, dict[str, set[str]]] = {}
    for run in runs:
        file = run.outputs["data"].path / "evaluation.jsonl" if "data" in run.outputs else None
        if file is not None and file.is_file():
            sets.setdefault(run.seed, {}).setdefault(digest_file(file), set()).add(run.arm)
    apart = [seed for seed, own in sets.items() if len(own) > 1]
    if not apart:
        return []
    which = joined([" with ".join(sorted(arms)) for arms in sets[apart[0]].values()])
    return [
        f"Not all arms were measured on the same prompts (seed {apart[0]}: {which}); such differences are not paired."
    ]
