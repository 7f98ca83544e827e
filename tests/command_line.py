"""What a command line comes to: its checked configs, or its user errors; nothing is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gfn_runner.cli.hooks import NoFolder
from gfn_runner.cli.main import run_hydra
from gfn_runner.cli.saved import hydra_arguments
from gfn_runner.config.run_config import RunConfig
from gfn_runner.data.samples import TaskData
from gfn_runner.errors import Problem, UserError
from gfn_runner.tasks.arithmetic import IntegerArithmetic

_load = IntegerArithmetic.load
_loaded: dict[Any, TaskData] = {}


def _load_once(task: IntegerArithmetic, seed: int) -> TaskData:
    made = (task.data, task.n_demonstrations, task.answers_weight, task.calculator, seed)
    if task.data.rationales or task.data.answers or task.data.test:
        return _load(task, seed)
    if made not in _loaded:
        _loaded[made] = _load(task, seed)
    return dataclasses.replace(_loaded[made])


@contextmanager
def questions_made_once() -> Iterator[None]:
    """Within it, generated questions are made once for all configs: they take a third of a check's time."""
    with pytest.MonkeyPatch.context() as patch:
        if IntegerArithmetic.load is _load:
            patch.setattr(IntegerArithmetic, "load", _load_once)
        yield


def configs(*argv: str) -> list[RunConfig]:
    """The config of a run, or of each run of a sweep."""
    with pytest.raises(NoFolder) as asked, questions_made_once():
        run_hydra(hydra_arguments(["dry_run=true", *argv]))
    return list(asked.value.configs)


def problems(*argv: str) -> dict[str, Problem]:
    """The user errors by the key that they belong to."""
    with pytest.raises(UserError) as caught, questions_made_once():
        run_hydra(hydra_arguments(["dry_run=true", *argv]))
    return {problem.where: problem for problem in caught.value.problems}
