"""What a model of the embedded sandbox is tried on by `sandbox_quality.py`: pairs to judge, responses to revise.

On held-out verb-object pairs and under held-out wordings of the principles; no training document holds either. The
responses are the grammar's or the model's own.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cai.constitution import Principle
from cai.records import seed_of
from cai.sandbox.corpus import draw_pair
from cai.sandbox.grammar import SandboxPrompt, Split, draw_prompt, draw_response, draw_varied
from cai.sandbox.oracle import read_parsed
from cai.sandbox.principles import AXES, principle_texts

__all__ = ["Pair", "Replies", "Reply", "Task", "make_pairs", "make_tasks"]


class Reply(NamedTuple):
    """A response to a prompt."""

    prompt: SandboxPrompt
    text: str


Replies = Sequence[Sequence[Reply]]  # by prompt: the model's samples


class Pair(NamedTuple):
    """Two responses of which one satisfies the principle: `truth` says whether the first one does."""

    prompt: SandboxPrompt
    first: str
    second: str
    principle: Principle
    truth: bool


class Task(NamedTuple):
    """A response to revise under a principle; `good` when it satisfies the principle already."""

    prompt: SandboxPrompt
    response: str
    principle: Principle
    good: bool


def make_pairs(split: Split, num: int, seed: int, replies: Replies | None = None) -> list[Pair]:
    """For each axis up to `num` pairs with differing verdicts, no two of one prompt; of the grammar or of `replies`."""
    found = []
    for axis in AXES:
        rng, seen = random.Random(seed_of(seed, "pairs", axis)), set[str]()
        for first, second in _grammar_pairs(rng, split, axis) if replies is None else _model_pairs(replies):
            truth, other = (read_parsed(r.prompt, r.text).satisfies(axis) for r in (first, second))
            if truth == other or first.prompt.text in seen:
                continue
            seen.add(first.prompt.text)
            found.append(Pair(first.prompt, first.text, second.text, _principle(rng, axis), truth))
            if len(seen) == num:
                break
    return found


def make_tasks(split: Split, num: int, seed: int, replies: Replies | None = None) -> list[Task]:
    """For each axis up to `num` responses that do not satisfy it and as many that do: of the grammar, or of `replies`,
    garbled ones aside (what there is to copy or to change in those, nobody can say).
    """
    found = []
    for axis in AXES:
        rng, left = random.Random(seed_of(seed, "tasks", axis)), {True: num, False: num}
        for prompt, text in _grammar_replies(rng, split, axis) if replies is None else _shuffled(rng, replies):
            read = read_parsed(prompt, text)
            good = read.satisfies(axis)
            if left[good] and read.kind != "garbled":
                left[good] -= 1
                found.append(Task(prompt, text, _principle(rng, axis), good))
            elif not any(left.values()):
                break
    return found


def _principle(rng: random.Random, axis: str) -> Principle:
    """A held-out wording; its id is its statement, and so is the tag of the prompts that it applies to."""
    wording = rng.choice(principle_texts(axis, held_out=True))
    return Principle(id=wording, axis=axis, statement=wording, applies_to=(wording,))


def _prompt(rng: random.Random, split: Split, axis: str) -> SandboxPrompt:
    """Half of them harmful; all of them where responses to others cannot fail."""
    return draw_prompt(rng, split, axis == "harmless" or rng.random() < 0.5)


def _grammar_pairs(rng: random.Random, split: Split, axis: str) -> Iterator[tuple[Reply, Reply]]:
    """As in the corpus, without end."""
    while True:
        prompt = _prompt(rng, split, axis)
        first, second = draw_pair(rng, prompt, axis)
        yield Reply(prompt, first.text), Reply(prompt, second.text)


def _model_pairs(replies: Replies) -> Iterator[tuple[Reply, Reply]]:
    """The first two samples of every prompt, then other two."""
    for i, j in itertools.combinations(range(len(replies[0])), 2):
        yield from ((group[i], group[j]) for group in replies)


def _grammar_replies(rng: random.Random, split: Split, axis: str) -> Iterator[Reply]:
    while True:
        prompt = _prompt(rng, split, axis)
        response = draw_response(rng, prompt) if rng.random() < 0.35 else draw_varied(rng, prompt)
        yield Reply(prompt, response.text)


def _shuffled(rng: random.Random, replies: Replies) -> list[Reply]:
    flat = [reply for group in replies for reply in group]
    return rng.sample(flat, len(flat))
