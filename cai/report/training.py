"""The reward models and the RL runs: held-out accuracy and calibration, curves by update, and what each stage cost."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cai.report.agreement import Bin, calibration, calibration_error_of, calibration_table
from cai.report.logistic import sigmoid
from cai.report.plots import Curve
from cai.report.resampling import mean_table
from cai.report.runs import Run, by_arm, stages_of
from cai.report.statistics import Bootstrap, Estimate

__all__ = [
    "Cost",
    "RewardModel",
    "checkpoint_choice",
    "costs",
    "noise_ladders",
    "over_optimisation",
    "reward_models",
    "rl_curves",
]


@dataclass(frozen=True, slots=True)
class RewardModel:
    """The reward models of one arm on held-out pairs, over seeds; `by_tag` is accuracy on the pairs of a prompt tag.

    A tie of scores or an even label counts as half right. `log_loss` is in nats; `entropy_floor` is what a model that
    knew the soft labels would have, and `bins` are of the reliability diagram.
    """

    arm: str
    num_pairs: int
    accuracy: Estimate
    by_tag: dict[str, Estimate]
    log_loss: Estimate | None
    entropy_floor: Estimate | None
    calibration_error: Estimate | None
    bins: tuple[Bin, ...]


def reward_models(runs: Sequence[Run], bootstrap: Bootstrap) -> list[RewardModel]:
    """From held_out.jsonl (a row per pair: prompt_id, tags, p, delta) of every arm's reward stage."""
    models = []
    for arm, own in by_arm(runs).items():
        found = {s: output.rows("held_out.jsonl") for s, output in sorted(stages_of(own, "reward").items())}
        pairs = {seed: rows for seed, rows in found.items() if rows}
        if pairs:
            models.append(_reward_model(arm, pairs, bootstrap))
    return models


def _reward_model(arm: str, pairs: Mapping[int, list[dict[str, Any]]], bootstrap: Bootstrap) -> RewardModel:
    def mean(value: Callable[[dict[str, Any]], float], *, is_rate: bool = False) -> Estimate | None:
        return bootstrap.estimate(
            [
                mean_table(s, _prompts(rows), [value(r) for r in rows], is_rate=is_rate, bounds=(0.0, math.inf))
                for s, rows in pairs.items()
            ]
        )

    def right_on(tag: str) -> Estimate | None:
        return mean(lambda row: _right(row) if tag in row["tags"] else math.nan, is_rate=True)

    calibrations = [
        calibration_table(s, _prompts(rows), [float(sigmoid(r["delta"])) for r in rows], [r["p"] for r in rows])
        for s, rows in pairs.items()
    ]
    accuracy = mean(_right, is_rate=True)
    assert accuracy is not None  # there are rows
    tags = sorted({tag for rows in pairs.values() for row in rows for tag in row["tags"]})
    return RewardModel(
        arm=arm,
        num_pairs=sum(map(len, pairs.values())),
        accuracy=accuracy,
        by_tag={tag: found for tag in tags if (found := right_on(tag)) is not None},
        log_loss=mean(lambda r: _cross_entropy(r["p"], float(sigmoid(r["delta"])))),
        entropy_floor=mean(lambda r: _cross_entropy(r["p"], r["p"])),
        calibration_error=bootstrap.estimate(calibrations, calibration_error_of),
        bins=tuple(calibration(calibrations)),
    )


def _prompts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["prompt_id"] for row in rows]


def _right(row: Mapping[str, Any]) -> float:
    product = row["delta"] * (row["p"] - 0.5)
    return 0.5 if product == 0 else float(product > 0)


