"""Stage reward: a scalar head on the SL-CAI trunk learns the labels (InstructGPT section 3.2, with soft labels)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from cai.datasets.splits import held_out
from cai.errors import ConfigError, DataError, unknown
from cai.models.digest import model_digest
from cai.records import read_records, seed_of, write_json, write_rows
from cai.rl.reward_scores import Head, Normalise
from cai.rl.settings import LoRASettings, TrainingSettings
from cai.rl.snippets import Snippets
from cai.types import Demonstration, Preference

if TYPE_CHECKING:
    from cai.rl.models import RewardModel, Row
    from cai.rl.trainers import Group

__all__ = ["Reward"]


@dataclass(frozen=True, kw_only=True)
class Reward(TrainingSettings, LoRASettings):
    """Writes model/ (Hugging Face format, with reward.json), metrics.json, held_out.jsonl (a row per pair: prompt_id,
    tags, with `correction` where a labeler wrote one of the two, first, second, p, delta) and curve.jsonl (of an
    ensemble's other models: curve-2.jsonl, ...).

    A share of the prompts is held out, chosen by a hash of their text: the same in all arms and seeds, and no prompt on
    both sides. `normalise` sets helpful demonstrations to score 0 on average (`bias`), and the policy's samples to
    spread by 1 (`gain_and_bias`). `num_models` are trained with different heads and orders; where they disagree the
    score is lower, `pessimism` times their standard deviation. `head` says which tokens' outputs make the score; one
    that reads them all may learn from `snippets` of the responses (T-REX), drawn anew for each model, and is measured
    on whole ones. Every `checkpoint_every` steps the training saves what it needs to go on after a kill (0: never).
    With a `lora_rank` only adapters and heads are trained; model/ has them merged in, and model/adapter/ as they are.

    One temperature is fitted on the held-out pairs and kept in reward.json. It is not in the scores, of which it would
    change nothing but the scale; `log_loss`, `ece`, `reliability` and all that a report shows are without it too, and
    `calibrated_log_loss` and `calibrated_ece` are with it, by halves that are fitted on each other.
    """

    version: ClassVar[int] = 5

    held_out_share: float = 0.1
    num_models: int = 1
    pessimism: float = 0.0
    normalise: Normalise = "bias"
    head: Head = "last"
    snippets: Snippets | None = None
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        LoRASettings.__post_init__(self)
        if not 0 < self.held_out_share < 1:
            raise ConfigError(f"held_out_share: must be between 0 and 1, got {self.held_out_share!r}")
        if self.num_models < 1:
            raise ConfigError(f"num_models: must be 1 or more, got {self.num_models!r}")
        if not 0 <= self.pessimism < math.inf or (self.pessimism and self.num_models == 1):
            problem = "needs num_models above 1" if self.num_models == 1 else "must be 0 or more"
            raise ConfigError(f"pessimism: {problem}, got {self.pessimism!r}")
        for name, allowed in (("normalise", get_args(Normalise)), ("head", get_args(Head))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: {unknown('choice', getattr(self, name), allowed)}")
        if self.snippets is not None and self.head == "last":
            raise ConfigError("snippets: their reward is of all their tokens: needs head sum or mean, got 'last'")
        if self.checkpoint_every < 0:
            raise ConfigError(f"checkpoint_every: must be 0 (never) or more, got {self.checkpoint_every!r}")

    def texts(self) -> dict[str, str]:
        """The model is an input; adapters depend on the package that makes them."""
        return self.lora_texts()

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` (demonstrations), `sft` (the trunk) and `label` (preferences)."""
        from cai.models.loading import pick_device
        from cai.rl.models import RewardModel
        from cai.rl.trainers import short_enough

        path = inputs["label"] / "preferences.jsonl"
        preferences = read_records(path, Preference)
        if len(preferences) < 2:
            raise DataError(f"{path}: {len(preferences)} preferences; at least 2 are needed, one to hold out")
        source, device = inputs["sft"] / "model", pick_device(self.device)
        reward = RewardModel.from_language_model(
            source, seed=self.seed, device=device, head=self.head, pessimism=self.pessimism
        )
        groups = [_encode(reward, preference, str(path)) for preference in preferences]
        lengths = [max(map(len, group.rows)) for group in groups]
        kept = short_enough(lengths, reward.model.config, self, str(path))
        out = held_out([preferences[i].prompt for i in kept], self.held_out_share)
        train = [i for i, held in zip(kept, out, strict=True) if not held]
        test = [preferences[i] for i, held in zip(kept, out, strict=True) if held]
        anchors = _anchors(self, reward, inputs["data"] / "demonstrations.jsonl")
        num_tokens = self._train(reward, source, [groups[i] for i in train], output)

        pairs = _measure(reward, anchors, test, self.normalise)
        metrics = summarise(pairs) | {"num_train_pairs": sum(len(groups[i].p) for i in train)}
        reward.constants = replace(reward.constants, temperature=metrics["temperature"])
        metrics |= {name: getattr(reward.constants, name) for name in ("offset", "std", "gain")}
        reward.save(output / "model")
        write_rows(output / "held_out.jsonl", pairs)
        write_json(output / "metrics.json", metrics)
        return {
            "accuracy": metrics["accuracy"],
            "log_loss": metrics["log_loss"],
            "num_train_pairs": metrics["num_train_pairs"],
            "num_held_out_pairs": metrics["num_pairs"],
            "num_too_long": len(groups) - len(kept),
            "num_tokens": num_tokens,
            "flops": (4.0 if self.lora_rank else 6.0) * reward.model.num_parameters() * num_tokens,
        }

    def _train(self, reward: "RewardModel", source: Path, groups: "Sequence[Group]", output: Path) -> int:
        """Train the models of `reward`, from the second on made here, and write their curves. Returns the tokens."""
        from cai.models.lora import add_adapter, merge, save_adapter
        from cai.rl.local_trainer import Checkpoints
        from cai.rl.models import ADAPTER, RewardModel, member_folders, score_head
        from cai.rl.trainers import train_reward

        every, device = self.checkpoint_every, str(reward.model.device)
        for number in range(1, self.num_models + 1):
            seed = self.seed if number == 1 else seed_of(self.seed, "reward", number)
            name = "" if number == 1 else f"-{number}"
            model = reward.model
            if number > 1:
                model = RewardModel.from_language_model(source, seed=seed, device=device).model
                reward.others.append(model)
            if self.lora_rank:
                add_adapter(model, rank=self.lora_rank, alpha=self.lora_alpha, seed=seed, head=score_head(model))
            checkpoints = Checkpoints(output / f"checkpoints{name}.journal", every) if every else None
            settings = replace(self, seed=seed)
            cut = _cut(groups, self.snippets, seed)
            curve = train_reward(model, reward.tokenizer, cut, settings, head=self.head, checkpoints=checkpoints)
            if self.lora_rank:
                folder = member_folders(output / "model", number)[-1]
                save_adapter(model, folder / ADAPTER, base=model_digest(source))
                merge(model)
            write_rows(output / f"curve{name}.jsonl", curve)
        return self.num_models * self.num_epochs * sum(len(row) for group in groups for row in group.rows)


def _anchors(stage: Reward, reward: "RewardModel", path: Path) -> "list[Row]":
    """The demonstrations that score 0 on average."""
    from cai.rl.trainers import short_enough

    demonstrations = read_records(path, Demonstration)
    rows = reward.encode([d.prompt for d in demonstrations], [d.text for d in demonstrations])
    fit = short_enough([len(row.ids) for row in rows], reward.model.config, stage, str(path)) if rows else []
    return [rows[i] for i in fit]


def _cut(groups: "Sequence[Group]", snippets: Snippets | None, seed: int) -> "Sequence[Group]":
    """The groups in snippets, where those are wanted."""
    from cai.rl.trainers import in_snippets

    if snippets is None:
        return groups
    return [in_snippets(group, snippets, seed_of(seed, "snippets", i)) for i, group in enumerate(groups)]


def _encode(reward: "RewardModel", preference: Preference, where: str) -> "Group":
    from cai.rl.trainers import Group

    known = range(len(preference.responses))
    wrong = [
        pair
        for pair in preference.pairs
        if not (pair.first in known and pair.second in known and 0 <= pair.p <= 1)
        or not (pair.weight > 0 and pair.margin >= 0)
    ]
    if wrong or not preference.pairs:
        problem = f"has the pair {wrong[0]}" if wrong else "has no pairs"
        raise DataError(
            f"{where}: preference {preference.id!r} {problem}; "
            f"needed are pairs of its {len(known)} responses with p in [0, 1], weight above 0 and margin 0 or more"
        )
    rows = reward.encode([preference.prompt] * len(preference.responses), preference.responses)
    labels = {
        name: [getattr(q, name) for q in preference.pairs] for name in ("first", "second", "p", "weight", "margin")
    }
    return Group([row.ids for row in rows], **labels, starts=[row.num_prompt for row in rows])


def _measure(
    reward: "RewardModel", anchors: "Sequence[Row]", preferences: Sequence[Preference], normalise: Normalise
) -> list[dict[str, Any]]:
    """Normalise `reward` such that `anchors`, the demonstrations, score 0 on average; return a row for every held-out
    pair.
    """
    from cai.rl.reward_scores import ensemble_scores, normalised

    prompts = [preference.prompt for preference in preferences for _ in preference.responses]
    texts = [response for preference in preferences for response in preference.responses]
    raw = reward.raw_scores(reward.encode(prompts, texts))
    # What a labeler wrote is not a sample of the policy.
    sampled = [i < len(p.responses) - p.num_corrections for p in preferences for i in range(len(p.responses))]
    samples = raw[:, sampled]
    # Without demonstrations (a data source may have none) the policy's own samples are what scores 0 on average.
    zero = reward.raw_scores(anchors) if anchors else samples
    reward.constants = normalised(zero, samples, reward.constants, normalise)
    scores = ensemble_scores(raw, reward.constants).tolist()
    rows = []
    for preference in preferences:
        own, scores = scores[: len(preference.responses)], scores[len(preference.responses) :]
        for pair in preference.pairs:
            corrected = pair.second >= len(own) - preference.num_corrections  # is it the style that the model knows?
            tags = [*preference.prompt.tags, *(["correction"] if corrected else [])]
            row = {"prompt_id": preference.prompt.id, "tags": tags}
            delta = own[pair.first] - own[pair.second]
            rows.append({**row, "first": pair.first, "second": pair.second, "p": pair.p, "delta": delta})
    return rows


def summarise(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of the held-out pairs: over all, by prompt tag, and the bins of the reliability diagram."""
    import numpy as np

    from cai.rl.calibration import calibrated, pair_metrics, reliability

    def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
        return np.array([row["delta"] for row in rows]), np.array([row["p"] for row in rows])

    tags = Counter(tag for row in pairs for tag in row["tags"])
    delta, target = columns(pairs)
    after = pair_metrics(calibrated(delta, target, [row["prompt_id"] for row in pairs]), target)
    return {
        **pair_metrics(delta, target),
        "calibrated_log_loss": after["log_loss"],
        "calibrated_ece": after["ece"],
        "reliability": reliability(1 / (1 + np.exp(-delta)), target),
        "by_tag": {tag: pair_metrics(*columns([row for row in pairs if tag in row["tags"]])) for tag in sorted(tags)},
    }
