"""From Hydra's YAML to checked settings and built stages. Hydra and OmegaConf are known here and nowhere else.

Fixed keys are dataclasses; swappable parts are `_target_` nodes, checked against the signature of what they name.
Everything is composed, checked and built before any model loads, and every mistake is one line of ConfigError.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cai.errors import CaiError, ConfigError, unknown
from cai.models.digest import check_scorable
from cai.nodes import check_node
from cai.paths import PACKAGE, folders, packaged

__all__ = [
    "ModelSettings",
    "Settings",
    "build",
    "compose",
    "limit_threads",
    "quoted",
    "run_name",
    "sweep",
    "sweep_plan",
]


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

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The nodes with a `_target_`, by their top-level key."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: value for key, value in values.items() if isinstance(value, dict) and "_target_" in value}


class UserConf(SearchPathPlugin):
    """Puts ./conf before the shipped conf/ in Hydra's search."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra."""
        for folder in folders("conf")[:-1]:
            search_path.prepend(provider="user", path=f"file://{folder}")


def _register() -> None:
    """Idempotent; called rather than done on import, so that a sweep's worker process has it too."""
    ConfigStore.instance().store(name="schema", node=Settings)
    Plugins.instance().register(UserConf)
    OmegaConf.register_new_resolver("shipped", lambda path: str(PACKAGE / path), replace=True)


# --- composing --------------------------------------------------------------------------------------------------------


def compose(overrides: Sequence[str]) -> Settings:
    """The resolved and checked settings of `overrides` (Hydra's grammar). Raises ConfigError, one line."""
    try:
        with _hydra():
            config = hydra_compose("config", overrides=_last_of_each(overrides))
        for key in [str(key) for key in config] + [f"model.{key}" for key in config.get("model") or {}]:
            _refuse_extra(key)
        settings = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_one_line(error, overrides)) from None
    if not isinstance(settings, Settings):
        raise ConfigError("config.yaml: its defaults list must begin with 'schema', which says what the keys are")
    settings.check()
    for key, node in settings.nodes().items():
        check_node(node, key)
    return settings


def _refuse_extra(key: str) -> None:
    """`+key=value` adds any key; the fixed ones are those of the dataclasses."""
    known = {f.name for f in fields(ModelSettings if key.startswith("model.") else Settings)}
    name = key.removeprefix("model.")
    if name not in known:
        raise ConfigError(f"{key}: {unknown('key', name, known)}")


def build(settings: Settings, keys: Sequence[str]) -> dict[str, Any]:
    """The objects of the nodes `keys`, with everything they are made of. Constructors' complaints name their key."""
    built = {}
    for key in dict.fromkeys(keys):
        node = settings.nodes().get(key)
        if node is None:
            raise ConfigError(f"{key}: no such part in this configuration; a step needs it")
        try:
            built[key] = instantiate(node, _convert_="all")
        except InstantiationException as error:
            where = re.search(r"full_key: (\S+)", str(error))
            cause = _root(error)
            text = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
            raise ConfigError(f"{key}{f'.{where[1]}' if where else ''}: {text}") from error
    return built


def limit_threads(settings: Settings) -> None:
    """Let torch use `num_threads` threads; it reads them when it is first imported, which is after this."""
    if settings.num_threads:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(settings.num_threads)


def run_name(overrides: Sequence[str]) -> str:
    """A folder name for a run: its experiment and whatever else was asked for, short, and the same every time.

    >>> run_name(["experiment=rlaif", "seed=2", "out=/tmp/x"])
    'rlaif-seed=2'
    """
    parts = {key: value for key, _, value in (o.partition("=") for o in overrides)}
    experiment = parts.pop("experiment", "run")
    where = ("out", "store", "num_threads", "name", "hydra")  # not what kind of run it is
    rest = [f"{k}={v}" for k, v in sorted(parts.items()) if re.split(r"[./]", k)[0] not in where]
    name = re.sub(r"[^\w.,=+~@-]+", "_", "-".join([experiment, *rest]))
    return name if len(name) <= 80 else f"{name[:71]}-{sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra over the user's conf/ and the shipped one; inside a job of a sweep, whose own Hydra is put back after."""
    _register()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(packaged("conf")), version_base="1.3", job_name="cai"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """An arm's override replaces the command's for the same key; Hydra alone would refuse to take a group twice."""
    return list({override.partition("=")[0]: override for override in overrides}.values())


