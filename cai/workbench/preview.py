"""`cai constitution preview`: what a constitution makes of a handful of prompts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from cai.errors import ConfigError
from cai.records import fingerprint, read_records
from cai.types import Prompt, Revision, Turn
from cai.workbench.bench import Asked, Bench, comparison, judged, made, revised, tell_failed

__all__ = ["Preview", "preview"]


@dataclass(frozen=True, slots=True)
class Preview:
    """A prompt, its first response with every step of critique and revision, and what the judge says under every
    principle that applies: the last usable revision shown first, the first response second. No labels where the two
    are the same.
    """

    prompt: Prompt
    steps: tuple[Revision, ...]
    labels: tuple[Asked, ...]


def preview(bench: Bench, texts: Sequence[str], num: int) -> list[Preview]:
    """The prompts `texts`, to which every principle applies, or else `num` of the configuration's own.

    What is shown is what a run would make of these prompts: the same draws of principles, the same seeds. Prompts that
    a server failed to respond to are left out, with a line on stderr.
    """
    if num < 1:
        raise ConfigError(f"--num: must be 1 or more, got {num}")
    if bench.settings.revise.get("num_revisions") == 0:
        raise ConfigError("revise.num_revisions: is 0, so no revision is there to be shown")
    data = made(bench, "data")["data"].path
    prompts = [_given(bench, text) for text in dict.fromkeys(texts)] or _own(bench, data, num)
    steps: dict[str, list[Revision]] = defaultdict(list)
    for revision in read_records(revised(bench, prompts, data, "preview").path / "revisions.jsonl", Revision):
        steps[revision.prompt.id].append(revision)
    answered = [prompt for prompt in prompts if prompt.id in steps]
    tell_failed(len(prompts) - len(answered), len(prompts), "prompts", "preview")
    asked = []
    for prompt in answered:
        first, last = steps[prompt.id][0].response, _latest(steps[prompt.id])
        if first != last:
            pair = comparison(prompt, last, first)
            asked += [(pair, principle) for principle in bench.constitution.for_tags(prompt.tags)]
    labels: dict[str, list[Asked]] = defaultdict(list)
    for answer in judged(bench, asked, "labels"):
        labels[answer.comparison.id].append(answer)
    return [Preview(p, tuple(steps[p.id]), tuple(labels[p.id])) for p in answered]


def _given(bench: Bench, text: str) -> Prompt:
    """A prompt of the user's, with every tag that a principle may ask for."""
    tags = {tag for principle in bench.constitution.principles for tag in principle.applies_to}
    return Prompt(id=f"given-{fingerprint(text)[:12]}", turns=(Turn("user", text),), tags=tuple(sorted(tags)))


def _own(bench: Bench, data: Path, num: int) -> list[Prompt]:
    """The first prompts of the red team and of the comparisons, one from each set of tags in turn; those that no
    principle applies to are passed over.
    """
    queues: dict[tuple[str, ...], list[Prompt]] = defaultdict(list)
    for name in ("red_team", "comparisons"):
        for prompt in read_records(data / f"{name}.jsonl", Prompt):
            if len(queues[prompt.tags]) < num and bench.constitution.for_tags(prompt.tags):
                queues[prompt.tags].append(prompt)
    turns = [prompt for turn in zip_longest(*queues.values()) for prompt in turn if prompt is not None]
    if not turns:
        raise ConfigError(f"{bench.constitution.path}: no principle applies to any prompt of the data; see applies_to")
    return turns[:num]


def _latest(steps: Sequence[Revision]) -> str:
    """What the last step leaves: its revision, or what it worked on where that was rejected."""
    last = steps[-1]
    return last.response if last.rejected else last.revision
