"""An AI labeler and comparisons for it, for tests."""

from pathlib import Path
from typing import Any

from worlds import FunctionEngine, comparison, family, rules

from cai.labelers.ai import AILabeler
from cai.types import Comparison, Judgment


def labeler(folder: Path, engine: FunctionEngine, **settings: Any) -> AILabeler:
    defaults: dict[str, Any] = {"model": "judge", "prompts": family(folder), "constitution": rules(folder), "seed": 3}
    return AILabeler(**{"engine": engine, **defaults, "min_mass": 0.0, **settings})


def only(judgments: Any) -> Judgment:
    (judgment,) = judgments
    assert isinstance(judgment, Judgment)
    return judgment


def random_comparisons(n: int, k: int = 2) -> list[Comparison]:
    tags = (("red_team",), ())
    return [comparison(f"c{i}", *(f"text {i} {j}" for j in range(k)), tags=tags[i % 2]) for i in range(n)]
