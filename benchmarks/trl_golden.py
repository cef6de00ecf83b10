"""The same PPO update by TRL 1.12.0 and by this project, on a frozen rollout: how far apart are they?

    python benchmarks/trl_golden.py [--fixture tests/trl_update.safetensors] [--output results/trl_golden.json]

TRL's own trainer runs its own `train`; a frozen rollout stands in for its sampling. Where it is known to differ, it is
matched from outside (`reference`: N+ details of RLHF with PPO; TRL's issues 1893, 3750, 5645):

- its score lands one token after the end of the response: one line of `train` is changed, and nothing else of it;
- it whitens with the unbiased variance: its `masked_var` gets `unbiased=False`;
- it never clips gradients: neither do we here (a limit of 1e9);
- under gradient accumulation it skips steps: there is none here;
- it adds 1e-7 to the temperature: it is given that much less;
- it scores a response that was cut off at its last token, without an end-of-turn token: so do we here.

The optimiser is Adam on both sides. The numbers go to a fixture, against which `tests/test_exactness.py` holds this
project without TRL.
"""

import argparse
import functools
import inspect
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from frozen import (
    CASES,
    END,
    LEARNING_RATE,
    MAX_NEW_TOKENS,
    NUM_ROWS,
    PAD,
    TEMPERATURE,
    VALUE_LEARNING_RATE,
    VOCABULARY,
    Case,
    Outcome,
    distance,
    flat,
    networks,
    our_update,
    rows,
)
from measuring import numbers_tokenizer, report, table
from safetensors.torch import save_file
from torch import Tensor
from transformers import PrinterCallback
from trl_environment import reenter

# name here: name in TRL's log
AVERAGES = {
    "kl": "objective/kl",
    "objective": "objective/rlhf_reward",
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "clipfrac": "policy/clipfrac_avg",
    "value_clipfrac": "val/clipfrac_avg",
}


def on_the_last_token(train: Any, module: Any) -> Any:
    """TRL's `train` with the score on the end-of-turn token, and values up to it: one line changed."""
    line, changed = "sequence_lengths_p1 = sequence_lengths + 1", "sequence_lengths_p1 = sequence_lengths"
    source = inspect.cleandoc("\n" + inspect.getsource(train))
    if source.count(line) != 1:
        raise RuntimeError(f"TRL's train has {source.count(line)} lines {line!r}, not 1: another version?")
    namespace: dict[str, Any] = {}
    exec(compile(source.replace(line, changed), module.__file__, "exec"), vars(module), namespace)
    return namespace["train"]


def frozen_tensors() -> tuple[Tensor, Tensor]:
    """Queries, padded on the left, and with their responses, padded on the right, as TRL wants them."""
    given = rows()
    width = max(row.num_prompt for row in given)
    queries, both = [], []
    for row in given:
        query = [PAD] * (width - row.num_prompt) + row.ids[: row.num_prompt]
        response = row.ids[row.num_prompt :]
        queries.append(query)
        both.append(query + response + [PAD] * (MAX_NEW_TOKENS - len(response)))
    return torch.tensor(queries), torch.tensor(both)


def trl_settings(case: Case, folder: str) -> Any:
    """TRL's settings for the same update."""
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=folder, per_device_train_batch_size=NUM_ROWS, num_mini_batches=case.num_minibatches,
        num_ppo_epochs=case.num_epochs, total_episodes=NUM_ROWS, response_length=MAX_NEW_TOKENS, kl_coef=0.3,
        stop_token="eos", temperature=TEMPERATURE - 1e-7, missing_eos_penalty=0.5, vf_coef=1.0, use_cpu=True,
        bf16=False, activation_checkpointing=False, num_sample_generations=0, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip


