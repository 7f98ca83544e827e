"""Final evaluation of the policy and the rows it is compared with; writes their files and the table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from rich.console import Console

from gfn_runner.algorithms.base import Algorithm
from gfn_runner.baselines.base import Baseline
from gfn_runner.baselines.rows import baseline_rows
from gfn_runner.callbacks.demonstrations import fitting_demonstrations
from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.live_report import end_pages
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.callbacks.wandb_media import WandbMedia
from gfn_runner.data.conditions import Condition
from gfn_runner.data.datamodule import ConditionData
from gfn_runner.data.samples import ConditionSamples, limited
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.distributed.ranks import is_rank_zero
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.evaluation.measure import measure
from gfn_runner.evaluation.optional import OptionalMetrics
from gfn_runner.loggers.json_lines import jsonable
from gfn_runner.report.figures import draw_all
from gfn_runner.report.headline import memory_at_most
from gfn_runner.report.samples import sample_record, write_sample_table, write_samples
from gfn_runner.report.table import print_results, row_labels
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.json_lines import write_lines
from gfn_runner.runtime.seeds import torch_generator_for
from gfn_runner.tasks.base import GFlowNetModule

# Limits for demonstrations and the samples compared with them.
_MOST_CONDITIONS, _MOST_SINGLES = 64, 1000


def final_evaluation(
    trainer: L.Trainer,
    module: GFlowNetModule,
    data: ConditionData,
    *,
    baseline: Algorithm | Baseline | None,
    trains: bool,
    final_temperature: float,
    folder: Path,
) -> dict[str, float]:
    """Evaluate the trained policy and the rows it is compared with; write ``samples*.jsonl``.

    Args:
        final_temperature: reward temperature at which training of this run ends.

    Returns:
        ``final/<metric>`` of the policy and ``<row>/<metric>`` of every row; on rank 0 only.
    """
    options = module.evaluation
    data.final = module.final = True
    optional = OptionalMetrics(options.bertscore, options.judge)
    metrics: dict[str, float] = {}
    shown: dict[str, list[ConditionSamples]] = {}
    if trains:
        if is_rank_zero():
            print("final evaluation: policy, then base model", flush=True)
        samples, measured = _evaluate_policy(trainer, module, data)
        if module.algorithm.uses_replay:
            write_demonstrations(folder / "demonstrations.jsonl", module, data.data.train)
        if is_rank_zero():
            measured = measured | optional(samples)
            metrics = {f"final/{name}": value for name, value in measured.items()}
            write_samples(folder / "samples.jsonl", samples)
            shown["final"] = samples
    temperature = module.reward_temperature if trains else final_temperature
    media = find_callback(trainer, WandbMedia)
    for name, samples in _rows(module, data, baseline, trains, temperature):
        if not is_rank_zero():
            continue  # it only took part in drawing
        shown[name] = samples
        if media is not None:
            media.samples(trainer, name, samples, temperature)
        write_samples(folder / f"samples_{name}.jsonl", samples)
        measured = measure(
            module, samples, temperature=temperature, encoder=options.encoder, optional=optional
        )
        metrics |= {f"{name}/{metric}": value for metric, value in measured.items()}
    if is_rank_zero():
        metrics["run/reward_temperature"] = temperature
        labels = row_labels(metrics)
        named = {labels.get(name, name): samples for name, samples in shown.items()}
        write_sample_table(folder / "samples.md", named)
    return metrics


def _evaluate_policy(
    trainer: L.Trainer, module: GFlowNetModule, data: ConditionData
) -> tuple[list[ConditionSamples], dict[str, float]]:
    """Evaluate the policy with the evaluation callback, creating one if it was removed."""
    callback = find_callback(trainer, EvaluationCallback)
    if callback is None:
        callback = EvaluationCallback(every_n_steps=0)
        trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    trainer.validate(module, datamodule=data, verbose=False)
    return callback.samples, callback.metrics


def _rows(
    module: GFlowNetModule,
    data: ConditionData,
    baseline: Algorithm | Baseline | None,
    trains: bool,
    temperature: float,
) -> Iterator[tuple[str, list[ConditionSamples]]]:
    """Yield the rows to compare a policy with, or those of a baseline that does not train."""
    conditions = limited(data.evaluation_conditions(), module.evaluation.baseline_limit)
    drawing = module.drawing(conditions, temperature, posterior=True)
    if trains or not isinstance(baseline, Baseline):
        yield from baseline_rows(drawing)
        return
    for name, samples in baseline.rows(drawing):
        if is_rank_zero():
            print(f"evaluated: {name}", flush=True)
        yield name, samples


@torch.no_grad()
def write_demonstrations(
    path: Path, module: GFlowNetModule, conditions: Sequence[Condition]
) -> None:
    """Write log R of demonstrations and of the policy's samples for the same conditions.

    Nothing is written if no condition has demonstrations. All ranks must call this, since each draws its
    share; rank 0 writes.
    """
    chosen = [condition for condition in conditions if condition.demonstrations][:_MOST_CONDITIONS]
    if not chosen:
        return
    trajectories, _ = fitting_demonstrations(module, chosen)
    if not len(trajectories):
        return
    log_reward_B = trajectories.at_ends(module.log_reward(chosen, trajectories)).tolist()
    generator = torch_generator_for(module.lm.device, "demonstrations", module.seed)
    n_singles = min(module.evaluation.singles, _MOST_SINGLES)
    options = dataclasses.replace(module.evaluation, votes=0, singles=n_singles)
    drawing = module.drawing(chosen).replace(options=options)
    drawn = draw_answers(drawing, generator, name="samples beside demonstrations")
    places = trajectories.condition_B.tolist()
    records = []
    for place, sample in enumerate(drawn):
        rows = [row for row, at in enumerate(places) if at == place]
        records.append(
            {
                **sample_record(sample),
                "demonstrations": [_as_written(module, trajectories, row) for row in rows],
                "demonstration_log_reward": [round(log_reward_B[row], 4) for row in rows],
            }
        )
    if is_rank_zero():
        write_lines(path, records)


def _as_written(module: GFlowNetModule, trajectories: Trajectories, row: int) -> str:
    """Decode the string as its author generated it, without the outputs of tools."""
    is_action = trajectories.is_action_BT[row].tolist()
    ids = trajectories.ids(row)
    return module.lm.decode([token for token, own in zip(ids, is_action, strict=False) if own])


def write_results(task: Task, method: str, folder: Path, metrics: Mapping[str, float]) -> None:
    """Write figures, ``metrics.json`` and the page; print the results table."""
    flat = {name: jsonable(number) for name, number in sorted(metrics.items())}
    draw_all(folder, flat)
    # Written last: a run with this file has nothing left to do.
    write_atomically(folder / "metrics.json", json.dumps(flat, indent=2) + "\n")
    end_pages(folder)
    console = Console()
    print_results(console, task, metrics, method)
    steps = metrics["run/steps"]
    console.print(
        f"{steps:.0f} optimizer step{'' if steps == 1 else 's'}, {metrics['run/minutes']:.1f} minutes, "
        f"{memory_at_most(metrics)} at most"
    )
    console.print(f"results are in {folder}", soft_wrap=True, markup=False)
