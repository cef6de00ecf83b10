"""What each swept key does by itself: main effects of a grid of arms, and which arms are on the Pareto front.

A main effect is the mean, over everything else that was swept, of the difference that one key makes: with the same
seeds and prompts on both sides, so that it is a paired difference like any other (`Bootstrap.contrast`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cai.report.formulas import holm
from cai.report.measures import PRIMARY, Measured
from cai.report.resampling import Floats
from cai.report.runs import Policy
from cai.report.statistics import Bootstrap, Estimate
from cai.report.wins import MARGIN

__all__ = ["Effect", "FrontShare", "factors_of", "fronts", "main_effects"]

_DEFAULT: Final = "(not set)"
Setting = tuple[str, ...]  # a level of every factor


@dataclass(frozen=True, slots=True)
class Effect:
    """What `level` of `key` does, compared with `reference`, on average over `num_settings` settings of the other keys.

    By column: the difference, and its p-value adjusted for the levels of the key and the declared metrics (or, of
    another column, for the levels and all columns).
    """

    key: str
    level: str
    reference: str
    num_settings: int
    columns: dict[str, Estimate]
    p_holm: dict[str, float]


@dataclass(frozen=True, slots=True)
class FrontShare:
    """How sure it is that no other arm is better in both primary measures: in the figures, and in which share of
    resamples (of seeds, then prompts).
    """

    policy: str
    is_on_front: bool
    share: float


# --- main effects -----------------------------------------------------------------------------------------------------


def factors_of(policies: Sequence[Policy]) -> dict[str, tuple[str, ...]]:
    """What was varied between the trained policies, with its levels in their order: the first one is the reference."""
    trained = [p for p in policies if p.kind == "policy"]
    keys = dict.fromkeys(key for policy in trained for run in policy.runs for key in run.choices)
    levels = {key: tuple(dict.fromkeys(_level(policy, key) for policy in trained)) for key in keys}
    return {key: found for key, found in levels.items() if len(found) > 1}


def main_effects(
    policies: Sequence[Policy], measured: Measured, bootstrap: Bootstrap, declared: Sequence[str]
) -> list[Effect]:
    """Of every factor, where two or more were varied. Settings that only one of two levels has do not count, nor those
    in which one of them lacks a seed that other settings have: a job that failed costs a setting and not a seed.
    """
    factors = factors_of(policies)
    trained = {_setting(p, factors): p.name for p in policies if p.kind == "policy"}
    if len(factors) < 2 or len(trained) < len([p for p in policies if p.kind == "policy"]):
        return []
    effects: list[Effect] = []
    for place, (key, (reference, *others)) in enumerate(factors.items()):
        own = []
        for level in others:
            pairs = [
                (trained[_with(setting, place, level)], name)
                for setting, name in trained.items()
                if setting[place] == reference and _with(setting, place, level) in trained
            ]
            pairs = _complete(pairs, {p.name: set(p.evaluations) for p in policies})
            columns = _contrasts(pairs, measured, bootstrap)
            if columns:
                own.append(Effect(key, level, reference, len(pairs), columns, {}))
        effects += _adjusted(own, declared)
    return effects


def _level(policy: Policy, key: str) -> str:
    return policy.runs[0].choices.get(key, _DEFAULT)


def _setting(policy: Policy, factors: Mapping[str, object]) -> Setting:
    return tuple(_level(policy, key) for key in factors)


def _with(setting: Setting, place: int, level: str) -> Setting:
    return (*setting[:place], level, *setting[place + 1 :])


def _complete(pairs: Sequence[tuple[str, str]], seeds: Mapping[str, set[int]]) -> list[tuple[str, str]]:
    """The pairs that have every seed that any pair has; all, where none has."""
    every = {seed for a, b in pairs for seed in seeds[a] & seeds[b]}
    return [(a, b) for a, b in pairs if seeds[a] & seeds[b] == every] or list(pairs)


def _contrasts(pairs: Sequence[tuple[str, str]], measured: Measured, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """By column: the mean over the pairs of the first policy less the second."""
    found = {}
    for column in measured.columns:
        tables = [[measured.tables[name].get(column.name) for name in pair] for pair in pairs]
        if not pairs or any(own is None for pair in tables for own in pair):
            continue
        parts = [
            (sign / len(pairs), own)
            for pair in tables
            for sign, own in zip((1.0, -1.0), pair, strict=True)
            if own is not None
        ]
        estimate = bootstrap.contrast(parts, margin=MARGIN if column.unit == "%" else None)
        if estimate is not None:
            found[column.name] = estimate
    return found


def _adjusted(effects: Sequence[Effect], declared: Sequence[str]) -> list[Effect]:
    """With the p-values of one key's effects adjusted: the declared metrics among themselves, all others among all."""
    tests = [(i, column) for i, effect in enumerate(effects) for column in effect.columns]

    def adjusted(chosen: Sequence[tuple[int, str]]) -> dict[tuple[int, str], float]:
        p_values = [effects[i].columns[column].p_value for i, column in chosen]
        return dict(zip(chosen, holm([1.0 if p is None else p for p in p_values]), strict=True))

    p_holm = adjusted(tests) | adjusted([test for test in tests if test[1] in declared])
    return [
        Effect(e.key, e.level, e.reference, e.num_settings, e.columns, {c: p_holm[i, c] for c in e.columns})
        for i, e in enumerate(effects)
    ]


# --- the Pareto front -------------------------------------------------------------------------------------------------


def fronts(policies: Sequence[Policy], measured: Measured, bootstrap: Bootstrap) -> list[FrontShare]:
    """For three trained policies or more in which both primary measures were taken."""
    names = [
        p.name
        for p in policies
        if p.kind == "policy" and all(bootstrap.estimate(measured.tables[p.name].get(m, ())) for m in PRIMARY)
    ]
    if len(names) < 3:
        return []
    harm, help_ = ([measured.tables[name][metric] for name in names] for metric in PRIMARY)
    draws = [[bootstrap.draws(own) for own in tables] for tables in (harm, help_)]
    num = min(len(own) for tables in draws for own in tables)
    sampled = _on_front(*(np.array([own[:num] for own in tables]) for tables in draws))
    points = [[estimate.value for own in tables if (estimate := bootstrap.estimate(own))] for tables in (harm, help_)]
    (seen,) = _on_front(*(np.array(own)[:, None] for own in points)).T
    return [
        FrontShare(name, bool(on), float(share))
        for name, on, share in zip(names, seen, sampled.mean(axis=1), strict=True)
    ]


def _on_front(harm: Floats, help_: Floats) -> NDArray[np.bool_]:
    """(K policies, D draws) -> (K, D): no other policy is at least as good in both and better in one."""
    no_worse = (harm[:, None] <= harm[None]) & (help_[:, None] >= help_[None])
    better = (harm[:, None] < harm[None]) | (help_[:, None] > help_[None])
    return np.asarray(~(no_worse & better).any(axis=0))
