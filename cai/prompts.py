"""Prompt families: folders of Jinja templates, rendered to what an engine continues, with slots where answers go.

A family has up to six templates (`KINDS`), each with its own variables; a judge may have `examples`, too (`SHOWS`). A
template is text with *slots*: a choice slot
(the probability of each option is read) or a text slot (a continuation is sampled). Text slots name the strings that
end them, so what comes back needs no parsing.

A file with `block`s gives turns for a model's own chat template (the assistant block is what its answer starts with); a
file without gives one text. Values are inert: they are never template source, turns or slots; the markers that a
family lists as `reserved` (turn headers, options) are broken up where a value holds them, and counted; and an engine is
told where values stand, so that special tokens in them are plain text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from cai import paths
from cai.constitution import Principle
from cai.errors import PromptError, unknown
from cai.prompt_settings import Wording, read_settings
from cai.records import fingerprint
from cai.rendered import ChoiceSlot, Rendered, Slot, TextSlot
from cai.templates import Passage, Templates
from cai.types import Turn

__all__ = ["KINDS", "SHOWS", "PromptFamily", "Shot"]

KINDS: Final[Mapping[str, frozenset[str]]] = {
    "critique": frozenset({"turns", "response", "principle"}),
    "revision": frozenset({"turns", "response", "principle", "critique"}),
    "direct_revision": frozenset({"turns", "response", "principle"}),
    "judge": frozenset({"turns", "responses", "principle"}),
    "judge_cot": frozenset({"turns", "responses", "principle"}),
    "rate": frozenset({"turns", "response", "principle"}),
}
SHOWS: Final = ("judge",)  # templates that may have the variable `examples`, worked ones that come before the question
SETTINGS: Final = "family.yaml"
SUFFIX: Final = ".jinja"


@dataclass(frozen=True, slots=True)
class Shot:
    """A worked example for a judge: `better` is the index of the response that keeps better to the principle."""

    turns: tuple[Turn, ...]
    responses: tuple[str, ...]
    principle: Principle
    better: int


class PromptFamily:
    """The templates in `./prompts/NAME/`, and, for files that are not there, in the shipped `prompts/NAME/`.

    When the family is made, every file is read and checked, and every template rendered once with a sample: a mistake
    is a PromptError that names file and line. Files whose name starts with `_` are there to be included.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._paths = _find_files(name)
        self._sources = {file: _read(path) for file, path in self._paths.items()}
        self._settings = read_settings(self._paths.get(SETTINGS))
        self._wordings: dict[Principle, Wording] = {}
        templates = {file: (self._paths[file], text) for file, text in self._sources.items() if file != SETTINGS}
        self._templates = Templates(templates, {"choice": _choice, "text": _text}, (ChoiceSlot, TextSlot))
        self.kinds = tuple(kind for kind in KINDS if kind + SUFFIX in templates)
        for kind in self.kinds:
            self._check_variables(kind)
            sample = {variable: _SAMPLES[variable] for variable in KINDS[kind]}
            self.render(kind, **sample)
            if self.shows(kind):
                self.render(kind, **sample, examples=[_SHOT])

    def render(self, template: str, **variables: object) -> Rendered:
        """Render one of `KINDS` with exactly its variables.

        `turns` is a sequence of Turn, `response` and `critique` are text, `responses` is a sequence of texts and
        `principle` is a Principle. `examples`, a sequence of Shot, may be left out. The options of a judge's last slot
        are in the order of `responses`, those of `rate` from the worst to the best.
        """
        self._known(template)
        file = template + SUFFIX
        examples = cast(Sequence[Shot], variables.pop("examples", ()))
        if variables.keys() != KINDS[template]:
            self._complain(template, variables)
        if examples and not self.shows(template):
            raise PromptError(f"{self._paths[file]}: makes no use of examples, and is to show {len(examples)}")
        broken = _Count()
        inert = {name: self._inert(name, value, broken) for name, value in variables.items()}
        inert["examples"] = [self._inert_shot(shot) for shot in examples]
        turns: list[tuple[str, Passage]] = []
        parts: list[Passage | Slot] = []
        for block in self._templates.blocks(file) or (None,):
            pieces = cast(list[Passage | Slot], self._templates.run(file, inert, block))
            if block in (None, "assistant"):
                parts = _trimmed(pieces, start=block is not None)
            else:
                turns.append((block, self._turn_text(template, block, pieces)))
        responses = cast(Sequence[str] | None, variables.get("responses"))
        if problem := _slot_problem(template, parts, None if responses is None else len(responses)):
            raise PromptError(f"{self._paths[file]}: {problem}")
        passages = [*(text for _, text in turns), *parts]
        return Rendered(
            turns=tuple(Turn(role, text.text) for role, text in turns),
            parts=tuple(part.text if isinstance(part, Passage) else part for part in parts),
            quoted=tuple((n, *place) for n, p in enumerate(passages) if isinstance(p, Passage) for place in p.values),
            num_neutralised=broken.number,
            reserved=self._settings.reserved and self._settings.reserved.pattern,
        )

    def shows(self, template: str) -> bool:
        """Whether the template makes use of examples."""
        self._known(template)
        return "examples" in self._templates.variables(template + SUFFIX)

    def hashes(self, *templates: str) -> dict[str, str]:
        """SHA-256 by template: of its file, the files that it includes and the family's settings."""
        return {template: fingerprint(self.sources(template)) for template in templates}

    def sources(self, *templates: str) -> dict[str, str]:
        """The text, by file name, of every file that these templates (all, when none is named) are made of."""
        wanted = {SETTINGS} & self._sources.keys()
        for template in templates or self.kinds:
            self._known(template)
            wanted.update(self._templates.closure(template + SUFFIX))
        return {file: self._sources[file] for file in sorted(wanted)}

    def _known(self, template: str) -> None:
        if template not in self.kinds:
            raise PromptError(unknown(f"template of the prompt family {self.name!r}", template, self.kinds))

    def _complain(self, template: str, given: Mapping[str, object]) -> None:
        path, wanted = self._paths[template + SUFFIX], KINDS[template]
        for name in given:
            if name not in wanted:
                raise PromptError(f"{path}: unused variable: {unknown('variable', name, wanted)}")
        raise PromptError(f"{path}: missing variables: {', '.join(sorted(wanted - given.keys()))}")

    def _check_variables(self, kind: str) -> None:
        file = kind + SUFFIX
        used = self._templates.variables(file) - ({"examples"} if kind in SHOWS else set())
        if extra := sorted(used - KINDS[kind]):
            where = self._templates.where_used(file, extra[0])
            raise PromptError(f"{where}: {unknown('variable', extra[0], KINDS[kind])}")
        if unused := sorted(KINDS[kind] - used):
            raise PromptError(f"{self._paths[file]}: makes no use of {', '.join(unused)}")

    def _turn_text(self, template: str, block: str, pieces: Sequence[Passage | Slot]) -> Passage:
        texts = [piece.stripped(start=True, end=True) for piece in pieces if isinstance(piece, Passage)]
        if len(pieces) != 1 or not texts or not texts[0].text:
            slots = any(not isinstance(piece, Passage) for piece in pieces)
            problem = "cannot hold slots; those go into block assistant" if slots else "must not be empty"
            raise PromptError(f"{self._paths[template + SUFFIX]}: block {block} {problem}")
        return texts[0]

    def _inert(self, name: str, value: object, broken: "_Count") -> object:
        """The value as templates get it: of the right type, and with no reserved marker in it. Adds to `broken` how
        many there were; those of a principle are its author's own.
        """
        if name == "principle" and isinstance(value, Principle):
            if value not in self._wordings:
                self._wordings[value] = self._settings.worded(value)
            return self._wordings[value]
        if name in ("response", "critique") and isinstance(value, str):
            return broken.add(self._settings.inert(value))
        if isinstance(value, list | tuple):
            if name == "turns" and all(isinstance(turn, Turn) for turn in value):
                return tuple(Turn(t.role, broken.add(self._settings.inert(t.content))) for t in value)
            if name == "responses" and all(isinstance(response, str) for response in value):
                return tuple(broken.add(self._settings.inert(response)) for response in value)
        raise PromptError(f"{name} must be {_TYPES[name]}, got {type(value).__name__}: {str(value)[:40]!r}")

    def _inert_shot(self, shot: Shot) -> dict[str, object]:
        """An example as templates get it. Its texts are its author's own, so nobody counts what is broken up."""
        values = {"turns": shot.turns, "responses": shot.responses, "principle": shot.principle}
        return {name: self._inert(name, value, _Count()) for name, value in values.items()} | {"better": shot.better}


