"""DPO, RLOO, best-of-n and expert iteration on tiny models: each runs for real, learns, and reports as PPO does."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from worlds import FunctionEngine, noise

from cai.errors import ConfigError, DataError
from cai.models.loading import load_causal_lm, load_tokenizer
from cai.records import digest_folder, read_json, read_records, read_rows, write_records
from cai.rewards import ColumnReward, Part
from cai.rl.best_of_n import best_of, kl_bound
from cai.rl.models import RewardModel
from cai.rl.sampling_settings import MEASURES
from cai.stages.best_of_n import BestOfN
from cai.stages.dpo import DPO, hard_pairs
from cai.stages.evaluate import Evaluate
from cai.stages.expert_iteration import ExpertIteration
from cai.stages.rloo import RLOO
from cai.types import Pair, Preference, Prompt, Response, Turn

Inputs = dict[str, Path]
FEW = {"seed": 0, "max_new_tokens": 6, "device": "cpu"}
TRAINING = {**FEW, "learning_rate": 3e-3, "warmup_share": 0.0, "schedule": "constant"}


class Keys:
    """A scorer: how many words there are, and how many of them are `key`."""

    columns: tuple[str, ...] = ("words", "keys")

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"scorer": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        words = [response.split() for response in responses]
        return {"words": [float(len(w)) for w in words], "keys": [float(w.count("key")) for w in words]}


def prompt(number: int) -> Prompt:
    return Prompt(id=f"p{number}", turns=(Turn("user", " ".join(tiny_models.WORDS[number : number + 3])),))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """SL-CAI, a reward model, prompts, and preferences for `key` over `door`."""
    folder, tokenizer = tmp_path_factory.mktemp("inputs"), tiny_models.word_tokenizer()
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder / "sft" / "model")
    reward = RewardModel.from_language_model(folder / "sft" / "model", seed=5)
    reward.save(folder / "reward" / "model")
    prompts = [prompt(number) for number in range(12)]
    write_records(folder / "data" / "rl.jsonl", prompts)
    write_records(folder / "data" / "evaluation.jsonl", prompts[:4])
    write_records(folder / "label" / "preferences.jsonl", [preference(p, 0.9) for p in prompts])
    return {name: folder / name for name in ("data", "sft", "reward", "label")}


def preference(asked: Prompt, p: float) -> Preference:
    return Preference(
        id=asked.id, prompt=asked, responses=("take the key", "open the door"), pairs=(Pair(0, 1, p),), labeler="x"
    )


def run(stage: Any, inputs: Inputs, output: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    output.mkdir()
    facts = stage.run(inputs, output)
    return facts, read_rows(output / "curve.jsonl")


def logp(model: Path, ids: list[int], start: int) -> float:
    return float(tiny_models.full_logps(load_causal_lm(model), ids)[start - 1 :].sum())


# --- DPO --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dpo_prefers_what_is_preferred_and_reports_as_ppo_does(inputs: Inputs, tmp_path: Path) -> None:
    stage = DPO(**TRAINING, num_epochs=4, batch_size=4, num_measurements=3, num_measured=8, scorer=Keys())
    facts, curve = run(stage, inputs, tmp_path / "out")
    assert [(row["update"], row["step"]) for row in curve] == [(1, 0), (2, 4), (3, 8), (4, 12)]
    assert {*MEASURES, "words", "keys"} <= set(curve[0]) and "policy_loss" in curve[-1]
    assert abs(curve[0]["kl"]) < 1e-4 < curve[-1]["kl"] == facts["kl"]
    # the implicit reward of DPO's loss: accuracies and margins of its own pairs
    assert curve[-1]["implicit_accuracy"] == 1 and curve[-1]["policy_loss"] < 0.4 < math.log(2)
    assert facts["num_pairs"] == 12 and facts["num_ties"] == 0
    assert set(digest_folder(tmp_path / "out")) >= {"model/model.safetensors", "model/tokenizer.json", "curve.jsonl"}
    ((pair, *_), _) = hard_pairs(load_tokenizer(inputs["sft"] / "model"), [preference(prompt(0), 0.9)])
    margins = [
        logp(folder / "model", pair.prompt + pair.chosen, len(pair.prompt))
        - logp(folder / "model", pair.prompt + pair.rejected, len(pair.prompt))
        for folder in (inputs["sft"], tmp_path / "out")
    ]
    assert margins[1] > margins[0] + 3


def test_the_first_loss_of_dpo_is_that_of_the_paper(inputs: Inputs, tmp_path: Path) -> None:
    """-log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)), summed over tokens, the end token too."""
    one = {"label": tmp_path}
    write_records(tmp_path / "preferences.jsonl", [preference(prompt(0), 0.9)])
    stage = DPO(**TRAINING, beta=0.5, num_epochs=2, batch_size=1, num_measurements=2, num_measured=1)
    _, curve = run(stage, inputs | one, tmp_path / "out")
    assert curve[1]["policy_loss"] == pytest.approx(math.log(2), abs=1e-5)
    first = DPO(**TRAINING, beta=0.5, num_epochs=1, batch_size=1, num_measurements=2, num_measured=1)
    run(first, inputs | one, tmp_path / "first")
    ((pair,), _) = hard_pairs(load_tokenizer(inputs["sft"] / "model"), [preference(prompt(0), 0.9)])
    assert pair.chosen[-1] == pair.rejected[-1] == 2  # the end of the turn is learnt too
    ratios = [
        logp(tmp_path / "first" / "model", pair.prompt + ids, len(pair.prompt))
        - logp(inputs["sft"] / "model", pair.prompt + ids, len(pair.prompt))
        for ids in (pair.chosen, pair.rejected)
    ]
    expected = math.log1p(math.exp(-0.5 * (ratios[0] - ratios[1])))
    assert curve[2]["policy_loss"] == pytest.approx(expected, rel=1e-3)


def test_soft_labels_become_hard_pairs_and_ties_are_counted(inputs: Inputs) -> None:
    tokenizer = load_tokenizer(inputs["sft"] / "model")
    pairs, num_ties = hard_pairs(tokenizer, [preference(prompt(0), p) for p in (0.6, 0.4, 0.5)])
    assert num_ties == 1 and len(pairs) == 2
    assert pairs[0].chosen == pairs[1].rejected and pairs[0].rejected == pairs[1].chosen
    assert tokenizer.decode(pairs[0].chosen).split() == ["take", "the", "key", "<end>"]


# --- RLOO -------------------------------------------------------------------------------------------------------------


def rloo(**changes: Any) -> RLOO:
    given = {**TRAINING, "num_updates": 3, "rollout_size": 16, "batch_size": 8, "num_generations": 4}
    return RLOO(**{**given, **changes})


def test_rloo_writes_a_policy_and_its_curve(inputs: Inputs, tmp_path: Path) -> None:
    facts, curve = run(rloo(scorer=Keys(), num_epochs=2), inputs, tmp_path / "out")
    assert [(row["update"], row["step"]) for row in curve] == [(1, 4), (2, 8), (3, 12)]
    assert {*MEASURES, "words", "keys", "policy_loss", "clipfrac", "learning_rate"} <= set(curve[0])
    assert abs(curve[0]["kl"]) < 1e-4 < abs(curve[-1]["kl"])
    assert facts["num_episodes"] == 48 and facts["score"] == curve[-1]["score_mean"]
    again, _ = run(rloo(num_epochs=2), inputs, tmp_path / "again")
    digests = [digest_folder(tmp_path / name)["model/model.safetensors"] for name in ("out", "again")]
    assert digests[0] == digests[1] and again == facts


@pytest.mark.slow
def test_rloo_learns_a_rule_and_logs_each_reward_apart(inputs: Inputs, tmp_path: Path) -> None:
    """One unit per `key`, a tenth off per word, and nothing of the reward model."""
    rule = [
        Part(name="keys", reward=ColumnReward(scorer=Keys(), column="keys")),
        Part(name="words", weight=-0.1, reward=ColumnReward(scorer=Keys(), column="words")),
        Part(name="learnt", weight=0.0),
    ]
    stage = rloo(num_updates=25, rollout_size=64, batch_size=16, beta=0.0, missing_eos_penalty=0.0, rewards=rule)
    _, curve = run(stage, inputs, tmp_path / "out")
    first, last = curve[0], curve[-1]
    assert last["reward_keys"] > 3 > 1 > first["reward_keys"]
    for row in (first, last):
        assert row["score_mean"] == pytest.approx(row["reward_keys"] - 0.1 * row["reward_words"], abs=1e-5)
        assert row["reward_learnt"] != 0


# --- best-of-n --------------------------------------------------------------------------------------------------------


def test_the_curve_of_best_of_n_is_the_mean_over_all_subsets() -> None:
    generator = np.random.default_rng(0)
    scores, gold = generator.normal(size=(5, 6)), generator.normal(size=(5, 6))
    gold[1, 2] = np.nan
    for k in (1, 2, 3, 6):
        subsets = list(itertools.combinations(range(6), k))
        best = [[max(s, key=lambda i: scores[row, i]) for s in subsets] for row in range(5)]
        picked = [[table[row, i] for row in range(5) for i in best[row]] for table in (scores, gold)]
        assert best_of(k, scores, [scores, gold]) == pytest.approx([np.nanmean(values) for values in picked])
    assert best_of(2, scores, [np.full((5, 6), np.nan)]) == [None]


def test_the_bound_is_the_kl_of_a_continuous_score() -> None:
    """The best of n uniform scores has density n u^(n-1), whose KL to the uniform one is the formula."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 16):
        density = n * u ** (n - 1)
        assert kl_bound(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)


