"""The stages label and win_rate: no label lost or invented, agreement, wins in both orders, resuming."""

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from worlds import (
    FunctionEngine,
    WordCount,
    ai_labeler,
    by_text,
    comparison,
    data_folder,
    finished,
    holds_when_cut,
    noise,
    random_logp,
    run,
)

from cai.engines.base import EnginePrompt
from cai.errors import DataError, LabelerError
from cai.labelers.simulated import SimulatedLabeler
from cai.records import read_json, read_records, read_rows, write_records, write_rows
from cai.stages.label import Label
from cai.stages.win_rate import WinRate
from cai.types import Comparison, Judgment, Pair, Preference, Response


@pytest.fixture
def data(workdir: Path) -> Path:
    """Prompts of every kind."""
    return data_folder(workdir)


# --- label ------------------------------------------------------------------------------------------------------------


def sampled(folder: Path, comparisons: Sequence[Comparison]) -> dict[str, Path]:
    write_records(folder / "sample" / "comparisons.jsonl", comparisons)
    return {"data": folder, "sample": folder / "sample"}


def random_comparisons(n: int) -> list[Comparison]:
    words = [" ".join(["w"] * int(1 + 9 * noise(i))) for i in range(2 * n)]
    return [comparison(f"c{i}", f"{words[2 * i]} a", f"{words[2 * i + 1]} b", tags=("red_team",)) for i in range(n)]


def people() -> SimulatedLabeler:
    return SimulatedLabeler(scorer=WordCount(), seed=1, overlap=0.5)


def test_no_label_is_lost_or_invented(workdir: Path) -> None:
    def logp(asked: EnginePrompt, choice: str) -> float:
        return -20.0 if "question c3\n" in asked.text else random_logp(asked, choice)

    comparisons = random_comparisons(20)
    labeler = ai_labeler(workdir, FunctionEngine(logp=logp), min_mass=1e-6)
    facts = run(Label(labeler=labeler), sampled(workdir, comparisons), workdir / "out")
    judgments = read_records(workdir / "out" / "judgments.jsonl", Judgment)
    preferences = read_records(workdir / "out" / "preferences.jsonl", Preference)
    assert [j.comparison_id for j in judgments] == [c.id for c in comparisons]
    assert [p.id for p in preferences] == [c.id for c in comparisons if c.id != "c3"]
    for preference, judgment in zip(preferences, (j for j in judgments if j.pairs), strict=True):
        original = next(c for c in comparisons if c.id == preference.id)
        assert preference.pairs == judgment.pairs
        assert preference.responses == tuple(r.text for r in original.responses)
        assert (preference.prompt, preference.labeler) == (original.prompt, "ai")
    summary = read_json(workdir / "out" / "label.json")
    assert (summary["num_comparisons"], summary["num_pairs"], summary["num_abstained"]) == (20, 19, 1)
    assert summary["abstained"] == {"ill_formed_answer": 1}
    assert sum(summary["principles"].values()) == 20
    assert summary["people"] == {}  # a model is nobody
    assert summary["position"]["num_questions"] == 19
    assert (summary["gold"], summary["between_people"]["agreement"]) == (None, None)
    assert facts["num_abstained"] == 1.0


def test_people_are_counted_and_their_first_judgment_is_the_label(workdir: Path) -> None:
    comparisons = random_comparisons(200)
    inputs = sampled(workdir, comparisons)
    run(Label(labeler=people(), scorer=WordCount()), inputs, workdir / "out")
    judgments = read_records(workdir / "out" / "judgments.jsonl", Judgment)
    summary = read_json(workdir / "out" / "label.json")
    assert len(judgments) == summary["num_judgments"] == sum(summary["people"].values()) > 250
    first = {j.comparison_id: j for j in reversed(judgments)}
    labels = {p.id: p.pairs for p in read_records(workdir / "out" / "preferences.jsonl", Preference)}
    assert labels == {name: judgment.pairs for name, judgment in first.items()}
    assert summary["between_people"]["num_pairs"] == len(judgments) - 200
    assert 0.6 < summary["between_people"]["agreement"] < 0.85
    assert 0.7 < summary["gold"]["agreement"] < 0.95
    assert summary["gold"]["by_tag"]["red_team"] == {k: summary["gold"][k] for k in ("num_pairs", "agreement")}


