"""Texts of models and people, made safe to show (stdlib only)."""

from typing import Final

__all__ = ["visible"]

# Control characters and marks that turn the direction of text: shown, never obeyed.
_CONTROL: Final = (*range(9), *range(11, 32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE: Final = dict.fromkeys(_CONTROL, "\ufffd")


def visible(text: object) -> str:
    """A text with a replacement character for everything that a page or a terminal would obey."""
    return str(text).translate(_VISIBLE)
