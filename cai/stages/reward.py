"""Stage reward: a scalar head on the SL-CAI trunk learns the labels (InstructGPT section 3.2, with soft labels)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cai.datasets.splits import held_out
from cai.errors import ConfigError, DataError
from cai.records import read_records, write_json, write_rows
from cai.rl.settings import TrainingSettings
from cai.types import Demonstration, Preference

if TYPE_CHECKING:
    from cai.rl.models import RewardModel, Row
    from cai.rl.trainers import Group

__all__ = ["Reward"]


@dataclass(frozen=True, kw_only=True)
class Reward(TrainingSettings):
    """Writes model/ (Hugging Face format, with reward.json), metrics.json, held_out.jsonl (a row per pair: prompt_id,
    tags, first, second, p, delta) and curve.jsonl.

    A share of the prompts is held out, chosen by a hash of their text: the same in all arms and seeds, and no prompt on
    both sides. The scores' offset makes helpful demonstrations score 0 on average. Every `checkpoint_every` steps the
    training saves what it needs to go on after a kill (0: never).
    """

    version: ClassVar[int] = 2

    held_out_share: float = 0.1
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every < 0:
            raise ConfigError(f"checkpoint_every: must be 0 (never) or more, got {self.checkpoint_every!r}")
        if not 0 < self.held_out_share < 1:
            raise ConfigError(f"held_out_share: must be between 0 and 1, got {self.held_out_share!r}")

    def texts(self) -> dict[str, str]:
        """None: the model is an input."""
        return {}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data` (demonstrations), `sft` (the trunk) and `label` (preferences)."""
        from cai.models.loading import pick_device
        from cai.rl.local_trainer import Checkpoints
        from cai.rl.models import RewardModel
        from cai.rl.trainers import short_enough, train_reward

        path = inputs["label"] / "preferences.jsonl"
        preferences = read_records(path, Preference)
        if len(preferences) < 2:
            raise DataError(f"{path}: {len(preferences)} preferences; at least 2 are needed, one to hold out")
        device = pick_device(self.device)
        reward = RewardModel.from_language_model(inputs["sft"] / "model", seed=self.seed, device=device)
        groups = [_encode(reward, preference, str(path)) for preference in preferences]
        lengths = [max(map(len, group.rows)) for group in groups]
        kept = short_enough(lengths, reward.model.config, self, str(path))
        out = held_out([preferences[i].prompt for i in kept], self.held_out_share)
        train = [i for i, held in zip(kept, out, strict=True) if not held]
        test = [i for i, held in zip(kept, out, strict=True) if held]
        shown = inputs["data"] / "demonstrations.jsonl"
        demonstrations = read_records(shown, Demonstration)
        anchors = reward.encode([d.prompt for d in demonstrations], [d.text for d in demonstrations])
        fit = short_enough([len(row.ids) for row in anchors], reward.model.config, self, str(shown)) if anchors else []
        every = self.checkpoint_every
        checkpoints = Checkpoints(output / "checkpoints.journal", every) if every else None
        rows = [groups[i] for i in train]
        curve = train_reward(reward.model, reward.tokenizer, rows, self, checkpoints=checkpoints)

        pairs = _measure(reward, [anchors[i] for i in fit], [preferences[i] for i in test])
        metrics = summarise(pairs) | {"num_train_pairs": sum(len(groups[i].p) for i in train)}
        metrics |= {"offset": reward.offset, "std": reward.std}
        reward.save(output / "model")
        write_rows(output / "curve.jsonl", curve)
        write_rows(output / "held_out.jsonl", pairs)
        write_json(output / "metrics.json", metrics)
        num_tokens = self.num_epochs * sum(len(row) for i in train for row in groups[i].rows)
        return {
            "accuracy": metrics["accuracy"],
            "log_loss": metrics["log_loss"],
            "num_train_pairs": metrics["num_train_pairs"],
            "num_held_out_pairs": metrics["num_pairs"],
            "num_too_long": len(groups) - len(kept),
            "num_tokens": num_tokens,
            "flops": 6.0 * reward.model.num_parameters() * num_tokens,
        }


def _encode(reward: "RewardModel", preference: Preference, where: str) -> "Group":
    from cai.rl.trainers import Group

    known = range(len(preference.responses))
    wrong = [q for q in preference.pairs if not (q.first in known and q.second in known and 0 <= q.p <= 1)]
    if wrong or not preference.pairs:
        problem = f"has the pair {wrong[0]}" if wrong else "has no pairs"
        raise DataError(
            f"{where}: preference {preference.id!r} {problem}; "
            f"needed are pairs of its {len(known)} responses with p in [0, 1]"
        )
    rows = reward.encode([preference.prompt] * len(preference.responses), preference.responses)
    first, second, p = zip(*((pair.first, pair.second, pair.p) for pair in preference.pairs), strict=True)
    return Group([row.ids for row in rows], list(first), list(second), list(p))


def _measure(
    reward: "RewardModel", anchors: "Sequence[Row]", preferences: Sequence[Preference]
) -> list[dict[str, Any]]:
    """Set the offset of `reward` such that `anchors`, the demonstrations, score 0 on average, and its spread; return a
    row for every held-out pair.
    """
    prompts = [preference.prompt for preference in preferences for _ in preference.responses]
    texts = [response for preference in preferences for response in preference.responses]
    scores = reward.score(prompts, texts)
    reward.std = float(scores.std(correction=0))
    # Without demonstrations (a data source may have none) the policy's own samples are what scores 0 on average.
    reward.offset = -float((reward.score_rows(anchors) if anchors else scores).mean())
    rows = []
    start = 0
    for preference in preferences:
        own = scores[start : start + len(preference.responses)].tolist()
        start += len(own)
        for pair in preference.pairs:
            row = {"prompt_id": preference.prompt.id, "tags": list(preference.prompt.tags)}
            delta = own[pair.first] - own[pair.second]
            rows.append({**row, "first": pair.first, "second": pair.second, "p": pair.p, "delta": delta})
    return rows


def summarise(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of the held-out pairs: over all, by prompt tag, and the bins of the reliability diagram."""
    import numpy as np

    from cai.rl.calibration import pair_metrics, reliability

    def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
        return np.array([row["delta"] for row in rows]), np.array([row["p"] for row in rows])

    tags = Counter(tag for row in pairs for tag in row["tags"])
    delta, target = columns(pairs)
    return {
        **pair_metrics(delta, target),
        "reliability": reliability(1 / (1 + np.exp(-delta)), target),
        "by_tag": {tag: pair_metrics(*columns([row for row in pairs if tag in row["tags"]])) for tag in sorted(tags)},
    }
