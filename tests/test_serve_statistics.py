"""Agreement, bias and screening from what people said, against scikit-learn, krippendorff and tables made by hand."""

import random
from contextlib import closing
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from label_site import Project, form, some
from sklearn.metrics import cohen_kappa_score

from cai.report.agreement import alpha_of, alpha_table, kappa_of, kappa_table
from cai.report.statistics import Bootstrap
from cai.serve.form import Gold
from cai.serve.overview import lines, overview
from cai.serve.statistics import (
    Vote,
    alpha,
    flag_alpha,
    gold_agreement,
    longer_preferred,
    pairings,
    rating_alpha,
    shown_first_preferred,
    verdicts,
    with_others,
)
from cai.types import Feedback

FIRST, TIE, SECOND = ((0,), (1,)), ((0, 1),), ((1,), (0,))
Ranking = tuple[tuple[int, ...], ...]


def vote(person: str, task: str, ranking: Ranking, shown: tuple[int, ...] = (0, 1), **rest: object) -> Vote:
    feedback = Feedback(shown=shown, ranking=ranking, **rest)  # type: ignore[arg-type]
    return Vote(task=task, person=person, feedback=feedback, num_words=(5, 3, 3))


def noisy(seed: int, num_tasks: int = 60) -> list[Vote]:
    """Three people who often say the same; not everybody says something on everything."""
    rng = random.Random(seed)
    votes = []
    for k in range(num_tasks):
        truth = rng.choice([FIRST, TIE, SECOND])
        rating = rng.randint(1, 7)
        for person in ("ada", "bob", "cem"):
            if rng.random() < 0.8:
                ranking = truth if rng.random() < 0.7 else rng.choice([FIRST, TIE, SECOND])
                ratings = tuple(min(7, max(1, rating + rng.randint(-2, 2))) for _ in range(2))
                flags = tuple(("off",) if rng.random() < 0.3 else () for _ in range(2))
                votes.append(vote(person, f"task{k}", ranking, ratings=ratings, flags=flags))
    return votes


