"""What a command line comes to: its checked configs, or its user errors; nothing is started."""

from __future__ import annotations

import pytest

from gfn_runner.cli.hooks import NoFolder
from gfn_runner.cli.main import run_hydra
from gfn_runner.cli.saved import hydra_arguments
from gfn_runner.config.run_config import RunConfig
from gfn_runner.errors import Problem, UserError


def configs(*argv: str) -> list[RunConfig]:
    """The config of a run, or of each run of a sweep."""
    with pytest.raises(NoFolder) as asked:
        run_hydra(hydra_arguments(["dry_run=true", *argv]))
    return list(asked.value.configs)


def problems(*argv: str) -> dict[str, Problem]:
    """The user errors by the key that they belong to."""
    with pytest.raises(UserError) as caught:
        run_hydra(hydra_arguments(["dry_run=true", *argv]))
    return {problem.where: problem for problem in caught.value.problems}
