"""Real processes, killed while people label."""

from pathlib import Path

import label_server
import pytest


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_or_recorded_twice(tmp_path: Path) -> None:
    """The benchmark, small: real processes, kill -9, double clicks, sessions that end."""
    figures = label_server.run(tmp_path / "labels.db", num_people=5, num_tasks=12, num_kills=3, think=0.05)
    assert figures["num_answers"] == 60 and figures["num_submits"] >= 120
    assert figures["num_unanswered"] > 0, "the kills were felt"
    assert figures["server_seconds_per_submit"] > 0
    assert (figures["num_lost"], figures["num_twice"], figures["num_other_than_meant"]) == (0, 0, 0)
