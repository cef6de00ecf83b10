"""Networks with adapters, for tests: SL-CAI, a reward model trained on it as an adapter, and PPO over both."""

from pathlib import Path
from typing import Any

import pytest
import test_reward
import tiny_models
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cai.models.lora import (
    add_adapter,
    trained_parameters,
    view,
)
from cai.records import write_records
from cai.stages.ppo import PPO
from cai.types import Prompt, Turn

LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0}


def adapted(base: PreTrainedModel, *, learnt: bool = True, seed: int = 0) -> PreTrainedModel:
    """A network over `base`; with an adapter that is not at its start if `learnt`."""
    model = view(base)
    add_adapter(model, rank=4, alpha=8.0, seed=seed)
    if learnt:
        generator = torch.Generator().manual_seed(seed)
        for parameter in trained_parameters(model):
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SL-CAI, a reward model that was trained on it as an adapter, and prompts."""
    folder, tokenizer = tmp_path_factory.mktemp("inputs"), tiny_models.word_tokenizer()
    tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder / "sft" / "model")
    test_reward.run(folder / "sft", folder / "reward", num_epochs=6, learning_rate=2e-2, **LORA)
    words = [" ".join(tiny_models.WORDS[i : i + 3 + i % 3]) for i in range(10)]
    prompts = [Prompt(id=f"p{i}", turns=(Turn("user", text),)) for i, text in enumerate(words)]
    write_records(folder / "data" / "rl.jsonl", prompts)
    return {"data": folder / "data", "sft": folder / "sft", "reward": folder / "reward" / "out"}


def ppo(inputs: dict[str, Path], output: Path, **changes: Any) -> dict[str, float]:
    output.mkdir(exist_ok=True)
    given = {"seed": 0, "num_updates": 3, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "device": "cpu"}
    return PPO(**{**given, "learning_rate": 1e-2, **LORA, **changes}).run(inputs, output)
