"""How the package lies: stages that import downwards only, no circles, short functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ccamerge

ROOT = Path(ccamerge.__file__).parent

STAGES = (
    *("core", "config", "data", "graph", "checkpoints", "collection", "methods", "repair"),
    *("reporting", "fidelity", "merging", "evaluation", "cli"),
)
"""From what stands alone to what people call; each may import from itself and from those before."""

LONGEST = 60
"""Lines of code in a function, its docstring not counted."""


def _modules() -> dict[str, Path]:
    """Files of the package by dotted names; stubs stand for what is compiled."""
    found = {}
    for path in [*ROOT.rglob("*.py"), *ROOT.glob("_*.pyi")]:
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imported(path: Path) -> Iterator[str]:
    """Files that a file imports, anywhere in it, for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ccamerge"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif alias.name != "__version__":
                    yield str(node.module)


IMPORTS = {name: set(_imported(path)) - {name} for name, path in MODULES.items()}


def _stage(name: str) -> str:
    return [*name.split("."), ""][1]


def test_stages_import_downwards_only() -> None:
    """The package itself, by which the commands call it, comes after all stages but those."""
    order = {stage: place for place, stage in enumerate(STAGES)}
    upwards = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        if _stage(name) in order
        for other in others
        if order.get(_stage(other), 0 if _stage(other).startswith("_") else len(order) - 1)
        > order[_stage(name)]
    ]
    assert not upwards
    assert {_stage(name) for name in MODULES} - {""} == {*STAGES, "__main__", "_core", "_cuda"}


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {name: set(others) for name, others in IMPORTS.items()}
    left["ccamerge"] = set()  # it imports what is asked for when it is asked for
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_few_entries_stand_directly_in_the_package() -> None:
    ignored = {"__init__.py", "py.typed", "__pycache__"}
    entries = {p.name for p in ROOT.iterdir() if p.suffix not in (".pyi", ".so")} - ignored
    assert len(entries) <= 14, sorted(entries)


def test_no_file_bears_the_name_of_a_public_function() -> None:
    functions = {name for name in ccamerge.__all__ if name.islower()}
    assert not functions & {name.rpartition(".")[2] for name in MODULES}


def _long_functions() -> Iterator[str]:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if not body:
                continue
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            if node.name == "merge" and lines > 50:
                yield f"{name}.merge: {lines}"
            if lines > LONGEST:
                yield f"{name}.{node.name}: {lines}"


def test_functions_fit_a_screen() -> None:
    assert not list(_long_functions())