def test_a_scorer_measures_labels_and_changes_none(workdir: Path) -> None:
    inputs = sampled(workdir, random_comparisons(30))
    facts = {}
    for name, scorer in (("with", WordCount()), ("without", None)):
        labeler = ai_labeler(workdir, FunctionEngine())
        facts[name] = run(Label(labeler=labeler, scorer=scorer), inputs, workdir / name)
    with_, without = finished(workdir / "with"), finished(workdir / "without")
    assert {name for name in with_ if with_[name] != without.get(name)} == {"label.json", "gold.jsonl"}
    gold = {row["comparison_id"]: row["gold"] for row in read_rows(workdir / "with" / "gold.jsonl")}
    counts = {c.id: [float(len(r.text.split())) for r in c.responses] for c in random_comparisons(30)}
    assert gold == counts
    assert "gold_agreement" in facts["with"] and "gold_agreement" not in facts["without"]


def test_only_abstentions_are_an_error(workdir: Path) -> None:
    labeler = ai_labeler(workdir, FunctionEngine(logp=lambda *_: -30.0), min_mass=0.01)
    with pytest.raises(LabelerError, match=r"'ai' abstained from all 5 comparisons \(ill_formed_answer: 5\)"):
        run(Label(labeler=labeler), sampled(workdir, random_comparisons(5)), workdir / "out")


@pytest.mark.parametrize("who", ["ai", "people"])
@pytest.mark.slow
def test_labelling_goes_on_where_it_was_cut(workdir: Path, who: str) -> None:
    inputs = sampled(workdir, random_comparisons(40))
    holds_when_cut(
        lambda: Label(labeler=ai_labeler(workdir, FunctionEngine()) if who == "ai" else people(), scorer=WordCount()),
        inputs,
        workdir,
    )


# --- win rate ---------------------------------------------------------------------------------------------------------


class Careless:
    """A labeler of somebody's own, with a slip."""

    name = "careless"

    def __init__(self, *judgments: Judgment) -> None:
        self._judgments = judgments

    def texts(self) -> dict[str, str]:
        """None."""
        return {}

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """What it was made with."""
        yield from self._judgments

    def facts(self) -> dict[str, float]:
        """None."""
        return {}


def slip(name: str, *pairs: Pair, of: str = "a", abstained: str | None = None) -> Judgment:
    return Judgment(id=name, comparison_id=of, labeler="careless", person="", pairs=pairs, abstained=abstained)


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (slip("a/0", Pair(0, 1, 0.2)), "judgment 'a/0' has an id that was given before"),
        (slip("z/0", Pair(0, 1, 0.2), of="z"), "judgment 'z/0' is of comparison 'z', which was not asked about"),
        (slip("a/1", Pair(0, 1, 1.7)), r"judgment 'a/1' has Pair\(.*p=1.7.*p must be in \[0, 1\]"),
        (slip("a/1", Pair(0, 1, math.nan)), "p must be in"),
        (slip("a/1", Pair(0, 5, 0.3)), "has the pair 0, 5; indices must be two different ones below 2"),
        (slip("a/1", Pair(1, 1, 0.3)), "has the pair 1, 1"),
        (slip("a/1"), "has 0 pairs and abstained None"),
        (slip("a/1", Pair(0, 1, 0.3), abstained="bored"), "has 1 pairs and abstained 'bored'"),
        (slip("a/1", Pair(0, 1, 0.3)), "gave no judgment of 1 of 2 comparisons, the first 'b'"),
    ],
)
def test_a_careless_labeler_is_told_what_is_wrong(second: Judgment, problem: str, workdir: Path) -> None:
    """Nothing that it said is dropped in silence, and nothing impossible reaches a reward model."""
    inputs = sampled(workdir, [comparison("a", "x", "y"), comparison("b", "x", "y")])
    stage = Label(labeler=Careless(slip("a/0", Pair(0, 1, 0.9)), second))
    with pytest.raises(LabelerError, match=problem) as error:
        run(stage, inputs, workdir / "out")
    assert "\n" not in str(error.value) and "careless" in str(error.value)


def evaluated(folder: Path, side: str, texts: Sequence[str]) -> Path:
    responses = [
        Response(id=f"evaluation{i}/0", prompt_id=f"evaluation{i}", text=t, model=side, num_tokens=1, finished=True)
        for i, t in enumerate(texts)
    ]
    write_records(folder / side / "responses.jsonl", responses)
    rows = [{"prompt_id": r.prompt_id, "response_id": r.id, "gold": float(len(r.text.split()))} for r in responses]
    write_rows(folder / side / "scores.jsonl", rows)
    return folder / side


