"""Labelling that survives being killed: judgments go to a journal as they come."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from cai.errors import LabelerError
from cai.labelers.base import Keeper, Labeler
from cai.progress import progress
from cai.records import Journal
from cai.types import Comparison, Judgment

__all__ = ["label_journaled"]

_BUFFER = 256  # judgments per write and fsync


def label_journaled(labeler: Labeler, comparisons: Sequence[Comparison], path: Path, *, title: str) -> list[Judgment]:
    """Every judgment of every comparison, in the order of `comparisons`, going on from the journal at `path`.

    The journal may hold the first judgment of its last comparison and not the second, so that comparison is judged
    again and only what is missing is added. A labeler that asks a server keeps its single answers beside it.

    Raises LabelerError, with what is good in the journal, for a judgment that cannot be one: of a comparison that was
    not asked about, under an id given before, or with pairs that make no sense; and when a comparison got none.
    """
    if isinstance(labeler, Keeper):
        labeler.keep_in(path.parent)
    asked = {comparison.id: comparison for comparison in comparisons}
    journal = Journal(path, Judgment)
    judgments = {judgment.id: judgment for judgment in journal.read()}
    ids = list(dict.fromkeys(judgment.comparison_id for judgment in judgments.values()))
    done = frozenset(ids[:-1])
    buffer: list[Judgment] = []
    with progress(title, total=len(comparisons), unit="comparisons") as bar:
        bar_at = len(done)
        bar.advance(bar_at)
        seen, given = set(done), set[str]()
        try:
            for judgment in labeler.label(comparisons, done=done):
                if problem := _problem(judgment, asked.get(judgment.comparison_id), given):
                    raise LabelerError(f"labeler {labeler.name!r}: judgment {judgment.id!r} {problem}")
                given.add(judgment.id)
                seen.add(judgment.comparison_id)
                if judgment.id not in judgments:
                    judgments[judgment.id] = judgment
                    buffer.append(judgment)
                if len(buffer) == _BUFFER:
                    journal.append(buffer)
                    # Judgments come in bursts; a bar that followed each would think the first one took all the time.
                    bar.advance(len(seen) - bar_at)
                    bar_at, buffer = len(seen), []
        finally:  # also when the labeler cannot go on now, as one that waits for people
            journal.append(buffer)
        bar.advance(len(seen) - bar_at)
    if unjudged := [name for name in asked if name not in seen]:
        raise LabelerError(
            f"labeler {labeler.name!r}: gave no judgment of {len(unjudged)} of {len(asked)} comparisons, the first "
            f"{unjudged[0]!r}; one without a verdict is an abstention"
        )
    place = {comparison.id: number for number, comparison in enumerate(comparisons)}
    return sorted(judgments.values(), key=lambda judgment: place[judgment.comparison_id])


def _problem(judgment: Judgment, comparison: Comparison | None, given: Collection[str]) -> str | None:
    """What is wrong with a judgment of `comparison`, if anything; `given` are the ids of those before it."""
    if comparison is None:
        return f"is of comparison {judgment.comparison_id!r}, which was not asked about"
    if judgment.id in given:
        return "has an id that was given before; each needs its own"
    if bool(judgment.pairs) == (judgment.abstained is not None):
        return f"has {len(judgment.pairs)} pairs and abstained {judgment.abstained!r}; it must have just one of them"
    size = len(comparison.responses) + (judgment.feedback is not None and judgment.feedback.corrected is not None)
    for pair in judgment.pairs:
        if not (0 <= pair.first < size and 0 <= pair.second < size and pair.first != pair.second):
            return f"has the pair {pair.first}, {pair.second}; indices must be two different ones below {size}"
        if not (0 <= pair.p <= 1 and 0 < pair.weight < math.inf and 0 <= pair.margin < math.inf):
            return f"has {pair}; p must be in [0, 1], weight above 0 and margin 0 or more"
    return None