def trl_update(case: Case) -> Outcome:
    """One update by TRL's trainer."""
    from trl.experimental.ppo import PPOTrainer, ppo_trainer

    nets, (queries, both) = networks(case.stale), frozen_tensors()
    trained = {"policy": nets.policy, "value": nets.value}
    before = {name: flat(net.parameters()) for name, net in trained.items()}
    gradients: dict[str, list[Tensor]] = {name: [] for name in trained}
    scores: list[Tensor] = []

    class Recording(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            for name, net in trained.items():
                gradients[name].append(flat(net.parameters(), "grad"))
            return super().step(closure)

    def generation(*_: object) -> tuple[Tensor, Tensor]:
        logits = ppo_trainer.forward(nets.sampler, both, PAD).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / TEMPERATURE

    def get_reward(model: Any, *rest: Any) -> Any:
        found = ppo_trainer_get_reward(model, *rest)
        if model is nets.reward:
            scores.append(found[1].clone())
        return found

    ppo_trainer_get_reward = ppo_trainer.get_reward
    groups = [
        {"params": list(nets.policy.parameters()), "lr": LEARNING_RATE},
        {"params": list(nets.value.parameters()), "lr": VALUE_LEARNING_RATE},
    ]
    optimizer = Recording(groups, eps=1e-5)
    orders = mock.Mock(side_effect=[torch.tensor(order).numpy() for order in case.permutations])
    variance = functools.partial(ppo_trainer.masked_var, unbiased=False)
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(
        ppo_trainer, batch_generation=generation, get_reward=get_reward, masked_var=variance,
        np=SimpleNamespace(random=SimpleNamespace(permutation=orders)),
    ):  # fmt: skip
        trainer = PPOTrainer(
            args=trl_settings(case, folder), model=nets.policy,
            processing_class=numbers_tokenizer(VOCABULARY, END, PAD),
            ref_model=nets.reference,
            reward_model=nets.reward, value_model=nets.value,
            train_dataset=Dataset.from_dict({"row": [*range(NUM_ROWS)]}),
            eval_dataset=Dataset.from_dict({"row": []}), data_collator=lambda _: {"input_ids": queries},
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        on_the_last_token(PPOTrainer.train, ppo_trainer)(trainer)
    log = trainer.state.log_history[0]
    return Outcome(
        scores=scores[0],
        gradients={name: torch.stack(steps) for name, steps in gradients.items()},
        changes={name: flat(net.parameters()) - before[name] for name, net in trained.items()},
        averages={name: log[theirs] for name, theirs in AVERAGES.items()},
    )


def compare(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """Relative differences; averages near 0 (the policy loss) are held against 1."""
    found = {"scores": distance(ours.scores, theirs.scores)}
    for name in theirs.changes:
        found[f"{name}: first gradient"] = distance(ours.gradients[name][0], theirs.gradients[name][0])
        found[f"{name}: weights"] = distance(ours.changes[name], theirs.changes[name])
    for name, value in theirs.averages.items():
        found[name] = abs(ours.averages[name] - value) / max(abs(value), 1.0)
    return found


def fixture(outcomes: dict[str, Outcome]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the fixture: of the gradients the first step's, of the averages all."""
    tensors, notes = {}, {"made by": "TRL 1.12.0, benchmarks/trl_golden.py"}
    for case, outcome in outcomes.items():
        tensors[f"{case}.scores"] = outcome.scores
        for name in outcome.changes:
            tensors[f"{case}.{name}.gradient"] = outcome.gradients[name][0]
            tensors[f"{case}.{name}.change"] = outcome.changes[name]
        notes |= {f"{case}.{name}": repr(value) for name, value in outcome.averages.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, notes


def main() -> None:
    """Run both, print how far apart they are, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixture", type=Path, help="write TRL's numbers here")
    parser.add_argument("--output", type=Path, help="JSON file for the differences")
    args = parser.parse_args()
    reenter()
    torch.set_num_threads(1)
    theirs = {case.name: trl_update(case) for case in CASES}
    differences = {c.name: compare(our_update(c, rows(), c.permutations), theirs[c.name]) for c in CASES}
    turned = {row: {case: figures[row] * 1e6 for case, figures in differences.items()} for row in differences["step"]}
    print(table("Relative differences to TRL 1.12.0, in millionths", turned))
    if args.fixture:
        tensors, notes = fixture(theirs)
        save_file(tensors, args.fixture, notes)
    report(args.output, {"rows": NUM_ROWS, "max_new_tokens": MAX_NEW_TOKENS}, {"differences": differences})


if __name__ == "__main__":
    main()
