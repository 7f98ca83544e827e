"""Invalid combinations of settings whose values are valid individually."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gfn_runner.algorithms.base import Algorithm, SamplingSettings
from gfn_runner.algorithms.em import EMSettings
from gfn_runner.baselines.base import Baseline
from gfn_runner.callbacks.checkpoint import AdapterCheckpoint
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.config.run_config import AUTO
from gfn_runner.data.task import Task
from gfn_runner.distributed.ranks import Processes
from gfn_runner.errors import Problem
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.objectives.losses import Objective


def combination_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems between individually valid parts of a config."""
    for name in ("lm", "sampling", "evaluation"):
        if name in parts:
            yield from parts[name].problems()
    if {"objective", "sampling", "baseline"} <= parts.keys():
        # A baseline does not balance φ; it has its own objective.
        trained = parts["objective"] if parts["baseline"] is None else parts["baseline"]
        yield from _too_few_samples(trained, parts["sampling"])
        if "task" in parts and parts["baseline"] is None:
            yield from _no_credit(parts["objective"], parts["sampling"], parts["task"])
    if {"trainer", "lm", "em"} <= parts.keys() and parts["trainer"].shards:
        yield from _sharding_problems(parts["trainer"].processes, parts["lm"], parts["em"])
    if "mode" in parts:
        yield from _mode_problems(parts)
    if {"mode", "lm", "baseline"} <= parts.keys():
        yield from _precision_problems(parts["mode"], parts["lm"], parts["baseline"])
    if {"em", "callbacks"} <= parts.keys() and parts["em"].rounds > 1:
        yield from _no_checkpoint(parts["em"].rounds, parts["callbacks"])
    if {"baseline", "em"} <= parts.keys() and parts["baseline"] is not None:
        yield from _baseline_problems(parts)
    if "optimizer" in parts:
        yield from _optimizer_problems(parts["optimizer"])


def _no_checkpoint(rounds: int, callbacks: Mapping[str, Any]) -> Iterator[Problem]:
    if not any(isinstance(callback, AdapterCheckpoint) for callback in callbacks.values()):
        yield Problem(
            "em.rounds",
            f"given {rounds} without callbacks.checkpoint: an E-step starts from the last one's checkpoint",
            "at most 1 without checkpoints",
            "callbacks/checkpoint=newest",
        )


def _optimizer_problems(optimizer: Any) -> Iterator[Problem]:
    """Yield invalid rates, and errors of the constructor, which is tried on a single parameter."""
    given = getattr(optimizer, "keywords", {})
    lr, decay = given.get("lr"), given.get("weight_decay")
    problems = []
    if isinstance(lr, int | float) and not lr > 0:
        problems.append(Problem("optimizer.lr", f"given {lr}", "greater than 0"))
    if isinstance(decay, int | float) and not decay >= 0:
        problems.append(Problem("optimizer.weight_decay", f"given {decay}", "at least 0"))
    if problems:
        yield from problems
        return
    try:
        made = optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    except Exception as error:  # a constructor may fail in any way on values that it does not check
        values = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in given.items())
        what = f"given {values}: {type(error).__name__}: {error}"
        yield Problem("optimizer", what, "arguments that its constructor takes")
        return
    if not isinstance(made, torch.optim.Optimizer):
        yield Problem("optimizer._target_", f"makes {made!r}", "a torch.optim.Optimizer")


def _baseline_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield settings that a baseline does not support."""
    baseline = parts["baseline"]
    name = baseline.label
    if parts["em"].rounds:
        yield Problem(
            "em.rounds", f"given {parts['em'].rounds} with {name}", "0, or no baseline", "em=off"
        )
    for callback in parts.get("callbacks", {}).values():
        if isinstance(callback, ReplayBufferCallback) and callback.active:
            yield Problem(
                "callbacks.replay_buffer.probability",
                f"given {callback.probability} with {name}, which learns from no buffer",
                "0",
                "callbacks/replay_buffer=off",
            )
    if not isinstance(baseline, Algorithm):
        if parts.get("resume") not in (None, AUTO):
            yield Problem("resume", f"given with {name}, which trains nothing", "a new run")
        if "trainer" in parts and parts["trainer"].processes.number > 1:
            n = parts["trainer"].processes.number
            yield Problem(
                "trainer.devices", f"{n} processes with {name}, which trains nothing", "1"
            )


def _sharding_problems(processes: Processes, lm: LMSettings, em: EMSettings) -> Iterator[Problem]:
    where, without = "trainer.strategy", "ddp with this, "
    if lm.quantization != "none":
        yield Problem(
            where, f"given 'fsdp' with lm.quantization={lm.quantization}", without + "or none of it"
        )
    if lm.recompute_above is not None:
        yield Problem(where, "given 'fsdp' with lm.recompute_above", without + "or null for it")
    if em.rounds and em.m_batch % processes.number:
        # All ranks must run the same number of forward passes with gradients.
        yield Problem(
            "em.m_batch",
            f"given {em.m_batch}, which {processes.number} processes with trainer.strategy=fsdp "
            "cannot share equally",
            f"a multiple of {processes.number}",
        )


def _precision_problems(
    mode: str, lm: LMSettings, baseline: Algorithm | Baseline | None
) -> Iterator[Problem]:
    trains = baseline is None or isinstance(baseline, Algorithm)
    if mode == "train" and trains and lm.dtype == "float16":
        yield Problem(
            "lm.dtype",
            "given 'float16' for training: small gradients become 0, as losses are not scaled",
            "auto, float32, bfloat16; float16 with mode=sample, predict, evaluate and with baselines "
            "that train nothing",
            "lm.dtype=bfloat16",
        )


def _too_few_samples(
    trains: Objective | Algorithm | Baseline, sampling: SamplingSettings
) -> Iterator[Problem]:
    if getattr(trains, "needs_pairs_between", False) and sampling.n_samples < 2:
        yield Problem(
            "sampling.n_samples",
            f"given {sampling.n_samples}, but {type(trains).__name__} compares different trajectories "
            "of one condition",
            "at least 2, or a method that compares none: the objectives subtb, db, tb; baseline=ppo",
        )


def _no_credit(objective: Objective, sampling: SamplingSettings, task: Task) -> Iterator[Problem]:
    between = objective.pairs_between and sampling.n_samples > 1
    if objective.needs_prefixes and not between and task.min_len > 0:
        yield Problem(
            "task.min_len",
            f"given {task.min_len}, but objective {type(objective).__name__} with "
            f"sampling.n_samples={sampling.n_samples} compares states of one trajectory only: tokens "
            "before the first state at which a string may end would never be trained",
            "0; or objective=tb; or vargrad, or joint with between above 0, and at least 2 samples",
        )


def _mode_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    mode, run = parts["mode"], parts.get("run")
    if mode == "train":
        for name in ("run", "prompt"):
            if parts.get(name) is not None:
                fix = f"resume={run} to continue training" if name == "run" else ""
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
        yield Problem("prompt", f"missing; mode={mode} needs it", "the text that the policy reads")
    if mode == "predict" and len(set(parts.get("answers") or ())) < 2:
        yield Problem(
            "answers",
            f"given {list(parts.get('answers') or ())} with mode=predict",
            "at least two different answers, e.g. answers=[5,7]",
        )
