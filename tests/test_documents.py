"""Documents from a file of texts."""

import json
from pathlib import Path

import pytest
import tiny_models

from cai.errors import DataError
from cai.models.documents import Documents, TextDocuments

LINES = ["open the door", "how do you say that", "no", "push the key slowly and then open the old door please"]


@pytest.fixture
def source(tmp_path: Path) -> TextDocuments:
    """Four texts."""
    tokenizer = tiny_models.word_tokenizer()
    model = tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return TextDocuments(path=str(tmp_path / "texts.jsonl"), model=str(model), max_tokens=4)


def test_texts_are_drawn_by_seed_and_cut_to_stretches(source: TextDocuments) -> None:
    assert isinstance(source, Documents)
    found = source.documents("a", 0.5, 200)
    assert 200 <= sum(len(d.ids) for d in found) < 204
    assert all(2 <= len(d.ids) <= 4 and d.weights == [1.0] * len(d.ids) for d in found)
    assert [d.ids for d in source.documents("a", 0.9, 200)] == [d.ids for d in found]
    assert [d.ids for d in source.documents("b", 0.5, 200)] != [d.ids for d in found]
    whole = [tiny_models.word_tokenizer()(line)["input_ids"] for line in LINES]
    pieces = {tuple(ids[i : i + 4]) for ids in whole for i in range(max(len(ids) - 4, 0) + 1)}
    assert {tuple(d.ids) for d in found} <= pieces
    assert source.texts().keys() == {"documents/texts.jsonl", "documents/model"}


def test_errors_name_file_and_line(source: TextDocuments, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        TextDocuments(path=str(tmp_path / "nowhere.jsonl"), model="x")
    (tmp_path / "texts.jsonl").write_text('{"text": "open the door"}\n{"txt": "x"}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl:2: must be an object with the key 'text'"):
        source.documents("a", 0.0, 10)
    (tmp_path / "texts.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="no text of two tokens or more"):
        source.documents("a", 0.0, 10)
