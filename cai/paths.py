"""Where files that users edit are found: their own folder first, then what the package ships (stdlib only).

A wheel carries conf/, constitutions/ and prompts/ under `cai/shipped/`; in a checkout (or an editable install) they
are the folders beside the package. `./conf`, `./constitutions` and `./prompts` of the current folder come first.
"""

from pathlib import Path

__all__ = ["PACKAGE", "folders", "names", "packaged", "search"]

PACKAGE = Path(__file__).resolve().parent


def packaged(kind: str) -> Path:
    """The shipped folder of `kind` (`conf`, `constitutions` or `prompts`)."""
    shipped = PACKAGE / "shipped" / kind
    return shipped if shipped.is_dir() else PACKAGE.parent / kind


def folders(kind: str) -> tuple[Path, ...]:
    """Existing folders of `kind`, the user's own first; one entry when both are the same folder."""
    own, shipped = Path.cwd() / kind, packaged(kind)
    found = [own] if own.is_dir() and own.resolve() != shipped.resolve() else []
    return (*found, shipped)


def search(kind: str, name: str, suffix: str = "") -> Path | None:
    """The first `<folder>/<name><suffix>` that exists (a file, or a folder when `suffix` is empty), or None."""
    return next((path for folder in folders(kind) if (path := folder / f"{name}{suffix}").exists()), None)


def names(kind: str, suffix: str = "") -> list[str]:
    """Every name that `search` would find, sorted: files ending in `suffix`, or subfolders when it is empty."""
    found: set[str] = set()
    for folder in folders(kind):
        if suffix:
            found |= {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
        elif folder.is_dir():
            found |= {path.name for path in folder.iterdir() if path.is_dir()}
    return sorted(found)
