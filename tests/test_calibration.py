"""Calibration figures against numbers worked out by hand."""

import math

import numpy as np
import pytest

from cai.rl import calibration


def test_log_loss_and_its_floor() -> None:
    delta, target = np.array([0.0, 2.0]), np.array([0.5, 1.0])
    assert calibration.log_loss(delta, target) == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)
    assert calibration.entropy_floor(target) == pytest.approx(math.log(2) / 2, abs=1e-9)
    best = np.log(0.3 / 0.7) * np.ones(1)
    assert calibration.log_loss(best, np.array([0.3])) == pytest.approx(calibration.entropy_floor(np.array([0.3])))
    assert calibration.log_loss(np.array([-800.0]), np.array([1.0])) == pytest.approx(800.0)


def test_accuracy_counts_ties_one_half() -> None:
    delta, target = np.array([1.0, -1.0, 0.0, 3.0]), np.array([0.9, 0.6, 1.0, 0.5])
    assert calibration.accuracy(delta, target) == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert calibration.expected_accuracy(delta, target) == pytest.approx((0.9 + 0.4 + 0.5 + 0.5) / 4)


def test_reliability_and_ece_by_hand() -> None:
    p, target = np.array([0.05, 0.15, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])
    bins = calibration.reliability(p, target, num_bins=5)
    assert [(b["low"], b["count"]) for b in bins] == [(0.0, 2), (0.8, 2)]
    assert bins[0]["mean_p"] == pytest.approx(0.1) and bins[0]["mean_target"] == pytest.approx(0.5)
    assert calibration.expected_calibration_error(bins) == pytest.approx((2 * 0.4 + 2 * 0.475) / 4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_of_scaled_logits_is_found(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=500)
    target = 1 / (1 + np.exp(-logits))
    found = calibration.fit_temperature(logits * temperature, target)
    assert found == pytest.approx(temperature, rel=1e-4)
    assert calibration.log_loss(logits * temperature / found, target) <= calibration.log_loss(
        logits * temperature, target
    )


def test_temperature_of_wrong_predictions_is_the_upper_bound() -> None:
    assert calibration.fit_temperature(np.array([1.0, 2.0]), np.array([0.0, 0.0])) == pytest.approx(100.0, rel=1e-6)


def test_calibration_divides_by_the_temperature_of_the_other_half() -> None:
    delta, target = np.array([2.0, 4.0, 2.0, 6.0]), np.array([0.7, 0.9, 0.6, 0.8])
    groups = ["a", "b", "a", "b"]
    odd, even = (
        calibration.fit_temperature(delta[1::2], target[1::2]),
        calibration.fit_temperature(delta[::2], target[::2]),
    )
    expected = delta / np.array([odd, even, odd, even])
    assert calibration.calibrated(delta, target, groups) == pytest.approx(expected)
    assert calibration.calibrated(delta, target, ["a"] * 4) == pytest.approx(delta)  # nothing to learn it from


def test_calibration_helps_an_over_confident_model_on_pairs_it_was_not_fitted_on() -> None:
    logits = np.random.default_rng(0).normal(size=400)
    target, groups = 1 / (1 + np.exp(-logits)), [str(i) for i in range(400)]
    after = calibration.calibrated(4 * logits, target, groups)
    assert calibration.log_loss(after, target) == pytest.approx(calibration.log_loss(logits, target), rel=1e-3)
