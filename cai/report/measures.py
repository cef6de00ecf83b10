"""What the responses were like: a figure per policy and column, differences between policies, win rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from cai.errors import DataError
from cai.report.runs import Output, Policy, Run, pairs_of_arms
from cai.report.statistics import Bootstrap, Estimate, Table, holm, mean_table

__all__ = [
    "Column",
    "Difference",
    "Measures",
    "WinRate",
    "column_of",
    "measure",
    "win_rates",
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
_NO_COLUMNS: Final = {"prompt_id", "response_id", "logp", "logp_reference", "num_tokens"}


@dataclass(frozen=True, slots=True)
class Difference:
    """`first` minus `second` in one column. `p_holm` is adjusted for all differences of the same two policies."""

    first: str
    second: str
    column: str
    estimate: Estimate
    p_holm: float


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures by policy name and column name; a figure that does not exist is left out."""

    columns: tuple[Column, ...]
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


def measure(policies: Sequence[Policy], bootstrap: Bootstrap) -> Measures:
    """Every column of every policy, and the differences SL-CAI - base, arm - SL-CAI, arm - arm."""
    tables = {policy.name: _tables(policy) for policy in policies}
    present = list(dict.fromkeys(name for columns in tables.values() for name in columns))
    names = [name for name in KNOWN if name in present] + [name for name in present if name not in KNOWN]
    columns = tuple(column_of(n, [t for by in tables.values() for t in by.get(n, ())]) for n in names)
    rates = {c.name for c in columns if c.unit == "%"}
    for by in tables.values():
        by.update({n: [replace(t, is_rate=n in rates) for t in found] for n, found in by.items()})
    figures = {
        policy: {n: found for n in names if n in by and (found := bootstrap.estimate(by[n]))}
        for policy, by in tables.items()
    }
    differences: list[Difference] = []
    for first, second in _compared(policies):
        a, b = tables[first.name], tables[second.name]
        tried = {n: bootstrap.difference(a[n], b[n]) for n in names if n in a and n in b}
        differences += _adjusted(first.name, second.name, {n: e for n, e in tried.items() if e is not None})
    return Measures(columns, figures, tuple(differences))


def _tables(policy: Policy) -> dict[str, list[Table]]:
    """By column name: the per-prompt sums of each seed."""
    tables: dict[str, list[Table]] = {}
    for seed, output in sorted(policy.evaluations.items()):
        rows = scored_rows(output)
        prompts = [row["prompt_id"] for row in rows]
        for name, values in columns_of(rows).items():
            if policy.kind == "sl_cai" and name == "kl":
                continue  # the distance of the reference to itself is 0 by definition, not by measurement
            tables.setdefault(name, []).append(mean_table(seed, prompts, values))
    return tables


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


def _compared(policies: Sequence[Policy]) -> list[tuple[Policy, Policy]]:
    """What is compared with what: each step of the recipe with the one before it, and the arms with each other."""
    pairs = []
    for earlier, later in (("base", "sl_cai"), ("sl_cai", "policy")):
        for b in (p for p in policies if p.kind == earlier):
            pairs += [(a, b) for a in policies if a.kind == later and (b.arm is None or b.arm == a.arm)]
    return pairs + pairs_of_arms(policies)


def _adjusted(first: str, second: str, found: Mapping[str, Estimate]) -> list[Difference]:
    p_values = holm([1.0 if e.p_value is None else e.p_value for e in found.values()])
    return [Difference(first, second, n, e, p) for (n, e), p in zip(found.items(), p_values, strict=True)]


