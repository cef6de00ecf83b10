"""Checks of `_target_` nodes: does the target exist, does it take these keys, are plain values of the right type.

An argument annotated `Annotated[type, check]` has its value given to `check`, which raises a CaiError for a wrong one:
so the settings of a `_partial_` node are checked too, whose constructor is not reached before a model is wanted.

Works on plain dicts and signatures; modules that nodes point at import heavy libraries inside functions only, so this
costs milliseconds.
"""

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cai.errors import CaiError, ConfigError, unknown

__all__ = ["check_node", "signature", "without_incidental"]

_MARKS: Final = {"_target_", "_partial_"}
_PLAIN: Final = (bool, int, float, str)


def check_node(node: object, key: str) -> None:
    """Check `node` and every node inside it; `key` is its dotted path. Raises ConfigError, one line."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_node(item, f"{key}[{index}]")
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        check_node(value, f"{key}.{name}")
    if "_target_" in node:
        _check_call(_locate(node["_target_"], key), node, key)


def signature(target: str) -> dict[str, inspect.Parameter]:
    """The arguments of a `_target_` that a node can name."""
    return _parameters(_locate(target, target))


def without_incidental(node: object) -> object:
    """The node, and every node inside it, without the settings that its target calls `incidental`, in an attribute of
    that name: those that say how an output is got (where a server is, say), and not what it is.
    """
    if isinstance(node, list):
        return [without_incidental(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    target = _locate(node["_target_"], "") if "_target_" in node else None
    left_out: frozenset[str] = getattr(target, "incidental", frozenset())
    return {name: without_incidental(value) for name, value in node.items() if name not in left_out}


def _locate(target: str, key: str) -> Callable[..., object]:
    module_name, _, name = str(target).rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # files of the user's own, after everything that is installed
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}._target_: cannot import {target!r}: {error}") from None
    found = getattr(module, name, None)
    if not callable(found):
        public = [n for n in getattr(module, "__all__", vars(module)) if callable(getattr(module, n, None))]
        raise ConfigError(f"{key}._target_: {unknown(f'name in {module_name}', name, public)}")
    return typing.cast(Callable[..., object], found)


def _check_call(target: Callable[..., object], node: Mapping[str, object], key: str) -> None:
    """The keys of the node are arguments of `target`, none is missing (unless partial), plain values fit."""
    parameters = _parameters(target)
    given = {name: value for name, value in node.items() if name not in _MARKS}
    for name in given:
        if name not in parameters:
            raise ConfigError(f"{key}.{name}: {unknown(f'key of {target.__name__}', name, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given and not node.get("_partial_"):
            raise ConfigError(f"{key}.{name}: missing; {target.__name__} needs {', '.join(parameters)}")
    for name, value in given.items():
        hint = parameters[name].annotation
        if not _fits(value, hint):
            raise ConfigError(f"{key}.{name}: must be {_words(hint)}, got {value!r}")
        for check in getattr(hint, "__metadata__", ()):
            try:
                check(value)
            except CaiError as error:
                raise ConfigError(f"{key}: {error}") from None


def _parameters(target: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Parameters that a key can name; annotations are evaluated where their module's names allow it."""
    try:
        signature = inspect.signature(target, eval_str=True)
    except NameError:  # a name imported for type checkers only: then types are not compared
        signature = inspect.signature(target)
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: p for name, p in signature.parameters.items() if p.kind in kinds}


def _fits(value: object, hint: Any) -> bool:
    """Whether a YAML value can be what `hint` asks for. Nodes are taken on trust: their own check is elsewhere."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object, inspect.Parameter.empty) or isinstance(hint, str | typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if hint in (None, types.NoneType):
        return value is None
    if origin is Literal:
        return value in args
    if origin is Annotated:
        return _fits(value, args[0])
    if hint is float:
        return type(value) in (int, float)
    if hint in _PLAIN:
        return type(value) is hint
    kind = origin or hint
    if isinstance(value, Mapping):
        return "_target_" in value or kind in (dict, Mapping)
    if isinstance(value, list):
        listlike = isinstance(kind, type) and issubclass(kind, Sequence)
        return listlike and (not args or all(_fits(item, args[0]) for item in value))
    return False  # a plain value where an object is wanted


def _words(hint: Any) -> str:
    """How a type is called in a message."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is Annotated:
        return _words(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_words(arg) for arg in typing.get_args(hint))
    if hint in (None, types.NoneType):
        return "null"
    if hint in _PLAIN:
        return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
    if typing.get_origin(hint) or hint in (list, tuple, dict):
        return str(hint).replace("collections.abc.", "").replace("typing.", "")
    return f"a node with a _target_ that makes a {getattr(hint, '__name__', hint)}"
