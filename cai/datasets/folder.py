"""The format `records`: comparisons and judgments as this project writes them, in a folder or a Parquet file.

A folder of `cai data import` or `export`, a run folder (its sampled comparisons and its labels), or one Parquet file.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cai.datasets.labelled import Labelled
from cai.datasets.parquet import read_parquet
from cai.errors import DataError
from cai.records import read_json, read_records, write_records
from cai.types import Comparison, Judgment

__all__ = ["PARQUET", "files_of", "read_folder", "write_folder"]

COMPARISONS: Final = "comparisons.jsonl"
JUDGMENTS: Final = "judgments.jsonl"
PARQUET: Final = "records.parquet"


def files_of(path: Path) -> list[Path]:
    """The files that `read_folder(path)` reads: a Parquet file, or comparisons and judgments."""
    if path.suffix == ".parquet" and path.is_file():
        return [path]
    if path.name == JUDGMENTS:
        path = path.parent  # ids alone do not say which texts were judged: the comparisons are needed too
    if (path / PARQUET).is_file():
        return [path / PARQUET]
    run = path / "run.json"
    files = _of_run(run) if run.is_file() else [path / COMPARISONS, path / JUDGMENTS]
    for file in files:
        if not file.is_file():
            arms = sorted(f.parent.name for f in path.glob("*/run.json")) if path.is_dir() else []
            hint = f"; it has the arms {', '.join(arms)}: take one of them" if arms else ""
            raise DataError(
                f"{path}: has no {file.name}{hint}. Records are a run folder, {PARQUET}, or a folder with "
                f"{COMPARISONS} and {JUDGMENTS}; for another file say its format"
            )
    return files


def _of_run(path: Path) -> list[Path]:
    stages = read_json(path).get("stages", {})
    missing = [name for name in ("sample", "label") if name not in stages]
    if missing:
        raise DataError(f"{path}: the run has no stage {missing[0]!r}, so no labelled comparisons")
    return [Path(stages["sample"]["path"]) / COMPARISONS, Path(stages["label"]["path"]) / JUDGMENTS]


def read_folder(path: Path) -> list[Labelled]:
    """All comparisons with their judgments, as they were written; rows are numbered from 1. Raises DataError."""
    files = files_of(path)
    if len(files) == 1:
        return read_parquet(files[0])
    comparisons = read_records(files[0], Comparison)
    judgments: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in read_records(files[1], Judgment):
        judgments[judgment.comparison_id].append(judgment)
    found = [
        Labelled(comparison=one, judgments=tuple(judgments.pop(one.id, ())), rows=(row,))
        for row, one in enumerate(comparisons, start=1)
    ]
    if judgments:
        name = next(iter(judgments))
        raise DataError(f"{files[1]}: there is no comparison {name!r}, of which it has a judgment, in {files[0]}")
    return found


def write_folder(path: Path, labelled: Iterable[Labelled]) -> None:
    """Write comparisons.jsonl and judgments.jsonl."""
    labelled = list(labelled)
    write_records(path / COMPARISONS, (one.comparison for one in labelled))
    write_records(path / JUDGMENTS, (judgment for one in labelled for judgment in one.judgments))
