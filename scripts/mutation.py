"""Mutation testing of the modules with exact formulas: mutmut changes the code, the tests must notice.

    make mutation                                        # every module of TESTS, hours on two cores
    make mutation ARGS='objectives/phi metrics/evidence' # some modules
    make mutation ARGS='objectives/phi --retest'         # survivors again, after a test was added
    make mutation ARGS='objectives/phi --show'           # what survived, as diffs

An interrupted run is resumed. Each module has its own folder in build/mutation; without it (``--fresh``),
everything is run again. mutmut changes function bodies, but neither decorated functions (properties,
``no_grad``) nor constants of classes and modules: docs/testing.md.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "mutation"
COPIED = ("conf", "hydra_plugins", "tests", "scripts", "docs")

# The tests that must detect a change of a module; for each mutant, mutmut runs those that reach the function.
# Tests with training loops are excluded: they detect the same as formulas, but take a hundred times as long.
FORMULAS = "not trained and not spaces and not minimum_length and not on_and_off_policy"
LOSSES = ("tests/exact/test_objectives.py", "tests/properties/test_objectives.py", "-k", FORMULAS)
TESTS: dict[str, tuple[str, ...]] = {
    "objectives/phi": LOSSES,
    "objectives/losses": LOSSES,
    "metrics/evidence": ("tests/exact/test_evidence.py",),
    "lm/vocabulary": (
        "tests/unit/test_vocabulary.py",
        "tests/properties/test_scoring.py",
        "-k",
        "not scores and not log_probability and not weighted_sum",
    ),
    "lm/string_rule": ("tests/unit/test_encoding.py", "tests/unit/test_chat.py"),
    "algorithms/schedules": ("tests/unit/test_schedules.py",),
    "data/replay_buffer": ("tests/unit/test_replay.py", "tests/properties/test_replay_buffer.py"),
    "data/tools": ("tests/unit/test_tools.py",),
    "data/expressions": ("tests/unit/test_expressions.py",),
    "lm/log_probs": ("tests/unit/test_log_probs.py",),
    "lm/scoring": (
        "tests/unit/test_whole_strings.py",
        "tests/properties/test_scoring.py",
        "tests/unit/test_recompute.py",
        "tests/unit/test_policy_gradient.py",
        "tests/unit/test_limits.py",
        "-k",
        "not kl_term and not rises",
    ),
}

STATUSES = ("killed", "survived", "timeout", "no tests")


def mutmut(folder: Path, *arguments: str, quiet: bool = False) -> str:
    """Run mutmut in a module's folder; return its output if ``quiet``, else let it print."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE if quiet else None,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"mutmut {' '.join(arguments[:1])} failed in {folder}")
    return done.stdout or ""


def prepare(module: str) -> Path:
    """Create the module's folder: links to the repository, and settings of mutmut and pytest."""
    folder = FOLDER / module.replace("/", ".")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("gfn_runner", *COPIED):
        link = folder / name
        if not link.exists():
            link.symlink_to(ROOT / name)
    settings = {
        "source_paths": ["gfn_runner"],
        "only_mutate": [f"gfn_runner/{module}.py"],
        "also_copy": list(COPIED),
        "pytest_add_cli_args": ["-m", "not slow and not gpu"],
        "pytest_add_cli_args_test_selection": list(TESTS[module]),
        # A mutant may loop forever, and the machine may be busy with other work.
        "timeout_multiplier": 5.0,
        "timeout_constant": 4.0,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines += ["use_git_change_detection = false", ""]
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    text = project + "\n[tool.mutmut]\n" + "\n".join(lines)
    (folder / "pyproject.toml").write_text(text, "utf-8")
    return folder


def results(folder: Path) -> dict[str, str]:
    """Return the status of each mutant by name; empty before the first run."""
    if not (folder / "mutants").exists():
        return {}
    lines = mutmut(folder, "results", "--all", "true", quiet=True).splitlines()
    pairs = (line.strip().rsplit(": ", 1) for line in lines if ": " in line)
    return {name: status for name, status in pairs}


def alive(found: dict[str, str]) -> list[str]:
    """Return the mutants that no test has detected."""
    return [name for name, status in found.items() if status not in ("killed", "timeout")]


def test(module: str, *, retest: bool, show: bool) -> dict[str, str]:
    """Run a module's mutants that were not run yet, and its survivors again if requested."""
    folder = prepare(module)
    found = results(folder)
    if not show:
        mutated = folder / "mutants" / "gfn_runner" / f"{module}.py"
        source = ROOT / "gfn_runner" / f"{module}.py"
        changed = not found or source.stat().st_mtime > mutated.stat().st_mtime
        if changed or "not checked" in found.values():
            mutmut(folder, "run", "--max-children", "1")
            found = results(folder)
        if retest and alive(found):
            mutmut(folder, "run", "--max-children", "1", *alive(found))
            found = results(folder)
    left = alive(found)
    for name in left:
        print(mutmut(folder, "show", name, quiet=True) if show else f"  {found[name]}: {name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--retest", action="store_true", help="test survivors again")
    parser.add_argument("--show", action="store_true", help="only show survivors, as diffs")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    chosen = parser.parse_args()
    unknown = set(chosen.modules) - set(TESTS)
    if unknown:
        parser.error(
            f"no tests are stated for {', '.join(sorted(unknown))}; known: {', '.join(TESTS)}"
        )
    rows = []
    for module in chosen.modules or TESTS:
        if chosen.fresh:
            shutil.rmtree(FOLDER / module.replace("/", "."), ignore_errors=True)
        found = test(module, retest=chosen.retest, show=chosen.show)
        counts = collections.Counter(found.values())
        others = len(found) - sum(counts[status] for status in STATUSES)
        rows.append((module, len(found), *(counts[status] for status in STATUSES), others))
    heads = ("module", "mutants", *STATUSES, "others")
    for row in (heads, *rows):
        print(f"{row[0]:22}" + "".join(f"{value!s:>10}" for value in row[1:]))


if __name__ == "__main__":
    main()
