"""Prompt templates: what they render to, what their hash covers, the families that are shipped."""

import pytest
from families import CRITIQUE, JUDGE, SHIPPED, Family, family, variables

from cai.engines.base import EnginePrompt
from cai.errors import PromptError
from cai.prompts import KINDS, PromptFamily
from cai.rendered import ChoiceSlot, TextSlot
from cai.types import Turn

__all__ = ["family"]  # fixture


# --- rendering --------------------------------------------------------------------------------------------------------


def test_a_plain_template_is_text_with_slots(family: Family) -> None:
    rendered = family({"judge.jinja": JUDGE}).render("judge", **variables("judge"))
    text = "Be kind.|user:Hello?;assistant:Hi.;user:And you?;<Go away.><I am well.>.\n"
    assert rendered.turns == ()
    assert rendered.parts == (text, ChoiceSlot(("A", "B")))
    places = ((0, 0, 8), (0, 9, 13), (0, 14, 20), (0, 21, 30), (0, 31, 34), (0, 35, 39), (0, 40, 48), (0, 50, 58))
    assert rendered.prefix() == EnginePrompt(turns=(), text=text, quoted=(*places, (0, 60, 70)))


def test_slots_are_filled_in_order(family: Family) -> None:
    template = JUDGE.replace(".\n{{", "?{{ choice('yes', 'no') }}!{{ text(max_new_tokens=5) }}.{{")
    rendered = family({"judge.jinja": template}).render("judge", **variables("judge"))
    assert rendered.slots == (ChoiceSlot(("yes", "no")), TextSlot(5, ()), ChoiceSlot(("A", "B")))
    assert rendered.fill(["no"]).text.endswith("?no!")
    assert rendered.fill(["no", " well"]).text.endswith("?no! well.")
    assert rendered.fill(["no", " well", "B"]).text.endswith("?no! well.B")
    with pytest.raises(PromptError, match="unknown option 'nope'"):
        rendered.fill(["nope"])
    with pytest.raises(PromptError, match="4 values for 3 slots"):
        rendered.fill(["no", "", "A", "A"])


def test_blocks_are_turns_and_the_assistant_block_is_the_start_of_the_answer(family: Family) -> None:
    template = (
        "{% block system %}\nYou are {{ principle.axis }}.\n{% endblock %}\n\n"
        "{% block user %}\n{{ turns | length }} turns\n\n{{ response }}\n{% endblock %}\n"
        "{% block assistant %}\nCritique:{{ text(max_new_tokens=9) }}\n{% endblock %}\n"
    )
    rendered = family({"critique.jinja": template}).render("critique", **variables("critique"))
    assert rendered.turns == (Turn("system", "You are polite."), Turn("user", "3 turns\n\nGo away."))
    assert rendered.parts == ("Critique:", TextSlot(9, ()))


def test_wordings_come_from_the_principle_or_else_from_the_family(family: Family) -> None:
    template = "{{ principle.critique }}/{{ principle.revision }}/" + CRITIQUE
    settings_file = "critique: 'Why not {statement}'\ncomparison: '{statement} {statement} {{ x }}'\n"
    text = family({"critique.jinja": template, "family.yaml": settings_file}).render(
        "critique", **variables("critique")
    ).prefix().text  # fmt: skip
    assert text.startswith("Why not Be kind./Make it kind./Be kind. Be kind. {{ x }}|")
    plain = family({"critique.jinja": template}, "plain").render("critique", **variables("critique")).prefix().text
    assert plain.startswith("Be kind./Make it kind./Be kind.|")


# --- files and hashes -------------------------------------------------------------------------------------------------


def test_a_users_file_stands_in_for_the_shipped_one(family: Family) -> None:
    shipped, mine = PromptFamily("chat"), family({"judge.jinja": JUDGE}, "chat")
    assert mine.kinds == shipped.kinds
    assert mine.sources()["judge.jinja"] == JUDGE
    assert mine.render("critique", **variables("critique")) == shipped.render("critique", **variables("critique"))
    assert mine.hashes("critique") == shipped.hashes("critique")
    assert mine.hashes("judge") != shipped.hashes("judge")


def test_a_hash_covers_included_files_and_the_settings(family: Family) -> None:
    files = {"judge.jinja": "{% include '_a.jinja' %}" + JUDGE, "_a.jinja": "a\n", "critique.jinja": CRITIQUE}
    first = family(files)
    assert first.render("judge", **variables("judge")).prefix().text.startswith("a\nBe kind.")
    assert list(first.sources("judge")) == ["_a.jinja", "judge.jinja"]
    included = family({"_a.jinja": "b\n"})
    assert included.hashes("judge") != first.hashes("judge")
    assert included.hashes("critique") == first.hashes("critique")
    reworded = family({"family.yaml": "comparison: 'Which? {statement}'"})
    assert reworded.hashes("critique") != included.hashes("critique")


def test_an_include_in_a_circle_is_refused(family: Family) -> None:
    with pytest.raises(PromptError, match="circle"):
        family({"judge.jinja": "{% include '_a.jinja' %}" + JUDGE, "_a.jinja": "{% include '_a.jinja' %}"})


# --- the shipped families ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_shipped_templates_show_everything_and_end_in_a_slot(name: str, kind: str) -> None:
    rendered = PromptFamily(name).render(kind, **variables(kind))
    shown = "\n".join([*(turn.content for turn in rendered.turns), rendered.prefix().text])
    for text in ("Hello?", "Hi.", "And you?", "Go away."):
        assert text in shown
    assert ("It is rude." in shown) == (kind == "revision")
    if kind.startswith("judge"):
        assert "I am well." in shown
        assert rendered.slots[-1] == ChoiceSlot((" (A)", " (B)"))
        assert "Be kind." in shown
    elif kind == "rate":
        assert "I am well." not in shown and isinstance(rendered.slots[-1], ChoiceSlot)
    else:
        last = rendered.slots[-1]
        assert isinstance(last, TextSlot)
        assert last.stop
        assert ("Make it kind." in shown) == (kind != "critique")
    assert not rendered.prefix().text.endswith(" ")  # the options and the answer start with a space of their own


def test_few_shot_examples_show_what_the_method_needs() -> None:
    text = PromptFamily("few_shot").render("revision", **variables("revision")).prefix().text
    examples = [example for example in text.split("\n\nRevision: ")[:-1]]
    revisions = [part.split("\n\n")[0] for part in text.split("\n\nRevision: ")[1:]]
    assert len(revisions) == 5
    unchanged = sum(f"Assistant: {revision}" in example for revision, example in zip(revisions, examples, strict=True))
    assert unchanged == 2  # already harmless: the revision repeats the response


@pytest.mark.parametrize("kind", ["judge", "judge_cot"])
def test_few_shot_judges_see_each_answer_equally_often(kind: str) -> None:
    text = PromptFamily("few_shot").render(kind, **variables(kind)).prefix().text
    assert text.count("answer is: (A)") == text.count("answer is: (B)") > 1
