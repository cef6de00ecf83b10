"""The rows of a dataset file, whatever its kind: JSONL, JSON, CSV, TSV, Parquet; all but Parquet may be gzipped.

A row that cannot be read is given as `Unusable`, with its number: to leave it out or to stop is for others to decide.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

from cai.codec import shown
from cai.errors import DataError

__all__ = ["Row", "Unusable", "read_file"]

Row = Mapping[str, Any]

_MAX_CELL: Final = 2**31 - 1  # characters; csv stops at 131,072 unless told


class Unusable(Exception):
    """A row cannot serve. `reason` is one of few, to count by; `detail` is about this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def read_file(path: Path) -> Iterator[tuple[int, Row | Unusable]]:
    """(number, row) of every row that is not blank. The number is the line of JSONL, else counts rows from 1.

    The name says the kind (.jsonl, .json, .csv, .tsv, .parquet; JSONL for any other), the first bytes whether it is
    gzipped. Raises DataError for a file that cannot be read as a whole.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers = {".csv": _csv_rows, ".tsv": _tsv_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    try:
        yield from readers.get(kind, _jsonl_rows)(path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path) if packed else path.open("rb"))


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row | Unusable]]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, _object(json.loads(line))
                except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
                    yield number, Unusable("not_json", str(error))


def _json_rows(path: Path) -> Iterator[tuple[int, Row | Unusable]]:
    with _opened(path) as file:
        try:
            rows = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: must be a list of rows, got {shown(rows)} (one row a line is .jsonl)")
    for number, row in enumerate(rows, start=1):
        yield number, _object(row)


def _tsv_rows(path: Path) -> Iterator[tuple[int, Row | Unusable]]:
    """Cells between tabs, as they stand: a quotation mark means nothing."""
    return _csv_rows(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _csv_rows(
    path: Path, delimiter: str = ",", quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Iterator[tuple[int, Row | Unusable]]:
    csv.field_size_limit(_MAX_CELL)
    with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, quoting=quoting)
        names = next(rows, [])
        if len(set(names)) < len(names) or not names:
            raise DataError(f"{path}:1: the first line must name the columns, each once, got {shown(names)}")
        for number, cells in enumerate((cells for cells in rows if cells), start=1):
            if len(cells) == len(names):
                yield number, dict(zip(names, cells, strict=True))
            else:
                yield number, Unusable("wrong_number_of_cells", f"{len(cells)} cells for {len(names)} columns")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row | Unusable]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _object(value: object) -> Row | Unusable:
    return value if isinstance(value, dict) else Unusable("not_an_object", shown(value))
