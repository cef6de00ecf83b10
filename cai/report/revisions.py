"""Critique and revision: steps drawn at random to be read, how many were of use, and what k revisions change."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cai.records import seed_of
from cai.report.measures import KNOWN, Column
from cai.report.resampling import Table, mean_table
from cai.report.runs import Run, by_arm, stages_of
from cai.report.statistics import Bootstrap, Estimate
from cai.types import Revision, Turn

__all__ = ["Revised", "RevisionScores", "revision_counts", "revision_scores", "revisions"]

_NUM_REVISED: Final = 3
_NUM_COLUMNS: Final = 7


@dataclass(frozen=True, slots=True)
class Revised:
    """Every step of critique and revision of one prompt."""

    arm: str | None
    turns: tuple[Turn, ...]
    steps: tuple[Revision, ...]


@dataclass(frozen=True, slots=True)
class RevisionScores:
    """What the scorer makes of the red team's responses after 0, 1, 2, ... revisions: a row of figures by step."""

    arms: tuple[str, ...]
    columns: tuple[Column, ...]
    steps: dict[int, dict[str, Estimate]]


def revisions(runs: Sequence[Run], seed: int) -> list[Revised]:
    """Prompts drawn at random with all their steps, from the first run of every different revise stage."""
    found = []
    seen: set[str] = set()
    stages = {(run.outputs["revise"].fingerprint, run.seed) for run in runs if "revise" in run.outputs}
    lowest = min((s for _, s in stages), default=0)
    several = len({f for f, s in stages if s == lowest}) > 1
    for run in runs:
        output = run.outputs.get("revise")
        if output is None or run.seed != lowest or output.fingerprint in seen:
            continue
        seen.add(output.fingerprint)
        steps: dict[str, list[Revision]] = defaultdict(list)
        for revision in output.records("revisions.jsonl", Revision) or ():
            steps[revision.prompt.id].append(revision)
        for name in sorted(steps, key=lambda p: seed_of(seed, "revisions", p))[:_NUM_REVISED]:
            own = tuple(sorted(steps[name], key=lambda r: r.step))
            found.append(Revised(run.arm if several else None, own[0].prompt.turns, own))
    return found


def revision_counts(runs: Sequence[Run]) -> dict[str, int]:
    """Steps of all different revise stages: how many, unchanged, not used, and by the reason for that."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for run in runs:
        output = run.outputs.get("revise")
        if output is not None and output.fingerprint not in seen:
            seen.add(output.fingerprint)
            found = output.json("revise.json") or {}
            counts.update({k: found[k] for k in ("num_revisions", "num_unchanged", "num_rejected") if k in found})
            counts.update({f"rejected_{reason}": n for reason, n in (found.get("rejected") or {}).items()})
    return dict(counts)


def revision_scores(runs: Sequence[Run], bootstrap: Bootstrap) -> list[RevisionScores]:
    """From scores.jsonl of every different set of revise stages; arms that share the stages share the figures."""
    found: dict[tuple[tuple[int, str], ...], RevisionScores] = {}
    for arm, own in by_arm(runs).items():
        stages = stages_of(own, "revise")
        key = tuple(sorted((seed, output.fingerprint) for seed, output in stages.items()))
        rows = {seed: scores for seed, output in sorted(stages.items()) if (scores := output.rows("scores.jsonl"))}
        if key in found:
            found[key] = replace(found[key], arms=(*found[key].arms, arm))
        elif rows:
            found[key] = _scores((arm,), rows, bootstrap)
    return list(found.values())


def _scores(arms: tuple[str, ...], rows: Mapping[int, list[dict[str, Any]]], bootstrap: Bootstrap) -> RevisionScores:
    some = next(iter(rows.values()))
    steps: dict[int, dict[str, Estimate]] = {}
    for step in sorted({row["step"] for row in some}):
        own = {seed: [row for row in found if row["step"] == step] for seed, found in rows.items()}
        estimates = {name: bootstrap.estimate(_tables(own, name)) for name in KNOWN if name in some[0]}
        steps[step] = {name: estimate for name, estimate in estimates.items() if estimate is not None}
    measured = [column for name, column in KNOWN.items() if any(name in figures for figures in steps.values())]
    return RevisionScores(arms, tuple(measured[:_NUM_COLUMNS]), steps)


def _tables(rows: Mapping[int, list[dict[str, Any]]], name: str) -> list[Table]:
    def values(own: Sequence[Mapping[str, Any]]) -> list[float]:
        return [math.nan if row[name] is None else row[name] for row in own]

    return [mean_table(seed, [row["prompt_id"] for row in own], values(own)) for seed, own in rows.items()]
