"""Labelling that survives being killed: judgments go to a journal as they come."""

from collections.abc import Sequence
from pathlib import Path

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
    """
    if isinstance(labeler, Keeper):
        labeler.keep_in(path.parent)
    journal = Journal(path, Judgment)
    judgments = {judgment.id: judgment for judgment in journal.read()}
    ids = list(dict.fromkeys(judgment.comparison_id for judgment in judgments.values()))
    done = frozenset(ids[:-1])
    buffer: list[Judgment] = []
    with progress(title, total=len(comparisons), unit="comparisons") as bar:
        bar_at = len(done)
        bar.advance(bar_at)
        seen = set(done)
        try:
            for judgment in labeler.label(comparisons, done=done):
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
    place = {comparison.id: number for number, comparison in enumerate(comparisons)}
    return sorted(judgments.values(), key=lambda judgment: place[judgment.comparison_id])