def test_wins_are_those_of_both_orders(data: Path, workdir: Path) -> None:
    a = evaluated(workdir, "a", ["good"] * 12 + ["bad one"] * 5 + ["same"] * 3)
    b = evaluated(workdir, "b", ["bad one"] * 12 + ["good"] * 5 + ["same"] * 3)
    judge = ai_labeler(workdir, by_text(0.8))
    facts = run(WinRate(labeler=judge), {"data": data, "a": a, "b": b}, workdir / "out")
    rows = read_rows(workdir / "out" / "wins.jsonl")
    assert [row["winner"] for row in rows] == ["a"] * 12 + ["b"] * 5 + ["tie"] * 3
    assert rows[0]["p_a"] == rows[0]["p_a_shown_first"] == rows[0]["p_a_shown_second"] == pytest.approx(0.8)
    assert rows[-1]["p_a"] == 0.5 and rows[-1]["consistent"] is False
    assert (rows[0]["gold_a"], rows[0]["gold_b"]) == (1.0, 2.0)
    judged = read_rows(workdir / "out" / "principles.jsonl")
    assert [(r["response_id"], r["p_a"]) for r in judged] == [(r["response_id"], r["p_a"]) for r in rows]
    assert {row["principle"] for row in judged} == {"kind", "brief", "safe"}, "one is drawn for each"
    summary = read_json(workdir / "out" / "win_rate.json")
    assert (summary["num_wins"], summary["num_losses"], summary["num_ties"]) == (12, 5, 3)
    assert facts["strict_win_rate"] == pytest.approx((12 + 1.5) / 20)
    assert facts["gold_win_rate"] == pytest.approx((5 + 1.5) / 20)


def test_every_principle_can_judge_every_pair(data: Path, workdir: Path) -> None:
    """What each thinks by itself is kept: half of them may say the opposite of the other half."""
    sides = {side: evaluated(workdir, side, [f"{side} text {i}" for i in range(20)]) for side in "ab"}
    judge = ai_labeler(workdir, FunctionEngine(), num_principles="all")
    run(WinRate(labeler=judge), {"data": data, **sides}, workdir / "out")
    rows = {row["response_id"]: row for row in read_rows(workdir / "out" / "wins.jsonl")}
    own: dict[str, dict[str, float]] = {}
    for row in read_rows(workdir / "out" / "principles.jsonl"):
        own.setdefault(row["response_id"], {})[row["principle"]] = row["p_a"]
    assert {len(ps) for ps in own.values()} == {2, 3}, "three on the red team's prompts"
    for name, ps in own.items():
        weights = [2 if principle == "brief" else 1 for principle in ps]
        assert np.average(list(ps.values()), weights=weights) == pytest.approx(rows[name]["p_a"])


def test_a_judge_that_sees_positions_only_gives_ties(data: Path, workdir: Path) -> None:
    sides = {side: evaluated(workdir, side, [f"{side} text"] * 20) for side in "ab"}
    engine = FunctionEngine(logp=lambda asked, choice: math.log(0.8 if choice in (" (A)", " yes") else 0.1))
    run(WinRate(labeler=ai_labeler(workdir, engine)), {"data": data, **sides}, workdir / "out")
    summary = read_json(workdir / "out" / "win_rate.json")
    assert (summary["num_ties"], summary["strict_win_rate"], summary["mean_p_a"]) == (20, 0.5, 0.5)


def test_a_judge_without_orders_gives_probabilities_only(data: Path, workdir: Path) -> None:
    sides = {side: evaluated(workdir, side, [f"w{i} " * i for i in range(20)]) for side in "ab"}
    sides["b"] = evaluated(workdir, "b", ["one two three"] * 20)
    run(WinRate(labeler=people()), {"data": data, **sides}, workdir / "out")
    rows = read_rows(workdir / "out" / "wins.jsonl")
    assert {row["p_a"] for row in rows} == {0.0, 1.0} and {row["consistent"] for row in rows} == {None}
    assert read_json(workdir / "out" / "win_rate.json")["strict_win_rate"] is None
    assert read_rows(workdir / "out" / "principles.jsonl") == []


def test_win_rate_goes_on_where_it_was_cut(data: Path, workdir: Path) -> None:
    sides = {side: evaluated(workdir, side, [f"{side} text {i}" for i in range(20)]) for side in "ab"}
    holds_when_cut(lambda: WinRate(labeler=ai_labeler(workdir, FunctionEngine())), {"data": data, **sides}, workdir)


def test_sides_that_answered_other_prompts_cannot_be_compared(data: Path, workdir: Path) -> None:
    sides = {"a": evaluated(workdir, "a", ["x"] * 5), "b": evaluated(workdir, "b", ["x"] * 6)}
    with pytest.raises(DataError, match="different prompts or in different numbers"):
        run(WinRate(labeler=ai_labeler(workdir, FunctionEngine())), {"data": data, **sides}, workdir / "out")
