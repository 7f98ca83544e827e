"""One of two processes of tests/integration/test_several_ranks.py: a few steps under Lightning.

Called twice, with torchrun's variables: ``python -m tests.rank_worker TrajectoryBalance ddp records.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

import gfn_runner.objectives.losses
from gfn_runner.build import quiet, several
from gfn_runner.config.schemas import (
    EvaluationSettings,
    OptimSettings,
    SamplingSettings,
    TrainerSettings,
)
from gfn_runner.data.datamodule import ConditionData
from gfn_runner.data.samples import TaskData
from gfn_runner.distributed.ranks import cluster_environment, gathered, is_first, together
from gfn_runner.distributed.sharding import leave_to_shards, shard
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.module import GFlowNetModule
from gfn_runner.tasks.infilling import StoryInfilling
from tests.tiny_models import tiny_lm

STEPS = 3
_TASK = StoryInfilling(max_len=4, template="{beginning}{ending}:")
CONDITIONS = [_TASK._condition(beginning, "c.", "d.") for beginning in ("a b.", "b.", "c a.", "d.")]


def small_module(objective: str) -> GFlowNetModule:
    """The same on every rank."""
    return GFlowNetModule(
        _TASK,
        tiny_lm(adapter="random"),
        getattr(gfn_runner.objectives.losses, objective)(),
        conditions=CONDITIONS,
        sampling=SamplingSettings(samples=5),
        optim=OptimSettings(lr=0.01, warmup=0),
        evaluation=EvaluationSettings(),
        max_steps=STEPS,
        seed=0,
    )


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


def main(objective: str, strategy: str, file: Path) -> None:
    quiet()
    torch.set_num_threads(1)
    options = TrainerSettings(devices=2, strategy=strategy)
    with together(options.processes, None):
        module = small_module(objective)
        if options.shards:
            shard(module.lm, torch.device("cpu"))
            leave_to_shards(module)
        recorder = Recorder()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=2,
            plugins=[cluster_environment(options.processes)],
            **several(options),
            max_steps=STEPS,
            limit_val_batches=0,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = TaskData(CONDITIONS, CONDITIONS)
        batches = ConditionData(data, EvaluationSettings(), batch_size=2, seed=0)
        trainer.fit(module, datamodule=batches)
        records = gathered(recorder.steps)
        # Three conditions: one rank has two of them, and more forwards to run.
        settings = EvaluationSettings(votes=0, singles=4, batch=1)
        generator = torch.Generator().manual_seed(0)
        drawn = draw_answers(
            module.lm, _TASK, module.evaluation_rule, CONDITIONS[:3], settings, generator
        )
        if is_first():
            strings = [(s.condition.key, s.singles, s.log_pf, s.log_reward) for s in drawn]
            torch.save({"steps": records, "strings": strings, "trained": trained(module)}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
