"""Stage sample without sampling: the responses that a dataset came with, of whatever models or people."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from cai.datasets.recorded import RECORDS, Recorded
from cai.errors import DataError
from cai.records import read_records, write_json, write_records
from cai.types import Comparison, Prompt, Turn

__all__ = ["RecordedComparisons"]


class RecordedComparisons:
    """Writes comparisons.jsonl (Comparison) and sample.json (counts): what the dataset that `cai.datasets.recorded`
    reads has on the prompts of the comparisons set, however much on each, and on no others, so that nothing that is
    trained on is measured on. The label stage gives them their labels (`labeler=recorded`), or new ones.

    The reward model then learns from responses that are not the policy's own; see how it does on those that are.
    """

    version: ClassVar[int] = 1

    def __init__(
        self, *, path: str, format: str = RECORDS, columns: Mapping[str, str] | None = None, screen_pii: bool = False
    ) -> None:
        self._recorded = Recorded(path=path, format=format, columns=columns, screen_pii=screen_pii)

    def texts(self) -> dict[str, str]:
        """The digests of the files."""
        return self._recorded.texts()

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Input `data`. Raises DataError when none of its comparison prompts has recorded responses."""
        prompts = read_records(inputs["data"] / "comparisons.jsonl", Prompt)
        found: dict[tuple[Turn, ...], list[Comparison]] = defaultdict(list)
        for one in self._recorded.load().labelled:
            found[one.comparison.prompt.turns].append(one.comparison)
        own = [found.get(prompt.turns, []) for prompt in prompts]
        if not any(own):
            raise DataError(
                f"{self._recorded.path}: has no responses to any of the {len(prompts)} comparison prompts; "
                "the data stage must read the same dataset (data.source.path)"
            )
        comparisons = [
            replace(comparison, prompt=prompt) for prompt, mine in zip(prompts, own, strict=True) for comparison in mine
        ]
        pairs = [pair for comparison in comparisons for pair in combinations(comparison.responses, 2)]
        counts = {
            "num_comparisons": len(comparisons),
            "num_pairs": len(pairs),
            "num_identical": sum(a.text == b.text for a, b in pairs),
            "num_prompts_without": sum(not mine for mine in own),
        }
        write_records(output / "comparisons.jsonl", comparisons)
        write_json(output / "sample.json", counts)
        return {name: float(count) for name, count in counts.items()}
