"""Mistakes in templates and families are named with file and line when the family is made."""

from pathlib import Path

import pytest
from families import CRITIQUE, JUDGE, Family, family, variables

from cai.errors import PromptError
from cai.prompts import PromptFamily

__all__ = ["family"]  # fixture


def test_variables_must_be_exactly_those_of_the_kind(family: Family) -> None:
    made = family({"judge.jinja": JUDGE, "critique.jinja": CRITIQUE})
    with pytest.raises(PromptError, match=r"judge\.jinja: missing variables: principle, turns$"):
        made.render("judge", responses=["a", "b"])
    with pytest.raises(PromptError, match=r"unused variable: unknown variable 'respons'; did you mean 'responses'"):
        made.render("judge", **variables("judge"), respons="x")
    with pytest.raises(PromptError, match=r"unknown template of the prompt family 'mine' 'judg'; did you mean 'judge'"):
        made.render("judg", **variables("judge"))
    with pytest.raises(PromptError, match="unknown template"):
        made.render("revision", **variables("revision"))
    with pytest.raises(PromptError, match=r"ends with 2 options for 3 responses"):
        made.render("judge", **variables("judge", responses=["a", "b", "c"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("turns", "hi"), ("turns", ["hi"]), ("responses", "ab"), ("responses", [1, 2]), ("principle", "Be kind.")],
)
def test_values_must_be_of_the_right_type(family: Family, name: str, value: object) -> None:
    with pytest.raises(PromptError, match=f"^{name} must be a"):
        family({"judge.jinja": JUDGE}).render("judge", **variables("judge", **{name: value}))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ x", "1: "),
        ("\n{{ respones }}" + JUDGE, "2: unknown variable 'respones'; did you mean 'responses'?"),
        ("\n{{ principle.comparsion }}" + JUDGE, "2: "),
        ("\n\n{{ turns }}" + JUDGE, "3: cannot put a value of type tuple into the text"),
        ("{{ turns[0].text }}" + JUDGE, "1: "),
        ("{{ turns[9].content }}" + JUDGE, "1: "),
        ("{{ principle }}" + JUDGE, "1: cannot put a value of type Wording into the text"),
        ("{{ none }}" + JUDGE, "1: cannot put nothing into the text"),
        ("{{ 'a' * 10**9 }}" + JUDGE, "1: mul is not allowed in a prompt template"),
        ("{% import 'x' as x %}" + JUDGE, "1: import is not allowed"),
        ("{% macro m() %}{% endmacro %}" + JUDGE, "1: macro is not allowed"),
        ("{% set x %}a{% endset %}" + JUDGE, "1: assignblock is not allowed"),
        ("{{ principle.__class__ }}" + JUDGE, "1: attribute '__class__' is not allowed"),
        ("{{ principle.id.upper() }}" + JUDGE, "1: a template can call only choice and text, not that"),
        ("{{ range(9) }}" + JUDGE, "1: a template can call only choice and text, not range"),
        ("{{ choice('A', 'B') ~ 'x' }}" + JUDGE, "1: choice must stand alone: {{ choice(...) }}"),
        ("{{ choice }}" + JUDGE, "1: cannot put a value of type function into the text"),
        ("{{ turns | tojson }}" + JUDGE, "1: No filter named 'tojson'"),
        ("{% if turns is odd %}{% endif %}" + JUDGE, "1: No test named 'odd'"),
        (
            "{% include 'nothing.jinja' %}" + JUDGE,
            "1: unknown included file 'nothing.jinja'; did you mean 'judge.jinja'? Allowed: ",
        ),
        ("{% include principle.id %}" + JUDGE, "1: include needs the name of one file in quotes"),
        ("{% block usr %}{% endblock %}" + JUDGE, "1: unknown block 'usr'; did you mean 'user'?"),
        ("{% block user %}x{% endblock %}\n" + JUDGE, "2: this is outside of the blocks, where it would be lost"),
        ("{{ choice('A') }}" + JUDGE, "1: choice needs two or more different texts"),
        ("{{ choice('A', 'A') }}" + JUDGE, "1: choice needs two or more different texts"),
        ("{{ text(max_new_tokens=0) }}" + JUDGE, "1: text: max_new_tokens must be a whole number above 0, got 0"),
        ("{{ text(max_new_tokens=1, stop='x') }}" + JUDGE, "1: text: stop must be a list of texts, got 'x'"),
        ("{{ text(max_tokens=1) }}" + JUDGE, "1: "),
        (JUDGE + "and so on", " must end with {{ choice(...) }}, which has an option for each response"),
        (JUDGE + "{{ choice('A', 'B', 'C') }}", " ends with 3 options for 2 responses"),
        ("{{ choice('A', 'B') }}", " makes no use of principle, responses, turns"),
    ],
)
def test_a_wrong_template_is_named_with_its_line_when_the_family_is_made(
    family: Family, template: str, message: str
) -> None:
    with pytest.raises(PromptError) as caught:
        family({"judge.jinja": template})
    path = Path("prompts/mine/judge.jinja").absolute()
    assert str(caught.value).startswith(f"{path}:{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"critique.jinja": CRITIQUE + CRITIQUE}, "critique.jinja: must end with its only slot, {{ text(...) }}"),
        ({"judge_cot.jinja": JUDGE}, "judge_cot.jinja: has no {{ text(...) }} for the chain of thought"),
        ({"critque.jinja": CRITIQUE}, "unknown file of a prompt family 'critque.jinja'; did you mean 'critique.jinja'"),
        ({"judge.jinja": JUDGE, "principle.yaml": "a: b"}, "unknown file of a prompt family 'principle.yaml'"),
        ({"family.yaml": "critiqe: '{statement}'"}, "family.yaml:1: critiqe: unknown key 'critiqe'; did you mean"),
        ({"family.yaml": "critique: What?"}, "family.yaml:1: critique: must hold {statement}, the place of the princi"),
        ({"family.yaml": "reserved: [x]"}, "family.yaml:1: reserved[0]: must be two characters or more"),
        ({"family.yaml": "reserved: ['a b']"}, "family.yaml:1: reserved[0]: must be two characters or more"),
        ({"family.yaml": "reserved: &a []"}, "family.yaml:1: anchors"),
        (
            {"critique.jinja": "{% block user %}{{ turns[0].content }}{{ text(max_new_tokens=1) }}{% endblock %}"
             "{% block assistant %}{{ response }}{{ principle.id }}{% endblock %}"},
            "critique.jinja: block user cannot hold slots; those go into block assistant",
        ),
        ({"_part.jinja": "\n{{ x.y() }}"}, "_part.jinja:2: a template can call only choice and text"),
    ],
)  # fmt: skip
def test_a_wrong_family_is_refused(family: Family, files: dict[str, str], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        family(files)
    assert message in str(caught.value)


def test_an_unknown_family_is_named_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptError, match="unknown prompt family 'few_shots'; did you mean 'few_shot'"):
        PromptFamily("few_shots")
    with pytest.raises(PromptError, match="unknown prompt family"):
        PromptFamily("../prompts/chat")


def test_files_that_are_not_utf8_are_named_by_line(family: Family, tmp_path: Path) -> None:
    family({"judge.jinja": JUDGE})
    (tmp_path / "prompts" / "mine" / "judge.jinja").write_bytes(b"a\nb\n\xff")
    with pytest.raises(PromptError, match=r"judge\.jinja:3: not UTF-8"):
        PromptFamily("mine")
