"""The screen for personal data, and duplicates and busy users planted among prompts."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.datasets.hygiene import PREFIX, screened, thinned
from cai.datasets.labelled import Labelled
from cai.datasets.pii import screen
from cai.datasets.recorded import Recorded
from cai.datasets.rows import Unusable
from cai.types import Feedback

# --- personal data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Mail ada.b+c@mail.example.org.", "Mail <email>."),
        ("<ada@example.org>,eve_x@example.co.uk", "<<email>>,<email>"),
        ("4111 1111 1111 1111", "<card>"),
        ("card 5500-0000-0000-0004!", "card <card>!"),
        ("amex 378282246310005,", "amex <card>,"),
        ("GB82 WEST 1234 5698 7654 32 is mine", "<iban> is mine"),
        ("DE89370400440532013000.", "<iban>."),
        ("ssn 078-05-1120", "ssn <ssn>"),
        ("from 203.0.113.7:80", "from <ip>:80"),
        ("2001:db8:0:0:0:0:0:1 and 2001:db8::1", "<ip> and <ip>"),
        ("call +44 20 7946 0958", "call <phone>"),
        ("call (202) 555-0143 or 202-555-0143", "call <phone> or <phone>"),
        ("1-202-555-0143, 202.555.0143", "<phone>, <phone>"),
        ("+1 (202) 555-0143", "<phone>"),
    ],
)
def test_what_looks_like_personal_data_becomes_a_tag(text: str, clean: str) -> None:
    assert screen(text)[0] == clean
    assert screen(clean)[0] == clean


@pytest.mark.parametrize(
    "text",
    [
        "on 2020-01-02, at 12:30:45, ratio 3:2:1",
        "version 1.2.3, and 10.4.300.1; section 1.2.3.4.5",
        "pi is 3.14159265358979, and 1234567890123456 has no checksum",
        "a@b, @home, me@localhost, x @ y.org",
        "000-12-3456 and 666-12-3456 and 123-00-4567 are nobody's",
        "GB82 WEST 1234 5698 7654 33 has a wrong digit, and so has 4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "127.0.0.1 is this machine, and so is ::1",
        "12345 or 123-4567 or 1,234,567,890 people",
        "C++::std::vector and a::b, and time 10:20",
        "order 20231124-0042-1234-9",
        "in 1999 2000 2001 2002",
    ],
)
def test_what_only_looks_a_little_like_it_stays(text: str) -> None:
    assert screen(text) == (text, Counter())


def test_what_is_changed_is_counted_by_kind() -> None:
    _, found = screen("a@x.org b@x.org 203.0.113.7")
    assert found == Counter(email=2, ip=1)


@given(st.text(alphabet="0123456789 -+().:@abAB", max_size=60))
def test_screening_ends_and_again_finds_nothing_new(text: str) -> None:
    clean, found = screen(text)
    assert (clean == text) == (not found)
    assert sum(clean.count(f"<{kind}>") for kind in found) >= sum(found.values())


# --- comparisons ------------------------------------------------------------------------------------------------------


def load(folder: Path, rows: list[dict[str, Any]]) -> tuple[Labelled, ...]:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"chosen": "a", "rejected": "b", **row}) + "\n" for row in rows))
    return Recorded(path=str(path), format="plain").load().labelled


def test_everything_that_people_wrote_is_screened(tmp_path: Path) -> None:
    (one,) = load(
        tmp_path, [{"prompt": "I am ada@x.org", "chosen": "Hi ada@x.org", "user": "ada@x.org", "person": "eve"}]
    )
    clean, found = screened(one, {})
    assert found == Counter(email=2)
    assert clean.comparison.prompt.turns[0].content == "I am <email>"
    assert {r.text for r in clean.comparison.responses} == {"Hi <email>", "b"}
    assert {clean.comparison.prompt.user, clean.judgments[0].person} == {"person-1", "person-2"}
    assert "x.org" not in repr(clean)
    assert clean.judgments[0].pairs == one.judgments[0].pairs


def test_reasons_are_screened_and_a_name_is_the_same_person_in_every_row(tmp_path: Path) -> None:
    """A hash of a name could be looked up; a number in the order of the rows cannot."""
    one, two = load(tmp_path, [{"prompt": "q", "person": "eve"}, {"prompt": "r", "person": "eve"}])
    said = Feedback(shown=(), skipped="it names ada@x.org")
    (judgment,) = one.judgments
    skipped = replace(judgment, pairs=(), abstained="it names ada@x.org", feedback=said)
    names: dict[str, str] = {}
    clean, found = screened(replace(one, judgments=(skipped,)), names)
    assert found == Counter(email=2) and "x.org" not in repr(clean)
    again, _ = screened(two, names)
    assert clean.judgments[0].person == again.judgments[0].person == "person-1"


def test_rows_that_are_left_out_are_screened_too(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": {"mail": "ada@x.org"}}\n')
    plain, clean = (Recorded(path=str(path), format="plain", screen_pii=on).load().left_out for on in (False, True))
    assert len(plain) == len(clean) == 1 and "ada@x.org" in plain[0].detail and "<email>" in clean[0].detail


def test_responses_that_differ_in_personal_data_alone_are_no_comparison(tmp_path: Path) -> None:
    (one,) = load(tmp_path, [{"prompt": "q", "chosen": "a@x.org", "rejected": "b@x.org"}])
    with pytest.raises(Unusable, match="identical_after_screening"):
        screened(one, {})


def test_prompts_with_a_long_common_prefix_are_one(tmp_path: Path) -> None:
    start = "Summarise this text for a second-grader:"
    prompts = [f"{start} one", f"{start.upper()}\n\n two", "short", "short", "short one", f"{start}", start[:-1]]
    rows: list[dict[str, Any]] = [{"prompt": p, "chosen": f"a{i}"} for i, p in enumerate(prompts)]
    kept, left_out = thinned(load(tmp_path, rows), dedup_prefix=len(start))
    # The two responses to "short" are two comparisons of one prompt, and no duplicates.
    assert [one.rows[0] for one in kept] == [1, 3, 4, 5, 7]
    assert [(one.row, one.reason) for one in left_out] == [(2, PREFIX), (6, PREFIX)]
    assert thinned(kept, dedup_prefix=len(start)) == (kept, [])


@given(st.lists(st.tuples(st.sampled_from(["", "u", "v"]), st.integers(0, 6)), max_size=40), st.integers(1, 4))
def test_no_user_has_more_prompts_than_allowed(rows: list[tuple[str, int]], most: int) -> None:
    from worlds import comparison

    labelled = []
    for number, (user, name) in enumerate([*rows, ("w", 99)], start=1):
        one = comparison(f"{user}{name}", f"a {number}", "b")
        prompt = type(one.prompt)(id=one.prompt.id, turns=one.prompt.turns, user=user)
        one = type(one)(id=str(number), prompt=prompt, responses=one.responses)
        labelled.append(Labelled(comparison=one, judgments=(), rows=(number,)))
    kept, left_out = thinned(labelled, max_per_user=most)
    prompts = Counter(user for user, _ in {(one.comparison.prompt.user, one.comparison.prompt.turns) for one in kept})
    assert all(count <= most for user, count in prompts.items() if user)
    assert len(kept) + len(left_out) == len(labelled)
    for user in ("u", "v"):
        mine = list(dict.fromkeys(name for own, name in rows if own == user))[:most]
        assert [one.rows for one in kept if one.comparison.prompt.user == user] == [
            (number,) for number, (own, name) in enumerate(rows, start=1) if own == user and name in mine
        ]
