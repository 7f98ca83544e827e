"""Our training step as the package executes it, with the time of each phase."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from bench.work import Shape, make_conditions, make_task
from gfn_runner.algorithms import gflownet
from gfn_runner.algorithms.base import SamplingSettings
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.callbacks.training_log import measures
from gfn_runner.data.trajectories import Batch, Trajectories
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.objectives.losses import JointBalance, Objective
from gfn_runner.tasks import base

# Modules in which the training step looks up these functions, and the phase of each.
TIMED = (
    (base, "sample", "sample"),
    (base, "log_reward", "reward"),
    (base, "terminal_log_reward", "reward"),
    (gflownet, "score_policy", "policy"),
)
PHASES = ("sample", "reward", "policy", "objective", "backward", "optimizer", "buffer", "log")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class OurStep:
    """One optimizer step on fresh trajectories, including replay buffer and logging.

    Attributes:
        seconds: seconds of each phase of the latest step.
        trajectories: trajectories of the latest step.
    """

    def __init__(self, lm: LanguageModel, shape: Shape, objective: Objective | None = None):
        self.lm = lm
        self.conditions = make_conditions(shape, lm.vocab_size)
        self.module = make_task(shape).attach(
            lm,
            gflownet.GFlowNet(objective or JointBalance()),
            conditions=self.conditions,
            sampling=SamplingSettings(
                n_conditions=shape.conditions, n_samples=shape.samples, exploration_probability=0.0
            ),
        )
        self.replay = ReplayBufferCallback()
        trainer: Any = None  # setup only reads the module
        self.replay.setup(trainer, self.module, "fit")
        self.optimizer = torch.optim.AdamW(lm.trainable().values(), lr=1e-4)
        self.seconds: dict[str, float] = {}
        self.trajectories: Trajectories | None = None

    def __call__(self, index: int) -> None:
        batch = Batch(list(self.conditions), index)
        self.seconds = defaultdict(float)
        began = time.perf_counter()
        with contextlib.ExitStack() as patches:
            for place, name, phase in TIMED:
                timed = self._timed(getattr(place, name), phase)
                patches.enter_context(mock.patch.object(place, name, timed))
            step = self.module.training_step(batch, 0)
        synchronise(self.lm.device)
        self.seconds["objective"] = time.perf_counter() - began - sum(self.seconds.values())
        self._timed(step["loss"].backward, "backward")()
        self._timed(self._update, "optimizer")()
        self._timed(self._remember, "buffer")(batch, step)
        self._timed(measures, "log")(step["output"])
        self.trajectories = step["output"].trajectories

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.lm.trainable().values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _remember(self, batch: Batch, step: dict[str, Any]) -> None:
        trainer: Any = SimpleNamespace(global_step=batch.index + 1)
        self.replay.on_train_batch_end(trainer, self.module, step, batch, 0)

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            synchronise(self.lm.device)
            self.seconds[phase] += time.perf_counter() - began
            return result

        return wrapper
