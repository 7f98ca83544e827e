"""The one place where objects are made from settings."""

from __future__ import annotations

import importlib
import logging
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from gfn_runner.algorithms.em import load_answers
from gfn_runner.callbacks.checkpoint import AdapterCheckpoint, DurableCheckpointIO
from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.health import HealthCallback
from gfn_runner.callbacks.live_report import LiveReport
from gfn_runner.callbacks.preemption import PreemptionCallback
from gfn_runner.callbacks.progress import StepProgress
from gfn_runner.callbacks.replay_buffer import ReplayCallback
from gfn_runner.callbacks.reward_tempering import TemperingCallback
from gfn_runner.callbacks.satisfaction import SatisfactionCallback
from gfn_runner.callbacks.training_log import TrainingLog
from gfn_runner.callbacks.wandb_media import WandbMedia
from gfn_runner.config.schemas import TrainerSettings
from gfn_runner.config.validation import RunConfig
from gfn_runner.data.datamodule import ConditionData
from gfn_runner.distributed.ranks import cluster_environment, is_first
from gfn_runner.distributed.sharding import leave_to_shards, shard
from gfn_runner.lm.loading import load
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.loggers.json_lines import JsonLinesLogger, WandbScalars
from gfn_runner.loggers.wandb_run import WandbRun, start_wandb
from gfn_runner.module import GFlowNetModule
from gfn_runner.objectives.losses import VarGradTB
from gfn_runner.report.evaluation_line import evaluation_line
from gfn_runner.report.live import LivePages
from gfn_runner.runtime.phases import explained


@dataclass(frozen=True)
class Experiment:
    """Everything of a run, made and connected.

    Attributes:
        module: policy, posterior, objective.
        data: conditions by batch.
        trainer: Lightning's, with all callbacks and loggers.
        evaluation: the callback that holds the newest evaluation.
        log: the callback that holds the newest training scalars.
        media: the callback that gives W&B what is no scalar.
    """

    module: GFlowNetModule
    data: ConditionData
    trainer: L.Trainer
    evaluation: EvaluationCallback
    log: TrainingLog
    media: WandbMedia


def build(config: RunConfig, folder: Path) -> Experiment:
    """Load the model and make what the run needs; logs and checkpoints go to ``folder``.

    A resumed run's answer adapter is read from there.
    """
    quiet()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    with explained("load"):
        lm = _model(config)
        torch.set_float32_matmul_precision(matmul_precision(config.trainer, lm))
        load_answers(lm, folder)
    data = config.data
    options: dict[str, Any] = {"objective": config.objective}
    if config.baseline is not None:
        data = replace(data, train=config.baseline.trained_on(config.task, data.train))
        # It has no φ to balance: no log Z is to be learnt.
        options["objective"] = VarGradTB()
        if config.baseline.lightning_module is not None:
            options["baseline"] = config.baseline
    module = _module_class(config)(
        config.task,
        lm,
        conditions=list(data.train),
        sampling=config.sampling,
        optim=config.optim,
        evaluation=config.callbacks.evaluation,
        max_steps=config.trainer.max_steps,
        seed=config.seed,
        rounds=config.em.rounds,
        **options,
    )
    batches = ConditionData(
        data,
        config.callbacks.evaluation,
        batch_size=config.sampling.conditions,
        seed=config.seed,
    )
    if lm.lockstep is not None:
        leave_to_shards(module)
    return _assemble(config, folder, lm, module, batches)


def _model(config: RunConfig) -> LanguageModel:
    """Model and adapter, its frozen weights shared out if that is asked for."""
    options = config.lm
    if not config.trainer.shards:
        return load(options, seed=config.seed)
    device = torch.device("cpu")
    if torch.cuda.is_available() and options.device != "cpu":
        device = torch.device("cuda", torch.cuda.current_device())
        # The whole model is in the machine's memory first, never on one GPU.
        dtype = "bfloat16" if options.dtype == "auto" else options.dtype
        options = replace(options, device="cpu", dtype=dtype)
    lm = load(options, seed=config.seed)
    shard(lm, device)
    return lm