@dataclass(slots=True)
class _Count:
    """Adds up numbers that come with texts."""

    number: int = 0

    def add(self, counted: tuple[str, int]) -> str:
        self.number += counted[1]
        return counted[0]


def _find_files(name: str) -> dict[str, Path]:
    """The family's files by name: the shipped ones, and over them the user's own."""
    found: dict[str, Path] = {}
    for folder in reversed(paths.folders("prompts")):
        if (folder / name).is_dir():
            found |= {path.name: path for path in (folder / name).iterdir() if path.suffix in (SUFFIX, ".yaml")}
    if not found or name != Path(name).name:
        raise PromptError(unknown("prompt family", name, paths.names("prompts")))
    known = {SETTINGS, *(kind + SUFFIX for kind in KINDS)}
    for file, path in found.items():
        if file not in known and not (file.startswith("_") and file.endswith(SUFFIX)):
            raise PromptError(f"{path}: {unknown('file of a prompt family', file, known)}, and _*.jinja to include")
    return dict(sorted(found.items()))


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}:{data.count(10, 0, error.start) + 1}: not UTF-8; save it as UTF-8 text") from None
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from None


def _choice(*options: object) -> ChoiceSlot:
    """`{{ choice(" (A)", " (B)") }}`: a slot for one of the options."""
    texts = tuple(option for option in options if isinstance(option, str) and option)
    if len(texts) != len(options) or len(set(texts)) < max(len(texts), 2):
        raise PromptError("choice needs two or more different texts")
    return ChoiceSlot(texts)


