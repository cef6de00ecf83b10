"""A workbench for tests: two constitutions, a model made of functions, a finished run."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import FunctionEngine, noise

from cai import config, pipeline
from cai.engines.base import EnginePrompt, Generation, Receipt
from cai.labelers.statistics import first_judgments
from cai.records import read_records, write_json, write_records
from cai.store import Store
from cai.types import Comparison, Judgment, Prompt, Provenance
from cai.workbench.bench import Bench, bench, comparison, made

OLD = """
name: old
principles:
  - {id: kind, axis: tone, statement: be kind}
  - {id: brief, axis: size, statement: be brief, weight: 2}
  - {id: safe, axis: harm, statement: be safe, applies_to: [red_team]}
examples:
  - {prompt: hello, better: good day, worse: go away, principle: kind}
  - {prompt: hello, better: go away, worse: good day, principle: brief}
  - {prompt: hello, better: odd day, worse: good day, principle: safe}
"""
EDITED = OLD.replace("be brief", "be short")
SIZES = {"red_team": 20, "demonstrations": 4, "comparisons": 60, "rl": 2, "evaluation": 2}
ASKED: list[EnginePrompt] = []  # every prompt that was scored


class JudgeEngine(FunctionEngine):
    """A model as configurations make one. It likes `good`, says something else where it reads `odd`, and has an opinion
    of its own on every other text under every principle.
    """

    def __init__(self, *, model: str, dtype: str = "", device: str = "", max_batch_tokens: int = 1) -> None:
        super().__init__(reply=lambda asked, key: f"words {int(9 * noise(asked, key))}", logp=_logp)

    def choice_logprobs(self, prompts: Any, choices: Any) -> Any:
        ASKED.extend(prompts)
        return super().choice_logprobs(prompts, choices)


def _logp(asked: EnginePrompt, choice: str) -> float:
    if choice in ("yes", "no"):
        return -0.7
    if "odd" in asked.text:
        return -9.0
    first, principle, second = _shown(asked)
    likes = "good" in first if "good" in first + second else noise(principle, first) < noise(principle, second)
    return -0.1 if (choice == "(A)") == likes else -3.0


def _shown(asked: EnginePrompt) -> tuple[str, str, str]:
    """The first response, the principle and the second response of a whole judge prompt of the sandbox's family."""
    found = re.fullmatch(
        r".*<option> \(A\) (.*?) <principle> (.*?) <answer>.*<option> \(B\) (.*?) <principle>.*", asked.text
    )
    assert found is not None, asked.text
    return found[1], found[2], found[3]


class FlakyEngine(JudgeEngine):
    """A server that fails to give every third first response."""

    def generate(self, prompts: Any, sampling: Any, **more: Any) -> Iterator[Generation]:
        took = Receipt(provenance=Provenance(labeled_at="", seconds=0.0), attempts=("timeout",), failed="timeout")
        for one in super().generate(prompts, sampling, **more):
            fails = re.search(r"/respond$|/base/0$", more["keys"][one.index]) and one.index % 3 == 0
            yield replace(one, text="", receipt=took) if fails else one


SETTINGS = [
    "engine._target_=benches.JudgeEngine",
    "experiment=rlaif",
    *(f"data.source.num_{name}={size}" for name, size in SIZES.items()),
]


def write(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def own(folder: Path, text: str = OLD) -> Bench:
    return bench(write(folder, "own", text), SETTINGS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run under OLD, without the training: its comparisons are made up, all else is what the
    stages make. Its labels are by one principle each in `run`, by two in `run-2`.
    """
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        before = bench(write(folder, "old", OLD), SETTINGS)
        entries = made(before, "data", "revise")
        prompts = read_records(entries["data"].path / "comparisons.jsonl", Prompt)
        write_records(folder / "sampled" / "comparisons.jsonl", [_triple(p, n) for n, p in enumerate(prompts)])
        paths = {name: entry.path for name, entry in entries.items()} | {"sample": folder / "sampled"}
        for name, more in (("run", []), ("run-2", ["labeler.num_principles=2"])):
            paths["label"] = labelled("old.yaml", more)
            stages = {step: {"path": f"../{path.relative_to(folder)}"} for step, path in paths.items()}
            command = ["cai", "run", *SETTINGS, *more, "constitution=old.yaml"]
            write_json(folder / name / "run.json", {"command": command, "stages": stages})
    return folder


@pytest.fixture
def run(finished: Path, workdir: Path) -> Path:
    """The run, in a folder that may be written to."""
    shutil.copytree(finished, workdir, dirs_exist_ok=True)
    ASKED.clear()
    return workdir / "run"


def _triple(prompt: Prompt, number: int) -> Comparison:
    """Two responses, and to every fifth prompt three."""
    pair = comparison(prompt, f"text {number}", f"answer {number}")
    third = comparison(prompt, f"reply {number}", "").responses[:1]
    return Comparison(id=prompt.id, prompt=prompt, responses=pair.responses + (third if number % 5 == 0 else ()))


def labelled(name: str, more: list[str]) -> Path:
    """What the label stage really makes of the made-up comparisons under a constitution."""
    settings = config.compose([*SETTINGS, *more, f"constitution={name}"])
    stage = config.build(settings, ["label"])["label"]
    planned = pipeline.Planned(pipeline.Step("label", "label"), stage, settings.nodes()["label"], stage.texts())
    inputs = {"sample": Path("sampled").absolute()}
    return Store(Path("store")).get(pipeline.material(planned), lambda out: stage.run(inputs, out), name="label").path


def labels(folder: Path) -> dict[tuple[str, int, int], float]:
    """The probability of every pair's first response, as a label stage wrote it."""
    judgments = first_judgments(read_records(folder / "judgments.jsonl", Judgment))
    return {(j.comparison_id, pair.first, pair.second): pair.p for j in judgments.values() for pair in j.pairs}
