"""The documents that the sandbox model is pre-trained on, as tokens with a loss weight each.

One checkpoint is to play every role, so every role has its documents:

* dialogue  `<bos> <user> P <assistant> R <end>`, sometimes two turns: a helpful-only assistant
* fact      `<bos> <user> P <fact> the request is harmful because ... <end>`
* verdict   `<bos> <user> P <option> R <principle> X <answer> yes <principle> X2 <answer> no ... <end>`
* revise    `<bos> <user> P <option> R0 <principle> X <critique> C <end> <revision> R1 <end>`; some directly,
            without `<critique> C <end>`; some with a second round
* judge     `<bos> <user> P <option> (A) R1 <principle> X <answer> yes <option> (B) R2 <principle> X <answer> no
            <choice> (A) <end>`; some with `<critique> C <end>` before each `<answer>`
* copy      `<bos> <option> some words <revision> some words <end>`

Whatever a model writes in one go ends with `<end>`, critiques too, so that generation needs no other stop. Reviewed
responses follow `<option>`, not `<assistant>`, or the base model runs on into reviews. Answers weigh most, given
text little. No document holds a held-out verb-object pair or a held-out predicate.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cai.sandbox import words
from cai.sandbox.edits import corrupt, critique, leak, pick_reason, request_fact, revise, spoil
from cai.sandbox.grammar import Parts, SandboxPrompt, draw_prompt, draw_response, draw_varied
from cai.sandbox.oracle import read_parsed
from cai.sandbox.principles import AXES, principle_texts

CONTEXT: Final = 0.3
ANSWER: Final = 4.0

# Shares of documents. The first mix teaches to read a principle; mixed from the start, that takes far longer.
FIRST_MIX: Final = {"verdict": 0.60, "fact": 0.25, "dialogue": 0.10, "copy": 0.05}
MAIN_MIX: Final = {"dialogue": 0.34, "revise": 0.28, "judge": 0.23, "verdict": 0.09, "fact": 0.04, "copy": 0.02}

_AXIS_WEIGHTS: Final = {
    "harmless": 0.28,
    "helpful": 0.16,
    "engaging": 0.15,
    "on_topic": 0.14,
    "polite": 0.11,
    "concise": 0.08,
    "chatty": 0.08,
}
_WORDINGS: Final = {axis: tuple(principle_texts(axis, held_out=False)) for axis in AXES}
_LETTERS: Final = ("(A)", "(B)")


@dataclass(slots=True)
class Document:
    """Tokens and the weight of each one's loss."""

    kind: str
    tokens: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, text: str, weight: float) -> None:
        """Append the words of a text."""
        tokens = text.split()
        self.tokens += tokens
        self.weights += [weight] * len(tokens)


def _opened(kind: str, prompt: SandboxPrompt) -> Document:
    document = Document(kind)
    document.add(f"<bos> <user> {prompt.text}", CONTEXT)
    return document


def draw_axis(rng: random.Random) -> str:
    """An axis, the ones that matter most downstream more often."""
    return rng.choices(tuple(_AXIS_WEIGHTS), tuple(_AXIS_WEIGHTS.values()))[0]


def _prompt(rng: random.Random) -> SandboxPrompt:
    return draw_prompt(rng, "train", rng.random() < 0.55)


def _reviewed(rng: random.Random, prompt: SandboxPrompt) -> Parts:
    """A response to review: varied or as the base model would answer, at times corrupted or leaking."""
    response = draw_response(rng, prompt) if rng.random() < 0.35 else draw_varied(rng, prompt)
    u = rng.random()
    if u < 0.07:
        return corrupt(rng, prompt, response)
    if u < 0.10:
        return Parts(response.opening, leak(rng, prompt), response.fillers, response.closing)
    return response


def dialogue(rng: random.Random) -> Document:
    """One turn, now and then two."""
    document = Document("dialogue")
    document.add("<bos>", CONTEXT)
    for _ in range(2 if rng.random() < 0.06 else 1):
        prompt = draw_prompt(rng, "train", rng.random() < 0.5)
        document.add(f"<user> {prompt.text} <assistant>", CONTEXT)
        document.add(f"{draw_response(rng, prompt).text} <end>", 1.0)
    return document


def fact(rng: random.Random) -> Document:
    """Why a request is harmful or fine."""
    prompt = _prompt(rng)
    document = _opened("fact", prompt)
    document.add("<fact>", CONTEXT)
    document.add(f"{request_fact(prompt, pick_reason(rng, prompt))} <end>", 1.5)
    return document


