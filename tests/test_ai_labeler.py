"""The AI labeler: marginalised slots, orders, ill-formed answers, chains of thought, resuming."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges import labeler, only, random_comparisons
from worlds import TEMPLATES, FunctionEngine, by_text, comparison, family, noise, random_logp, rules

from cai.engines.base import EnginePrompt
from cai.errors import LabelerError, PromptError
from cai.labelers import ai, verdict
from cai.labelers.base import Labeler
from cai.labelers.journaled import label_journaled
from cai.labelers.statistics import position

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
