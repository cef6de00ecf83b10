"""Stage data: the prompts and demonstrations that every other stage reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from cai.errors import DataError
from cai.records import write_json, write_records
from cai.types import Prompt, PromptSets, Turn

__all__ = ["Data", "DataSource", "check_sets"]


@runtime_checkable
class DataSource(Protocol):
    """Where prompts come from."""

    def load(self) -> PromptSets:
        """The prompt sets; the same settings give the same sets."""
        ...

    def texts(self) -> dict[str, str]:
        """Hashes of the files that `load` reads."""
        ...


class Data:
    """Writes red_team.jsonl, comparisons.jsonl, rl.jsonl, evaluation.jsonl (Prompt), demonstrations.jsonl
    (Demonstration) and data.json (how many of each, and the source's own counts of what is in none of them).
    """

    version: ClassVar[int] = 1

    def __init__(self, *, source: DataSource) -> None:
        self._source = source

    def texts(self) -> dict[str, str]:
        """What the source depends on."""
        return self._source.texts()

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Write the source's sets, once they are known to be sound (`check_sets`)."""
        sets = self._source.load()
        check_sets(sets)
        counts = {}
        for name in ("red_team", "demonstrations", "comparisons", "rl", "evaluation"):
            records = getattr(sets, name)
            write_records(output / f"{name}.jsonl", records)
            counts[name] = len(records)
        write_json(output / "data.json", {**counts, "source": sets.counts})
        left_out = sum(count for reason, count in sets.counts.items() if reason.startswith("left_out"))
        facts = {**counts, "left_out": left_out} if sets.counts else counts
        return {f"num_{name}": float(count) for name, count in facts.items()}


def check_sets(sets: PromptSets) -> None:
    """Raise DataError unless every prompt waits for the assistant and no id or dialogue is there twice, in one set or
    across sets: what is trained on must not be what is measured.
    """
    prompts: dict[str, tuple[Prompt, ...]] = {
        "red_team": sets.red_team,
        "demonstrations": tuple(demonstration.prompt for demonstration in sets.demonstrations),
        "comparisons": sets.comparisons,
        "rl": sets.rl,
        "evaluation": sets.evaluation,
    }
    ids: dict[str, str] = {}
    dialogues: dict[tuple[Turn, ...], str] = {}
    for name, members in prompts.items():
        for prompt in members:
            if not prompt.turns or prompt.turns[-1].role != "user":
                role = prompt.turns[-1].role if prompt.turns else "no turn"
                raise DataError(f"{name}: prompt {prompt.id!r} must end with a turn of the user, not {role!r}")
            if prompt.id in ids:
                raise DataError(f"{name}: the id of prompt {prompt.id!r} is already in {ids[prompt.id]}")
            if prompt.turns in dialogues:
                raise DataError(f"{name}: the dialogue of prompt {prompt.id!r} is already in {dialogues[prompt.turns]}")
            ids[prompt.id] = dialogues[prompt.turns] = name
