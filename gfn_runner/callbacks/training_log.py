"""Training scalars: one record per optimizer step, averaged over its batches."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import lightning as L
import torch
from torch import Tensor

from gfn_runner.callbacks.log_metrics import log_metrics
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.callbacks.non_finite_steps import SkipNonFiniteSteps
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.data.trajectories import StepOutput, Trajectories
from gfn_runner.distributed.ranks import all_gather
from gfn_runner.metrics.evidence import importance_bound, phi_moments
from gfn_runner.objectives.phi import terminal_states
from gfn_runner.tasks.base import GFlowNetModule


class TrainingLog(L.Callback):
    """Logs training scalars, aggregated over all ranks (times: rank 0 only). Names and units:

    - ``train/loss`` (squared nats; for SFT and supervised steps nats per token), ``train/grad_norm``,
      ``train/lr``, ``train/reward_temperature``;
    - ``train/log_reward``: mean untempered log R of complete strings, nats (SFT computes no rewards: neither
      this nor any scalar with φ is recorded); ``train/length``: tokens;
    - ``train/phi_spread``: mean, and ``…_max``: maximum standard deviation of φ within a condition, nats;
      0 for an exact policy; ``train/phi_spread_terminal``: the same over the terminal states of complete
      strings only, i.e. how far log q is from log R/T up to a constant. Conditions with a single
      distinct string have no spread and are ignored; absent if there are no others;
    - ``train/exploration_temperature``: 1 on-policy, NaN from replay;
    - on-policy batches only, in nats, mean over conditions at the current temperature: ``train/elbo``: mean
      terminal φ, in expectation log Z − KL(policy ‖ posterior); ``train/log_z_bound``: the
      importance-weighted bound, a tighter lower bound of log Z; ``train/log_z_gap``: their difference, 0 for
      an exact policy; ``train/entropy``: −log q of complete strings;
    - ``train/skipped``: steps skipped so far because of a non-finite loss or gradient;
    - ``train/from_replay``; ``train/buffer_size``: strings; ``train/buffer_age``: mean optimizer steps
      since a string was stored (demonstrations: since the start of the run), absent if the buffer is empty;
    - ``train/seconds`` per optimizer step; ``train/cpu_seconds``: CPU time of this process per step, over
      all cores: the cost of training on a CPU, independent of other load;
    - ``train/tokens_per_second``: tokens of the strings trained on, with a tool's tokens, without prompts;
    - PPO and GRPO: ``train/kl_base``: log q − log p of the rollout's strings, nats per string (at the first
      update on a rollout, the KL divergence from the base model); ``train/clipped``: share of actions
      whose ratio of new to old probability is beyond 1 ± clip; PPO: ``train/value_loss``: ½ (V − return)²,
      before weighting;
    - ``seconds/<phase>``, adding up to ``train/seconds``: ``sample``, ``reward``, ``policy`` (forward pass),
      ``objective``, ``backward``, ``other`` (optimizer, buffer, logging, data).

    Attributes:
        latest: the latest record.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._tokens, self._lr = 0, 0.0
        self._step, self._started = 0, time.perf_counter()
        self._cpu_started = time.process_time()

    def state_dict(self) -> dict[str, Any]:
        """Return the latest record, which a run resumed after its last step still needs."""
        return {"latest": dict(self.latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latest = dict(state["latest"])

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self._step, self._started = trainer.global_step, time.perf_counter()
        self._cpu_started = time.process_time()
        module.phases.take()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: GFlowNetModule, optimizer: Any
    ) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GFlowNetModule, outputs: dict[str, Any], *_: Any
    ) -> None:
        # Lightning passes the loss divided by the number of accumulated batches.
        scalars = {"loss": outputs["loss"].item() * trainer.accumulate_grad_batches}
        scalars |= measures(outputs["output"]) | outputs.get("measures", {})
        for name, value in scalars.items():
            self._sums[name].append(value)
        self._tokens += int(outputs["output"].trajectories.length_B.sum())
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        now = time.perf_counter()
        record = _over_ranks(self._sums)
        record |= {
            "lr": self._lr,
            "reward_temperature": module.reward_temperature,
            "seconds": now - self._started,
            "cpu_seconds": time.process_time() - self._cpu_started,
        }
        skips = find_callback(trainer, SkipNonFiniteSteps)
        if skips is not None:
            record |= {"grad_norm": skips.grad_norm, "skipped": float(skips.steps.total)}
        record |= self._counted(trainer, record["seconds"])
        self.latest = {f"train/{name}": value for name, value in sorted(record.items())}
        phases = module.phases.take()
        phases["other"] = record["seconds"] - sum(phases.values())
        self.latest |= {f"seconds/{name}": value for name, value in sorted(phases.items())}
        self._sums.clear()
        self._tokens = 0
        self._started, self._cpu_started = now, time.process_time()
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it
        if self._step % every == 0 or self._step == 1:
            log_metrics(trainer, self.latest)

    def _counted(self, trainer: L.Trainer, seconds: float) -> dict[str, float]:
        """Aggregate counts over all ranks: strings in the buffer, their age, tokens."""
        replay = find_callback(trainer, ReplayBufferCallback)
        stored = replay.buffer.steps() if replay is not None else []
        counts = all_gather((len(stored), sum(stored), self._tokens))
        n_strings, steps, tokens = (sum(column) for column in zip(*counts, strict=True))
        counted = {"tokens_per_second": tokens / seconds}
        if replay is not None:
            counted["buffer_size"] = float(n_strings)
        if n_strings:
            counted["buffer_age"] = self._step - steps / n_strings
        return counted

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        # Evaluation time must not count towards the next step.
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        module.phases.take()


