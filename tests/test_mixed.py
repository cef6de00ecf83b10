"""Labelers made of labelers: work that is shared out, and noise that is put in on purpose."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import FunctionEngine, WordCount, ai_labeler, comparison, run

from cai.errors import LabelerError
from cai.labelers.base import Labeler
from cai.labelers.journaled import label_journaled
from cai.labelers.mixed import MixedLabeler
from cai.labelers.noisy import NoisyLabeler
from cai.labelers.simulated import SimulatedLabeler
from cai.records import read_json, read_records, write_records
from cai.stages.label import Label
from cai.types import Comparison, Feedback, Judgment, Pair, Preference


def comparisons(num: int) -> list[Comparison]:
    tags = (("red_team",), ("helpful", "red_team"), ("helpful",))
    return [comparison(f"c{i}", "w " * (i % 7 + 1), "v " * (i % 5 + 1), tags=tags[i % 3]) for i in range(num)]


def people(**settings: Any) -> SimulatedLabeler:
    return SimulatedLabeler(**{"scorer": WordCount(), "seed": 1, "overlap": 0.5, **settings})


def mixed(folder: Path, **settings: Any) -> MixedLabeler:
    defaults: dict[str, Any] = {"routes": {"helpful": "people", "red_team": "judge"}, "seed": 5}
    labelers = {"judge": ai_labeler(folder, FunctionEngine()), "people": people()}
    return MixedLabeler(**{"labelers": labelers, **defaults, **settings})


# --- mixed ------------------------------------------------------------------------------------------------------------


def test_every_judgment_names_who_gave_it_by_the_route_of_its_prompt(workdir: Path) -> None:
    labeler = mixed(workdir)
    assert isinstance(labeler, Labeler)
    given = {c.id: c.prompt.tags for c in comparisons(60)}
    judgments = list(labeler.label(comparisons(60)))
    assert {j.comparison_id for j in judgments} == set(given), "nothing is lost"
    for judgment in judgments:
        expected = "people" if "helpful" in given[judgment.comparison_id] else "judge"
        assert judgment.labeler == expected, "the first route that fits counts"
        assert bool(judgment.person) == (expected == "people")
    assert (labeler.facts()["num_judge"], labeler.facts()["num_people"]) == (20, 40)


def test_what_a_labeler_says_does_not_depend_on_who_it_shares_with(workdir: Path) -> None:
    own = [c for c in comparisons(60) if "helpful" not in c.prompt.tags]
    alone = list(ai_labeler(workdir, FunctionEngine()).label(own))
    shared = [j for j in mixed(workdir).label(comparisons(60)) if j.labeler == "judge"]
    assert [(j.id, j.principle_ids) for j in shared] == [(j.id, j.principle_ids) for j in alone]
    assert [j.pairs[0].p for j in shared] == pytest.approx([j.pairs[0].p for j in alone], abs=1e-7)


def test_shares_are_drawn_for_each_comparison(workdir: Path) -> None:
    labeler = mixed(workdir, routes=None, shares={"judge": 0.25, "people": 0.75})
    who = {j.comparison_id: j.labeler for j in labeler.label(comparisons(1200))}
    assert Counter(who.values())["judge"] / 1200 == pytest.approx(0.25, abs=0.04)
    fewer = {j.comparison_id: j.labeler for j in labeler.label(comparisons(300))}
    assert fewer == {name: who[name] for name in fewer}, "whoever else is there"
    other = mixed(workdir, routes=None, shares={"judge": 0.25, "people": 0.75}, seed=6)
    assert {j.comparison_id: j.labeler for j in other.label(comparisons(300))} != fewer


def test_shares_take_what_no_route_is_for(workdir: Path) -> None:
    labeler = mixed(workdir, routes={"helpful": "people"}, shares={"judge": 1.0})
    assert {j.labeler for j in labeler.label(comparisons(30)) if int(j.comparison_id[1:]) % 3 == 0} == {"judge"}
    with pytest.raises(
        LabelerError, match=r"routes: none is for comparison 'c0', whose prompt has the tags red_team; there"
    ):
        list(mixed(workdir, routes={"helpful": "people"}).label(comparisons(3)))


def test_costs_are_added_up_and_other_facts_keep_their_labeler(workdir: Path) -> None:
    engines = {name: ai_labeler(workdir, FunctionEngine()) for name in "ab"}
    for name, labeler in engines.items():
        labeler.judge.engine.usage.prompt_tokens = {"a": 100, "b": 11}[name]
    both = MixedLabeler(labelers=engines, seed=1, shares={"a": 0.5, "b": 0.5})
    list(both.label(comparisons(20)))
    facts = both.facts()
    assert facts["prompt_tokens"] == 111
    assert facts["a_unknown_words"] == facts["b_unknown_words"] == 0
    unasked = MixedLabeler(labelers={"a": engines["a"], "people": people()}, seed=1, shares={"people": 1.0})
    list(unasked.label(comparisons(40)))
    assert "prompt_tokens" not in unasked.facts(), "who judged nothing spent nothing"


def test_mixed_labelling_goes_on_where_it_was_cut(workdir: Path) -> None:
    whole = label_journaled(mixed(workdir), comparisons(40), workdir / "whole.journal", title="label")
    data = (workdir / "whole.journal").read_bytes()
    for cut in range(0, len(data), len(data) // 15):
        path = workdir / "cut.journal"
        path.write_bytes(data[:cut])
        assert label_journaled(mixed(workdir), comparisons(40), path, title="label") == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"routes": {"helpful": "poeple"}}, "routes: unknown labeler 'poeple'; did you mean 'people'"),
        ({"routes": None}, "routes, shares: one of them must say"),
        ({"shares": {"judge": 0.5}}, "shares: must be 0 or more and sum to 1"),
        ({"shares": {"judges": 1.0}}, "shares: unknown labeler 'judges'"),
        ({"labelers": {"people": people()}}, "labelers: to mix, there must be two or more, got people"),
    ],
)
def test_settings_that_cannot_be(workdir: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelerError, match=message):
        mixed(workdir, **settings)


# --- noise on purpose -------------------------------------------------------------------------------------------------


def test_a_share_of_the_pairs_is_turned_over_and_every_one_is_recorded() -> None:
    plain = list(people(overlap=0.0).label(comparisons(2000)))
    noisy = list(NoisyLabeler(labeler=people(overlap=0.0), seed=9, flip_rate=0.3).label(comparisons(2000)))
    for before, after in zip(plain, noisy, strict=True):
        assert (after.labeler, after.person) == ("simulated+noise", before.person)
        row: Any = after.evidence[-1]
        assert row["given"] == before.pairs[0].p
        assert after.pairs[0].p == (1 - before.pairs[0].p if row["flipped"] else before.pairs[0].p)
    flipped: list[Any] = [j.evidence[-1]["flipped"] for j in noisy]
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.03)
    again = list(NoisyLabeler(labeler=people(overlap=0.0), seed=9, flip_rate=0.3).label(comparisons(2000)[:100]))
    assert [j.evidence[-1]["flipped"] for j in again] == flipped[:100]


def test_softening_draws_every_probability_towards_a_half(workdir: Path) -> None:
    plain = list(ai_labeler(workdir, FunctionEngine()).label(comparisons(30)))
    soft = NoisyLabeler(labeler=ai_labeler(workdir, FunctionEngine()), seed=1, soften=0.5)
    for before, after in zip(plain, soft.label(comparisons(30)), strict=True):
        assert after.pairs[0].p - 0.5 == pytest.approx((before.pairs[0].p - 0.5) / 2, abs=1e-7)


def test_the_pairs_of_a_correction_stay_as_they_are() -> None:
    class Corrects:
        name = "corrects"

        def texts(self) -> dict[str, str]:
            return {}

        def label(self, comparisons: Any, *, done: Any = ()) -> Any:
            feedback = Feedback(shown=(0, 1), ranking=((0,), (1,)), corrected=0, correction="better still")
            pairs = (Pair(0, 1, 1.0), Pair(0, 2, 0.0), Pair(1, 2, 0.0))
            for c in comparisons:
                yield Judgment(
                    id=f"{c.id}/0", comparison_id=c.id, labeler="x", person="p", pairs=pairs, feedback=feedback
                )

        def facts(self) -> dict[str, float]:
            return {}

    (judgment,) = NoisyLabeler(labeler=Corrects(), seed=1, flip_rate=1.0).label([comparison("c", "x", "y")])
    assert judgment.pairs == (Pair(0, 1, 0.0), Pair(0, 2, 0.0), Pair(1, 2, 0.0))


def test_the_stage_counts_what_was_turned_over_and_who_labelled(workdir: Path) -> None:
    write_records(workdir / "sample" / "comparisons.jsonl", comparisons(90))
    labeler = NoisyLabeler(labeler=mixed(workdir), seed=3, flip_rate=0.4)
    facts = run(Label(labeler=labeler), {"sample": workdir / "sample"}, workdir / "out")
    summary = read_json(workdir / "out" / "label.json")
    judgments = read_records(workdir / "out" / "judgments.jsonl", Judgment)
    assert summary["labelers"] == dict(sorted(Counter(j.labeler for j in judgments).items()))
    assert set(summary["labelers"]) == {"judge+noise", "people+noise"}
    assert summary["injected"]["num_pairs"] == len(judgments) > 90 and 30 < summary["injected"]["num_flipped"] < 65
    assert facts["num_flipped"] == summary["injected"]["num_flipped"]
    preferences = read_records(workdir / "out" / "preferences.jsonl", Preference)
    assert [p.id for p in preferences] == [c.id for c in comparisons(90)], "in the order of the comparisons"


@pytest.mark.parametrize("settings", [{"flip_rate": 1.2}, {"soften": -0.1}])
def test_noise_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(LabelerError, match=f"{next(iter(settings))}: must be a share from 0 to 1"):
        NoisyLabeler(labeler=people(), seed=1, **settings)
