"""The fixed keys of the configuration, as dataclasses: their types, and the rules between them."""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from cai.errors import ConfigError, unknown
from cai.models.digest import check_scorable

__all__ = ["ModelSettings", "Settings"]


@dataclass
class ModelSettings:
    """The base model of a run: one checkpoint that is trained, criticises, revises and judges."""

    path: str = MISSING
    prompts: str = MISSING
    max_tokens: int = MISSING
    max_new_tokens: int = MISSING


@dataclass
class Settings:
    """Every top-level key of the configuration. Keys of type Any are nodes with a `_target_`."""

    seed: int = MISSING
    constitution: str = MISSING
    prompts: str = MISSING
    name: str | None = None
    notice: str = ""
    metrics: list[str] = field(default_factory=list)
    out: str = MISSING
    store: str = MISSING
    num_threads: int | None = None
    steps: list[str] = MISSING
    arms: dict[str, list[str]] = field(default_factory=dict)
    objective: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    engine: Any = None
    endpoint: Any = None
    scorer: Any = None
    labeler: Any = None
    pretrain: Any = None
    data: Any = None
    revise: Any = None
    sft: Any = None
    sample: Any = None
    label: Any = None
    reward: Any = None
    rl: Any = None
    evaluate: Any = None
    win_rate: Any = None
    evaluation_sets: Any = None

    def check(self) -> None:
        """Rules between keys that types cannot say."""
        if self.seed < 0:
            raise ConfigError(f"seed: must be 0 or more, got {self.seed}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads: must be 1 or more, or null, got {self.num_threads}")
        if not self.steps:
            raise ConfigError("steps: needs at least one step, got []")
        if len(self.arms) == 1:
            raise ConfigError(f"arms: needs two arms or more to compare (or none), got {', '.join(self.arms)}")
        self._check_measures()
        if "reward" in self.steps:
            check_scorable(self.model.path)
        if (self.rl or {}).get("lora_rank") and not (self.reward or {}).get("lora_rank"):
            raise ConfigError(
                f"rl.lora_rank: with {self.rl['lora_rank']} all networks lie over one base, for which the reward model "
                "must be an adapter too; set reward.lora_rank, or rl.lora_rank=0"
            )
        labels, dataset = (self.labeler or {}).get("path"), ((self.data or {}).get("source") or {}).get("path")
        if labels is not None and labels == dataset and "path" not in (self.sample or {}):
            raise ConfigError(
                f"labeler.path: the labels in {labels} are of responses that are recorded there too; to train on those "
                "in place of sampled ones add stage@sample=recorded, or say where else labels are"
            )

    def _check_measures(self) -> None:
        """Every step that is to measure something is among those that run."""
        sets = (self.evaluation_sets or {}).get("sets")
        if sets and not any(step.startswith("sets_") for step in self.steps):
            raise ConfigError(
                f"evaluation_sets: {', '.join(sets)} would be put to no model: none of sets_base, sets_sl_cai, "
                f"sets_policy is among steps ({', '.join(self.steps)}); add those wanted"
            )
        if self.objective is not None:
            step, _, fact = self.objective.partition(".")
            if self.arms:
                raise ConfigError(
                    f"objective: {self.objective!r} is a fact of one run; there are arms: {', '.join(self.arms)}"
                )
            if step not in self.steps:
                raise ConfigError(f"objective: {unknown('step', step, self.steps)}; write step.fact")
            if not fact:
                raise ConfigError(f"objective: must be step.fact, got {self.objective!r}")

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The nodes with a `_target_`, by their top-level key."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: value for key, value in values.items() if isinstance(value, dict) and "_target_" in value}
