"""Stage data: the prompts and demonstrations that every other stage reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, Protocol, runtime_checkable

from cai.errors import ConfigError, DataError
from cai.models.digest import model_digest
from cai.records import write_json, write_records
from cai.types import Demonstration, Prompt, PromptSets, Turn

__all__ = ["Data", "DataSource", "check_sets"]

MAX_UNKNOWN: Final = 0.25  # of the prompts' tokens; tokenizers of real models know every word, in pieces


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
    (Demonstration) and data.json (how many of each, and counts of what is in none of them); where the source has rows
    that it could not use, left_out.jsonl (LeftOut).

    Prompts of more than `max_prompt_tokens` tokens of `model`, its chat template included, are left out and counted:
    later stages put critiques and responses behind them, and need room in the model's context.
    """

    version: ClassVar[int] = 1

    def __init__(self, *, source: DataSource, model: str | None = None, max_prompt_tokens: int | None = None) -> None:
        if (model is None) != (max_prompt_tokens is None):
            raise ConfigError(
                f"max_prompt_tokens: goes with model, whose tokens are counted; got {max_prompt_tokens} and {model}"
            )
        if max_prompt_tokens is not None and max_prompt_tokens < 1:
            raise ConfigError(f"max_prompt_tokens: must be at least 1, got {max_prompt_tokens}")
        self._source = source
        self._model = model
        self._limit = max_prompt_tokens

    def texts(self) -> dict[str, str]:
        """What the source depends on, and the model that counts tokens."""
        return self._source.texts() | ({} if self._model is None else {"model": model_digest(self._model)})

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Write the source's sets, once they are known to be sound (`check_sets`)."""
        sets = self._source.load()
        check_sets(sets)
        lengths = self._lengths(sets)
        counts, too_long = {}, {}
        for name in ("red_team", "demonstrations", "comparisons", "rl", "evaluation"):
            records = getattr(sets, name)
            kept = [r for r in records if self._limit is None or lengths[_prompt(r).id] <= self._limit]
            if records and not kept:
                raise DataError(f"{name}: all {len(records)} prompts are longer than max_prompt_tokens {self._limit}")
            write_records(output / f"{name}.jsonl", kept)
            counts[name], too_long[name] = len(kept), len(records) - len(kept)
        write_json(output / "data.json", {**counts, "too_long": too_long, "source": sets.counts})
        if sets.left_out:
            write_records(output / "left_out.jsonl", sets.left_out)
        left_out = sum(count for reason, count in sets.counts.items() if reason.startswith("left_out"))
        lost = {"too_long": sum(too_long.values()), "left_out": left_out}
        told = lost | counts if any(lost.values()) else counts | lost  # a run shows the first few
        return {f"num_{name}": float(count) for name, count in told.items()}

    def _lengths(self, sets: PromptSets) -> dict[str, int]:
        """Tokens of every prompt by its id; nothing without a model. DataError where the model's vocabulary is not that
        of the prompts, before hours go into answers about words that it cannot see.
        """
        if self._model is None:
            return {}
        from cai.models.loading import encode_dialogue, load_tokenizer

        tokenizer = load_tokenizer(self._model)
        prompts = [*sets.red_team, *map(_prompt, sets.demonstrations), *sets.comparisons, *sets.rl, *sets.evaluation]
        lengths, unknown = {}, 0
        for prompt in prompts:
            ids, lengths[prompt.id] = encode_dialogue(tokenizer, prompt.turns)
            unknown += ids.count(tokenizer.unk_token_id)
        num_tokens = sum(lengths.values())
        if unknown > MAX_UNKNOWN * num_tokens:
            raise DataError(
                f"model: {self._model} does not know {unknown / num_tokens:.0%} of the tokens of these prompts, and "
                f"{MAX_UNKNOWN:.0%} is the most that is allowed; choose another (model=hf model.path=FOLDER-OR-HUB-ID)"
            )
        return lengths


def _prompt(record: Prompt | Demonstration) -> Prompt:
    return record.prompt if isinstance(record, Demonstration) else record


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
