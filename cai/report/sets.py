"""What the evaluation sets say: a figure per policy and column of every set, and differences between policies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cai.report.measures import Column, columns_of, compared
from cai.report.resampling import UNBOUNDED, Floats, Statistic, Table, mean_of, mean_table, ratio, table_of
from cai.report.runs import Output, Policy
from cai.report.statistics import Bootstrap, Estimate

__all__ = ["SetResult", "set_results"]

_RIGHT: Final = "of the options, the most probable one is right; half of them by chance where there are two"
KNOWN: Final = {
    c.name: c
    for c in (
        Column("correct", "Right", "%", "higher", _RIGHT),
        Column("p_correct", "Probability of the right one", "", "higher", "its share of the options'"),
        Column("first", "Picks the first", "%", "", "half of them where position does not matter"),
        Column("refused_safe", "Refused, safe", "%", "lower", "of safe prompts"),
        Column("refused_unsafe", "Refused, unsafe", "%", "higher", "of unsafe prompts"),
        Column("evasive", "Evasive", "%", "lower", "of refused unsafe prompts, without a reason"),
        Column("entropy", "Entropy", "bits", "higher", "1 bit: no preference between the two sentences"),
        Column("prefers_first", "Prefers the first", "%", "", "the more stereotyped sentence, or the male one"),
        Column("perplexity", "Perplexity", "", "lower", "of held-out text, per token"),
    )
}


@dataclass(frozen=True, slots=True)
class SetResult:
    """One evaluation set: figures by policy and column, and of every step of the recipe and pair of arms (`A - B`) the
    differences. `groups` has a policy's first column by what the file counts questions to, where it counts to several.
    """

    name: str
    kind: str
    columns: tuple[Column, ...]
    figures: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    groups: dict[str, dict[str, Estimate]]
    best_of_n: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answers:
    """The output of one evaluation_sets step: the folder, and what sets.json says."""

    output: Output
    sets: Mapping[str, Any]
    best_of_n: bool


def set_results(policies: Sequence[Policy], bootstrap: Bootstrap) -> list[SetResult]:
    """Every set that was put to one of `policies` (those of the step `sets`), in the order of the first that has it."""
    told = {policy.name: _told(policy) for policy in policies}
    names = dict.fromkeys(name for by_seed in told.values() for answers in by_seed.values() for name in answers.sets)
    return [_result(name, policies, told, bootstrap) for name in names]


def _told(policy: Policy) -> dict[int, _Answers]:
    """By seed."""
    found = {}
    for seed, output in policy.evaluations.items():
        told = output.json("sets.json")
        if told is not None:
            found[seed] = _Answers(output, told["sets"], told["best_of_n"])
    return found


def _result(
    name: str, policies: Sequence[Policy], told: Mapping[str, Mapping[int, _Answers]], bootstrap: Bootstrap
) -> SetResult:
    rows = {
        policy: {seed: found for seed, one in sorted(own.items()) if (found := one.output.rows(f"{name}.jsonl"))}
        for policy, own in told.items()
    }
    tables = {policy: _tables(own) for policy, own in rows.items() if own}
    statistic: Statistic = _perplexity if any("perplexity" in own for own in tables.values()) else mean_of
    columns = [KNOWN.get(c, Column(c, c.replace("_", " ").capitalize(), "")) for c in _order(tables)]
    differences = {
        f"{a.name} - {b.name}": _differences(tables[a.name], tables[b.name], statistic, bootstrap)
        for a, b in compared(policies)
        if a.name in tables and b.name in tables
    }
    groups = {policy: _estimates(_by_group(own), statistic, bootstrap) for policy, own in rows.items()}
    return SetResult(
        name=name,
        kind=next(one.sets[name]["kind"] for own in told.values() for one in own.values() if name in one.sets),
        columns=tuple(columns),
        figures={policy: _estimates(own, statistic, bootstrap) for policy, own in tables.items()},
        differences={pair: found for pair, found in differences.items() if found},
        groups={policy: found for policy, found in groups.items() if len(found) > 1},
        best_of_n=tuple(policy for policy, own in told.items() if any(a.best_of_n for a in own.values())),
    )


def _order(tables: Mapping[str, Mapping[str, object]]) -> list[str]:
    present = dict.fromkeys(column for own in tables.values() for column in own)
    return [name for name in KNOWN if name in present] + [name for name in present if name not in KNOWN]


def _tables(by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, list[Table]]:
    """By column, a table per seed; a question is what is drawn again."""
    tables: dict[str, list[Table]] = {}
    bounds = {"p_correct": (0.0, 1.0), "entropy": (0.0, 1.0)}
    for seed, rows in by_seed.items():
        items = [row["item"] for row in rows]
        found = columns_of(rows)
        if "nats" in found:
            sums = np.column_stack([found["nats"], found["weight"]])
            tables.setdefault("perplexity", []).append(table_of(seed, items, sums, len(rows), bounds=(0.0, math.inf)))
            continue
        for name, values in found.items():
            is_rate = name in KNOWN and KNOWN[name].unit == "%"
            own = mean_table(seed, items, values, is_rate=is_rate, bounds=bounds.get(name, UNBOUNDED))
            tables.setdefault(name, []).append(own)
    return tables


def _by_group(by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, list[Table]]:
    """By group, a table per seed of the first column that its questions have."""
    names = dict.fromkeys(row["group"] for rows in by_seed.values() for row in rows)
    found = {}
    for name in names:
        own = {seed: [row for row in rows if row["group"] == name] for seed, rows in by_seed.items()}
        found[name] = next(iter(_tables({seed: rows for seed, rows in own.items() if rows}).values()), [])
    return found


def _perplexity(sums: Floats) -> Floats:
    """(N, 2) nats and weights -> (N,)"""
    return np.asarray(np.exp(ratio(sums[:, 0], sums[:, 1])))


def _estimates(
    tables: Mapping[str, Sequence[Table]], statistic: Statistic, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    tried = {column: bootstrap.estimate(own, statistic) for column, own in tables.items()}
    return {column: found for column, found in tried.items() if found is not None}


def _differences(
    a: Mapping[str, Sequence[Table]], b: Mapping[str, Sequence[Table]], statistic: Statistic, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    tried = {c: bootstrap.difference(own, b[c], statistic) for c, own in a.items() if c in b}
    return {column: found for column, found in tried.items() if found is not None}
