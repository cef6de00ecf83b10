"""The report's figures: matplotlib SVG that takes its colours and fonts from the page, so that dark mode is no matter.

Every colour is drawn as a marker value and replaced by a CSS variable. Nothing in here computes a figure.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cai.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "Point", "curves", "dots", "histograms", "reliability", "scatter"]

# Marker colours; `series` of a policy indexes COLOURS and MARKERS. The page defines the variables for light and dark.
_INK: Final = "#010101"
_MUTED: Final = "#020202"
_GRID: Final = "#030303"
COLOURS: Final = tuple(f"#0500{k:02x}" for k in range(10))
WIDTH: Final = 7.4  # of a figure, in inches
LONGEST: Final = 38  # characters of a name beside a figure: more would leave its panels no room
TITLES: Final = 76  # characters of the titles of a row of panels together, so that they do not overlap
MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p")
_VARIABLES: Final = {_INK: "--ink", _MUTED: "--muted", _GRID: "--rule"} | {
    colour: f"--series-{k}" for k, colour in enumerate(COLOURS)
}
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # names of arms are no formulas
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A policy's (or arm's) place in a figure: its name, series, and one or two estimates."""

    name: str
    series: int
    x: Estimate
    y: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: an arm in one seed. `x` and `y` have the same length; `kept` is the x that is marked, if any."""

    name: str
    series: int
    x: Sequence[float]
    y: Sequence[float]
    kept: float | None = None


def dots(
    panels: Mapping[str, Sequence[Point]], *, factor: float = 100.0, marks: Mapping[str, float] | None = None
) -> str:
    """Side by side, one panel per measure: a dot with its interval for every name, in rows that the panels share.

    `marks` puts a line at a value in the panel of that name (50 % of a win rate).
    """
    rows = list(dict.fromkeys(point.name for points in panels.values() for point in points))
    names = [_fitting(name, LONGEST) for name in rows]
    left = 0.2 + 0.075 * max(map(len, names))
    widest = int((WIDTH - left) / len(panels) / 0.08)  # a character of a title is about 0.08 inches wide

    def draw(axes: "Sequence[Axes]") -> None:
        for ax, (title, points) in zip(axes, panels.items(), strict=True):
            for point in points:
                y = rows.index(point.name)
                _bar(ax, point.x, y, factor, point.series)
            if marks and title in marks:
                ax.axvline(marks[title] * factor, color=_MUTED, linewidth=0.8, dashes=(3, 3))
            ax.set(
                title=_fitting(title, widest), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=names
            )
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", labelcolor=_INK)
            top = max(p.x.high for p in points) * factor
            ax.set_xlim(-0.02 * factor, (1.02 if factor == 100.0 else 1.1) * (100 if factor == 100.0 else top))
            ax.spines["left"].set_visible(False)

    return _svg(draw, columns=len(panels), height=0.6 + 0.27 * len(rows), left=left, bottom=0.28, gap=0.3, share_y=True)


def _fitting(name: str, num: int) -> str:
    """`name`, or its two ends, with at most `num` characters: the tables have it whole."""
    num = max(num, 9)
    return name if len(name) <= num else f"{name[: (num - 1) // 2]}…{name[-(num // 2) :]}"


def _bar(ax: "Axes", estimate: Estimate, y: float, factor: float, series: int) -> None:
    colour = COLOURS[series]
    ends = [estimate.low * factor, estimate.high * factor]
    ax.plot(ends, [y, y], color=colour, linewidth=7, alpha=0.3, solid_capstyle="butt")
    ax.plot(estimate.value * factor, y, MARKERS[series], color=colour, markersize=4.5, markeredgewidth=0)


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, path: Sequence[tuple[str, str]]) -> str:
    """Two rates against each other, with both intervals, each seed as a small dot; `path` joins names by thin lines."""

    def draw(axes: "Sequence[Axes]") -> None:
        (ax,) = axes
        place = {p.name: p for p in points}
        for a, b in path:
            if a in place and b in place:
                ends = place[a], place[b]
                ax.plot(*zip(*(_xy(p) for p in ends), strict=True), color=_GRID, linewidth=1.2, zorder=1)
        for point in points:
            x, y = _xy(point)
            assert point.y is not None
            colour = COLOURS[point.series]
            for xs, ys in (
                ([point.x.low * 100, point.x.high * 100], [y, y]),
                ([x, x], [point.y.low * 100, point.y.high * 100]),
            ):
                ax.plot(xs, ys, color=colour, linewidth=4, alpha=0.3, solid_capstyle="butt")
            for seed in point.x.per_seed.keys() & point.y.per_seed.keys():
                seed_xy = point.x.per_seed[seed] * 100, point.y.per_seed[seed] * 100
                ax.plot(*seed_xy, MARKERS[point.series], color=colour, markersize=2.2, markeredgewidth=0, zorder=2)
            ax.plot(x, y, MARKERS[point.series], color=colour, markersize=6.5, markeredgewidth=0, zorder=3)
        ax.set(xlim=(-2, 104), ylim=(-2, 104), xlabel=x_label, ylabel=y_label)
        ax.set_aspect("equal")

    return _svg(draw, columns=1, height=4.0, width=4.0)


def _xy(point: Point) -> tuple[float, float]:
    assert point.y is not None
    return point.x.value * 100, point.y.value * 100


def curves(panels: Mapping[str, Sequence[Curve]], *, x_label: str, columns: int) -> str:
    """Small multiples: one panel per quantity; each seed a thin line, the mean over an arm's seeds a thick one."""

    def draw(axes: "Sequence[Axes]") -> None:
        for ax, (title, lines) in zip(axes, panels.items(), strict=False):
            for name in dict.fromkeys(line.name for line in lines):
                own = [line for line in lines if line.name == name]
                colour = COLOURS[own[0].series]
                for line in own if len(own) > 1 else ():
                    ax.plot(line.x, line.y, color=colour, linewidth=0.7, alpha=0.4)
                kept = [(x, y) for line in own for x, y in zip(line.x, line.y, strict=True) if x == line.kept]
                ax.plot([x for x, _ in kept], [y for _, y in kept], "o", color=colour, markersize=7, fillstyle="none")
                x, y = _mean_line(own)
                ax.plot(x, y, color=colour, linewidth=1.7)
                if y:
                    ax.plot(x[-1], y[-1], MARKERS[own[0].series], color=colour, markersize=4.5)
            ax.set(title=title)
            ax.margins(x=0.03, y=0.08)
            ax.locator_params(axis="x", integer=all(x == int(x) for line in lines for x in line.x))
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax in axes[max(0, len(panels) - columns) : len(panels)]:
            ax.set_xlabel(x_label)

    rows = -(-len(panels) // columns)
    return _svg(draw, columns=columns, rows=rows, height=1.95 * rows + 0.2, gap=0.5)


def _mean_line(lines: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """The mean at each place along the lines, as far as all of them go."""
    length = min(len(line.y) for line in lines)
    mean = [[sum(getattr(line, a)[i] for line in lines) / len(lines) for i in range(length)] for a in ("x", "y")]
    return mean[0], mean[1]


def reliability(
    panels: Mapping[str, tuple[int, Sequence[Any]]], *, x_label: str = "predicted probability",
    y_label: str = "labelled probability",
) -> str:  # fmt: skip
    """Predicted against actual, one panel per model; bins are `agreement.Bin`s, dots grow with their counts."""

    def draw(axes: "Sequence[Axes]") -> None:
        for ax, (title, (series, bins)) in zip(axes, panels.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, dashes=(3, 3))
            most = max(b.num for b in bins)
            for b in bins:
                colour = COLOURS[series]
                ends = [b.outcome_low, b.outcome_high]
                ax.plot([b.predicted] * 2, ends, color=colour, linewidth=4, alpha=0.3, solid_capstyle="butt")
                size = 3 + 5 * (b.num / most) ** 0.5
                ax.plot(b.predicted, b.outcome, MARKERS[series], color=colour, markersize=size, markeredgewidth=0)
            ax.set(
                title=_fitting(title, TITLES // len(axes)),
                xlim=(0, 1),
                ylim=(0, 1),
                xticks=(0, 0.5, 1),
                yticks=(0, 0.5, 1),
            )
            ax.set(xlabel=x_label, aspect="equal")
        axes[0].set_ylabel(y_label)

    return _svg(draw, columns=len(panels), height=2.75, width=min(7.4, 2.5 * len(panels) + 0.3), gap=0.4)


def histograms(panels: Mapping[str, tuple[int, Sequence[int]]]) -> str:
    """Shares of labels by probability, one panel per arm; each bar is 1 / (number of bars) wide."""

    def draw(axes: "Sequence[Axes]") -> None:
        for ax, (title, (series, bars)) in zip(axes, panels.items(), strict=True):
            width, total = 1 / len(bars), max(1, sum(bars))
            centres = [(k + 0.5) * width for k in range(len(bars))]
            shares = [100 * n / total for n in bars]
            ax.bar(centres, shares, width * 0.86, color=COLOURS[series], linewidth=0)
            ax.set(
                title=_fitting(title, TITLES // len(axes)),
                xlim=(0, 1),
                xticks=(0, 0.5, 1),
                xlabel="probability of the first response",
            )
            ax.grid(axis="x", visible=False)
        axes[0].set_ylabel("% of labels")

    return _svg(draw, columns=len(panels), height=2.0, width=min(7.4, 3.2 * len(panels)), share_y=True, gap=0.3)


# --- from matplotlib to the page --------------------------------------------------------------------------------------


def _svg(
    draw: "Callable[[Sequence[Axes]], None]",
    *,
    columns: int,
    height: float,
    rows: int = 1,
    width: float = WIDTH,
    left: float = 0.45,
    bottom: float = 0.45,
    gap: float = 0.35,
    share_y: bool = False,
) -> str:
    """One <svg> element, the same bytes every time. Sizes, margins and the gap between panels are in inches.

    Margins are fixed rather than fitted, which takes half the time; text is laid out by the browser anyway.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": "cai"}):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        panel = (width - left - 0.15 - gap * (columns - 1)) / columns
        depth = (height - bottom - 0.28 - 0.55 * (rows - 1)) / rows
        axes = figure.subplots(rows, columns, sharey=share_y, squeeze=False, gridspec_kw={
            "left": left / width, "right": 1 - 0.15 / width, "bottom": bottom / height, "top": 1 - 0.28 / height,
            "wspace": gap / panel, "hspace": 0.55 / depth})  # fmt: skip
        draw(list(axes.flat))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(buffer.getvalue())


def _for_page(svg: str) -> str:
    """Drop the XML head and fixed sizes, make ids unique to the picture, let the page's variables give the colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    size = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    width = float(size[1]) if size else 532.8
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(
        r'(<svg [^>]*?) width="[^"]*"', rf'\1 style="width:{width / 72 * 6.6:.1f}rem" aria-hidden="true"', svg, count=1
    )
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return _unique_ids(svg)


def _unique_ids(svg: str) -> str:
    """Two pictures on one page must not share ids; a hash of the picture keeps them apart and stays the same."""
    from hashlib import sha256

    prefix = "f" + sha256(svg.encode()).hexdigest()[:8] + "-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}", svg)
