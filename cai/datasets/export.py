"""A dataset for others: preferences in TRL's format, everything in one Parquet file, and a card that says what it is.

`datasets.load_dataset(FOLDER)` gives the preferences, `load_dataset(FOLDER, "records")` all that is known.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cai.datasets.folder import PARQUET
from cai.datasets.labelled import Labelled
from cai.datasets.parquet import write_parquet, write_preferences
from cai.datasets.splits import held_out
from cai.datasets.summary import summary
from cai.errors import ConfigError, DataError
from cai.labelers.feedback import preference_of
from cai.records import write_text
from cai.types import Judgment, Pair

__all__ = ["export", "preference_rows"]

PREFERENCE: Final = "preference"
# Columns that are left out where they say nothing: of a margin, TRL's reward trainer makes use wherever it is.
_SPARE: Final[Mapping[str, Any]] = {"p_chosen": 1, "weight": 1, "margin": 0, "person": "", "user": "", "tags": []}
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def export(
    labelled: Sequence[Labelled], folder: Path, *, test_share: float = 0.0, keep_even: bool = False, source: str = ""
) -> dict[str, int]:
    """Write preference/train.parquet (and test), records.parquet and README.md; returns what became of the pairs.

    A share `test_share` of the prompts goes to test: whole dialogues, and whole users where they are known. Rows are
    those of `preference_rows`, without columns that say nothing.
    """
    if not 0 <= test_share < 1:
        raise ConfigError(f"test_share: must be 0 or more and below 1, got {test_share}")
    prompts = [one.comparison.prompt for one in labelled]
    out = held_out(prompts, test_share) if test_share else [False] * len(prompts)
    counts: Counter[str] = Counter()
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in ("train", "test")[: 1 + bool(test_share)]}
    for one, held in zip(labelled, out, strict=True):
        rows["test" if held else "train"] += preference_rows(one, counts, keep_even=keep_even)
    for split, own in rows.items():
        if not own:
            raise DataError(f"no pair to export into {split}, of {len(labelled)} comparisons ({_listed(counts)})")
    idle = [name for name, value in _SPARE.items() if all(row[name] == value for own in rows.values() for row in own)]
    for split, own in rows.items():
        counts[f"rows_{split}"] = len(own)
        used = [{name: value for name, value in row.items() if name not in idle} for row in own]
        write_preferences(folder / PREFERENCE / f"{split}.parquet", used)
    write_parquet(folder / PARQUET, labelled)
    write_text(folder / "README.md", _card(labelled, counts, source))
    return dict(counts)


def preference_rows(one: Labelled, counts: Counter[str], *, keep_even: bool = False) -> Iterator[dict[str, Any]]:
    """A row for every pair of every judgment: `prompt` (the dialogue), `chosen` and `rejected` as messages, and
    `p_chosen`, the probability that the chosen one is preferred.

    Of an even pair (p = 1/2) neither is chosen, so it has no row. `keep_even` gives it one, in the order of the
    responses; a trainer that does not look at `p_chosen` would learn from it what nobody said. `counts` gets what has
    no row: `even_pairs_left_out`, `judgments_without_pairs`.
    """
    for judgment in one.judgments:
        counts["judgments_without_pairs"] += not judgment.pairs
        for pair in judgment.pairs:
            if pair.p == 0.5 and not keep_even:
                counts["even_pairs_left_out"] += 1
            else:
                yield _row(one, judgment, pair)


def _row(one: Labelled, judgment: Judgment, pair: Pair) -> dict[str, Any]:
    preference = preference_of(one.comparison, judgment)
    best, worst = (pair.first, pair.second) if pair.p >= 0.5 else (pair.second, pair.first)
    prompt = one.comparison.prompt
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
        **{
            name: [{"role": "assistant", "content": preference.responses[index]}]
            for name, index in (("chosen", best), ("rejected", worst))
        },
        "p_chosen": max(pair.p, 1 - pair.p),
        "weight": pair.weight,
        "margin": pair.margin,
        "comparison_id": one.comparison.id,
        "judgment_id": judgment.id,
        "labeler": judgment.labeler,
        "person": judgment.person,
        "tags": list(prompt.tags),
        "user": prompt.user,
    }


def _card(labelled: Sequence[Labelled], counts: Mapping[str, int], source: str) -> str:
    """The dataset card: what the hub and `datasets` read, and what people should know."""
    splits = [split for split in ("train", "test") if f"rows_{split}" in counts]
    num_rows = sum(counts[f"rows_{split}"] for split in splits)
    size = next((name for limit, name in _SIZES if num_rows < limit), "n>1M")
    labelers = Counter(judgment.labeler for one in labelled for judgment in one.judgments)
    files = Counter(one.comparison.prompt.source.partition(":")[0] or "not known" for one in labelled)
    head = [
        "---",
        "tags: [preference, reward-model]",
        f"size_categories: [{size}]",
        "configs:",
        f"- config_name: {PREFERENCE}",
        "  default: true",
        "  data_files:",
        *(line for split in splits for line in (f"  - split: {split}", f"    path: {PREFERENCE}/{split}.parquet")),
        "- config_name: records",
        "  data_files:",
        f"  - {{split: train, path: {PARQUET}}}",
        "---",
    ]
    table = [
        "| what | number |",
        "|---|---|",
        *(f"| {k.replace('_', ' ')} | {v:,} |" for k, v in _numbers(labelled, counts)),
    ]
    text = f"""
# Preferences{f" from {source}" if source else ""}

Comparisons of responses to the same prompt, with the labels that they were given. The licence and the terms of the
texts are those of where they came from ({_listed(files)}); nothing is said about them here.

{chr(10).join(table)}

Labels were given by: {_listed(labelers)}.

`{PREFERENCE}` is in TRL's preference format, conversational, with the prompt in a column of its own. `p_chosen` (where
labels are soft) is the probability that `chosen` is preferred to `rejected`, `weight` how much the label counts, and
`margin` by how much the chosen one is better. `comparison_id`, `judgment_id`, `labeler` and `person` say whose label it
is: the pairs of a comparison are not independent, so split by prompt, never by row. Abstentions give no row.

`records` ({PARQUET}) has a row per judgment with everything that is known: who, when, what was said, in which order
it was shown, principles, templates, raw evidence and cost. `cai data import` reads the folder back as it was.
"""
    return "\n".join(head) + "\n" + text


def _numbers(labelled: Sequence[Labelled], counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(name, number) for name, number in (*summary(labelled).items(), *counts.items()) if number]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()) if count) or "nothing"
