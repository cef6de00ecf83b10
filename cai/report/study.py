"""Labelers compared on the same comparisons: `write_study` makes labelers.html, and labelers.json with every figure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from markupsafe import Markup

from cai.codec import to_json
from cai.errors import DataError
from cai.labelers.feedback import own_pairs
from cai.records import write_json, write_text
from cai.report import plots
from cai.report.agreement import (
    Agreement,
    Bin,
    Estimator,
    alpha_of,
    alpha_table,
    calibration,
    calibration_error_of,
    calibration_table,
)
from cai.report.bias import Bias, biases, looks
from cai.report.judged import Judged, judged_by_arm
from cai.report.labels import ArmLabels, labels_of_arms, prompts_by_seed
from cai.report.page import notice_of
from cai.report.plots import Point
from cai.report.runs import Run, by_arm, read_runs
from cai.report.statistics import Bootstrap, Estimate
from cai.types import Comparison

__all__ = ["LabelerStudy", "Spent", "Study", "gather_study", "lacks", "write_study"]

_SEED: Final = 0  # of the bootstrap; stated on the page
_THOUSAND: Final = 1000
_ACROSS: Final = 3  # small pictures side by side


@dataclass(frozen=True, slots=True)
class Spent:
    """What a labeler's labels took, over all seeds. `cost` is in USD and None where nobody charges; `people` are the
    seconds that people said they took, `seconds` those that the stage ran, `at_least` when it was interrupted.
    """

    num_labels: int
    seconds: float
    at_least: bool
    people: float | None
    tokens: float
    flops: float
    cost: float | None

    def per_thousand(self, amount: float | None) -> float | None:
        """Of 1,000 labels."""
        return None if amount is None or not self.num_labels else amount / self.num_labels * _THOUSAND

    @property
    def labels_per_second(self) -> float | None:
        """Throughput; of people, if they told how long they took."""
        seconds = self.people if self.people is not None else self.seconds
        return self.num_labels / seconds if seconds else None


@dataclass(frozen=True, slots=True)
class LabelerStudy:
    """One labeler. `calibration` has the bins of p against gold, for labels that are soft; `num_neutralised` counts the
    judgments of which some text was shown with a marker of the prompt's format broken up.
    """

    labels: ArmLabels
    num_neutralised: int
    place: Bias
    length: Bias
    calibration: tuple[Bin, ...]
    calibration_error: Estimate | None
    spent: Spent


@dataclass(frozen=True, slots=True)
class Study:
    """Everything the page says. `between` has every two labelers; `alpha` is Krippendorff's over all of them;
    `left_out` has the reason why a run is not here, by name.
    """

    title: str
    notice: str
    num_draws: int
    seed: int
    num_comparisons: int
    labelers: tuple[LabelerStudy, ...]
    between: tuple[Agreement, ...]
    alpha: Estimate | None
    series: dict[str, int]
    runs: tuple[Run, ...]
    left_out: dict[str, str]

    @property
    def names(self) -> list[str]:
        """The labelers, as the runs name their arms."""
        return [labeler.labels.arm for labeler in self.labelers]

    def agreement(self, first: str, second: str) -> Agreement | None:
        """Of two labelers, whichever is named first; of one with itself, that of its people."""
        if first == second:
            return next(labeler.labels.people for labeler in self.labelers if labeler.labels.arm == first)
        return next((a for a in self.between if {a.first, a.second} == {first, second}), None)


def write_study(runs: Sequence[Path], output: Path, left_out: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Compare the labelers of finished runs; returns the path of labelers.html.

    `runs` are run folders with a stage `label`, one or more per labeler (seeds), all about the same comparisons.
    DataError for a run without labels, or about others.
    """
    from cai.report.layout import GLYPHS, environment

    study = gather_study(runs, left_out=left_out)
    write_json(output / "labelers.json", _as_json(study))
    page = environment().get_template("study.html.jinja")
    pictures = {name: Markup(svg) for name, svg in _pictures(study).items()}
    write_text(output / "labelers.html", page.render(report=study, pictures=pictures, glyphs=GLYPHS))
    return output / "labelers.html"


