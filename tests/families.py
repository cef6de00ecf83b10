"""Prompt families made from files, and values for their variables, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.constitution import Principle
from cai.prompts import KINDS, PromptFamily
from cai.types import Turn

PRINCIPLE = Principle(id="kind", axis="polite", statement="Be kind.", revision="Make it kind.")
VALUES: dict[str, Any] = {
    "turns": (Turn("user", "Hello?"), Turn("assistant", "Hi."), Turn("user", "And you?")),
    "response": "Go away.",
    "responses": ["Go away.", "I am well."],
    "critique": "It is rude.",
    "principle": PRINCIPLE,
}
SHIPPED = ("few_shot", "chat")

PLAIN = "{{ principle.comparison }}|{% for t in turns %}{{ t.role }}:{{ t.content }};{% endfor %}"
JUDGE = PLAIN + "{% for r in responses %}<{{ r }}>{% endfor %}.\n{{ choice('A', 'B') }}\n"
CRITIQUE = PLAIN + "{{ response }}\n{{ text(max_new_tokens=9, stop=['\\n', '<x>']) }}\n"

Family = Callable[..., PromptFamily]


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Family:
    """Makes a family from files, in a folder that is all the user's own."""
    monkeypatch.chdir(tmp_path)

    def make(files: dict[str, str], name: str = "mine") -> PromptFamily:
        folder = tmp_path / "prompts" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        return PromptFamily(name)

    return make


def variables(kind: str, **changes: object) -> dict[str, object]:
    return {name: VALUES[name] for name in KINDS[kind]} | changes
