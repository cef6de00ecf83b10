from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest

from cai.errors import ConfigError, ModelError
from cai.nodes import check_node


class Part:
    """An object that other parts are made of."""


class Whole:
    """Takes one argument of each type that a YAML value can be checked against."""

    def __init__(
        self, *, part: Part | None = None, count: int = 0, rate: float = 0.0, word: str = "", flag: bool = False,
        choice: Literal["left", "right"] = "left", rates: Sequence[float] | None = None,
        table: dict[str, int] | None = None,
        anything: Any = None,
    ) -> None:  # fmt: skip
        pass


def check_even(number: int) -> None:
    if number % 2:
        raise ModelError(f"number: must be even, got {number}")


class Even:
    """Its argument has a check of its own."""

    def __init__(self, *, number: Annotated[int, check_even]) -> None:
        check_even(number)


def whole(**values: object) -> dict[str, object]:
    return {"_target_": "test_nodes.Whole", **values}


@pytest.mark.parametrize(
    "values",
    [
        {"count": 3},
        {"rate": 3},
        {"rate": 0.5},
        {"word": "x"},
        {"flag": True},
        {"choice": "right"},
        {"rates": [0, 0.5]},
        {"rates": None},
        {"table": {"a": 1}},
        {"part": {"_target_": "test_nodes.Part"}},
        {"part": None},
        {"anything": [1, "two"]},
    ],
)
def test_what_fits(values: dict[str, object]) -> None:
    check_node(whole(**values), "node")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": True}, "node.count: must be a whole number, got True"),
        ({"count": "3"}, "node.count: must be a whole number, got '3'"),
        ({"rate": "1e-3"}, "node.rate: must be a number, got '1e-3'"),
        ({"word": 3}, "node.word: must be text, got 3"),
        ({"flag": 1}, "node.flag: must be true or false, got 1"),
        ({"choice": "up"}, "node.choice: must be one of left, right, got 'up'"),
        ({"rates": ["x"]}, r"node.rates: must be Sequence\[float\] or null, got \['x'\]"),
        ({"rates": "ab"}, r"node.rates: must be Sequence\[float\] or null, got 'ab'"),
        ({"part": "x"}, "node.part: must be a node with a _target_ that makes a Part or null, got 'x'"),
        ({"part": {"_target_": "test_nodes.Part", "x": 1}}, "node.part.x: unknown key of Part 'x'. Allowed: none"),
        ({"anything": [{"_target_": "test_nodes.Prat"}]}, r"node.anything\[0\]._target_: .*did you mean 'Part'"),
        ({"_target_": "Whole"}, "node._target_: cannot import 'Whole'"),
    ],
)
def test_what_does_not_fit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_node({**whole(), **values}, "node")


def test_a_check_in_an_annotation_sees_the_values_of_partial_nodes() -> None:
    check_node({"_target_": "test_nodes.Even", "number": 2}, "node")
    with pytest.raises(ConfigError, match=r"^node: number: must be even, got 3$"):
        check_node({"_target_": "test_nodes.Even", "_partial_": True, "number": 3}, "node")
    with pytest.raises(ConfigError, match=r"node.number: must be a whole number, got 'x'"):
        check_node({"_target_": "test_nodes.Even", "number": "x"}, "node")


def test_a_partial_node_may_leave_arguments_open() -> None:
    node = {"_target_": "tiny.Numbers", "count": 1}
    with pytest.raises(ConfigError, match=r"node.seed: missing; Numbers needs count, seed"):
        check_node(node, "node")
    check_node({**node, "_partial_": True}, "node")
