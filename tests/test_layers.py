"""Dependencies point one way (DESIGN, section 4); read from the source with ast, so nothing is imported."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "cai").rglob("*.py"))

# Lowest first. A module may import from its own row and from rows above it in this list, never from below.
LAYERS = (
    ("cai.types", "cai.errors", "cai.paths", "cai.progress", "cai.visible"),
    (
        "cai.records",
        "cai.codec",
        "cai.strict_yaml",
        "cai.engines.base",
        "cai.labelers.feedback",
        "cai.noise",
        "cai.scorers",
        "cai.stages.base",
    ),
    ("cai.constitution", "cai.constitution_import", "cai.templates", "cai.datasets", "cai.rewards"),
    ("cai.prompts", "cai.prompt_settings", "cai.rendered", "cai.serve.form", "cai.serve.tables", "cai.serve.queue"),
    ("cai.models", "cai.sandbox"),
    ("cai.engines", "cai.rl"),
    ("cai.labelers", "cai.evaluation_sets"),
    ("cai.stages",),
    ("cai.store", "cai.report", "cai.nodes", "cai.serve"),
    ("cai.pipeline", "cai.settings", "cai.arms", "cai.config"),
    ("cai.workbench",),
    ("cai.commands", "cai.cli", "cai.__main__"),
)
HEAVY = {
    *("accelerate", "datasets", "evalica", "httpx2", "matplotlib", "openai", "peft", "pyarrow", "scipy", "stamina"),
    *("statsmodels", "torch", "transformers", "trl"),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(full dotted name, whether at the top level of the module) of everything imported, type checking aside."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports are written in full"
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            visit(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return tuple(found)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int | None:
    """The row of the longest entry that `name` is in (the seam `cai.engines.base` is below `cai.engines`)."""
    rows = [(len(package), i) for i, row in enumerate(LAYERS) for package in row if within(name, package)]
    return max(rows)[1] if rows else None


def own_imports(path: Path) -> Iterator[str]:
    return (name for name, _ in imports(path) if within(name, "cai"))


def importers(package: str) -> set[str]:
    return {name_of(path) for path in FILES if any(within(name, package) for name, _ in imports(path))}


def test_every_module_has_a_layer() -> None:
    homeless = [name_of(path) for path in FILES if name_of(path) != "cai" and layer(name_of(path)) is None]
    assert not homeless, f"give them a row in LAYERS: {homeless}"


def test_imports_point_down() -> None:
    wrong = []
    for path in FILES:
        here = layer(name_of(path))
        for name in own_imports(path):
            there = layer(name)
            if here is not None and there is not None and there > here:
                wrong.append(f"{name_of(path)} imports {name}")
    assert not wrong, wrong


def test_foundations_are_standard_library_only() -> None:
    for module in ("types", "errors", "paths", "visible"):
        for name, _ in imports(ROOT / "cai" / f"{module}.py"):
            assert name.split(".")[0] in {"collections", "dataclasses", "difflib", "pathlib", "typing"}, (module, name)


def test_what_is_installed_is_imported() -> None:
    """Every dependency of a plain installation has a user in the package (accelerate: the trainer of transformers)."""
    names = {"hydra-core": "hydra", "pyyaml": "yaml", "accelerate": "transformers"}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    packages = [re.split(r"[<>=]", requirement)[0] for requirement in wanted]
    idle = [package for package in packages if not importers(names.get(package, package))]
    assert not idle


def test_no_stage_imports_a_stage() -> None:
    for path in (ROOT / "cai" / "stages").glob("*.py"):
        for name in own_imports(path):
            shared = within(name, "cai.stages.base") or within(name, "cai.stages.journaled")
            assert shared or not within(name, "cai.stages"), f"{path.name} imports {name}"


def test_only_labeling_stages_know_labelers() -> None:
    for path in (ROOT / "cai" / "stages").glob("*.py"):
        if any(within(name, "cai.labelers") for name in own_imports(path)):
            assert path.stem in ("label", "win_rate"), path.name


def test_stages_know_engines_and_labelers_by_protocol() -> None:
    for path in (ROOT / "cai" / "stages").glob("*.py"):
        for name in own_imports(path):
            for package in ("cai.engines", "cai.labelers"):
                if within(name, package):
                    module = name.removeprefix(f"{package}.").split(".")[0]
                    known = ("aggregate", "base", "feedback", "journaled", "statistics")
                    assert module in known, f"{path.name} imports {name}"


def test_hydra_is_known_to_the_configuration_alone() -> None:
    assert importers("hydra") | importers("omegaconf") <= {"cai.config", "cai.settings", "cai.cli"}


def test_trl_is_imported_in_three_files_at_most() -> None:
    assert len(importers("trl")) <= 3, importers("trl")


def test_nothing_outside_the_sandbox_names_it() -> None:
    for path in FILES:
        if not within(name_of(path), "cai.sandbox"):
            assert "cai.sandbox" not in path.read_text(encoding="utf-8"), name_of(path)


def test_only_the_scorer_and_its_makers_see_the_oracle() -> None:
    allowed = {"cai.sandbox"}
    for name in importers("cai.sandbox.oracle"):
        assert any(within(name, package) for package in allowed), name


@pytest.mark.parametrize("module", ["cai.pipeline", "cai.store", "cai.config"])
def test_the_pipeline_knows_stages_by_protocol(module: str) -> None:
    for name in own_imports(ROOT / f"{module.replace('.', '/')}.py"):
        assert not within(name, "cai.stages") or within(name, "cai.stages.base"), name


def test_modules_that_configurations_point_at_load_nothing_heavy() -> None:
    targets = {
        line.split(":", 1)[1].strip().rpartition(".")[0]
        for path in (ROOT / "conf").rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("_target_:")
    }
    assert "cai.stages.revise" in targets  # the reading of the YAML works
    light: set[str] = set()
    for module in targets:
        _assert_light(module, module, light)


def _assert_light(module: str, start: str, light: set[str]) -> None:
    """No heavy library at the top level of `module`, or of what it imports there; those in `light` are known."""
    if module in light:
        return
    light.add(module)
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.is_file():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    if not path.is_file():
        return
    for name, top in imports(path):
        if not top:
            continue
        assert name.split(".")[0] not in HEAVY, f"{start} loads {name} through {module}"
        if within(name, "cai"):
            inner = name if (ROOT / f"{name.replace('.', '/')}.py").is_file() else name.rpartition(".")[0]
            if inner != module:
                _assert_light(inner, start, light)
