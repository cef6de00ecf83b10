"""Rows in the formats of others, for tests: written, read, and what is preferred in them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.datasets.labelled import Labelled
from cai.datasets.recorded import Loaded, Recorded

U, A, S = "user", "assistant", "system"


def msg(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def load(folder: Path, rows: Sequence[Any], format: str, name: str = "data.jsonl", **settings: Any) -> Loaded:
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recorded(path=str(path), format=format, **settings).load()


def better(one: Labelled, judgment: int = 0) -> list[tuple[str, str]]:
    """(better, worse) texts of a judgment's pairs."""
    texts = [response.text for response in one.comparison.responses]
    pairs = one.judgments[judgment].pairs
    return sorted((texts[p.first], texts[p.second]) if p.p > 0.5 else (texts[p.second], texts[p.first]) for p in pairs)
