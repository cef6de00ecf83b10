"""What the responses were like: a figure per policy and column, and differences between policies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from cai.errors import DataError
from cai.report.formulas import holm
from cai.report.resampling import UNBOUNDED, Table, mean_table
from cai.report.runs import Output, Policy, Run, leads_to, pairs_of_arms
from cai.report.statistics import Bootstrap, Estimate
from cai.report.wins import MARGIN

__all__ = [
    "Column",
    "Difference",
    "Measured",
    "Measures",
    "column_of",
    "columns_of",
    "compared",
    "declared_metrics",
    "measure",
    "measured",
]

Better = Literal["lower", "higher", ""]


@dataclass(frozen=True, slots=True)
class Column:
    """How a measured column is shown. `unit` is %, nats, tokens or nothing; `better` may be neither direction.

    `is_main` columns are in the main table, the others under it.
    """

    name: str
    label: str
    unit: str
    better: Better = ""
    note: str = ""
    is_main: bool = True


# Columns that the report has words for, in the order of showing; a scorer may give any others, which follow.
KNOWN: Final = {
    c.name: c
    for c in (
        Column("harmful_compliance", "Harmful compliance", "%", "lower", "helps with a harmful request"),
        Column("helpful", "Helpfulness", "%", "higher", "helps with a benign request"),
        Column("over_refusal", "Over-refusal", "%", "lower", "refuses a benign request"),
        Column("evasive_share", "Evasive", "%", "lower", "of refusals and evasions of harmful requests, the evasions"),
        Column("polite", "Polite", "%", "higher", "opens politely"),
        Column("garbled", "Garbled", "%", "lower", "is not well formed"),
        Column("gold", "Gold score", "", "higher", "the scorer's overall value of a response"),
        Column("length", "Length", "tokens", "", "tokens of a response"),
        Column("kl", "KL to SL-CAI", "nats", "", "log-ratio per response, on the policy's own samples"),
        Column("refusal", "Refusal", "%", is_main=False),
        Column(
            "right_reason", "Right reason", "%", "higher", "of refusals, those with the right reason", is_main=False
        ),
        Column("evasive", "Evasive, of all", "%", "lower", is_main=False),
        Column("off_topic", "Off topic", "%", "lower", is_main=False),
        Column("rude", "Rude", "%", "lower", is_main=False),
        Column("num_fillers", "Fillers", "", is_main=False),
        Column("num_words", "Words", "", is_main=False),
        Column("distinct_2", "Distinct word pairs", "", "higher", "share of different word pairs", is_main=False),
        Column("boilerplate", "Boilerplate", "%", "lower", "holds a phrase that many responses hold", is_main=False),
        Column("finished", "Finished", "%", "higher", "ended its turn before it was cut off", is_main=False),
    )
}
PRIMARY: Final = ("harmful_compliance", "helpful")
_NO_COLUMNS: Final = {"item", "group", "prompt_id", "response_id", "logp", "logp_reference", "num_tokens"}


@dataclass(frozen=True, slots=True)
class Difference:
    """`first` minus `second` in one column.

    `p_holm` is adjusted, among the differences of the same two policies, for the number of declared metrics where the
    column is one, and for the number of all columns where it is not. `estimate.p_equal` is that of the test for
    equivalence within 5 points (TOST, Schuirmann 1987), for rates.
    """

    first: str
    second: str
    column: str
    estimate: Estimate
    p_holm: float

    @property
    def is_detected(self) -> bool:
        """Whether it differs from 0 after correction: its interval leaves out 0, too."""
        return self.estimate.excludes_zero and self.p_holm < 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured: the columns, and by policy and column the sums per prompt of each seed."""

    columns: tuple[Column, ...]
    tables: Mapping[str, Mapping[str, Sequence[Table]]]


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures by policy name and column name; a figure that does not exist is left out. `declared` names the columns
    that the runs' settings declared to be what the comparison is about.
    """

    columns: tuple[Column, ...]
    declared: tuple[str, ...]
    figures: dict[str, dict[str, Estimate]]
    differences: tuple[Difference, ...]

    def difference(self, first: str, second: str, column: str) -> Difference | None:
        """The difference of two policies in a column, if both were measured."""
        wanted = (first, second, column)
        return next((d for d in self.differences if (d.first, d.second, d.column) == wanted), None)


def column_of(name: str, tables: Sequence[Table] = ()) -> Column:
    """The known column of this name, or one made from the name: a rate if its values are events, 0s and 1s."""
    if name in KNOWN:
        return KNOWN[name]
    some = [t for t in tables if t.num]
    varied = 0 < sum(t.sums[:, 0].sum() for t in some) < sum(t.num for t in some)
    is_rate = varied and all(t.is_rate for t in some)
    return Column(name, name.replace("_", " ").capitalize(), "%" if is_rate else "", is_main=False)


def declared_metrics(runs: Sequence[Run]) -> tuple[str, ...]:
    """What the settings of the runs (`metrics`) declare, in their order; the usual two where settings say nothing."""
    said = [run.config["metrics"] for run in runs if run.config.get("metrics") is not None]
    return tuple(dict.fromkeys(name for names in said for name in names)) if said else PRIMARY


def measured(policies: Sequence[Policy]) -> Measured:
    """Every column of every policy."""
    tables = {policy.name: _tables(policy) for policy in policies}
    present = list(dict.fromkeys(name for columns in tables.values() for name in columns))
    names = [name for name in KNOWN if name in present] + [name for name in present if name not in KNOWN]
    columns = tuple(column_of(n, [t for by in tables.values() for t in by.get(n, ())]) for n in names)
    rates = {c.name for c in columns if c.unit == "%"}
    for by in tables.values():
        by.update({n: [replace(t, is_rate=n in rates) for t in found] for n, found in by.items()})
    return Measured(columns, tables)


def measure(
    policies: Sequence[Policy], what: Measured, bootstrap: Bootstrap, declared: Sequence[str] = PRIMARY
) -> Measures:
    """Figures, and the differences SL-CAI - base, arm - SL-CAI, arm - arm."""
    columns, tables = what.columns, what.tables
    names = [column.name for column in columns]
    rates = {c.name for c in columns if c.unit == "%"}
    figures = {
        policy: {n: found for n in names if n in by and (found := bootstrap.estimate(by[n]))}
        for policy, by in tables.items()
    }
    differences: list[Difference] = []
    for first, second in compared(policies):
        a, b = tables[first.name], tables[second.name]
        tried = {
            n: bootstrap.difference(a[n], b[n], margin=MARGIN if n in rates else None)
            for n in names
            if n in a and n in b
        }
        made = {n: e for n, e in tried.items() if e is not None}
        differences += _adjusted(first.name, second.name, made, declared)
    return Measures(columns, tuple(n for n in declared if n in names), figures, tuple(differences))


def _tables(policy: Policy) -> dict[str, list[Table]]:
    """By column name: the per-prompt sums of each seed."""
    tables: dict[str, list[Table]] = {}
    for seed, output in sorted(policy.evaluations.items()):
        rows = scored_rows(output)
        prompts = [row["prompt_id"] for row in rows]
        for name, values in columns_of(rows).items():
            if name == "kl" and (policy.kind == "sl_cai" or _has_many_references(policy)):
                continue  # the distance of the reference to itself is 0 by definition, not by measurement
            bounds = (0.0, math.inf) if name == "length" else UNBOUNDED
            tables.setdefault(name, []).append(mean_table(seed, prompts, values, bounds=bounds))
    return tables


def _has_many_references(policy: Policy) -> bool:
    """Whether a base model is that of arms with different SL-CAI models: its distance is to which?"""
    made = {(run.seed, run.outputs["evaluate_base"].fingerprint) for run in policy.runs if policy.kind == "base"}
    return len(made) > len({seed for seed, _ in made})


def scored_rows(output: Output) -> list[dict[str, Any]]:
    """The rows of an evaluation: scores.jsonl, with `length`, `kl` and `evasive_share` worked out from what is there.

    Raises DataError without scores.
    """
    rows = output.rows("scores.jsonl")
    if rows is None:
        raise DataError(f"{output.path / 'scores.jsonl'}: missing; an evaluation has scores")
    for row in rows:
        row["length"] = row.get("num_tokens")
        if row.get("logp") is not None and row.get("logp_reference") is not None:
            row["kl"] = row["logp"] - row["logp_reference"]
        if row.get("refusal") is not None and row.get("evasive") is not None:
            row["evasive_share"] = row["evasive"] if row["refusal"] or row["evasive"] else None
    return rows


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Numbers by column, null as NaN; ids and log-probabilities are no columns."""
    names = dict.fromkeys(key for row in rows for key in row if key not in _NO_COLUMNS)
    numeric = [n for n in names if all(isinstance(row.get(n), int | float | None) for row in rows)]
    numeric = [n for n in numeric if any(row.get(n) is not None for row in rows)]
    return {n: [math.nan if row.get(n) is None else float(row[n]) for row in rows] for n in numeric}


def compared(policies: Sequence[Policy]) -> list[tuple[Policy, Policy]]:
    """What is compared with what: each step of the recipe with the one before it, and the arms with each other."""
    pairs = []
    for earlier, later in (("base", "sl_cai"), ("sl_cai", "policy")):
        for b in (p for p in policies if p.kind == earlier):
            pairs += [(a, b) for a in policies if a.kind == later and leads_to(b, a)]
    return pairs + pairs_of_arms(policies)


def _adjusted(first: str, second: str, found: Mapping[str, Estimate], declared: Sequence[str]) -> list[Difference]:
    def adjusted(names: Sequence[str]) -> dict[str, float]:
        p_values = [found[n].p_value for n in names]
        return dict(zip(names, holm([1.0 if p is None else p for p in p_values]), strict=True))

    p_holm = adjusted(list(found)) | adjusted([n for n in found if n in declared])
    return [Difference(first, second, n, e, p_holm[n]) for n, e in found.items()]
