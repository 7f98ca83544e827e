"""The schema of a run and the check that finds every mistake at once; loads no model.

Schemas are the settings classes of the components themselves. ``task`` and ``objective`` name theirs
by ``_target_``; every other section has one class.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as settings
from rapidfuzz import process

from gfn_runner.algorithms.schedules import Schedule
from gfn_runner.baselines.methods import Baseline
from gfn_runner.config.schemas import (
    CheckpointSettings,
    EMSettings,
    EvaluationSettings,
    HealthSettings,
    LoggerSettings,
    OptimSettings,
    ProgressSettings,
    ReportSettings,
    SamplingSettings,
    TrainerSettings,
    em_problems,
)
from gfn_runner.data.replay_buffer import ReplaySettings
from gfn_runner.data.samples import TaskData
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.settings import LMSettings
from gfn_runner.objectives.losses import Objective
from gfn_runner.tasks.base import Task

logger = logging.getLogger(__name__)
Mode = Literal["train", "sample", "predict", "evaluate"]
AUTO = "auto"  # a value of ``resume``


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class CallbackSettings:
    """What accompanies training; see the class of each."""

    replay: ReplaySettings = Field(default_factory=ReplaySettings)
    tempering: Schedule = Field(default_factory=Schedule)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    progress: ProgressSettings = Field(default_factory=ProgressSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)


@dataclass(frozen=True)
class RunConfig:
    """A checked run.

    Attributes:
        task: data, posterior, answers, metrics.
        objective: weights on pairs of φ.
        baseline: what is done in place of GFlowNet training; ``None`` for that.
        lm, sampling, optim, em, trainer, logger, callbacks: see their classes.
        optimized_metric: what a run returns to a search: a metric's name, with a row or group in front
            or without (``log_reward``, ``base_3_shot/vote_accuracy``), averaged over evaluation sets;
            ``None``: the task's own (``Task.optimized``).
        seed: of everything random.
        output: folder of all runs.
        resume: folder of the run to go on with; ``auto`` for the one in the run's own folder, if there is
            one; or ``None``.
        dry_run: show the config and stop.
        mode: ``train``; or what to do with the policy of the folder ``run``: ``sample``, ``predict``,
            ``evaluate``.
        run: folder of a finished run, for every mode but ``train``.
        prompt: what the policy reads, for ``sample`` and ``predict``.
        n: samples to draw, for ``sample`` and ``predict``.
        answers: to choose from, for ``predict``.
        data: the task's conditions, read during the check.
    """

    task: Task
    objective: Objective
    baseline: Baseline | None
    lm: LMSettings
    sampling: SamplingSettings
    optim: OptimSettings
    em: EMSettings
    trainer: TrainerSettings
    logger: LoggerSettings
    callbacks: CallbackSettings
    optimized_metric: str | None
    seed: int
    output: str
    resume: str | None
    dry_run: bool
    mode: Mode
    run: str | None
    prompt: str | None
    n: int
    answers: tuple[str, ...]
    data: TaskData = field(repr=False)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all E-steps."""
        return max(1, self.em.rounds) * self.trainer.max_steps

    @property
    def default_metric(self) -> str:
        """What a search optimises where ``optimized_metric`` is not set; empty if the task has none."""
        return self.task.optimized or next(iter(self.task.headline), "")

    @property
    def tags(self) -> tuple[str, ...]:
        """By which W&B finds runs: the task's and the objective's (or the baseline's) name."""
        trained = self.objective if self.baseline is None else self.baseline
        return (self.task.name, type(trained).__name__)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, every default filled in; what ``config.yaml`` of a run holds."""
        plain = {name: _plain(getattr(self, name)) for name in _ORDER}
        for name in _POLYMORPHIC:
            if plain[name] is None:
                continue
            kind = type(getattr(self, name))
            plain[name] = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **plain[name]}
        return plain


_POLYMORPHIC: dict[str, type] = {"task": Task, "objective": Objective, "baseline": Baseline}
_OPTIONAL = {"baseline"}
_SECTIONS: dict[str, type] = {
    "lm": LMSettings,
    "sampling": SamplingSettings,
    "optim": OptimSettings,
    "em": EMSettings,
    "trainer": TrainerSettings,
    "logger": LoggerSettings,
    "callbacks": CallbackSettings,
}
_SCALARS: dict[str, Any] = {
    "optimized_metric": Annotated[str, Field(min_length=1)] | None,
    "seed": Annotated[int, Field(ge=0)],
    "output": str,
    "resume": str | None,
    "dry_run": bool,
    "mode": Mode,
    "run": str | None,
    "prompt": str | None,
    "n": Annotated[int, Field(ge=1)],
    "answers": tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...],
}
_ORDER = (*_POLYMORPHIC, *_SECTIONS, *_SCALARS)

Source = Callable[[str], str]


def check(
    config: Mapping[str, Any], source: Source = lambda key: "", *, needs_data: bool = True
) -> RunConfig:
    """Turn a resolved config into checked settings, or report every mistake.

    Args:
        config: plain containers.
        source: says where the value of a key was set; for the report.
        needs_data: whether data that cannot be read are a mistake. They never are for the modes
            ``sample`` and ``predict``: a policy outlives the files that it was trained on.

    Raises:
        UserError: with all problems found: unknown keys, wrong types, impossible values, impossible
            combinations, missing and malformed data files.
    """
    problems: list[Problem] = []
    parts: dict[str, Any] = {}
    for name in config.keys() - set(_ORDER):
        problems.append(_unknown(name, name, list(_ORDER)))
    for name, base in _POLYMORPHIC.items():
        if name in _OPTIONAL and config.get(name) is None:
            parts[name] = None
            continue
        _collect(parts, problems, name, partial(_build, name, config.get(name), base))
    for name, kind in {**_SECTIONS, **_SCALARS}.items():
        if name in config:
            _collect(parts, problems, name, partial(validated, name, config[name], kind))
        elif name in _SECTIONS:
            parts[name] = _SECTIONS[name]()
        else:
            problems.append(Problem(name, "missing", "a value in conf/config.yaml"))
    needs_data = needs_data and parts.get("mode") not in ("sample", "predict")
    found = _value_problems(parts)
    problems += [p for p in found if needs_data or not p.where.startswith("task.data.")]
    if "task" in parts and not any(p.where.startswith("task") for p in problems):
        load = _load if needs_data else _load_if_possible
        _collect(parts, problems, "data", lambda: load(parts["task"], parts.get("seed", 0)))
    if {"data", "baseline", "em"} <= parts.keys() and parts["baseline"] is not None:
        problems += _baseline_problems(parts)
    elif {"data", "em"} <= parts.keys():
        problems += em_problems(parts["em"], parts["data"].train)
    if problems:
        raise UserError([_with_source(problem, source) for problem in problems])
    return RunConfig(**parts)


def _collect(
    parts: dict[str, Any], problems: list[Problem], name: str, make: Callable[[], Any]
) -> None:
    try:
        parts[name] = make()
    except UserError as error:
        problems += error.problems


def _build(name: str, given: Any, base: type) -> Any:
    """An instance of the class that ``_target_`` names."""
    if not isinstance(given, Mapping):
        raise UserError.one(
            name, f"given {given!r}", f"a config of the group {name}, e.g. {name}=<name>"
        )
    values = dict(given)
    target = values.pop("_target_", None)
    where = f"{name}._target_"
    if not isinstance(target, str) or "." not in target:
        raise UserError.one(where, f"given {target!r}", "the import path of a class")
    module_name, _, class_name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError.one(
            where, f"cannot import {target!r}: {error}", f"a subclass of {base.__name__}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UserError.one(where, f"given {target!r}", f"a subclass of {base.__name__}")
    return validated(name, values, kind)


def validated(name: str, given: Any, kind: Any) -> Any:
    """A value of the key ``name`` as settings of a kind.

    Raises:
        UserError: with every unknown key, wrong type and impossible value.
    """
    if dataclasses.is_dataclass(kind) and not isinstance(given, Mapping):
        raise UserError.one(name, f"given {given!r}", f"keys: {', '.join(_fields(kind))}")
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise UserError([_explained(name, kind, e) for e in error.errors()]) from error


def _explained(name: str, kind: Any, error: Any) -> Problem:
    """A pydantic error with its full key, what was given and what is allowed."""
    location = [part for part in error["loc"] if part != "nullable"]
    key = name
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown(key, str(location[-1]), _fields(_type_at(kind, location[:-1])))
    if error["type"] == "dataclass_type":
        at = _type_at(kind, location)
        choice = error["input"]
        is_group = key.startswith("callbacks.") and isinstance(choice, (str, bool))
        word = {True: "on", False: "off"}.get(choice, choice) if is_group else choice
        fix = f"{key.replace('.', '/')}={word} for a choice of the group" if is_group else ""
        return Problem(key, f"given {choice!r}", f"keys: {', '.join(_fields(at))}", fix)
    allowed = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return Problem(key, f"given {error['input']!r}", allowed)


def _unknown(key: str, name: str, known: list[str]) -> Problem:
    near = process.extractOne(name, known, score_cutoff=60)
    prefix = key[: len(key) - len(name)]
    fix = f"did you mean {prefix}{near[0]}?" if near else ""
    return Problem(key, "unknown key", ", ".join(known), fix)


def _fields(kind: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _type_at(kind: Any, location: list[Any]) -> Any:
    for part in location:
        if dataclasses.is_dataclass(kind):
            kind = get_type_hints(kind).get(str(part), Any)
    return kind


# -- what no single field can know --------------------------------------------------------------


def _value_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    for part in parts.values():
        if hasattr(part, "problems"):
            yield from part.problems()
    if "callbacks" in parts:
        yield from parts["callbacks"].replay.problems()
        yield from parts["callbacks"].evaluation.problems()
    if {"objective", "sampling", "baseline"} <= parts.keys():
        # A baseline balances no φ: it has an objective of its own.
        trains = parts["objective"] if parts["baseline"] is None else parts["baseline"]
        yield from _too_few_samples(trains, parts["sampling"])
        if "task" in parts and parts["baseline"] is None:
            yield from _no_credit(parts["objective"], parts["sampling"], parts["task"])
    if {"trainer", "lm", "em"} <= parts.keys() and parts["trainer"].shards:
        yield from _sharding_problems(parts["lm"], parts["em"])
    if "mode" in parts:
        yield from _mode_problems(parts)
    if {"mode", "lm", "baseline"} <= parts.keys():
        yield from _precision_problems(parts["mode"], parts["lm"], parts["baseline"])


def _baseline_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """What of task and settings a baseline cannot do."""
    baseline = parts["baseline"]
    yield from baseline.unfit(parts["task"], parts["data"])
    name = baseline.label
    if parts["em"].rounds:
        yield Problem(
            "em.rounds", f"given {parts['em'].rounds} with {name}", "0, or no baseline", "em=off"
        )
    if "callbacks" in parts and parts["callbacks"].replay.probability > 0:
        yield Problem(
            "callbacks.replay.probability",
            f"given {parts['callbacks'].replay.probability} with {name}, which learns from no buffer",
            "0",
            "callbacks/replay=off",
        )
    if baseline.lightning_module is None:
        if parts.get("resume") not in (None, AUTO):
            yield Problem("resume", f"given with {name}, which trains nothing", "a new run")
        if "trainer" in parts and parts["trainer"].processes.number > 1:
            n = parts["trainer"].processes.number
            yield Problem(
                "trainer.devices", f"{n} processes with {name}, which trains nothing", "1"
            )


def _sharding_problems(lm: LMSettings, em: EMSettings) -> Iterator[Problem]:
    where, without = "trainer.strategy", "ddp with this, "
    if lm.quantization != "none":
        yield Problem(
            where, f"given 'fsdp' with lm.quantization={lm.quantization}", without + "or none of it"
        )
    if lm.recompute_above is not None:
        yield Problem(where, "given 'fsdp' with lm.recompute_above", without + "or null for it")
    if em.rounds:
        yield Problem(where, f"given 'fsdp' with em.rounds={em.rounds}", without + "or em.rounds=0")


def _precision_problems(mode: Mode, lm: LMSettings, baseline: Baseline | None) -> Iterator[Problem]:
    trains = baseline is None or baseline.lightning_module is not None
    if mode == "train" and trains and lm.dtype == "float16":
        yield Problem(
            "lm.dtype",
            "given 'float16' for training: small gradients become 0, as losses are not scaled",
            "auto, float32, bfloat16; float16 with mode=sample, predict, evaluate and with baselines "
            "that train nothing",
            "lm.dtype=bfloat16",
        )


def _too_few_samples(trains: Objective | Baseline, sampling: SamplingSettings) -> Iterator[Problem]:
    if trains.needs_pairs_between and sampling.samples < 2:
        is_objective = isinstance(trains, Objective)
        other = "an objective of one trajectory (subtb, db, tb)" if is_objective else "baseline=ppo"
        yield Problem(
            "sampling.samples",
            f"given {sampling.samples}, but {'objective' if is_objective else 'baseline'} "
            f"{type(trains).__name__} compares different trajectories of one condition",
            f"at least 2, or {other}",
        )


def _no_credit(objective: Objective, sampling: SamplingSettings, task: Task) -> Iterator[Problem]:
    between = objective.pairs_between and sampling.samples > 1
    if objective.needs_prefixes and not between and task.min_len > 0:
        given, allowed = type(objective).__name__, "(joint, vargrad, tb)"
        if objective.pairs_between:
            given, allowed = f"{given} with sampling.samples={sampling.samples}", "and 2 samples"
        yield Problem(
            "task.min_len",
            f"given {task.min_len}, but objective {given} compares states of one trajectory only: "
            "tokens before the first state at which a string may end would never be trained",
            f"0 with this objective, or an objective with one log Z per condition {allowed}",
        )


def _mode_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    mode, run = parts["mode"], parts.get("run")
    if mode == "train":
        for name in ("run", "prompt"):
            if parts.get(name) is not None:
                fix = f"resume={run} to train on" if name == "run" else ""
                yield Problem(
                    name,
                    f"given {parts[name]!r} with mode=train",
                    "mode=sample, predict, evaluate",
                    fix,
                )
        return
    if parts.get("resume") not in (None, AUTO):
        yield Problem("resume", f"given with mode={mode}", "run=<folder of a finished run>")
    if run is None:
        yield Problem("run", f"missing; mode={mode} needs it", "the folder of a finished run")
    if mode in ("sample", "predict") and parts.get("prompt") is None:
        yield Problem("prompt", f"missing; mode={mode} needs it", "what the policy is to read")
    if mode == "predict" and len(set(parts.get("answers") or ())) < 2:
        yield Problem(
            "answers",
            f"given {list(parts.get('answers') or ())} with mode=predict",
            "at least two different answers, e.g. answers=[5,7]",
        )


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
            "the run's data cannot be read, so log R is known only of prompts that need none of them: %s",
            error.problems[0],
        )
        return TaskData((), ())


def _with_source(problem: Problem, source: Source) -> Problem:
    return dataclasses.replace(problem, source=problem.source or source(problem.where))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