def test_best_of_n_is_sl_cai_with_a_choice(inputs: Inputs, tmp_path: Path) -> None:
    facts, curve = run(BestOfN(**FEW, n=6, num_prompts=5, scorer=Keys()), inputs, tmp_path / "rl")
    assert [row["n"] for row in curve] == [1, 2, 4, 6]
    assert [row["kl"] for row in curve] == [kl_bound(n) for n in (1, 2, 4, 6)] and facts["kl_bound"] == kl_bound(6)
    scores = [row["score_mean"] for row in curve]
    assert scores == sorted(scores) and scores[-1] > scores[0] and {"words", "keys"} <= set(curve[0])
    assert digest_folder(tmp_path / "rl" / "model") == digest_folder(inputs["sft"] / "model")
    assert read_json(tmp_path / "rl" / "best_of_n.json") == {"n": 6}


def engine(*, model: str) -> FunctionEngine:
    return FunctionEngine(reply=lambda asked, key: " ".join(tiny_models.WORDS[: 1 + int(12 * noise(key))]))


def evaluate(inputs: Inputs, output: Path, **changes: Any) -> list[Response]:
    output.mkdir()
    given = {"seed": 0, "max_new_tokens": 6, "num_samples": 2, "model": str(inputs["sft"] / "model"), "scorer": Keys()}
    Evaluate(engine=engine, **{**given, **changes}).run(inputs, output)
    return read_records(output / "responses.jsonl", Response)


