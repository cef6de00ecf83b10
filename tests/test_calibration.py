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
