"""T-REX on ranked texts with a known gold reward: it ranks what is better than all it saw, and a policy gets there.

The world: an answer is worth its share of `yes`. Ranked demonstrations, as of a learner that is still bad, reach 0.4.
"""

import random
from pathlib import Path

import pytest
import tiny_models

from cai.models.loading import load_causal_lm
from cai.noise import spearman
from cai.records import write_records
from cai.rl.models import Policy, RewardModel
from cai.rl.rollout import sample_responses
from cai.rl.snippets import Snippets
from cai.stages.ppo import PPO
from cai.stages.reward import Reward
from cai.stages.sft import SFT
from cai.types import Demonstration, Pair, Preference, Prompt, Turn

pytestmark = pytest.mark.slow

NUM_WORDS, BEST = 10, 4
OTHERS = ["first", "take", "a", "key", "and", "turn", "it", "slowly", "then", "push", "no"]
PROMPTS = [Prompt(id=f"p{i}", turns=(Turn("user", f"how do i open the {tiny_models.WORDS[i]} ?"),)) for i in range(20)]


def answer(num_yes: int, draw: random.Random) -> str:
    words = ["yes"] * num_yes + draw.choices(OTHERS, k=NUM_WORDS - num_yes)
    draw.shuffle(words)
    return " ".join(words)


def gold(text: str) -> float:
    words = text.split()
    return words.count("yes") / len(words) if words else 0.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each prompt with five demonstrations of rising gold, their ranking, and what was learnt from both."""
    home = tmp_path_factory.mktemp("trex")
    draw = random.Random(0)
    ranked = {prompt.id: tuple(answer(k, draw) for k in range(BEST, -1, -1)) for prompt in PROMPTS}
    pairs = tuple(Pair(i, j, 1.0) for i in range(BEST + 1) for j in range(i + 1, BEST + 1))
    texts = [(prompt, text) for prompt in PROMPTS for text in ranked[prompt.id]]
    demonstrations = [Demonstration(id=f"d{i}", prompt=p, text=t, source="demo") for i, (p, t) in enumerate(texts)]
    write_records(home / "revise" / "sft.jsonl", demonstrations)
    write_records(home / "data" / "demonstrations.jsonl", demonstrations)
    write_records(home / "data" / "rl.jsonl", PROMPTS)
    preferences = [Preference(id=p.id, prompt=p, responses=ranked[p.id], pairs=pairs, labeler="demo") for p in PROMPTS]
    write_records(home / "label" / "preferences.jsonl", preferences)
    tokenizer = tiny_models.word_tokenizer()
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, home / "base")

    common = {"seed": 0, "device": "cpu"}
    stages = {
        "sft": SFT(model=str(home / "base"), num_epochs=8, batch_size=10, learning_rate=5e-3, **common),
        "reward": Reward(
            head="mean", snippets=Snippets(num=8, min_tokens=2, max_tokens=6), num_epochs=6, batch_size=4,
            learning_rate=3e-3, **common,
        ),
        "rl": PPO(
            num_updates=40, batch_size=40, minibatch_size=20, max_new_tokens=16, beta=0.02, learning_rate=2e-3,
            value_learning_rate=3e-3, **common,
        ),
    }  # fmt: skip
    for name, stage in stages.items():
        (home / name).mkdir(exist_ok=True)
        stage.run({key: home / key for key in ("data", "revise", "sft", "label", "reward")}, home / name)
    return {name: home / name / "model" for name in stages}


def test_the_reward_ranks_what_is_better_than_any_demonstration(folders: dict[str, Path]) -> None:
    reward, draw = RewardModel.load(folders["reward"]), random.Random(1)
    levels = [num_yes for num_yes in range(BEST + 1, NUM_WORDS + 1) for _ in range(8)]
    scores = reward.score(PROMPTS[:1] * len(levels), [answer(num_yes, draw) for num_yes in levels]).tolist()
    correlation = spearman(levels, scores)
    assert correlation is not None and correlation > 0.9
    worst = float(reward.score(PROMPTS[:1], [answer(NUM_WORDS, draw)]))
    seen = reward.score(PROMPTS[:1] * 20, [answer(BEST, draw) for _ in range(20)])
    assert worst > float(seen.max())


def test_the_policy_exceeds_the_best_demonstration_and_the_clone(folders: dict[str, Path]) -> None:
    def mean_gold(name: str) -> float:
        reward = RewardModel.load(folders["reward"])
        prompts = [row.ids[: row.num_prompt] for row in reward.encode(PROMPTS, ["yes"] * len(PROMPTS))]
        rollout = sample_responses(
            Policy(load_causal_lm(folders[name])), prompts, seeds=range(len(prompts)), max_new_tokens=16,
            stop_ids=[reward.tokenizer.eos_token_id], max_batch_tokens=4096,
        )  # fmt: skip
        texts = [
            str(reward.tokenizer.decode(row.ids[row.num_prompt :], skip_special_tokens=True)) for row in rollout.rows
        ]
        return sum(map(gold, texts)) / len(texts)

    clone, policy = mean_gold("sft"), mean_gold("rl")
    assert clone < BEST / NUM_WORDS < policy, (clone, policy)
    assert policy > 0.8, policy
