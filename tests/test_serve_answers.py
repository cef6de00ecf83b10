"""The fields of the page and Feedback: what is on the page is what is recorded, and what is missing is told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_site import EVERYTHING, INSTRUCTIONS, form
from worlds import comparison

from cai.errors import LabelerError
from cai.labelers.feedback import pairs_of
from cai.serve.answers import feedback_of, fields_of
from cai.serve.form import Form
from cai.types import Comparison

Filled = tuple[Form, Comparison, tuple[int, ...], dict[str, str]]


@st.composite
def filled(draw: st.DrawFn) -> Filled:
    """A form, a comparison in some order, and fields that answer it."""
    asked = form(**{name: value for name, value in EVERYTHING.items() if draw(st.booleans())})
    k = draw(st.integers(2, 9))
    shown = tuple(draw(st.permutations(range(k))))
    fields = {"critique": draw(st.text(max_size=20))}
    if draw(st.integers(0, 9)) == 0:
        return asked, comparison("c", *map(str, range(k))), shown, fields | {"skip": "unclear"}
    steps = ("1", "2", "3") if asked.strength else ("",)
    if k == 2:
        fields["verdict"] = draw(st.sampled_from(["tie", *(side + step for side in "ab" for step in steps)]))
    for place in range(k):
        fields[f"place.{place}"] = str(draw(st.integers(1, k)))
        fields[f"rating.{place}"] = str(draw(st.integers(1, 7)))
        fields |= {f"flag.{place}.{name}": "yes" for name in EVERYTHING["flags"] if draw(st.booleans())}
    if draw(st.booleans()):
        fields |= {"corrected": str(draw(st.integers(0, k - 1))), "correction": "better\r\nnow"}
    return asked, comparison("c", *map(str, range(k))), shown, fields


@given(filled())
def test_what_is_on_the_page_is_what_is_recorded(case: Filled) -> None:
    asked, shown_to, shown, fields = case
    feedback = feedback_of(fields, asked, shown_to, shown, instructions="v1")
    assert feedback.shown == shown and feedback.instructions == "v1"
    assert feedback_of(fields_of(feedback), asked, shown_to, shown, instructions="v1") == feedback
    if feedback.skipped is not None:
        return
    for pair in pairs_of(feedback, len(shown)):
        if pair.second == len(shown):
            assert pair.p == 0.0, "a correction is above the rest"
        elif len(shown) == 2:
            assert (shown[0] == pair.first) == ((pair.p == 1.0) == (fields["verdict"][0] == "a"))
        else:
            first, second = (int(fields[f"place.{shown.index(index)}"]) for index in (pair.first, pair.second))
            assert (first < second) == (pair.p == 1.0)
    if asked.ratings:
        assert [feedback.ratings[index] for index in shown] == [int(fields[f"rating.{p}"]) for p in range(len(shown))]
    if asked.flags:
        yes = {(p, name) for p, index in enumerate(shown) for name in feedback.flags[index]}
        assert yes == {(p, name) for p in range(len(shown)) for name in asked.flags if f"flag.{p}.{name}" in fields}
    if asked.correction and "corrected" in fields:
        assert feedback.corrected == shown[int(fields["corrected"])] and feedback.correction == "better\nnow"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"place.0": "1", "place.1": "2"}, "Response C has no place yet"),
        ({"place.0": "0", "place.1": "1", "place.2": "1"}, "Response A has no place yet"),
        ({"place.0": "1", "place.1": "4", "place.2": "1"}, "Response B has no place yet"),
        ({"place.0": "9" * 5000, "place.1": "1", "place.2": "1"}, "Response A has no place yet"),
        ({"place.0": "\u0661", "place.1": "1", "place.2": "1"}, "Response A has no place yet"),
        ({"corrected": "9" * 5000, "correction": "new"}, "The edited response is empty"),
        ({"rating.1": ""}, "Response B has no rating yet"),
        ({"rating.2": "8"}, "Response C has no rating yet"),
        ({"corrected": "0", "correction": " "}, "The edited response is empty"),
        ({"corrected": "7", "correction": "new"}, "The edited response is empty"),
        ({"corrected": "0", "correction": " text 1 "}, "still that of response B"),
        ({"critique": "x" * 60_000}, "The critique is too long: 60,000 characters, 50,000 at most"),
    ],
)
def test_what_is_missing_is_told_by_the_letters_of_the_page(fields: dict[str, str], message: str) -> None:
    whole = {f"place.{p}": str(p + 1) for p in range(3)} | {f"rating.{p}": "4" for p in range(3)}
    if "place.0" in fields:
        whole = {name: value for name, value in whole.items() if not name.startswith("place")}
    shown_to = comparison("c", "text 0", "text 1", "text 2")
    with pytest.raises(LabelerError, match=message):
        feedback_of(whole | fields, form(**EVERYTHING), shown_to, (0, 1, 2), instructions="v")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 1.5}, "overlap: must be a share from 0 to 1, got 1.5"),
        ({"gold_share": 1.0}, "gold_share: must be below 1"),
        ({"num_labels": 0}, "num_labels: must be 1 or more, got 0"),
        ({"flags": {"Bad name": "x"}}, "flags: must be name: question"),
        ({"flags": {f"f{i}": "x" for i in range(10)}}, "flags: must be 9 at most"),
        ({"skip_reasons": ()}, "skip_reasons: must be one or more reasons"),
        ({"instructions": " \n"}, "instructions: must say what people are to do"),
    ],
)
def test_forms_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelerError, match=message):
        form(**settings)


def test_versions_are_of_the_text() -> None:
    assert form().version == form(overlap=0.5).version != form(instructions=INSTRUCTIONS + " ").version
