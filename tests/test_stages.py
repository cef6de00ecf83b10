"""The stages data, sample and evaluate."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_models import word_tokenizer
from worlds import FunctionEngine, WordCount, data_folder, holds_when_cut, model_folder, noise, prompt, run

from cai.errors import ConfigError, DataError
from cai.models.loading import encode_dialogue
from cai.records import read_json, read_records, read_rows
from cai.stages.data import Data, check_sets
from cai.stages.evaluate import Evaluate
from cai.stages.sample import Sample
from cai.types import Comparison, Demonstration, Prompt, PromptSets, Response, Turn


@pytest.fixture
def data(workdir: Path) -> Path:
    """Prompts of every kind."""
    return data_folder(workdir)


# --- data -------------------------------------------------------------------------------------------------------------


def sets(**changed: Any) -> PromptSets:
    demonstration = Demonstration(id="d", prompt=prompt("d"), text="t", source="helpful")
    given: dict[str, Any] = {n: (prompt(n),) for n in ("red_team", "comparisons", "rl", "evaluation")}
    return PromptSets(**{**given, "demonstrations": (demonstration,), **changed})


class Source:
    """A data source with these sets."""

    def __init__(self, sets: PromptSets) -> None:
        self.sets = sets

    def load(self) -> PromptSets:
        """The sets."""
        return self.sets

    def texts(self) -> dict[str, str]:
        """One text."""
        return {"file": "abc"}


def test_data_writes_every_set(workdir: Path) -> None:
    stage = Data(source=Source(sets()))
    facts = run(stage, {}, workdir / "out")
    assert stage.texts() == {"file": "abc"}
    assert read_records(workdir / "out" / "rl.jsonl", Prompt) == [prompt("rl")]
    assert read_records(workdir / "out" / "demonstrations.jsonl", Demonstration)[0].text == "t"
    sizes = dict.fromkeys(("red_team", "demonstrations", "comparisons", "rl", "evaluation"), 1)
    assert read_json(workdir / "out" / "data.json") == {**sizes, "too_long": dict.fromkeys(sizes, 0), "source": {}}
    assert facts["num_rl"] == 1.0 and facts["num_left_out"] == facts["num_too_long"] == 0.0


def test_data_tells_what_the_source_left_out(workdir: Path) -> None:
    counts = {"rows": 9, "left_out_short": 3, "left_out_long": 1}
    facts = run(Data(source=Source(sets(counts=counts))), {}, workdir / "out")
    assert read_json(workdir / "out" / "data.json")["source"] == counts
    assert facts["num_left_out"] == 4.0 and list(facts)[:2] == ["num_too_long", "num_left_out"]


def test_data_leaves_long_prompts_out_and_counts_them(workdir: Path) -> None:
    tokenizer = word_tokenizer()
    model = str(tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, workdir / "model"))
    long = Prompt(id="long", turns=(Turn("user", "how " * 20),))
    source = Source(sets(rl=(prompt("rl"), long)))
    size = len(encode_dialogue(tokenizer, long.turns)[0])
    facts = run(Data(source=source, model=model, max_prompt_tokens=size - 1), {}, workdir / "out")
    assert read_records(workdir / "out" / "rl.jsonl", Prompt) == [prompt("rl")]
    assert read_json(workdir / "out" / "data.json")["too_long"]["rl"] == facts["num_too_long"] == 1
    assert run(Data(source=source, model=model, max_prompt_tokens=size), {}, workdir / "all")["num_rl"] == 2
    with pytest.raises(DataError, match="red_team: all 1 prompts are longer than max_prompt_tokens 1"):
        run(Data(source=source, model=model, max_prompt_tokens=1), {}, workdir / "none")
    with pytest.raises(ConfigError, match="max_prompt_tokens: goes with model"):
        Data(source=source, max_prompt_tokens=5)
    assert Data(source=source, model=model, max_prompt_tokens=5).texts().keys() == {"file", "model"}


def test_data_refuses_a_model_of_another_vocabulary(workdir: Path) -> None:
    tokenizer = word_tokenizer()
    model = str(tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, workdir / "model"))
    strange = Source(sets(rl=(Prompt(id="strange", turns=(Turn("user", "wer kennt diese Worte " * 9),)),)))
    with pytest.raises(DataError, match=r"model: .*model does not know \d+% of the tokens of these prompts, and 25%"):
        run(Data(source=strange, model=model, max_prompt_tokens=99), {}, workdir / "out")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rl": (prompt("red_team"),)}, "rl: the id of prompt 'red_team' is already in red_team"),
        ({"evaluation": (replace(prompt("rl"), id="new"),)}, "evaluation: the dialogue of prompt 'new'.*in rl"),
        ({"rl": (Prompt(id="x", turns=(Turn("assistant", "hi"),)),)}, "rl: prompt 'x' must end.*not 'assistant'"),
        ({"rl": (Prompt(id="x", turns=()),)}, "rl: prompt 'x' must end.*not 'no turn'"),
    ],
)
def test_sets_that_overlap_or_wait_for_nobody_are_refused(changed: Any, message: str) -> None:
    check_sets(sets())
    with pytest.raises(DataError, match=message):
        check_sets(sets(**changed))


# --- sample -----------------------------------------------------------------------------------------------------------


def sample(engine: FunctionEngine, **settings: Any) -> Sample:
    return Sample(engine=engine, seed=7, max_new_tokens=20, **settings)


def test_sampling_keeps_and_counts_identical_responses(data: Path, workdir: Path) -> None:
    sft = model_folder(workdir / "sft", "{}")
    engine = FunctionEngine(reply=lambda asked, key: f" word{int(3 * noise(key))} ", cut_off=lambda t: "0" in t)
    facts = run(sample(engine, num_responses=3), {"data": data, "sft": sft}, workdir / "out")
    comparisons = read_records(workdir / "out" / "comparisons.jsonl", Comparison)
    assert [c.id for c in comparisons] == [f"comparisons{i}" for i in range(30)]
    assert [r.id for r in comparisons[4].responses] == [f"comparisons4/{k}" for k in range(3)]
    assert {r.text for c in comparisons for r in c.responses} == {"word0", "word1", "word2"}
    identical = sum(a.text == b.text for c in comparisons for a in c.responses for b in c.responses if a.id < b.id)
    assert facts["num_identical"] == identical > 10
    assert facts["num_cut_off"] == sum(r.text == "word0" for c in comparisons for r in c.responses) > 0
    assert engine.models == [str(sft / "model")]


def test_sampling_goes_on_where_it_was_cut(data: Path, workdir: Path) -> None:
    sft = model_folder(workdir / "sft", "{}")
    holds_when_cut(lambda: sample(FunctionEngine()), {"data": data, "sft": sft}, workdir)


# --- evaluate ---------------------------------------------------------------------------------------------------------


CUT_OFF = ("one two three", "")


class Models:
    """A factory that gives each model folder an engine of its own: a text costs a nat per token, and `doubt` more."""

    def __init__(self, **doubts: float) -> None:
        self.doubts = doubts
        self.engines: dict[str, FunctionEngine] = {}

    def __call__(self, *, model: str) -> FunctionEngine:
        """The engine of the folder `<name>/model`."""
        name = Path(model).parent.name
        texts = (" one", "one two", "one two three", "")
        self.engines[name] = FunctionEngine(
            reply=lambda asked, key: texts[int(4 * noise(key, name))],
            logp=lambda asked, choice: -len(choice.replace("<end>", " <end>").split()) - self.doubts[name],
            cut_off=lambda text: text in CUT_OFF,
        )
        return self.engines[name]


def evaluate(models: Models, base: Path, **settings: Any) -> Evaluate:
    return Evaluate(engine=models, scorer=WordCount(), model=str(base / "model"), seed=2, max_new_tokens=20, **settings)


@pytest.fixture
def folders(data: Path, workdir: Path) -> dict[str, Path]:
    """Model folders that differ, with tokenizers that say what ends a turn."""
    found = {name: model_folder(workdir / name, f'{{"x": "{name}"}}') for name in ("base", "sft", "rl")}
    for folder in found.values():
        word_tokenizer().save_pretrained(folder / "model")
    return {**found, "data": data}


def test_evaluation_scores_every_response(folders: dict[str, Path], workdir: Path) -> None:
    models = Models(rl=0.25, sft=1.0)
    inputs = {"data": folders["data"], "model": folders["rl"], "reference": folders["sft"]}
    facts = run(evaluate(models, folders["base"], num_samples=2), inputs, workdir / "out")
    responses = read_records(workdir / "out" / "responses.jsonl", Response)
    rows = read_rows(workdir / "out" / "scores.jsonl")
    assert [r.id for r in responses] == [f"evaluation{i}/{k}" for i in range(20) for k in (0, 1)]
    for response, row in zip(responses, rows, strict=True):
        n = len(response.text.split())
        assert (row["prompt_id"], row["response_id"]) == (response.prompt_id, response.id)
        assert (row["gold"], row["long"]) == (n, n if n > 1 else None)
        tokens = n + response.finished  # the end of the turn is one
        assert row["logp"] == pytest.approx(-tokens - 0.25 if tokens else 0)
        assert row["logp_reference"] == pytest.approx(-tokens - 1 if tokens else 0)
        assert response.finished == (response.text not in CUT_OFF)
    assert {r.text for r in responses} == {"one", "one two", "one two three", ""}
    summary = read_json(workdir / "out" / "summary.json")
    num_texts = sum(bool(r.text) for r in responses)
    assert summary["all"]["kl"]["mean"] == pytest.approx(0.75 * num_texts / 40)
    assert summary["all"]["long"]["num"] == sum(r["long"] is not None for r in rows)
    assert summary["by_tag"]["red_team"]["gold"]["mean"] == pytest.approx(
        sum(r["gold"] for r in rows if int(r["prompt_id"].removeprefix("evaluation")) % 2 == 0) / 20
    )
    assert facts["gold"] == pytest.approx(summary["all"]["gold"]["mean"])
    assert responses[0].model != "" and models.engines.keys() == {"rl", "sft"}


def test_without_a_model_the_base_is_meant(folders: dict[str, Path], workdir: Path) -> None:
    models = Models(base=0.0, sft=0.5)
    run(
        evaluate(models, folders["base"]),
        {k: folders[v] for k, v in (("data", "data"), ("reference", "sft"))},
        workdir / "o",
    )
    assert models.engines["base"].generated and not models.engines["sft"].generated


def test_a_model_that_is_the_reference_is_asked_once(folders: dict[str, Path], workdir: Path) -> None:
    models = Models(sft=0.5)
    inputs = {"data": folders["data"], "model": folders["sft"], "reference": folders["sft"]}
    run(evaluate(models, folders["base"]), inputs, workdir / "out")
    assert len(models.engines["sft"].scored) == 1
    assert read_json(workdir / "out" / "summary.json")["all"]["kl"]["mean"] == 0.0


def test_kl_is_estimated_at_temperature_one_only(folders: dict[str, Path], workdir: Path) -> None:
    inputs = {"data": folders["data"], "model": folders["rl"], "reference": folders["sft"]}
    run(evaluate(Models(rl=0.0, sft=0.5), folders["base"], temperature=0.0), inputs, workdir / "out")
    assert "kl" not in read_json(workdir / "out" / "summary.json")["all"]


def test_evaluation_goes_on_where_it_was_cut(folders: dict[str, Path], workdir: Path) -> None:
    inputs = {"data": folders["data"], "model": folders["rl"], "reference": folders["sft"]}
    holds_when_cut(lambda: evaluate(Models(rl=0.25, sft=1.0), folders["base"]), inputs, workdir)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be(workdir: Path) -> None:
    with pytest.raises(ConfigError, match="num_responses: a comparison needs at least 2 responses, got 1"):
        sample(FunctionEngine(), num_responses=1)
    with pytest.raises(ConfigError, match="num_samples: must be at least 1, got 0"):
        evaluate(Models(), workdir, num_samples=0)
