"""Where a model is, and what it is made of: checks and digests that need no torch."""

import ast
import hashlib
import importlib.util
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from cai.engines.base import serves_by_name
from cai.errors import ModelError, unknown
from cai.records import digest_file

__all__ = ["DTYPES", "check_device", "check_scorable", "find_model", "model_digest"]

DTYPES: Final = ("float32", "bfloat16", "float16")  # names of the number formats that a model may be loaded in

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_SCORABLE: Final = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def check_device(device: str) -> None:
    """Raise ModelError unless `device` is a name that a device can have; whether this machine has it needs torch."""
    if not _DEVICE.fullmatch(device):
        raise ModelError(unknown("device", device, ["auto", "cpu", "cuda", "cuda:0"]))


def find_model(path: str | Path) -> Path | None:
    """The folder of a model in Hugging Face format, or None when `path` can only be an id on the hub.

    Raises ModelError, with the near match among the folders beside it, for a path that is neither.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            inner = [child.name for child in folder.iterdir() if (child / "config.json").is_file()]
            hint = f"; did you mean {folder / inner[0]}?" if inner else ""
            raise ModelError(f"{folder}: not a model folder, it has no config.json{hint}")
        return folder
    parent = folder.parent
    if folder.exists():
        raise ModelError(f"{folder}: a model is a folder in Hugging Face format, this is a file")
    # A relative path whose folder is here is a slip of the pen; one like org/name whose folder is not, an id.
    if _HUB_ID.fullmatch(str(path)) and (parent == Path() or not parent.is_dir()):
        return None
    configs = [file for pattern in ("*/config.json", "*/*/config.json") for file in parent.glob(pattern)]
    siblings = {file.relative_to(parent).parts[0] for file in configs}
    if not siblings:
        raise ModelError(f"{folder}: no such folder, and no model folder beside it")
    raise ModelError(f"{folder}: {unknown('model folder', folder.name, siblings)}")


def check_scorable(path: str | Path) -> None:
    """Raise ModelError when the model in folder `path` is of a type that cannot become a reward model, because
    transformers has no sequence classification model for it. An id on the hub is not looked at.
    """
    folder = find_model(path)
    if folder is None:
        return
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'}: not a JSON object: {error}") from None
    if kind and kind not in _scorable_types():
        raise ModelError(
            f"{folder}: a model of type {kind!r} cannot become a reward model: transformers has no sequence "
            "classification for this type; take another model, or leave out the steps from 'reward' on"
        )


@lru_cache(maxsize=1)
def _scorable_types() -> frozenset[str]:
    """Keys of the table of transformers, read from its source: to import it takes two seconds, and torch."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _SCORABLE:
            assert isinstance(node.value, ast.Call)
            return frozenset(kind for kind, _ in ast.literal_eval(node.value.args[0]))
    raise ModelError(f"{source}: no {_SCORABLE}; this version of transformers is not supported")


def model_digest(path: str | Path, factory: object = None) -> str:
    """SHA-256 over the names and bytes of a model's files; `hub:ID` for a model that is not on this disk, and
    `served:NAME` for one that the engine `factory` finds on a server.

    The latter is without a commit, which is known only after a download: the first run and the next would differ. Give
    the folder of a download where the commit matters. Hidden files and notes (*.md) do not count.

    Raises ModelError where `find_model` does.
    """
    if serves_by_name(factory):
        return f"served:{path}"
    folder = find_model(path)
    if folder is None:
        return f"hub:{path}"
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not file.is_file() or file.suffix == ".md" or any(part.startswith(".") for part in name.parts):
            continue
        status = file.stat()
        digest = _digest(file, status.st_size, status.st_mtime_ns, status.st_ino)
        total.update(f"{name.as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=1024)
def _digest(file: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Remembered for as long as the file is the same: several stages ask for one model, of gigabytes perhaps."""
    return digest_file(file)
