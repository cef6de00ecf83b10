"""From Hydra's YAML to checked settings and built stages. Hydra and OmegaConf are known here and nowhere else.

Fixed keys are dataclasses; swappable parts are `_target_` nodes, checked against the signature of what they name.
Everything is composed, checked and built before any model loads, and every mistake is one line of ConfigError.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
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
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cai import constitution
from cai.errors import CaiError, ConfigError, ConstitutionError, unknown
from cai.nodes import check_node
from cai.paths import PACKAGE, folders, names, packaged, search
from cai.settings import ModelSettings, Settings

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
            if isinstance(cause, ConstitutionError) and cause.args == _mistake_in(settings.constitution):
                raise ConfigError(f"constitution: {text}") from error  # the key that the user gave, not where it went
            raise ConfigError(f"{_typed(settings, key, where[1] if where else '')}: {text}") from error
    return built


def _typed(settings: Settings, key: str, inner: str) -> str:
    """The key of what is at `inner` in the node `key`: as the user typed it, where the node took another one whole."""
    nodes, name = settings.nodes(), inner.partition(".")[0]
    if name in nodes and nodes[key].get(name) == nodes[name]:  # label.labeler: ${labeler}
        return inner
    return f"{key}.{inner}" if inner else key


def _mistake_in(name: str) -> tuple[object, ...]:
    """What is wrong with a constitution, as the arguments of its error; none where nothing is."""
    try:
        constitution.load(name)
    except ConstitutionError as error:
        return error.args
    return ()


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
    overrides of every job that there will be, as Hydra's own sweeper counts them; of an interval that is searched, its
    two ends. Raises ConfigError for the first job that Hydra cannot compose: it would refuse them all.
    """
    with _hydra():
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
        except OverrideParseException as error:
            raise ConfigError(_one_line(error, overrides)) from None
        fixed = _composed([str(o.input_line) for o in parsed if not o.is_sweep_override()]) or _composed([])
        folder = Path(fixed["out"]).absolute() / f"sweep-{fixed['name'] or run_name(overrides)}"
        swept = frozenset(o.get_key_element() for o in parsed if o.is_sweep_override())
        own = [o for o in parsed if not o.get_key_element().lstrip("+~").startswith("hydra")]
        jobs = [list(job) for job in product(*map(_values, own))]
        hydras = [str(o.input_line) for o in parsed if o not in own and not o.is_sweep_override()]
        for job in (hydras, *jobs):
            try:
                hydra_compose("config", overrides=job)
            except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
                name = " ".join(override for override in job if override.partition("=")[0] in swept)
                raise ConfigError(f"{f'job {name}: ' if name else ''}{_one_line(error, job)}") from None
    return folder, swept, jobs


def _values(override: Override) -> list[str]:
    """What an override is in the jobs of a sweep, one after the other."""
    key, value = override.get_key_element(), override.value()
    if override.is_discrete_sweep():
        return [f"{key}={v}" for v in override.sweep_string_iterator()]
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    return [str(override.input_line)]


def sweep(overrides: Sequence[str], folder: Path, job: Callable[[list[str], int], float | None]) -> None:
    """Hydra's own multirun: `job` gets the overrides and the number (from 0) of each job, through whatever launcher is
    configured; what it returns is for sweepers that search. All jobs are composed before the first one starts.
    """
    _register()

    def task(_config: object) -> float | None:
        told = HydraConfig.get()
        return job(list(told.overrides.task), int(told.job.num))

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
    several = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: 1\. | requires )", text)
    if several:
        name, _, values = several[1].partition("=")
        listed = f", or, where it takes a list, write {name}=[{values}]" if text.startswith("Ambiguous") else ""
        return f"{several[1]}: several values; add -m for a run with each of them{listed}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{key}: has no value yet; give it one: {key}=..."
    strange = re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", f"{error} {cause}")
    if strange:
        return _unknown_key(key or strange[1], overrides)
    return f"{key}: {text}" if key and key not in text else text


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Name the keys that stand where `key` was looked for, and the choice for its group that has it."""
    rest = [o for o in overrides if o.partition("=")[0].lstrip("+~") != key]
    with _hydra():
        known = _composed(rest) or _composed([]) or OmegaConf.create()
        parent, _, name = key.rpartition(".")
        while parent and not OmegaConf.is_dict(OmegaConf.select(known, parent)):
            parent, _, name = parent.rpartition(".")
        siblings = set(OmegaConf.select(known, parent) if parent else known)
        if not parent:
            siblings |= set(GlobalHydra.instance().config_loader().list_groups(""))
    if parent == "arms" and not siblings:
        return (
            f"{key}: there are no arms; they come from an experiment (add experiment=demo) or are added: +{key}=[...]"
        )
    asked = next((o.lstrip("+~") for o in overrides if o not in rest), key)
    return f"{key}: {unknown('key', name, siblings)}{_elsewhere(asked, known.get('arms') or {})}"


def _elsewhere(override: str, arms: Mapping[str, Sequence[str]]) -> str:
    """Where the key of an override would be known: under another choice for its group, and in which arm."""
    key = override.partition("=")[0]
    group, _, inner = key.partition(".")
    files = {name: search(f"conf/{group}", name, ".yaml") for name in names(f"conf/{group}", ".yaml")} if inner else {}
    having = [f"{group}={name}" for name, path in files.items() if path and _has(path, inner)]
    if not having:
        return ""
    own = [(arm, list(items)) for arm, items in arms.items() if not set(having).isdisjoint(items)]
    lists = ["arms." + arm + "=[" + ",".join(map(quoted, [*items, override])) + "]" for arm, items in own]
    where = f'; for that arm alone: "{lists[0]}"' if lists else ""
    return f"; it is a key of {', '.join(having)}{where}"


def _has(path: Path, key: str) -> bool:
    """Whether a preset has a key of its own."""
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, yaml.YAMLError):
        return False
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def _composed(overrides: Sequence[str]) -> Any:
    try:
        return hydra_compose("config", overrides=_last_of_each(overrides))
    except (HydraException, OmegaConfBaseException):
        return None
