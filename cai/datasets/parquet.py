"""Labelled comparisons in one Parquet file, nothing left out: a row per judgment, with its comparison beside it.

What tables are asked about has columns of its own, with types; what has no fixed shape (templates, evidence) and what
a person said (feedback) is JSON in a text column. A comparison without a judgment has one row too.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.codec import field_names, from_json, to_json
from cai.datasets.labelled import Labelled
from cai.datasets.rows import Unusable, read_file
from cai.errors import DataError
from cai.types import Comparison, Judgment, Provenance

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_parquet", "write_parquet"]


def write_parquet(path: Path, labelled: Iterable[Labelled]) -> None:
    """Write the file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(_rows(labelled)), schema=_schema()), temporary)
        os.replace(temporary, path)
    except (OSError, UnicodeEncodeError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from None


def read_parquet(path: Path) -> list[Labelled]:
    """What `write_parquet` wrote. Raises DataError for another Parquet file."""
    found: list[Labelled] = []
    for number, row in read_file(path):
        where = f"{path}:{number}"
        if isinstance(row, Unusable) or "comparison_id" not in row or "judgment_id" not in row:
            raise DataError(f"{where}: this Parquet file is not of labelled comparisons; say its format")
        comparison = from_json(Comparison, _comparison(row), where)
        judgments = (from_json(Judgment, _judgment(row), where),) if row["judgment_id"] is not None else ()
        if found and found[-1].comparison == comparison:
            judgments = (*found.pop().judgments, *judgments)
        found.append(Labelled(comparison=comparison, judgments=judgments, rows=(len(found) + 1,)))
    return found


def _schema() -> "pa.Schema":
    import pyarrow as pa

    def objects(**fields: pa.DataType) -> pa.DataType:
        return pa.list_(pa.struct(list(fields.items())))

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    turns = objects(role=text, content=text)
    responses = objects(
        id=text, prompt_id=text, text=text, model=text, num_tokens=whole, finished=pa.bool_(), failed=text
    )
    pairs = objects(first=whole, second=whole, p=real, weight=real, margin=real)
    columns = {
        "comparison_id": text, "prompt_id": text, "turns": turns, "tags": pa.list_(text), "source": text, "user": text,
        "responses": responses, "judgment_id": text, "labeler": text, "person": text, "pairs": pairs,
        "abstained": text, "principle_ids": pa.list_(text), "templates": text, "evidence": text, "feedback": text,
        "labeled_at": text, "seconds": real, "prompt_tokens": whole, "new_tokens": whole, "cost": real,
        "num_attempts": whole, "mode": text,
    }  # fmt: skip
    return pa.schema(list(columns.items()))


def _rows(labelled: Iterable[Labelled]) -> Iterator[dict[str, Any]]:
    for one in labelled:
        prompt = one.comparison.prompt
        shared = {
            "comparison_id": one.comparison.id,
            "prompt_id": prompt.id,
            "turns": [to_json(turn) for turn in prompt.turns],
            "tags": list(prompt.tags),
            "source": prompt.source,
            "user": prompt.user,
            "responses": [to_json(response) for response in one.comparison.responses],
        }
        yield from ({**shared, **_columns(judgment)} for judgment in one.judgments)
        if not one.judgments:
            yield shared


def _columns(judgment: Judgment) -> dict[str, Any]:
    plain = to_json(judgment)
    pairs = [{"weight": 1.0, "margin": 0.0, **pair} for pair in plain["pairs"]]
    same = {name: plain[name] for name in ("labeler", "person", "abstained", "principle_ids")}
    as_json = {name: json.dumps(plain[name]) for name in ("templates", "evidence", "feedback") if name in plain}
    return {**same, **as_json, **plain.get("provenance", {}), "judgment_id": judgment.id, "pairs": pairs}


def _comparison(row: Any) -> dict[str, Any]:
    prompt = {name: row[name] for name in ("turns", "tags", "source", "user")}
    return {
        "id": row["comparison_id"],
        "prompt": {"id": row["prompt_id"], **prompt},
        "responses": row["responses"],
    }


def _judgment(row: Any) -> dict[str, Any]:
    same = {name: row[name] for name in ("comparison_id", "labeler", "person", "pairs", "abstained", "principle_ids")}
    as_json = {name: json.loads(row[name]) for name in ("templates", "evidence", "feedback") if row[name] is not None}
    given = {} if row["labeled_at"] is None else {"provenance": {name: row[name] for name in field_names(Provenance)}}
    return {"id": row["judgment_id"], **same, **as_json, **given}