# --- sweeps -----------------------------------------------------------------------------------------------------------


def sweep_plan(overrides: Sequence[str]) -> tuple[Path, frozenset[str], list[list[str]]]:
    """Where the jobs of a sweep and the report about them go (`out/sweep-<name>`), the keys that are swept, and the
    overrides of every job that there will be, as Hydra's own sweeper counts them.
    """
    with _hydra():
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
        except OverrideParseException as error:
            raise ConfigError(_one_line(error, overrides)) from None
        fixed = _composed([str(o.input_line) for o in parsed if not o.is_sweep_override()]) or _composed([])
    folder = Path(fixed["out"]).absolute() / f"sweep-{fixed['name'] or run_name(overrides)}"
    swept = frozenset(o.get_key_element() for o in parsed if o.is_sweep_override())
    chosen = [
        [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] if o.is_discrete_sweep() else [o.input_line]
        for o in parsed
        if not o.get_key_element().lstrip("+~").startswith("hydra")
    ]
    return folder, swept, [[str(override) for override in job] for job in product(*chosen)]


def sweep(overrides: Sequence[str], folder: Path, job: Callable[[list[str]], float | None]) -> None:
    """Hydra's own multirun: `job` gets the overrides of each job, through whatever launcher is configured; what it
    returns is for sweepers that search. All jobs are composed before the first one starts.
    """
    _register()

    def task(_config: object) -> float | None:
        return job(list(HydraConfig.get().overrides.task))

    run = hydra_main(version_base="1.3", config_path=str(packaged("conf")), config_name="config")(task)
    arguments = ["cai", "--multirun", *overrides, f"hydra.sweep.dir={quoted(folder)}"]
    # FULL_ERROR: Hydra then raises, where it would print a traceback and leave the process
    before, sys.argv = sys.argv, arguments
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        run()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_one_line(error, overrides)) from None
    finally:
        sys.argv = before


def quoted(value: object) -> str:
    """As a string of Hydra's override grammar, in which `=` and `,` mean something."""
    escaped = str(value).replace("'", "\\'")
    return f"'{escaped}'"


# --- errors of Hydra and OmegaConf, as one line ---------------------------------------------------------------------


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, CaiError):
        error = error.__cause__
    return error


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    if isinstance(error, OverrideParseException):
        return f"override {error.override!r}: {error.message.splitlines()[0]}; write key=value"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if error.options is not None:
            return f"{group}: {unknown('option', option, error.options)}"
        return f"no configuration file {error.missing_cfg_file!r} in {', '.join(map(str, folders('conf')))}"
    cause = _root(error)
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark:
        mark = cause.problem_mark
        return f"{mark.name}:{mark.line + 1}: not YAML: {cause.problem}"
    text = " ".join(str(cause).split("\n    full_key:")[0].split())
    key = getattr(cause, "full_key", None)
    if isinstance(cause, MissingMandatoryValue):
        return f"{key}: has no value yet; give it one: {key}=..."
    strange = re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", f"{error} {cause}")
    if strange:
        return _unknown_key(key or strange[1], overrides)
    return f"{key}: {text}" if key and key not in text else text


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Name the keys that stand where `key` was looked for."""
    rest = [o for o in overrides if o.partition("=")[0].lstrip("+~") != key]
    with _hydra():
        known = _composed(rest) or _composed([]) or OmegaConf.create()
        parent, _, name = key.rpartition(".")
        while parent and not OmegaConf.is_dict(OmegaConf.select(known, parent)):
            parent, _, name = parent.rpartition(".")
        siblings = set(OmegaConf.select(known, parent) if parent else known)
        if not parent:
            siblings |= set(GlobalHydra.instance().config_loader().list_groups(""))
    return f"{key}: {unknown('key', name, siblings)}"


def _composed(overrides: Sequence[str]) -> Any:
    try:
        return hydra_compose("config", overrides=_last_of_each(overrides))
    except (HydraException, OmegaConfBaseException):
        return None
