"""Texts for the reader's own eyes, drawn at random by a stated seed: responses, constitutions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cai.constitution import Constitution, load
from cai.errors import ConstitutionError
from cai.records import digest_file, seed_of
from cai.report.measures import KNOWN, scored_rows
from cai.report.runs import Output, Policy, Run
from cai.report.words import figure
from cai.types import Prompt, Response, Turn

__all__ = [
    "Card",
    "Mark",
    "Reply",
    "UsedConstitution",
    "constitutions",
    "sample_sheet",
]

_NUM_CARDS: Final = 8
_UNMARKED: Final = {"helpful", "right_reason", "evasive_share", "finished"}
Kind = Literal["good", "bad", "neutral"]
_KIND: Final[dict[str, Kind]] = {"lower": "bad", "higher": "good", "": "neutral"}


@dataclass(frozen=True, slots=True)
class Mark:
    """What the scorer says of one response, in a word or two."""

    text: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Reply:
    """One policy's response to a card's prompt."""

    policy: str
    series: int
    text: str
    finished: bool
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A prompt and what every policy answered."""

    prompt_id: str
    turns: tuple[Turn, ...]
    tags: tuple[str, ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True, slots=True)
class UsedConstitution:
    """A constitution as runs used it; `templates` are hashes of the prompt templates beside it. `arms` name the part of
    the run in brackets where another constitution is the run's own.

    An old run's file may break rules that came later: then `constitution` is None and `problem` says why.
    """

    arms: tuple[str, ...]
    sha256: str
    constitution: Constitution | None
    problem: str
    templates: dict[str, str]


def sample_sheet(policies: Sequence[Policy], series: Mapping[str, int], seed: int) -> list[Card]:
    """Prompts drawn at random, as many from each tag, with the first response of every policy (of the first seed)."""
    seeds = [set(policy.evaluations) for policy in policies]
    common = set.intersection(*seeds) if seeds else set()
    if not common:
        return []
    first = min(common)
    run = next(run for run in policies[-1].runs if run.seed == first)
    prompts = run.outputs["data"].records("evaluation.jsonl", Prompt) if "data" in run.outputs else None
    replies = {p.name: _replies(p, series[p.name], p.evaluations[first]) for p in policies}
    shared = [p for p in prompts or () if all(p.id in found for found in replies.values())]
    return [
        Card(p.id, p.turns, p.tags, tuple(replies[policy.name][p.id] for policy in policies))
        for p in _drawn(shared, seed)
    ]


def _drawn(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """`_NUM_CARDS` prompts, one from each set of tags in turn."""
    by_tags: dict[tuple[str, ...], list[Prompt]] = defaultdict(list)
    for prompt in sorted(prompts, key=lambda p: seed_of(seed, "sample sheet", p.id)):
        by_tags[prompt.tags].append(prompt)
    queues = [by_tags[tags] for tags in sorted(by_tags)]
    turns = [queue[i] for i in range(_NUM_CARDS) for queue in queues if i < len(queue)]
    return sorted(turns[:_NUM_CARDS], key=lambda p: p.tags)


def _replies(policy: Policy, series: int, output: Output) -> dict[str, Reply]:
    """The first response to each prompt."""
    scores = {row["response_id"]: row for row in scored_rows(output)}
    replies: dict[str, Reply] = {}
    for r in output.records("responses.jsonl", Response) or ():
        marks = tuple(_marks(scores.get(r.id, {})))
        replies.setdefault(r.prompt_id, Reply(policy.name, series, r.text, r.finished, marks))
    return replies


def _marks(row: Mapping[str, Any]) -> list[Mark]:
    """What the scorer says in words: what a response is, and of these two also what it is not."""
    marks = []
    for name, wrong in (("helpful", "not helpful"), ("right_reason", "wrong reason")):
        if row.get(name) is not None:
            marks.append(Mark(name.replace("_", " "), "good") if row[name] else Mark(wrong, "bad"))
    for name, column in KNOWN.items():
        if column.unit == "%" and name not in _UNMARKED and row.get(name):
            marks.append(Mark("evasive" if name == "evasive" else column.label.lower(), _KIND[column.better]))
    if row.get("gold") is not None:
        marks.append(Mark(f"gold score {figure(row['gold'], '')}", "neutral"))
    return marks


def constitutions(runs: Sequence[Run]) -> list[UsedConstitution]:
    """The different constitutions that the runs used, from the copies in their folders."""
    users: dict[str, dict[Path, Run]] = defaultdict(dict)
    for run in runs:
        for path in (run.folder / "constitution.yaml", *sorted(run.folder.glob("constitutions/*.yaml"))):
            if path.is_file():
                users[digest_file(path)][path] = run
    return [_used(sha256, own) for sha256, own in users.items()]


def _used(sha256: str, runs: Mapping[Path, Run]) -> UsedConstitution:
    arms = tuple(
        dict.fromkeys(r.arm if path.stem == "constitution" else f"{r.arm} ({path.stem})" for path, r in runs.items())
    )
    try:
        constitution, problem = load(str(next(iter(runs)))), ""
    except ConstitutionError as error:
        constitution, problem = None, str(error)
    return UsedConstitution(arms, sha256, constitution, problem, _templates(list(runs.values())))


def _templates(runs: Sequence[Run]) -> dict[str, str]:
    """Hashes by file; where runs differ in a file, the later ones have theirs under their arm and seed too."""
    hashes: dict[str, str] = {}
    for run in runs:
        folder = run.folder / "prompts"
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, digest = path.relative_to(folder).as_posix(), digest_file(path)
            if hashes.setdefault(name, digest) != digest:
                hashes[f"{name} ({run.arm}, {run.seed})"] = digest
    return hashes
