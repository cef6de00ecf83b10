"""The database of a labelling project: what is queued, who gets what, and that every answer is there exactly once."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from label_site import Project, anywhere, form, prefer, some
from sqlalchemy import func, select, update
from worlds import comparison

from cai.errors import LabelerError
from cai.serve.accounts import Account
from cai.serve.desk import LEASE, Screen
from cai.serve.form import Gold, shown_order, task_id
from cai.serve.overview import overview
from cai.serve.tables import answers, tasks, withdrawn
from cai.types import Feedback


@pytest.fixture(params=["sqlite", "postgres"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    with closing(anywhere(request.param, tmp_path)) as project:
        yield project


def label_all(project: Project, person: Account) -> list[Screen]:
    """Answer until nothing is left; what was on the screen."""
    seen = []
    while screen := project.desk.next(person):
        assert project.desk.answer(person, screen.task, prefer(screen.shown), 1.0)
        seen.append(screen)
    return seen


def num_rows(project: Project) -> int:
    with project.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(answers)).scalar_one())


# --- what is queued ---------------------------------------------------------------------------------------------------


def test_asking_again_changes_nothing_and_takes_the_answers_once_all_are_there(project: Project) -> None:
    comparisons = some(5)
    first = project.queue.ask(comparisons, form())
    assert (first.num_comparisons, first.num_wanted, first.num_missing, first.answers) == (5, 5, 5, None)
    assert project.queue.ask(comparisons, form()) == first
    assert project.queue.latest() is not None
    ada = project.person("ada")
    seen = label_all(project, ada)
    assert [screen.comparison for screen in seen] == comparisons, "in their order"
    done = project.queue.ask(comparisons, form())
    assert done.num_missing == 0 and done.answers is not None
    assert [[a.person for a in done.answers[task_id(c, form())]] for c in comparisons] == [["ada"]] * 5
    assert project.queue.ask(comparisons, form()) == done


def test_answers_belong_to_a_comparison_as_it_was_asked(project: Project) -> None:
    comparisons = some(3)
    project.queue.ask(comparisons, form())
    label_all(project, project.person("ada"))
    assert project.queue.ask(comparisons, form(overlap=0.0, skip_reasons=("other",))).num_missing == 0
    assert project.queue.ask(comparisons, form(instructions="Others.")).num_missing == 0
    assert project.queue.ask([*comparisons, *some(2, prefix="d")], form()).num_missing == 2
    assert project.queue.ask(comparisons, form(strength=True)).num_missing == 3
    other = [replace(c, responses=c.responses[::-1]) for c in comparisons]
    assert project.queue.ask(other, form()).num_missing == 3


def test_the_latest_batch_comes_first_and_a_closed_one_not_at_all(project: Project) -> None:
    project.queue.ask(some(2, prefix="old"), form())
    project.queue.ask(some(2, prefix="new"), form())
    ada = project.person("ada")
    assert [s.comparison.id for s in label_all(project, ada)] == ["new0", "new1", "old0", "old1"]
    bob = project.person("bob")
    project.queue.ask(some(2, prefix="old"), form(overlap=1.0))
    assert [s.comparison.id for s in label_all(project, bob)] == ["old0", "old1"]


def test_every_batch_that_waits_gets_what_it_wants(project: Project) -> None:
    comparisons, expert = some(2), Feedback(shown=(), ranking=((0,), (1,)))
    gold = [Gold(comparison=c, feedback=expert) for c in some(1, prefix="gold")]
    project.queue.ask(comparisons, form(overlap=1.0), gold)
    project.queue.ask(comparisons[::-1], form())
    project.queue.ask([gold[0].comparison], form())  # now somebody wants it labelled too
    for name in ("ada", "bob"):
        seen = label_all(project, project.person(name))
        assert [s.comparison.id for s in seen] == ["gold0", "c1", "c0"][name == "bob" :], "both are asked everything"
    rows = {row.id: row for row in overview(project.database).batches}
    assert [(rows[n].num_wanted, rows[n].num_missing, rows[n].num_gold) for n in sorted(rows)] == [
        (4, 0, 1),
        (2, 0, 0),
        (1, 0, 1),
    ]
    for asked, number in ((form(overlap=1.0), 2), (form(), 2)):
        found = project.queue.ask(comparisons, asked).answers
        assert found is not None and [len(given) for given in found.values()] == [number] * 2
    with project.database.read() as connection:
        assert connection.execute(select(func.count(tasks.c.gold))).scalar_one() == 1, "the expert's answer is kept"


def test_a_closed_batch_leaves_its_comparisons_to_the_others(project: Project) -> None:
    project.queue.ask(some(2), form(overlap=1.0))
    first = project.queue.latest()
    assert first is not None
    project.queue.ask(some(2)[:1], form())
    second = first + 1
    ada, bob, cem = map(project.person, ("ada", "bob", "cem"))
    project.queue.set_open(second, False)
    assert [s.comparison.id for s in label_all(project, ada)] == ["c0", "c1"], "the first one waits for both"
    project.queue.set_open(first, False)
    assert project.desk.next(bob) is None and project.desk.tally(bob).num_left == 0
    project.queue.set_open(second, True)
    assert project.desk.next(bob) is None, "one label was all that it wanted"
    assert project.queue.ask(some(2), form(overlap=1.0)).num_missing == 2, "asked again it is open again"
    assert [s.comparison.id for s in label_all(project, bob)] == ["c0", "c1"]
    assert project.desk.next(cem) is None


def test_texts_of_every_kind_come_back_as_they_were(project: Project) -> None:
    odd = comparison("odd", "nul \0 and lone \ud800", "emoji 🫘, \r\n, <b>&amp;</b>, \u2028 and 'quotes\"")
    project.queue.ask([odd], form())
    ada = project.person("ada")
    screen = project.desk.next(ada)
    assert screen is not None and screen.comparison == odd
    said = replace(prefer(screen.shown), critique="\0 \ud800 🫘")
    project.desk.answer(ada, screen.task, said, 1.0)
    found = project.queue.ask([odd], form()).answers
    assert found is not None and found[screen.task][0].feedback == said


# --- who gets what ----------------------------------------------------------------------------------------------------


def test_nobody_gets_the_same_twice_and_nothing_gets_more_than_is_wanted(project: Project) -> None:
    comparisons = some(40)
    asked = form(overlap=0.5, num_labels=3)
    people = [project.person(name) for name in ("ada", "bob", "cem", "dot")]
    total = project.queue.ask(comparisons, asked).num_wanted
    overlapping = sum(asked.num_wanted(c.id) == 3 for c in comparisons)
    assert 10 <= overlapping <= 30 and total == 40 + 2 * overlapping
    given: Counter[str] = Counter()
    working = list(people)
    while working:  # all screens are filled before anybody answers
        screens = [(person, project.desk.next(person)) for person in working]
        working = [person for person, screen in screens if screen]
        for person, screen in screens:
            if screen:
                assert project.desk.answer(person, screen.task, prefer(screen.shown), 1.0)
                given[screen.comparison.id] += 1
    assert given == {c.id: asked.num_wanted(c.id) for c in comparisons}


def test_a_screen_stays_the_same_until_it_is_answered(project: Project) -> None:
    project.queue.ask(some(3), form())
    ada, bob = project.person("ada"), project.person("bob")
    first = project.desk.next(ada)
    assert first is not None and project.desk.next(ada) == first
    other = project.desk.next(bob)
    assert other is not None and other.task != first.task
    project.clock.now += LEASE + 1  # ada went home
    project.desk.answer(bob, other.task, prefer(other.shown), 1.0)
    taken_over = project.desk.next(bob)
    assert taken_over is not None and taken_over.task == first.task
    assert project.desk.answer(bob, first.task, prefer(first.shown), 1.0)
    assert project.desk.answer(ada, first.task, prefer(first.shown), 1.0), "late, but nothing is lost"


def test_the_order_is_a_shuffle_by_task_and_person() -> None:
    orders = [shown_order(f"task{i}", "ada", 3) for i in range(600)]
    assert orders == [shown_order(f"task{i}", "ada", 3) for i in range(600)]
    assert orders != [shown_order(f"task{i}", "bob", 3) for i in range(600)]
    counts = Counter(orders)
    assert len(counts) == 6 and all(70 <= count <= 130 for count in counts.values())


@pytest.mark.slow
def test_gold_comes_now_and_then_once_to_everybody_and_is_no_label(project: Project) -> None:
    gold = [Gold(comparison=c, feedback=Feedback(shown=(), ranking=((0,), (1,)))) for c in some(12, prefix="gold")]
    comparisons = some(120)
    asked = project.queue.ask(comparisons, form(gold_share=0.1, overlap=1.0), gold)
    assert (asked.num_comparisons, asked.num_wanted) == (120, 240)
    for name in ("ada", "bob"):
        seen = [screen.comparison.id for screen in label_all(project, project.person(name))]
        assert len(set(seen)) == len(seen)
        num_gold = sum(name.startswith("gold") for name in seen)
        assert 5 <= num_gold <= 12 and len(seen) == 120 + num_gold
        assert not seen[-1].startswith("gold"), "gold is not what is left over"


def test_people_who_are_set_aside_do_not_count(project: Project) -> None:
    comparisons = some(4)
    project.queue.ask(comparisons, form())
    ada = project.person("ada")
    label_all(project, ada)
    project.accounts.set_active(ada.id, False)
    assert project.accounts.sign_in("ada", "correct horse") is None
    assert project.queue.ask(comparisons, form()).num_missing == 4
    label_all(project, project.person("bob"))
    project.accounts.set_active(ada.id, True)
    found = project.queue.ask(comparisons, form()).answers
    assert found is not None and {tuple(a.person for a in given) for given in found.values()} == {("ada", "bob")}


# --- once, and only once ----------------------------------------------------------------------------------------------


def test_an_answer_is_taken_once_and_the_first_one_stands(project: Project) -> None:
    project.queue.ask(some(1), form())
    ada = project.person("ada")
    screen = project.desk.next(ada)
    assert screen is not None
    assert project.desk.answer(ada, screen.task, prefer(screen.shown, 0), 2.0)
    assert not project.desk.answer(ada, screen.task, prefer(screen.shown, 1), 2.0)
    found = project.queue.ask(some(1), form()).answers
    assert found is not None and found[screen.task][0].feedback.ranking[0] == (0,)


def test_many_threads_many_clicks(project: Project) -> None:
    """Eight people at once, every answer sent three times at once, on a database that a second one shares."""
    comparisons = some(30)
    asked = project.queue.ask(comparisons, form(overlap=1.0, num_labels=4))
    people = [project.person(f"person{i}") for i in range(8)]
    second = Project(Path(), project.where)  # as if a second server ran
    recorded: list[bool] = []
    lock = threading.Lock()

    def work(person: Account, own: Project) -> None:
        with ThreadPoolExecutor(3) as clicks:
            while screen := own.desk.next(person):
                said = [clicks.submit(own.desk.answer, person, screen.task, prefer(screen.shown), 1.0) for _ in "abc"]
                with lock:
                    recorded.extend(click.result() for click in said)

    threads = [
        threading.Thread(target=work, args=(person, second if i % 2 else project)) for i, person in enumerate(people)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked.num_wanted == 120
    assert sum(recorded) == num_rows(project) == 120, "nothing twice, and no claim given to too many"
    assert len(recorded) == 360
    assert project.queue.ask(comparisons, form(overlap=1.0, num_labels=4)).num_missing == 0
    second.close()


def test_the_last_answer_can_be_taken_back_until_a_run_has_it(project: Project) -> None:
    comparisons = some(2)
    project.queue.ask(comparisons, form())
    ada = project.person("ada")
    first, second = label_all(project, ada)
    assert not project.desk.undo(ada, first.task), "not the last one"
    assert project.desk.undo(ada, second.task)
    assert not project.desk.undo(ada, second.task), "a second click takes back no second answer"
    assert num_rows(project) == 1
    again = project.desk.next(ada)
    assert again is not None and (again.task, again.draft) == (second.task, prefer(second.shown))
    project.clock.now += 60
    project.desk.answer(ada, second.task, prefer(second.shown, 1), 7.0, attempt=1)
    found = project.queue.ask(comparisons, form()).answers
    assert found is not None
    (answer,) = found[second.task]
    assert answer.feedback.ranking[0] == (1,) and answer.num_attempts == 2
    assert 7.0 < answer.seconds < 8.1, "the first attempt took time too"
    assert not project.desk.undo(ada, second.task), "a run has it"
    assert project.desk.tally(ada).last is None
    with project.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(withdrawn)).scalar_one() == 1, "nothing is lost"


def test_what_was_sent_before_undo_is_not_taken_after_it(project: Project) -> None:
    project.queue.ask(some(2), form())
    ada = project.person("ada")
    screen = project.desk.next(ada)
    assert screen is not None and screen.attempt == 0
    assert project.desk.answer(ada, screen.task, prefer(screen.shown), 1.0)
    assert project.desk.undo(ada, screen.task)
    with pytest.raises(LabelerError, match="You took this answer back"):
        project.desk.answer(ada, screen.task, prefer(screen.shown), 1.0)
    assert num_rows(project) == 0
    again = project.desk.next(ada)
    assert again is not None and (again.task, again.attempt) == (screen.task, 1)
    assert project.desk.answer(ada, again.task, prefer(again.shown, 1), 1.0, attempt=1)
    assert not project.desk.answer(ada, again.task, prefer(again.shown), 1.0), "answered before, by whatever attempt"


def test_a_closed_batch_takes_no_answers_and_gives_none_back(project: Project) -> None:
    project.queue.ask(some(2), form())
    batch = project.queue.latest()
    assert batch is not None
    ada = project.person("ada")
    first = project.desk.next(ada)
    assert first is not None
    project.desk.answer(ada, first.task, prefer(first.shown), 1.0)
    second = project.desk.next(ada)
    assert second is not None
    project.queue.set_open(batch, False)
    with pytest.raises(LabelerError, match=r"closed meanwhile.*Nothing that you saved is lost"):
        project.desk.answer(ada, second.task, prefer(second.shown), 1.0)
    assert project.desk.tally(ada).last is None
    assert not project.desk.undo(ada, first.task), "it could not be given again"
    assert not project.desk.answer(ada, first.task, prefer(first.shown), 1.0), "sent again it is still there"
    project.queue.set_open(batch, True)
    assert project.desk.answer(ada, second.task, prefer(second.shown), 1.0) and num_rows(project) == 2


def test_seconds_are_held_within_the_time_that_passed(project: Project) -> None:
    project.queue.ask(some(2), form())
    ada = project.person("ada")
    for claimed, expected in ((1e9, 10.0), (-5.0, 0.0)):
        screen = project.desk.next(ada)
        assert screen is not None
        project.clock.now += 10
        project.desk.answer(ada, screen.task, prefer(screen.shown), claimed)
        with project.database.read() as connection:
            seconds = connection.execute(select(answers.c.seconds).where(answers.c.task == screen.task)).scalar_one()
        assert seconds == pytest.approx(expected, abs=0.1)


def test_a_failed_write_leaves_nothing(project: Project) -> None:
    project.queue.ask(some(1), form())
    with pytest.raises(ZeroDivisionError), project.database.write() as connection:
        connection.execute(update(tasks).values(num_answers=99))
        raise ZeroDivisionError
    assert project.queue.ask(some(1), form()).num_missing == 1
