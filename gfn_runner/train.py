"""The steps of a run: model → module → trainer → fit → evaluate → save."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Checkpoint

from gfn_runner.algorithms.em import load_answers
from gfn_runner.callbacks.checkpoint import DurableCheckpointIO
from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.live_report import end_pages
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.callbacks.preemption import usr2_spares
from gfn_runner.callbacks.training_log import TrainingLog
from gfn_runner.callbacks.wandb_media import add_results, wandb_run_of
from gfn_runner.config.run_config import RunConfig
from gfn_runner.config.tokenizer_checks import check_texts
from gfn_runner.config.validation import check
from gfn_runner.data.datamodule import ConditionData
from gfn_runner.distributed.launch import (
    check_world_size,
    cluster_environment,
    is_worker,
    launch_ranks,
    lightning_devices,
)
from gfn_runner.distributed.ranks import all_gather, broadcast, is_rank_zero
from gfn_runner.errors import NotBegun, UserError
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sharding import ignore_sharded_parameters, shard
from gfn_runner.report.headline import optimized_value
from gfn_runner.run.em_rounds import train_rounds
from gfn_runner.run.final_evaluation import final_evaluation, write_results
from gfn_runner.run.resume import BEGUN, Start, cut_back, other_settings, seconds_before, start_of
from gfn_runner.runtime.clock import steady_time
from gfn_runner.runtime.environment import (
    environment,
    peak_gpu_memory_gib,
    peak_memory_gib,
    reset_gpu_memory_peaks,
)
from gfn_runner.runtime.files import free_name, report_write_errors, write_atomically
from gfn_runner.runtime.overrides import OVERRIDES_FILE
from gfn_runner.runtime.phases import explain_out_of_memory
from gfn_runner.runtime.run_lock import acquire_run_lock
from gfn_runner.runtime.status import muted_progress_lines
from gfn_runner.runtime.targets import with_objects
from gfn_runner.tasks.base import GFlowNetModule

logger = logging.getLogger(__name__)


def train_and_evaluate(
    config: RunConfig, folder: Path | None, overrides: Sequence[str] = ()
) -> float | None:
    """Train, evaluate, write the results and print them.

    Args:
        config: validated config.
        folder: folder of the run; a resumed run continues in its own. ``None`` on ranks above 0, which
            receive it from rank 0.
        overrides: overrides that reproduce the run; saved for ``resume``.

    Returns:
        The value of ``optimized_metric``, averaged over evaluation sets (for sweepers).
    """
    processes = config.trainer.processes
    check_world_size(processes)
    started, start, file = _Clock(), None, None
    with contextlib.ExitStack() as stack:
        if not is_worker(processes):
            assert folder is not None  # rank 0 creates it
            fix = f"free some, then resume={folder}"
            stack.enter_context(report_write_errors(folder, "hydra.run.dir", fix))
            with _leaves_folder_alone():
                stack.enter_context(acquire_run_lock(folder))
            start, file = _prepare(config, folder, overrides), folder / "config.yaml"
        stack.enter_context(launch_ranks(processes, file))
        folder, start, values = broadcast((folder, start, config.values))
        assert folder is not None and start is not None
        if values != config.values:
            config = check(values)  # ranks of torchrun compose their own, e.g. from other variables
        if start.finished is not None:
            if is_rank_zero():
                _say_finished(config, folder)
            return optimized_value(config.optimized_metric, config.default_metric, start.finished)
        progress = config.callbacks.get("progress")
        quiet_progress = getattr(progress, "show", "auto") == "none"
        with usr2_spares(), muted_progress_lines(quiet_progress):
            return _run(config, folder, start.checkpoint, started)


def _run(config: RunConfig, folder: Path, checkpoint: Path | None, started: _Clock) -> float | None:
    """Create the objects, train, evaluate and save."""
    reset_gpu_memory_peaks()
    quiet()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with explain_out_of_memory("load"):
        lm = load_model(config.lm, seed=config.seed, shards=config.trainer.shards)
        precision = matmul_precision(config.float32_matmul_precision, lm)
        torch.set_float32_matmul_precision(precision)
        load_answers(lm, folder)
    module, data = make_module(config, lm)
    trainer = make_trainer(config, lm.device, folder)
    for own in trainer.loggers:
        own.log_hyperparams(config.values)
    metrics: dict[str, float] = {}
    failed = True
    try:
        if config.trains:
            metrics = train_rounds(trainer, module, data, config.em, checkpoint)
            if is_rank_zero():
                lm.save_adapter(folder / "adapter")
        with explain_out_of_memory("evaluation"):
            metrics |= final_evaluation(
                trainer,
                module,
                data,
                baseline=config.baseline,
                trains=config.trains,
                final_temperature=config.reward_temperature(config.total_steps),
                folder=folder,
            )
        log = find_callback(trainer, TrainingLog)
        metrics |= log.latest if log is not None else {}
        metrics |= _run_facts(
            config.seed,
            folder,
            started,
            trainer.global_step,
            config.total_steps if config.trains else 0,
            lm.device,
        )
        headline = _report(config, folder, metrics) if is_rank_zero() else None
        add_results(wandb_run_of(trainer), folder, metrics, trainer.global_step)
        failed = False
        return headline
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning turns a Ctrl-C inside the trainer into exit code 1.
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            _say_stopped(folder)
            raise SystemExit(130) from None
        failed = False  # interrupted after saving its state; it continues under the same id
        raise
    finally:
        if (wandb := wandb_run_of(trainer)) is not None:
            wandb.finish(failed=failed)


# -- objects ------------------------------------------------------------------------------------


def load_model(options: LMSettings, *, seed: int, shards: bool = False) -> LanguageModel:
    """Load model and adapter; with ``shards``, shard the frozen weights across ranks."""
    if not shards:
        return load(options, seed=seed)
    device = torch.device("cpu")
    if torch.cuda.is_available() and options.device != "cpu":
        device = torch.device("cuda", torch.cuda.current_device())
        # Load the whole model into host memory first, never onto one GPU.
        dtype = "bfloat16" if options.dtype == "auto" else options.dtype
        options = replace(options, device="cpu", dtype=dtype)
    lm = load(options, seed=seed)
    shard(lm, device)
    return lm


def matmul_precision(wanted: str | None, lm: LanguageModel) -> str:
    """Return the precision of fp32 matrix products: as configured, or derived from the dtype of the weights.

    The adapter is always in fp32. With half-precision weights, which keep 8 to 11 bits, the 11 bits of TF32
    lose nothing significant; fp32 weights are chosen for exact numbers.
    """
    if wanted is not None:
        return wanted
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in lm.model.parameters())
    return "high" if half and lm.device.type == "cuda" else "highest"


def make_module(config: RunConfig, lm: LanguageModel) -> tuple[GFlowNetModule, ConditionData]:
    """Create the Lightning module with its algorithm, and the data module."""
    data, algorithm = config.data, config.algorithm
    data = replace(data, train=algorithm.trained_on(config.task, data.train))
    module = config.task.attach(
        lm,
        algorithm,
        conditions=data.train,
        sampling=config.sampling,
        evaluation=config.evaluation,
        evaluated=data.evaluation,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        max_steps=config.trainer.max_steps,
        n_rounds=max(1, config.em.rounds),
        seed=config.seed,
    )
    if lm.lockstep is not None:
        ignore_sharded_parameters(module)
    batches = ConditionData(
        data,
        batch_size=config.sampling.n_conditions,
        seed=config.seed,
        n_during=config.evaluation.during,
        n_final=config.evaluation.final,
        evaluation_batch_size=config.evaluation.batch,
    )
    return module, batches


def make_trainer(config: RunConfig, device: torch.device, folder: Path) -> L.Trainer:
    """Create the Lightning trainer with the config's callbacks and loggers."""
    arguments = with_objects("trainer", config.trainer.arguments)
    callbacks = list(config.callbacks.values())
    if any(isinstance(callback, Checkpoint) for callback in callbacks):
        arguments["enable_checkpointing"] = True  # else Lightning refuses a ModelCheckpoint
    evaluation = next((c for c in callbacks if isinstance(c, EvaluationCallback)), None)
    # Without evaluations during training, schedule the first one batch after the last step.
    every = (evaluation.every_n_steps if evaluation else 0) or config.trainer.max_steps + 1
    several: dict[str, Any] = {}
    if config.trainer.processes.number > 1:
        # Lightning's FSDP would shard the adapter too, and cannot sample strings. Ranks split the conditions,
        # not the batches of a single list.
        several = {"strategy": "ddp", "use_distributed_sampler": False}
    else:
        arguments.pop("strategy", None)
    defaults: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "plugins": [DurableCheckpointIO(), cluster_environment(config.trainer.processes)],
        "val_check_interval": every * config.trainer.accumulate_grad_batches,
        "default_root_dir": folder,
        "callbacks": callbacks,
        "logger": _loggers(config, folder) or False,
    }
    devices = lightning_devices(config.trainer.processes)
    trainer = L.Trainer(**{**defaults, **arguments, **several, **devices})
    if isinstance(arguments.get("profiler"), str):
        # A profiler given by name reports to Lightning's log, which is silenced; let it write to a file.
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]
        profiler.dirpath, profiler.filename = folder, "profile"
    return trainer