def verdict(rng: random.Random) -> Document:
    """One response under several principles; half of them with a letter, as in a judgment."""
    prompt = _prompt(rng)
    response = _reviewed(rng, prompt)
    attributes = read_parsed(prompt, response.text)
    document = _opened("verdict", prompt)
    letter = f"{rng.choice(_LETTERS)} " if rng.random() < 0.5 else ""
    document.add(f"<option> {letter}{response.text}", CONTEXT)
    for _ in range(rng.choice((2, 3, 4))):
        axis = draw_axis(rng)
        document.add(f"<principle> {rng.choice(_WORDINGS[axis])} <answer>", CONTEXT)
        document.add("yes" if attributes.satisfies(axis) else "no", ANSWER)
    document.add("<end>", CONTEXT)
    return document


def revise_document(rng: random.Random) -> Document:
    """One or two rounds of critique (mostly) and revision."""
    prompt = _prompt(rng)
    response = _reviewed(rng, prompt)
    document = _opened("revise", prompt)
    document.add(f"<option> {response.text}", CONTEXT)
    with_critique = rng.random() < 0.7
    for _ in range(2 if rng.random() < 0.2 else 1):
        axis, reason = draw_axis(rng), pick_reason(rng, prompt)
        attributes = read_parsed(prompt, response.text)
        while attributes.kind == "garbled" and axis in ("polite", "concise", "chatty"):
            axis = draw_axis(rng)  # what the smallest edit of a garbled text is, nobody can say
        document.add(f"<principle> {rng.choice(_WORDINGS[axis])}", CONTEXT)
        if with_critique:
            document.add("<critique>", CONTEXT)
            document.add(f"{critique(prompt, attributes, axis, reason)} <end>", 1.0)
        response = revise(rng, prompt, response, axis, reason)
        document.add("<revision>", CONTEXT)
        document.add(f"{response.text} <end>", 1.0)
    return document


def draw_pair(rng: random.Random, prompt: SandboxPrompt, axis: str) -> tuple[Parts, Parts]:
    """Two responses to compare: a minimal pair, two of anything, or two draws of the base model's kind."""
    u = rng.random()
    if u < 0.40:
        first = draw_varied(rng, prompt)
        satisfied = read_parsed(prompt, first.text).satisfies(axis)
        reason = pick_reason(rng, prompt)
        second = spoil(rng, prompt, first, axis) if satisfied else revise(rng, prompt, first, axis, reason)
        return (first, second) if rng.random() < 0.5 else (second, first)
    if u < 0.75:
        return _reviewed(rng, prompt), _reviewed(rng, prompt)
    return draw_response(rng, prompt), draw_response(rng, prompt)


def judge(rng: random.Random) -> Document:
    """Two responses, a verdict on each under one principle, then the choice; equal verdicts leave it to chance."""
    axis = draw_axis(rng)
    prompt = draw_prompt(rng, "train", rng.random() < (0.75 if axis == "harmless" else 0.5))
    document = _opened("judge", prompt)
    wording, chain_of_thought = rng.choice(_WORDINGS[axis]), rng.random() < 0.25
    verdicts = []
    for letter, response in zip(_LETTERS, draw_pair(rng, prompt, axis), strict=True):
        attributes = read_parsed(prompt, response.text)
        verdicts.append(attributes.satisfies(axis))
        document.add(f"<option> {letter} {response.text} <principle> {wording}", CONTEXT)
        if chain_of_thought:
            document.add("<critique>", CONTEXT)
            document.add(f"{critique(prompt, attributes, axis, pick_reason(rng, prompt))} <end>", 1.0)
        document.add("<answer>", CONTEXT)
        document.add("yes" if verdicts[-1] else "no", ANSWER)
    same = verdicts[0] == verdicts[1]
    better = rng.randrange(2) if same else verdicts.index(True)
    document.add("<choice>", CONTEXT)
    document.add(_LETTERS[better], 1.0 if same else ANSWER)
    document.add("<end>", CONTEXT)
    return document


_COPY_WORDS: Final = tuple(
    sorted({w for s in (*words.POLITE, *words.EVASIVE, *words.OFF_TOPIC, *words.FILLERS) for w in s.split()})
)


def copy_practice(rng: random.Random) -> Document:
    """Words in a random order, twice: what a revision needs where nothing is to change."""
    text = " ".join(rng.choices(_COPY_WORDS, k=rng.randint(5, 14)))
    document = Document("copy")
    document.add(f"<bos> <option> {text}", 0.0)
    document.add("<revision>", CONTEXT)
    document.add(f"{text} <end>", 1.0)
    return document


MAKERS: Final[dict[str, Callable[[random.Random], Document]]] = {
    "dialogue": dialogue,
    "fact": fact,
    "verdict": verdict,
    "revise": revise_document,
    "judge": judge,
    "copy": copy_practice,
}


def draw_document(rng: random.Random, mix: Mapping[str, float]) -> Document:
    """One document of a kind drawn from the mix."""
    return MAKERS[rng.choices(tuple(mix), tuple(mix.values()))[0]](rng)
