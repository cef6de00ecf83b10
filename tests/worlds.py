"""A small world for tests of labelers and stages: prompt family, constitution, data, models made of functions."""

import hashlib
import math
import shutil
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cai import constitution
from cai.constitution import Constitution
from cai.engines.base import EnginePrompt, Generation, Sampling, Usage
from cai.labelers.ai import AILabeler
from cai.prompts import PromptFamily
from cai.records import digest_folder, write_records
from cai.stages.base import Stage
from cai.types import Comparison, Demonstration, Prompt, Response, Turn

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


def by_text(good: float, *, mass: float = 0.9) -> FunctionEngine:
    """A judge who sees which response holds the word `good`, whatever the verdicts before."""

    def logp(asked: EnginePrompt, choice: str) -> float:
        if choice in (" yes", " no"):
            return math.log(0.5)
        first = "good" in asked.text.split("one ")[1].split(" two ")[0]
        return math.log(mass * (good if (choice == " (A)") == first else 1 - good))

    return FunctionEngine(logp=logp)


# --- stages ----------------------------------------------------------------------------------------------------------


class WordCount:
    """Gold is the number of words; `long` applies to answers of two words or more."""

    columns = ("gold", "long")

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"scorer": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """Two columns."""
        counts = [float(len(response.split())) for response in responses]
        return {"gold": counts, "long": [n if n > 1 else math.nan for n in counts]}


def ai_labeler(folder: Path, engine: FunctionEngine, **settings: Any) -> AILabeler:
    family_, constitution = family(folder), rules(folder)
    return AILabeler(
        engine=engine, model="base", prompts=family_, constitution=constitution, seed=1, **{"min_mass": 0.0, **settings}
    )


def model_folder(path: Path, text: str) -> Path:
    """What counts as a model for digests; FunctionEngine looks at its path only."""
    (path / "model").mkdir(parents=True)
    (path / "model" / "config.json").write_text(text)
    return path


def data_folder(folder: Path) -> Path:
    """Prompts of every kind, as stage data writes them."""
    prompts = {
        name: [prompt(f"{name}{i}", ("red_team", "helpful")[i % 2]) for i in range(count)]
        for name, count in (("comparisons", 30), ("rl", 4), ("evaluation", 20))
    }
    prompts["red_team"] = [prompt(f"red{i}", "red_team") for i in range(24)]
    for name, records in prompts.items():
        write_records(folder / "data" / f"{name}.jsonl", records)
    helpful = [
        Demonstration(id=f"d{i}", prompt=prompt(f"d{i}", "helpful"), text="help", source="helpful") for i in "ab"
    ]
    write_records(folder / "data" / "demonstrations.jsonl", helpful)
    return folder / "data"


def run(stage: Stage, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
    output.mkdir(exist_ok=True, parents=True)
    return stage.run(inputs, output)


def finished(folder: Path) -> dict[str, str]:
    """Digests of what the store would keep."""
    return {name: digest for name, digest in digest_folder(folder).items() if not name.endswith(".journal")}


def holds_when_cut(make: Callable[[], Stage], inputs: Mapping[str, Path], folder: Path, *, cuts: int = 12) -> None:
    """Cut the journals (as they were written one after the other) anywhere: the same files come out."""
    run(make(), inputs, folder / "whole")
    expected = finished(folder / "whole")
    journals = sorted((folder / "whole").glob("*.journal"), key=lambda path: path.stat().st_mtime_ns)
    assert journals and expected
    total = sum(path.stat().st_size for path in journals)
    for cut in range(0, total, max(1, total // cuts)):
        again = folder / "again"
        shutil.rmtree(again, ignore_errors=True)
        again.mkdir()
        left = cut
        for journal in journals:
            data = journal.read_bytes()[:left]
            left -= len(data)
            if data:
                (again / journal.name).write_bytes(data)
        run(make(), inputs, again)
        assert finished(again) == expected, f"cut at {cut} of {total}"
