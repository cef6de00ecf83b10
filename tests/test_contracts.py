"""Every engine, labeler, scorer, data source and stage keeps its protocol; the text stages, on a real tiny model."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_models
from worlds import FunctionEngine, ai_labeler, comparison, finished, run

import cai.engines
import cai.labelers
import cai.stages
from cai import constitution
from cai.engines.base import Engine, EnginePrompt, RemoteEngine, Sampling
from cai.engines.scripted import ScriptedEngine
from cai.engines.transformers import TransformersEngine
from cai.labelers.ai import AILabeler
from cai.labelers.base import Labeler
from cai.labelers.simulated import SimulatedLabeler
from cai.prompts import PromptFamily
from cai.records import read_json, read_records, read_rows
from cai.sandbox import tokenizer
from cai.sandbox.plug import SandboxData, SandboxScorer
from cai.scorers import Scorer, TextScorer
from cai.stages.base import Stage
from cai.stages.data import Data
from cai.stages.evaluate import Evaluate
from cai.stages.label import Label
from cai.stages.ppo import PPO
from cai.stages.revise import Revise
from cai.stages.sample import Sample
from cai.stages.win_rate import WinRate
from cai.types import Judgment, Prompt, Response, Revision


def classes(package: ModuleType) -> Iterator[type]:
    """The public classes of a package's modules, where they are defined."""
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        for name, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ == info.name and not name.startswith("_"):
                yield found


def keyword_only(found: type) -> bool:
    """Whether the constructor takes nothing by position, as parts of a configuration must."""
    parameters = list(inspect.signature(found).parameters.values())
    return all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


STAGES = [c for c in classes(cai.stages) if hasattr(c, "run") and hasattr(c, "version")]
LABELERS = [c for c in classes(cai.labelers) if hasattr(c, "label") and c is not Labeler]
ENGINES = [c for c in classes(cai.engines) if hasattr(c, "choice_logprobs") and c not in (Engine, RemoteEngine)]


# --- protocols --------------------------------------------------------------------------------------------------------


def test_there_is_something_to_hold_to_the_contract() -> None:
    assert {c.__name__ for c in STAGES} >= {"Data", "Revise", "SFT", "Sample", "Label", "Reward", "PPO", "Evaluate"}
    assert {AILabeler, SimulatedLabeler} <= set(LABELERS)
    assert {ScriptedEngine, TransformersEngine} <= set(ENGINES)


@pytest.mark.parametrize("stage", STAGES, ids=lambda c: c.__name__)
def test_stages(stage: Any) -> None:
    assert keyword_only(stage)
    assert isinstance(stage.version, int) and stage.version >= 1
    assert list(inspect.signature(stage.run).parameters) == ["self", "inputs", "output"]
    assert list(inspect.signature(stage.texts).parameters) == ["self"]


@pytest.mark.parametrize("labeler", LABELERS, ids=lambda c: c.__name__)
def test_labelers(labeler: Any) -> None:
    assert keyword_only(labeler)
    assert isinstance(labeler.name, str)
    expected = inspect.signature(Labeler.label).parameters
    assert {n: p.kind for n, p in inspect.signature(labeler.label).parameters.items()} == {
        n: p.kind for n, p in expected.items()
    }


@pytest.mark.parametrize("engine", ENGINES, ids=lambda c: c.__name__)
def test_engines(engine: Any) -> None:
    assert keyword_only(engine)
    assert "model" in inspect.signature(engine).parameters, "engines are made by an EngineFactory"
    for method in ("generate", "choice_logprobs"):
        expected = inspect.signature(getattr(Engine, method)).parameters
        assert list(inspect.signature(getattr(engine, method)).parameters) == list(expected)


@pytest.mark.parametrize("make", ["ai", "simulated"])
def test_labelers_pass_over_what_is_done_and_keep_no_state(workdir: Path, make: str) -> None:
    labeler: Labeler = (
        ai_labeler(workdir, FunctionEngine())
        if make == "ai"
        else SimulatedLabeler(scorer=TextScorer(), column="num_words", seed=1, overlap=0.5)
    )
    assert isinstance(labeler, Labeler)
    comparisons = [comparison(f"c{i}", "one " * (i + 1), "two " * (9 - i)) for i in range(9)]
    whole = list(labeler.label(comparisons))
    assert list(labeler.label(comparisons)) == whole
    assert list(labeler.label(comparisons, done={c.id for c in comparisons})) == []
    some = {"c1", "c2", "c8"}
    assert list(labeler.label(comparisons, done=some)) == [j for j in whole if j.comparison_id not in some]
    assert list(labeler.label([])) == []
    assert all(isinstance(value, int | float) for value in labeler.facts().values())
    for judgment in whole:
        assert judgment.labeler == labeler.name
        assert bool(judgment.pairs) == (judgment.abstained is None)
        assert all(0 <= pair.p <= 1 and pair.first < pair.second for pair in judgment.pairs)