def _over_ranks(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Average each scalar over the batches of all ranks."""
    merged: dict[str, list[float]] = defaultdict(list)
    for own in all_gather(dict(values)):
        for name, some in own.items():
            merged[name] += some
    return {name: sum(some) / len(some) for name, some in merged.items()}


def _differ(trajectories: Trajectories, state_BS: Tensor) -> Tensor:
    """Return whether at least two distinct strings end at a condition's marked states. Shape (C,).

    Ordered by condition index, as in :func:`phi_moments`.
    """
    found: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    rows = zip(
        trajectories.condition_B.tolist(),
        trajectories.token_BT.tolist(),
        state_BS.tolist(),
        strict=True,
    )
    for place, tokens, states in rows:
        found[place].update(tuple(tokens[:at]) for at, marked in enumerate(states) if marked)
    differ_C = [len(found[place]) > 1 for place in sorted(found)]
    return torch.tensor(differ_C, device=state_BS.device)


def measures(output: StepOutput) -> dict[str, float]:
    """Compute the scalars of one batch; see :class:`TrainingLog`."""
    trajectories, terminable_BS = output.trajectories, output.scores.terminable_BS
    measured = {
        "length": trajectories.length_B.float().mean().item(),
        "from_replay": float(output.from_replay),
        "exploration_temperature": output.exploration_temperature,
    }
    if not output.has_rewards:
        return measured
    _, spread_C = phi_moments(output.phi_BS, terminable_BS, trajectories.condition_B)
    spread_C = spread_C[_differ(trajectories, terminable_BS)]
    terminal_BS = terminal_states(terminable_BS, trajectories.length_B)
    terminal_mean_C, terminal_C = phi_moments(output.phi_BS, terminal_BS, trajectories.condition_B)
    terminal_C = terminal_C[_differ(trajectories, terminal_BS)]
    measured["log_reward"] = trajectories.at_ends(output.log_reward_BS).mean().item()
    if len(spread_C):
        measured |= {"phi_spread": spread_C.mean().item(), "phi_spread_max": spread_C.max().item()}
    if len(terminal_C):
        measured["phi_spread_terminal"] = terminal_C.mean().item()
    if output.exploration_temperature == 1.0:
        rows, phi_B = trajectories.condition_B, trajectories.at_ends(output.phi_BS)
        bounds = [
            importance_bound(own.cpu()) if own.isfinite().all() else math.nan
            for own in (phi_B[rows == place] for place in rows.unique())
        ]
        measured |= {
            "elbo": terminal_mean_C.mean().item(),
            "log_z_bound": fmean(bounds),
            "entropy": -output.scores.log_q_B(trajectories).mean().item(),
        }
        measured["log_z_gap"] = measured["log_z_bound"] - measured["elbo"]
    return measured
