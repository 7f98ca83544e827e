"""Imports: no cycles; only lm/ imports transformers and peft."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gfn_runner

PACKAGE = Path(gfn_runner.__file__).parent

MODEL_LIBRARIES = {"transformers", "peft", "tokenizers", "sentence_transformers"}
# Outside lm/, these silence transformers' log and take nothing else from there.
EXCEPTIONS = {"build", "cli.policy_modes"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(name: str, *, lazy: bool = True) -> set[str]:
    """Full names that a module imports; without ``lazy`` those that its own import needs."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not lazy:
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


def own(name: str, *, lazy: bool = True) -> set[str]:
    """Modules of the package that a module imports."""
    found = {i.removeprefix("gfn_runner.") for i in imports(name, lazy=lazy) if "gfn_runner." in i}
    return (found & MODULES.keys()) - {"__init__"}


def libraries(name: str, *, lazy: bool = True) -> set[str]:
    return {i.split(".")[0] for i in imports(name, lazy=lazy)} - {"gfn_runner"}


def room(name: str) -> str:
    return name.split(".")[0]


def test_no_circle_within_a_room_either():
    # static_order raises CycleError, with the circle, where there is one.
    order = list(TopologicalSorter({name: own(name) for name in MODULES}).static_order())
    assert MODULES.keys() <= set(order)


def test_only_lm_knows_transformers_and_peft():
    for name in MODULES:
        used = {i for i in imports(name) if i.split(".")[0] in MODEL_LIBRARIES}
        if name in EXCEPTIONS:
            assert used <= {"transformers.utils", "transformers.utils.logging"}, name
        else:
            assert not used or room(name) == "lm", f"{name} imports {sorted(used)}"
    lm = {name for name in MODULES if room(name) == "lm" and libraries(name) & MODEL_LIBRARIES}
    assert lm == {
        "lm.adapters", "lm.cache", "lm.decoding", "lm.loading", "lm.merging", "lm.policy",
        "lm.architecture", "lm.checks", "lm.classifier", "lm.encoder", "lm.gguf", "lm.pretrained",
        "lm.tiny.pretrain", "lm.tiny.tokenizer",
    }  # fmt: skip


def test_no_drawer_for_odds_and_ends():
    odds = {"utils", "util", "helpers", "misc", "common"}
    assert not {part for name in MODULES for part in name.split(".")} & odds


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name):
    if TREES[name].body:
        text = ast.get_docstring(TREES[name])
        assert text and text.splitlines()[0].endswith((".", ":")), name
