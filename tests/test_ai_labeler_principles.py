"""Which principles and examples the AI labeler judges by, and what each of them said."""

import math
from collections import Counter
from pathlib import Path

import pytest
from judges import labeler, random_comparisons
from worlds import TEMPLATES, FunctionEngine, comparison, family, rules

from cai.engines.base import EnginePrompt
from cai.errors import PromptError
from cai.labelers import verdict
from cai.labelers.statistics import by_principle, principle_verdicts
from cai.prompts import PromptFamily

# --- principles -------------------------------------------------------------------------------------------------------


def test_every_principle_is_drawn_in_proportion_and_only_where_it_applies(workdir: Path) -> None:
    judgments = list(labeler(workdir, FunctionEngine()).label(random_comparisons(600)))
    red, other = (Counter(j.principle_ids[0] for j in judgments[start::2]) for start in (0, 1))
    assert other.keys() == {"kind", "brief"}
    assert red.keys() == {"kind", "brief", "safe"}
    assert other["brief"] / 300 == pytest.approx(2 / 3, abs=0.09)
    assert red["brief"] / 300 == pytest.approx(1 / 2, abs=0.09)


def test_more_principles_than_apply_are_all_that_apply(workdir: Path) -> None:
    red, other = labeler(workdir, FunctionEngine(), num_principles=5).label(random_comparisons(2))
    assert sorted(red.principle_ids) == ["brief", "kind", "safe"]
    assert sorted(other.principle_ids) == ["brief", "kind"]
    assert len(red.evidence) == 6


def test_all_principles_judge_and_count_by_their_weight(workdir: Path) -> None:
    comparisons = random_comparisons(10)
    for comparison_, judgment in zip(
        comparisons, labeler(workdir, FunctionEngine(), num_principles="all").label(comparisons), strict=True
    ):
        own = {name: p for name, _, p in principle_verdicts(judgment)}
        weights = {p.id: p.weight for p in rules(workdir).for_tags(comparison_.prompt.tags)}
        assert own.keys() == weights.keys() and weights["brief"] == 2
        mean = sum(weights[name] * p for name, p in own.items()) / sum(weights.values())
        assert judgment.pairs[0].p == pytest.approx(mean)
        assert judgment.principle_ids == tuple(weights), "in the order of the file"


def test_named_principles_judge_and_no_others(workdir: Path) -> None:
    one = labeler(workdir, FunctionEngine(), principles=["kind"])
    assert {j.principle_ids for j in one.label(random_comparisons(20))} == {("kind",)}
    every = labeler(workdir, FunctionEngine(), principles=["safe", "kind"], num_principles="all")
    red, other = every.label(random_comparisons(2))
    assert (red.principle_ids, other.principle_ids) == (("kind", "safe"), ("kind",))


def test_what_each_principle_said_by_itself(workdir: Path) -> None:
    def logp(asked: EnginePrompt, choice: str) -> float:
        if choice in (" yes", " no"):
            return math.log(0.5)
        good = {"be kind": 0.9, "be brief": 0.6, "be safe": 0.2}[asked.text.split("wish ")[1].split(" one ")[0]]
        first = "good" in asked.text.split("one ")[1].split(" two ")[0]
        return math.log(good if (choice == " (A)") == first else 1 - good)

    pairs = [comparison(f"c{i}", "good", "bad", tags=("red_team",)) for i in range(4)]
    judgments = list(labeler(workdir, FunctionEngine(logp=logp), num_principles="all").label(pairs))
    assert judgments[0].pairs[0].p == pytest.approx((0.9 + 2 * 0.6 + 0.2) / 4)
    found = by_principle(judgments, {c.id: [1.0, 0.0] for c in pairs[:3]} | {"c3": [0.0, 0.0]})
    assert {name: row["mean_distance"] for name, row in found.items()} == {
        "kind": pytest.approx(0.4),
        "brief": pytest.approx(0.1),
        "safe": pytest.approx(0.3),
    }
    assert {name: (row["num_pairs"], row["as_label"], row["as_gold"]) for name, row in found.items()} == {
        "kind": (4, 1.0, 1.0),
        "brief": (4, 1.0, 1.0),
        "safe": (4, 0.0, 0.0),
    }


