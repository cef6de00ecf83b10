"""The report's intervals and tests, on simulated studies whose truth is known: `benchmarks/coverage.py`, with fewer."""

import coverage
import pytest
from scipy.stats import binom

pytestmark = pytest.mark.slow

NUM = 300  # of 95 %, one sd is 1.3 points; seeds are fixed, so what passes goes on passing
MOST = float(binom.ppf(0.99, NUM, 0.05)) / NUM  # a test at 5 % errs more often in one of a hundred such simulations


@pytest.mark.parametrize("name", coverage.STUDIES)
def test_intervals_hold_the_truth(name: str) -> None:
    found = coverage.coverage(coverage.STUDIES[name], NUM)
    most = 0.99 if "rate of 99 %" in name else 0.985  # Student's t over three seeds of a rate near its end is wide
    assert 0.92 <= found["coverage"] <= most, found


@pytest.mark.parametrize("name", coverage.NULLS)
def test_a_null_comparison_is_no_difference(name: str) -> None:
    found = coverage.null_rates(coverage.NULLS[name], NUM)
    assert max(found.values()) <= MOST, found


def test_drawing_seeds_again_would_not_do() -> None:
    """Why intervals over seeds are Student's."""
    found = coverage.coverage(coverage.COMPARED["3 seeds that differ much, seeds then prompts"], NUM)
    assert found["coverage"] < 0.8


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_what_lies_on_the_margin_is_not_called_equal(num_seeds: int) -> None:
    """And what is equal is: otherwise a test that never says so would pass."""
    assert coverage.called_equal(num_seeds, coverage.MARGIN, NUM) <= MOST
    assert coverage.called_equal(num_seeds, 0.0, NUM // 3) >= 0.5
