"""Noise ladders: their levels, the responses and labels they give, and whether gold falls with noise."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_runs import make_runs
from worlds import FunctionEngine, comparison, data_folder, finished, holds_when_cut, model_folder, run

from cai import config
from cai.engines.base import Sampling
from cai.errors import ConfigError, DataError, LabelerError
from cai.labelers.noise import NoiseLabeler
from cai.noise import Ladder, kept_name, monotonicity, spearman
from cai.records import read_json, read_records, read_rows, write_json, write_records
from cai.report.layout import render
from cai.report.page import as_json, gather, pictures
from cai.stages.label import Label
from cai.stages.sample import Sample
from cai.types import Comparison, Judgment, Pair, Preference, Response

LADDER = Ladder(kind="epsilon", levels=[0.0, 0.1, 0.1, 1.0])


def noisy(name: str, *noise: float | None) -> Comparison:
    """Responses of one to K words, at these noise levels."""
    plain = comparison(name, *("word " * (k + 1) for k in range(len(noise))))
    responses = [
        Response(id=r.id, prompt_id=name, text=r.text.strip(), model="m", num_tokens=1, finished=True, noise=level)
        for r, level in zip(plain.responses, noise, strict=True)
    ]
    return Comparison(id=name, prompt=plain.prompt, responses=tuple(responses))


# --- the ladder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "levels", "message"),
    [
        ("epsilom", [0.0, 1.0], "kind: unknown kind of noise 'epsilom'; did you mean 'epsilon'"),
        ("epsilon", [0.5, 0.5], r"levels: an order needs at least 2 different levels, got \[0.5, 0.5\]"),
        ("epsilon", [0.0, 1.5], "levels: of the kind 'epsilon' must be from 0 to 1, got 1.5"),
        ("checkpoint", [0.0, -0.5], "levels: of the kind 'checkpoint' must be from 0 to 1, got -0.5"),
        ("temperature", [-1.0, 1.0], "levels: of the kind 'temperature' must be 0 or more, got -1.0"),
        ("temperature", [1.0, math.inf], "levels: of the kind 'temperature' must be 0 or more, got inf"),
    ],
)
def test_wrong_ladders_are_refused(kind: Any, levels: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ladder(kind=kind, levels=levels)


def test_spearman_by_hand() -> None:
    """Ranks 1, 2, 3, 4 against 1, 3, 2, 4: 1 - 6 (1 + 1) / (4 * 15) = 0.8. With ties, Pearson of the mean ranks:
    (1, 2, 3) against (1.5, 1.5, 3): covariance 1.5, variances 2 and 1.5."""
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [5, 5, 9]) == pytest.approx(1.5 / math.sqrt(2 * 1.5))
    assert spearman([1, 2, 3], [5, 5, 5]) is None and spearman([], []) is None


def test_monotonicity_by_hand() -> None:
    comparisons = [noisy("a", 0.0, 0.5, 1.0), noisy("b", 0.0, 0.5, 1.0), noisy("c", 0.0, 0.5, 1.0)]
    gold = {"a": [3.0, 2.0, 1.0], "b": [1.0, 3.0, 2.0], "c": [0.0, 0.0, math.nan]}
    found = monotonicity(comparisons, gold)
    assert found is not None
    assert found["levels"] == [
        {"noise": 0.0, "num": 3, "gold": pytest.approx(4 / 3)},
        {"noise": 0.5, "num": 3, "gold": pytest.approx(5 / 3)},
        {"noise": 1.0, "num": 2, "gold": 1.5},
    ]
    assert found["spearman"] == pytest.approx((-1 + 0.5) / 2)
    assert found["num_flat"] == 1
    assert monotonicity([noisy("a", None, None)], {"a": [1.0, 2.0]}) is None


# --- the labels -------------------------------------------------------------------------------------------------------


def test_less_noise_is_better_and_equal_levels_give_no_pair() -> None:
    (judgment,) = NoiseLabeler(ladder=LADDER).label([noisy("a", 0.1, 0.0, 1.0, 0.1)])
    assert judgment.pairs == (
        Pair(0, 1, 0.0), Pair(0, 2, 1.0), Pair(1, 2, 1.0), Pair(1, 3, 1.0), Pair(2, 3, 0.0),
    )  # fmt: skip
    assert judgment.evidence == ({"noise": [0.1, 0.0, 1.0, 0.1]},)
    assert (judgment.abstained, judgment.person, judgment.labeler) == (None, "", "noise")


def test_levels_that_are_too_close_give_no_pair_and_are_counted() -> None:
    labeler = NoiseLabeler(ladder=LADDER, min_gap=0.1)
    one, two = labeler.label([noisy("a", 0.0, 0.1, 1.0), noisy("b", 0.1, 0.1)])
    assert one.pairs == (Pair(0, 2, 1.0), Pair(1, 2, 1.0))
    assert two.pairs == () and two.abstained == "noise_levels_too_close"
    assert labeler.facts() == {"num_close_pairs": 2}
    assert list(labeler.label([noisy("a", 0.0, 0.1)], done={"a"})) == [] and labeler.facts() == {"num_close_pairs": 1}
    for gap in (-0.1, 1.0):
        with pytest.raises(LabelerError, match="min_gap: must be from 0 to below 1, the ladder's height"):
            NoiseLabeler(ladder=LADDER, min_gap=gap)


@pytest.mark.parametrize("level", [None, 0.3])
def test_noise_that_is_not_of_the_ladder_is_an_error(level: float | None) -> None:
    with pytest.raises(LabelerError, match=rf"response 'a/1' has noise {level}, which is no level of the ladder"):
        list(NoiseLabeler(ladder=LADDER).label([noisy("a", 0.0, level)]))


def test_the_stage_writes_labels_and_says_whether_gold_falls_with_noise(workdir: Path) -> None:
    class Shortness:
        """The fewer words, the better."""

        columns = ("gold",)

        def texts(self) -> dict[str, str]:
            return {}

        def score(self, prompts: Any, responses: list[str]) -> dict[str, list[float]]:
            return {"gold": [-float(len(response.split())) for response in responses]}

    write_records(workdir / "sample" / "comparisons.jsonl", [noisy(f"c{i}", 0.0, 0.1, 1.0) for i in range(5)])
    stage = Label(labeler=NoiseLabeler(ladder=LADDER), scorer=Shortness())
    facts = run(stage, {"sample": workdir / "sample"}, workdir / "out")
    summary = read_json(workdir / "out" / "label.json")
    assert summary["gold"]["agreement"] == 1.0 and summary["noise"]["spearman"] == pytest.approx(-1)
    assert facts["gold_noise_spearman"] == pytest.approx(-1)
    assert len(read_records(workdir / "out" / "preferences.jsonl", Preference)) == 5
    assert all(len(j.pairs) == 3 for j in read_records(workdir / "out" / "judgments.jsonl", Judgment))


# --- the responses ----------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs(workdir: Path) -> dict[str, Path]:
    """Prompts, and three models of one fine-tuning."""
    sft = model_folder(workdir / "sft", "final")
    for share in (0.5, 1.0):
        (sft / kept_name(share)).mkdir()
        (sft / kept_name(share) / "config.json").write_text(f"left {share}")
    return {"data": data_folder(workdir), "sft": sft}


def sampled(inputs: dict[str, Path], folder: Path, ladder: Ladder | None) -> tuple[list[Comparison], FunctionEngine]:
    engine = FunctionEngine()
    run(Sample(engine=engine, seed=1, max_new_tokens=8, temperature=0.7, ladder=ladder), inputs, folder)
    return read_records(folder / "comparisons.jsonl", Comparison), engine


@pytest.mark.parametrize("kind", ["epsilon", "temperature"])
def test_a_response_for_every_level(kind: Any, inputs: dict[str, Path], workdir: Path) -> None:
    comparisons, engine = sampled(inputs, workdir / "out", Ladder(kind=kind, levels=[0, 0.5, 0.5, 1.0]))
    for own in comparisons:
        assert [r.noise for r in own.responses] == [0.0, 0.5, 0.5, 1.0]
        assert [r.id for r in own.responses] == [f"{own.id}/{k}" for k in range(4)]
        assert len({r.text for r in own.responses}) == 4  # each by the randomness of its own id
    expected = [Sampling(max_new_tokens=8, **{"temperature": 0.7, kind: level}) for level in (0.0, 0.5, 1.0)]
    assert engine.samplings == expected
    assert [len(asked) for asked in engine.generated] == [30, 60, 30] and len(engine.models) == 1


def test_a_ladder_of_checkpoints_asks_the_models_of_the_fine_tuning(inputs: dict[str, Path], workdir: Path) -> None:
    ladder = Ladder(kind="checkpoint", levels=[0.0, 1.0, 0.5, 0.0])
    comparisons, engine = sampled(inputs, workdir / "out", ladder)
    assert [Path(model).name for model in engine.models] == ["model", "left-1", "left-0.5"]
    assert {s.temperature for s in engine.samplings} == {0.7} and {s.epsilon for s in engine.samplings} == {0.0}
    for own in comparisons:
        assert [r.noise for r in own.responses] == [0.0, 1.0, 0.5, 0.0]
        models = [r.model for r in own.responses]
        assert models[0] == models[3] and len(set(models)) == 3
    with pytest.raises(DataError, match=r"left-0\.25: no such model; ladder\.levels has 0\.25, so sft\.keep_left must"):
        sampled(inputs, workdir / "no", Ladder(kind="checkpoint", levels=[0.0, 0.25]))


def test_without_a_ladder_nothing_speaks_of_noise(inputs: dict[str, Path], workdir: Path) -> None:
    comparisons, engine = sampled(inputs, workdir / "out", None)
    assert all(r.noise is None for own in comparisons for r in own.responses)
    rows = read_rows(workdir / "out" / "comparisons.jsonl")
    assert all("noise" not in response for row in rows for response in row["responses"])
    assert len(engine.samplings) == 1


@pytest.mark.parametrize("kind", ["epsilon", "checkpoint"])
def test_sampling_a_ladder_goes_on_where_it_was_cut(kind: Any, inputs: dict[str, Path], workdir: Path) -> None:
    ladder = Ladder(kind=kind, levels=[0.0, 0.5, 1.0])
    holds_when_cut(
        lambda: Sample(engine=FunctionEngine(), seed=1, max_new_tokens=8, ladder=ladder), inputs, workdir, cuts=6
    )
    assert set(finished(workdir / "whole")) == {"comparisons.jsonl", "sample.json"}


def test_noise_makes_a_round_trip(tmp_path: Path) -> None:
    comparisons = [noisy("a", 0.0, 0.1), noisy("b", None, 1.0)]
    write_records(tmp_path / "c.jsonl", comparisons)
    assert read_records(tmp_path / "c.jsonl", Comparison) == comparisons
    keys = [set(response) for row in read_rows(tmp_path / "c.jsonl") for response in row["responses"]]
    assert [("noise" in own) for own in keys] == [True, True, False, True]


def test_the_labeler_says_how_its_responses_are_sampled() -> None:
    settings = config.compose(["labeler=noise", "sft.keep_left=${labeler.ladder.levels}"])
    assert settings.sample["ladder"] == settings.labeler["ladder"] == settings.label["labeler"]["ladder"]
    assert settings.sft["keep_left"] == settings.labeler["ladder"]["levels"]
    assert config.compose(["labeler=ai"]).sample["ladder"] is None
    arms = [config.compose(["experiment=drex", *more]) for more in ([], ["labeler=ai"])]
    assert [arm.reward["head"] for arm in arms] == ["mean", "mean"]  # the reward model does not ask who labelled
    with pytest.raises(ConfigError, match=r"sample\.ladder: levels: an order needs at least 2 different levels"):
        config.build(config.compose(["labeler=noise", "labeler.ladder.levels=[1,1]"]), ["sample"])


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_draws_gold_along_the_ladder(tmp_path: Path) -> None:
    with_ladder, without = make_runs(tmp_path, num_comparisons=8)
    label = Path(read_json(with_ladder / "run.json")["stages"]["label"]["path"]) / "label.json"
    levels = [{"noise": 0.0, "num": 8, "gold": 1.5}, {"noise": 1.0, "num": 8, "gold": -1.0}]
    before = read_json(label) if label.is_file() else {}
    write_json(label, before | {"noise": {"levels": levels, "spearman": -1.0, "num_flat": 0}})
    config = yaml.safe_load((with_ladder / "config.yaml").read_text())
    (with_ladder / "config.yaml").write_text(yaml.safe_dump(config | {"sample": {"ladder": {"kind": "epsilon"}}}))
    report = gather([with_ladder, without], num_draws=50)
    ((title, (line,)),) = report.ladders.items()
    assert (title, list(line.x), list(line.y)) == ("Gold score by epsilon", [0.0, 1.0], [1.5, -1.0])
    drawn = pictures(report)
    assert "noise level" in drawn["ladders"]
    assert as_json(report)["ladders"]["Gold score by epsilon"][0]["name"] == line.name
    assert "noise on purpose" in render(report, drawn)
    plain = gather([without], num_draws=50)
    assert plain.ladders == {} and "noise on purpose" not in render(plain, pictures(plain))
