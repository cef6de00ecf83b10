"""Tiny policies, trainers and inputs of the RL stage, for tests of PPO."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cai.models.documents import Documents
from cai.records import write_records
from cai.rl.models import Policy, RewardModel, Row
from cai.rl.ppo import PPOTrainer
from cai.rl.settings import PPOSettings
from cai.rl.values import SharedValue, ValueModel
from cai.stages.ppo import PPO
from cai.types import Prompt, Turn

END = 2
PROMPTS = [[1, 4, 9, 12], [1, 4, 7, 8, 10, 5], [1, 5], [1, 4, 11, 5, 6, 6, 7]]


def rows_of(lengths: Sequence[tuple[int, int]], vocabulary: int = 30) -> list[Row]:
    """Random rows with these numbers of prompt and response tokens."""
    generator = torch.Generator().manual_seed(0)
    return [Row(torch.randint(vocabulary, (p + r,), generator=generator).tolist(), p) for p, r in lengths]


def settings(**changes: Any) -> PPOSettings:
    numbers: dict[str, Any] = {"seed": 0, "num_updates": 10, "batch_size": 4, "minibatch_size": 4, "num_epochs": 1}
    numbers |= {"learning_rate": 1e-3, "value_learning_rate": 1e-3, "schedule": "constant", "num_warmup_updates": 0}
    numbers |= {"max_grad_norm": 1.0, "beta": 0.1, "clip": 0.2, "value_clip": 0.2, "lam": 0.95, "max_new_tokens": 8}
    numbers |= {"temperature": 1.0, "missing_eos_penalty": 1.0, "scale_rewards": False, "max_batch_tokens": 4096}
    return PPOSettings(**{**numbers, "dtype": "float32", **changes})


def value_model(folder: Path) -> ValueModel:
    """A value network on the trunk of the tiny policy."""
    if not (folder / "config.json").exists():
        tokenizer = tiny_models.word_tokenizer()
        tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder)
    model = RewardModel.from_language_model(folder, seed=0).model
    return ValueModel(model)


def trainer(
    folder: Path,
    reward: Callable[[Sequence[Row]], Tensor],
    *,
    reward_scale: float = 1.0,
    stop_ids: Sequence[int] = (END,),
    ptx: Documents | None = None,
    **changes: Any,
) -> PPOTrainer:
    size, given = len(tiny_models.word_tokenizer()), settings(**changes)
    policy = Policy(tiny_models.llama(size), temperature=given.temperature)
    shared = given.value == "shared"
    return PPOTrainer(
        policy=policy,
        reference=Policy(tiny_models.llama(size), temperature=given.temperature),
        value=SharedValue(policy, coefficient=given.value_coefficient) if shared else value_model(folder),
        reward=reward,
        reward_scale=reward_scale,
        stop_ids=stop_ids,
        settings=given,
        ptx=ptx,
    )


def count_of(token: int) -> Callable[[Sequence[Row]], Tensor]:
    """A reward: how often the response has `token`."""
    return lambda rows: torch.tensor([float(row.ids[row.num_prompt :].count(token)) for row in rows])


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Lengths:
    """A scorer: words of the response, and for benign prompts a column of its own."""

    columns: tuple[str, ...] = ("words", "benign_words", "never")

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"scorer": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        words = [float(len(response.split())) for response in responses]
        benign = [w if "benign" in p.tags else math.nan for w, p in zip(words, prompts, strict=True)]
        return {"words": words, "benign_words": benign, "never": [math.nan] * len(words)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("inputs"), tiny_models.word_tokenizer()
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder / "sft" / "model")
    plain = RewardModel.from_language_model(folder / "sft" / "model", seed=5)
    reward = RewardModel(plain.model, plain.tokenizer, offset=0.25, std=0.5)
    reward.save(folder / "reward" / "model")
    prompts = [
        Prompt(id=f"p{i}", turns=(Turn("user", " ".join(tiny_models.WORDS[i : i + 3 + i % 3])),), tags=tags)
        for i, tags in enumerate([("benign",), ()] * 5)
    ]
    write_records(folder / "data" / "rl.jsonl", prompts)
    return {name: folder / name for name in ("data", "sft", "reward")}


def run(inputs: dict[str, Path], output: Path, **changes: Any) -> dict[str, float]:
    output.mkdir()
    given = {"seed": 0, "num_updates": 3, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "device": "cpu"}
    return PPO(**{**given, **changes}).run(inputs, output)