def lacks(stages: Collection[str]) -> str:
    """Why a run with these stages has no place in a study; empty when it has."""
    missing = next((stage for stage in ("sample", "label") if stage not in stages), None)
    return f"has no stage {missing!r}; labelers are compared on what they labelled" if missing else ""


def gather_study(
    folders: Sequence[Path], *, left_out: Mapping[str, str] = MappingProxyType({}), num_draws: int = 10_000
) -> Study:
    """Read runs and compute every figure of the study."""
    runs = read_runs(folders)
    _check(runs)
    bootstrap = Bootstrap(num_draws=num_draws, seed=_SEED)
    judged = judged_by_arm(runs)
    estimator = Estimator(bootstrap, prompts_by_seed(judged.values()))
    labels = labels_of_arms(judged, estimator)
    comparisons = {run.seed: _comparisons(run) for run in runs}
    of_arm = by_arm(runs)
    labelers = tuple(_labeler(arm, judged[arm.arm], of_arm[arm.arm], comparisons, estimator) for arm in labels.arms)
    names = [labeler.labels.arm for labeler in labelers]
    return Study(
        title="Labelers compared" if len(names) > 1 else f"The labeler of {names[0]}",
        notice=notice_of(runs),
        num_draws=num_draws,
        seed=_SEED,
        num_comparisons=sum(len(own) for own in comparisons.values()),
        labelers=labelers,
        between=labels.between,
        alpha=_alpha(judged, estimator) if len(names) > 1 else None,
        series={name: 2 + number % (len(plots.COLOURS) - 2) for number, name in enumerate(names)},
        runs=tuple(runs),
        left_out=dict(left_out),
    )


def _check(runs: Sequence[Run]) -> None:
    sampled: dict[int, Run] = {}
    for run in runs:
        if why := lacks(run.outputs):
            raise DataError(f"{run.folder}: {why}")
        first = sampled.setdefault(run.seed, run)
        if first.outputs["sample"].fingerprint != run.outputs["sample"].fingerprint:
            raise DataError(
                f"{run.folder}: labelled other comparisons than {first.folder} (their stages sample differ)"
            )


def _comparisons(run: Run) -> dict[str, Comparison]:
    return {c.id: c for c in run.outputs["sample"].records("comparisons.jsonl", Comparison) or ()}


# --- one labeler ------------------------------------------------------------------------------------------------------


def _labeler(
    labels: ArmLabels, judged: Mapping[int, Judged], runs: Sequence[Run],
    comparisons: Mapping[int, Mapping[str, Comparison]], estimator: Estimator,
) -> LabelerStudy:  # fmt: skip
    seen = {seed: list(looks(comparisons[seed], one.judgments, one.gold)) for seed, one in judged.items()}
    place, length = biases(seen, estimator)
    tables = []
    for seed, one in judged.items():
        rows = [(one.prompt(key), p, one.gold[key] > 0) for key, p in one.labels() if one.gold.get(key, 0.0) != 0]
        is_soft = any(p not in (0.0, 0.5, 1.0) for _, p, _ in rows)
        if is_soft:
            tables.append(calibration_table(seed, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]))
    error = estimator.bootstrap.estimate(tables, calibration_error_of) if tables else None
    bins = tuple(calibration(tables)) if tables else ()
    broken = sum(any("neutralised" in row for row in j.evidence) for one in judged.values() for j in one.judgments)
    return LabelerStudy(labels, broken, place, length, bins, error, _spent(judged, runs))


