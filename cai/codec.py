"""Dataclass records <-> plain JSON, checked field by field against the type hints."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from cai.errors import DataError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["field_names", "from_json", "shown", "to_json"]

R = TypeVar("R", bound="DataclassInstance")
Decoder = Callable[[Any], Any]


class _Wrong(Exception):
    """A value that does not fit; `path` collects the keys on the way out, so that the good case builds no strings."""

    def __init__(self, problem: str, *path: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = list(path)


def to_json(record: "DataclassInstance") -> dict[str, Any]:
    """The record as a plain dict, fields in order, tuples as lists, nested records as dicts. A field that is marked
    `spare` in its metadata is left out where it has its default.
    """
    spare = _spare(type(record))
    values = {name: getattr(record, name) for name in field_names(type(record))}
    return {name: _plain(value) for name, value in values.items() if name not in spare or value != spare[name]}


@cache
def _spare(cls: type) -> dict[str, Any]:
    """Defaults of the fields that records on disk do without."""
    return {f.name: f.default for f in dataclasses.fields(cls) if f.metadata.get("spare")}


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    return value  # json.dumps says what is wrong with it, and where


@cache
def field_names(cls: type) -> tuple[str, ...]:
    """The names of a dataclass' fields, in order."""
    return tuple(f.name for f in dataclasses.fields(cls))


def from_json(cls: type[R], obj: object, where: str) -> R:
    """The record of type `cls` that `obj` (parsed JSON) holds.

    Unknown keys, missing keys (of fields without a default) and wrong types raise DataError with `where` (file:line)
    and the key. Integers are taken for floats; nothing else is converted.
    """
    try:
        return typing.cast(R, _decoder(cls)(obj))
    except _Wrong as wrong:
        key = "".join(wrong.path).lstrip(".")
        raise DataError(f"{where}: {f'key {key!r}: ' if key else ''}{wrong.problem}") from None


@cache
def _decoder(hint: Any) -> Decoder:
    """What turns a JSON value into a value of type `hint`, or raises _Wrong."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record_decoder(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return _tuple_decoder(_decoder(args[0]))
    if origin is dict and args[0] is str:
        return _dict_decoder(_decoder(args[1]))
    if origin in (types.UnionType, typing.Union) and len(args) == 2 and types.NoneType in args:
        inner = _decoder(args[0] if args[1] is types.NoneType else args[1])
        return lambda value: None if value is None else inner(value)
    if hint is object:
        return lambda value: value
    if hint is float:
        return _float
    if hint in (str, int, bool):
        return _scalar_decoder(hint)
    raise TypeError(f"records cannot hold a field of type {hint}")


def _record_decoder(cls: type["DataclassInstance"]) -> Decoder:
    hints = typing.get_type_hints(cls)
    decoders = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(cls)}
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Wrong(f"must be an object with the keys of {cls.__name__}, got {shown(value)}")
        values = {}
        for name, item in value.items():
            if name not in decoders:
                raise _Wrong(unknown(f"{cls.__name__} key", name, decoders))
            try:
                values[name] = decoders[name](item)
            except _Wrong as wrong:
                wrong.path.insert(0, f".{name}")
                raise
        for name in required:
            if name not in values:
                raise _Wrong(f"missing; {cls.__name__} needs {', '.join(required)}", f".{name}")
        return cls(**values)

    return decode


def _tuple_decoder(item: Decoder) -> Decoder:
    def decode(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _Wrong(f"must be a list, got {shown(value)}")
        items: list[Any] = []
        try:
            for entry in value:
                items.append(item(entry))
        except _Wrong as wrong:
            wrong.path.insert(0, f"[{len(items)}]")
            raise
        return tuple(items)

    return decode


def _dict_decoder(item: Decoder) -> Decoder:
    def decode(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _Wrong(f"must be an object, got {shown(value)}")
        out = {}
        for name, entry in value.items():
            try:
                out[name] = item(entry)
            except _Wrong as wrong:
                wrong.path.insert(0, f".{name}")
                raise
        return out

    return decode


def _scalar_decoder(kind: type) -> Decoder:
    name = {str: "a string", int: "a whole number", bool: "true or false"}[kind]

    def decode(value: Any) -> Any:
        if type(value) is not kind:  # exact: in Python, True is an int
            raise _Wrong(f"must be {name}, got {shown(value)}")
        return value

    return decode


def _float(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _Wrong(f"must be a finite number, got {shown(value)}")
    return float(value)


def shown(value: object) -> str:
    """A JSON value, cut to fit into a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