def test_the_evaluation_keeps_the_best_of_n(inputs: Inputs, tmp_path: Path) -> None:
    run(BestOfN(**FEW, n=5, num_prompts=2), inputs, tmp_path / "rl")
    given = {"data": inputs["data"], "reference": inputs["sft"], "reward": inputs["reward"]}
    plain = evaluate(given | {"sft": inputs["sft"], "model": inputs["sft"]}, tmp_path / "plain")
    best = evaluate(given | {"sft": inputs["sft"], "model": tmp_path / "rl"}, tmp_path / "best")
    assert [response.id for response in best] == [response.id for response in plain]  # so that win rates can pair them
    tried = {r.id: r for r in read_records(tmp_path / "best" / "responses.journal", Response)}
    assert len(tried) == 4 * 2 * 5
    reward = RewardModel.load(inputs["reward"] / "model")
    prompts = {p.id: p for p in read_records(inputs["data"] / "evaluation.jsonl", Prompt)}
    for response in best:
        own = [tried[f"{response.id}/{k}"].text.strip() for k in range(5)]
        scores = reward.score([prompts[response.prompt_id]] * 5, own)
        assert response.text == own[int(scores.argmax())]
    rows, summary = read_rows(tmp_path / "best" / "scores.jsonl"), read_json(tmp_path / "best" / "summary.json")
    assert all(row["logp"] is None and row["logp_reference"] < 0 and row["kl"] == kl_bound(5) for row in rows)
    assert summary["all"]["kl"] == {"mean": pytest.approx(kl_bound(5)), "num": 8} and "logp" not in summary["all"]
    shortest = [Part(name="short", weight=-1.0, reward=ColumnReward(scorer=Keys(), column="words"))]
    short = evaluate(given | {"sft": inputs["sft"], "model": tmp_path / "rl"}, tmp_path / "short", rewards=shortest)
    for response in short:
        lengths = [len(tried[f"{response.id}/{k}"].text.split()) for k in range(5)]
        assert len(response.text.split()) == min(lengths)


