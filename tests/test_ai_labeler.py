"""The AI labeler: marginalised slots, orders, principles, ill-formed answers, chains of thought, resuming."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import TEMPLATES, FunctionEngine, by_text, comparison, family, noise, random_logp, rules

from cai.engines.base import EnginePrompt
from cai.errors import LabelerError, PromptError
from cai.labelers import ai, verdict
from cai.labelers.ai import AILabeler
from cai.labelers.base import Labeler
from cai.labelers.journaled import label_journaled
from cai.labelers.statistics import by_principle, position, principle_verdicts
from cai.prompts import PromptFamily
from cai.types import Comparison, Judgment


def labeler(folder: Path, engine: FunctionEngine, **settings: Any) -> AILabeler:
    defaults: dict[str, Any] = {"model": "judge", "prompts": family(folder), "constitution": rules(folder), "seed": 3}
    return AILabeler(**{"engine": engine, **defaults, "min_mass": 0.0, **settings})


def only(judgments: Any) -> Judgment:
    (judgment,) = judgments
    assert isinstance(judgment, Judgment)
    return judgment


def random_comparisons(n: int, k: int = 2) -> list[Comparison]:
    tags = (("red_team",), ())
    return [comparison(f"c{i}", *(f"text {i} {j}" for j in range(k)), tags=tags[i % 2]) for i in range(n)]


# --- slots ------------------------------------------------------------------------------------------------------------


def test_marginalising_is_summing_over_every_way_through_the_slots(workdir: Path) -> None:
    family_, engine = family(workdir), FunctionEngine()
    judgment = only(labeler(workdir, engine, prompts=family_, num_principles=2).label([comparison("c", "x", "y")]))

    def shown_first_wins(principle: Any, first: str, second: str) -> float:
        rendered = family_.render(
            "judge", turns=comparison("c", "x", "y").prompt.turns, responses=(first, second), principle=principle
        )
        slots: Any = rendered.slots
        joint = {}
        for path in itertools.product(*(slot.options for slot in slots)):
            p = 1.0
            for k, slot in enumerate(slots):
                odds = {o: math.exp(random_logp(rendered.fill(path[:k]), o)) for o in slot.options}
                p *= odds[path[k]] / sum(odds.values())
            joint[path] = p
        assert sum(joint.values()) == pytest.approx(1)
        return sum(p for path, p in joint.items() if path[-1] == " (A)")

    principles = [p for p in rules(workdir).principles if p.id in judgment.principle_ids]
    assert len(principles) == 2
    expected = np.mean([0.5 * (shown_first_wins(p, "x", "y") + 1 - shown_first_wins(p, "y", "x")) for p in principles])
    assert judgment.pairs[0].p == pytest.approx(expected, abs=1e-12)


def test_all_questions_of_a_chunk_go_out_in_one_call_seven_prompts_each(workdir: Path) -> None:
    engine = FunctionEngine()
    list(labeler(workdir, engine).label(random_comparisons(5)))
    assert [len(call) for call in engine.scored] == [5 * 2 * 7]
    assert engine.models == ["judge"]


def test_evidence_holds_what_the_verdict_was_made_of(workdir: Path) -> None:
    judgment = only(labeler(workdir, FunctionEngine()).label([comparison("c", "x", "y")]))
    rows: Any = judgment.evidence
    assert [row["shown"] for row in rows] == [[0, 1], [1, 0]]
    assert all(row["pair"] == [0, 1] and len(row["branches"]) == 7 for row in rows)
    again = []
    for row in rows:
        last = [b for b in row["branches"] if len(b["given"]) == 2]
        assert sum(b["weight"] for b in last) == pytest.approx(1, abs=1e-5)
        p = sum(b["weight"] / (1 + math.exp(b["logps"][1] - b["logps"][0])) for b in last)
        assert p == pytest.approx(row["p"], abs=1e-5)
        masses = [
            sum(b["weight"] * np.exp(b["logps"]).sum() for b in row["branches"] if len(b["given"]) == k)
            for k in range(3)
        ]
        assert row["mass"] == pytest.approx(min(masses), abs=1e-5)
        again.append(row["p"])
    assert judgment.pairs[0].p == pytest.approx((again[0] + 1 - again[1]) / 2)
    assert judgment.templates.keys() == {"judge"}


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["judge", "judge_cot"])
def test_swapping_the_responses_gives_one_minus_p(workdir: Path, template: str) -> None:
    comparisons = random_comparisons(20)
    swapped = [replace(c, responses=c.responses[::-1]) for c in comparisons]
    straight = list(labeler(workdir, FunctionEngine(), template=template).label(comparisons))
    other_way = list(labeler(workdir, FunctionEngine(), template=template).label(swapped))
    for one, other in zip(straight, other_way, strict=True):
        assert one.principle_ids == other.principle_ids
        assert one.pairs[0].p == pytest.approx(1 - other.pairs[0].p, abs=1e-7)
    assert np.std([j.pairs[0].p for j in straight]) > 0.05, "a constant would pass, too"


@pytest.mark.parametrize("both_orders", [True, False])
def test_the_swap_is_undone(workdir: Path, both_orders: bool) -> None:
    comparisons = [comparison(f"c{i}", *(("good", "bad") if i % 2 else ("bad", "good"))) for i in range(40)]
    judgments = list(labeler(workdir, by_text(0.9), both_orders=both_orders).label(comparisons))
    for i, judgment in enumerate(judgments):
        assert judgment.pairs[0].p == pytest.approx(0.9 if i % 2 else 0.1)
    shown: Any = Counter(tuple(row["shown"]) for j in judgments for row in j.evidence)  # type: ignore[arg-type]
    assert set(shown) == {(0, 1), (1, 0)}, "one order alone is a coin flip, not always the same"
    assert sum(shown.values()) == (80 if both_orders else 40)


def test_a_judge_that_only_sees_positions_says_nothing(workdir: Path) -> None:
    engine = FunctionEngine(logp=lambda asked, choice: math.log(0.8 if choice in (" (A)", " yes") else 0.1))
    judgments = list(labeler(workdir, engine).label(random_comparisons(10)))
    assert [j.pairs[0].p for j in judgments] == [0.5] * 10
    assert position(judgments)["same_position"] == 1.0
    assert position(judgments)["mean_p_shown_first"] == pytest.approx(8 / 9)
    fair = list(labeler(workdir, by_text(0.7)).label([comparison("c", "good", "bad")]))
    assert position(fair)["same_position"] == 0.0


def test_identical_responses_are_exactly_even(workdir: Path) -> None:
    for template in ("judge", "judge_cot"):
        judgments = labeler(workdir, FunctionEngine(), template=template).label([comparison("c", "x", "x", "y")])
        assert {(p.first, p.second): p.p for p in only(judgments).pairs}[0, 1] == 0.5


def test_every_pair_of_k_responses_is_judged(workdir: Path) -> None:
    judgment = only(labeler(workdir, FunctionEngine()).label([comparison("c", *"wxyz")]))
    assert [(p.first, p.second) for p in judgment.pairs] == list(itertools.combinations(range(4), 2))
    assert len(judgment.evidence) == 12


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


# --- ill-formed answers -----------------------------------------------------------------------------------------------


def test_an_answer_without_mass_on_the_options_is_an_abstention(workdir: Path) -> None:
    pair = [comparison("c", "good", "bad")]
    enough = only(labeler(workdir, by_text(0.9, mass=0.06), min_mass=0.05).label(pair))
    assert enough.pairs[0].p == pytest.approx(0.9)
    too_little = only(labeler(workdir, by_text(0.9, mass=0.04), min_mass=0.05).label(pair))
    assert (too_little.pairs, too_little.abstained) == ((), verdict.ILL_FORMED)
    assert all(row["p"] is None and row["mass"] == pytest.approx(0.04) for row in too_little.evidence)  # type: ignore[comparison-overlap]


def test_one_bad_order_takes_its_principle_with_it(workdir: Path) -> None:
    def logp(asked: EnginePrompt, choice: str) -> float:
        if "be kind" in asked.text and "one good" in asked.text:
            return math.log(0.001)
        return math.log(0.7 if (choice == " (A)") == ("one good" in asked.text) else 0.2)

    pair = [comparison("c", "good", "bad")]
    two = only(labeler(workdir, FunctionEngine(logp=logp), num_principles=2, min_mass=0.05).label(pair))
    assert two.pairs[0].p == pytest.approx(7 / 9), "the other principle decides, in both orders"
    kind = rules(workdir, "principles: [{id: kind, axis: a, statement: be kind}]")
    one = only(labeler(workdir, FunctionEngine(logp=logp), constitution=kind, min_mass=0.05).label(pair))
    assert one.abstained == verdict.ILL_FORMED


def test_impossible_options_are_never_a_label(workdir: Path) -> None:
    judgment = only(labeler(workdir, FunctionEngine(logp=lambda *_: -math.inf)).label([comparison("c", "x", "y")]))
    assert judgment.abstained == verdict.ILL_FORMED
    branches: Any = judgment.evidence[0]["branches"]
    assert branches[0]["logps"] == [None, None]


def test_a_pair_that_is_hardly_decided_is_an_abstention(workdir: Path) -> None:
    pair = [comparison("c", "good", "bad")]
    sure = only(labeler(workdir, by_text(0.7), min_distance=0.19).label(pair))
    assert sure.pairs[0].p == pytest.approx(0.7) and sure.abstained is None
    unsure = only(labeler(workdir, by_text(0.6), min_distance=0.19).label(pair))
    assert (unsure.pairs, unsure.abstained) == ((), verdict.UNDECIDED)
    assert unsure.evidence[0]["p"] == pytest.approx(0.6), "what it said is kept"


def test_of_k_responses_only_the_undecided_pairs_are_left_out(workdir: Path) -> None:
    three = [comparison("c", "good", "bad", "worse")]
    judgment = only(labeler(workdir, by_text(0.8), min_distance=0.01).label(three))
    # `bad` and `worse` are the same to this judge, who then goes by position: even, over both orders
    assert [(pair.first, pair.second) for pair in judgment.pairs] == [(0, 1), (0, 2)]


# --- chain of thought -------------------------------------------------------------------------------------------------


def test_chains_of_thought_are_sampled_then_read_and_clamped(workdir: Path) -> None:
    def logp(asked: EnginePrompt, choice: str) -> float:
        return math.log(0.98 if (choice == " (A)") == ("one good" in asked.text) else 0.01)

    engine = FunctionEngine(reply=lambda asked, key: " because", logp=logp)
    settings = {"template": "judge_cot", "clamp": [0.4, 0.6], "temperature": 0.7}
    judgment = only(labeler(workdir, engine, **settings).label([comparison("c", "bad", "good")]))
    assert judgment.pairs[0].p == pytest.approx(0.4)
    (sampling,) = engine.samplings
    assert (sampling.max_new_tokens, sampling.stop, sampling.temperature) == (7, (".",), 0.7)
    assert all(asked.text.endswith("think because so") for asked in engine.scored[0])
    branches: Any = judgment.evidence[0]["branches"]
    assert branches[0]["given"] == [" because"]
    keys = [key for call in engine.generated for _, key in call]
    assert len(set(keys)) == 2, "each order has a chain of thought of its own"


def test_clamped_answers_that_disagree_are_even(workdir: Path) -> None:
    always_first = FunctionEngine(logp=lambda asked, choice: math.log(0.98 if choice == " (A)" else 0.01))
    labeler_ = labeler(workdir, always_first, template="judge_cot", clamp=(0.2, 0.8))
    assert only(labeler_.label([comparison("c", "x", "y")])).pairs[0].p == pytest.approx(0.5)


def test_a_choice_before_a_text_branches_the_text(workdir: Path) -> None:
    template = (
        "{{ turns[0].content }} {{ principle.comparison }} {{ responses[0] }} fits{{ choice(' yes', ' no') }} since"
        "{{ text(max_new_tokens=3) }} {{ responses[1] }} so{{ choice(' (A)', ' (B)') }}"
    )
    engine = FunctionEngine(
        reply=lambda asked, key: " fine" if asked.text.endswith("yes since") else " poor",
        logp=lambda asked, choice: math.log(
            {
                " yes": 0.6,
                " no": 0.2,
                " (A)": 0.9 if "fine" in asked.text else 0.2,
                " (B)": 0.1 if "fine" in asked.text else 0.8,
            }[choice]
        ),
    )
    judgment = only(
        labeler(workdir, engine, prompts=family(workdir, judge=template)).label([comparison("c", "x", "y")])
    )
    rows: Any = judgment.evidence
    assert rows[0]["p"] == pytest.approx(0.75 * 0.9 + 0.25 * 0.2)
    assert len(engine.generated[0]) == 4
    assert judgment.pairs[0].p == pytest.approx(0.5)


# --- resuming, settings -----------------------------------------------------------------------------------------------


def test_labels_do_not_depend_on_where_a_run_was_cut(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ai, "_CHUNK", 4)
    comparisons = random_comparisons(11)
    whole = label_journaled(labeler(workdir, FunctionEngine()), comparisons, workdir / "w.journal", title="label")
    assert [j.comparison_id for j in whole] == [c.id for c in comparisons]
    data = (workdir / "w.journal").read_bytes()
    for cut in range(0, len(data) + 1, len(data) // 23):
        path = workdir / "cut.journal"
        path.write_bytes(data[:cut])
        engine = FunctionEngine()
        assert label_journaled(labeler(workdir, engine), comparisons, path, title="label") == whole
        assert path.read_bytes() == data
        asked = sum(map(len, engine.scored))
        assert asked % 14 == 0 and (asked < 11 * 14 or cut < len(data) / 2), "whole chunks, and only those not done"


def test_words_that_the_judge_does_not_know_are_named(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = FunctionEngine()
    engine.usage.unknown = {f"word{i:02}": 1 + (i == 7) for i in range(12)}
    list(labeler(workdir, engine).label(random_comparisons(1)))
    assert "does not know these words: word07, word00, " in capsys.readouterr().err


def test_texts_are_all_that_labels_depend_on(workdir: Path) -> None:
    texts = labeler(workdir, FunctionEngine()).texts()
    assert texts.keys() == {"constitution", "prompts/judge", "judge"}
    other = family(workdir, judge="x" + TEMPLATES["judge"])
    changed = labeler(workdir, FunctionEngine(), prompts=other).texts()
    assert {name for name in texts if texts[name] != changed[name]} == {"prompts/judge"}
    assert isinstance(labeler(workdir, FunctionEngine()), Labeler)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_principles": 0}, LabelerError, "num_principles: must be at least 1, or all, got 0"),
        ({"principles": ["kindd"]}, LabelerError, "principles: unknown principle 'kindd'; did you mean 'kind'"),
        ({"principles": []}, LabelerError, "principles: must name at least one"),
        ({"num_examples": 1}, LabelerError, r"num_examples: .*constitution\.yaml has 0 examples, got 1"),
        ({"min_distance": 0.6}, LabelerError, "min_distance: must be from 0 to 0.5"),
        ({"min_distance": 0.2, "clamp": [0.4, 0.6]}, LabelerError, "min_distance: must be from 0 to 0.1"),
        ({"min_mass": 1.0}, LabelerError, "min_mass: must be a probability"),
        ({"clamp": [0.4, 0.7]}, LabelerError, r"clamp: must be \[low, 1 - low\]"),
        ({"clamp": [0.6, 0.4]}, LabelerError, r"clamp: must be \[low, 1 - low\]"),
        ({"template": "juge"}, PromptError, "did you mean 'judge'"),
        ({"template": "critique"}, PromptError, "critique"),
    ],
)
def test_settings_that_cannot_be(workdir: Path, settings: dict[str, Any], error: type[Exception], message: str) -> None:
    engine = FunctionEngine()
    with pytest.raises(error, match=message):
        labeler(workdir, engine, **settings)
    assert not engine.models, "found before a model is loaded"


def test_noise_is_noise() -> None:
    """The helper that everything above stands on."""
    values = [noise(i) for i in range(2000)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03) and len(set(values)) == 2000


def test_the_judge_gives_one_answer_whoever_asks(workdir: Path) -> None:
    """What the label stage does in one go can be done in parts: draw, ask, put together."""
    whole = labeler(workdir, FunctionEngine(), num_principles=2)
    comparisons = random_comparisons(3, k=3)
    for c, judgment in zip(comparisons, whole.label(comparisons), strict=True):
        questions = list(whole.questions(c))
        assert [q.principle.id for q in questions] == [row["principle"] for row in judgment.evidence]
        again = whole.judgment(c, [row for row, _ in whole.judge.ask(questions)])
        assert [pair.p for pair in again.pairs] == pytest.approx([pair.p for pair in judgment.pairs], abs=1e-7)
        assert again.principle_ids == judgment.principle_ids
