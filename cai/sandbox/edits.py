"""Edits of a response's parts: corrupt its body, make it satisfy an axis with the least change, and say why.

`critique` states the fact that decides an axis, so that a model which writes it first has done the reasoning;
`revise` makes the smallest change that satisfies the axis and copies the response when there is none to make.
"""

import random
from dataclasses import replace
from typing import Final

from cai.sandbox import words
from cai.sandbox.grammar import Parts, SandboxPrompt, comply_body, refuse_body
from cai.sandbox.oracle import Attributes, read_parsed
from cai.sandbox.words import OBJECTS, STEPS

_KIND_FACT: Final = {
    "comply": "the response gives steps",
    "refuse": "the response refuses",
    "evade": "the response is evasive",
    "off_topic": "the response is about something else",
    "garbled": "the response is garbled",
}
_TONE_FACT: Final = {
    "polite": "the opening is polite",
    "rude": "the opening is rude",
    "plain": "there is no opening",
}
# The words that facts and critiques are made of, beside the reasons; the tokenizer collects its vocabulary here.
FACTS: Final = (
    *_KIND_FACT.values(),
    *_TONE_FACT.values(),
    "the request is harmful because",
    "the request is fine because",
    "and the response gives steps but the response gives no steps",
    "there is filler there is no filler",
    ", so keep it . , so change it .",
)
_ALL_OBJECTS: Final = tuple(name for group in OBJECTS.values() for name in group)
_ALL_STEPS: Final = tuple(step for steps in STEPS.values() for step in steps)


def pick_reason(rng: random.Random, prompt: SandboxPrompt) -> str:
    """A reason that is right for the request: why it is harmful, or why it is fine."""
    return rng.choice(prompt.reasons) if prompt.harmful else prompt.fine_reason


def request_fact(prompt: SandboxPrompt, reason: str) -> str:
    """What there is to say about the request, with a given reason."""
    return f"the request is {'harmful' if prompt.harmful else 'fine'} because {reason}"


def critique(prompt: SandboxPrompt, attributes: Attributes, axis: str, reason: str) -> str:
    """One sentence: the fact that decides the axis, and whether the response has to change."""
    satisfied = attributes.satisfies(axis)
    if axis == "harmless":
        steps = "and the response gives steps" if attributes.gives_steps else "but the response gives no steps"
        fact = request_fact(prompt, reason) + (f" {steps}" if prompt.harmful else "")
    elif axis == "polite":
        fact = _TONE_FACT[attributes.tone]
    elif axis in ("concise", "chatty"):
        fact = "there is filler" if attributes.num_fillers else "there is no filler"
    else:
        fact = _KIND_FACT[attributes.kind]
        if axis != "helpful" and not satisfied:
            fact = f"{fact} and {request_fact(prompt, reason)}"
    return f"{fact} , so {'keep' if satisfied else 'change'} it ."


def _refusal(rng: random.Random, prompt: SandboxPrompt, reason: str) -> str:
    return f"{rng.choice(words.REFUSALS)} {reason} . {rng.choice(words.ALTERNATIVES)}"


def revise(rng: random.Random, prompt: SandboxPrompt, response: Parts, axis: str, reason: str) -> Parts:
    """The smallest edit that satisfies the axis; the response itself when it does already."""
    if read_parsed(prompt, response.text).satisfies(axis):
        return response
    if axis == "harmless":
        return replace(response, body=_refusal(rng, prompt, reason))
    if axis == "helpful":
        return replace(response, body=comply_body(rng, prompt))
    if axis == "polite":
        return replace(response, opening=rng.choice(words.POLITE))
    if axis == "concise":
        return replace(response, fillers=())
    if axis == "chatty":
        return replace(response, fillers=(rng.choice(words.FILLERS),))
    body = _refusal(rng, prompt, reason) if prompt.harmful else comply_body(rng, prompt)
    return replace(response, body=body)


def spoil(rng: random.Random, prompt: SandboxPrompt, response: Parts, axis: str) -> Parts:
    """The opposite of `revise`: a small edit after which the axis fails, where it can fail at all."""
    if axis == "harmless" and prompt.harmful:
        return replace(response, body=comply_body(rng, prompt))
    if axis == "helpful":
        return replace(response, body=refuse_body(rng, prompt, right=True))
    if axis == "engaging":
        return replace(response, body=rng.choice(words.EVASIVE))
    if axis == "on_topic":
        return replace(response, body=rng.choice(words.OFF_TOPIC))
    if axis == "polite":
        return replace(response, opening=rng.choice(("", rng.choice(words.RUDE))))
    if axis == "concise":
        return replace(response, fillers=(rng.choice(words.FILLERS),))
    return replace(response, fillers=())


def corrupt(rng: random.Random, prompt: SandboxPrompt, response: Parts) -> Parts:
    """A body that is off in the way a small model's is: one wrong object or step, a slip, a cut, a mixture."""
    tokens = response.body.split()
    at = rng.randrange(len(tokens))
    way = rng.randrange(6)
    if way == 0:
        other = rng.choice([o for o in _ALL_OBJECTS if o != prompt.object])
        form = comply_body(rng, prompt)
        return replace(response, body=form.replace(f"the {prompt.object}", f"the {other}"))
    if way == 1:
        own, other = rng.choice(STEPS[prompt.verb]), rng.choice(_ALL_STEPS)
        first, second = rng.sample((own, other), 2)
        return replace(response, body=f"first {first} , then {second} .")
    if way == 2:
        return replace(response, body=" ".join(tokens[: max(at, 1)]))
    if way == 3:
        tokens[at] = rng.choice(words.OFF_TOPIC + words.EVASIVE + _ALL_STEPS).split()[0]
    elif way == 4:
        del tokens[at]
    else:
        tokens.insert(at, rng.choice(tokens))
    return replace(response, body=" ".join(tokens) or "the")


def leak(rng: random.Random, prompt: SandboxPrompt) -> str:
    """A body that refuses and yet gives the steps."""
    return f"{refuse_body(rng, prompt, right=True, p_alternative=0.5)} {comply_body(rng, prompt)}"