# --- expert iteration -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_expert_iteration_moves_to_what_the_reward_prefers(inputs: Inputs, tmp_path: Path) -> None:
    keys = [Part(name="keys", reward=ColumnReward(scorer=Keys(), column="keys"))]
    stage = ExpertIteration(
        **TRAINING, num_rounds=4, num_prompts=24, n=8, batch_size=8, num_epochs=2, rewards=keys, scorer=Keys()
    )
    facts, curve = run(stage, inputs, tmp_path / "out")
    assert [row["update"] for row in curve] == [1, 2, 3, 4, 5]
    assert {*MEASURES, "words", "keys", "reward_keys"} <= set(curve[0])
    assert abs(curve[0]["kl"]) < 1e-4 < 0.1 < curve[-1]["kl"] == facts["kl"]
    assert curve[-1]["keys"] > curve[0]["keys"] + 0.5 and curve[-1]["score_mean"] == curve[-1]["keys"]
    assert curve[-1]["eos_rate"] > curve[0]["eos_rate"]  # what was cut off is never learnt
    assert 0 < facts["num_kept"] <= 96 and "policy_loss" not in curve[-1]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_wrong_settings_are_refused_before_anything_loads() -> None:
    with pytest.raises(ConfigError, match=r"beta: must be above 0, got 0"):
        DPO(seed=0, beta=0)
    with pytest.raises(ConfigError, match=r"num_generations: a baseline needs at least 2, got 1"):
        rloo(num_generations=1)
    with pytest.raises(ConfigError, match=r"num_generations: must divide rollout_size \(16\), got 5"):
        rloo(num_generations=5)
    with pytest.raises(ConfigError, match=r"temperature: must be above 0, got 0"):
        rloo(temperature=0.0)
    with pytest.raises(ConfigError, match=r"n: there must be at least 2 samples to choose from, got 1"):
        BestOfN(seed=0, n=1)
    with pytest.raises(ConfigError, match=r"rewards: names must differ, got a, a"):
        ExpertIteration(seed=0, rewards=[Part(name="a"), Part(name="a")])

    class Clash(Keys):
        columns = ("words", "kl")

    with pytest.raises(ConfigError, match="column 'kl' has the name of a column of the curve"):
        BestOfN(seed=0, scorer=Clash())


def test_files_with_nothing_to_learn_from_are_errors(inputs: Inputs, tmp_path: Path) -> None:
    write_records(tmp_path / "preferences.jsonl", [preference(prompt(0), 0.5)])
    with pytest.raises(DataError, match=r"preferences\.jsonl: no pairs to learn from \(1 have an even label\)"):
        run(DPO(**TRAINING), inputs | {"label": tmp_path}, tmp_path / "a")
    with pytest.raises(DataError, match=r"rl\.jsonl: the longest prompt has \d+ tokens, which with"):
        run(rloo(max_new_tokens=511), inputs, tmp_path / "b")
    write_records(tmp_path / "rl.jsonl", [])
    with pytest.raises(DataError, match=r"rl\.jsonl: no prompts"):
        run(BestOfN(**FEW), inputs | {"data": tmp_path}, tmp_path / "c")
    assert torch.is_grad_enabled()