@pytest.mark.parametrize("scorer", [TextScorer(), SandboxScorer()], ids=lambda s: type(s).__name__)
def test_scorers(scorer: Scorer) -> None:
    assert isinstance(scorer, Scorer)
    prompts = [comparison(f"c{i}", "x", "y").prompt for i in range(3)]
    columns = scorer.score(prompts, ["", "some text .", "more"])
    assert tuple(columns) == scorer.columns and all(len(values) == 3 for values in columns.values())
    assert scorer.score([], []).keys() == columns.keys()
    assert scorer.texts() and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in scorer.texts().values())
    for stage in (
        Label(labeler=SimulatedLabeler(scorer=scorer, seed=1, column=scorer.columns[0])),
        PPO(seed=1, scorer=scorer),
    ):
        assert scorer.texts().items() <= stage.texts().items()


# --- a real tiny model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `model/`: the sandbox's tokenizer and random weights, which say one word as readily as another."""
    folder = tmp_path_factory.mktemp("base")
    words = tokenizer.build()
    tiny_models.save(tiny_models.llama(len(words)), words, folder / "model")
    return folder


def engine_factory(*, model: str) -> Engine:
    return TransformersEngine(model=model, device="cpu", max_batch_tokens=512)


@pytest.mark.parametrize("kind", ["scripted", "transformers"])
def test_engines_are_deterministic_and_pass_over_what_is_done(base: Path, kind: str) -> None:
    def make() -> Engine:
        if kind == "scripted":
            return ScriptedEngine(replies=lambda asked: f"to {asked.text}", logprob=lambda asked, c: -float(len(c)))
        return engine_factory(model=str(base / "model"))

    prompts = [EnginePrompt(text=f"<bos> <user> how do i open the {name} ?") for name in ("door", "gate", "safe")]
    sampling = Sampling(max_new_tokens=6)

    def generate(done: tuple[int, ...] = ()) -> dict[int, str]:
        engine = make()
        assert isinstance(engine, Engine)
        found = engine.generate(prompts, sampling, seed=1, keys=["a", "b", "c"], done=done)
        return {generation.index: generation.text for generation in found}

    whole = generate()
    assert whole.keys() == {0, 1, 2}
    assert generate((1,)) == {0: whole[0], 2: whole[2]}
    scores = make().choice_logprobs(prompts, [("yes", "no"), ("yes",), ("(A)", "(B)", "no")])
    assert [score.shape for score in scores] == [(2,), (1,), (3,)]
    assert all(np.isfinite(score).all() and (score < 0).all() for score in scores)


def settings(base: Path) -> dict[str, Any]:
    """What the stages and labelers that ask a model have in common."""
    return {"engine": engine_factory, "model": str(base / "model"), "seed": 4}


def judge(base: Path, **more: Any) -> AILabeler:
    rules = {"prompts": PromptFamily("sandbox"), "constitution": constitution.load("sandbox")}
    return AILabeler(**settings(base), **rules, min_mass=0.0, **more)


class Characters:
    """Random weights end no response, so all have the same number of words; their lengths differ."""

    columns = ("length",)

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"scorer": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """One column."""
        return {"length": [float(len(response)) for response in responses]}


def recipe(base: Path) -> dict[str, tuple[Stage, dict[str, str]]]:
    """The text stages of the recipe, with `sft` made of nothing: the base model itself."""
    source = SandboxData(
        seed=4, num_red_team=6, num_demonstrations=4, num_comparisons=10, num_rl=2, num_evaluation=6, split="dev"
    )
    rules = {"prompts": PromptFamily("sandbox"), "constitution": constitution.load("sandbox")}
    people = SimulatedLabeler(scorer=Characters(), column="length", agreement=0.55, seed=4, overlap=0.5)
    evaluate = Evaluate(**settings(base), scorer=SandboxScorer(), max_new_tokens=8, num_samples=2)
    sample = Sample(engine=engine_factory, seed=4, max_new_tokens=8)
    return {
        "data": (Data(source=source), {}),
        "revise": (Revise(**settings(base), **rules, max_new_tokens=8), {"data": "data"}),
        "sample": (sample, {"data": "data", "sft": "sft"}),
        "label": (Label(labeler=judge(base), scorer=SandboxScorer()), {"data": "data", "sample": "sample"}),
        "label_cot": (Label(labeler=judge(base, template="judge_cot")), {"data": "data", "sample": "sample"}),
        "label_people": (Label(labeler=people), {"data": "data", "sample": "sample"}),
        "evaluate": (evaluate, {"data": "data", "reference": "sft"}),
        "win_rate": (WinRate(labeler=judge(base)), {"data": "data", "a": "evaluate", "b": "evaluate"}),
    }


