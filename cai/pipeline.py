"""The recipe: which steps there are, in which order, and what feeds what. Knows stages by their protocol alone.

A stage's output has the fingerprint of what decides its bytes: settings, texts, inputs, the stage's `version`, and the
versions of the packages that compute. Deliberately not in it: the device and the number of threads. They change
rounding, and through it single tokens, but not what the output means; run.json says which they were.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from cai.errors import ConfigError, unknown
from cai.nodes import without_incidental
from cai.paths import PACKAGE
from cai.progress import duration
from cai.records import fingerprint
from cai.stages.base import Stage
from cai.store import Entry, Store

__all__ = [
    "RECIPE",
    "Planned",
    "Step",
    "chosen",
    "material",
    "packages",
    "plan",
    "plan_fingerprint",
    "portable",
    "run_step",
    "run_steps",
    "summary",
]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: its name, the configuration key of its stage, and which step feeds each of its inputs. An
    `optional` one is left out where its stage is not configured.
    """

    name: str
    key: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


# Read it from top to bottom: this is Constitutional AI (Bai et al. 2022b) with the labeler left open.
RECIPE: Final[tuple[Step, ...]] = (
    Step("pretrain", "pretrain"),
    Step("sets_base", "evaluation_sets", optional=True),  # first, so that a mistake in a set shows before any training
    Step("data", "data"),
    Step("revise", "revise", {"data": "data"}),
    Step("sft", "sft", {"revise": "revise"}),
    Step("sets_sl_cai", "evaluation_sets", {"model": "sft"}, optional=True),
    Step("sample", "sample", {"data": "data", "sft": "sft"}),
    Step("label", "label", {"data": "data", "sample": "sample"}),
    Step("reward", "reward", {"data": "data", "sft": "sft", "label": "label"}),
    Step("rl", "rl", {"data": "data", "sft": "sft", "label": "label", "reward": "reward"}),
    Step("sets_policy", "evaluation_sets", {"model": "rl"}, optional=True),
    Step("evaluate_base", "evaluate", {"data": "data", "reference": "sft"}),
    Step("evaluate_sl_cai", "evaluate", {"data": "data", "reference": "sft", "model": "sft"}),
    Step("evaluate_policy", "evaluate", {"data": "data", "reference": "sft", "model": "rl", "reward": "reward"}),
    Step("win_rate", "win_rate", {"data": "data", "a": "evaluate_policy", "b": "evaluate_sl_cai"}),
)

_PACKAGES: Final = ("cai", "torch", "transformers", "trl")  # whose other versions may give other numbers


@dataclass(frozen=True, slots=True)
class Planned:
    """A step with its stage, ready to run: `settings` is the resolved configuration node, `texts` the hashes."""

    step: Step
    stage: Stage
    settings: Mapping[str, object]
    texts: Mapping[str, str]


def chosen(names: Sequence[str], keys: Collection[str]) -> list[Step]:
    """The named steps in the order of the recipe, without optional ones whose stage is not among the configured `keys`.

    Raises ConfigError for an unknown step, for one whose input is not made by another named step, and for none.
    """
    known = [step.name for step in RECIPE]
    for name in names:
        if name not in known:
            raise ConfigError(f"steps: {unknown('step', name, known)}")
    steps = [step for step in RECIPE if step.name in names and (step.key in keys or not step.optional)]
    for step in steps:
        for name in step.inputs.values():
            if name not in names:
                raise ConfigError(f"steps: {step.name!r} needs {name!r}, which is not among {', '.join(names)}")
    if not steps:
        raise ConfigError(f"steps: nothing to do, since no stage is configured for {', '.join(names)}")
    return steps


def plan(names: Sequence[str], nodes: Mapping[str, Mapping[str, object]], stages: Mapping[str, Stage]) -> list[Planned]:
    """The chosen steps, with the stages and settings of their keys.

    Reads every text that a stage depends on, so that a missing file is found before anything runs.
    """
    return [Planned(step, stages[step.key], nodes[step.key], stages[step.key].texts()) for step in chosen(names, nodes)]


