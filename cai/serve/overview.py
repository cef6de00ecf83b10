"""Everything that those who look after a project want to know, gathered at one moment: batches, people, agreement."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, case, func, select

from cai.report.statistics import Estimate
from cai.serve.accounts import Account, Accounts
from cai.serve.form import Form
from cai.serve.queue import load
from cai.serve.statistics import (
    Pairing,
    Vote,
    alpha,
    flag_alpha,
    gold_agreement,
    longer_preferred,
    pairings,
    rating_alpha,
    shown_first_preferred,
    with_others,
)
from cai.serve.tables import Database, answers, batch_tasks, batches, labelers, missing, tasks
from cai.types import Comparison, Feedback

__all__ = ["BatchRow", "Overview", "PersonRow", "lines", "overview"]

_MAX_PAIRINGS: Final = 30  # pairs of people whose agreement is worked out
_RECENT: Final = 100  # answers that the pace is taken from


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """What a run queued, and how far it is."""

    id: int
    queued_at: float
    is_open: bool
    form: Form
    num_comparisons: int
    num_gold: int
    num_wanted: int
    num_missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonRow:
    """One person. `passes` is None while there are too few gold items to say."""

    account: Account
    num_answers: int
    num_skipped: int
    median_seconds: float | None
    last_at: float | None
    num_gold: int
    gold: Estimate | None
    passes: bool | None
    shown_first: Estimate | None
    longer: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All of it. Agreement is over people who are not set aside."""

    batches: tuple[BatchRow, ...]
    people: tuple[PersonRow, ...]
    pairings: tuple[Pairing, ...]
    num_more_pairings: int
    others: Mapping[str, Estimate]  # by name: raw agreement with everybody else
    verdict_alpha: Estimate | None
    rating_alpha: Estimate | None
    flag_alpha: Estimate | None
    skipped: Mapping[str, int]
    num_answers: int


def overview(database: Database) -> Overview:
    """Read everything and work it out; a second or two for ten thousand answers."""
    accounts = Accounts(database).all()
    with database.read() as connection:
        rows = tuple(_batches(connection))
        votes, times = _votes(connection)
        gold = {
            row.id: load(Feedback, row.gold)
            for row in connection.execute(select(tasks.c.id, tasks.c.gold).where(tasks.c.gold.is_not(None)))
        }
    active = {account.name for account in accounts if account.is_active}
    counted = [vote for vote in votes if vote.person in active]
    own: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        own[vote.person].append(vote)
    flags = {name for row in rows for name in row.form.flags}
    form = rows[0].form if rows else None
    pairs, num_more = pairings(counted, most=_MAX_PAIRINGS)
    return Overview(
        batches=rows,
        people=tuple(_person(a, own[a.name], times.get(a.name, ()), gold, form) for a in accounts),
        pairings=tuple(pairs),
        num_more_pairings=num_more,
        others=with_others(counted),
        verdict_alpha=alpha(counted),
        rating_alpha=rating_alpha(counted),
        flag_alpha=flag_alpha(counted, sorted(flags)),
        skipped=dict(Counter(v.feedback.skipped for v in votes if v.feedback.skipped is not None).most_common()),
        num_answers=len(votes),
    )


def _batches(connection: Connection) -> list[BatchRow]:
    """Latest first."""
    query = (
        select(
            batches,
            func.sum(case((batch_tasks.c.num_wanted > 0, 1), else_=0)).label("num_comparisons"),
            func.count(tasks.c.gold).label("num_gold"),
            func.sum(batch_tasks.c.num_wanted).label("num_wanted"),
            func.sum(missing).label("num_missing"),
        )
        .select_from(batches.join(batch_tasks).join(tasks, batch_tasks.c.task == tasks.c.id))
        .group_by(*batches.c)
        .order_by(batches.c.id.desc())
    )
    names = ("id", "queued_at", "is_open", "num_comparisons", "num_gold", "num_wanted", "num_missing")
    return [
        BatchRow(form=load(Form, row.form), **{name: getattr(row, name) for name in names})
        for row in connection.execute(query)
    ]


def _votes(connection: Connection) -> tuple[list[Vote], dict[str, list[tuple[float, float]]]]:
    """All answers, and by person when they were given and how long they took, in that order."""
    votes, times = [], defaultdict(list)
    num_words: dict[str, tuple[int, ...]] = {}
    query = (
        select(answers, labelers.c.name, tasks.c.comparison)
        .select_from(answers.join(labelers).join(tasks))
        .order_by(answers.c.answered_at, answers.c.task)
    )
    for row in connection.execute(query):
        if row.task not in num_words:
            comparison = load(Comparison, row.comparison)
            num_words[row.task] = tuple(len(response.text.split()) for response in comparison.responses)
        feedback = load(Feedback, row.feedback)
        votes.append(Vote(task=row.task, person=row.name, feedback=feedback, num_words=num_words[row.task]))
        times[row.name].append((row.answered_at, row.seconds))
    return votes, times


def _person(
    account: Account,
    own: Sequence[Vote],
    given: Sequence[tuple[float, float]],
    gold: Mapping[str, Feedback],
    form: Form | None,
) -> PersonRow:
    met = [vote for vote in own if vote.task in gold and vote.feedback.skipped is None]
    estimate = gold_agreement(own, gold)
    enough = form is not None and len(met) >= form.min_gold
    return PersonRow(
        account=account,
        num_answers=len(own),
        num_skipped=sum(vote.feedback.skipped is not None for vote in own),
        median_seconds=statistics.median(seconds for _, seconds in given[-_RECENT:]) if given else None,
        last_at=given[-1][0] if given else None,
        num_gold=len(met),
        gold=estimate,
        passes=estimate.value >= form.min_agreement if form is not None and enough and estimate else None,
        shown_first=shown_first_preferred(own),
        longer=longer_preferred(own),
    )


# --- for the terminal -------------------------------------------------------------------------------------------------


def lines(found: Overview) -> list[str]:
    """The same in words."""
    text = []
    for row in found.batches:
        when = datetime.fromtimestamp(row.queued_at, UTC).strftime("%Y-%m-%d %H:%M")
        have = f"{row.num_wanted - row.num_missing:,} of {row.num_wanted:,} labels"
        state = "" if row.is_open else ", closed"
        text.append(f"batch {row.id} ({when} UTC): {have} on {row.num_comparisons:,} comparisons{state}")
    for person in found.people:
        parts = [f"{person.num_answers:,} answers", f"{person.num_skipped:,} skipped"]
        if person.median_seconds is not None:
            parts.append(f"{person.median_seconds:.0f} s each")
        for title, estimate in (
            ("with others", found.others.get(person.account.name)),
            ("with gold", person.gold),
            ("first preferred", person.shown_first),
            ("longer preferred", person.longer),
        ):
            if estimate is not None:
                parts.append(f"{title} {_percent(estimate)}")
        parts += ["below the gold cut-off"] * (person.passes is False) + ["set aside"] * (not person.account.is_active)
        text.append(f"{person.account.name}: {', '.join(parts)}")
    for title, estimate in (
        ("alpha of verdicts", found.verdict_alpha),
        ("alpha of ratings", found.rating_alpha),
        ("alpha of flags", found.flag_alpha),
    ):
        if estimate is not None:
            text.append(
                f"{title}: {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}], {estimate.num:,} items"
            )
    return text or ["nothing has been queued"]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
