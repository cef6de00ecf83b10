"""Published JSON constitutions, turned into YAML that people can edit: nothing is lost, everything is counted.

The shapes: the critique and revision requests, the comparison texts and the better-and-worse examples that the authors
of Constitutional AI released; llm-swarm's `constitutions` of `critic` and `revision`; LangChain's principles with
`critique_request` and `revision_request`. None of them states its principles in a sentence, so `statement` quotes the
request, and the user may reword it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from cai.constitution import check
from cai.errors import ConstitutionError, unknown
from cai.records import read_json, write_text

__all__ = ["import_file"]

_FROM_REVISION: Final = 'A good response leaves nothing to change when this is asked: "{}"'
_FROM_COMPARISON: Final = 'A good response is the one that is chosen when this is asked: "{}"'
_GENERAL: Final = {
    "id": "general",
    "axis": "harmless",
    "statement": "A good response is helpful, honest and harmless.",
}


@dataclass(slots=True)
class _Found:
    """What a source holds: principles and examples as plain YAML values, and notes on what has no place in a file."""

    shape: str
    principles: list[dict[str, str]] = field(default_factory=list)
    examples: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_file(source: Path, destination: Path) -> str:
    """Write the constitution in a published JSON file as YAML, and return one line that counts what was read.

    ConstitutionError when the file is of no known shape, has entries that the shape does not have, or `destination`
    exists; DataError when it is not JSON.
    """
    if destination.exists():
        raise ConstitutionError(f"{destination}: exists, and import writes over nothing; name another file")
    if destination.suffix != ".yaml":
        raise ConstitutionError(f"{destination}: the name of a constitution file must end in .yaml")
    found = _read(source)
    _make_ids_unique(found.principles)
    document: dict[str, object] = {
        "name": destination.stem,
        "description": f"Imported from {source.name} ({found.shape}). Statements quote the request; reword them.",
        "principles": found.principles,
    }
    if found.examples:
        document["examples"] = found.examples
    comments = "".join(f"# {note}\n" for note in found.notes)
    write_text(destination, comments + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))
    if problems := check(str(destination)):
        destination.unlink()
        raise ConstitutionError(f"{source}: would not make a valid constitution: {problems[0]}")
    counts = f"{_count(found.principles, 'principle')}, {_count(found.examples, 'example')}"
    return "; ".join([f"{destination}: {counts} from {found.shape}", *found.notes])


def _count(things: list[dict[str, str]], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _read(source: Path) -> _Found:
    if source.suffix == ".jsonl":
        raise ConstitutionError(f"{source}: JSONL holds records (prompts, comparisons), not a constitution")
    obj = read_json(source)
    for fits, read in _SHAPES:
        if fits(obj):
            return read(obj, source)
    raise ConstitutionError(
        f"{source}: not a constitution of a known shape; known are the requests, comparison texts and examples of "
        "Constitutional AI, llm-swarm's {constitutions: [{critic, revision}]} and LangChain's principles"
    )


def _critique_revision(obj: dict[str, dict[str, Any]], source: Path) -> _Found:
    """Bai et al. 2022b: {"harmful0": {"prompt": [" CritiqueRequest: ... Critique:"], "edit_request": ...}}."""
    found = _Found("critique and revision requests of Constitutional AI")
    for name, entry in obj.items():
        where = f"{source}: {name}"
        _only(entry, ("prompt", "edit_request"), where)
        prompts = entry["prompt"] if isinstance(entry["prompt"], list) else [entry["prompt"]]
        for prompt in prompts:
            critique = _unframed(prompt, "CritiqueRequest:", "Critique:", where)
            revision = _unframed(entry["edit_request"], "RevisionRequest:", "Revision:", where)
            found.principles.append(_pair(name, "harmless", critique, revision))
    return found


def _comparisons(obj: list[str], source: Path) -> _Found:
    """Bai et al. 2022b: a list of texts that end in `Options:`."""
    found = _Found("comparison texts of Constitutional AI")
    for index, text in enumerate(obj):
        comparison = _unframed(text, "", "Options:", f"{source}: entry {index}")
        statement = _FROM_COMPARISON.format(comparison)
        found.principles.append(
            {"id": f"comparison{index}", "axis": "harmless", "statement": statement, "comparison": comparison}
        )
    return found


def _better_worse(obj: list[dict[str, Any]], source: Path) -> _Found:
    """Bai et al. 2022b: [{"prompt": " Human: ... Assistant:", "corrects": [...], "incorrects": [...]}]."""
    found = _Found("better and worse responses of Constitutional AI", principles=[dict(_GENERAL)])
    found.notes.append("the source has examples only; the principle 'general' was added for them")
    for index, entry in enumerate(obj):
        where = f"{source}: entry {index}"
        _only(entry, ("prompt", "corrects", "incorrects"), where)
        prompt = _unframed(entry["prompt"], "", "Assistant:", where)
        if prompt.count("\n\nHuman:") + prompt.count("\n\nAssistant:") == 0:
            prompt = prompt.removeprefix("Human:").strip()
        for better in entry["corrects"]:
            for worse in entry["incorrects"]:
                found.examples.append(
                    {"prompt": prompt, "better": better, "worse": worse, "principle": _GENERAL["id"]},
                )
    return found


def _llm_swarm(obj: dict[str, Any], source: Path) -> _Found:
    """llm-swarm: {"constitutions": [{"critic": ..., "revision": ...}], "system_chat": [[{role, content}, ...]]}."""
    found = _Found("llm-swarm's constitutions")
    _only(obj, ("constitutions", "system_chat"), str(source), optional=("system_chat",))
    for index, entry in enumerate(obj["constitutions"]):
        where = f"{source}: constitutions[{index}]"
        _only(entry, ("critic", "revision"), where)
        critique, revision = (_unframed(entry[key], "", "", where) for key in ("critic", "revision"))
        found.principles.append(_pair(f"principle{index}", "imported", critique, revision))
    if chats := obj.get("system_chat"):
        found.notes.append(
            f"system_chat was left out: {len(chats)} worked dialogue(s), which belong into a prompt family, not here"
        )
    return found


def _langchain(obj: Any, source: Path) -> _Found:
    """LangChain: principles with `critique_request`, `revision_request` and `name`, in a list or under their keys."""
    found = _Found("LangChain's principles")
    for key, entry in obj.items() if isinstance(obj, dict) else enumerate(obj):
        where = f"{source}: {key if isinstance(obj, dict) else f'entry {key}'}"
        _only(entry, ("critique_request", "revision_request", "name"), where, optional=("name",))
        critique, revision = (_unframed(entry[k], "", "", where) for k in ("critique_request", "revision_request"))
        name = entry.get("name") or (key if isinstance(obj, dict) else f"principle{key}")
        found.principles.append(_pair(str(name), "imported", critique, revision))
    return found


def _refuse(what: str) -> Callable[[Any, Path], _Found]:
    def refuse(obj: list[object], source: Path) -> _Found:
        raise ConstitutionError(
            f"{source}: holds {len(obj)} {what}, not principles; they belong into the templates of a prompt family"
        )

    return refuse


def _pair(name: str, axis: str, critique: str, revision: str) -> dict[str, str]:
    statement = _FROM_REVISION.format(revision)
    return {"id": name, "axis": axis, "statement": statement, "critique": critique, "revision": revision}


def _unframed(text: object, header: str, footer: str, where: str) -> str:
    """The text without the header before it and the footer after it."""
    if not isinstance(text, str) or not text.strip():
        raise ConstitutionError(f"{where}: must hold text, got {str(text)[:40]!r}")
    return text.strip().removeprefix(header).removesuffix(footer).strip()


def _only(entry: Any, keys: tuple[str, ...], where: str, optional: tuple[str, ...] = ()) -> None:
    """Refuse other keys, which would be lost, and missing ones."""
    if not isinstance(entry, dict):
        raise ConstitutionError(f"{where}: must have the keys {', '.join(keys)}")
    for key in entry:
        if key not in keys:
            raise ConstitutionError(f"{where}: {unknown('key', key, keys)}")
    for key in keys:
        if key not in entry and key not in optional:
            raise ConstitutionError(f"{where}: {key} is missing")


def _make_ids_unique(principles: list[dict[str, str]]) -> None:
    """Names as ids: other characters than letters, digits, _ . - become _, and a number tells equal ones apart."""
    taken: set[str] = set()
    for principle in principles:
        base = re.sub(r"[^A-Za-z0-9_.-]+", "_", principle["id"]).strip("_.-")[:56] or "principle"
        numbered = (f"{base}_{number}" for number in range(2, len(principles) + 2))
        principle["id"] = base if base not in taken else next(name for name in numbered if name not in taken)
        taken.add(principle["id"])


def _entries(obj: object) -> Iterator[Any]:
    yield from obj.values() if isinstance(obj, dict) else obj if isinstance(obj, list) else ()


def _all_have(key: str, kind: type) -> Callable[[object], bool]:
    """Whether something is a `kind` of mappings, at least one of which has the key."""
    return lambda obj: (
        isinstance(obj, kind)
        and all(isinstance(entry, Mapping) for entry in _entries(obj))
        and any(key in entry for entry in _entries(obj))
    )


def _texts(obj: object, *marks: str) -> bool:
    return (
        isinstance(obj, list)
        and bool(obj)
        and all(isinstance(text, str) and all(mark in text for mark in marks) for text in obj)
    )


_SHAPES: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any, Path], _Found]], ...]] = (
    (lambda obj: isinstance(obj, dict) and isinstance(obj.get("constitutions"), list), _llm_swarm),
    (_all_have("edit_request", dict), _critique_revision),
    (_all_have("critique_request", dict), _langchain),
    (_all_have("critique_request", list), _langchain),
    (_all_have("corrects", list), _better_worse),
    (_all_have("prompt", list), _refuse("worked chains of thought")),
    (lambda obj: _texts(obj, "CritiqueRequest:", "Human:"), _refuse("worked examples of critique and revision")),
    (lambda obj: _texts(obj, "Options:"), _comparisons),
)
