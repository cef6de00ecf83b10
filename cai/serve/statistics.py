"""What the answers of people say about them: agreement, bias by position and by length, and how they meet gold items.

Intervals are 95 % and come from drawing comparisons again with everything said about them, since the pairs of one
ranking are not independent (Wilson's where events are few); those of ratings from Krippendorff's own bootstrap.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Final

from cai.report.agreement import alpha_of, alpha_table, kappa_of, kappa_table
from cai.report.resampling import mean_table
from cai.report.statistics import Bootstrap, Estimate
from cai.types import Feedback

__all__ = [
    "Pairing",
    "Vote",
    "alpha",
    "flag_alpha",
    "gold_agreement",
    "longer_preferred",
    "pairings",
    "rating_alpha",
    "shown_first_preferred",
    "verdicts",
    "with_others",
]

_NUM_DRAWS: Final = 2000
_FIRST, _TIE, _SECOND = 0, 1, 2  # categories of a verdict on two responses
_RESAMPLES: Final = 2000

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one person said about one task; `num_words` goes by response."""

    task: str
    person: str
    feedback: Feedback
    num_words: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Two people who judged the same responses: how often they said the same, and Cohen's kappa."""

    first: str
    second: str
    raw: Estimate
    kappa: Estimate | None


def verdicts(feedback: Feedback) -> dict[Pair, int]:
    """0, 1 or 2 for each two responses that were ranked: the first is better, tie, the second is better."""
    place = {index: group for group, members in enumerate(feedback.ranking) for index in members}
    found = {}
    for i, j in combinations(sorted(place), 2):
        found[(i, j)] = _TIE if place[i] == place[j] else _FIRST if place[i] < place[j] else _SECOND
    return found


# --- agreement --------------------------------------------------------------------------------------------------------


def pairings(votes: Sequence[Vote], *, most: int) -> tuple[list[Pairing], int]:
    """Of two people with verdicts on the same two responses: those `most` pairs of people that have the most in common,
    in that order, and how many more there are.
    """
    said: dict[str, dict[tuple[str, Pair], int]] = defaultdict(dict)
    for vote in votes:
        said[vote.person] |= {(vote.task, pair): verdict for pair, verdict in verdicts(vote.feedback).items()}
    shared = {(a, b): sorted(said[a].keys() & said[b].keys()) for a, b in combinations(sorted(said), 2)}
    ranked = sorted((people for people, keys in shared.items() if keys), key=lambda people: -len(shared[people]))
    bootstrap = Bootstrap(num_draws=_NUM_DRAWS)
    found = []
    for first, second in ranked[:most]:
        keys = shared[(first, second)]
        tasks = [task for task, _ in keys]
        a, b = [said[first][key] for key in keys], [said[second][key] for key in keys]
        raw = bootstrap.estimate([mean_table(0, tasks, [float(x == y) for x, y in zip(a, b, strict=True)])])
        kappa = bootstrap.estimate([kappa_table(0, tasks, a, b, num_categories=3)], kappa_of)
        assert raw is not None  # there is something to count
        found.append(Pairing(first=first, second=second, raw=raw, kappa=kappa))
    return found, max(0, len(ranked) - most)


def with_others(votes: Sequence[Vote]) -> dict[str, Estimate]:
    """By person: how often their verdict on two responses is that of somebody else on the same two."""
    items: dict[tuple[str, Pair], dict[str, int]] = defaultdict(dict)
    for vote in votes:
        for pair, verdict in verdicts(vote.feedback).items():
            items[(vote.task, pair)][vote.person] = verdict
    rows: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (task, _), said in sorted(items.items()):
        for person, other in permutations(said, 2):
            rows[person].append((task, float(said[person] == said[other])))
    return {person: estimate for person, found in rows.items() if (estimate := _rate(found)) is not None}


