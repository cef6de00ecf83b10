"""One scale for all policies that met: Bradley-Terry scores as Elo points, with intervals by prompt.

log P(i beats j) = log sigmoid(s_i - s_j) (Bradley & Terry 1952), ties half a win each, Elo = s 400 / ln 10, so that 100
points are 64 % (Bai et al. 2022a, section 3). evalica fits the scores; its own intervals resample single comparisons,
which share prompts, so resamples of prompts are fitted here, by Newton's method from its scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cai.report.resampling import Floats, Statistic, Table, table_of
from cai.report.runs import Policy
from cai.report.statistics import Bootstrap, Estimate
from cai.report.wins import Match

__all__ = ["Ratings", "ratings"]

_ELO: Final = 400 / math.log(10)
_STEPS: Final = 6  # of Newton's method: from a start that is near
_TIE: Final = 0.5  # half a win added to each side of a pair, so that whoever never lost has a finite score


@dataclass(frozen=True, slots=True)
class Ratings:
    """Elo points by policy name, by one judge; `reference` has 0. `misfit` is the largest difference between a win rate
    that was seen and the one that the scores predict: where it is large, one scale does not tell who beats whom.
    """

    judge: str
    reference: str
    elo: dict[str, Estimate]
    misfit: float


def ratings(found: Sequence[Match], policies: Sequence[Policy], bootstrap: Bootstrap) -> list[Ratings]:
    """For each judge and each group of three or more policies that met, directly or through others, in the seeds that
    all of them have.
    """
    order = [p.name for p in policies]
    rated = []
    for judge in dict.fromkeys(match.judge for match in found):
        own = [match for match in found if match.judge == judge]
        for names in _groups(own):
            met = [match for match in own if match.first in names]
            seeds = set.intersection(*(set(match.outcomes) for match in met))
            if len(names) > 2 and seeds:
                rated.append(_rate(judge, sorted(names, key=order.index), met, sorted(seeds), bootstrap))
    return rated


def _groups(found: Sequence[Match]) -> list[list[str]]:
    groups: list[list[str]] = []
    for match in found:
        met = [group for group in groups if match.first in group or match.second in group]
        groups = [group for group in groups if group not in met]
        groups.append(list(dict.fromkeys([*(n for group in met for n in group), match.first, match.second])))
    return groups


def _rate(judge: str, names: list[str], found: Sequence[Match], seeds: Sequence[int], bootstrap: Bootstrap) -> Ratings:
    pairs = [(names.index(match.first), names.index(match.second)) for match in found]
    tables = [_table(found, seed) for seed in seeds]
    won = np.sum([table.sums.sum(axis=0) for table in tables], axis=0).reshape(-1, 2)
    start = _fit(won, pairs, len(names))
    elo = {}
    for index, name in enumerate(names[1:], start=1):
        estimate = bootstrap.estimate(tables, _elo_of(index, start, pairs))
        if estimate is not None:
            elo[name] = estimate
    predicted = [1 / (1 + math.exp(start[j] - start[i])) for i, j in pairs]
    misfit = max(abs(w[0] / w.sum() - p) for w, p in zip(won, predicted, strict=True) if w.sum())
    return Ratings(judge, names[0], elo, misfit)


def _table(found: Sequence[Match], seed: int) -> Table:
    """For each match two columns: what the first and what the second got."""
    prompts: list[str] = []
    columns = []
    for index, match in enumerate(found):
        for prompt, outcome in zip(match.prompts[seed], match.outcomes[seed], strict=True):
            row = np.zeros(2 * len(found))
            if not math.isnan(outcome):
                row[2 * index : 2 * index + 2] = outcome, 1 - outcome
            prompts.append(prompt)
            columns.append(row)
    return table_of(seed, prompts, np.array(columns), len(prompts))


def _fit(won: Floats, pairs: Sequence[tuple[int, int]], num: int) -> Floats:
    """(num,) log scores, that of the first one 0, by evalica."""
    import evalica
    import pandas

    firsts = [i for i, _ in pairs] * 2
    seconds = [j for _, j in pairs] * 2
    winners = [evalica.Winner.X] * len(pairs) + [evalica.Winner.Y] * len(pairs)
    weights = [*(won[:, 0] + _TIE), *(won[:, 1] + _TIE)]
    result = evalica.bradley_terry(
        firsts, seconds, winners, index=pandas.Index(range(num)), weights=weights, tolerance=1e-10, limit=10_000
    )
    scores = np.log(result.scores.loc[range(num)].to_numpy(dtype=np.float64))
    return np.asarray(scores - scores[0])


def _elo_of(index: int, start: Floats, pairs: Sequence[tuple[int, int]]) -> Statistic:
    """(D, 2 x pairs) wins -> (D,) Elo points of policy `index` over policy 0."""
    num = len(start)

    def statistic(sums: Floats) -> Floats:
        won = sums.reshape(len(sums), -1, 2) + _TIE
        scores = np.tile(start, (len(sums), 1))
        for _ in range(_STEPS):
            gradient, hessian = np.zeros((len(sums), num)), np.zeros((len(sums), num, num))
            for k, (i, j) in enumerate(pairs):
                met = won[:, k].sum(axis=1)
                p = 1 / (1 + np.exp(scores[:, j] - scores[:, i]))
                error, weight = won[:, k, 0] - met * p, met * p * (1 - p)
                gradient[:, i] += error
                gradient[:, j] -= error
                for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
                    hessian[:, a, b] += sign * weight
            step = np.linalg.solve(hessian[:, 1:, 1:], gradient[:, 1:, None])[:, :, 0]
            scores[:, 1:] += np.clip(step, -2.0, 2.0)
        return np.asarray(scores[:, index] * _ELO)

    return statistic