def _spent(judged: Mapping[int, Judged], runs: Sequence[Run]) -> Spent:
    outputs = [run.outputs["label"] for run in runs]
    parts = [j.provenance for one in judged.values() for j in one.judgments if j.provenance]
    people = [j.provenance.seconds for one in judged.values() for j in one.judgments if j.provenance and j.person]
    costs = [output.facts["cost"] for output in outputs if "cost" in output.facts]
    return Spent(
        num_labels=sum(bool(own_pairs(j)) for one in judged.values() for j in one.judgments),
        seconds=sum(output.seconds for output in outputs),
        at_least=any(output.resumed for output in outputs),
        people=sum(people) if people else None,
        tokens=sum(value for output in outputs for key, value in output.facts.items() if key.endswith("tokens")),
        flops=sum(output.facts.get("flops", 0.0) for output in outputs),
        cost=sum(part.cost for part in parts) if parts and not people else sum(costs) if any(costs) else None,
    )


def _alpha(judged: Mapping[str, Mapping[int, Judged]], estimator: Estimator) -> Estimate | None:
    """Krippendorff's alpha of all labelers, each a rater of every pair that it decided."""
    ratings: dict[int, dict[Any, list[bool]]] = {}
    prompts: dict[tuple[int, Any], str] = {}
    for own in judged.values():
        for seed, one in own.items():
            for key, p in one.labels():
                prompts[seed, key] = one.prompt(key)
                ratings.setdefault(seed, {}).setdefault(key, []).extend([p > 0.5] if p != 0.5 else [])
    tables = [
        alpha_table(seed, [prompts[seed, key] for key in rated], list(rated.values()))
        for seed, rated in ratings.items()
    ]
    return estimator.bootstrap.estimate(tables, alpha_of)


# --- pictures, JSON ---------------------------------------------------------------------------------------------------


def _pictures(study: Study) -> dict[str, str]:
    """SVG by name; a picture whose figures do not exist is left out."""
    drawn = {}
    panels: dict[str, list[Point]] = {"Agrees with gold, %": [], "Shown first wins, %": [], "Longer wins, %": []}
    for labeler in study.labelers:
        name = labeler.labels.arm
        gold = labeler.labels.gold.raw if labeler.labels.gold else None
        for panel, estimate in zip(panels, (gold, labeler.place.share, labeler.length.share), strict=True):
            if estimate is not None:
                panels[panel].append(Point(name, study.series[name], estimate))
    if any(panels.values()):
        shown = {title: points for title, points in panels.items() if points}
        drawn["rates"] = plots.dots(shown, marks=dict.fromkeys(shown, 0.5))
    series = study.series
    drawn["labels"] = "".join(
        plots.histograms({x.labels.arm: (series[x.labels.arm], x.labels.histogram) for x in row})
        for row in _rows(study.labelers)
    )
    reliable = [x for x in study.labelers if x.calibration]
    if reliable:
        drawn["reliability"] = "".join(
            plots.reliability(
                {x.labels.arm: (series[x.labels.arm], x.calibration) for x in row},
                x_label="probability of the label",
                y_label="gold prefers it, share",
            )
            for row in _rows(reliable)
        )
    return drawn


def _rows(labelers: Sequence[LabelerStudy]) -> list[Sequence[LabelerStudy]]:
    """As many as fit side by side, and the rest below them."""
    return [labelers[start : start + _ACROSS] for start in range(0, len(labelers), _ACROSS)]


def _as_json(study: Study) -> dict[str, Any]:
    """The study as plain JSON."""
    labelers = []
    for labeler in study.labelers:
        spent = labeler.spent
        per_thousand = {
            name: spent.per_thousand(getattr(spent, name)) for name in ("seconds", "people", "tokens", "flops", "cost")
        }
        rates = {"per_thousand": per_thousand, "labels_per_second": spent.labels_per_second}
        labelers.append(to_json(labeler) | {"spent": to_json(spent) | rates})
    return {
        "title": study.title,
        "notice": study.notice,
        "bootstrap": {"seed": study.seed, "num_draws": study.num_draws, "level": 0.95},
        "num_comparisons": study.num_comparisons,
        "labelers": labelers,
        "between": [to_json(agreement) for agreement in study.between],
        "alpha": to_json(study.alpha) if study.alpha else None,
        "runs": [
            {"name": run.folder.name, "arm": run.arm, "seed": run.seed, "command": run.command} for run in study.runs
        ],
        "left_out": study.left_out,
    }
