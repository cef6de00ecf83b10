"""How many prompts each set of a data source gets: checked before anything is read."""

from collections.abc import Mapping
from typing import Final

from cai.errors import ConfigError

__all__ = ["check_sizes"]

_MAY_BE_EMPTY: Final = "num_demonstrations"  # scores then have the mean of the policy's own samples at 0


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise ConfigError for a size below 1 (demonstrations: below 0): a later step would have nothing to work on."""
    for name, size in sizes.items():
        low = 0 if name == _MAY_BE_EMPTY else 1
        if size < low:
            raise ConfigError(f"{name}: must be {low} or more, got {size}")
