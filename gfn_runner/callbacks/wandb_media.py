"""W&B media: histograms, tables of samples, figures, and the adapter.

Everything here is a no-op if W&B is off, and errors never reach the run (``WandbRun.attempt``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.data.replay_buffer import Entry
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import StepOutput
from gfn_runner.loggers.wandb import RunLogger
from gfn_runner.loggers.wandb_run import STEP, WandbRun
from gfn_runner.tasks.base import GFlowNetModule

_PER_CONDITION = 3
COLUMNS = ("step", "set", "prompt", "sample", "log R", "log q", "phi")


class WandbMedia(L.Callback):
    """Logs media other than scalars to a W&B run. Names (x-axis: optimizer steps):

    - ``histogram/phi``: φ of complete strings in the step's last batch minus the mean of its condition, nats:
      a spike at 0 for an exact policy; ``histogram/log_reward``: their untempered log R, nats;
      ``histogram/length``: their length in tokens;
    - ``histogram/buffer_log_reward``: log R of the strings in the replay buffer, nats, by whose rank they
      are drawn; ``histogram/buffer_age``: optimizer steps since they were stored;
    - ``samples/eval`` and ``samples/final``: a table per evaluation; ``samples/<row>``: one per baseline
      row; with columns ``COLUMNS``;
    - ``figures/<name>``: the run's figures, logged once at the end.

    With several ranks, only the strings of rank 0 are shown.

    Args:
        histogram_every_n_steps: optimizer steps between two histograms; 0 for none.
        max_table_rows: maximum number of rows in the table of each evaluation; 0 for no tables.
    """

    def __init__(
        self,
        histogram_every_n_steps: Annotated[int, Field(ge=0)] = 10,
        max_table_rows: Annotated[int, Field(ge=0)] = 48,
    ) -> None:
        self.histogram_every_n_steps, self.max_table_rows = histogram_every_n_steps, max_table_rows
        self._shown_step = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GFlowNetModule, outputs: dict[str, Any], *_: Any
    ) -> None:
        step, every = trainer.global_step, self.histogram_every_n_steps
        due = every > 0 and step != self._shown_step and (step == 1 or step % every == 0)
        run = wandb_run_of(trainer) if due else None
        if run is None:
            return
        self._shown_step = step
        replay = find_callback(trainer, ReplayBufferCallback)
        entries = replay.buffer.all_entries() if replay is not None else []
        add = partial(_add_histograms, run, outputs["output"], entries, step)
        run.attempt("histograms", add)

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        evaluation = find_callback(trainer, EvaluationCallback)
        if evaluation is not None:
            name = "final" if module.final else "eval"
            self.samples(trainer, name, evaluation.samples, module.reward_temperature)

    def samples(
        self,
        trainer: L.Trainer,
        name: str,
        drawn: Sequence[ConditionSamples],
        temperature: float,
    ) -> None:
        """Log a table for an evaluation or a row; see :func:`add_samples`."""
        run, step = wandb_run_of(trainer), trainer.global_step
        add_samples(run, self.max_table_rows, name, drawn, step, temperature)


def wandb_run_of(trainer: L.Trainer) -> WandbRun | None:
    """Return the W&B run that the trainer logs to; ``None`` if W&B is off or could not start."""
    return next((log.run for log in trainer.loggers if isinstance(log, RunLogger)), None)


def _add_histograms(
    wandb_run: WandbRun, output: StepOutput, entries: Sequence[Entry], step: int
) -> None:
    import wandb

    values = strings(output) | {
        "buffer_log_reward": [entry.score for entry in entries],
        "buffer_age": [step - entry.step for entry in entries],
    }
    drawn = {
        f"histogram/{name}": wandb.Histogram(finite)
        for name, own in values.items()
        if (finite := [value for value in own if math.isfinite(value)])
    }
    wandb_run.log("histograms", drawn, step)


def add_samples(
    wandb_run: WandbRun | None,
    most: int,
    name: str,
    drawn: Sequence[ConditionSamples],
    step: int,
    temperature: float,
) -> None:
    """Log a table ``samples/<name>``, always for the same conditions.

    Args:
        most: maximum number of rows; 0 for no table.
        temperature: reward temperature T in φ = log R/T − log q.
    """
    if wandb_run is None:
        return
    rows = [[step, *row] for row in table_rows(drawn, most, temperature)] if most else []
    if not rows:
        return

    def add() -> None:
        import wandb

        table = wandb.Table(columns=list(COLUMNS), data=rows)
        wandb_run.run.log({f"samples/{name}": table, STEP: step})

    wandb_run.attempt("tables of samples", add)


def add_results(
    wandb_run: WandbRun | None, folder: Path, metrics: Mapping[str, float], step: int
) -> None:
    """Log the final contents of a run's folder: metrics as summary, figures, adapters as artifacts."""
    if wandb_run is None:
        return
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    wandb_run.attempt("final metrics", lambda: wandb_run.run.summary.update(finite))
    wandb_run.attempt("figures", lambda: _add_figures(wandb_run, folder / "figures", step))
    for name in ("adapter", "answer_adapter"):
        if (folder / name).is_dir():
            wandb_run.attempt("artifacts", partial(_add_adapter, wandb_run, folder / name, step))


def _add_figures(wandb_run: WandbRun, folder: Path, step: int) -> None:
    import wandb

    images = {
        f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))
    }
    if images:
        wandb_run.run.log({**images, STEP: step})


def _add_adapter(wandb_run: WandbRun, folder: Path, step: int) -> None:
    import wandb

    name = f"{folder.name}-{wandb_run.run.id}"
    artifact = wandb.Artifact(name, "model", metadata={"optimizer_steps": step})
    # Reference files in place, without a copy that waits for `wandb sync`.
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            inside = path.relative_to(folder).as_posix()
            artifact.add_file(str(path), inside, policy="immutable", skip_cache=True)
    wandb_run.run.log_artifact(artifact)


def strings(output: StepOutput) -> dict[str, list[float]]:
    """Return φ (minus its condition's mean), log R and length of the complete strings of a batch."""
    rows = output.trajectories
    phi_B = rows.at_ends(output.phi_BS)
    centred_B = torch.empty_like(phi_B)
    for place in rows.condition_B.unique():
        own_B = rows.condition_B == place
        centred_B[own_B] = phi_B[own_B] - phi_B[own_B].mean()
    return {
        "phi": centred_B.tolist(),
        "log_reward": rows.at_ends(output.log_reward_BS).tolist(),
        "length": rows.length_B.tolist(),
    }


def table_rows(
    drawn: Sequence[ConditionSamples], most: int, temperature: float
) -> Iterator[list[Any]]:
    """Yield up to ``most`` rows without ``step``: a few samples each of evenly spaced conditions."""
    n_conditions = max(1, most // _PER_CONDITION)
    stride = max(1, math.ceil(len(drawn) / n_conditions))
    left = most
    for samples in drawn[::stride]:
        # Rows of direct answers have no samples and no scores.
        columns = zip(samples.singles, samples.log_reward, samples.log_pf, strict=False)
        for text, log_reward, log_q in list(columns)[: min(left, _PER_CONDITION)]:
            left -= 1
            numbers = (log_reward, log_q, log_reward / temperature - log_q)
            # Numbers in a table must be finite or missing.
            shown = [value if math.isfinite(value) else None for value in numbers]
            yield [samples.condition.group, samples.condition.prompt, text, *shown]
