"""From a `Report` to HTML: the Jinja environment, its filters, and the few table shapes that templates cannot make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cai.report import words
from cai.report.measures import Column, Difference
from cai.report.plots import Curve
from cai.report.principles import Adherence
from cai.report.runs import by_arm
from cai.report.training import Cost
from cai.visible import visible

if TYPE_CHECKING:
    from cai.report.page import Report

__all__ = ["GLYPHS", "environment", "main_columns", "render"]

# The markers of `plots.MARKERS` in their order, as paths in a box of 10 by 10.
GLYPHS: Final = (
    "M5 1a4 4 0 1 0 .01 0z",
    "M1.5 1.5h7v7h-7z",
    "M5 0l5 5-5 5-5-5z",
    "M5 .8l4.6 8H.4z",
    "M5 9.2l4.6-8H.4z",
    "M3.3 0h3.4v3.3H10v3.4H6.7V10H3.3V6.7H0V3.3h3.3z",
    "M2.2 0L5 2.8 7.8 0 10 2.2 7.2 5 10 7.8 7.8 10 5 7.2 2.2 10 0 7.8 2.8 5 0 2.2z",
    "M.8 5l8-4.6v9.2z",
    "M9.2 5l-8-4.6v9.2z",
    "M5 .3l4.8 3.5-1.8 5.7H2L.2 3.8z",
)
_MAX_MAIN: Final = 9  # columns of the main table; further ones go under it


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """One comparison of the differences table: cells in the order of the columns, None where there is no figure."""

    first: str
    second: str
    cells: tuple[Difference | None, ...]


def environment() -> Environment:
    """Jinja with the filters of these pages. Everything is escaped but what is Markup."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "figure": words.figure,
        "cell": words.cell,
        "interval": words.interval,
        "signed_parts": words.signed_parts,
        "plain": words.plain,
        "duration": _duration,
        "compact": _compact,
        "visible": visible,
    }
    return made


def render(report: "Report", pictures: Mapping[str, str]) -> str:
    """The whole page. Everything but `pictures` is escaped."""
    main = main_columns(report)
    further = [c for c in _shown(report) if c not in main]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            pictures={name: Markup(svg) for name, svg in pictures.items()},
            main=main,
            further=further,
            differences=_difference_rows(report, main),
            subtitle=_subtitle(report),
            costs=_cost_groups(report),
            set_groups={s.name: list(dict.fromkeys(g for own in s.groups.values() for g in own)) for s in report.sets},
            rated={name for rating in report.ratings for name in (rating.reference, *rating.elo)},
            glyphs=GLYPHS,
            label_counts=_label_counts(report),
            adherence_pairs=list(dict.fromkeys((a.first, a.second) for a in report.principles.adherence)),
            adherence=_adherence(report),
            ceilings={arm.arm: arm.ceiling for arm in report.labels.arms} if report.labels else {},
            reward_tags=list(dict.fromkeys(tag for model in report.reward_models for tag in model.by_tag)),
            curve_names=_names(report.curves),
            ladder_names=_names(report.ladders),
            stage_names=list(dict.fromkeys(stage for run in report.runs for stage in run.outputs)),
        )
    )


def _names(panels: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Whose lines are in any of the panels."""
    return list(dict.fromkeys(line.name for lines in panels.values() for line in lines))


def main_columns(report: "Report") -> list[Column]:
    """What the main table shows; where nearly nothing is main, the first few. The others come under it."""
    columns = _shown(report)
    main = [c for c in columns if c.is_main]
    return main if len(main) > 3 else columns[:_MAX_MAIN]


def _shown(report: "Report") -> list[Column]:
    return [c for c in report.measures.columns if any(c.name in f for f in report.measures.figures.values())]


def _difference_rows(report: "Report", columns: Sequence[Column]) -> list[DifferenceRow]:
    compared = dict.fromkeys((d.first, d.second) for d in report.measures.differences)
    return [DifferenceRow(a, b, tuple(report.measures.difference(a, b, c.name) for c in columns)) for a, b in compared]


def _subtitle(report: "Report") -> list[str]:
    """What was compared, in a few figures."""
    seeds = report.seeds
    parts = [f"{len(by_arm(report.runs))} arm{'s'[: len(by_arm(report.runs)) != 1]}"]
    parts.append(f"{len(seeds)} seed{'s'[: len(seeds) != 1]} ({', '.join(map(str, seeds))})")
    lengths = [f["length"] for f in report.measures.figures.values() if "length" in f]
    if lengths:
        most = max(lengths, key=lambda e: e.num)
        parts.append(f"{words.plain(most.num, 0)} responses per policy to {words.plain(most.num_prompts, 0)} prompts")
    names = dict.fromkeys(used.constitution.name for used in report.constitutions if used.constitution)
    if names:
        parts.append(f"constitution {words.joined(list(names))}")
    return parts


def _label_counts(report: "Report") -> str:
    """Whether the arms got the same number of labels: a comparison of labelers needs that."""
    counts = {a.arm: a.num_labelled for a in report.labels.arms} if report.labels else {}
    if len(counts) < 2:
        return ""
    if len(set(counts.values())) == 1:
        return "All arms have the same number of labels."
    listed = words.joined([f"{arm} {words.plain(n, 0)}" for arm, n in counts.items()])
    return f"The arms do not have the same number of labels: {listed}."


def _adherence(report: "Report") -> dict[str, dict[tuple[str, str], Adherence]]:
    """By principle and the two policies compared."""
    rows: dict[str, dict[tuple[str, str], Adherence]] = {}
    for found in report.principles.adherence:
        rows.setdefault(found.principle, {})[found.first, found.second] = found
    return rows


def _cost_groups(report: "Report") -> list[tuple[str, dict[str, Cost]]]:
    """Costs by stage, for each set of arms that shares outputs: everybody's first."""
    everybody = set(by_arm(report.runs))
    groups: dict[tuple[str, ...], dict[str, Cost]] = {}
    for cost in report.costs:
        groups.setdefault(cost.arms, {})[cost.stage] = cost
    order = sorted(groups, key=lambda arms: -len(arms))  # stable: single arms stay in their order
    shared = len(everybody) > 1
    return [("Shared" if shared and set(arms) == everybody else ", ".join(arms), groups[arms]) for arms in order]


def _duration(seconds: float) -> str:
    """Seconds as people say them."""
    from cai.progress import duration

    return duration(seconds)


def _compact(value: float) -> str:
    """A count or an amount of work in three digits: 12.3 M, 4.56e15 as 4.56 P."""
    for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}\u202f{letter}"
    return f"{value:.3g}"
