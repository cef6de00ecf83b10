"""A small world for tests of labelers and stages: prompt family, constitution, data, models made of functions."""

import hashlib
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cai import constitution
from cai.constitution import Constitution
from cai.engines.base import EnginePrompt, Generation, Sampling, Usage
from cai.prompts import PromptFamily
from cai.types import Comparison, Prompt, Response, Turn

PRINCIPLES = """
principles:
  - {id: kind, axis: a, statement: be kind}
  - {id: brief, axis: b, statement: be brief, weight: 2}
  - {id: safe, axis: c, statement: be safe, applies_to: [red_team]}
"""
DIALOGUE = "{% for turn in turns %}{{ turn.role }} says {{ turn.content }}\n{% endfor %}"
TEMPLATES = {
    "critique": DIALOGUE
    + "reply {{ response }} wish {{ principle.critique }} note{{ text(max_new_tokens=9, stop=['\\n']) }}",
    "revision": DIALOGUE
    + "reply {{ response }} note {{ critique }} wish {{ principle.revision }} better{{ text(max_new_tokens=9) }}",
    "direct_revision": DIALOGUE
    + "reply {{ response }} wish {{ principle.revision }} better{{ text(max_new_tokens=9) }}",
    "judge": DIALOGUE
    + "wish {{ principle.comparison }} one {{ responses[0] }} fits{{ choice(' yes', ' no') }} "
    + "two {{ responses[1] }} fits{{ choice(' yes', ' no') }} best{{ choice(' (A)', ' (B)') }}",
    "judge_cot": DIALOGUE
    + "wish {{ principle.comparison }} one {{ responses[0] }} two {{ responses[1] }} think"
    + "{{ text(max_new_tokens=7, stop=['.']) }} so{{ choice(' (A)', ' (B)') }}",
}


def family(folder: Path, **templates: str) -> PromptFamily:
    """The prompt family `test`, written to ./prompts of the current folder `folder`."""
    home = folder / "prompts" / "test"
    home.mkdir(parents=True, exist_ok=True)
    for name, text in {**TEMPLATES, **templates}.items():
        (home / f"{name}.jinja").write_text(text)
    return PromptFamily("test")


def rules(folder: Path, text: str = PRINCIPLES) -> Constitution:
    """A constitution: two principles for every prompt, and one for the red team's."""
    path = folder / "constitution.yaml"
    path.write_text(textwrap.dedent(text))
    return constitution.load(str(path))


def prompt(name: str, *tags: str) -> Prompt:
    return Prompt(id=name, turns=(Turn("user", f"question {name}"),), tags=tags)


def comparison(name: str, *texts: str, tags: tuple[str, ...] = ()) -> Comparison:
    responses = [
        Response(id=f"{name}/{k}", prompt_id=name, text=text, model="m", num_tokens=1, finished=True)
        for k, text in enumerate(texts)
    ]
    return Comparison(id=name, prompt=prompt(name, *tags), responses=tuple(responses))


def noise(*parts: object) -> float:
    """A number in (0, 1) that depends on `parts`."""
    return (int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") + 0.5) / 2**48


def random_logp(asked: EnginePrompt, choice: str) -> float:
    """A log-probability that looks like a model's: any two options together have less than everything."""
    return float(np.log(0.45 * noise(asked, choice)))


class FunctionEngine:
    """An engine whose answers are functions of (prompt, key) and (prompt, choice), with a history.

    Like a real one its numbers depend a little on the batch (here, by what the call asks in all), so that a caller who
    resumes with other batches is found out.
    """

    name = "function"

    def __init__(
        self,
        reply: Callable[[EnginePrompt, str], str] = lambda asked, key: f"word{int(1000 * noise(asked, key))}",
        logp: Callable[[EnginePrompt, str], float] = random_logp,
        cut_off: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self.usage = Usage()
        self.reply, self.logp, self.cut_off = reply, logp, cut_off
        self.models: list[str] = []
        self.generated: list[list[tuple[EnginePrompt, str]]] = []
        self.scored: list[list[EnginePrompt]] = []
        self.samplings: list[Sampling] = []

    def __call__(self, *, model: str) -> "FunctionEngine":
        """This is its own factory."""
        self.models.append(model)
        return self

    def generate(
        self,
        prompts: Sequence[EnginePrompt],
        sampling: Sampling,
        *,
        seed: int,
        keys: Sequence[str],
        done: Collection[int] = (),
    ) -> Iterator[Generation]:
        """Backwards, as longer prompts may well come first."""
        self.samplings.append(sampling)
        self.generated.append([(p, k) for i, (p, k) in enumerate(zip(prompts, keys, strict=True)) if i not in done])
        for index in reversed(range(len(prompts))):
            if index not in done:
                text = self.reply(prompts[index], f"{seed}/{keys[index]}")
                num_tokens = len(text.split())
                self.usage.new_tokens += num_tokens
                yield Generation(index=index, text=text, num_tokens=num_tokens, finished=not self.cut_off(text))

    def choice_logprobs(
        self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float64]]:
        """The function's numbers, less a trifle that depends on the call."""
        self.scored.append(list(prompts))
        trifle = 1e-9 * noise(len(prompts), prompts[:1], prompts[-1:])
        return [
            np.array([self.logp(asked, choice) - trifle for choice in options])
            for asked, options in zip(prompts, choices, strict=True)
        ]