def _cross_entropy(p: float, q: float) -> float:
    """-p log q - (1 - p) log(1 - q), in nats."""
    return -sum(a * math.log(max(b, 1e-300)) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


def noise_ladders(runs: Sequence[Run], series: Mapping[str, int]) -> dict[str, list[Curve]]:
    """By kind of noise: mean gold score at every level, for arms whose responses were sampled along a ladder."""
    panels: dict[str, list[Curve]] = {}
    for run in runs:
        label = run.outputs["label"].json("label.json") if "label" in run.outputs else None
        levels = ((label or {}).get("noise") or {}).get("levels", [])
        if levels:
            x, y = ([float(level[name]) for level in levels] for name in ("noise", "gold"))
            title = f"Gold score by {run.config['sample']['ladder']['kind']}"
            panels.setdefault(title, []).append(Curve(run.arm, series[run.arm], x, y))
    return panels


# --- RL curves --------------------------------------------------------------------------------------------------------

# What the page shows of curve.jsonl, as it is named there; the scorer's columns are among them.
_PANELS: Final = {
    "score_mean": "Reward-model score",
    "gold": "Gold score",
    "kl": "KL to SL-CAI, nats",
    "entropy": "Entropy, nats per token",
    "num_response_tokens": "Length, tokens",
    "harmful_compliance": "Harmful compliance",
    "helpful": "Helpfulness",
    "explained_variance": "Explained variance",
}


def rl_curves(runs: Sequence[Run], series: Mapping[str, int]) -> dict[str, list[Curve]]:
    """By panel title: a curve for every arm and seed that recorded the quantity. x is the number of the update."""
    panels = {title: list(_curves(runs, series, name)) for name, title in _PANELS.items()}
    return {title: curves for title, curves in panels.items() if curves}


def over_optimisation(runs: Sequence[Run], series: Mapping[str, int]) -> dict[str, list[Curve]]:
    """Proxy (reward-model score) and gold against the square root of KL, where a run recorded both."""
    panels: dict[str, list[Curve]] = {}
    for title, name in (("Reward-model score (proxy)", "score_mean"), ("Gold score", "gold")):
        found = [replace(curve, x=x) for curve, x in _with_root_kl(runs, series, name)]
        if found:
            panels[title] = found
    return panels if len(panels) == 2 else {}


def checkpoint_choice(runs: Sequence[Run], series: Mapping[str, int]) -> dict[str, list[Curve]]:
    """Proxy and gold on the prompts held out of PPO, by update, marked at the update whose policy was kept."""
    panels: dict[str, list[Curve]] = {}
    for title, name in (("Reward-model score (proxy)", "score_mean"), ("Gold score", "gold")):
        for run in runs:
            kept = (run.outputs["rl"].json("ppo.json") or {}).get("kept_update") if "rl" in run.outputs else None
            for curve in _curves([run], series, f"validation_{name}"):
                panels.setdefault(title, []).append(replace(curve, kept=kept))
    return panels


def _curves(runs: Sequence[Run], series: Mapping[str, int], name: str) -> Iterable[Curve]:
    for run in runs:
        rows = _curve_rows(run)
        points = [(float(i), float(row[name])) for i, row in enumerate(rows, 1) if row.get(name) is not None]
        if points:
            yield Curve(run.arm, series[run.arm], [x for x, _ in points], [y for _, y in points])


def _with_root_kl(runs: Sequence[Run], series: Mapping[str, int], name: str) -> Iterable[tuple[Curve, list[float]]]:
    for run in runs:
        rows = [row for row in _curve_rows(run) if row.get(name) is not None and row.get("kl") is not None]
        if rows:
            x = [max(0.0, float(row["kl"])) ** 0.5 for row in rows]
            yield Curve(run.arm, series[run.arm], x, [float(row[name]) for row in rows]), x


def _curve_rows(run: Run) -> list[dict[str, Any]]:
    return (run.outputs["rl"].rows("curve.jsonl") or []) if "rl" in run.outputs else []


# --- cost -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What making one stage took, over the seeds of the arms that share it. `cached`: none of it in this command;
    `at_least`: some of it was interrupted, and what that process spent is not all known.
    """

    stage: str
    arms: tuple[str, ...]
    num_outputs: int
    seconds: float
    tokens: int | None
    flops: float | None
    usd: float | None
    cached: bool
    at_least: bool


def costs(runs: Sequence[Run]) -> list[Cost]:
    """A row per stage and set of arms that share its output; every distinct output counts once."""
    users: dict[tuple[str, str], list[str]] = {}
    outputs: dict[tuple[str, str], Any] = {}
    for run in runs:
        for stage, output in run.outputs.items():
            users.setdefault((stage, output.fingerprint), []).append(run.arm)
            known = outputs.get((stage, output.fingerprint))
            outputs[stage, output.fingerprint] = output if known is None or not output.cached else known
    groups: dict[tuple[str, tuple[str, ...]], list[Any]] = {}
    for key, arms in users.items():
        groups.setdefault((key[0], tuple(dict.fromkeys(arms))), []).append(outputs[key])
    return [
        Cost(
            stage=stage,
            arms=arms,
            num_outputs=len(made),
            seconds=sum(o.seconds for o in made),
            tokens=_total(made, "tokens", int),
            flops=_total(made, "flops", float),
            usd=_total(made, "cost", float),
            cached=all(o.cached for o in made),
            at_least=any(o.resumed for o in made),
        )
        for (stage, arms), made in groups.items()
    ]


def _total(outputs: Sequence[Any], ending: str, kind: type) -> Any:
    """Sum of the facts whose names end so; None when no output has one."""
    found = [value for o in outputs for fact, value in o.facts.items() if fact.endswith(ending)]
    return kind(sum(found)) if found else None