def table(votes: list[Vote]) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Verdicts by person and task."""
    said: dict[str, dict[str, int]] = {}
    for one in votes:
        said.setdefault(one.person, {})[one.task] = verdicts(one.feedback)[(0, 1)]
    return sorted({one.task for one in votes}), said


# --- against other libraries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    votes = noisy(seed)
    _, said = table(votes)
    found, num_more = pairings(votes, most=10)
    assert num_more == 0 and {(p.first, p.second) for p in found} == {("ada", "bob"), ("ada", "cem"), ("bob", "cem")}
    for pairing in found:
        shared = sorted(said[pairing.first].keys() & said[pairing.second].keys())
        a, b = ([said[name][task] for task in shared] for name in (pairing.first, pairing.second))
        assert pairing.kappa is not None
        assert pairing.kappa.value == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
        assert pairing.raw.value == pytest.approx(np.mean([x == y for x, y in zip(a, b, strict=True)]))
        assert pairing.kappa.low < pairing.kappa.value < pairing.kappa.high
    assert pairings(votes, most=1) == (found[:1], 2)


@pytest.mark.parametrize("seed", range(5))
def test_alphas_are_those_of_krippendorff(seed: int) -> None:
    votes = noisy(seed)
    tasks, said = table(votes)
    data = [[said[person].get(task, np.nan) for task in tasks] for person in sorted(said)]
    expected = krippendorff.alpha(np.array(data, dtype=float), level_of_measurement="nominal")
    found = alpha(votes)
    assert found is not None and found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < expected < found.high

    given = {(one.person, one.task, i): one.feedback.ratings[i] for one in votes for i in range(2)}
    columns = [(task, i) for task in tasks for i in range(2)]
    rows = [[given.get((person, *column), np.nan) for column in columns] for person in sorted(said)]
    ordinal = krippendorff.alpha(np.array(rows, dtype=float), level_of_measurement="ordinal")
    ratings = rating_alpha(votes)
    assert ratings is not None and ratings.value == pytest.approx(ordinal, abs=1e-9)
    assert ratings.low < ordinal < ratings.high

    off = {(one.person, one.task, i): float("off" in one.feedback.flags[i]) for one in votes for i in range(2)}
    rows = [[off.get((person, *column), np.nan) for column in columns] for person in sorted(said)]
    flags = flag_alpha(votes, ["off"])
    nominal = krippendorff.alpha(np.array(rows, dtype=float), level_of_measurement="nominal")
    assert flags is not None and flags.value == pytest.approx(nominal, abs=1e-12)


@pytest.mark.parametrize("num_categories", [2, 3, 5])
def test_the_statistics_of_any_number_of_categories(num_categories: int) -> None:
    rng = np.random.default_rng(num_categories)
    a = rng.integers(num_categories, size=300)
    b = np.where(rng.random(300) < 0.5, a, rng.integers(num_categories, size=300))
    prompts = [f"p{i // 3}" for i in range(300)]
    kappa = Bootstrap(num_draws=200).estimate(
        [kappa_table(0, prompts, a.tolist(), b.tolist(), num_categories=num_categories)], kappa_of
    )
    nominal = Bootstrap(num_draws=200).estimate(
        [alpha_table(0, prompts, np.stack([a, b], 1).tolist(), num_categories=num_categories)], alpha_of
    )
    assert kappa is not None and kappa.value == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    expected = krippendorff.alpha(np.stack([a, b]).astype(float), level_of_measurement="nominal")
    assert nominal is not None and nominal.value == pytest.approx(expected, abs=1e-12)


def test_intervals_of_kappa_cover_the_truth() -> None:
    """Two people who both say what is true four times in five, and guess otherwise: kappa is 0.64 by construction."""
    hits = 0
    for study in range(150):
        rng = np.random.default_rng(study)
        truth = rng.integers(3, size=200)
        said = [np.where(rng.random(200) < 0.8, truth, rng.integers(3, size=200)).tolist() for _ in range(2)]
        found = Bootstrap(num_draws=400).estimate(
            [kappa_table(0, [str(i) for i in range(200)], *said, num_categories=3)], kappa_of
        )
        assert found is not None
        hits += found.low <= 0.64 <= found.high
    assert hits >= 134, "95 % of 150 is 142; below 134 is less than one in a thousand"


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_verdicts_of_rankings_with_ties_and_gaps() -> None:
    feedback = Feedback(shown=(), ranking=((2,), (0, 3)))
    assert verdicts(feedback) == {(0, 2): 2, (0, 3): 1, (2, 3): 0}
    assert verdicts(Feedback(shown=(), skipped="unclear")) == {}


def test_bias_by_position_and_by_length() -> None:
    votes = [
        vote("ada", "t1", FIRST, shown=(0, 1)),  # the first shown, the longer
        vote("ada", "t2", FIRST, shown=(1, 0)),  # the second shown, the longer
        vote("ada", "t3", SECOND, shown=(1, 0)),  # the first shown, the shorter
        vote("ada", "t4", TIE),
        vote("ada", "t5", ((1,), (2,)), shown=(2, 1, 0)),  # the second shown; equally long
        vote("ada", "t6", ()),
    ]
    first, longer = shown_first_preferred(votes), longer_preferred(votes)
    assert first is not None and longer is not None
    assert (first.value, first.num) == (0.5, 4)
    assert (longer.value, longer.num) == (pytest.approx(2 / 3), 3)
    assert shown_first_preferred(votes[3:4]) is None


def test_agreement_with_gold_counts_ties_and_leaves_out_skips() -> None:
    gold = {f"t{i}": Feedback(shown=(), ranking=FIRST) for i in range(1, 4)}
    votes = [
        vote("ada", "t1", FIRST),
        vote("ada", "t2", TIE),
        vote("ada", "t3", (), skipped="unclear"),
        vote("ada", "t4", SECOND),
    ]
    found = gold_agreement(votes, gold)
    assert found is not None and (found.value, found.num, found.method) == (0.5, 2, "wilson")
    assert gold_agreement(votes[3:], gold) is None


def test_agreement_with_others_is_over_everybody_on_the_same() -> None:
    votes = [vote(person, "t1", ranking) for person, ranking in (("ada", FIRST), ("bob", FIRST), ("cem", SECOND))]
    found = with_others([*votes, vote("dot", "t2", FIRST)])
    assert {name: estimate.value for name, estimate in found.items()} == {"ada": 0.5, "bob": 0.5, "cem": 0.0}


def test_nothing_in_common_is_no_figure() -> None:
    alone = [vote("ada", "t1", FIRST, ratings=(1, 2)), vote("bob", "t2", FIRST, ratings=(1, 2))]
    assert pairings(alone, most=5) == ([], 0)
    assert alpha(alone) is None and rating_alpha(alone) is None and flag_alpha(alone, ["off"]) is None
    same = [vote(person, task, FIRST, ratings=(4, 4)) for person in ("ada", "bob") for task in ("t1", "t2")]
    assert rating_alpha(same) is None, "chance explains everything"
    assert pairings(same, most=5)[0][0].kappa is None


# --- all of it --------------------------------------------------------------------------------------------------------


def test_the_overview_points_at_who_fails_the_gold(tmp_path: Path) -> None:
    gold = [Gold(comparison=c, feedback=Feedback(shown=(), ranking=FIRST)) for c in some(30, prefix="gold")]
    asked = form(overlap=1.0, gold_share=0.4, min_gold=5, min_agreement=0.75, num_labels=3)
    with closing(Project(tmp_path)) as project:
        project.queue.ask(some(30), asked, gold)
        for name, ranking in (("ada", FIRST), ("bob", SECOND)):
            person = project.person(name)
            while screen := project.desk.next(person):
                project.desk.answer(person, screen.task, Feedback(shown=screen.shown, ranking=ranking), 4.0)
        newcomer = project.person("cem")
        screen = project.desk.next(newcomer)
        assert screen is not None
        project.desk.answer(newcomer, screen.task, Feedback(shown=screen.shown, skipped="unclear"), 4.0)
        found = overview(project.database)
        project.accounts.set_active(project.accounts.all()[1].id, False)
        without = overview(project.database)
    assert {row.account.name: row.passes for row in found.people} == {"ada": True, "bob": False, "cem": None}
    (batch,) = found.batches
    assert (batch.num_comparisons, batch.num_gold, batch.num_wanted, batch.num_missing) == (30, 30, 90, 29)
    assert found.skipped == {"unclear": 1}
    (pairing,) = found.pairings
    assert pairing.raw.value == 0.0 and without.pairings == ()
    text = lines(found)
    assert text[0].startswith("batch ") and "61 of 90 labels on 30 comparisons" in text[0]
    assert "below the gold cut-off" in text[2] and "skipped" in text[3]
    assert "set aside" in lines(without)[2]
