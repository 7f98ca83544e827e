"""Validation of a composed config: reports all problems at once, before weights are loaded.

Sections that become objects name their class in ``_target_`` and are validated against the constructor's
signature (``targets``); every other section has one settings class. Only ``train.py`` and ``cli/`` use the
result as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_type_hints

import lightning as L
from lightning.pytorch.loggers import Logger

from gfn_runner.algorithms.base import Algorithm
from gfn_runner.baselines.base import Baseline
from gfn_runner.config.combinations import combination_problems
from gfn_runner.config.run_config import RunConfig
from gfn_runner.config.trainer import TrainerArguments
from gfn_runner.data.samples import TaskData
from gfn_runner.data.task import Task
from gfn_runner.errors import Problem, UserError
from gfn_runner.objectives.losses import Objective
from gfn_runner.runtime.targets import (
    checked_arguments,
    instantiate,
    target_of,
    unknown_key,
    validated,
)
from gfn_runner.tasks.base import GFlowNetModule

logger = logging.getLogger(__name__)

_TARGETS: dict[str, type | None] = {
    "task": GFlowNetModule,
    "objective": Objective,
    "optimizer": None,
    "scheduler": None,
}
_SETTINGS = (
    "lm", "sampling", "evaluation", "em", "optimized_metric", "seed", "num_threads",
    "float32_matmul_precision", "output", "resume", "dry_run", "mode", "run", "prompt", "n", "answers",
)  # fmt: skip
_TYPES = get_type_hints(RunConfig, include_extras=True)
_ORDER = (*_TARGETS, "baseline", "trainer", "callbacks", "logger", *_SETTINGS)


def check(
    config: Mapping[str, Any],
    *,
    needs_data: bool = True,
    loaded: dict[str, TaskData] | None = None,
) -> RunConfig:
    """Validate a resolved config.

    Args:
        needs_data: whether unreadable data are an error. For the modes ``sample`` and ``predict`` they never
            are: a policy can be used without the files that it was trained on.
        loaded: data by task and seed, shared between the runs of a sweep that do not differ in these; data
            loaded for this run are added.

    Raises:
        UserError: lists all problems: unknown keys, wrong types, invalid values, invalid combinations,
            missing and malformed data files.
    """
    found = _Found(dict(config))
    for name in config.keys() - set(_ORDER):
        found.problems.append(unknown_key(name, name, list(_ORDER)))
    for name in _SETTINGS:
        with found.noting():
            found.parts[name] = found.setting(name)
    found.needs_data = needs_data and found.parts.get("mode") not in ("sample", "predict")
    for name, base in _TARGETS.items():
        with found.noting():
            found.parts[name] = found.object(name, base) if base else found.partial(name)
    for name in ("baseline", "trainer", "callbacks"):
        with found.noting():
            found.parts[name] = getattr(found, name)()
    with found.noting():
        found.loggers()
    found.add(combination_problems(found.parts))
    if "task" in found.parts and not any(p.where.startswith("task") for p in found.problems):
        load = _load if found.needs_data else _load_if_possible
        task, seed = found.parts["task"], found.parts.get("seed", 0)
        loaded = {} if loaded is None else loaded
        same = repr((found.values["task"], seed))
        with found.noting():
            found.parts["data"] = loaded.get(same) or loaded.setdefault(same, load(task, seed))
    found.problems += _data_problems(found.parts)
    if found.problems:
        raise UserError(found.problems)
    return RunConfig(**found.parts, values={name: found.values[name] for name in _ORDER})


class _Found:
    """State of a validation in progress.

    Attributes:
        values: the config, with values converted to their types.
        parts: valid parts by name.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.needs_data = True
        self.values = values
        self.parts: dict[str, Any] = {}
        self.problems: list[Problem] = []

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Collect the problems of user errors raised within the context."""
        try:
            yield
        except UserError as error:
            self.problems += error.problems

    def add(self, problems: Iterable[Problem]) -> None:
        """Add problems of valid parts, ignoring those of data if the data are not needed."""
        self.problems += [
            p for p in problems if self.needs_data or not p.where.startswith("task.data.")
        ]

    def setting(self, name: str) -> Any:
        if name not in self.values:
            raise UserError.one(name, "missing", "a value as in conf/config.yaml")
        made = validated(name, self.values[name], _TYPES[name])
        self.values[name] = _plain(made)
        return made

    def object(self, name: str, base: type | None = None, group: str = "") -> Any:
        """Instantiate a section with a ``_target_``, or such an entry of a group."""
        place, key = (self.values[group], f"{group}.{name}") if group else (self.values, name)
        node: Any = place.get(name)
        target = target_of(key, node, base)
        made = instantiate(key, node, base)
        arguments = checked_arguments(key, node, target)
        place[name] = {**node, **_plain(arguments)}
        if hasattr(made, "problems"):
            self.add(made.problems())
        return made

    def partial(self, name: str) -> Any:
        """Instantiate a section whose last arguments come with the module: parameters, or the optimizer."""
        node: Any = self.values.get(name)
        if isinstance(node, Mapping) and node.get("_partial_") is not True:
            where, given = f"{name}._partial_", repr(node.get("_partial_"))
            raise UserError.one(where, f"given {given}", "true: a run adds further arguments")
        return self.object(name)

    def baseline(self) -> Any:
        if self.values.get("baseline") is None:
            self.values["baseline"] = None
            return None
        made = self.object("baseline")
        if not isinstance(made, Algorithm | Baseline):
            raise UserError.one(
                "baseline._target_",
                f"given {self.values['baseline']['_target_']!r}",
                f"a subclass of {Algorithm.__name__} or {Baseline.__name__}",
            )
        return made

    def trainer(self) -> TrainerArguments:
        node: Any = self.values.get("trainer")
        target, wrong = target_of("trainer", node, L.Trainer), {}
        arguments = dict(node)
        try:
            arguments = checked_arguments("trainer", arguments, target)
        except UserError as error:
            wrong = {problem.where: problem for problem in error.problems}
        wrong = {p.where: p for p in TrainerArguments(arguments).problems()} | wrong
        if wrong:
            raise UserError(list(wrong.values()))
        return TrainerArguments(arguments)

    def _nodes(self, name: str) -> dict[str, Any]:
        """Return the named configs of a group, without removed ones."""
        nodes = self.values.get(name) or {}
        if not isinstance(nodes, Mapping):
            raise UserError.one(name, f"given {nodes!r}", "configs by name, each with a _target_")
        self.values[name] = dict(nodes)  # a copy, as entries are replaced
        return {key: node for key, node in nodes.items() if node is not None}

    def callbacks(self) -> dict[str, L.Callback]:
        made: dict[str, L.Callback] = {}
        for name in self._nodes("callbacks"):
            with self.noting():
                made[name] = self.object(name, L.Callback, "callbacks")
        return made

    def loggers(self) -> None:
        """Validate the loggers without instantiating them, which could open files and connections."""
        for name, node in self._nodes("logger").items():
            key = f"logger.{name}"
            with self.noting():
                target = target_of(key, node, Logger)
                runtime = () if "save_dir" in node else ("save_dir",)
                arguments = checked_arguments(key, node, target, runtime)
                if hasattr(target, "argument_problems"):
                    self.problems += target.argument_problems(arguments)


def _data_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield why a baseline, the M-step or supervised steps cannot learn from the data."""
    from gfn_runner.algorithms.em import em_problems

    if not {"data", "baseline", "em", "task"} <= parts.keys():
        return
    task, data = parts["task"], parts["data"]
    share = parts["sampling"].sft_share if "sampling" in parts else 0.0
    if share and not any(map(task.targets, data.train)):
        yield Problem(
            "sampling.sft_share",
            f"given {share}, but task {task.name} has no strings to learn from",
            "0 for a task without demonstrations or references",
        )
    if parts["baseline"] is not None:
        yield from parts["baseline"].unfit(task, data)
    else:
        yield from em_problems(parts["em"], data.train)


def _load(task: Task, seed: int) -> TaskData:
    data = task.load(seed)
    for kind, conditions in (("training", data.train), ("evaluation", data.evaluation)):
        if not any(condition.weight > 0 for condition in conditions):
            raise UserError.one(
                "task.data", f"zero {kind} conditions", f"at least one {kind} condition"
            )
    return data


def _load_if_possible(task: Task, seed: int) -> TaskData:
    try:
        return _load(task, seed)
    except UserError as error:
        logger.warning(
            "the run's data cannot be read, so log R is only known for prompts that need no data: %s",
            error.problems[0],
        )
        return TaskData((), ())


def _plain(value: Any) -> Any:
    """Convert a value to plain containers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