def matmul_precision(options: TrainerSettings, lm: LanguageModel) -> str:
    """Precision of fp32 products, as the settings say or as the weights allow.

    The adapter is in fp32 whatever the weights are. Beside weights of half precision, which keep 8 to 11
    bits, TF32's 11 bits lose nothing that counts; fp32 weights are chosen for exact numbers.
    """
    if options.float32_matmul_precision is not None:
        return options.float32_matmul_precision
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in lm.model.parameters())
    return "high" if half and lm.device.type == "cuda" else "highest"


def _module_class(config: RunConfig) -> type[GFlowNetModule]:
    """The Lightning module that the baseline names, or the task."""
    path = config.task.lightning_module
    if config.baseline is not None:
        path = config.baseline.lightning_module or path
    module_name, _, class_name = path.rpartition(".")
    kind = getattr(importlib.import_module(module_name), class_name)
    if not issubclass(kind, GFlowNetModule):
        raise TypeError(f"{path} is no GFlowNetModule")
    return kind


def _assemble(
    config: RunConfig, folder: Path, lm: LanguageModel, module: GFlowNetModule, data: ConditionData
) -> Experiment:
    options = config.callbacks
    replay = ReplayCallback(options.replay, config.data.train, config.sampling.samples, config.seed)
    health, satisfaction = HealthCallback(options.health), SatisfactionCallback(options.health)
    log = TrainingLog(replay, health, config.trainer.log_every)
    lines = folder / "metrics.jsonl"
    evaluation = EvaluationCallback(options.evaluation.every, options.tempering, lines)
    # One process speaks.
    shown = options.progress if is_first() else replace(options.progress, show="none")
    progress = StepProgress(shown, log, evaluation, partial(evaluation_line, config.task.headline))
    report = LiveReport(options.report, evaluation, LivePages(folder, options.report))
    checkpoint = AdapterCheckpoint(options.checkpoint, folder / "checkpoints")
    tempering = TemperingCallback(options.tempering)
    loggers: list[Logger] = []
    wandb: WandbRun | None = None
    if is_first():
        job = "train" if config.baseline is None else config.baseline.label.lower()
        wandb = start_wandb(config.logger, folder, config.as_dict(), job_type=job, tags=config.tags)
        loggers = [JsonLinesLogger(lines)]
        loggers += [WandbScalars(wandb)] if wandb else []
    media = WandbMedia(wandb, config.logger, evaluation, replay)
    # Without evaluations on the way the first would come one batch after the last.
    every = options.evaluation.every or config.trainer.max_steps + 1
    trainer = L.Trainer(
        accelerator="gpu" if lm.device.type == "cuda" else "cpu",
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        plugins=[DurableCheckpointIO(), cluster_environment(config.trainer.processes)],
        **several(config.trainer),
        max_steps=config.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.optim.grad_clip or None,
        val_check_interval=every * config.trainer.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[
            replay,
            tempering,
            health,
            satisfaction,
            log,
            media,
            progress,
            report,
            checkpoint,
            PreemptionCallback(checkpoint, folder),
            evaluation,  # one that is made up for begins when signals are watched
        ],
        logger=loggers or False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        profiler=_profiler(config.trainer.profiler, folder),
    )
    return Experiment(module, data, trainer, evaluation, log, media)


def several(options: TrainerSettings) -> dict[str, Any]:
    """What Lightning's trainer is told where a run has several processes."""
    if options.processes.number == 1:
        return {}
    return {
        # Lightning's own FSDP would share out the adapter too, and sample no strings.
        "strategy": "ddp",
        # Ranks share out conditions, not the batches of one list.
        "use_distributed_sampler": False,
    }


def _profiler(name: str | None, folder: Path) -> Profiler | None:
    """Lightning's profiler of that name; it writes ``<stage>-profile.txt`` into the run's folder."""
    if name is None:
        return None
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return kinds[name](dirpath=folder, filename="profile")


def quiet() -> None:
    """Silence what other libraries say about choices that are deliberate here."""
    for name in ("lightning.pytorch", "lightning.fabric", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # dropout is 0 in either mode
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*`is_gradient_checkpointing` is deprecated.*",
        ".*`srun` command is available.*",  # a machine may have SLURM without being asked to use it
        ".*a tied layer is part of the adapter.*",  # adapters stay beside the model, never merged
    ):
        warnings.filterwarnings("ignore", message=message)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
