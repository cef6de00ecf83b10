"""`cai constitution check|import` and `cai init`: the files that users edit. Loads no torch."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from cai import constitution, paths
from cai.errors import ConfigError, ConstitutionError

__all__ = ["check", "import_constitution", "init"]


def check(names: Sequence[str]) -> None:
    """Print `ok` or every problem of each constitution; raise when there was a problem."""
    wrong = 0
    for name in names or paths.names("constitutions", ".yaml"):
        problems = constitution.check(name)
        wrong += bool(problems)
        print("\n".join(problems) if problems else f"{name}: ok")
    if wrong:
        raise ConstitutionError(f"{wrong} of the constitutions checked {'has' if wrong == 1 else 'have'} problems")


def import_constitution(source: str, dest: str) -> None:
    """Write the YAML of a published JSON constitution."""
    from cai.constitution_import import import_file

    print(import_file(Path(source), Path(dest)))


def init(folder: str) -> None:
    """Copy conf/, constitutions/ and prompts/ into `folder`; nothing that is there is written over."""
    kinds = ("conf", "constitutions", "prompts")
    for kind in kinds:
        if (Path(folder) / kind).exists():
            raise ConfigError(f"{Path(folder) / kind}: exists; cai init writes over nothing")
    for kind in kinds:
        shutil.copytree(paths.packaged(kind), Path(folder) / kind)
    print(f"{folder}: conf/, constitutions/ and prompts/ are yours to edit; run cai there")
