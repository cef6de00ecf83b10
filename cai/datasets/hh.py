"""HH-RLHF (Bai et al. 2022a): JSONL rows with `chosen` and `rejected`, two dialogues that differ in the last response.

Every turn is kept: the shared turns are the prompt. Dialogues that cannot serve are left out and counted, by reason.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from cai.datasets.sizes import check_sizes
from cai.errors import DataError, unknown
from cai.records import digest_file, fingerprint, seed_of
from cai.types import Demonstration, Prompt, PromptSets, Turn

__all__ = ["HHData", "hh_comparisons"]

_HEADER: Final = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}
_SETS: Final = ("evaluation", "red_team", "demonstrations", "comparisons", "rl")  # in the order they are filled

NO_RESPONSE: Final = "left_out_no_final_response"
EMPTY_TURN: Final = "left_out_empty_turn"
IDENTICAL: Final = "left_out_identical_responses"
DIFFER_EARLIER: Final = "left_out_differ_before_the_end"
DUPLICATE: Final = "left_out_duplicate_prompt"
APART: Final = "left_out_opening_in_another_set"
JOINED: Final = "dialogues_with_joined_turns"
UNUSED: Final = "unused"
_COUNTS: Final = ("rows", JOINED, NO_RESPONSE, EMPTY_TURN, IDENTICAL, DIFFER_EARLIER, DUPLICATE, APART, UNUSED)


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: Prompt
    chosen: str
    rejected: str


class HHData:
    """Prompt sets and demonstrations (chosen responses) from a file in the format of HH-RLHF, gzipped or not.

    Prompts are shuffled by a hash of their opening turn and `seed`, and dealt to evaluation, red_team, demonstrations,
    comparisons and rl, in this order. Dialogues with the same opening stay in one set, because many of them are one
    conversation at different lengths. `tags` say what the file's prompts are.

    DataError when the file cannot be read, or has too few prompts. The sets' `counts` tell where every other row went:
    `rows` equals the size of the five sets, `unused` and everything that starts with `left_out` together.
    """

    def __init__(
        self, *, path: str, seed: int, num_red_team: int, num_demonstrations: int, num_comparisons: int, num_rl: int,
        num_evaluation: int, tags: Sequence[str] = ("red_team",),
    ) -> None:  # fmt: skip
        self._path = Path(path).expanduser()
        if not self._path.is_file():
            raise DataError(f"{self._path}: no such file; path must be a JSONL file in the format of HH-RLHF")
        self._seed = seed
        self._tags = tuple(tags)
        sizes = (num_evaluation, num_red_team, num_demonstrations, num_comparisons, num_rl)
        self._sizes = dict(zip(_SETS, sizes, strict=True))
        check_sizes({f"num_{name}": size for name, size in self._sizes.items()})

    def texts(self) -> dict[str, str]:
        """The digest of the file."""
        return {f"hh/{self._path.name}": digest_file(self._path)}

    def load(self) -> PromptSets:
        """The sets; the same settings and file give the same sets."""
        counts = Counter(dict.fromkeys(_COUNTS, 0))
        rows: dict[str, _Row] = {}
        for row in _rows(self._path, self._tags, counts):
            counts[DUPLICATE] += row.prompt.id in rows
            rows.setdefault(row.prompt.id, row)
        sets = self._deal(list(rows.values()), counts)
        prompts = {name: tuple(row.prompt for row in members) for name, members in sets.items()}
        return PromptSets(
            red_team=prompts["red_team"],
            demonstrations=tuple(
                Demonstration(id=row.prompt.id, prompt=row.prompt, text=row.chosen, source="chosen")
                for row in sets["demonstrations"]
            ),
            comparisons=prompts["comparisons"],
            rl=prompts["rl"],
            evaluation=prompts["evaluation"],
            counts=dict(counts),
        )

    def _deal(self, rows: list[_Row], counts: Counter[str]) -> dict[str, list[_Row]]:
        """Rows by set: whole openings at a time; what an opening has over when its set is full is left out."""
        order = sorted(rows, key=lambda row: (seed_of(self._seed, "hh", _opening(row)), row.prompt.id))
        groups = [list(group) for _, group in groupby(order, key=_opening)]
        sets: dict[str, list[_Row]] = {}
        for name, size in self._sizes.items():
            members: list[_Row] = []
            while len(members) < size and groups:
                group = groups.pop(0)
                room = size - len(members)
                members += group[:room]
                counts[APART] += len(group[room:])
            sets[name] = members
        counts[UNUSED] = sum(map(len, groups))
        wanted, found = sum(self._sizes.values()), sum(map(len, sets.values()))
        if found < wanted:
            raise DataError(f"{self._path}: {wanted} prompts asked for ({_listed(self._sizes)}), but it has {found}")
        return sets


def hh_comparisons(path: str, tags: Sequence[str] = ("red_team",)) -> list[tuple[Prompt, str, str]]:
    """Every usable row as (prompt, chosen, rejected), in the order of the file; a prompt may be there several times."""
    rows = _rows(Path(path).expanduser(), tuple(tags), Counter())
    return [(row.prompt, row.chosen, row.rejected) for row in rows]


def _rows(path: Path, tags: tuple[str, ...], counts: Counter[str]) -> Iterator[_Row]:
    """The usable rows of a file. `counts` gets `rows`, JOINED and the reasons for which rows are left out."""
    for number, obj in _objects(path):
        where = f"{path}:{number}"
        counts["rows"] += 1
        chosen, rejected = (_dialogue(obj[key], f"{where}: key {key!r}") for key in ("chosen", "rejected"))
        counts[JOINED] += any(
            len(turns) < len(_HEADER.findall(obj[key])) for key, turns in (("chosen", chosen), ("rejected", rejected))
        )
        reason = _unusable(chosen, rejected)
        if reason is not None:
            counts[reason] += 1
            continue
        turns = tuple(chosen[:-1])
        name = fingerprint([[turn.role, turn.content] for turn in turns])[:12]
        prompt = Prompt(id=f"hh-{name}", turns=turns, tags=tags, source=f"{path.name}:{number}")
        yield _Row(prompt, chosen[-1].content, rejected[-1].content)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a JSONL file; gzipped files are known by their first bytes."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _checked(line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _checked(line: bytes, where: str) -> dict[str, Any]:
    try:
        obj = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if not isinstance(obj, dict):
        raise DataError(f"{where}: must be an object with the keys chosen and rejected")
    for key in obj:
        if key not in ("chosen", "rejected"):
            raise DataError(f"{where}: {unknown('key', key, ('chosen', 'rejected'))}")
    for key in ("chosen", "rejected"):
        if not isinstance(obj.get(key), str):
            raise DataError(f"{where}: key {key!r}: {'must be text' if key in obj else 'missing'}")
    return obj


def _dialogue(text: str, where: str) -> list[Turn]:
    """The turns of a dialogue; neighbours of the same role are joined, as chat templates want roles to alternate."""
    before, *rest = _HEADER.split(text)
    if before or not rest or rest[0] != "Human":
        raise DataError(f"{where}: a dialogue must start with two line breaks and 'Human:', got {text[:30]!r}")
    turns = [Turn(_ROLES[header], content.strip()) for header, content in zip(rest[::2], rest[1::2], strict=True)]
    by_role = groupby(turns, key=lambda turn: turn.role)
    return [Turn(role, "\n\n".join(turn.content for turn in same)) for role, same in by_role]


def _unusable(chosen: list[Turn], rejected: list[Turn]) -> str | None:
    """Why a row cannot serve, or None."""
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        return NO_RESPONSE
    if not all(turn.content for turn in (*chosen, *rejected)):
        return EMPTY_TURN
    if chosen == rejected:
        return IDENTICAL
    if chosen[:-1] != rejected[:-1]:
        return DIFFER_EARLIER
    return None


def _opening(row: _Row) -> str:
    return row.prompt.turns[0].content


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
