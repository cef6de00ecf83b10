"""Documents of a language model's pre-training: what stage pretrain learns from, and what PPO-ptx mixes in."""

import json
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from cai.errors import DataError
from cai.models.digest import model_digest
from cai.records import digest_file

__all__ = ["Document", "Documents", "TextDocuments"]


class Document(Protocol):
    """A document of some kind as token ids, with the weight of each token's loss."""

    @property
    def kind(self) -> str:
        """What curves call it."""

    @property
    def ids(self) -> list[int]:
        """Tokens."""

    @property
    def weights(self) -> list[float]:
        """As many as there are tokens."""


@runtime_checkable
class Documents(Protocol):
    """Where documents come from."""

    def documents(self, seed: str, progress: float, num_tokens: int) -> Sequence[Document]:
        """Documents of about `num_tokens` tokens for this point (0 to 1) of the training; same arguments, same list."""

    def texts(self) -> dict[str, str]:
        """Hashes of what documents are made from."""


class _Text(NamedTuple):
    kind: str
    ids: list[int]
    weights: list[float]


class TextDocuments:
    """Texts of a JSONL file (key `text`) as tokens of `model`, drawn at random; longer ones are cut to a random stretch
    of `max_tokens`. All tokens weigh the same. Raises DataError for a file that is not there or has no texts.
    """

    def __init__(self, *, path: str, model: str, max_tokens: int = 512) -> None:
        self._path = Path(path).expanduser()
        if not self._path.is_file():
            raise DataError(f"{self._path}: no such file; path must be a JSONL file with the key 'text'")
        if max_tokens < 2:
            raise DataError(f"max_tokens: must be at least 2, got {max_tokens}")
        self._model = model
        self._max_tokens = max_tokens

    def texts(self) -> dict[str, str]:
        """The digests of the file and of the model whose tokens they become."""
        return {f"documents/{self._path.name}": digest_file(self._path), "documents/model": model_digest(self._model)}

    def documents(self, seed: str, progress: float, num_tokens: int) -> list[Document]:
        """See `Documents`."""
        rng = random.Random(f"documents-{seed}")
        found: list[Document] = []
        while num_tokens > 0:
            ids = rng.choice(self._encoded)
            start = rng.randrange(max(len(ids) - self._max_tokens, 0) + 1)
            ids = ids[start : start + self._max_tokens]
            found.append(_Text("text", ids, [1.0] * len(ids)))
            num_tokens -= len(ids)
        return found

    @cached_property
    def _encoded(self) -> list[list[int]]:
        from cai.models.loading import load_tokenizer

        tokenizer = load_tokenizer(self._model)
        encoded = []
        with self._path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{self._path}:{number}: must be an object with the key 'text' ({error})") from None
                ids = list(tokenizer(str(text))["input_ids"])
                if len(ids) > 1:
                    encoded.append(ids)
        if not encoded:
            raise DataError(f"{self._path}: no text of two tokens or more")
        return encoded
