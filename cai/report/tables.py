"""The report's main tables for a paper: Markdown and LaTeX to paste, CSV with every digit."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from cai.report.measures import Column
from cai.report.statistics import Estimate
from cai.report.words import cell, interval, signed_parts

if TYPE_CHECKING:
    from cai.report.page import Report

__all__ = ["paper_tables"]

Row = list[object]  # of the CSV
Grid = tuple[str, list[str], list[list[str]]]  # what the rows are, heads of columns, rows (the first cell is a name)
_FIELDS: Final = ("table", "first", "second", "metric", "unit", "value", "low", "high", "num", "num_prompts", "seeds",
                  "method", "p_value", "p_holm", "p_equal")  # fmt: skip
_LATEX: Final = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "\u2212": "$-$",
                               "\u202f": r"\,", "\u00a0": "~", "√": r"$\sqrt{}$"})  # fmt: skip


def paper_tables(report: "Report", columns: Sequence[Column]) -> dict[str, str]:
    """Text by file name: the figures and differences of `columns`, win rates, and main effects if keys were swept."""
    grids = [grid for grid in (_figures(report, columns), _differences(report, columns), _wins(report),
                               _effects(report, columns)) if grid[2]]  # fmt: skip
    caption = "95 % intervals in brackets."
    return {
        "table.md": "\n\n".join([*(_markdown(grid) for grid in grids), caption]) + "\n",
        "table.tex": "\n\n".join([f"% {caption} Needs booktabs.", *map(_latex, grids)]) + "\n",
        "table.csv": _csv(report),
    }


# --- what is in them --------------------------------------------------------------------------------------------------


def _figures(report: "Report", columns: Sequence[Column]) -> Grid:
    rows = []
    for policy in report.policies:
        figures = report.measures.figures[policy.name]
        rows.append([policy.name, *(_level(figures.get(c.name), c.unit) for c in columns)])
    return "Policy", [_head(c) for c in columns], rows


def _differences(report: "Report", columns: Sequence[Column]) -> Grid:
    pairs = dict.fromkeys((d.first, d.second) for d in report.measures.differences)
    rows = []
    for first, second in pairs:
        found = [report.measures.difference(first, second, c.name) for c in columns]
        shown = [_change(d.estimate if d else None, c.unit) for d, c in zip(found, columns, strict=True)]
        rows.append([f"{first} \u2212 {second}", *shown])
    return "Difference", [_head(c) for c in columns], rows


def _wins(report: "Report") -> Grid:
    rows = [
        [f"{r.first} over {r.second}", r.judge, _level(r.estimate, "%"), _level(r.at_equal_length, "%")]
        for r in report.win_rates
    ]
    return "Win rate", ["Judge", "Wins, ties half", "At equal length"], rows


def _effects(report: "Report", columns: Sequence[Column]) -> Grid:
    rows = [
        [f"{e.key}: {e.level} \u2212 {e.reference}", *(_change(e.columns.get(c.name), c.unit) for c in columns)]
        for e in report.effects
    ]
    return "Main effect", [_head(c) for c in columns], rows


def _head(column: Column) -> str:
    unit = f", {column.unit}" if column.unit and column.unit != "%" else ""
    arrow = {"lower": " ↓", "higher": " ↑", "": ""}[column.better]
    return f"{column.label}{unit}{arrow}"


def _level(estimate: Estimate | None, unit: str) -> str:
    return "" if estimate is None else f"{cell(estimate.value, unit)} {interval(estimate, unit)}"


def _change(estimate: Estimate | None, unit: str) -> str:
    return "" if estimate is None else " ".join(signed_parts(estimate, unit))


# --- how they are written ---------------------------------------------------------------------------------------------


def _markdown(grid: Grid) -> str:
    kind, heads, rows = grid
    escaped = [[text.replace("|", r"\|") for text in row] for row in ([kind, *heads], *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "|---" + "|---:" * len(heads) + "|", *lines[1:]])


def _latex(grid: Grid) -> str:
    kind, heads, rows = grid

    def line(texts: Sequence[str], style: Callable[[str], str]) -> str:
        return " & ".join([_plain(texts[0]), *(style(_plain(text)) for text in texts[1:])]) + r" \\"

    def small(text: str) -> str:
        value, bracket, bounds = text.partition(" [")
        return rf"{value} {{\scriptsize [{bounds}}}" if bracket else text

    head = line([kind, *heads], lambda text: text)
    body = [line(row, small) for row in rows]
    first = rf"\begin{{tabular}}{{l{'r' * len(heads)}}}"
    return "\n".join([first, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _plain(text: str) -> str:
    return text.translate(_LATEX).replace("↓", r"$\downarrow$").replace("↑", r"$\uparrow$")


def _csv(report: "Report") -> str:
    """A row per estimate, rates as shares of 1."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows(_estimates(report))
    return file.getvalue()


def _estimates(report: "Report") -> Iterator[Row]:
    units = {c.name: c.unit for c in report.measures.columns}

    def row(
        table: str, first: str, second: str, metric: str, unit: str, e: Estimate, p_holm: object = ""
    ) -> list[object]:
        seeds = " ".join(map(str, e.per_seed))
        tests = ["" if p is None else p for p in (e.p_value, p_holm, e.p_equal)]
        return [
            table,
            first,
            second,
            metric,
            unit,
            e.value,
            e.low,
            e.high,
            e.num,
            e.num_prompts,
            seeds,
            e.method,
            *tests,
        ]

    for policy in report.policies:
        for metric, e in report.measures.figures[policy.name].items():
            yield row("figure", policy.name, "", metric, units[metric], e)
    for d in report.measures.differences:
        yield row("difference", d.first, d.second, d.column, units[d.column], d.estimate, d.p_holm)
    for rate in report.win_rates:
        yield row("win rate", rate.first, rate.second, rate.judge, "%", rate.estimate)
        if rate.at_equal_length is not None:
            yield row("win rate at equal length", rate.first, rate.second, rate.judge, "%", rate.at_equal_length)
    for rating in report.ratings:
        for name, e in rating.elo.items():
            yield row("elo", name, rating.reference, rating.judge, "", e)
    for effect in report.effects:
        for metric, e in effect.columns.items():
            first, second = f"{effect.key}={effect.level}", f"{effect.key}={effect.reference}"
            yield row("main effect", first, second, metric, units[metric], e, effect.p_holm[metric])
    for one in report.sets:
        for name, figures in one.figures.items():
            for metric, e in figures.items():
                yield row(f"set {one.name}", name, "", metric, "", e)
