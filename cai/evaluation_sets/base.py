"""What an evaluation set is: questions from a file, put to a model, and a row of numbers for each."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cai.codec import shown
from cai.datasets.rows import Row, Unusable, read_file
from cai.engines.base import Engine, EnginePrompt
from cai.errors import DataError, EngineError
from cai.progress import progress
from cai.records import Journal

__all__ = [
    "Asked",
    "EvaluationSet",
    "existing",
    "located",
    "log_probabilities",
    "questions",
    "shares",
    "text_of",
    "texts_of",
]

_CHUNK = 64  # questions that are asked together, and kept together


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The model that a set is put to: its engine, its folder or hub id, the seed, and where a journal may be kept."""

    engine: Engine
    model: str
    seed: int
    journal: Path


@runtime_checkable
class EvaluationSet(Protocol):
    """Questions whose answers can be measured."""

    def texts(self) -> dict[str, str]:
        """Hashes of the files that decide the numbers."""
        ...

    def measure(self, asked: Asked) -> list[dict[str, Any]]:
        """A row per question: `item` (unique), `group` (what the file counts it to, or empty) and named numbers, null
        where one does not apply.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Scored:
    """The log-probabilities of one question's options; `id` is the question's place."""

    id: str
    logps: tuple[float, ...]


def existing(path: str) -> Path:
    """The file `path`. Raises DataError when there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"path: {file}: no such file")
    return file


def questions(path: Path) -> Iterator[tuple[str, Row]]:
    """(where, row) of every row. An evaluation set is taken whole, so a row that cannot be read is a DataError."""
    empty = True
    for number, row in read_file(path):
        if isinstance(row, Unusable):
            raise DataError(f"{path}:{number}: {row.reason.replace('_', ' ')}: {row.detail}")
        empty = False
        yield f"{path}:{number}", row
    if empty:
        raise DataError(f"{path}: holds no questions")


def text_of(row: Row, key: str, where: str) -> str:
    """The text under `key`. Raises DataError where there is none."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: key {key!r} must be a text, got {shown(value)}; the row has {', '.join(row)}")
    return value


def texts_of(row: Row, key: str, where: str) -> list[str]:
    """The list of texts under `key`; a cell of a table holds it as JSON. Raises DataError where there is none."""
    value = row.get(key)
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise DataError(f"{where}: key {key!r} must be a list of texts, none of them empty, got {shown(value)}")
    return value


@contextmanager
def located(places: Sequence[str]) -> Iterator[None]:
    """A DataError that begins with the place in its file where an engine says that a prompt cannot be asked; `places`
    are those of the prompts that the engine is given.
    """
    try:
        yield
    except EngineError as error:
        if error.prompt is None:
            raise
        reason = str(error).removeprefix(f"prompt {error.prompt}").lstrip(": ")
        raise DataError(f"{places[error.prompt]}: {reason}") from error


def log_probabilities(
    asked: Asked, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]], places: Sequence[str], *,
    title: str,
) -> list[tuple[float, ...]]:  # fmt: skip
    """`Engine.choice_logprobs` in chunks that are kept in the journal: the same numbers after an interruption. A prompt
    that cannot be asked is named by its place (`located`).
    """
    journal = Journal(asked.journal, _Scored)
    found = {scored.id: scored.logps for scored in journal.read()}
    with progress(title, total=len(prompts), unit="questions") as bar:
        for start in range(0, len(prompts), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(prompts)))
            if any(str(i) not in found for i in chunk):
                with located([places[i] for i in chunk]):
                    logps = asked.engine.choice_logprobs([prompts[i] for i in chunk], [choices[i] for i in chunk])
                scored = [_Scored(str(i), tuple(map(float, own))) for i, own in zip(chunk, logps, strict=True)]
                journal.append(s for s in scored if s.id not in found)
                found |= {s.id: s.logps for s in scored}
            bar.advance(len(chunk))
    return [found[str(i)] for i in range(len(prompts))]


def shares(logps: Sequence[float]) -> list[float]:
    """The log-probabilities as probabilities that sum to 1."""
    top = max(logps)
    weights = [math.exp(logp - top) for logp in logps]
    return [weight / sum(weights) for weight in weights]
