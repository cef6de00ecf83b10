"""The report's intervals and tests, on simulated studies whose truth is known: `benchmarks/coverage.py`, with fewer."""

import coverage
import pytest

pytestmark = pytest.mark.slow

NUM = 300  # of 95 %, one sd is 1.3 points; seeds are fixed, so what passes goes on passing


@pytest.mark.parametrize("name", coverage.STUDIES)
def test_intervals_hold_the_truth(name: str) -> None:
    found = coverage.coverage(coverage.STUDIES[name], NUM)
    assert 0.92 <= found["coverage"] <= 0.985, found


@pytest.mark.parametrize("name", coverage.NULLS)
def test_a_null_comparison_is_no_difference(name: str) -> None:
    found = coverage.null_rates(coverage.NULLS[name], NUM)
    assert found["one_metric"] <= 0.09 and found["any_of_two_after_holm"] <= 0.09, found


def test_drawing_seeds_again_would_not_do() -> None:
    """Why intervals over seeds are Student's."""
    found = coverage.coverage(coverage.COMPARED["3 seeds that differ much, seeds then prompts"], NUM)
    assert found["coverage"] < 0.8


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_what_lies_on_the_margin_is_not_called_equal(num_seeds: int) -> None:
    assert coverage.equivalence_errors(num_seeds, NUM) <= 0.09
