"""Stage sample: K responses of SL-CAI to every comparison prompt (Bai et al. 2022b, section 4.1)."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from cai.engines.base import EngineFactory, EnginePrompt, Sampling
from cai.engines.journaled import cost_facts, generate_journaled, trimmed, write_failed
from cai.errors import ConfigError
from cai.models.digest import model_digest
from cai.records import read_records, write_json, write_records
from cai.types import Comparison, Prompt

__all__ = ["Sample"]


class Sample:
    """Writes comparisons.jsonl (Comparison) and sample.json (counts).

    Identical responses are kept and counted: that a policy repeats itself is something to know, not to hide. Responses
    that a server failed to give are in failed.jsonl, and their prompts in no comparison.
    """

    version: ClassVar[int] = 2

    def __init__(
        self, *, engine: EngineFactory, seed: int, max_new_tokens: int, num_responses: int = 2, temperature: float = 1.0
    ) -> None:
        if num_responses < 2:
            raise ConfigError(f"num_responses: a comparison needs at least 2 responses, got {num_responses}")
        self._factory = engine
        self._seed = seed
        self._num_responses = num_responses
        self._sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)

    def texts(self) -> dict[str, str]:
        """None: the model is an input."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` and `sft`."""
        prompts = read_records(inputs["data"] / "comparisons.jsonl", Prompt)
        model = inputs["sft"] / "model"
        engine = self._factory(model=str(model))
        asked = [prompt for prompt in prompts for _ in range(self._num_responses)]
        sampled = generate_journaled(
            engine,
            [EnginePrompt(turns=prompt.turns) for prompt in asked],
            self._sampling,
            output / "responses.journal",
            seed=self._seed,
            keys=[f"{prompt.id}/{number}" for prompt in prompts for number in range(self._num_responses)],
            prompt_ids=[prompt.id for prompt in asked],
            model=model_digest(model)[:12],
            title="sample",
        )
        responses = iter(trimmed(sampled))
        asked_for = [
            Comparison(id=p.id, prompt=p, responses=tuple(next(responses) for _ in range(self._num_responses)))
            for p in prompts
        ]
        comparisons = [c for c in asked_for if not any(response.failed for response in c.responses)]
        counts = _counts(comparisons)
        if failed := write_failed(output, sampled):
            counts |= {"num_failed": sum(failed.values()), "num_left_out": len(asked_for) - len(comparisons)}
        write_records(output / "comparisons.jsonl", comparisons)
        write_json(output / "sample.json", counts)
        return {**{name: float(count) for name, count in counts.items()}, **cost_facts(engine.usage)}


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
