"""What a stage is: settings in its constructor, files in, files out."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

__all__ = ["Stage"]


@runtime_checkable
class Stage(Protocol):
    """One step of the recipe. Instances are cheap: nothing is loaded before `run`.

    `version` is raised whenever the same settings would give other output; it is part of the fingerprint.
    """

    version: ClassVar[int]

    def texts(self) -> dict[str, str]:
        """Hashes of the files (constitution, templates, data, base model) that the output depends on."""
        ...

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Read the folders in `inputs`, write the folder `output`, return facts (tokens, flops, counts, ...).

        `output` exists and may hold journals of an earlier, interrupted call with the same fingerprint: go on from
        there. It becomes visible under its final name only after `run` returns.
        """
        ...
