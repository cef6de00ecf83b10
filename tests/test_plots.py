"""Figures of the report: what they do with names that have no room."""

import pytest

from cai.report.plots import LONGEST, Point, dots
from cai.report.statistics import Estimate


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1, 200])
def test_names_that_are_too_long_for_a_figure_are_cut_in_it(length: int) -> None:
    """Arms of a sweep over many keys; the tables have their names whole."""
    points = [Point(f"{n}{'x' * (length - 1)}", n, Estimate(0.5, 0.4, 0.6, 9, 9)) for n in (0, 1)]
    picture = dots({f"panel {n} {'y' * 60}": points for n in range(4)})
    assert picture.startswith("<svg") and ("…" + "x" * (LONGEST // 2) in picture) == (length > LONGEST)
    assert "x" * length not in picture or length <= LONGEST
    assert "y" * 60 not in picture
