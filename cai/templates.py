"""Jinja, tamed: templates are parsed once, checked against what a prompt needs, and run to a stream of text and slots.

Outputs are not made into one string on the way (the code generator is the one of Jinja's native types), so a slot
arrives as the very object that `choice` or `text` returned. No text, whatever it holds, can therefore become a slot,
and values are never template source. What the template's author wrote is told from what a variable put there, to the
character (`Passage`). The sandbox, the short list of allowed constructs and the lack of globals keep a template from
doing anything but putting text together.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Final, cast

import jinja2
from jinja2 import meta, nodes
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cai.errors import PromptError, unknown

__all__ = ["BLOCKS", "Passage", "Templates"]

BLOCKS: Final = ("system", "user", "assistant")

_ALLOWED: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Block, nodes.Include),
    *(nodes.For, nodes.If, nodes.Assign, nodes.Name, nodes.Const, nodes.List, nodes.Tuple),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Call, nodes.Keyword, nodes.Filter, nodes.Test),
    *(nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Add, nodes.Sub, nodes.Concat),
)
_FILTERS: Final = ("capitalize", "first", "join", "last", "length", "lower", "trim", "upper")
_TESTS: Final = ("defined", "none")


@dataclass(frozen=True, slots=True)
class Passage:
    """Rendered text; `values` are the places (start, end) of what variables put there, in order."""

    text: str
    values: tuple[tuple[int, int], ...] = ()

    def stripped(self, *, start: bool, end: bool) -> "Passage":
        """Without the line breaks at its start, and at its end."""
        low = len(self.text) - len(self.text.lstrip("\n")) if start else 0
        high = max(low, len(self.text.rstrip("\n"))) if end else len(self.text)
        cut = [(max(a, low) - low, min(b, high) - low) for a, b in self.values]
        return Passage(self.text[low:high], tuple((a, b) for a, b in cut if a < b))


class Templates:
    """The templates of one family: `files` by file name, each with its path (for messages) and its source.

    `functions` are what templates may call, straight in an output, as in `{{ name(...) }}`; they return `slots`, which
    reach the stream as they are. PromptError when a template is wrong.
    """

    def __init__(
        self,
        files: Mapping[str, tuple[Path, str]],
        functions: Mapping[str, Callable[..., object]],
        slots: tuple[type, ...],
    ) -> None:
        self._files = dict(files)
        self._functions = dict(functions)
        self._environment = _Environment(
            loader=jinja2.FunctionLoader(lambda name: self._files[name][1]),
            undefined=jinja2.StrictUndefined,
            finalize=_finalizer(slots),
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,  # so that an included file is included whole
            cache_size=-1,
            auto_reload=False,
        )
        self._environment.globals = dict(functions)
        self._environment.filters = {name: self._environment.filters[name] for name in _FILTERS}
        self._environment.tests = {name: self._environment.tests[name] for name in _TESTS}
        self._trees = {name: self._parse(name) for name in self._files}
        for name, tree in self._trees.items():
            if any(name in self.closure(included) for included in _includes(tree)):
                raise PromptError(f"{self._files[name][0]}: includes itself, in a circle")
        self._compiled = {name: self._compile(name) for name in self._files}

    def closure(self, name: str) -> list[str]:
        """The file and every file that it includes, sorted."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting += _includes(self._trees[current])
        return sorted(found)

    def variables(self, name: str) -> set[str]:
        """The variables that the file and its includes refer to."""
        trees = [self._trees[file] for file in self.closure(name)]
        return set[str]().union(*(meta.find_undeclared_variables(tree) for tree in trees)) - set(self._functions)

    def where_used(self, name: str, variable: str) -> str:
        """`path:line` of the first use of a variable in the file or its includes."""
        for file in self.closure(name):
            for node in self._trees[file].find_all(nodes.Name):
                if node.name == variable:
                    return f"{self._files[file][0]}:{node.lineno}"
        return str(self._files[name][0])

    def blocks(self, name: str) -> tuple[str, ...]:
        """The names of the file's blocks, in order."""
        return tuple(node.name for node in self._trees[name].body if isinstance(node, nodes.Block))

    def run(self, name: str, variables: Mapping[str, object], block: str | None = None) -> list[object]:
        """The passages and the slots that the file (or one block of it) makes, in order; no two passages in a row."""
        template = self._compiled[name]
        context = template.new_context(dict(variables))
        try:
            return _joined((template.blocks[block] if block else template.root_render_func)(context))
        except (PromptError, jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            where = self._where(error.__traceback__) or str(self._files[name][0])
            raise PromptError(f"{where}: {error}") from None

    def _where(self, trace: TracebackType | None) -> str | None:
        """`path:line` of the innermost template that the error went through."""
        found = None
        while trace is not None:
            template = trace.tb_frame.f_globals.get("__jinja_template__")
            if template is not None:
                found = f"{self._files[template.name][0]}:{template.get_corresponding_lineno(trace.tb_lineno)}"
            trace = trace.tb_next
        return found

    def _parse(self, name: str) -> nodes.Template:
        path, source = self._files[name]
        try:
            tree = self._environment.parse(source, name)
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(f"{path}:{error.lineno}: {error.message}") from None
        except RecursionError:
            raise PromptError(f"{path}: nested too deeply") from None
        for line, problem in self._problems(tree):
            raise PromptError(f"{path}:{line}: {problem}")
        return tree

    def _compile(self, name: str) -> jinja2.Template:
        try:
            return self._environment.get_template(name)
        except jinja2.TemplateSyntaxError as error:  # an unknown filter or test
            raise PromptError(f"{self._files[name][0]}:{error.lineno}: {error.message}") from None

    def _problems(self, tree: nodes.Template) -> Iterator[tuple[int, str]]:
        """(line, problem) of everything in a template that has no place in a prompt."""
        in_output = {id(child) for output in tree.find_all(nodes.Output) for child in output.nodes}
        for node in _walk(tree):
            if not isinstance(node, _ALLOWED):
                yield node.lineno, f"{type(node).__name__.lower()} is not allowed in a prompt template"
            elif isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
                yield node.lineno, f"attribute {node.attr!r} is not allowed"
            elif isinstance(node, nodes.Call):
                called = node.node.name if isinstance(node.node, nodes.Name) else "that"
                if called not in self._functions:
                    yield node.lineno, f"a template can call only {' and '.join(self._functions)}, not {called}"
                elif id(node) not in in_output:
                    yield node.lineno, f"{called} must stand alone: {{{{ {called}(...) }}}}"
            elif isinstance(node, nodes.Include):
                yield from _include_problems(node, self._files)
        yield from _block_problems(tree)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = NativeCodeGenerator


class _Value(str):
    """Text that an output made when the template ran. Outputs of constants are made when it is compiled, where Jinja
    joins them to the template's own text.
    """


def _finalizer(slots: tuple[type, ...]) -> Callable[[object], object]:
    """What checks every output: text, a whole number or a slot."""

    def finalize(value: object) -> object:
        if isinstance(value, slots):
            return value
        if isinstance(value, str | jinja2.Undefined) or type(value) is int:
            return _Value(value)  # raises when undefined, and says what is
        raise PromptError(f"cannot put {_type_of(value)} into the text")

    return finalize


def _joined(stream: Iterator[object]) -> list[object]:
    """Neighbouring pieces of text as one passage; empty ones left out."""
    joined: list[object] = []
    for is_text, group in groupby(stream, key=lambda piece: isinstance(piece, str)):
        pieces = list(group)
        if not is_text:
            joined += pieces
        elif (passage := _passage(cast(list[str], pieces))).text:
            joined.append(passage)
    return joined


def _passage(pieces: Sequence[str]) -> Passage:
    places, at = [], 0
    for piece in pieces:
        if isinstance(piece, _Value) and piece:
            places.append((at, at + len(piece)))
        at += len(piece)
    return Passage("".join(pieces), tuple(places))


def _type_of(value: object) -> str:
    """The type of a value in words that fit into a message."""
    return "nothing" if value is None else f"a value of type {type(value).__name__.lstrip('_')}"


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _includes(tree: nodes.Template) -> list[str]:
    return [name for name in meta.find_referenced_templates(tree) if name is not None]


def _include_problems(node: nodes.Include, files: Collection[str]) -> Iterator[tuple[int, str]]:
    if not isinstance(node.template, nodes.Const) or not isinstance(node.template.value, str):
        yield node.lineno, "include needs the name of one file in quotes"
    elif node.template.value not in files:
        yield node.lineno, unknown("included file", node.template.value, files)


def _block_problems(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    """A file has either no blocks, or nothing but blocks, of the names of turns."""
    outer = [node for node in tree.body if isinstance(node, nodes.Block)]
    for block in tree.find_all(nodes.Block):
        if block.name not in BLOCKS:
            yield block.lineno, unknown("block", block.name, BLOCKS)
        if block not in outer:
            yield block.lineno, f"block {block.name!r} must not be inside of something else"
    for node in tree.body if outer else ():
        pieces = node.nodes if isinstance(node, nodes.Output) else [node]
        for piece in pieces:
            if not isinstance(piece, nodes.Block) and not (
                isinstance(piece, nodes.TemplateData) and not piece.data.strip()
            ):
                yield piece.lineno, "this is outside of the blocks, where it would be lost"
