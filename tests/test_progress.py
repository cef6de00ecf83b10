import sys

import pytest

from cai.progress import PlainBar, duration, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (59.96, "1 min 0 s"),
        (83, "1 min 23 s"),
        (3599.6, "1 h 0 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines_come_now_and_then_with_what_is_left() -> None:
    now = 0.0
    lines: list[str] = []
    bar = PlainBar("labels", 100, "pairs", lines.append, clock=lambda: now)
    for second in range(1, 26):
        now = float(second)
        bar.advance(2, "loss 0.5")
    assert lines == [
        "labels: 20/100 pairs (20 %), about 40.0 s left, loss 0.5\n",
        "labels: 40/100 pairs (40 %), about 30.0 s left, loss 0.5\n",
    ]


def test_unknown_total_counts_only() -> None:
    now = 0.0
    lines: list[str] = []
    bar = PlainBar("reading", None, "rows", lines.append, clock=lambda: now)
    now = 11.0
    bar.advance(7)
    assert lines == ["reading: 7 rows\n"]


@pytest.mark.parametrize("terminal", [False, True])
def test_stdout_stays_clean(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress("labels", total=2, unit="pairs") as bar:
        bar.advance(note="loss 1.0")
        bar.advance()
    assert capsys.readouterr().out == ""