def _loggers(config: RunConfig, folder: Path) -> list[Any]:
    """Create the loggers, on rank 0 only."""
    if not is_rank_zero():
        return []
    return config.make_loggers(
        save_dir=str(folder), config=config.values, job_type=config.method, run_tags=config.tags
    )


def quiet() -> None:
    """Silence warnings of other libraries about choices that are deliberate here."""
    for name in ("lightning.pytorch", "lightning.fabric", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # dropout is 0 in both modes
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*`is_gradient_checkpointing` is deprecated.*",
        ".*`srun` command is available.*",  # having SLURM does not mean using it
        ".*a tied layer is part of the adapter.*",  # adapters are never merged into the model
    ):
        warnings.filterwarnings("ignore", message=message)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


# -- the run's folder ---------------------------------------------------------------------------


def _prepare(config: RunConfig, folder: Path, overrides: Sequence[str]) -> Start:
    """Run the checks that need the tokenizer or the folder, and write config, overrides and environment."""
    holds_run = (folder / OVERRIDES_FILE).exists()
    with _leaves_folder_alone() if holds_run else contextlib.nullcontext():
        start = start_of(config, folder)
        if start.finished is None:
            check_texts(config)
    if start.finished is None:
        if holds_run:
            cut_back(folder, start.checkpoint)
        _describe(config, folder, overrides)
        for note in config.data.notes:
            logger.info("%s", note)
    return start