def alpha(votes: Sequence[Vote]) -> Estimate | None:
    """Krippendorff's nominal alpha of the verdicts on two responses, over everybody; None without two on one item."""
    items: dict[tuple[str, Pair], list[int]] = defaultdict(list)
    for vote in votes:
        for pair, verdict in verdicts(vote.feedback).items():
            items[(vote.task, pair)].append(verdict)
    return _alpha([(task, labels) for (task, _), labels in sorted(items.items())], 3)


def flag_alpha(votes: Sequence[Vote], names: Iterable[str]) -> Estimate | None:
    """The same of the yes/no questions, each of each response an item."""
    names = tuple(names)
    items: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for vote in votes:
        for index, flags in enumerate(vote.feedback.flags):
            for name in names:
                items[(vote.task, index, name)].append(int(name in flags))
    return _alpha([(task, labels) for (task, _, _), labels in sorted(items.items())], 2)


def _alpha(items: Sequence[tuple[str, list[int]]], num_categories: int) -> Estimate | None:
    table = alpha_table(0, [t for t, _ in items], [labels for _, labels in items], num_categories=num_categories)
    return Bootstrap(num_draws=_NUM_DRAWS).estimate([table], alpha_of) if table.num else None


def rating_alpha(votes: Sequence[Vote]) -> Estimate | None:
    """Krippendorff's ordinal alpha of the ratings from 1 to 7; None without two on one response."""
    rows: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    for vote in votes:
        rows[vote.person] |= {(vote.task, i): rating for i, rating in enumerate(vote.feedback.ratings) if rating}
    items = sorted({item for row in rows.values() for item in row})
    shared = [item for item in items if sum(item in row for row in rows.values()) > 1]
    if not shared:
        return None
    if len({row[item] for row in rows.values() for item in shared if item in row}) < 2:
        return None  # all ratings are the same: chance explains everything
    import evalica
    import pandas

    data = pandas.DataFrame([[row.get(item, float("nan")) for item in shared] for row in rows.values()])
    found = evalica.alpha_bootstrap(data, "ordinal", n_resamples=_RESAMPLES, random_state=0)
    return Estimate(
        value=found.alpha,
        low=found.low,
        high=found.high,
        num=len(shared),
        num_prompts=len({task for task, _ in shared}),
        method="krippendorff",
    )


# --- one person -------------------------------------------------------------------------------------------------------


def gold_agreement(votes: Sequence[Vote], gold: Mapping[str, Feedback]) -> Estimate | None:
    """How often the verdict on two responses is the expert's (first, tie or second), over gold items that the person
    did not skip.
    """
    rows: list[tuple[str, float]] = []
    for vote in votes:
        if vote.task in gold:
            expected, said = verdicts(gold[vote.task]), verdicts(vote.feedback)
            rows += [(vote.task, float(said[pair] == expected[pair])) for pair in said.keys() & expected.keys()]
    return _rate(rows)


def shown_first_preferred(votes: Sequence[Vote]) -> Estimate | None:
    """How often the response that stood earlier is the better one, of verdicts that are no tie: 1/2 without bias."""
    rows = []
    for vote in votes:
        place = {index: position for position, index in enumerate(vote.feedback.shown)}
        for (i, j), verdict in verdicts(vote.feedback).items():
            if verdict != _TIE:
                better, worse = (i, j) if verdict == _FIRST else (j, i)
                rows.append((vote.task, float(place[better] < place[worse])))
    return _rate(rows)


def longer_preferred(votes: Sequence[Vote]) -> Estimate | None:
    """How often the response with more words is the better one, of verdicts that are no tie on different lengths."""
    rows = []
    for vote in votes:
        for (i, j), verdict in verdicts(vote.feedback).items():
            difference = vote.num_words[i] - vote.num_words[j]
            if verdict != _TIE and difference:
                rows.append((vote.task, float((verdict == _FIRST) == (difference > 0))))
    return _rate(rows)


def _rate(rows: Sequence[tuple[str, float]]) -> Estimate | None:
    if not rows:
        return None
    table = mean_table(0, [task for task, _ in rows], [hit for _, hit in rows])
    return Bootstrap(num_draws=_NUM_DRAWS).estimate([table])
