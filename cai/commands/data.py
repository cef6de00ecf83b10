"""`cai data import|check|export`: labelled comparisons in, looked at, and out. Loads no torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cai.datasets.export import export
from cai.datasets.folder import write_folder
from cai.datasets.hygiene import thinned
from cai.datasets.recorded import Loaded, Recorded
from cai.datasets.summary import summary
from cai.errors import ConfigError
from cai.records import write_json, write_records

__all__ = ["Source", "check", "export_data", "import_data"]

_NUM_SHOWN = 5  # rows that are named for each reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is read, and how: the options that all three commands share."""

    path: str
    format: str
    columns: Sequence[str] = ()
    tags: Sequence[str] = ()
    dedup_prefix: int | None = None
    max_per_user: int | None = None
    screen_pii: bool = False

    def load(self) -> Loaded:
        """The dataset, thinned out; what that left out is among what is left out."""
        recorded = self._recorded()
        loaded = recorded.load()
        kept, thin = thinned(loaded.labelled, dedup_prefix=self.dedup_prefix, max_per_user=self.max_per_user)
        counts = dict(loaded.counts)
        for one in thin:
            counts[f"left_out_{one.reason}"] = counts.get(f"left_out_{one.reason}", 0) + 1
        left_out = sorted((*loaded.left_out, *thin), key=lambda one: one.row)
        return replace(loaded, labelled=tuple(kept), left_out=tuple(left_out), counts=counts)

    def settings(self) -> dict[str, object]:
        """All of it, as plain JSON, with the digests of the files."""
        return {
            "path": Path(self.path).name,
            "format": self.format,
            "columns": self._columns(),
            "tags": list(self.tags),
            "dedup_prefix": self.dedup_prefix,
            "max_per_user": self.max_per_user,
            "screen_pii": self.screen_pii,
            "files": self._recorded().texts(),
        }

    def _recorded(self) -> Recorded:
        return Recorded(
            path=self.path, format=self.format, columns=self._columns(), tags=self.tags, screen_pii=self.screen_pii
        )

    def _columns(self) -> dict[str, str]:
        for item in self.columns:
            if "=" not in item:
                raise ConfigError(f"--columns: write NAME=COLUMN, the format's name first, got {item!r}")
        return dict(item.split("=", 1) for item in self.columns)


def import_data(source: Source, output: str) -> None:
    """Write a new folder: comparisons.jsonl, judgments.jsonl, left_out.jsonl (row, reason, detail) and import.json."""
    folder = _new(output)
    loaded = source.load()
    write_folder(folder, loaded.labelled)
    write_records(folder / "left_out.jsonl", loaded.left_out)
    counts = {"counts": loaded.counts, "summary": summary(loaded.labelled), "unused_columns": list(loaded.unused)}
    write_json(folder / "import.json", {"source": source.settings(), **counts})
    print(_table(loaded))
    print(folder)


def check(source: Source) -> None:
    """Print what an import would give: numbers, and the rows that cannot be used."""
    print(_table(source.load()))


def export_data(source: Source, output: str, *, test_share: float, keep_even: bool) -> None:
    """Write a dataset folder for TRL and the hub; see `cai.datasets.export`."""
    folder = _new(output)
    loaded = source.load()
    name = Path(source.path).name
    counts = export(loaded.labelled, folder, test_share=test_share, keep_even=keep_even, source=name)
    print(_table(loaded))
    print(_rows(counts))
    print(folder)


def _new(output: str) -> Path:
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists; cai data writes over nothing")
    return folder


def _table(loaded: Loaded) -> str:
    """Numbers, one a line; then every reason with its number, the first rows, and one row's own words."""
    kept = {name: count for name, count in loaded.counts.items() if not name.startswith("left_out_")}
    used = kept["rows"] - len(loaded.left_out)
    parts = [_rows({"rows": kept["rows"], "rows_used": used, **summary(loaded.labelled)})]
    extra = {name: count for name, count in kept.items() if name.startswith(("screened_", "joined_"))}
    parts += [_rows(extra)] if any(extra.values()) else []
    by_reason = defaultdict(list)
    for one in loaded.left_out:
        by_reason[one.reason].append(one)
    for reason, rows in sorted(by_reason.items()):
        first = ", ".join(str(one.row) for one in rows[:_NUM_SHOWN]) + (", ..." if len(rows) > _NUM_SHOWN else "")
        parts.append(f"left out: {reason:<30}{len(rows):>9,}   rows {first}   ({rows[0].row}: {rows[0].detail})")
    if loaded.unused:
        parts.append(f"columns that nothing was read from: {', '.join(loaded.unused)}")
    return "\n".join(parts)


def _rows(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{name.replace('_', ' '):<40}{count:>9,}" for name, count in counts.items() if count)
