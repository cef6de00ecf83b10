"""Records: strict reading, atomic writing, journals that survive being cut anywhere, stable fingerprints."""

import json
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai import types
from cai.errors import DataError
from cai.records import (
    Journal,
    canonical,
    digest_file,
    digest_folder,
    fingerprint,
    from_json,
    read_json,
    read_records,
    read_rows,
    seed_of,
    to_json,
    write_json,
    write_records,
    write_rows,
)
from cai.types import Demonstration, Prompt, PromptSets, Response, Turn

text = st.text(max_size=8)
number = st.floats(allow_nan=False, allow_infinity=False)
json_value = st.recursive(st.none() | st.booleans() | st.integers() | number | text, lambda v: st.lists(v, max_size=2))
st.register_type_strategy(object, json_value)
st.register_type_strategy(float, number)
st.register_type_strategy(str, st.text(st.characters(), max_size=8))

RECORD_TYPES = [getattr(types, name) for name in types.__all__]

PROMPT = {"id": "p", "turns": [{"role": "user", "content": "hi"}], "tags": ["red_team"], "source": "me"}


def response(name: str) -> Response:
    return Response(id=name, prompt_id="p", text="so\nit\u2028is \ud83d", model="m", num_tokens=3, finished=True)


@pytest.mark.parametrize("cls", RECORD_TYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_record_type_survives_a_round_trip(cls: Any, data: st.DataObject) -> None:
    record = data.draw(st.from_type(cls))
    through_text = json.loads(json.dumps(to_json(record)))
    assert from_json(cls, through_text, "x:1") == record


def test_files_round_trip_whatever_the_text_holds(tmp_path: Path) -> None:
    records = [response("a"), response("b")]
    write_records(tmp_path / "deep" / "r.jsonl", records)
    assert read_records(tmp_path / "deep" / "r.jsonl", Response) == records
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.jsonl"]
    write_rows(tmp_path / "rows.jsonl", [{"step": 1, "kl": None}])
    assert read_rows(tmp_path / "rows.jsonl") == [{"step": 1, "kl": None}]
    write_json(tmp_path / "x.json", {"b": 1, "a": [1.5, "ü"]})
    assert read_json(tmp_path / "x.json") == {"b": 1, "a": [1.5, "ü"]}


def test_defaults_fill_in_for_keys_left_out() -> None:
    turns = [{"role": "user", "content": "hi"}]
    assert from_json(Prompt, {"id": "p", "turns": turns}, "x") == Prompt(id="p", turns=(Turn("user", "hi"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": []}, "f.jsonl:3: unknown Prompt key 'tag'; did you mean 'tags'? Allowed: id, source, tags, turns"),
        ({"turns": [{"rol": "user"}]}, "f.jsonl:3: key 'turns[0]': unknown Turn key 'rol'; did you mean 'role'?"),
        ({"turns": [{"role": "user"}]}, "f.jsonl:3: key 'turns[0].content': missing"),
        ({"turns": "hi"}, "f.jsonl:3: key 'turns': must be a list, got \"hi\""),
        ({"tags": ["a", 3]}, "f.jsonl:3: key 'tags[1]': must be a string, got 3"),
        ({"id": None}, "f.jsonl:3: key 'id': must be a string, got null"),
    ],
)
def test_errors_name_file_line_and_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        from_json(Prompt, PROMPT | change, "f.jsonl:3")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("num_tokens", True), ("num_tokens", 1.0), ("finished", 1), ("num_tokens", "1")]
)
def test_scalars_are_not_converted(key: str, value: object) -> None:
    with pytest.raises(DataError, match=f"key '{key}'"):
        from_json(Response, to_json(response("a")) | {key: value}, "x")


def test_a_spare_field_is_written_where_it_says_something() -> None:
    """Weights and margins of pairs came later: records without them read and write as they did."""
    assert to_json(types.Pair(0, 1, 0.5)) == {"first": 0, "second": 1, "p": 0.5}
    pair = types.Pair(0, 1, 0.5, margin=0.25)
    assert to_json(pair) == {"first": 0, "second": 1, "p": 0.5, "margin": 0.25}
    assert from_json(types.Pair, to_json(pair), "x") == pair


def test_floats_take_integers_but_never_nan() -> None:
    assert from_json(types.Pair, {"first": 0, "second": 1, "p": 1}, "x") == types.Pair(0, 1, 1.0)
    with pytest.raises(DataError, match="key 'p': must be a finite number, got NaN"):
        from_json(types.Pair, {"first": 0, "second": 1, "p": float("nan")}, "x")


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(json.dumps(to_json(response("a"))).encode() + b"\n\n{nonsense\n")
    with pytest.raises(DataError, match=r"r\.jsonl:3: not JSON"):
        read_records(path, Response)
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"r\.jsonl:1: not JSON"):
        read_records(path, Response)
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read: No such file"):
        read_records(tmp_path / "no.jsonl", Response)


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"kl": 1})
    with pytest.raises(DataError, match="does not apply is null"):
        write_json(path, {"kl": float("nan")})
    with pytest.raises(DataError, match="not JSON serializable"):
        write_json(path, {"kl": path})
    assert read_json(path) == {"kl": 1}