def _text(*, max_new_tokens: object, stop: object = ()) -> TextSlot:
    """`{{ text(max_new_tokens=40, stop=["\\n\\n"]) }}`: a slot for sampled text."""
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise PromptError(f"text: max_new_tokens must be a whole number above 0, got {max_new_tokens!r}")
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
        raise PromptError(f"text: stop must be a list of texts, got {stop!r}")
    return TextSlot(max_new_tokens, tuple(stop))


def _slot_problem(template: str, parts: Sequence[Passage | Slot], num_responses: int | None) -> str | None:
    """What is wrong with the slots of a rendered template, if anything; judges have `num_responses`."""
    slots = [part for part in parts if not isinstance(part, Passage)]
    last = parts[-1] if parts else None
    if template == "rate":
        return None if isinstance(last, ChoiceSlot) else "must end with {{ choice(...) }}, from worst to best"
    if num_responses is None:
        alone = len(slots) == 1 and isinstance(last, TextSlot)
        return None if alone else "must end with its only slot, {{ text(...) }}"
    if not isinstance(last, ChoiceSlot):
        return "must end with {{ choice(...) }}, which has an option for each response"
    if len(last.options) != num_responses:
        return f"ends with {len(last.options)} options for {num_responses} responses"
    if template == "judge_cot" and not any(isinstance(slot, TextSlot) for slot in slots):
        return "has no {{ text(...) }} for the chain of thought"
    return None


def _trimmed(pieces: list[Passage | Slot], start: bool) -> list[Passage | Slot]:
    """Without the line breaks at the end (and at the start), which belong to the file and not to the prompt."""
    if start and pieces and isinstance(pieces[0], Passage):
        pieces[0] = pieces[0].stripped(start=True, end=False)
    if pieces and isinstance(pieces[-1], Passage):
        pieces[-1] = pieces[-1].stripped(start=False, end=True)
    return [piece for piece in pieces if not isinstance(piece, Passage) or piece.text]


_TYPES: Final = {
    "turns": "a list or tuple of Turn",
    "response": "text",
    "responses": "a list or tuple of texts",
    "critique": "text",
    "principle": "a Principle",
}
_SAMPLES: Final[Mapping[str, object]] = {
    "turns": (Turn("user", "Hello?"), Turn("assistant", "Hi."), Turn("user", "How are you?")),
    "response": "Fine.",
    "responses": ("Fine.", "Go away."),
    "critique": "It is short.",
    "principle": Principle(id="sample", axis="sample", statement="Be kind."),
}
_SHOT: Final = Shot((Turn("user", "Hello?"),), ("Hi.", "Go away."), cast(Principle, _SAMPLES["principle"]), 0)
