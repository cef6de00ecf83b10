"""Every error that `cai` raises on purpose; each message is one line: what, where, the value, what is allowed.

* CaiError
  + ConfigError        a key or value of the Hydra configuration
  + ConstitutionError  a constitution file (names file, line and key)
  + PromptError        a prompt template
  + DataError          a dataset or record file (names file and line)
  + ModelError         a model folder, tokenizer or checkpoint
  + EngineError        generation or option log-probabilities
  + LabelerError       a labeler cannot give what was asked of it
    + LabelsMissing    people have not labelled enough yet; the same command goes on once they have
  + StoreError         the store of stage outputs
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar, Final

__all__ = [
    "CaiError",
    "ConfigError",
    "ConstitutionError",
    "DataError",
    "EngineError",
    "LabelerError",
    "LabelsMissing",
    "ModelError",
    "PromptError",
    "StoreError",
    "unknown",
]


_MANY: Final = 12  # allowed names, of which one line is not too long
_SHOWN: Final = 8  # of more than that, beside the nearest


class CaiError(Exception):
    """Base of all errors whose message is meant for the user; the command line prints it and exits with `exit_code`."""

    exit_code: ClassVar[int] = 2


class ConfigError(CaiError):
    """A key or value of the configuration is wrong."""


class ConstitutionError(CaiError):
    """A constitution file is wrong."""


class PromptError(CaiError):
    """A prompt template is wrong, or was given the wrong variables."""


class DataError(CaiError):
    """A dataset or record file is wrong."""


class ModelError(CaiError):
    """A model folder, tokenizer or checkpoint is wrong."""


class EngineError(CaiError):
    """An engine cannot do what was asked; `prompt` is the place of the prompt that it cannot be done for, if one is."""

    def __init__(self, message: str, *, prompt: int | None = None) -> None:
        super().__init__(message)
        self.prompt = prompt


class LabelerError(CaiError):
    """A labeler cannot do what was asked."""


class LabelsMissing(LabelerError):
    """Nothing is wrong: a run waits for people. What was computed is kept."""

    exit_code: ClassVar[int] = 3


class StoreError(CaiError):
    """The store of stage outputs is damaged or cannot be used."""


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """One line that says `name` is unknown, with the nearest known name and the allowed ones: all of them, or the
    nearest where there are many and one is near.

    >>> unknown("labeler", "simulted", ["ai", "simulated"])
    "unknown labeler 'simulted'; did you mean 'simulated'? Allowed: ai, simulated"
    """
    names = sorted(str(k) for k in known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    shown = names if len(names) <= _MANY or not near else sorted(get_close_matches(str(name), names, _SHOWN + 1, 0.0))
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"unknown {what} {str(name)!r}{hint} Allowed: {', '.join(shown) or 'none'}{more}"
