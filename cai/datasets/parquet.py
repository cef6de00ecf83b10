"""Parquet files: preferences for TRL; and all that is known, a row per judgment with its comparison beside it.

Of the latter, what tables are asked about has columns of its own, with types. What has no fixed shape (templates,
evidence) and what a person said (feedback) is JSON in a text column. A comparison without a judgment has a row too.
"""

import json
import os
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.codec import field_names, from_json, to_json
from cai.datasets.labelled import Labelled
from cai.datasets.rows import Unusable, read_file
from cai.errors import DataError
from cai.types import Comparison, Judgment, Pair, Provenance, Response, Turn

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_parquet", "write_parquet", "write_preferences"]


def write_parquet(path: Path, labelled: Iterable[Labelled]) -> None:
    """Write all that is known of the comparisons, atomically."""
    _write_table(path, list(_rows(labelled)), _schema())


def write_preferences(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows in TRL's preference format, with whatever further columns the first one has, atomically."""
    import pyarrow as pa

    text, real = pa.string(), pa.float64()
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    types = {"prompt": messages, "chosen": messages, "rejected": messages, "tags": pa.list_(text)}
    types |= dict.fromkeys(("p_chosen", "weight", "margin"), real)
    _write_table(path, rows, pa.schema([(name, types.get(name, text)) for name in rows[0]]))


def _write_table(path: Path, rows: Sequence[dict[str, Any]], schema: "pa.Schema") -> None:
    """Write rows under `schema`; DataError where the disk or a text does not allow it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
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

    text, texts = pa.string(), pa.list_(pa.string())
    columns = {
        "comparison_id": text, "prompt_id": text, "turns": _structs(Turn), "tags": texts, "source": text, "user": text,
        "responses": _structs(Response), "judgment_id": text, "labeler": text, "person": text, "pairs": _structs(Pair),
        "abstained": text, "principle_ids": texts, "templates": text, "evidence": text, "feedback": text,
        **{field.name: field.type for field in _structs(Provenance).value_type},
    }  # fmt: skip
    return pa.schema(list(columns.items()))


def _structs(cls: type) -> "pa.ListType":
    """The Arrow type of a list of plain records."""
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    plain = {
        name: next(arg for arg in (typing.get_args(hint) or (hint,)) if arg in types)
        for name, hint in typing.get_type_hints(cls).items()
    }
    return pa.list_(pa.struct([(name, types[hint]) for name, hint in plain.items()]))


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
