"""SFT on a tiny model: what the loss covers, what is written, and that the same seed gives the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from trl.trainer.sft_config import SFTConfig

from cai.datasets.splits import held_out
from cai.errors import CaiError, ConfigError, DataError
from cai.models.loading import encode_dialogue, load_causal_lm, load_tokenizer
from cai.records import digest_folder, read_rows, write_records
from cai.rl.local_trainer import LengthSampler
from cai.rl.models import RewardModel
from cai.rl.settings import TrainingSettings
from cai.rl.trainers import train_sft
from cai.stages.sft import SFT
from cai.types import Demonstration, Prompt, Turn


def demonstration(number: int, question: str, answer: str) -> Demonstration:
    prompt = Prompt(id=f"p{number}", turns=(Turn("user", question),), tags=("helpful",))
    return Demonstration(id=f"d{number}", prompt=prompt, text=answer, source="helpful" if number % 2 else "revision-1")


DEMONSTRATIONS = [
    demonstration(i, question, answer)
    for i, (question, answer) in enumerate(
        [
            ("how do i open the door ?", "first take a key and turn it slowly"),
            ("how do i turn the key ?", "slowly"),
            ("how do i open my house ?", "take a key then push the door"),
        ]
        * 4
    )
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_models.word_tokenizer()
    return tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, tmp_path_factory.mktemp("base"))


def run(
    base: Path, folder: Path, demonstrations: list[Demonstration] = DEMONSTRATIONS, **settings: Any
) -> dict[str, float]:
    write_records(folder / "in" / "sft.jsonl", demonstrations)
    (folder / "out").mkdir()
    given = {"seed": 0, "num_epochs": 4, "batch_size": 4, "device": "cpu", "validation_share": 0.0} | settings
    return SFT(model=str(base), **given).run({"revise": folder / "in"}, folder / "out")


def settings(**changes: Any) -> TrainingSettings:
    numbers = {"seed": 0, "num_epochs": 1, "batch_size": 4, "microbatch_size": None, "learning_rate": 1e-3}
    numbers |= {"schedule": "constant", "warmup_share": 0.0, "weight_decay": 0.0, "max_grad_norm": 1e6}
    rest = {"max_tokens": 64, "drop_too_long": False, "device": "cpu", "dtype": "float32"}
    return TrainingSettings(**{**numbers, **rest, **changes})


def test_the_stage_learns_and_writes_a_model_and_a_curve_and_nothing_else(base: Path, tmp_path: Path) -> None:
    facts = run(base, tmp_path, learning_rate=5e-3)
    curve = read_rows(tmp_path / "out" / "curve.jsonl")
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"] and facts["final_loss"] == curve[-1]["loss"]
    assert not {"train_runtime", "train_samples_per_second"} & set(curve[-1])
    names = set(digest_folder(tmp_path / "out"))
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json", "curve.jsonl"} <= names
    assert not [name for name in names if "training_args" in name or "checkpoint" in name or "README" in name]
    assert facts["num_rows"] == 12 and facts["num_helpful"] == 6 and facts["num_revision-1"] == 6
    model, tokenizer = load_causal_lm(tmp_path / "out" / "model"), load_tokenizer(tmp_path / "out" / "model")
    ids, start = encode_dialogue(tokenizer, DEMONSTRATIONS[1].prompt.turns, "slowly")
    assert tiny_models.full_logps(model, ids)[start - 1 :].exp().min() > 0.3  # the answer, and where to stop


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        run(base, folder, seed=seed, num_epochs=1)
    digests = [digest_folder(folder / "out") for folder in folders]
    assert digests[0] == digests[1]
    assert digests[0]["model/model.safetensors"] != digests[2]["model/model.safetensors"]


def test_the_loss_is_the_token_mean_over_responses_and_their_ends(base: Path) -> None:
    model, tokenizer = load_causal_lm(base), load_tokenizer(base)
    rows = [encode_dialogue(tokenizer, d.prompt.turns, d.text) for d in DEMONSTRATIONS[:4]]
    assert all(ids[-1] == tokenizer.eos_token_id for ids, _ in rows)
    logps = torch.cat([tiny_models.full_logps(model, ids)[start - 1 :] for ids, start in rows])
    (entry,) = train_sft(model, tokenizer, rows, settings())
    assert entry["loss"] == pytest.approx(-float(logps.mean()), rel=1e-5)


def test_several_gpus_do_not_make_the_batch_larger(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def several(**settings: Any) -> SFTConfig:
        arguments = SFTConfig(**settings)
        assert arguments.n_gpu == 0
        arguments._n_gpu = 4
        return arguments

    monkeypatch.setattr("cai.rl.trainers.SFTConfig", several)
    tokenizer = load_tokenizer(base)
    rows = [encode_dialogue(tokenizer, d.prompt.turns, d.text) for d in DEMONSTRATIONS]
    assert len(train_sft(load_causal_lm(base), tokenizer, rows, settings())) == len(rows) / 4


def test_microbatches_give_the_same_step(base: Path) -> None:
    weights = []
    for size in (None, 2, 1):
        model, tokenizer = load_causal_lm(base), load_tokenizer(base)
        rows = [encode_dialogue(tokenizer, d.prompt.turns, d.text) for d in DEMONSTRATIONS]
        train_sft(model, tokenizer, rows, settings(microbatch_size=size))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    before = torch.cat([p.detach().flatten() for p in load_causal_lm(base).parameters()])
    step = (weights[0] - before).abs().max()
    assert step > 1e-3
    # Adam's first steps are signs of the gradient, so that rounding in a gradient near 0 moves a weight by a little.
    assert (weights[1] - weights[0]).abs().median() < 1e-4 * step
    assert (weights[2] - weights[0]).abs().median() < 1e-4 * step


def test_held_out_demonstrations_are_measured_after_every_epoch(base: Path, tmp_path: Path) -> None:
    facts = run(base, tmp_path, validation_share=0.3, learning_rate=5e-3)
    out = held_out([d.prompt for d in DEMONSTRATIONS], 0.3)
    assert facts["num_validation"] == sum(out) and facts["num_rows"] == len(out) - sum(out)
    curve = [row for row in read_rows(tmp_path / "out" / "curve.jsonl") if "validation_loss" in row]
    assert [row["epoch"] for row in curve] == [1.0, 2.0, 3.0, 4.0]
    assert facts["validation_loss"] == curve[-1]["validation_loss"] < curve[0]["validation_loss"]
    model, tokenizer = load_causal_lm(tmp_path / "out" / "model"), load_tokenizer(base)
    rows = [
        encode_dialogue(tokenizer, d.prompt.turns, d.text) for d, held in zip(DEMONSTRATIONS, out, strict=True) if held
    ]
    logps = torch.cat([tiny_models.full_logps(model, ids)[start - 1 :] for ids, start in rows])
    assert facts["validation_loss"] == pytest.approx(-float(logps.mean()), rel=1e-5)


def test_the_epoch_that_a_reward_model_likes_best_is_kept(base: Path, tmp_path: Path) -> None:
    reward = RewardModel.from_language_model(base, seed=3)
    reward.save(tmp_path / "reward")
    kept = run(base, tmp_path / "a", validation_share=0.5, learning_rate=2e-2, select_by=str(tmp_path / "reward"))
    curve = [row for row in read_rows(tmp_path / "a" / "out" / "curve.jsonl") if "validation_reward" in row]
    rewards = [row["validation_reward"] for row in curve]
    assert len(rewards) == 4 and kept["validation_reward"] == max(rewards)
    assert kept["best_epoch"] == rewards.index(max(rewards)) + 1
    model, tokenizer = load_causal_lm(tmp_path / "a" / "out" / "model"), load_tokenizer(base)
    held = zip(DEMONSTRATIONS, held_out([d.prompt for d in DEMONSTRATIONS], 0.5), strict=True)
    rows = [encode_dialogue(tokenizer, d.prompt.turns, d.text) for d, out in held if out]
    logps = torch.cat([tiny_models.full_logps(model, ids)[start - 1 :] for ids, start in rows])
    best = curve[int(kept["best_epoch"]) - 1]["validation_loss"]
    assert best == pytest.approx(-float(logps.mean()), rel=1e-5)
    assert len({row["validation_loss"] for row in curve}) == 4  # so that the line above tells the epochs apart
    with pytest.raises(ConfigError, match="select_by: needs held-out prompts"):
        SFT(model=str(base), seed=0, select_by="x", validation_share=0)


@pytest.mark.slow
def test_models_on_the_way_are_kept(base: Path, tmp_path: Path) -> None:
    """4 epochs of 3 steps: the base model, after a quarter and three quarters; the end is the model itself."""
    for name, changes in (("plain", {}), ("kept", {"keep_left": [1.0, 0.75, 0.25, 0.0]}), ("short", {"num_epochs": 1})):
        run(base, tmp_path / name, schedule="constant", warmup_share=0.0, **changes)
    digests = {name: digest_folder(tmp_path / name / "out") for name in ("plain", "kept", "short")}
    folders = {name.partition("/")[0] for name in digests["kept"]}
    assert folders == {"model", "left-1", "left-0.75", "left-0.25", "curve.jsonl"}
    assert {name: d for name, d in digests["kept"].items() if not name.startswith("left")} == digests["plain"]
    before, kept = (load_causal_lm(folder).state_dict() for folder in (base, tmp_path / "kept" / "out" / "left-1"))
    assert all(torch.equal(kept[key], value) for key, value in before.items())
    # with a constant rate, a quarter of the training is a training of a quarter
    quarter = digests["kept"]["left-0.75/model.safetensors"]
    assert quarter == digests["short"]["model/model.safetensors"] != digests["kept"]["left-0.25/model.safetensors"]
    with pytest.raises(ConfigError, match=r"keep_left: shares are from 0 to 1, got 1\.5"):
        SFT(model=str(base), seed=0, keep_left=[1.5])


def test_rows_that_are_too_long_are_refused_or_dropped_and_counted(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sft\.jsonl: 8 of 12 rows are longer than 15 tokens .* the longest 19"):
        run(base, tmp_path / "a", max_tokens=15)
    facts = run(base, tmp_path / "b", max_tokens=15, drop_too_long=True)
    assert facts["num_rows"] == 4 and facts["num_too_long"] == 8
    with pytest.raises(DataError, match="12 of 12 rows are longer"):
        run(base, tmp_path / "c", max_tokens=5, drop_too_long=True)


def test_nothing_to_train_on_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sft\.jsonl: no demonstrations"):
        run(base, tmp_path, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate: must be above 0, got nan"),
        ({"microbatch_size": 3, "batch_size": 8}, r"microbatch_size: must divide batch_size \(8\), got 3"),
        ({"schedule": "cosin"}, "schedule: unknown choice 'cosin'; did you mean 'cosine'"),
        ({"warmup_share": 1.0}, "warmup_share: must be below 1"),
        (
            {"device": "cuda:2"},
            "device: .* first GPU it sees, got 'cuda:2'; set CUDA_VISIBLE_DEVICES=2 and device=cuda",
        ),
    ],
)
def test_wrong_settings_are_refused_before_anything_loads(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SFT(model="nowhere", seed=0, **changes)


def test_the_fingerprint_knows_the_base_model(base: Path) -> None:
    assert len(SFT(model=str(base), seed=0).texts()["model"]) == 64
    with pytest.raises(CaiError, match="nowhere"):
        SFT(model=str(base / "nowhere"), seed=0).texts()


def test_batches_are_of_similar_length_in_random_order() -> None:
    lengths = [(7 * i) % 41 + 1 for i in range(330)]
    sampler = LengthSampler(lengths, batch_size=8, seed=0)
    epochs = [list(sampler), list(sampler)]
    assert all(sorted(epoch) == list(range(330)) for epoch in epochs) and epochs[0] != epochs[1]
    assert list(LengthSampler(lengths, batch_size=8, seed=0)) == epochs[0]
    assert list(LengthSampler(lengths, batch_size=8, seed=1)) != epochs[0]
    batches = [epochs[0][i : i + 8] for i in range(0, 330, 8)]
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)  # in random batches: about 1.8 times
    longest = [max(lengths[i] for i in batch) for batch in batches[:-1]]
    assert longest != sorted(longest, reverse=True) and longest != sorted(longest)
