"""Tiny stages, for tests of what is around stages: they count, copy and add numbers in files."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from cai.errors import DataError, LabelsMissing


class Numbers:
    """Writes the numbers below `count` to numbers.txt, each through a journal first."""

    version: ClassVar[int] = 1

    def __init__(self, *, count: int, seed: int, die_at: int | None = None) -> None:
        if count < 0:
            raise DataError(f"count: must be 0 or more, got {count}")
        self.count = count
        self.seed = seed
        self.die_at = die_at

    def texts(self) -> dict[str, str]:
        """None."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Append one number after the other to the journal; dies where it is told to."""
        journal = output / "numbers.journal"
        if self.count == self.die_at:
            os._exit(9)
        done = len(journal.read_text().split()) if journal.exists() else 0
        for number in range(done, self.count):
            if number == int(os.environ.get("TINY_DIE_AT", -1)):
                os._exit(9)
            with journal.open("a") as file:
                file.write(f"{number + self.seed}\n")
        (output / "numbers.txt").write_text(journal.read_text() if journal.exists() else "")
        return {"num_tokens": self.count, "num_computed": self.count - done}


class Sum:
    """Adds up the numbers of its input, times a factor; optionally slowly."""

    version: ClassVar[int] = 1

    def __init__(self, *, factor: float = 1.0, text: str | None = None, seconds: float = 0.0) -> None:
        self.factor = factor
        self.text = text
        self.seconds = seconds

    def texts(self) -> dict[str, str]:
        """The file `text`, when there is one."""
        if self.text is None:
            return {}
        if not Path(self.text).is_file():
            raise DataError(f"{self.text}: no such file")
        return {self.text: Path(self.text).read_text()}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Write sum.txt."""
        time.sleep(self.seconds)
        (folder,) = (path for name, path in inputs.items() if name == "data")
        total = sum(float(line) for line in (folder / "numbers.txt").read_text().split()) * self.factor
        (output / "deep").mkdir(exist_ok=True)
        (output / "deep" / "sum.txt").write_text(str(total))
        return {"total": total, "gap": float("nan")}


class Broken:
    """Fails as no stage should: with an error that is not meant for users."""

    version: ClassVar[int] = 1

    def texts(self) -> dict[str, str]:
        """None."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Never returns."""
        raise ZeroDivisionError("by hand")


class People:
    """Waits for people, unless there are none."""

    version: ClassVar[int] = 1

    def __init__(self, *, who: str) -> None:
        self.who = who

    def texts(self) -> dict[str, str]:
        """None."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Ends at once, one way or the other."""
        if self.who != "nobody":
            raise LabelsMissing(f"{self.who} has not labelled yet")
        return {}


class Echo:
    """Writes its word and what its inputs wrote: `word(name=..., name=...)`, so that the wiring can be read."""

    version: ClassVar[int] = 1

    def __init__(self, *, word: str, labeler: str | None = None) -> None:
        self.word = word if labeler is None else f"{word}:{labeler}"

    def texts(self) -> dict[str, str]:
        """None."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Write echo.txt."""
        heard = ", ".join(f"{name}={(path / 'echo.txt').read_text()}" for name, path in sorted(inputs.items()))
        (output / "echo.txt").write_text(f"{self.word}({heard})")
        return {"num_tokens": len(heard)}
