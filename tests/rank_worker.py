"""One of two processes of tests/integration/test_several_ranks.py: a few steps under Lightning.

Called twice, with torchrun's variables: ``python -m tests.rank_worker FOLDER
NAME:STRATEGY:LAUNCHER:PORT ...`` does these in turn: importing torch takes longer than the steps.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch

import gfn_runner.objectives.losses
from gfn_runner.algorithms import em
from gfn_runner.algorithms.ppo import PPO
from gfn_runner.algorithms.sft import SFT
from gfn_runner.data.conditions import Condition
from gfn_runner.data.datamodule import ConditionData
from gfn_runner.data.samples import TaskData
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.distributed import launch
from gfn_runner.distributed.launch import cluster_environment, launch_ranks
from gfn_runner.distributed.ranks import Processes, all_gather, is_rank_zero
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sharding import ignore_sharded_parameters, shard
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.tasks.base import GFlowNetModule
from gfn_runner.tasks.infilling import StoryInfilling
from gfn_runner.train import quiet
from tests.tiny_models import tiny_lm
from tests.tiny_modules import tiny_module

STEPS = 3
_RANKS = Processes(devices=2)


class OftenEmpty(StoryInfilling):
    """A task whose policy writes nothing in every second batch: those of rank 1."""

    def explore(
        self, prompts: list[tuple[int, ...]], index: int, temperature: float
    ) -> Trajectories:
        if index % 2 == 0:
            return super().explore(prompts, index, temperature)
        places = [place for place in range(len(prompts)) for _ in range(self.sampling.n_samples)]
        none: list[tuple[()]] = [()] * len(places)
        return Trajectories.from_rows(none, none, places)


_OPTIONS: dict[str, Any] = {"max_len": 4, "template": "{beginning}{ending}:"}
_TASK, _OFTEN_EMPTY = StoryInfilling(**_OPTIONS), OftenEmpty(**_OPTIONS)
_TEXTS = {"a b.": "c.", "b.": "a b d.", "c a.": "c.", "d.": "c."}  # one rank has the long middle
CONDITIONS = [_TASK._condition(beginning, middle, "d.") for beginning, middle in _TEXTS.items()]


def small_module(name: str) -> GFlowNetModule:
    """The same on every rank: of an objective, or of a baseline."""
    baselines = {"SFT": SFT, "PPO": lambda: PPO(epochs=1)}
    make = baselines.get(name) or getattr(gfn_runner.objectives.losses, name)
    lm = tiny_lm(adapter="random")
    lm.max_tokens_per_forward = 24  # so that ranks cut rows into different numbers of pieces
    return tiny_module(
        _OFTEN_EMPTY if name == "PPO" else _TASK, make(), CONDITIONS,
        lm=lm, samples=5, lr=0.01, warmup_steps=0, max_steps=STEPS,
    )  # fmt: skip


def trained(module: GFlowNetModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


class Recorder(L.Callback):
    """Keeps what every step began with and what gradient it took.

    Attributes:
        steps: parameters, gradients and condition keys of each.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        keys = [condition.key for condition in batch.conditions]
        self.steps.append({"parameters": trained(module), "keys": keys, "index": batch.index})

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.steps[-1]["gradients"] = {
            name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None
        }


def m_step_of_known_strings(lm: LanguageModel) -> tuple[dict[str, float], list[torch.Tensor]]:
    """An M-step behind the true middles, whatever the policy samples; parameters of its adapter."""
    drawn = em._samples

    def known(lm: LanguageModel, conditions: Sequence[Condition], *rest: Any) -> Trajectories:
        drawn(lm, conditions, *rest)
        ids = [lm.encode(_TASK.targets(condition)[0]) for condition in conditions]
        return Trajectories.from_rows(ids, [(True,) * len(i) for i in ids], range(len(ids)))

    options = em.EMSettings(rounds=1, m_steps=3, m_lr=1e-2, m_batch=8, lora=LoraSettings(rank=4))
    rule = string_rule(lm, _TASK, 6)
    with mock.patch.object(em, "_samples", known):
        measured = em.m_step(lm, CONDITIONS, rule, options, tool=None, seed=0)
    return measured, [p.detach().clone() for p in lm.answer_parameters()]


def m_steps_of_ranks(strategy: str, file: Path) -> None:
    """An M-step of all ranks, and what they read of it where rank 0 alone sees the run's folder."""
    with launch_ranks(_RANKS, None):
        lm = small_module("TrajectoryBalance").lm
        if strategy == "fsdp":
            shard(lm, torch.device("cpu"))
        made = all_gather(m_step_of_known_strings(lm))
        folder = file.with_suffix("") / ("run" if is_rank_zero() else "not seen by this rank")
        if is_rank_zero():
            folder.mkdir(parents=True)
            em.save_answers(lm, folder, made[0][0])
        again = small_module("TrajectoryBalance").lm
        em.load_answers(again, folder)
        read = all_gather((again.m_steps, [p.detach() for p in again.answer_parameters()]))
        if is_rank_zero():
            torch.save({"made": made, "read": read}, file)


def train(name: str, strategy: str, file: Path) -> None:
    """A few steps of all ranks, and what they draw of the trained policy together."""
    with launch_ranks(_RANKS, None):
        module = small_module(name)
        if strategy == "fsdp":
            shard(module.lm, torch.device("cpu"))
            ignore_sharded_parameters(module)
        recorder = Recorder()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=_RANKS.devices,
            num_nodes=_RANKS.nodes,
            plugins=[cluster_environment(_RANKS)],
            strategy="ddp",
            use_distributed_sampler=False,
            max_steps=STEPS,
            limit_val_batches=0,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = TaskData(CONDITIONS, CONDITIONS)
        batches = ConditionData(data, batch_size=2, seed=0)
        trainer.fit(module, datamodule=batches)
        records = all_gather(recorder.steps)
        # Three conditions: one rank has two of them, and more forwards to run.
        settings = EvaluationSettings(votes=0, singles=4, batch=1)
        generator = torch.Generator().manual_seed(0)
        drawing = module.drawing(CONDITIONS[:3]).replace(options=settings)
        drawn = draw_answers(drawing, generator)
        if is_rank_zero():
            strings = [(s.condition.key, s.singles, s.log_pf, s.log_reward) for s in drawn]
            torch.save({"steps": records, "strings": strings, "trained": trained(module)}, file)


_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@contextlib.contextmanager
def started_by(launcher: str, port: str) -> Iterator[None]:
    """The variables of torchrun, or of srun with a GPU for each task."""
    with mock.patch.dict(os.environ, {"MASTER_PORT": port}), contextlib.ExitStack() as stack:
        if launcher == "srun":
            own, *_ = [os.environ.pop(name) for name in _TORCHRUN]
            given = {"STEP_NUM_TASKS": 2, "NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1}
            given |= {"NODEID": 0, "PROCID": own, "LOCALID": own, "GPUS_PER_TASK": 1}
            os.environ.update({f"SLURM_{name}": str(value) for name, value in given.items()})
            # As where a process sees one.
            stack.enter_context(mock.patch.object(launch, "_has_own_gpu", lambda wanted: True))
        yield


def main(folder: Path, *jobs: str) -> None:
    quiet()
    torch.set_num_threads(1)
    for job in jobs:
        name, strategy, launcher, port = job.split(":")
        file = folder / f"{name}-{strategy}.pt"
        with started_by(launcher, port):
            if name == "EM":
                m_steps_of_ranks(strategy, file)
            else:
                train(name, strategy, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
