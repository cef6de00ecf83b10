"""Labels that exist already: of people, of another run, of a published dataset."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from cai.datasets.labelled import Labelled, key_of, matching, merged
from cai.datasets.recorded import RECORDS, Recorded
from cai.errors import LabelerError
from cai.labelers.feedback import rearranged
from cai.types import Comparison, Judgment

__all__ = ["RecordedLabeler"]

NOT_RECORDED = "not_recorded"


class RecordedLabeler:
    """Finds each comparison by its texts (dialogue and responses, in any order) in a dataset, and gives the judgments
    recorded there, under the names of those who gave them. `cai.datasets.recorded` says what the settings are.

    Ids are not trusted: runs that sample other responses to a prompt give the comparison the same id. A comparison that
    is not there gets an abstention, `not_recorded`; LabelerError when none is there.
    """

    name = "recorded"

    def __init__(
        self, *, path: str | None, format: str = RECORDS, columns: Mapping[str, str] | None = None,
        screen_pii: bool = False,
    ) -> None:  # fmt: skip
        if path is None:
            raise LabelerError("path: say where the labels are: labeler.path=FILE-OR-FOLDER")
        self._recorded = Recorded(path=path, format=format, columns=columns, screen_pii=screen_pii)
        self._facts: dict[str, float] = {}

    def texts(self) -> dict[str, str]:
        """The digests of the files."""
        return self._recorded.texts()

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """Every recorded judgment of every comparison."""
        loaded = self._recorded.load()
        recorded = {key_of(one.comparison): one for one in merged(loaded.labelled)}
        found = [recorded.get(key_of(comparison)) for comparison in comparisons]
        if comparisons and not any(found):
            raise LabelerError(
                f"{self._recorded.path}: none of the {len(comparisons)} comparisons is among its {len(recorded)}; "
                "to train on the responses that are recorded there, in place of sampled ones: stage@sample=recorded"
            )
        num_missing = sum(one is None or not one.judgments for one in found)
        self._facts = {"num_not_recorded": num_missing, "num_rows_left_out": len(loaded.left_out)}
        for comparison, known in zip(comparisons, found, strict=True):
            if comparison.id not in done:
                yield from _judgments(comparison, known)

    def facts(self) -> dict[str, float]:
        """Comparisons that the dataset does not have, and rows of it that could not be used."""
        return dict(self._facts)


def _judgments(comparison: Comparison, known: Labelled | None) -> Iterator[Judgment]:
    if known is None or not known.judgments:
        yield Judgment(
            id=f"{comparison.id}/0",
            comparison_id=comparison.id,
            labeler=RecordedLabeler.name,
            person="",
            pairs=(),
            abstained=NOT_RECORDED,
        )
        return
    place = matching(known.comparison, comparison)
    for number, judgment in enumerate(known.judgments):
        yield rearranged(judgment, place, comparison_id=comparison.id, number=number)