@contextlib.contextmanager
def _leaves_folder_alone() -> Iterator[None]:
    """Mark user errors in the context as leaving the folder, which may contain another run, unchanged."""
    try:
        yield
    except UserError as error:
        raise NotBegun(error.problems) from None


def _describe(config: RunConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Write the resolved config, the overrides and the environment to the folder."""
    text = yaml.safe_dump(config.values, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", text)
    write_atomically(folder / OVERRIDES_FILE, yaml.safe_dump(list(overrides)))
    # A resumed run may continue on another machine, so each start records its own environment.
    facts = {BEGUN: steady_time()} | environment()
    write_atomically(free_name(folder / "environment.json"), json.dumps(facts, indent=2) + "\n")


def _say_finished(config: RunConfig, folder: Path) -> None:
    """Report that nothing is left to do, and write the page if an interruption prevented that."""
    print(f"already finished, skipped: {folder}", flush=True)
    others = other_settings(config, folder)
    if others:
        print(f"it ran with other settings: {' '.join(others)}", flush=True)
    page, results = folder / "report.html", folder / "metrics.json"
    if not page.exists() or page.stat().st_mtime < results.stat().st_mtime:
        end_pages(folder)


def _say_stopped(folder: Path) -> None:
    """Report an immediate stop by Ctrl-C, for which no checkpoint was saved."""
    if is_rank_zero():
        saved = any((folder / "checkpoints").glob("*.ckpt"))
        rest = "nothing was saved yet; the same command with resume=auto starts over there"
        if saved:
            command = f"python -m gfn_runner {shlex.quote(f'resume={folder}')}"
            rest = f"`{command}` continues from the newest checkpoint"
        print(f"gfn_runner: stopped immediately; {rest}", file=sys.stderr, flush=True)


# -- results ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clock:
    """Time of a start of the run: seconds since 1970, and CPU seconds of the process until then."""

    wall: float = field(default_factory=steady_time)
    cpu: float = field(default_factory=time.process_time)


def _run_facts(
    seed: int, folder: Path, started: _Clock, steps: int, total_steps: int, device: torch.device
) -> dict[str, float]:
    """Return duration and memory of the run; peak memory is the maximum over ranks."""
    on_gpu = [gib for gib in all_gather(peak_gpu_memory_gib(device)) if gib is not None]
    facts = {
        "run/seed": float(seed),
        "run/steps": float(steps),
        "run/minutes": (seconds_before(folder) + steady_time() - started.wall) / 60,
        "run/cpu_minutes": (time.process_time() - started.cpu) / 60,
        "run/peak_memory_gib": max(all_gather(peak_memory_gib())),
    }
    if steps < total_steps:
        facts["run/stopped_early_of"] = float(total_steps)
    return facts | ({"run/peak_gpu_memory_gib": max(on_gpu)} if on_gpu else {})


def _report(config: RunConfig, folder: Path, metrics: dict[str, float]) -> float | None:
    method = "this run" if config.baseline is None else config.baseline.label
    write_results(config.task, method, folder, metrics)
    # Last: the run is saved completely even if the requested metric was not measured.
    return optimized_value(config.optimized_metric, config.default_metric, metrics)
