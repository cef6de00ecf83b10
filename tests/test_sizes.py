"""Files stay within 350 lines and functions within 60 (DESIGN, section 4), so that each can be read in one go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE, MAX_FUNCTION = 350, 60
SUFFIXES = (".py", ".jinja", ".js", ".css")
FOLDERS = ("benchmarks", "cai", "prompts", "tests")
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in SUFFIXES
)


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """Names and numbers of lines: of every function of Python, and of every block at the left margin of JavaScript."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, (node.end_lineno or 0) - node.lineno + 1
    elif path.suffix == ".js":
        lines = text.splitlines()
        ends = [number for number, line in enumerate(lines) if line.startswith("}")]
        for begin, line in enumerate(lines):
            if line.endswith("{") and line[0] not in " \t}/":
                yield line, next(end for end in ends if end > begin) - begin + 1


def too_long(path: Path) -> list[str]:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    found = [f"{path}: {num_lines} lines"] if num_lines > MAX_FILE else []
    return found + [f"{path}: {name}: {n} lines" for name, n in functions_of(path) if n > MAX_FUNCTION]


def test_every_file_and_function_can_be_read_in_one_go() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS)
    assert {path.suffix for path in FILES} == set(SUFFIXES)
    assert [line for path in FILES for line in too_long(path)] == []


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("a.py", "async def f():\n", "    pass\n"), ("a.js", "form.addEventListener('submit', (event) => {\n", "});\n")],
)
def test_one_line_too_many_is_found(tmp_path: Path, name: str, before: str, after: str) -> None:
    path = tmp_path / name
    for extra, wrong in ((0, 0), (1, 1)):
        path.write_text(before + "\n" * (MAX_FUNCTION - 2 + extra) + after)
        assert len(too_long(path)) == wrong
        path.write_text("\n" * (MAX_FILE + extra))
        assert len(too_long(path)) == wrong
