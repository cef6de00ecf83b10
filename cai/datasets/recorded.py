"""A dataset of comparisons that come with their labels, read from wherever it is: every row is used, or listed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cai.datasets.folder import files_of, read_folder
from cai.datasets.formats import FORMATS
from cai.datasets.hygiene import screened
from cai.datasets.labelled import Labelled, labelled_of, merged
from cai.datasets.pii import KINDS, screen
from cai.datasets.rows import Unusable, read_file
from cai.errors import ConfigError, DataError, unknown
from cai.records import digest_file
from cai.types import LeftOut

__all__ = ["RECORDS", "Loaded", "Recorded"]

RECORDS: Final = "records"  # the format that this project writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """`counts`: rows (each in a comparison or left out), comparisons, judgments, dialogues whose neighbouring turns
    were joined, and what was screened. `unused` are columns of the file that nothing was read from.
    """

    labelled: tuple[Labelled, ...]
    left_out: tuple[LeftOut, ...]
    counts: dict[str, int]
    unused: tuple[str, ...] = ()


class Recorded:
    """The file or folder `path` in `format`: argilla, hh, label_studio, plain, ratings, records or trl.

    `columns` gives names that columns have in the file, by the names that the format uses (`cai.datasets.formats`).
    Prompts are tagged with `tags`, and with those of their row. `screen_pii` replaces what looks like personal data
    (`cai.datasets.pii`). Rows with the same dialogue and responses are one comparison with several judgments.
    """

    def __init__(
        self, *, path: str, format: str = RECORDS, columns: Mapping[str, str] | None = None, tags: Sequence[str] = (),
        screen_pii: bool = False,
    ) -> None:  # fmt: skip
        self.path = Path(path).expanduser()
        if format not in (*FORMATS, RECORDS):
            raise ConfigError(f"format: {unknown('format', format, (*FORMATS, RECORDS))}")
        known = FORMATS[format].columns if format in FORMATS else ()
        for name in columns or {}:
            if name not in known:
                raise ConfigError(f"columns: {unknown(f'column of format {format}', name, known)}")
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file or folder")
        if self.path.is_dir() and format != RECORDS:
            raise DataError(f"{self.path}: is a folder; format {format} is a file")
        self._format = format
        self._columns = dict(columns or {})
        self._tags = tuple(tags)
        self._screen = screen_pii

    def texts(self) -> dict[str, str]:
        """The digests of the files."""
        files = files_of(self.path) if self._format == RECORDS else [self.path]
        return {f"{self._format}/{file.name}": digest_file(file) for file in files}

    def load(self) -> Loaded:
        """All of it, in the order of the rows. Raises DataError where no row can be used, with the first reasons."""
        counts: Counter[str] = Counter(rows=0)
        left_out: list[LeftOut] = []
        unused: dict[str, None] = {}
        found: list[Labelled] = []
        names: dict[str, str] = {}
        for row, read in self._rows(counts, unused):
            counts["rows"] += 1
            try:
                found.append(self._screened(read, counts, names) if isinstance(read, Labelled) else _raised(read))
            except Unusable as problem:
                detail = screen(problem.detail)[0] if self._screen else problem.detail
                left_out.append(LeftOut(row=row, reason=problem.reason, detail=detail))
        if not found:
            first = f": row {left_out[0].row}: {left_out[0].reason}: {left_out[0].detail}" if left_out else ""
            raise DataError(f"{self.path}: none of its {counts['rows']} rows can be used{first}")
        together = found if self._format == RECORDS else merged(found)
        counts["comparisons"] = len(together)
        counts["judgments"] = sum(len(one.judgments) for one in together)
        counts.update(f"left_out_{one.reason}" for one in left_out)
        return Loaded(labelled=tuple(together), left_out=tuple(left_out), counts=dict(counts), unused=tuple(unused))

    def _rows(self, counts: Counter[str], unused: dict[str, None]) -> Iterator[tuple[int, Labelled | Unusable]]:
        """(number, what came of it) of every row."""
        if self._format == RECORDS:
            yield from ((one.rows[0], self._tagged(one)) for one in read_folder(self.path))
            return
        form, counts["joined_turns"] = FORMATS[self._format], 0
        known = {self._columns.get(name, name) for name in form.columns}
        for number, row in read_file(self.path):
            if isinstance(row, Unusable):
                yield number, row
                continue
            unused.update(dict.fromkeys(str(name) for name in row if name not in known))
            try:
                draft = form.read(row, self._columns)
                source = f"{self.path.name}:{number}"
                yield number, labelled_of(draft, number, prefix=self._format, source=source, tags=self._tags)
                counts["joined_turns"] += draft.joined
            except Unusable as problem:
                yield number, problem

    def _tagged(self, one: Labelled) -> Labelled:
        prompt = one.comparison.prompt
        tags = (*prompt.tags, *(tag for tag in self._tags if tag not in prompt.tags))
        return replace(one, comparison=replace(one.comparison, prompt=replace(prompt, tags=tags)))

    def _screened(self, one: Labelled, counts: Counter[str], names: dict[str, str]) -> Labelled:
        if not self._screen:
            return one
        clean, kinds = screened(one, names)
        counts["screened_rows"] += bool(kinds)
        counts.update({f"screened_{kind}": kinds[kind] for kind in KINDS})
        return clean


def _raised(problem: Unusable) -> Labelled:
    raise problem
