"""What the benchmarks of speed and memory have in common: turns on one clock, the machine's name, tables, JSON.

Contenders take turns in one process, because the machine's speed drifts over minutes and drifts for all alike. The
clock is processor time with one thread on a CPU: other work on the machine then costs little. The minimum of the
repeats says what the code can do, the median what it usually does.
"""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cai.records import write_json

__all__ = ["gains", "in_turns", "machine", "numbers_tokenizer", "report", "summary", "table"]


def in_turns(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each of `repeats` calls of every contender, taken in turns after one call of each to warm up."""
    clock, wait = _clock()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = clock()
            run()
            wait()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def _clock() -> tuple[Callable[[], float], Callable[[], object]]:
    """The clock, and what to call before reading it."""
    if torch.cuda.is_available():
        return time.perf_counter, torch.cuda.synchronize
    return (time.process_time if torch.get_num_threads() == 1 else time.perf_counter), lambda: None


def summary(seconds: Sequence[float], amount: float) -> dict[str, float]:
    """`amount` (samples, say) per second at the fastest and at the median of the repeats."""
    return {"fastest": amount / min(seconds), "median": amount / statistics.median(seconds)}


def gains(rates: Mapping[str, Mapping[str, float]], base: str) -> dict[str, dict[str, float]]:
    """How many times as fast as `base` each contender is, at its fastest and at its median."""
    return {
        name: {key: value / rates[base][key] for key, value in rate.items()}
        for name, rate in rates.items()
        if name != base
    }


def numbers_tokenizer(vocabulary: int, end: int, pad: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are numbers: trainers want one for its end-of-turn and padding ids."""
    core = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token=f"t{vocabulary - 1}"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=f"t{end}", pad_token=f"t{pad}", padding_side="left")


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    names = [
        line.split(":", 1)[1].strip()
        for line in subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
        if line.startswith("Model name")
    ]
    clock = _clock()[0]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": torch.multiprocessing.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "clock": "processor time" if clock is time.process_time else "wall time",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of numbers under their columns' names, as text."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(map(len, rows))
    lines = [title, "  " + " " * width + "".join(f"{column:>{max(16, len(column) + 2)}}" for column in columns)]
    for name, row in rows.items():
        cells = [(f"{row[column]:,.3f}" if column in row else "").rjust(max(16, len(column) + 2)) for column in columns]
        lines.append(f"  {name:<{width}}{''.join(cells)}")
    return "\n".join(lines)


def report(output: Path | None, settings: Mapping[str, object], figures: Mapping[str, Any]) -> None:
    """Write figures with machine and settings to `output`, if there is one."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {"machine": machine(), "settings": dict(settings), **figures})
