"""The sandbox as a plug: a data source and a scorer. Only configuration names them."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

from cai.datasets.sizes import check_sizes
from cai.errors import DataError
from cai.records import digest_file, fingerprint
from cai.sandbox import grammar, oracle, words
from cai.sandbox.grammar import SandboxPrompt, helpful_demonstration, make_prompts
from cai.types import Demonstration, Prompt, PromptSets, Turn

__all__ = ["SandboxData", "SandboxScorer"]


class SandboxData:
    """Prompts of the sandbox. Red-team prompts are harmful, demonstrations benign, the other sets half and half (an odd
    one is benign); evaluation prompts are of verb-object pairs that occur nowhere in training (`split`).
    """

    def __init__(
        self, *, seed: int, num_red_team: int, num_demonstrations: int, num_comparisons: int, num_rl: int,
        num_evaluation: int, split: Literal["dev", "test"] = "test",
    ) -> None:  # fmt: skip
        check_sizes(
            {
                "num_red_team": num_red_team,
                "num_demonstrations": num_demonstrations,
                "num_comparisons": num_comparisons,
                "num_rl": num_rl,
                "num_evaluation": num_evaluation,
            }
        )
        self._seed = seed
        self._num_red_team = num_red_team
        self._num_demonstrations = num_demonstrations
        self._num_comparisons = num_comparisons
        self._num_rl = num_rl
        self._num_evaluation = num_evaluation
        self._split = split

    def load(self) -> PromptSets:
        """The sets; DataError when the sandbox has not that many different prompts."""
        mixed = (self._num_comparisons, self._num_rl)
        harmful = self._draw("train", (self._num_red_team, *(n // 2 for n in mixed)), harmful=True)
        benign = self._draw("train", (self._num_demonstrations, *(n - n // 2 for n in mixed)), harmful=False)
        half = self._num_evaluation // 2
        (harmful_held_out,) = self._draw(self._split, (half,), harmful=True)
        (benign_held_out,) = self._draw(self._split, (self._num_evaluation - half,), harmful=False)
        return PromptSets(
            red_team=_records(harmful[0]),
            demonstrations=tuple(
                Demonstration(id=p.id, prompt=p, text=helpful_demonstration(s, seed=self._seed), source="helpful")
                for s, p in zip(benign[0], _records(benign[0]), strict=True)
            ),
            comparisons=_records(_interleaved(harmful[1], benign[1])),
            rl=_records(_interleaved(harmful[2], benign[2])),
            evaluation=_records(_interleaved(harmful_held_out, benign_held_out)),
        )

    def texts(self) -> dict[str, str]:
        """Hashes of the tables and the grammar that prompts are made from."""
        return _digests(words, grammar)

    def _draw(self, split: grammar.Split, sizes: Sequence[int], *, harmful: bool) -> list[list[SandboxPrompt]]:
        """Prompts of one kind, cut into sets of these sizes: drawn together, so that no two sets share one."""
        try:
            prompts = iter(make_prompts(sum(sizes), split=split, harmful=harmful, seed=self._seed))
        except ValueError as error:
            raise DataError(f"sandbox: {error}") from None
        return [[next(prompts) for _ in range(size)] for size in sizes]


class SandboxScorer:
    """The oracle as a scorer: it reads a prompt's last turn and the response, and knows nothing else."""

    columns: Final = oracle.COLUMNS

    def texts(self) -> dict[str, str]:
        """Hashes of the tables, the grammar (which says what is harmful) and the oracle."""
        return _digests(words, grammar, oracle)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """The oracle's columns (`cai.sandbox.oracle.COLUMNS`); NaN for prompts that are not of the sandbox."""
        return oracle.Oracle().score([prompt.turns[-1].content for prompt in prompts], responses)


def _digests(*modules: ModuleType) -> dict[str, str]:
    files = [Path(str(module.__file__)) for module in modules]
    return {f"sandbox/{file.name}": digest_file(file) for file in files}


def _records(prompts: Sequence[SandboxPrompt]) -> tuple[Prompt, ...]:
    """With ids that follow from the text, so that a prompt has the same id in every set it is ever drawn for."""
    return tuple(
        Prompt(id=f"sandbox-{fingerprint(p.text)[:12]}", turns=(Turn("user", p.text),), tags=p.tags, source="sandbox")
        for p in prompts
    )


def _interleaved(harmful: Sequence[SandboxPrompt], benign: Sequence[SandboxPrompt]) -> list[SandboxPrompt]:
    """One after the other in turn, so that any stretch of the set is balanced."""
    mixed = [prompt for pair in zip(harmful, benign, strict=False) for prompt in pair]
    return mixed + list(benign[len(harmful) :])
