"""SFT and reward training, interrupted anywhere, end with the bytes of a training that was left alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from cai.errors import ConfigError
from cai.models.digest import model_digest
from cai.models.lora import add_adapter, merge, save_adapter
from cai.records import digest_folder, write_records
from cai.rl import checkpoints
from cai.rl.local_trainer import Checkpoints, _Hooks
from cai.rl.models import ADAPTER, RewardModel, score_head
from cai.stages.ppo import PPO
from cai.stages.reward import Reward
from cai.stages.sft import SFT
from cai.types import Demonstration, Pair, Preference, Prompt, Turn

ANSWERS = ["yes turn it slowly", "no", "first take a key then yes", "no push the door"]
PROMPTS = [
    Prompt(id=f"p{i}", turns=(Turn("user", f"how do i open {tiny_models.WORDS[i % 25]} {'door ' * (i % 4)}?"),))
    for i in range(26)
]
DEMONSTRATIONS = [Demonstration(id=p.id, prompt=p, text=ANSWERS[i % 4], source="x") for i, p in enumerate(PROMPTS)]
PREFERENCES = [
    Preference(id=p.id, prompt=p, responses=tuple(ANSWERS[:3]), pairs=(Pair(0, 1, 0.8), Pair(2, 1, 0.9)), labeler="x")
    for p in PROMPTS
]
# 3 epochs of 6 or 7 steps, a row of the curve per step or the mean of several, dropout so that randomness shows.
TRAINING: dict[str, Any] = {"seed": 0, "num_epochs": 3, "batch_size": 4, "microbatch_size": 2, "device": "cpu"}
Runner = Callable[..., None]
pytestmark = pytest.mark.slow  # dozens of small trainings


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = tiny_models.word_tokenizer()
    model = tiny_models.llama(len(tokenizer))
    model.config.attention_dropout = 0.1
    tiny_models.save(model, tokenizer, folder / "sft" / "model")
    judge = RewardModel.from_language_model(folder / "sft" / "model", seed=3)
    judge.save(folder / "judge")
    judge.save(folder / "reward" / "model")
    add_adapter(judge.model, rank=2, alpha=4.0, seed=0, head=score_head(judge.model))
    base = model_digest(folder / "sft" / "model")
    save_adapter(judge.model, folder / "reward-lora" / "model" / ADAPTER, base=base)
    merge(judge.model)
    judge.save(folder / "reward-lora" / "model")
    write_records(folder / "data" / "rl.jsonl", PROMPTS)
    write_records(folder / "revise" / "sft.jsonl", DEMONSTRATIONS)
    write_records(folder / "data" / "demonstrations.jsonl", DEMONSTRATIONS[:3])
    write_records(folder / "label" / "preferences.jsonl", PREFERENCES)
    return folder


def run(stage: str, inputs: Path, output: Path, every: int = 4, **changes: Any) -> None:
    output.mkdir(exist_ok=True)
    settings = TRAINING | {"checkpoint_every": every} | changes
    if stage == "sft":
        base, judge = str(inputs / "sft" / "model"), str(inputs / "judge")
        given = {"validation_share": 0.2, "select_by": judge, "max_new_tokens": 6, "learning_rate": 2e-2}
        SFT(model=base, **{**given, **settings}).run({"revise": inputs / "revise"}, output)
    elif stage == "reward":
        names = {name: inputs / name for name in ("data", "sft", "label")}
        Reward(held_out_share=0.2, **settings).run(names, output)
    else:
        given = {"num_updates": 12, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "device": "cpu"}
        chosen = {"kl_target": 1.0, "checkpoint_every": every, **given, **changes}
        reward = {"ppo": "reward", "ppo-lora": "reward-lora"}[stage]
        chosen["lora_rank"] = 4 if stage == "ppo-lora" else 0
        PPO(seed=0, **chosen).run(
            {name: inputs / name for name in ("data", "sft")} | {"reward": inputs / reward}, output
        )


def digests(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digest_folder(folder).items() if ".journal" not in name}


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What a training that saves nothing writes."""
    folder = tmp_path_factory.mktemp("whole")
    for stage in ("sft", "reward"):
        run(stage, inputs, folder / stage, every=0)
        assert not list((folder / stage).glob("*.journal"))
    return {stage: digests(folder / stage) for stage in ("sft", "reward")}


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _Hooks.on_step_end

    def on_step_end(self: _Hooks, args: object, state: Any, control: Any, **rest: object) -> None:
        if state.global_step == step:
            raise Killed
        original(self, args, state, control, **rest)

    monkeypatch.setattr(_Hooks, "on_step_end", on_step_end)