# --- win rates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often `first` beats `second` on the same prompt, by one judge; a tie is half a win.

    `strict` counts a win only when both orders agree (else a tie); `inconsistent` is the share where they do not.
    Both are None for a judge that has no order (gold).
    """

    first: str
    second: str
    judge: str
    estimate: Estimate
    wins: int
    ties: int
    losses: int
    strict: Estimate | None = None
    inconsistent: Estimate | None = None


def win_rates(runs: Sequence[Run], policies: Sequence[Policy], bootstrap: Bootstrap) -> list[WinRate]:
    """Every pair of policies that a win_rate stage compared: by the AI judge, and by gold where there is gold."""
    rows: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
    order = [p.name for p in policies]
    for run in runs:
        for stage, output in run.outputs.items():
            other = _opponent(stage, run, policies)
            found = output.rows("wins.jsonl")
            if other is None or found is None or run.arm not in order:
                continue
            # The later of two policies comes first, as in the table of differences.
            if order.index(run.arm) > order.index(other):
                rows.setdefault((run.arm, other), {})[run.seed] = found
            else:
                rows.setdefault((other, run.arm), {})[run.seed] = [_turned(row) for row in found]
    rates: list[WinRate] = []
    for (first, second), by_seed in rows.items():
        rates += _judged(first, second, by_seed, bootstrap)
    return sorted(rates, key=lambda r: (order.index(r.second), order.index(r.first), r.judge))


def _opponent(stage: str, run: Run, policies: Sequence[Policy]) -> str | None:
    """Whom the arm of `run` was judged against in `stage`: win_rate is SL-CAI, win_rate_over_<arm> another arm."""
    if stage == "win_rate":
        return next((p.name for p in policies if p.kind == "sl_cai" and p.arm in (None, run.arm)), None)
    if not stage.startswith("win_rate_over_"):
        return None
    name = stage.removeprefix("win_rate_over_")
    others = (p for p in policies if p.kind == "policy" and run.seed in p.evaluations)
    return next((p.name for p in others if any(r.folder.name == name for r in p.runs if r.seed == run.seed)), None)


def _judged(
    first: str, second: str, by_seed: Mapping[int, list[dict[str, Any]]], bootstrap: Bootstrap
) -> list[WinRate]:
    """The win rates of two policies by each judge that has an opinion."""
    prompts = {seed: [r["prompt_id"] for r in rows] for seed, rows in by_seed.items()}

    def estimated(values: Mapping[int, list[float]]) -> Estimate | None:
        return bootstrap.estimate([mean_table(s, prompts[s], v, is_rate=True) for s, v in values.items()])

    judged = {s: [_outcome(r.get("p_a"), 0.5) for r in rows] for s, rows in by_seed.items()}
    gold = {s: [_outcome(r.get("gold_a"), r.get("gold_b")) for r in rows] for s, rows in by_seed.items()}
    swayed = {s: [_swayed(r) for r in rows] for s, rows in by_seed.items()}
    strict = {s: [0.5 if w == 1 else o for o, w in zip(judged[s], swayed[s], strict=True)] for s in by_seed}
    rates = []
    if (estimate := estimated(judged)) is not None:
        found = estimated(swayed)
        rates.append(
            WinRate(first, second, "AI judge", estimate, *_tally(judged), estimated(strict) if found else None, found)
        )
    if (estimate := estimated(gold)) is not None:
        rates.append(WinRate(first, second, "gold", estimate, *_tally(gold)))
    return rates


def _turned(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same verdict with a and b exchanged."""
    p = row.get("p_a")
    return {**row, "p_a": None if p is None else 1 - p, "gold_a": row.get("gold_b"), "gold_b": row.get("gold_a")}


def _outcome(a: float | None, b: float | None) -> float:
    """1 for a win, 1/2 for a tie, 0 for a loss, NaN without a verdict."""
    if a is None or b is None:
        return math.nan
    return 0.5 if a == b else float(a > b)


def _swayed(row: Mapping[str, Any]) -> float:
    consistent = row.get("consistent")
    return math.nan if consistent is None else float(not consistent)


def _tally(outcomes: Mapping[int, list[float]]) -> tuple[int, int, int]:
    """(wins, ties, losses)."""
    values = np.concatenate([np.asarray(v, dtype=np.float64) for v in outcomes.values()])
    return int((values == 1).sum()), int((values == 0.5).sum()), int((values == 0).sum())
