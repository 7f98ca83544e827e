"""Run the tests on the lowest versions that pyproject.toml admits, or on the newest that can be installed.

    make test-lowest                          # what make test runs
    make test-newest ARGS='tests/unit -k peft'

Installs this package with its dev extra into build/versions/<which>, without constraints.txt. Lowest means
the lower bound of each range in pyproject.toml, including extras; pip chooses the versions of indirect
dependencies. torch has the version of constraints.txt in both cases, see docs/testing.md. An environment is
kept for a day, and recreated when pyproject.toml changes.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "versions"
# torch is built for one kind of machine, for which other versions may be unavailable.
FIXED = ("torch",)
# Pinned to one version for a script; needs a newer wandb than the package itself.
NOT_LOWEST = ("wandb-workspaces",)
SELECTION = "not real and not slurm and not browser and not gpu and not slow"


def ranges(project: dict, extra: str | None = None) -> Iterator[Requirement]:
    """Yield the requirements of the package, or of one extra, including those of extras that it names."""
    optional = project["optional-dependencies"]
    for text in optional[extra] if extra else project["dependencies"]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for other in sorted(requirement.extras):
                yield from ranges(project, other)
        else:
            yield requirement


def lowest(requirement: Requirement) -> str:
    """Pin the requirement to its lower bound; return it unchanged if it has none."""
    for specifier in requirement.specifier:
        if specifier.operator == ">=":
            return f"{requirement.name}=={specifier.version}"
    return str(requirement)


def wanted(which: str) -> list[str]:
    """Return the requirements to install with pip, in addition to this package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    everything = [*ranges(project), *ranges(project, "dev")]
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    fixed = [re.search(rf"^{name}==.*$", constraints, re.MULTILINE).group() for name in FIXED]
    left_out = FIXED if which == "newest" else FIXED + NOT_LOWEST
    asked = [requirement for requirement in everything if requirement.name not in left_out]
    return [*fixed, *sorted({str(r) if which == "newest" else lowest(r) for r in asked})]


def environment(which: str) -> Path:
    """Return the interpreter of an environment with those versions, creating it if necessary."""
    folder = FOLDER / which
    python, stamp = folder / "bin" / "python", folder / "asked.txt"
    asked = "\n".join([datetime.date.today().isoformat(), *wanted(which)])
    if not stamp.exists() or stamp.read_text("utf-8") != asked:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        subprocess.run([*pip, *asked.splitlines()[1:]], check=True)
        # Without dependencies, since its own ranges are being tested; pip check covers the others.
        subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
        stamp.write_text(asked, "utf-8")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("lowest", "newest"))
    chosen, pytest_arguments = parser.parse_known_args()
    try:
        python = environment(chosen.which)
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip cannot install what pyproject.toml admits: {' '.join(error.cmd)}")
    names = {Requirement(text).name.lower() for text in wanted(chosen.which)}
    frozen = subprocess.run(
        [python, "-m", "pip", "freeze"], check=True, text=True, capture_output=True
    ).stdout
    print(" ".join(line for line in frozen.splitlines() if line.split("==")[0].lower() in names))
    command = [python, "-m", "pytest", "-q", "-m", SELECTION, *pytest_arguments]
    sys.exit(
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    )


if __name__ == "__main__":
    main()
