"""The reward model on tiny models: labels learnt, score read at the right token, offset kept, prompts held out."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForSequenceClassification

from cai.datasets.splits import held_out
from cai.errors import ConfigError, DataError, ModelError
from cai.records import digest_folder, read_json, read_rows, write_records
from cai.rl.calibration import calibrated, fit_temperature, log_loss
from cai.rl.models import RewardModel, score_head
from cai.rl.reward_scores import Constants
from cai.stages.reward import Reward
from cai.types import Demonstration, Pair, Preference, Prompt, Turn

QUESTIONS = ["how do i open the door ?", "how do i turn the key ?", "my house ?", "the old door of my house ?"]
ANSWERS = ["yes turn it slowly", "no turn it slowly", "first take a key then yes", "no push the door"]


def prompt(number: int) -> Prompt:
    text = f"{QUESTIONS[number % 4]} {tiny_models.WORDS[number % 20]} {tiny_models.WORDS[number // 20]}"
    return Prompt(
        id=f"p{number}", turns=(Turn("user", text),), tags=("red_team",) if number % 2 else ("helpful", "easy")
    )


def preference(number: int) -> Preference:
    """Answers with `yes` are liked; now and then three of them at once, and soft labels."""
    answers = tuple(ANSWERS[(number + i) % 4] for i in range(3 if number % 5 == 0 else 2))
    liked = ["yes" in answer for answer in answers]
    pairs = tuple(
        Pair(i, j, 0.5 + 0.45 * (liked[i] - liked[j])) for i in range(len(answers)) for j in range(i + 1, len(answers))
    )
    return Preference(id=f"c{number}", prompt=prompt(number), responses=answers, pairs=pairs, labeler="test")


PREFERENCES = [preference(i) for i in range(60)]
DEMONSTRATIONS = [
    Demonstration(id=f"d{i}", prompt=prompt(200 + i), text=ANSWERS[i % 4], source="helpful") for i in range(9)
]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_models.word_tokenizer()
    folder = tmp_path_factory.mktemp("sft")
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder / "model")
    return folder


def run(
    sft: Path,
    folder: Path,
    preferences: list[Preference] = PREFERENCES,
    demonstrations: list[Demonstration] = DEMONSTRATIONS,
    **settings: Any,
) -> dict[str, float]:
    write_records(folder / "label" / "preferences.jsonl", preferences)
    write_records(folder / "data" / "demonstrations.jsonl", demonstrations)
    (folder / "out").mkdir()
    given = {"seed": 0, "num_epochs": 8, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu", "held_out_share": 0.2}
    inputs = {"data": folder / "data", "sft": sft, "label": folder / "label"}
    return Reward(**{**given, **settings}).run(inputs, folder / "out")


@pytest.fixture(scope="module")
def trained(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("reward")
    return folder / "out", run(sft, folder)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_learns_the_labels(trained: tuple[Path, dict[str, float]]) -> None:
    folder, facts = trained
    metrics = read_json(folder / "metrics.json")
    clear = [row for row in read_rows(folder / "held_out.jsonl") if row["p"] != 0.5]
    assert np.mean([(row["delta"] > 0) == (row["p"] > 0.5) for row in clear]) > 0.9
    assert facts["accuracy"] == metrics["accuracy"] > 0.7  # a third of the pairs has no better side
    assert metrics["entropy_floor"] < metrics["log_loss"] < 0.8 * math.log(2)
    assert 0 <= metrics["ece"] < 0.2 and sum(b["count"] for b in metrics["reliability"]) == metrics["num_pairs"]
    assert metrics["num_pairs"] + metrics["num_train_pairs"] == sum(len(p.pairs) for p in PREFERENCES)
    assert set(metrics["by_tag"]) == {"easy", "helpful", "red_team"}
    assert (
        metrics["by_tag"]["helpful"]["num_pairs"] + metrics["by_tag"]["red_team"]["num_pairs"] == metrics["num_pairs"]
    )
    curve = read_rows(folder / "curve.jsonl")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    assert not [name for name in digest_folder(folder) if "training_args" in name or "README" in name]


def test_pairs_with_a_correction_are_measured_by_themselves(sft: Path, tmp_path: Path) -> None:
    """A labeler's own text differs in style from the policy's: a model that knows style alone would show here."""
    corrected = [
        replace(p, responses=(*p.responses, "first take a key"), pairs=(*p.pairs, Pair(0, len(p.responses), 0.0)))
        for p in PREFERENCES
    ]
    run(sft, tmp_path, [replace(p, num_corrections=1) for p in corrected], num_epochs=1)
    rows = read_rows(tmp_path / "out" / "held_out.jsonl")
    prompts = {row["prompt_id"] for row in rows}
    by_tag = read_json(tmp_path / "out" / "metrics.json")["by_tag"]
    assert by_tag["correction"]["num_pairs"] == len(prompts) == sum("correction" in row["tags"] for row in rows)


def test_held_out_rows_are_the_scores_that_the_metrics_are_of(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    metrics, rows = read_json(folder / "metrics.json"), read_rows(folder / "held_out.jsonl")
    by_id = {p.prompt.id: p for p in PREFERENCES}
    reward = RewardModel.load(folder / "model")
    for row in rows:
        source = by_id[row["prompt_id"]]
        scores = reward.score([source.prompt] * 2, [source.responses[row["first"]], source.responses[row["second"]]])
        assert float(scores[0] - scores[1]) == pytest.approx(row["delta"], abs=1e-4)
        assert Pair(row["first"], row["second"], row["p"]) in source.pairs
    losses = [np.logaddexp(0, -r["delta"]) * r["p"] + np.logaddexp(0, r["delta"]) * (1 - r["p"]) for r in rows]
    assert metrics["log_loss"] == pytest.approx(np.mean(losses))
    assert metrics["std"] > 0


def test_demonstrations_score_zero_on_average_and_a_reload_keeps_it(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    reward = RewardModel.load(folder / "model")
    assert reward.offset != 0
    prompts, texts = [d.prompt for d in DEMONSTRATIONS], [d.text for d in DEMONSTRATIONS]
    scores = reward.score(prompts, texts)
    assert abs(float(scores.mean())) < 1e-5 and float(scores.std()) > 0.1
    # the offset is not in the head, where Hugging Face would drop it
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    for row, score in zip(reward.encode(prompts, texts), scores.tolist(), strict=True):
        with torch.no_grad():
            raw = float(plain(torch.tensor([row.ids])).logits)
        assert raw + reward.offset == pytest.approx(score, abs=1e-5)


def test_without_demonstrations_the_policys_samples_score_zero(sft: Path, tmp_path: Path) -> None:
    run(sft, tmp_path, demonstrations=[], num_epochs=1)
    out = held_out([p.prompt for p in PREFERENCES], 0.2)
    held = [p for p, side in zip(PREFERENCES, out, strict=True) if side]
    reward = RewardModel.load(tmp_path / "out" / "model")
    scores = reward.score([p.prompt for p in held for _ in p.responses], [r for p in held for r in p.responses])
    assert abs(float(scores.mean())) < 1e-5
    assert float(scores.std(correction=0)) == pytest.approx(reward.std, rel=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(sft: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        run(sft, folder, seed=seed, num_epochs=1)
    digests = [digest_folder(folder / "out") for folder in folders]
    assert digests[0] == digests[1]
    assert digests[0]["model/model.safetensors"] != digests[2]["model/model.safetensors"]


def test_errors_name_the_file(sft: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"preferences\.jsonl: 1 preferences"):
        run(sft, tmp_path / "a", PREFERENCES[:1])
    with pytest.raises(DataError, match=r"preferences\.jsonl: \d+ of 60 rows are longer than 14"):
        run(sft, tmp_path / "b", max_tokens=14)
    for pairs, problem in (
        ((), "has no pairs"),
        ((Pair(0, 5, 1.0),), "has the pair"),
        ((Pair(0, 1, 1.5),), "has the pair"),
        ((Pair(0, 1, 1.0, weight=0.0),), "has the pair"),
        ((Pair(0, 1, 1.0, margin=-1.0),), "has the pair"),
    ):
        broken = [*PREFERENCES[:3], replace(PREFERENCES[3], pairs=pairs)]
        with pytest.raises(DataError, match=rf"preferences\.jsonl: preference 'c3' {problem}"):
            run(sft, tmp_path / f"{problem} {pairs}", broken)
    with pytest.raises(ConfigError, match="held_out_share: must be between 0 and 1"):
        Reward(seed=0, held_out_share=1.0)
    with pytest.raises(ModelError, match=r"no reward\.json"):
        RewardModel.load(sft / "model")


def test_the_temperature_is_kept_and_is_not_in_the_scores(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    metrics, rows = read_json(folder / "metrics.json"), read_rows(folder / "held_out.jsonl")
    delta, target = (np.array([row[key] for row in rows]) for key in ("delta", "p"))
    temperature = RewardModel.load(folder / "model").constants.temperature
    assert temperature == metrics["temperature"] == fit_temperature(delta, target) != 1.0
    after = calibrated(delta, target, [row["prompt_id"] for row in rows])
    assert metrics["calibrated_log_loss"] == log_loss(after, target) and metrics["log_loss"] == log_loss(delta, target)
    assert 0 <= metrics["calibrated_ece"] < 1


@pytest.mark.slow
def test_an_ensemble_with_a_gain_survives_a_reload(sft: Path, tmp_path: Path) -> None:
    facts = run(sft, tmp_path, num_epochs=1, num_models=3, pessimism=0.5, normalise="gain_and_bias")
    folder = tmp_path / "out" / "model"
    reward = RewardModel.load(folder)
    constants = reward.constants
    assert len(reward.others) == 2 and constants.pessimism == 0.5 and constants.gain != 1.0 == reward.std
    # each folder is a plain model of transformers, with weights of its own
    folders = [folder, folder / "member-2", folder / "member-3"]
    plain = [AutoModelForSequenceClassification.from_pretrained(path) for path in folders]
    (row,) = reward.encode([prompt(1)], [ANSWERS[0]])
    with torch.no_grad():
        raw = [float(model(torch.tensor([row.ids])).logits) for model in plain]
    assert len({round(value, 4) for value in raw}) == 3
    own = np.add(raw, [constants.offset, *constants.other_offsets])
    expected = constants.gain * (own.mean() - 0.5 * own.std())
    assert float(reward.score_rows([row])) == pytest.approx(expected, abs=1e-5)
    scores = reward.score([d.prompt for d in DEMONSTRATIONS], [d.text for d in DEMONSTRATIONS])
    assert abs(float(scores.mean())) < 1e-5
    names = set(digest_folder(tmp_path / "out"))
    assert {"curve.jsonl", "curve-2.jsonl", "curve-3.jsonl"} <= names
    assert facts["num_tokens"] % 3 == 0


@pytest.mark.slow
def test_more_models_leave_the_first_as_it_is(sft: Path, tmp_path: Path) -> None:
    run(sft, tmp_path / "a", num_epochs=1)
    run(sft, tmp_path / "b", num_epochs=1, num_models=2)
    one, two = (digest_folder(tmp_path / name / "out") for name in "ab")
    assert one["model/model.safetensors"] == two["model/model.safetensors"] and one["curve.jsonl"] == two["curve.jsonl"]


@pytest.mark.parametrize("head", ["sum", "mean"])
@pytest.mark.slow
def test_a_head_at_every_token_learns_the_labels(head: str, sft: Path, tmp_path: Path) -> None:
    run(sft, tmp_path, head=head, learning_rate=3e-3)
    rows = read_rows(tmp_path / "out" / "held_out.jsonl")
    clear = [row for row in rows if row["p"] != 0.5]
    assert np.mean([(row["delta"] > 0) == (row["p"] > 0.5) for row in clear]) > 0.8
    reward = RewardModel.load(tmp_path / "out" / "model")
    encoded = reward.encode([prompt(0), prompt(3)], [ANSWERS[2], ANSWERS[1]])
    for row, score in zip(encoded, reward.score_rows(encoded).tolist(), strict=True):
        with torch.no_grad():
            hidden = reward.model.base_model(torch.tensor([row.ids])).last_hidden_state[0]
            outputs = score_head(reward.model)(hidden)[row.num_prompt :, 0]
        expected = float(outputs.sum() if head == "sum" else outputs.mean())
        assert score == pytest.approx(expected + reward.offset, abs=1e-4)


def test_a_reward_model_from_before_there_were_ensembles_is_read(sft: Path, tmp_path: Path) -> None:
    RewardModel.from_language_model(sft / "model", seed=0).save(tmp_path)
    (tmp_path / "reward.json").write_text('{"offset": 0.5, "std": 2.0}')
    reward = RewardModel.load(tmp_path)
    assert reward.constants == Constants(offset=0.5, std=2.0) and not reward.others
    (tmp_path / "reward.json").write_text('{"offset": 0.5, "std": 2.0, "head": "first"}')
    with pytest.raises(ModelError, match=r"reward\.json: unknown head 'first'.* Allowed: last, mean, sum"):
        RewardModel.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_models": 0}, "num_models: must be 1 or more, got 0"),
        ({"pessimism": 1.0}, "pessimism: needs num_models above 1, got 1.0"),
        ({"pessimism": -1.0, "num_models": 2}, "pessimism: must be 0 or more, got -1.0"),
        ({"normalise": "gain"}, "normalise: unknown choice 'gain'"),
        ({"head": "frist"}, "head: unknown choice 'frist'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Reward(seed=0, **changes)
