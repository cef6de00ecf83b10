"""Stage sample: K responses of SL-CAI to every comparison prompt (Bai et al. 2022b, section 4.1)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from cai.engines.base import Engine, EngineFactory, EnginePrompt, Sampling
from cai.engines.journaled import cost_facts, generate_journaled, trimmed, write_failed
from cai.errors import ConfigError, DataError
from cai.models.digest import model_digest
from cai.noise import Ladder, kept_name
from cai.records import read_records, write_json, write_records
from cai.types import Comparison, Prompt, Response

__all__ = ["Sample"]


class Sample:
    """Writes comparisons.jsonl (Comparison) and sample.json (counts).

    Identical responses are kept and counted: that a policy repeats itself is something to know, not to hide. Responses
    that a server failed to give are in failed.jsonl, and their prompts in no comparison. With a `ladder` there is a
    response for each of its noise levels (`num_responses` is not asked), which says its `noise`.
    """

    version: ClassVar[int] = 3

    def __init__(
        self, *, engine: EngineFactory, seed: int, max_new_tokens: int, num_responses: int = 2,
        temperature: float = 1.0, ladder: Ladder | None = None,
    ) -> None:  # fmt: skip
        if num_responses < 2:
            raise ConfigError(f"num_responses: a comparison needs at least 2 responses, got {num_responses}")
        self._factory = engine
        self._seed = seed
        self._ladder = ladder
        self._noise: list[float | None] = (
            [float(level) for level in ladder.levels] if ladder else [None] * num_responses
        )
        self._sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)

    def texts(self) -> dict[str, str]:
        """None: the model is an input."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` and `sft`."""
        prompts = read_records(inputs["data"] / "comparisons.jsonl", Prompt)
        columns: dict[int, list[Response]] = {}
        costs: Counter[str] = Counter()
        models = [self._model(inputs["sft"], noise) for noise in self._noise]
        for model in dict.fromkeys(models):
            engine = self._factory(model=str(model))
            for noise in dict.fromkeys(n for n, own in zip(self._noise, models, strict=True) if own == model):
                numbers = [number for number, own in enumerate(self._noise) if own == noise]
                sampled = self._sample(engine, model, prompts, numbers, noise, output / "responses.journal")
                columns |= {number: sampled[place :: len(numbers)] for place, number in enumerate(numbers)}
            costs.update(cost_facts(engine.usage))
        responses = zip(*(columns[number] for number in range(len(self._noise))), strict=True)
        asked_for = [Comparison(id=p.id, prompt=p, responses=own) for p, own in zip(prompts, responses, strict=True)]
        comparisons = [c for c in asked_for if not any(response.failed for response in c.responses)]
        counts = _counts(comparisons)
        if failed := write_failed(output, [r for c in asked_for for r in c.responses]):
            counts |= {"num_failed": sum(failed.values()), "num_left_out": len(asked_for) - len(comparisons)}
        write_records(output / "comparisons.jsonl", comparisons)
        write_json(output / "sample.json", counts)
        return {**{name: float(count) for name, count in counts.items()}, **costs}

    def _model(self, sft: Path, noise: float | None) -> Path:
        """The folder of the model that answers at a level."""
        if self._ladder is None or self._ladder.kind != "checkpoint" or not noise:
            return sft / "model"
        folder = sft / kept_name(noise)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such model; ladder.levels has {noise:g}, so sft.keep_left must have it too")
        return folder

    def _sample(
        self, engine: Engine, model: Path, prompts: Sequence[Prompt], numbers: Sequence[int], noise: float | None,
        journal: Path,
    ) -> list[Response]:  # fmt: skip
        """Responses `numbers` to every prompt, all at one level, prompt by prompt."""
        sampling, kind = self._sampling, self._ladder.kind if self._ladder else None
        if noise is not None and kind == "temperature":
            sampling = replace(sampling, temperature=noise)
        if noise is not None and kind == "epsilon":
            sampling = replace(sampling, epsilon=noise)
        asked = [prompt for prompt in prompts for _ in numbers]
        sampled = generate_journaled(
            engine,
            [EnginePrompt(turns=prompt.turns) for prompt in asked],
            sampling,
            journal,
            seed=self._seed,
            keys=[f"{prompt.id}/{number}" for prompt in prompts for number in numbers],
            prompt_ids=[prompt.id for prompt in asked],
            model=model_digest(model)[:12],
            title="sample" if noise is None else f"sample, noise {noise:g}",
        )
        return [replace(response, noise=noise) for response in trimmed(sampled)]


def _counts(comparisons: list[Comparison]) -> dict[str, int]:
    pairs = [pair for comparison in comparisons for pair in combinations(comparison.responses, 2)]
    responses = [response for comparison in comparisons for response in comparison.responses]
    return {
        "num_comparisons": len(comparisons),
        "num_pairs": len(pairs),
        "num_identical": sum(a.text == b.text for a, b in pairs),
        "num_cut_off": sum(not response.finished for response in responses),
        "num_empty": sum(not response.text for response in responses),
    }
