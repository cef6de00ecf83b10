"""Who beats whom: win rates with ties and both orders, and at equal length; a test of parity."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from cai.report.logistic import logistic, sigmoid
from cai.report.resampling import Floats, Statistic, Table, mean_of, mean_table, ratio, table_of
from cai.report.runs import Policy, Run
from cai.report.statistics import Bootstrap, Estimate

__all__ = ["Match", "WinRate", "judged_pair", "matches", "win_rates"]

MARGIN: Final = 0.05  # rates whose difference is surely below this are called equal for practical purposes


@dataclass(frozen=True, slots=True)
class Match:
    """Two policies' responses to the same prompts as one judge sees them. By seed: prompts, what `first` got (1 for a
    win, 1/2 for a tie, 0 for a loss, NaN without a verdict), log ratio of the lengths (NaN where one is not known), and
    whether the order of showing decided (NaN where that was not asked).
    """

    first: str
    second: str
    judge: str
    prompts: Mapping[int, list[str]]
    outcomes: Mapping[int, list[float]]
    lengths: Mapping[int, list[float]]
    swayed: Mapping[int, list[float]]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often `first` beats `second` on the same prompt, by one judge; a tie is half a win.

    The p-values of `estimate` are about parity: `p_value` of a test against one half, `p_equal` small where the rate is
    surely within 5 points of it. `at_equal_length` is the rate that a logistic regression on the log ratio of lengths
    predicts for responses of one length (Stiennon et al. 2020; Lee et al. 2023); None where lengths do not tell.
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
    at_equal_length: Estimate | None = None
    strict: Estimate | None = None
    inconsistent: Estimate | None = None


# --- who met whom -----------------------------------------------------------------------------------------------------


def matches(runs: Sequence[Run], policies: Sequence[Policy]) -> list[Match]:
    """Every pair of policies that a win_rate stage compared: by the AI judge, and by gold where there is gold."""
    rows: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
    order = [p.name for p in policies]
    for run in runs:
        for stage, output in run.outputs.items():
            pair = judged_pair(stage, run, policies)
            found = output.rows("wins.jsonl")
            if pair is not None and found is not None:
                first, second, turned = pair
                rows.setdefault((first, second), {})[run.seed] = [_turned(r) for r in found] if turned else found
    by_name = {p.name: p for p in policies}
    met = [m for (a, b), by_seed in rows.items() for m in _matches_of(by_name[a], by_name[b], by_seed)]
    return sorted(met, key=lambda m: (order.index(m.second), order.index(m.first), m.judge))


def judged_pair(stage: str, run: Run, policies: Sequence[Policy]) -> tuple[str, str, bool] | None:
    """The two policies that a win_rate stage compared, the later one first, as in the table of differences; and whether
    that turns the stage's own `a` and `b` round. None for another stage, or policies that were not evaluated.
    """
    order = [p.name for p in policies]
    other = _opponent(stage, run, policies)
    if other is None or run.arm not in order:
        return None
    turned = order.index(run.arm) < order.index(other)
    return (other, run.arm, True) if turned else (run.arm, other, False)


def _opponent(stage: str, run: Run, policies: Sequence[Policy]) -> str | None:
    """Whom the arm of `run` was judged against in `stage`: win_rate is SL-CAI, win_rate_over_<arm> another arm of the
    same job, whose folder lies beside this one's; other jobs of a sweep have arms of that name too.
    """
    if stage == "win_rate":
        return next((p.name for p in policies if p.kind == "sl_cai" and (not p.arms or run.arm in p.arms)), None)
    if not stage.startswith("win_rate_over_"):
        return None
    folder = run.folder.resolve().parent / stage.removeprefix("win_rate_over_")
    others = (p for p in policies if p.kind == "policy" and run.seed in p.evaluations)
    return next((p.name for p in others if any(r.folder.resolve() == folder for r in p.runs)), None)


def _matches_of(first: Policy, second: Policy, by_seed: Mapping[int, list[dict[str, Any]]]) -> Iterator[Match]:
    prompts = {seed: [r["prompt_id"] for r in rows] for seed, rows in by_seed.items()}
    lengths = {seed: _log_ratios(rows, first, second, seed) for seed, rows in by_seed.items()}
    judged = {s: [_outcome(r.get("p_a"), 0.5) for r in rows] for s, rows in by_seed.items()}
    gold = {s: [_outcome(r.get("gold_a"), r.get("gold_b")) for r in rows] for s, rows in by_seed.items()}
    swayed = {s: _swayed(rows, first, second, s) for s, rows in by_seed.items()}
    never = {s: [math.nan] * len(rows) for s, rows in by_seed.items()}
    for judge, outcomes, order in (("AI judge", judged, swayed), ("gold", gold, never)):
        if any(not math.isnan(x) for values in outcomes.values() for x in values):
            yield Match(first.name, second.name, judge, prompts, outcomes, lengths, order)


def _log_ratios(rows: Sequence[Mapping[str, Any]], first: Policy, second: Policy, seed: int) -> list[float]:
    """Of tokens; a response without any counts as one token."""
    tokens: list[dict[str, float]] = []
    for policy in (first, second):
        scores = policy.evaluations[seed].rows("scores.jsonl") or [] if seed in policy.evaluations else []
        tokens.append({r["response_id"]: max(r["num_tokens"], 1) for r in scores if r.get("num_tokens") is not None})
    own, other = tokens
    ids = [row["response_id"] for row in rows]
    return [math.log(own[i] / other[i]) if i in own and i in other else math.nan for i in ids]


def _turned(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same verdict with a and b exchanged."""
    p = row.get("p_a")
    return {**row, "p_a": None if p is None else 1 - p, "gold_a": row.get("gold_b"), "gold_b": row.get("gold_a")}