def run_step(planned: Planned, inputs: Mapping[str, Entry], store: Store) -> Entry:
    """The output of one step, from the store or made now. `inputs` go by the stage's own names for them."""
    made_from = material(planned) | {"inputs": {name: entry.fingerprint for name, entry in inputs.items()}}
    folders = {name: entry.path for name, entry in inputs.items()}
    return store.get(made_from, lambda output: planned.stage.run(folders, output), name=planned.step.key)


def plan_fingerprint(steps: Sequence[Planned]) -> str:
    """Of everything that decides the outputs of these steps, known before any of them runs."""
    return fingerprint({planned.step.name: material(planned) for planned in steps})


def material(planned: Planned) -> dict[str, object]:
    """What decides the output of a step, besides its inputs."""
    return {
        "version": planned.stage.version,
        "packages": packages(),
        "settings": portable(planned.settings),
        "texts": dict(planned.texts),
    }


def run_steps(steps: Sequence[Planned], store: Store, done: Callable[[dict[str, Entry]], None]) -> dict[str, Entry]:
    """Run the planned steps; print a line for each, and call `done` with all entries so far."""
    entries: dict[str, Entry] = {}
    for planned in steps:
        step = planned.step
        print(f"{step.name} ...", file=sys.stderr)
        entries[step.name] = run_step(planned, {i: entries[name] for i, name in step.inputs.items()}, store)
        print(line(step.name, entries[step.name]), flush=True)
        done(entries)
    return entries


def packages() -> dict[str, str]:
    """The versions of the packages that compute."""
    return {name: version(name) for name in _PACKAGES}


def portable(settings: object) -> object:
    """Settings without those that decide no output, and without this machine's path of the package, so that a moved
    checkout keeps its fingerprints.
    """
    return _placeless(without_incidental(settings))


def _placeless(settings: object) -> object:
    if isinstance(settings, Mapping):
        return {key: _placeless(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_placeless(value) for value in settings]
    return settings.replace(str(PACKAGE), "<cai>") if isinstance(settings, str) else settings


# --- what the terminal shows ------------------------------------------------------------------------------------------


def line(name: str, entry: Entry) -> str:
    """One plain line about one step: cached or its seconds, tokens, and what it counted."""
    least = _at_least([entry])
    spent = "cached" if entry.cached else least + duration(entry.seconds)
    counts = [f"{key} {_number(value)}" for key, value in entry.facts.items() if not _is_cost(key)]
    size = f"{least}{tokens(entry):,} tokens" if tokens(entry) else ""
    return f"{name:<20}{spent:>12}  {size:>18}   {', '.join(counts[:4])}".rstrip()


def summary(entries: Mapping[str, Entry]) -> str:
    """The table at the end of a run: a row per step (seconds and tokens of its making), and the total of this run."""
    rows = [f"{'step':<20}{'time':>12}{'tokens':>14}"]
    for name, entry in entries.items():
        how = ("cached" if entry.cached else "computed") + (", resumed: at least this" if entry.resumed else "")
        rows.append(f"{name:<20}{duration(entry.seconds):>12}{tokens(entry):>14,}  {how}")
    fresh = [entry for entry in _distinct(entries.values()) if not entry.cached]
    spent = _at_least(fresh) + duration(sum(entry.seconds for entry in fresh))
    rows.append(f"{'this run':<20}{spent:>12}{sum(tokens(entry) for entry in fresh):>14,}")
    return "\n".join(rows)


def tokens(entry: Entry) -> int:
    """Tokens that the making of `entry` read and wrote: the facts whose names end in `tokens`."""
    return int(sum(value for key, value in entry.facts.items() if key.endswith("tokens")))


def _at_least(entries: Iterable[Entry]) -> str:
    """What stands before a cost that is not all known, because the making was interrupted."""
    return "at least " if any(entry.resumed for entry in entries) else ""


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    return list({entry.fingerprint: entry for entry in entries}.values())


def _is_cost(key: str) -> bool:
    return key.endswith(("tokens", "flops", "seconds", "cost"))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"