def interrupt(step: int, stage: str, inputs: Path, output: Path, **changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        run(stage, inputs, output, **changes)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_killed_again_and_again_the_bytes_are_the_same(
    stage: str,
    inputs: Path,
    whole: dict[str, dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first checkpoint, in the middle and at the ends of epochs, after the training."""
    for step in (2, 5, 6, 9, 13, 16):
        interrupt(step, stage, inputs, tmp_path)
    run(stage, inputs, tmp_path)
    assert digests(tmp_path) == whole[stage]
    (tmp_path / "curve.jsonl").unlink()
    with pytest.MonkeyPatch.context() as patch:
        kill_at(1, patch)  # the end is a checkpoint: no step is taken any more, from the first or from another
        patch.setattr(_Hooks, "on_epoch_end", None)
        run(stage, inputs, tmp_path)
    assert digests(tmp_path) == whole[stage]
    assert not [line for line in capsys.readouterr().err.splitlines() if ".pt" in line]


@pytest.mark.parametrize(("stage", "step", "every"), [("sft", 8, 7), ("sft", 7, 1), ("reward", 13, 6)])
def test_checkpoints_at_the_end_of_an_epoch(
    stage: str, step: int, every: int, inputs: Path, whole: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    interrupt(step, stage, inputs, tmp_path, every=every)
    run(stage, inputs, tmp_path, every=every)
    assert digests(tmp_path) == whole[stage]


def half_written(output: Path, stage: str, inputs: Path) -> None:
    """Killed between the file and its marker."""

    def write_json(path: Path, facts: object) -> None:
        if path.name == "00000008.json":
            raise Killed
        original(path, facts)

    original = checkpoints.write_json
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "write_json", write_json)
        run(stage, inputs, output)


def damaged(name: str, damage: Callable[[Path], None]) -> Callable[[Path, str, Path], None]:
    def make(output: Path, stage: str, inputs: Path) -> None:
        interrupt(10, stage, inputs, output)
        for path in (output / "checkpoints.journal").glob(name):
            damage(path)

    return make


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize(
    ("make", "problems"),
    [
        (half_written, ["has no marker, so it may be cut; checkpoint 4 is tried"]),
        (damaged("00000008.pt", Path.unlink), ["is missing; checkpoint 4 is tried"]),
        (damaged("00000008.pt", lambda path: os.truncate(path, 99)), ["has 99 bytes"]),
        (damaged("00000008.json", lambda path: path.write_text('{"bytes": 1, "sha256": ""}')), ["says 1; "]),
        (damaged("*.pt", lambda path: os.truncate(path, 99)), ["has 99 bytes", "; training starts over"]),
    ],
    ids=["half-written", "deleted", "cut", "wrong marker", "both cut"],
)
def test_a_damaged_checkpoint_is_said_and_the_bytes_are_the_same(
    make: Callable[[Path, str, Path], None],
    problems: list[str],
    stage: str,
    inputs: Path,
    whole: dict[str, dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path, stage, inputs)
    run(stage, inputs, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if ".pt" in line]
    assert len(lines) == len(problems)
    assert all(problem in line for problem, line in zip(problems, lines, strict=True))
    assert digests(tmp_path) == whole[stage]


def test_a_kill_in_the_second_model_of_an_ensemble(inputs: Path, tmp_path: Path) -> None:
    ensemble = {"num_models": 2, "pessimism": 1.0}
    run("reward", inputs, tmp_path / "whole", every=0, **ensemble)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cai.stages.reward.write_rows", lambda path, _: path.name != "curve-2.jsonl" or kill())
        run("reward", inputs, tmp_path / "again", **ensemble)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(1, patch)  # neither is trained again
        run("reward", inputs, tmp_path / "again", **ensemble)
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")


def test_a_kill_in_the_training_of_an_adapter(inputs: Path, tmp_path: Path) -> None:
    run("reward", inputs, tmp_path / "whole", every=0, lora_rank=2)
    interrupt(9, "reward", inputs, tmp_path / "again", lora_rank=2)
    state = torch.load(tmp_path / "again" / "checkpoints.journal" / "00000008.pt", weights_only=True)
    assert {name for name in state["model"] if "lora" not in name} == {"score.weight"}
    run("reward", inputs, tmp_path / "again", lora_rank=2)
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")


def kill() -> None:
    raise Killed


def test_models_on_the_way_are_the_same_after_a_kill(inputs: Path, tmp_path: Path) -> None:
    """Killed before, at and after the steps that they are of."""
    kept = {"keep_left": [1.0, 0.75, 0.5, 0.25]}
    run("sft", inputs, tmp_path / "whole", **kept)
    for step in (1, 4, 5, 8, 9, 14):
        interrupt(step, "sft", inputs, tmp_path / "cut", **kept)
    run("sft", inputs, tmp_path / "cut", **kept)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert len([name for name in digests(tmp_path / "cut") if name.endswith("model.safetensors")]) == 5


def test_a_training_of_few_steps_saves_nothing(inputs: Path, tmp_path: Path) -> None:
    run("reward", inputs, tmp_path, every=100, num_epochs=1)
    assert not list(tmp_path.glob("*.journal"))
    plan = Checkpoints(tmp_path, 4)
    assert [step for step in range(1, 11) if plan.due(step, 10)] == [4, 8, 10]
    assert not any(plan.due(step, 3) for step in range(1, 4))


@pytest.mark.parametrize("stage", [SFT, Reward])
def test_a_negative_number_of_steps_is_refused(stage: Any) -> None:
    model = {"model": "x"} if stage is SFT else {}
    with pytest.raises(ConfigError, match=r"checkpoint_every: must be 0 \(never\) or more, got -1"):
        stage(seed=0, checkpoint_every=-1, **model)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "ppo-lora"])
def test_kill_9_at_twenty_moments(stage: str, inputs: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_points.py")
    command = [sys.executable, str(script), stage, str(inputs), str(tmp_path), "20"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["different"] == 0 and result["killed"] == 20 and result["with_a_checkpoint"] >= 5, result