def _outcome(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return math.nan
    return 0.5 if a == b else float(a > b)


def _swayed(rows: Sequence[Mapping[str, Any]], first: Policy, second: Policy, seed: int) -> list[float]:
    """Whether the orders disagree; not asked of two equal texts, of which no order could say which is better."""
    texts: list[dict[str, str]] = []
    for policy in (first, second):
        responses = policy.evaluations[seed].rows("responses.jsonl") or [] if seed in policy.evaluations else []
        texts.append({r["id"]: r["text"] for r in responses})
    own, other = texts
    found = []
    for row in rows:
        key, consistent = row["response_id"], row.get("consistent")
        equal = key in own and own[key] == other.get(key)
        found.append(math.nan if consistent is None or equal else float(not consistent))
    return found


# --- win rates --------------------------------------------------------------------------------------------------------


def win_rates(found: Sequence[Match], bootstrap: Bootstrap) -> list[WinRate]:
    """The win rates of every match."""
    return [rate for match in found if (rate := _win_rate(match, bootstrap)) is not None]


def _win_rate(match: Match, bootstrap: Bootstrap) -> WinRate | None:
    def estimated(values: Mapping[int, Sequence[float]]) -> Estimate | None:
        return bootstrap.estimate([mean_table(s, match.prompts[s], v, is_rate=True) for s, v in values.items()])

    tables = [mean_table(s, match.prompts[s], v, is_rate=True) for s, v in match.outcomes.items()]
    estimate = _against_parity(tables, bootstrap)
    if estimate is None:
        return None
    inconsistent = estimated(match.swayed)
    strict = {
        s: [0.5 if w == 1 else o for o, w in zip(v, match.swayed[s], strict=True)] for s, v in match.outcomes.items()
    }
    return WinRate(
        match.first,
        match.second,
        match.judge,
        estimate,
        *_tally(match.outcomes),
        at_equal_length=_at_equal_length(match, bootstrap),
        strict=estimated(strict) if inconsistent else None,
        inconsistent=inconsistent,
    )


def _tally(outcomes: Mapping[int, list[float]]) -> tuple[int, int, int]:
    """(wins, ties, losses)."""
    values = np.concatenate([np.asarray(v, dtype=np.float64) for v in outcomes.values()])
    return int((values == 1).sum()), int((values == 0.5).sum()), int((values == 0).sum())


def _at_equal_length(match: Match, bootstrap: Bootstrap) -> Estimate | None:
    """logit P(win) = b0 + b1 log(length ratio), fitted in each seed, and the rate where the ratio is 1: sigmoid(b0).
    None where a seed with known lengths has no fit.
    """
    tables = []
    for seed, outcomes in match.outcomes.items():
        x, y = (np.asarray(v, dtype=np.float64) for v in (match.lengths[seed], outcomes))
        known = ~np.isnan(x) & ~np.isnan(y)
        if not known.any():
            continue
        fitted = logistic(np.column_stack([np.ones(known.sum()), x[known]]), y[known])
        if fitted is None:
            return None
        tables.append(_newton_table(seed, match.prompts[seed], x, y, fitted))
    return _against_parity(tables, bootstrap, _rate_at_equal_length)


def _against_parity(tables: Sequence[Table], bootstrap: Bootstrap, statistic: Statistic = mean_of) -> Estimate | None:
    """A rate with p-values of the tests that it is a half, and that it is not within the margin of a half."""
    estimate = bootstrap.estimate(tables, statistic)
    parity = bootstrap.contrast([(1.0, tables)], statistic, null=0.5, margin=MARGIN)
    if estimate is None or parity is None:
        return estimate
    return replace(estimate, p_value=parity.p_value, p_equal=parity.p_equal)


def _newton_table(seed: int, prompts: Sequence[str], x: Floats, y: Floats, b: Floats) -> Table:
    """Normal equations of the step from the seed's own fit `b`: (h00, h01, h11, r0, r1) with H b' = r = H b + gradient.
    Their solution is `b` for the seed as it is, close to its fit for a resample, and for several seeds the mean of
    their fits, each by its weight.
    """
    known = ~np.isnan(x) & ~np.isnan(y)
    x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
    p = sigmoid(b[0] + b[1] * x)
    weight = p * (1 - p)
    target = weight * (b[0] + b[1] * x) + y - p
    columns = np.column_stack([weight, weight * x, weight * x * x, target, target * x])
    columns = np.where(known[:, None], columns, 0.0)
    return table_of(seed, prompts, columns, int(known.sum()), bounds=(0.0, 1.0))


def _rate_at_equal_length(sums: Floats) -> Floats:
    """(D, 5) normal equations -> (D,) the rate at ratio 1."""
    h00, h01, h11, r0, r1 = sums.T
    return sigmoid(ratio(h11 * r0 - h01 * r1, h00 * h11 - h01 * h01))
