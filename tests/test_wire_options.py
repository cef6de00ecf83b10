"""Probabilities of options from the tokens of an answer, and verdicts in words."""

import math

import pytest
from endpoints import LETTERS
from hypothesis import given
from hypothesis import strategies as st

from cai.engines.wire.options import Options, Position
from cai.errors import EngineError


def at(token: str, top: dict[str, float]) -> Position:
    return Position(token, {name: math.log(p) for name, p in top.items()})


def odds(options: Options, *positions: Position) -> list[float]:
    return [pytest.approx(math.exp(logp)) for logp in options.logps(positions)]


def test_all_spellings_of_an_option_are_added_up() -> None:
    top = {"A": 0.3, " A": 0.1, "(A": 0.05, " (B)": 0.2, "B": 0.1, "**B": 0.05, "The": 0.1}
    assert odds(LETTERS, at("A", top)) == [0.45, 0.35]


def test_an_option_of_several_tokens_is_followed_until_it_is_decided() -> None:
    first = {" (": 0.8, "A": 0.06, "B": 0.04}
    second = {"A": 0.7, "B": 0.2, "?": 0.1}
    third = {")": 1.0}
    assert odds(LETTERS, at(" (", first), at("A", second), at(")", third)) == [0.06 + 0.8 * 0.7, 0.04 + 0.8 * 0.2]


def test_what_is_no_option_is_the_mass_that_lacks() -> None:
    assert odds(LETTERS, at("Both", {"Both": 0.9, "A": 0.01})) == [0.01, 0.0]
    assert LETTERS.logps([]) == [-math.inf, -math.inf]


def test_words_count_in_any_case_and_letters_do_not() -> None:
    words = Options([" yes", " no"])
    assert odds(words, at("Yes", {"Yes": 0.6, "YES": 0.1, "No": 0.2, "Not": 0.1})) == [0.7, 0.2]
    assert odds(LETTERS, at("a", {"a": 0.9, "A": 0.1})) == [0.1, 0.0], "an article"


def test_a_piece_that_one_option_alone_begins_with_counts_for_it() -> None:
    words = Options(["compliant", "refusal"])
    assert odds(words, at("compl", {"compl": 0.6, "ref": 0.3}), at("iant", {"iant": 1.0})) == [0.6, 0.3]


def test_the_shorter_of_two_numbers_is_meant_when_nothing_follows() -> None:
    numbers = Options(["1", "10", "2"])
    one = at("1", {"1": 0.6, "2": 0.4})
    assert odds(numbers, one, at("0", {"0": 0.9, ".": 0.1})) == [0.06, 0.54, 0.4]
    assert odds(numbers, one) == [0.6, 0.0, 0.4]


@pytest.mark.parametrize("texts", [[" (A)", "A."], ["()", "A"], ["yes", "YES"]])
def test_options_that_look_alike_are_refused(texts: list[str]) -> None:
    with pytest.raises(EngineError, match="cannot be told apart in a server's answer"):
        Options(texts)


@given(st.lists(st.sampled_from(["(", " ", "A", "B", ")", "An", "\n", "yes", "**"]), max_size=5), st.integers(0, 99))
def test_probabilities_of_options_never_add_up_to_more_than_one(said: list[str], seed: int) -> None:
    tokens = ["(", " ", "A", "B", ")", "An", "\n", "yes", "**"]
    weights = [(seed * 7 + i * i) % 11 + 1 for i in range(len(tokens))]
    top = {token: weight / sum(weights) for token, weight in zip(tokens, weights, strict=True)}
    assert sum(map(math.exp, LETTERS.logps([at(token, top) for token in said]))) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (" (A)", 0),
        ("B", 1),
        ("B.", 1),
        ("**(B)** because it is kind", 1),
        ("(A) is better than (B)", 0),
        ("I would choose (B).", 1),
        ("A good answer would be (B)", 1),
        ("A good answer", None),
        ("(A) or (B), hard to say"[4:], 1),
        ("Both (A) and (B)", None),
        ("neither", None),
        ("", None),
        ("ABBA", None),
    ],
)
def test_verdicts_in_words(text: str, verdict: int | None) -> None:
    assert LETTERS.verdict(text) == verdict


def test_verdicts_of_words() -> None:
    words = Options([" yes", " no"])
    assert [words.verdict(text) for text in ("Yes, it is.", "no", "It is a clear no", "yesterday", "yes and no")] == [
        0, 1, 1, None, 0
    ]  # fmt: skip
