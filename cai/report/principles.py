"""What each principle did: how it labelled, what the reward model learned of that, and whether the policy follows it.

A principle decides a pair when its probability, both orders averaged, is at least 0.1 from 1/2.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from cai.constitution import Constitution
from cai.labelers.statistics import DECIDED
from cai.report.agreement import Estimator
from cai.report.judged import Judged
from cai.report.resampling import Table, mean_table
from cai.report.runs import Policy, Run, by_arm
from cai.report.statistics import Bootstrap, Estimate
from cai.report.wins import judged_pair

__all__ = ["Adherence", "Concord", "PairAgreement", "PrincipleUse", "Principles", "adherence", "read_principles"]

_FEWEST: Final = 10  # pairs that two principles both decide, below which their agreement is not shown

Values = dict[int, list[tuple[str, float]]]  # per seed: (prompt id, value)
Compared = dict[tuple[str, str], dict[int, list[dict[str, Any]]]]  # rows by policies and seed


@dataclass(frozen=True, slots=True)
class PrincipleUse:
    """How a principle labelled in one arm: of `num` pairs the share that it decides, the mean distance of p from 1/2,
    and how often it agrees with gold.

    `reward_right` is how often the reward model prefers the response that the principle decided for, on held-out pairs
    that were labelled under it; `reward_margin` by how much reward, on average.
    """

    arm: str
    principle: str
    num: int
    decided: Estimate
    margin: Estimate
    gold: Estimate | None
    reward_right: Estimate | None
    reward_margin: Estimate | None


@dataclass(frozen=True, slots=True)
class Adherence:
    """Which of two policies keeps better to a principle, judged on `num` pairs of responses to held-out prompts: the
    shares that the principle decides for the first and for the second, and their difference.
    """

    first: str
    second: str
    principle: str
    num: int
    better: Estimate
    worse: Estimate
    net: Estimate


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """How often two principles prefer the same response, over the `num` pairs of responses that both decide."""

    first: str
    second: str
    value: float
    num: int


@dataclass(frozen=True, slots=True)
class Concord:
    """Agreement of the principles that judged the same pairs of responses, those of `source`; two principles that
    decide fewer than ten pairs in common are left out.
    """

    source: str
    principles: tuple[str, ...]
    pairs: tuple[PairAgreement, ...]

    def between(self, first: str, second: str) -> PairAgreement | None:
        """The agreement of two principles, whichever is named first."""
        return next((pair for pair in self.pairs if {pair.first, pair.second} == {first, second}), None)


@dataclass(frozen=True, slots=True)
class Principles:
    """Everything about principles; empty where no principle judged anything."""

    axes: dict[str, str]
    uses: tuple[PrincipleUse, ...]
    adherence: tuple[Adherence, ...]
    concord: Concord | None


def read_principles(
    runs: Sequence[Run],
    policies: Sequence[Policy],
    judged: Mapping[str, Mapping[int, Judged]],
    constitutions: Sequence[Constitution],
    bootstrap: Bootstrap,
) -> Principles:
    """From the judgments of every arm, the held-out pairs of its reward model, and principles.jsonl of win rates."""
    axes = {p.id: p.axis for constitution in constitutions for p in constitution.principles}
    place = {name: number for number, name in enumerate(axes)}
    arms, compared = by_arm(runs), _compared(runs, policies)
    uses = [use for arm, own in judged.items() for use in _uses(arm, own, arms[arm], bootstrap)]
    kept = [a for pair, rows in compared.items() for a in adherence(pair, rows, bootstrap)]

    def order(found: PrincipleUse | Adherence) -> tuple[int, str]:
        return place.get(found.principle, len(place)), found.principle

    concord = _of_labels(judged) or _of_policies(compared)
    return Principles(axes, tuple(sorted(uses, key=order)), tuple(sorted(kept, key=order)), concord)


# --- labels, and the reward model -------------------------------------------------------------------------------------


def _uses(arm: str, judged: Mapping[int, Judged], runs: Sequence[Run], bootstrap: Bootstrap) -> Iterator[PrincipleUse]:
    estimator = Estimator(bootstrap, {seed: set(one.prompts.values()) for seed, one in judged.items()})
    decided, margin, gold = (defaultdict[str, Values](lambda: defaultdict(list)) for _ in range(3))
    right, reward = (defaultdict[str, Values](lambda: defaultdict(list)) for _ in range(2))
    deltas = {run.seed: _deltas(run) for run in runs}
    for seed, one in judged.items():
        for principle, key, p in one.verdicts():
            prompt = one.prompt(key)
            decided[principle][seed].append((prompt, float(bool(_side(p)))))
            margin[principle][seed].append((prompt, abs(p - 0.5)))
            if one.gold.get(key, 0.0) != 0:
                hit = 0.5 if p == 0.5 else float((p > 0.5) == (one.gold[key] > 0))
                gold[principle][seed].append((prompt, hit))
            delta = deltas[seed].get((prompt, *key[1:]))
            if delta is not None and _side(p):
                right[principle][seed].append((prompt, 0.5 if delta == 0 else float(delta * _side(p) > 0)))
                reward[principle][seed].append((prompt, delta * _side(p)))
    for principle in margin:
        means = [estimator.mean(values[principle]) for values in (decided, margin, gold)]
        learned = [bootstrap.estimate(_tables(values[principle])) for values in (right, reward)]
        if means[0] is not None and means[1] is not None:
            yield PrincipleUse(arm, principle, means[1].num, means[0], means[1], means[2], *learned)


def _deltas(run: Run) -> dict[tuple[str, int, int], float]:
    """Reward of the first response less that of the second, of the pairs held out, by prompt and pair."""
    rows = run.outputs["reward"].rows("held_out.jsonl") if "reward" in run.outputs else None
    return {(row["prompt_id"], row["first"], row["second"]): row["delta"] for row in rows or ()}


def _tables(values: Values) -> list[Table]:
    return [mean_table(seed, [p for p, _ in rows], [v for _, v in rows]) for seed, rows in values.items()]


# --- policies ---------------------------------------------------------------------------------------------------------


def _compared(runs: Sequence[Run], policies: Sequence[Policy]) -> Compared:
    """The rows of principles.jsonl by the two policies, the later one first, and seed."""
    found: Compared = {}
    for run in runs:
        for stage, output in run.outputs.items():
            rows = output.rows("principles.jsonl") if stage.startswith("win_rate") else None
            pair = judged_pair(stage, run, policies) if rows else None
            if pair is not None:
                first, second, turned = pair
                found.setdefault((first, second), {})[run.seed] = [
                    _turned(row) if turned else row for row in rows or ()
                ]
    return found


def _turned(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "p_a": 1 - row["p_a"]}


def adherence(
    pair: tuple[str, str], by_seed: Mapping[int, list[dict[str, Any]]], bootstrap: Bootstrap
) -> Iterator[Adherence]:
    """What each principle says of two policies, from the rows of principles.jsonl by seed; `net` is a difference within
    prompts.
    """
    prompts = {seed: {row["prompt_id"] for row in rows} for seed, rows in by_seed.items()}
    estimator = Estimator(bootstrap, prompts)
    names = dict.fromkeys(row["principle"] for rows in by_seed.values() for row in rows)
    for name in names:
        sides: Values = {
            seed: [(row["prompt_id"], _side(row["p_a"])) for row in rows if row["principle"] == name]
            for seed, rows in by_seed.items()
        }
        won, lost = (
            estimator.tables({s: [(prompt, float(side == wanted)) for prompt, side in own] for s, own in sides.items()})
            for wanted in (1, -1)
        )
        better, worse, net = bootstrap.estimate(won), bootstrap.estimate(lost), bootstrap.difference(won, lost)
        if better and worse and net:
            yield Adherence(*pair, name, better.num, better, worse, net)


def _side(p: float) -> int:
    """1 or -1 for the response that is decided for, the first or the second; 0 for neither."""
    return 0 if abs(p - 0.5) < DECIDED else 1 if p > 0.5 else -1


# --- principles among themselves --------------------------------------------------------------------------------------


def _of_labels(judged: Mapping[str, Mapping[int, Judged]]) -> Concord | None:
    asked: dict[object, dict[str, int]] = defaultdict(dict)
    for arm, by_seed in judged.items():
        for seed, one in by_seed.items():
            for principle, key, p in one.verdicts():
                asked[arm, seed, key][principle] = _side(p)
    return _concord("the labelled comparisons", asked.values())


def _of_policies(compared: Compared) -> Concord | None:
    asked: dict[object, dict[str, int]] = defaultdict(dict)
    for pair, by_seed in compared.items():
        for seed, rows in by_seed.items():
            for row in rows:
                asked[pair, seed, row["response_id"]][row["principle"]] = _side(row["p_a"])
    return _concord("the responses of the policies to held-out prompts", asked.values())


def _concord(source: str, asked: Iterable[Mapping[str, int]]) -> Concord | None:
    """`asked` has, for every pair of responses, the side of each principle that judged it."""
    same: Counter[tuple[str, str]] = Counter()
    num: Counter[tuple[str, str]] = Counter()
    for sides in asked:
        for a, b in combinations(sorted(name for name, side in sides.items() if side), 2):
            num[a, b] += 1
            same[a, b] += sides[a] == sides[b]
    enough = {pair for pair, count in num.items() if count >= _FEWEST}
    names = tuple(sorted({name for pair in enough for name in pair}))
    if not names:
        return None
    found = tuple(PairAgreement(a, b, same[a, b] / num[a, b], num[a, b]) for a, b in sorted(enough))
    return Concord(source, names, found)