def test_what_a_killed_write_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".x.json.tmp").write_text("half of")
    write_json(tmp_path / "x.json", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_journal_cut_at_any_byte_loses_only_the_torn_record(tmp_path: Path) -> None:
    records = [response(name) for name in "abc"]
    journal = Journal(tmp_path / "j.jsonl", Response)
    journal.append(records[:2])
    journal.append(records[2:])
    whole = journal.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        journal.path.write_bytes(whole[:cut])
        kept = records[: sum(end <= cut for end in ends)]
        again = Journal(journal.path, Response)
        assert again.read() == kept
        if cut % 9 == 0 or cut in ends:  # an append waits for the disk
            again.append(records[len(kept) :])
            assert journal.path.read_bytes() == whole


def test_a_journal_heals_before_the_first_append(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"id": "to')
    Journal(path, Response).append([response("a")])
    assert Journal(path, Response).read() == [response("a")]


def test_a_journal_refuses_what_it_has(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", Response)
    assert journal.read() == []
    journal.append([])
    assert not journal.path.exists()
    journal.append([response("a")])
    for again in (journal, Journal(journal.path, Response)):
        with pytest.raises(DataError, match="'a' is there twice"):
            again.append([response("b"), response("a")])
    assert journal.read() == [response("a")]
    journal.append([response("b")])  # the refused batch left nothing behind
    assert [r.id for r in journal.read()] == ["a", "b"]


def test_a_full_disk_is_one_line_and_the_journal_goes_on_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", Response)
    journal.append([response("a")])
    size = journal.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(DataError, match=r"j\.jsonl: cannot be written: File too large"):
            journal.append([response("b")])
        with pytest.raises(DataError, match=r"big\.json: cannot be written: File too large"):
            write_json(tmp_path / "big.json", "x" * size * 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.path.stat().st_size == size + 10  # torn
    assert not (tmp_path / "big.json").exists()
    journal.append([response("b")])
    assert [r.id for r in journal.read()] == ["a", "b"]


def test_writing_opens_no_folder_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("cai.records.sys.platform", "win32")
    monkeypatch.setattr("cai.records.os.open", refuse)
    write_json(tmp_path / "a.json", [1])
    Journal(tmp_path / "b.journal", Response).append(
        [Response(id="r", prompt_id="p", text="x", model="m", num_tokens=1, finished=True)]
    )
    assert read_json(tmp_path / "a.json") == [1]


def test_a_journal_needs_ids() -> None:
    with pytest.raises(TypeError, match="Pair has none"):
        Journal(Path("x"), types.Pair)


def test_records_of_unsupported_types_are_a_bug_in_the_code() -> None:
    @dataclass
    class Odd:
        when: complex

    with pytest.raises(TypeError, match="complex"):
        from_json(Odd, {"when": 1}, "x")


def test_canonical_ignores_key_order_only() -> None:
    assert canonical({"b": [1, 2.0, "ü"], "a": None}) == '{"a":null,"b":[1,2.0,"\\u00fc"]}'
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    for bad in (float("inf"), {1, 2}, Path("x")):
        with pytest.raises(DataError, match="cannot be fingerprinted"):
            canonical(bad)


def test_folder_digests_are_by_relative_path(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    sha_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_file(tmp_path / "b" / "x") == sha_abc
    digests = digest_folder(tmp_path)
    assert list(digests) == ["a", "b/x"]
    assert digests["b/x"] == sha_abc
    with pytest.raises(DataError, match="is not a folder"):
        digest_folder(tmp_path / "a")


def test_seeds_depend_on_every_part_and_stay_as_they_are() -> None:
    seeds = [seed_of(0), seed_of(1), seed_of(0, "a"), seed_of(0, "a", 1), seed_of(0, "a", "1"), seed_of(0, "a1")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_of(7, "prompt-3", 2) == 7108900771399636716  # a change would silently change every run


def test_prompt_sets_read_back_as_one_value() -> None:
    prompt = from_json(Prompt, PROMPT, "x")
    shown = Demonstration(id="d", prompt=prompt, text="hello", source="helpful")
    sets = PromptSets(red_team=(prompt,), demonstrations=(shown,), comparisons=(), rl=(), evaluation=())
    assert from_json(PromptSets, to_json(sets), "x") == sets
