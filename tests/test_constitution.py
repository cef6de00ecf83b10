"""Constitutions: what is refused and how it is said, hostile files, the seeded draw, and the shipped files."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cai import constitution as module
from cai import strict_yaml
from cai.constitution import Constitution, Principle, check, load
from cai.errors import ConstitutionError

SHIPPED = Path(__file__).parent.parent / "constitutions"

GOOD = """\
name: test
principles:
  - id: kind
    axis: polite
    statement: Be kind.
  - id: safe
    axis: harmless
    statement: >-
      Literal ${seed} and {{ statement }}
      and {% raw %} stay.
    critique: Say why.
    weight: 3
    applies_to: [red_team]
examples:
  - {prompt: hi, better: hello, worse: go away, principle: kind}
"""


def written(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_everything_of_a_file_is_read_and_text_is_literal(tmp_path: Path) -> None:
    constitution = load(written(tmp_path, GOOD))
    assert constitution.name == "test"
    assert constitution.principles == (
        Principle(id="kind", axis="polite", statement="Be kind."),
        Principle(
            id="safe",
            axis="harmless",
            statement="Literal ${seed} and {{ statement }} and {% raw %} stay.",
            critique="Say why.",
            weight=3.0,
            applies_to=("red_team",),
        ),
    )
    assert constitution.examples[0].worse == "go away"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("name: test", "nmae: test", "1: nmae: unknown key 'nmae'; did you mean 'name'? Allowed: description, "),
        ("    critique:", "    critic:", "11: principles[1].critic: unknown key 'critic'; did you mean 'critique'?"),
        ("id: safe", "id: kind", "6: principles[1].id: 'kind' is there twice (first in line 3)"),
        ("Be kind.", "''", "5: principles[0].statement: must not be empty"),
        ("Be kind.", "", "5: principles[0].statement: must be text, got nothing"),
        ("Be kind.", "yes", "5: principles[0].statement: must be text, got 'yes', which YAML takes for true or false"),
        ("Be kind.", "[a]", "5: principles[0].statement: must be text, got a list"),
        ("    axis: polite\n", "", "3: principles[0].axis: missing"),
        ("    axis: polite\n", "    axis: a\n    axis: b\n", "5: principles[0].axis: is there twice"),
        ("axis: polite", "axis: very polite", "4: principles[0].axis: must be letters, digits, _ . or -"),
        ("weight: 3", "weight: 0", "12: principles[1].weight: must be a number above 0 (without quotes), got '0'"),
        ("weight: 3", "weight: '3'", "12: principles[1].weight: must be a number above 0 (without quotes), got '3'"),
        ("weight: 3", "weight: .inf", "12: principles[1].weight: must be a number above 0"),
        ("[red_team]", "red_team", "13: principles[1].applies_to: must be a list with at least one entry"),
        ("[red_team]", "[a, a]", "13: principles[1].applies_to[1]: 'a' is there twice"),
        ("principle: kind", "principle: kindd", "15: examples[0].principle: unknown principle 'kindd'; did you mean"),
        ("worse: go away", "worse: hello", "15: examples[0].worse: is the same text as better"),
        ("Be kind.", "&a Be kind.", "5: anchors (&) and aliases (*) are not allowed"),
        ("Be kind.", "*a", "5: anchors (&) and aliases (*) are not allowed"),
        ("Be kind.", "!!python/object/apply:os.system [ls]", "5: tags (!) are not allowed"),
        ("Be kind.", "{{ x }}", "5: a key must be text"),
        ("Be kind.", '"Be', "16: not valid YAML: "),
        ("    axis: polite", "  axis: polite", "4: not valid YAML: did not find expected '-' indicator; check the ind"),
        ("examples:", "---\nexamples:", "14: a second document starts here"),
        ("Be kind.", '"bell \\a"', "5: principles[0].statement: control character U+0007 is not allowed"),
        ("Be kind.", "bell \x07", "5: control character U+0007 is not allowed"),
    ],
)
def test_every_mistake_is_one_line_with_file_line_and_key(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = written(tmp_path, GOOD.replace(old, new, 1))
    problems = check(path)
    assert problems[0].startswith(f"{path}:{problem}")
    assert all("\n" not in line for line in problems)
    with pytest.raises(ConstitutionError) as caught:
        load(path)
    assert str(caught.value).startswith(problems[0])


def test_check_finds_every_problem_in_the_order_of_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "nam: x\nprinciples:\n  - id: a b\n    statement: 3\nexamples: {}\n")
    problems = check(path)
    assert [problem.split(":")[1] for problem in problems] == ["1", "3", "3", "4", "5"]
    with pytest.raises(ConstitutionError, match=r"\(and 4 more; all of them: cai constitution check .*c\.yaml\)$"):
        load(path)


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "the file is empty" in check(written(tmp_path, text))[0]


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    assert ":2: not UTF-8" in check(written(tmp_path, b"name: x\nprinciples: \xff\n"))[0]
    assert check(written(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: " + "[" * 400_000, "nested more than 12 deep"),
        ("a: " + "{b: " * 200_000, "nested more than 12 deep"),
        ("a: [" + "b," * 400_000, "more than 300,000 values"),
        ("a: " + "x" * 1_000_000, "larger than 1,000,000 bytes"),
        ("a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "anchors"),
        ("principles:\n" + "  - {}\n" * 10_001, "at most 10,000 are allowed, got 10,001"),
        ("principles:\n" + "  - 3\n" * 10_000, "and more problems from here on"),
    ],
)
def test_hostile_files_end_early(tmp_path: Path, text: str, problem: str) -> None:
    problems = check(written(tmp_path, text))
    assert problem in problems[-1]
    assert len(problems) <= 101
    assert all(len(line) < 1000 for line in problems)


@settings(max_examples=150, deadline=None)
@given(
    position=st.integers(0, len(GOOD)),
    length=st.integers(0, 6),
    piece=st.text(st.sampled_from("{}[]&*!|>%@`#'\":,- \n\t?ab1\x00é\u2028"), max_size=6),
)
def test_a_mutated_file_is_either_valid_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, position: int, length: int, piece: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(GOOD[:position] + piece + GOOD[position + length :], encoding="utf-8")
    for problem in check(str(path)):
        assert problem.startswith(f"{path}:")
        assert "\n" not in problem


def test_the_parser_in_python_refuses_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "_LOADER", yaml.SafeLoader)  # where PyYAML was built without libyaml
    assert load(written(tmp_path, GOOD)).name == "test"
    for text in ("a: " + "[" * 50, "a: &a b", "a: !x b", 'a: "\\U0011ffff"', "- ? : -", '"Be'):
        (problem,) = check(written(tmp_path, text))
        assert problem.startswith(str(tmp_path / "c.yaml:1: "))


def test_names_are_looked_up_in_the_users_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("minimal").path.parent.resolve() == SHIPPED.resolve()
    (tmp_path / "constitutions").mkdir()
    (tmp_path / "constitutions" / "minimal.yaml").write_text(GOOD)
    assert load("minimal").name == "test"
    assert load("constitutions/minimal.yaml").name == "test"
    with pytest.raises(ConstitutionError, match="unknown constitution 'harmles'; did you mean 'harmless'"):
        load("harmles")
    with pytest.raises(ConstitutionError, match=r"^no\.yaml: no such file"):
        load("no.yaml")
    assert check("harmles") != []


def test_the_name_defaults_to_the_file_name(tmp_path: Path) -> None:
    assert load(written(tmp_path, GOOD.replace("name: test\n", ""))).name == "c"


def test_the_hash_is_of_the_principles_alone(tmp_path: Path) -> None:
    sha = load(written(tmp_path, GOOD)).sha256
    assert load(written(tmp_path, "# a comment\n" + GOOD.replace("hello", "good day"))).sha256 == sha
    assert load(written(tmp_path, GOOD.replace("Be kind.", "Be kind!"))).sha256 != sha
    assert load(written(tmp_path, GOOD.replace("weight: 3", "weight: 2"))).sha256 != sha


def made(*weights: float, applies_to: tuple[tuple[str, ...], ...] = ()) -> Constitution:
    tags = applies_to or ((),) * len(weights)
    principles = tuple(
        Principle(id=f"p{i}", axis="x", statement="s", weight=w, applies_to=t)
        for i, (w, t) in enumerate(zip(weights, tags, strict=True))
    )
    return Constitution(
        name="m", description="", principles=principles, examples=(), path=Path("m.yaml"), sha256="0" * 64
    )


def test_principles_are_drawn_in_proportion_to_weight() -> None:
    num_draws = 6000
    drawn = Counter(made(1, 2, 3).draw(0, str(i), ())[0].id for i in range(num_draws))
    for name, share in {"p0": 1 / 6, "p1": 2 / 6, "p2": 3 / 6}.items():
        # four standard errors: the keys are fixed, so this holds always or never
        assert abs(drawn[name] / num_draws - share) < 4 * math.sqrt(share * (1 - share) / num_draws)


def test_the_second_draw_is_weighted_among_the_rest() -> None:
    pairs = [made(1, 2, 3).draw(0, str(i), (), count=2) for i in range(6000)]
    assert all(first != second for first, second in pairs)
    after_p0 = [second.id for first, second in pairs if first.id == "p0"]
    assert abs(after_p0.count("p1") / len(after_p0) - 2 / 5) < 4 * math.sqrt(0.24 / len(after_p0))


def test_a_draw_depends_on_seed_and_key_alone() -> None:
    constitution = made(1, 1, 1, 1)
    drawn = [constitution.draw(0, str(i), ())[0].id for i in range(60)]
    assert drawn == [constitution.draw(0, str(i), ())[0].id for i in range(60)]
    assert drawn != [constitution.draw(1, str(i), ())[0].id for i in range(60)]
    assert set(drawn) == {"p0", "p1", "p2", "p3"}


def test_another_principle_changes_only_the_draws_that_it_wins() -> None:
    before, after = made(1, 1, 1), made(1, 1, 1, 1)
    draws = [(before.draw(0, str(i), ())[0].id, after.draw(0, str(i), ())[0].id) for i in range(400)]
    assert all(new in (old, "p3") for old, new in draws)
    assert 50 < sum(new == "p3" for _, new in draws) < 150


def test_an_edit_moves_no_draw_but_those_of_its_own_weight() -> None:
    before, after = made(1, 2, 1), made(1, 1, 1)
    reworded = replace(before, principles=tuple(replace(p, statement=f"new {p.id}") for p in before.principles))
    drawn = [[c.draw(0, str(i), ())[0].id for i in range(400)] for c in (before, after, reworded)]
    assert drawn[2] == drawn[0], "a draw goes by id and weight, not by text"
    assert all(new == old or old == "p1" for old, new in zip(*drawn[:2], strict=True)), "p1 can only lose"
    assert drawn[1] != drawn[0]


def test_principles_apply_by_tag() -> None:
    constitution = made(1, 1, 1, applies_to=((), ("red_team",), ("helpful", "chat")))
    assert [p.id for p in constitution.for_tags(["red_team", "x"])] == ["p0", "p1"]
    assert [p.id for p in constitution.for_tags(("chat",))] == ["p0", "p2"]
    assert {constitution.draw(0, str(i), ("red_team",))[0].id for i in range(40)} == {"p0", "p1"}
    with pytest.raises(
        ConstitutionError, match="3 principles are asked for, but 2 apply to a prompt with the tags chat"
    ):
        constitution.draw(0, "k", ("chat",), count=3)
    only = made(1, applies_to=(("red_team",),))
    with pytest.raises(ConstitutionError, match=r"0 apply to a prompt with the tags \(none\)"):
        only.draw(0, "k", ())


def test_principles_that_apply_to_no_prompt_are_named() -> None:
    constitution = made(1, 1, 1, applies_to=((), ("redteam",), ("chat", "red_team")))
    assert constitution.unused({"red_team", "helpful"}) == {
        "p1": "unknown tag 'redteam'; did you mean 'red_team'? Allowed: helpful, red_team"
    }
    assert constitution.unused(()).keys() == {"p1", "p2"}


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_constitutions_are_sound(path: Path) -> None:
    assert check(str(path)) == []
    assert load(str(path)).name == path.stem


def test_harmless_has_sixteen_principles_with_every_wording() -> None:
    principles = load("harmless").principles
    assert len(principles) >= 16
    for wordings in (
        [p.critique for p in principles],
        [p.revision for p in principles],
        [p.comparison for p in principles],
    ):
        assert None not in wordings
        assert len(set(wordings)) == len(principles)


def test_public_names() -> None:
    assert module.__all__ == ["Constitution", "Example", "Principle", "check", "load"]