def run_recipe(base: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Run everything below `folder`, over whatever journals are there; digests of each stage's files."""
    places = {"sft": base}
    for name, (stage, inputs) in recipe(base).items():
        assert isinstance(stage, Stage)
        assert all(isinstance(text, str) for text in stage.texts().values())
        places[name] = folder / name
        facts = run(stage, {key: places[place] for key, place in inputs.items()}, folder / name)
        assert all(isinstance(value, int | float) for value in facts.values())
    return {name: finished(path) for name, path in places.items() if name != "sft"}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipe has run."""
    folder = tmp_path_factory.mktemp("whole")
    run_recipe(base, folder)
    return folder


@pytest.mark.slow
def test_the_text_stages_run_on_a_real_model_and_survive_cuts(base: Path, whole: Path, tmp_path: Path) -> None:
    files = {name: finished(whole / name) for name in recipe(base)}
    labels = {"judgments.jsonl", "preferences.jsonl", "label.json"}
    prompts = {f"{name}.jsonl" for name in ("red_team", "demonstrations", "comparisons", "rl", "evaluation")}
    assert {name: set(found) for name, found in files.items()} == {
        "data": prompts | {"data.json"},
        "revise": {"revisions.jsonl", "sft.jsonl", "revise.json"},
        "sample": {"comparisons.jsonl", "sample.json"},
        **{name: labels for name in ("label_cot", "label_people")},
        "label": labels | {"gold.jsonl"},
        "evaluate": {"responses.jsonl", "scores.jsonl", "summary.json"},
        "win_rate": {"wins.jsonl", "principles.jsonl", "win_rate.json"},
    }
    # Floating point depends on a batch's company, so this is where a resume that plans other batches would show.
    for journal in sorted(whole.rglob("*.journal")):
        half = tmp_path / journal.relative_to(whole)
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(journal.read_bytes()[: journal.stat().st_size * 2 // 3])
    assert run_recipe(base, tmp_path) == files


@pytest.mark.slow
def test_what_a_real_model_says_is_what_is_written(whole: Path) -> None:
    revisions = read_records(whole / "revise" / "revisions.jsonl", Revision)
    assert len(revisions) == 12 and any(revision.critique for revision in revisions)
    for judgment in read_records(whole / "label" / "judgments.jsonl", Judgment):
        rows: Any = judgment.evidence
        assert judgment.pairs[0].p == pytest.approx((rows[0]["p"] + 1 - rows[1]["p"]) / 2)
        assert 0 < rows[0]["mass"] < 0.2, "two options of some four hundred words"
    assert read_json(whole / "win_rate" / "win_rate.json")["strict_win_rate"] == 0.5, "a model against itself"
    assert {row["p_a"] for row in read_rows(whole / "win_rate" / "wins.jsonl")} == {0.5}


def test_log_probabilities_of_an_evaluation_are_those_of_one_plain_forward(whole: Path) -> None:
    model, words = tiny_models.llama(len(tokenizer.build())), tokenizer.build()
    responses = read_records(whole / "evaluate" / "responses.jsonl", Response)
    prompts = {row["id"]: row["turns"][0]["content"] for row in read_rows(whole / "data" / "evaluation.jsonl")}
    for response, row in zip(responses, read_rows(whole / "evaluate" / "scores.jsonl"), strict=True):
        asked = f"<bos> <user> {prompts[response.prompt_id]} <assistant>"
        ids = words.encode(asked + f" {response.text}" + " <end>" * response.finished, add_special_tokens=False)
        logps = tiny_models.full_logps(model, ids)
        start = len(words.encode(asked, add_special_tokens=False))
        assert row["logp"] == pytest.approx(float(logps[start - 1 :].sum()), abs=1e-4)
        assert row["logp_reference"] == row["logp"]
