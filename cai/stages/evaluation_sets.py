"""Stage evaluation_sets: one model's answers to sets of questions that come with what is right."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cai.engines.base import EngineFactory, check_weights
from cai.engines.journaled import cost_facts
from cai.errors import ConfigError
from cai.evaluation_sets.base import Asked, EvaluationSet
from cai.models.digest import model_digest
from cai.records import write_json, write_rows
from cai.rl.best_of_n import BEST_OF_N

__all__ = ["EvaluationSets"]


class EvaluationSets:
    """Writes <set>.jsonl (a row per question) for every set, and sets.json (what kind each is, how many questions, the
    mean of each column).

    A policy that is the best of n samples is measured as the model that it samples from; sets.json says so
    (`best_of_n`).
    """

    version: ClassVar[int] = 1

    def __init__(self, *, engine: EngineFactory, model: str, seed: int, sets: Mapping[str, EvaluationSet]) -> None:
        if not sets:
            raise ConfigError("sets: needs at least one set, got {}; `evaluation_sets=null` asks for none")
        check_weights(engine)
        self._factory = engine
        self._base = model
        self._seed = seed
        self._sets = sets

    def texts(self) -> dict[str, str]:
        """What the sets depend on, and the hash of the base model, measured when there is no input `model`."""
        own = {f"{name}/{key}": text for name, one in self._sets.items() for key, text in one.texts().items()}
        return own | {"model": model_digest(self._base)}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Input `model`, unless the base model is meant."""
        model = str(inputs["model"] / "model") if "model" in inputs else self._base
        engine = self._factory(model=model)
        told: dict[str, Any] = {}
        facts: dict[str, float] = {}
        for name, one in self._sets.items():
            asked = Asked(engine=engine, model=model, seed=self._seed, journal=output / f"{name}.journal")
            rows = one.measure(asked)
            means = _means(rows)
            told[name] = {"kind": type(one).__name__, "num_items": len(rows), "means": means}
            facts |= {f"{name}_{column}": mean for column, mean in means.items()}
            write_rows(output / f"{name}.jsonl", rows)
        best_of_n = "model" in inputs and (inputs["model"] / BEST_OF_N).is_file()
        write_json(output / "sets.json", {"sets": told, "best_of_n": best_of_n})
        return {**facts, **cost_facts(engine.usage)}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every column of numbers, over the rows where it applies; the perplexity instead where rows have `nats`."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    values = {name: [float(row[name]) for row in rows if row[name] is not None] for name in names}
    if "nats" in values:
        return {"perplexity": math.exp(sum(values["nats"]) / sum(values["weight"]))}
    return {name: sum(own) / len(own) for name, own in values.items()}
