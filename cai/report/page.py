"""Run folders in; one self-contained report.html, the same figures as report.json, and tables for a paper out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cai.records import to_json, write_json, write_text
from cai.report import plots
from cai.report.alike import Differing, differing, judges, unequal
from cai.report.effects import Effect, FrontShare, factors_of, fronts, main_effects
from cai.report.judged import judged_by_arm
from cai.report.labels import Labels, read_labels
from cai.report.limits import absences, limits
from cai.report.measures import PRIMARY, Measures, declared_metrics, measure, measured
from cai.report.plots import Curve, Point
from cai.report.principles import Principles, read_principles
from cai.report.ratings import Ratings, ratings
from cai.report.revisions import Revised, RevisionScores, revision_counts, revision_scores, revisions
from cai.report.runs import MANY, Policy, Run, by_arm, leads_to, num_seeds, policies_of, read_runs
from cai.report.samples import Card, UsedConstitution, constitutions, sample_sheet
from cai.report.sets import SetResult, set_results
from cai.report.statistics import Bootstrap
from cai.report.tables import paper_tables
from cai.report.training import (
    Cost,
    RewardModel,
    checkpoint_choice,
    costs,
    noise_ladders,
    over_optimisation,
    reward_models,
    rl_curves,
)
from cai.report.wins import WinRate, matches, win_rates
from cai.report.words import findings, joined, label_findings

__all__ = ["Report", "as_json", "gather", "pictures", "write"]

_SEED: Final = 0  # of the bootstrap and of what is drawn to be shown; stated on the page
_RATES: Final = ("harmful_compliance", "helpful", "over_refusal", "evasive_share")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page says, before it is laid out. Whatever the runs did not do is empty, None, or in `absent`."""

    title: str
    notice: str
    seed: int
    num_draws: int
    findings: tuple[tuple[str, str], ...]
    runs: tuple[Run, ...]
    policies: tuple[Policy, ...]
    series: dict[str, int]
    measures: Measures
    win_rates: tuple[WinRate, ...]
    ratings: tuple[Ratings, ...]
    sets: tuple[SetResult, ...]
    effects: tuple[Effect, ...]
    fronts: tuple[FrontShare, ...]
    settings: tuple[Differing, ...]
    unequal: tuple[str, ...]
    labels: Labels | None
    ladders: dict[str, list[Curve]]
    reward_models: tuple[RewardModel, ...]
    curves: dict[str, list[Curve]]
    over_optimisation: dict[str, list[Curve]]
    checkpoint_choice: dict[str, list[Curve]]
    samples: tuple[Card, ...]
    constitutions: tuple[UsedConstitution, ...]
    principles: Principles
    revisions: tuple[Revised, ...]
    revised: dict[str, int]
    revision_scores: tuple[RevisionScores, ...]
    costs: tuple[Cost, ...]
    limits: tuple[str, ...]
    absent: dict[str, str]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs."""
        return sorted({run.seed for run in self.runs})

    @property
    def num_seeds(self) -> int:
        """The most that one arm has."""
        return num_seeds(self.runs)


def write(report: Report, output: Path) -> Path:
    """Write report.html, report.json (every figure) and tables to paste (table.md, table.tex, table.csv) into `output`;
    returns the path of report.html.
    """
    from cai.report.layout import main_columns, render

    write_json(output / "report.json", as_json(report))
    for name, text in paper_tables(report, main_columns(report)).items():
        write_text(output / name, text)
    write_text(output / "report.html", render(report, pictures(report)))
    return output / "report.html"


def gather(
    folders: Sequence[Path], *, left_out: Mapping[str, str] = MappingProxyType({}), num_draws: int = 10_000
) -> Report:
    """Read run folders (those with a run.json) and compute every figure of the report.

    Runs are grouped into arms over their seeds; a part that no run has is left out, and the page says so, as it does of
    runs that were `left_out` (by name, with the reason). Raises DataError for a folder that is no run, or files that
    are not as they should.
    """
    runs = read_runs(folders)
    policies, asked = policies_of(runs), policies_of(runs, "sets")
    series = _series(runs, [*policies, *asked])
    bootstrap = Bootstrap(num_draws=num_draws, seed=_SEED)
    found, declared = measured(policies), declared_metrics(runs)
    measures = measure(policies, found, bootstrap, declared)
    effects = main_effects(policies, found, bootstrap, declared)
    settings = differing(runs)
    unlike = unequal(runs, settings, left_out)
    met = matches(runs, policies)
    rates = win_rates(met, bootstrap)
    judged = judged_by_arm(runs)
    told = findings(policies, measures, rates, effects, one_judge=not judges(runs, settings))
    labels = read_labels(judged, bootstrap)
    rewards = reward_models(runs, bootstrap)
    proxies = over_optimisation(runs, series)
    used = constitutions(runs)
    known = [one.constitution for one in used if one.constitution]
    return Report(
        title=_title(policies, runs),
        notice=notice_of(runs),
        seed=_SEED,
        num_draws=num_draws,
        findings=(*told, *label_findings(labels, rewards)),
        runs=tuple(runs),
        policies=tuple(policies),
        series=series,
        measures=measures,
        win_rates=tuple(rates),
        ratings=tuple(ratings(met, policies, bootstrap)),
        sets=tuple(set_results(asked, bootstrap)),
        effects=tuple(effects),
        fronts=tuple(fronts(policies, found, bootstrap)),
        settings=tuple(settings),
        unequal=tuple(unlike),
        labels=labels,
        ladders=noise_ladders(runs, series),
        reward_models=tuple(rewards),
        curves=rl_curves(runs, series),
        over_optimisation=proxies,
        checkpoint_choice=checkpoint_choice(runs, series),
        samples=tuple(sample_sheet(policies, series, _SEED)),
        constitutions=tuple(used),
        principles=read_principles(runs, policies, judged, known, bootstrap),
        revisions=tuple(revisions(runs, _SEED)),
        revised=revision_counts(runs),
        revision_scores=tuple(revision_scores(runs, bootstrap)),
        costs=tuple(costs(runs)),
        limits=(*unlike, *limits(runs, measures, labels, rates, effects)),
        absent=absences(runs, policies, measures, rates),
    )


def _title(policies: Sequence[Policy], runs: Sequence[Run]) -> str:
    trained = [p.name for p in policies if p.kind == "policy"]
    arms = trained or list(by_arm(runs))
    if len(arms) > MANY:
        over = f" over {joined(list(factors_of(policies)))}" if trained else ""
        return f"{len(arms)} arms compared{over}"
    if len(arms) > 1:
        return f"{joined(arms)} compared"
    return f"{trained[0] if trained else 'A run' if len(runs) == 1 else f'{len(runs)} runs'}, step by step"


def notice_of(runs: Sequence[Run]) -> str:
    """What the data of the runs wants said first (the configuration's `notice`), once each."""
    notices = [run.config.get("notice", "") for run in runs]
    return " ".join(dict.fromkeys(notice for notice in notices if notice))


def _series(runs: Sequence[Run], policies: Sequence[Policy]) -> dict[str, int]:
    """Colour and marker by policy or arm name: base 0, SL-CAI 1, arms from 2."""
    names = dict.fromkeys([*(p.name for p in policies if p.kind == "policy"), *(run.arm for run in runs)])
    arms = {arm: 2 + i % (len(plots.COLOURS) - 2) for i, arm in enumerate(names)}
    early = {p.name: {"base": 0, "sl_cai": 1}[p.kind] for p in policies if p.kind != "policy"}
    return arms | early


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(report: Report) -> dict[str, str]:
    """SVG by name; a picture whose figures do not exist is left out."""
    drawn = {}
    rates = _rate_panels(report)
    if rates:
        drawn["rates"] = plots.dots(rates)
    pareto = _pareto(report)
    if pareto:
        drawn["pareto"] = pareto
    if report.win_rates:
        drawn["wins"] = _win_picture(report)
    if report.labels:
        bars = {a.arm: (report.series[a.arm], a.histogram) for a in report.labels.arms}
        drawn["labels"] = plots.histograms(bars)
    if report.ladders:
        drawn["ladders"] = plots.curves(report.ladders, x_label="noise level", columns=2)
    reliable = {m.arm: (report.series[m.arm], m.bins) for m in report.reward_models if m.bins}
    if reliable:
        drawn["reliability"] = plots.reliability(reliable)
    if report.curves:
        drawn["curves"] = plots.curves(report.curves, x_label="update", columns=4)
    if report.over_optimisation:
        drawn["proxies"] = plots.curves(report.over_optimisation, x_label="√KL to SL-CAI", columns=2)
    if report.checkpoint_choice:
        drawn["choice"] = plots.curves(report.checkpoint_choice, x_label="update", columns=2)
    return drawn


def _rate_panels(report: Report) -> dict[str, list[Point]]:
    """The main rates, a panel each."""
    panels = {}
    for column in report.measures.columns:
        if column.name in _RATES:
            found = ((p.name, report.measures.figures[p.name].get(column.name)) for p in report.policies)
            panels[column.label] = [Point(n, report.series[n], e) for n, e in found if e is not None]
    return panels


def _pareto(report: Report) -> str | None:
    """Helpfulness against harmlessness (1 - harmful compliance), if both were measured."""
    points = []
    for policy in report.policies:
        figures = report.measures.figures[policy.name]
        if all(name in figures for name in PRIMARY):
            harm, help_ = (figures[name] for name in PRIMARY)
            points.append(Point(policy.name, report.series[policy.name], help_, harm.complement()))
    if len(points) < 2:
        return None
    path = [(a.name, b.name) for a, b in _steps(report.policies)]
    return plots.scatter(
        points, x_label="helpful on benign prompts, %", y_label="harmless on harmful prompts, %", path=path
    )


def _steps(policies: Sequence[Policy]) -> list[tuple[Policy, Policy]]:
    """Which policy was trained from which."""
    order = {"base": "sl_cai", "sl_cai": "policy"}
    return [(a, b) for a in policies for b in policies if order.get(a.kind) == b.kind and leads_to(a, b)]


def _win_picture(report: Report) -> str:
    panels: dict[str, list[Point]] = {}
    for rate in report.win_rates:
        point = Point(f"{rate.first} over {rate.second}", report.series[rate.first], rate.estimate)
        panels.setdefault(f"By {'the ' if rate.judge != 'gold' else ''}{rate.judge}, %", []).append(point)
    return plots.dots(panels, marks=dict.fromkeys(panels, 0.5))


# --- JSON -------------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON: every figure with its interval, without pictures and layout."""
    plain: dict[str, Any] = {
        "title": report.title,
        "notice": report.notice,
        "bootstrap": {"seed": report.seed, "num_draws": report.num_draws, "level": 0.95},
        "findings": [list(pair) for pair in report.findings],
        "policies": [_policy_json(p) for p in report.policies],
        "measures": to_json(report.measures),
        "win_rates": [to_json(r) for r in report.win_rates],
        "ratings": [to_json(r) for r in report.ratings],
        "sets": [to_json(s) for s in report.sets],
        "effects": [to_json(e) for e in report.effects],
        "fronts": [to_json(f) for f in report.fronts],
        "settings": [to_json(s) for s in report.settings],
        "labels": to_json(report.labels) if report.labels else None,
        "ladders": {t: [to_json(c) for c in lines] for t, lines in report.ladders.items()},
        "reward_models": [to_json(m) for m in report.reward_models],
        "curves": {t: [to_json(c) for c in lines] for t, lines in report.curves.items()},
        "over_optimisation": {t: [to_json(c) for c in lines] for t, lines in report.over_optimisation.items()},
        "checkpoint_choice": {t: [to_json(c) for c in lines] for t, lines in report.checkpoint_choice.items()},
        "samples": [to_json(c) for c in report.samples],
        "constitutions": [_constitution_json(c) for c in report.constitutions],
        "principles": to_json(report.principles),
        "revisions": [to_json(r) for r in report.revisions],
        "revised": report.revised,
        "revision_scores": [to_json(s) for s in report.revision_scores],
        "costs": [to_json(c) for c in report.costs],
        "limits": list(report.limits),
        "absent": report.absent,
        "runs": [_run_json(r) for r in report.runs],
    }
    return plain


def _policy_json(policy: Policy) -> dict[str, Any]:
    return {"name": policy.name, "kind": policy.kind, "arms": list(policy.arms), "seeds": sorted(policy.evaluations)}


def _constitution_json(used: UsedConstitution) -> dict[str, Any]:
    constitution = used.constitution
    return {
        "arms": list(used.arms),
        "sha256": used.sha256,
        "name": constitution.name if constitution else None,
        "principles": [to_json(p) for p in constitution.principles] if constitution else None,
        "problem": used.problem,
        "templates": used.templates,
    }


def _run_json(run: Run) -> dict[str, Any]:
    stages: Mapping[str, str] = {name: output.fingerprint for name, output in run.outputs.items()}
    return {
        "name": run.folder.name,
        "arm": run.arm,
        "seed": run.seed,
        "command": run.command,
        "fingerprints": dict(stages),
        "versions": run.versions,
    }
