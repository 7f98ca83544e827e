"""Imports: no cycles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import gfn_runner

PACKAGE = Path(gfn_runner.__file__).parent


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """Full names that a module imports at run time, also within functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are written out in full"
            found.add(node.module)
            # ``from gfn_runner import types`` and ``from gfn_runner.lm import policy``.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(TREES[name])
    return found


def own(name: str) -> set[str]:
    """Modules of the package that a module needs at run time."""
    prefix = "gfn_runner."
    found = {full.removeprefix(prefix) for full in imports(name) if full.startswith(prefix)}
    return (found & MODULES.keys()) - {"__init__"}


def test_modules_import_each_other_without_cycles():
    # static_order raises CycleError, with the cycle, where there is one.
    order = list(TopologicalSorter({name: own(name) for name in MODULES}).static_order())
    assert MODULES.keys() <= set(order)
