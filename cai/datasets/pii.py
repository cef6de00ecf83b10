"""A screen for personal data: what looks like an e-mail address, a number of a card, ... becomes a tag.

It is a screen and no guarantee: it knows forms, not names, addresses or context. Numbers with a checksum (card: Luhn;
IBAN: ISO 13616, mod 97) or with forbidden ranges (US social security) are checked, so that few others are changed.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import Final

__all__ = ["KINDS", "screen"]


def _luhn(text: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return 13 <= len(digits) <= 19 and (sum(digits[::2]) + sum(doubled)) % 10 == 0 and any(digits)


def _iban(text: str) -> bool:
    """ISO 13616: the first four characters go to the end, letters are 10 to 35, and the number is 1 modulo 97."""
    plain = "".join(text.split())
    moved = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _address(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    written = len(text) - text.count(":") > 3 and any(c.isdigit() for c in text)  # a::b is rather C++
    return written and not (found.is_loopback or found.is_unspecified)


def _phone(text: str) -> bool:
    return 7 <= sum(c.isdigit() for c in text) <= 15  # ITU-T E.164: at most 15


def _always(text: str) -> bool:
    return True


_EMAIL: Final = r"(?<![\w.+-])[\w.+%-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}(?!\w)"
_IBAN: Final = r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"
_CARD: Final = r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)"
_SSN: Final = r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"
_IP: Final = (
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]|\.\d))"
)
_PHONE: Final = (
    r"(?<![\w.+-])(?:"
    r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}"  # +44 20 7946 0958
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # (202) 555-0143
    r")(?![\w-]|\.\d)"
)

# In this order: what one kind has taken is not looked at by the next.
_SCREENS: Final[tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...]] = (
    ("email", re.compile(_EMAIL), _always),
    ("iban", re.compile(_IBAN), _iban),
    ("card", re.compile(_CARD), _luhn),
    ("ssn", re.compile(_SSN), _always),
    ("ip", re.compile(_IP), _address),
    ("phone", re.compile(_PHONE), _phone),
)

KINDS: Final = tuple(kind for kind, _, _ in _SCREENS)


def screen(text: str) -> tuple[str, Counter[str]]:
    """The text with a tag for everything found (`<email>`, `<card>`, ...), and how many of each kind.

    >>> screen("Write to ada@example.org, or call +44 20 7946 0958.")[0]
    'Write to <email>, or call <phone>.'
    """
    found: Counter[str] = Counter()
    for kind, pattern, holds in _SCREENS:

        def tag(match: re.Match[str], kind: str = kind, holds: Callable[[str], bool] = holds) -> str:
            if not holds(match[0]):
                return match[0]
            found[kind] += 1
            return f"<{kind}>"

        text = pattern.sub(tag, text)
    return text, found
