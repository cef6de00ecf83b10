"""What every command of the workbench starts from: a constitution under a configuration, and a judge that remembers."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai import config, constitution, pipeline
from cai.constitution import Constitution, Principle
from cai.engines.base import EnginePrompt
from cai.errors import ConfigError
from cai.labelers.ai import AILabeler
from cai.labelers.judge import Question, Row
from cai.labelers.statistics import DECIDED
from cai.pipeline import Planned, Step
from cai.records import fingerprint, to_json, write_records
from cai.store import Entry, Store
from cai.types import Comparison, Prompt, Response
from cai.workbench.memory import Memory

__all__ = ["Asked", "Bench", "bench", "comparison", "judged", "made", "revised", "side", "tell_failed", "unknown_words"]


@dataclass(frozen=True, slots=True)
class Bench:
    """A constitution, the settings with it in them, the AI labeler that they make, and its memory in the store."""

    constitution: Constitution
    settings: config.Settings
    labeler: AILabeler
    store: Store
    memory: Memory


@dataclass(frozen=True, slots=True)
class Asked:
    """The judge's answer about a pair of responses under one principle: probabilities of the first response, shown
    first and shown second, and their mean; None where an answer was ill-formed.
    """

    comparison: Comparison
    principle: Principle
    shown_first: float | None
    shown_second: float | None
    p: float | None


def bench(name: str, overrides: Sequence[str]) -> Bench:
    """The bench of a constitution (a name or a path). Raises ConfigError when `overrides` name another constitution, or
    a labeler that asks no model.
    """
    for item in overrides:
        if item.partition("=")[0].lstrip("+") == "constitution":
            raise ConfigError(f"{item}: has no effect; the command names the constitution, {name}")
    found = constitution.load(name)
    settings = config.compose([*overrides, f"constitution={config.quoted(name)}"])
    labeler = config.build(settings, ["labeler"])["labeler"]
    if not isinstance(labeler, AILabeler):
        raise ConfigError(f"labeler: the workbench asks the AI labeler, not {labeler.name!r}; add labeler=ai")
    config.limit_threads(settings)
    store = Store(Path(settings.store))
    return Bench(
        found, settings, labeler, store, Memory(labeler.judge, settings.labeler["engine"], store.root / "answers")
    )


def comparison(prompt: Prompt, first: str, second: str) -> Comparison:
    """Two texts as a comparison."""
    responses = [
        Response(id=f"{prompt.id}/{side}", prompt_id=prompt.id, text=text, model="", num_tokens=0, finished=True)
        for side, text in (("first", first), ("second", second))
    ]
    return Comparison(id=prompt.id, prompt=prompt, responses=tuple(responses))


def judged(bench: Bench, asked: Sequence[tuple[Comparison, Principle]], title: str) -> list[Asked]:
    """Pairs of responses, each under a principle, in both orders (whatever the labeler's own settings say)."""
    shown = [Question(comparison, principle, order) for comparison, principle in asked for order in ((0, 1), (1, 0))]
    rows = bench.memory.ask(shown, title)
    return [_asked(*pair, rows[2 * number], rows[2 * number + 1]) for number, pair in enumerate(asked)]


def _asked(comparison: Comparison, principle: Principle, one: Row, other: Row) -> Asked:
    first, second = one["p"], None if other["p"] is None else 1 - other["p"]
    return Asked(comparison, principle, first, second, None if None in (first, second) else (first + second) / 2)


def side(p: float | None) -> int:
    """Which response a label decides for: 1 the first, -1 the second, 0 neither (p within 0.1 of 1/2, or no label)."""
    return 0 if p is None or abs(p - 0.5) < DECIDED else 1 if p > 0.5 else -1


def made(bench: Bench, *steps: str) -> dict[str, Entry]:
    """The outputs of the recipe's first steps: found in the store, or made now and shared with later runs."""
    nodes = bench.settings.nodes()
    stages = config.build(bench.settings, [step.key for step in pipeline.chosen(steps, nodes)])
    entries: dict[str, Entry] = {}
    for planned in pipeline.plan(steps, nodes, stages):
        name = planned.step.name
        inputs = {i: entries[made_by] for i, made_by in planned.step.inputs.items()}
        entries[name] = pipeline.run_step(planned, inputs, bench.store)
        print(pipeline.line(name, entries[name]), file=sys.stderr)
    return entries


def tell_failed(num: int, total: int, what: str, title: str) -> None:
    """Say on stderr, if there are any, how many of the `what` of the command `title` a server gave no response for."""
    if num:
        print(f"{title}: {num:,} of {total:,} {what} are left out: a server failed to respond", file=sys.stderr)


def unknown_words(bench: Bench, texts: Sequence[str]) -> Mapping[str, int]:
    """How often each word of these texts occurs that the judge's vocabulary lacks, whether it is asked or its answers
    are known; none where the judge is on a server.
    """
    from cai.engines.texts import Texts
    from cai.models.loading import load_tokenizer

    if bench.labeler.judge.texts()["judge"].startswith("served:"):
        return {}
    known = Texts(load_tokenizer(bench.settings.labeler["model"]))
    return known.unknown_words(known.encode([EnginePrompt(text=text) for text in texts]))


def revised(bench: Bench, prompts: Sequence[Prompt], data: Path, title: str) -> Entry:
    """What the stage revise makes of these prompts of the data in a folder: found in the store, or made now. What it
    has to say goes by `title`, the command's name.
    """
    stage = config.build(bench.settings, ["revise"])["revise"]
    stage.title = title
    planned = Planned(Step("revise", "revise"), stage, bench.settings.nodes()["revise"], stage.texts())

    def build(folder: Path) -> dict[str, float]:
        write_records(folder / "red_team.jsonl", prompts)
        shutil.copyfile(data / "demonstrations.jsonl", folder / "demonstrations.jsonl")
        facts: dict[str, float] = stage.run({"data": folder}, folder)
        return facts

    inputs = {"prompts": fingerprint([to_json(prompt) for prompt in prompts]), "data": data.name}
    return bench.store.get(pipeline.material(planned) | {"inputs": inputs}, build, name="preview")