def test_a_principle_that_applies_to_no_prompt_is_named_and_counted(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "principles: [{id: a, axis: x, statement: s}, {id: b, axis: x, statement: s, applies_to: [redteam]}]"
    one = labeler(workdir, FunctionEngine(), constitution=rules(workdir, text))
    list(one.label(random_comparisons(4)))
    assert capsys.readouterr().err == (
        "label: principle 'b' applies to no prompt at hand: unknown tag 'redteam'; did you mean 'red_team'? "
        "Allowed: red_team\n"
    )
    assert one.facts()["num_unused_principles"] == 1


def test_a_comparison_that_no_principle_is_about_is_an_abstention(workdir: Path) -> None:
    only_red = rules(workdir, "principles: [{id: safe, axis: c, statement: be safe, applies_to: [red_team]}]")
    red, other = labeler(workdir, FunctionEngine(), constitution=only_red).label(random_comparisons(2))
    assert red.pairs and red.abstained is None
    assert (other.pairs, other.abstained) == ((), verdict.NO_PRINCIPLE)


# --- examples ---------------------------------------------------------------------------------------------------------


WITH_EXAMPLES = (
    "{% for e in examples %}{{ e.turns[0].content }}: {{ e.responses[0] }} or {{ e.responses[1] }} by "
    "{{ e.principle.comparison }} is {{ '(A)' if e.better == 0 else '(B)' }}. {% endfor %}" + TEMPLATES["judge"]
)
EXAMPLES = """
principles: [{id: kind, axis: a, statement: be kind}]
examples:
  - {prompt: q1, better: thanks, worse: pah, principle: kind}
  - {prompt: q2, better: hello, worse: what, principle: kind}
  - {prompt: q3, better: sure, worse: never, principle: kind}
"""


def test_the_judge_is_shown_examples_of_the_constitution(workdir: Path) -> None:
    settings = {"prompts": family(workdir, judge=WITH_EXAMPLES), "constitution": rules(workdir, EXAMPLES)}
    engine = FunctionEngine()
    list(labeler(workdir, engine, num_examples=2, **settings).label(random_comparisons(3)))
    begins = {asked.text.split("user says")[0] for asked in engine.scored[0]}
    assert begins == {"q1: thanks or pah by be kind is (A). q2: what or hello by be kind is (B). "}
    bare = labeler(workdir, FunctionEngine(), **settings)
    assert "examples" not in bare.texts()
    shown = [labeler(workdir, FunctionEngine(), num_examples=n, **settings).texts()["examples"] for n in (1, 2)]
    assert shown[0] != shown[1], "labels depend on the examples"


def test_the_examples_of_another_constitution_can_be_shown(workdir: Path) -> None:
    other = rules(workdir, EXAMPLES)
    engine, prompts = FunctionEngine(), family(workdir, judge=WITH_EXAMPLES)
    one = labeler(workdir, engine, prompts=prompts, constitution=rules(workdir), examples=other, num_examples=1)
    assert "be kind is" in engine.scored[0][0].text if list(one.label(random_comparisons(1))) else False


@pytest.mark.parametrize("name", ["chat", "few_shot"])
def test_shipped_families_show_examples(workdir: Path, name: str) -> None:
    engine = FunctionEngine()
    settings = {"prompts": PromptFamily(name), "constitution": rules(workdir, EXAMPLES), "num_examples": 3}
    list(labeler(workdir, engine, **settings).label(random_comparisons(1)))
    asked = engine.scored[0][0]
    whole = "\n".join([*(turn.content for turn in asked.turns), asked.text])
    assert [text in whole for text in ("thanks", "hello", "q3")] == [True] * 3
    assert whole.count("The answer is: (A)") + whole.count("The answer is: (B)") == 3


def test_a_template_without_examples_cannot_show_any(workdir: Path) -> None:
    with pytest.raises(PromptError, match=r"judge\.jinja: makes no use of examples, and is to show 2"):
        labeler(workdir, FunctionEngine(), constitution=rules(workdir, EXAMPLES), num_examples=2)
