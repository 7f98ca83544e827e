"""The Lightning module: carries data from sampler to loss; computes nothing itself.

Every task runs in this module. It is selected by ``task=…``: the task brings its conditions, its
posterior, its answers and its metrics as hooks, and never a training step.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor, nn

from gfn_runner.algorithms.schedules import warmup_factor
from gfn_runner.config.schemas import EvaluationSettings, OptimSettings, SamplingSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Batch, StepOutput, Trajectories
from gfn_runner.distributed.ranks import gathered, is_first
from gfn_runner.errors import UserError
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import NonFiniteLogits, sample
from gfn_runner.lm.scoring import score_policy
from gfn_runner.objectives.losses import Objective
from gfn_runner.objectives.phi import phi
from gfn_runner.rewards.reward import log_reward, terminal_log_reward
from gfn_runner.runtime.phases import Phases
from gfn_runner.runtime.seeds import rng_for, torch_generator_for
from gfn_runner.tasks.base import Task
from gfn_runner.tasks.string_rule import string_rule

logger = logging.getLogger(__name__)


class GFlowNetModule(L.LightningModule):
    """A policy, its posterior and its objective.

    ``training_step`` takes the batch's replay draw if a callback put one there, else samples; scores
    the trajectories with gradients; takes stored log-rewards or asks the posterior; forms φ; returns
    the loss and, detached, a :class:`StepOutput` under ``"output"``; a subclass may add scalars of its
    own for the training log under ``"measures"``.

    Attributes:
        reward_temperature: written by the tempering callback.
        final: whether evaluation is the one after training.
        last_output: of the newest training step, detached; for the callbacks that run before the
            step's end.
        phases: their seconds.
    """

    def __init__(
        self,
        task: Task,
        lm: LanguageModel,
        objective: Objective,
        *,
        conditions: list[Condition],
        sampling: SamplingSettings,
        optim: OptimSettings,
        evaluation: EvaluationSettings,
        max_steps: int,
        seed: int,
        rounds: int = 0,
    ):
        super().__init__()
        self.task, self.lm, self.objective = task, lm, objective
        self.sampling, self.optim, self.evaluation = sampling, optim, evaluation
        self.max_steps, self.seed, self.rounds = max_steps, seed, rounds
        self.reward_temperature = 1.0
        self.final = False
        self.last_output: StepOutput | None = None
        self.phases = Phases()
        self._group_options: list[dict[str, Any]] = []  # of the optimizer, as the config has them
        self.rule = string_rule(lm, task, task.max_len)
        self.evaluation_rule = string_rule(lm, task, task.eval_max_len)
        self.strict_loading = False
        self._probe = conditions[0].prompt if conditions else ""
        self.place = {condition.key: place for place, condition in enumerate(conditions)}
        if objective.needs_log_z:
            # NaN marks a condition that was never visited.
            self.log_z = nn.Parameter(torch.full((len(conditions),), float("nan")))
            self._log_z_in_step: set[int] = set()  # places whose log Z is in the step's loss

    # -- training -----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        from_replay = batch.replay is not None
        prompts = [self.lm.encode_prompt(condition.prompt) for condition in batch.conditions]
        with self.lm.in_step():
            if batch.replay is not None:
                trajectories = batch.replay.trajectories
                log_reward_BS = batch.replay.log_reward_BS
                temperature = float("nan")
            else:
                temperature = self.exploration_temperature(batch.index)
                with self.phases("sample"):
                    trajectories = self.explore(prompts, batch.index, temperature)
                with self.phases("reward"):
                    log_reward_BS = self.log_reward(batch.conditions, trajectories)
        with self.phases("policy"):
            scores = score_policy(self.lm, prompts, trajectories, self.rule)
        scores.terminable_BS = self.objective.counted_BS(
            scores.terminable_BS, trajectories.length_B
        )
        with self.phases("objective"):
            phi_BS = phi(scores, log_reward_BS, self.reward_temperature)
            loss = self.objective(
                phi_BS,
                scores.terminable_BS,
                trajectories.length_B,
                trajectories.condition_B,
                self._log_z(batch.conditions, trajectories, phi_BS, from_replay),
            )
        for name in ("log_pf_BT", "log_pf_stop_BS"):
            setattr(scores, name, getattr(scores, name).detach())
        output = StepOutput(
            batch.conditions,
            trajectories,
            log_reward_BS,
            scores,
            phi_BS.detach(),
            from_replay,
            temperature,
        )
        self.last_output = output
        return {"loss": loss, "output": output}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, as a phase."""
        with self.phases("backward"):
            super().backward(loss, *args, **kwargs)

    def exploration_temperature(self, index: int) -> float:
        """Of the fresh trajectories of batch ``index``: 1 on-policy, else drawn as the settings say."""
        rng = rng_for("explore", self.seed, index)
        if rng.random() < self.sampling.tempered:
            return rng.uniform(self.sampling.min_temperature, self.sampling.max_temperature)
        return 1.0

    def explore(
        self, prompts: list[tuple[int, ...]], index: int, temperature: float
    ) -> Trajectories:
        """Fresh trajectories of the policy at an exploration temperature."""
        generator = torch_generator_for(self.lm.device, "sample", self.seed, index)
        try:
            return sample(
                self.lm,
                prompts,
                self.sampling.samples,
                self.rule,
                generator,
                temperature=temperature,
                tool=self.task.tool(),
            )
        except NonFiniteLogits as error:
            prompt = self.lm.decode(prompts[error.prompt])
            raise UserError.one(
                f"optimizer step {self.global_step + 1}",
                f"the policy's logits are not finite at {prompt!r}: an earlier step has broken it",
                "finite weights",
                "lower optim.lr, set optim.grad_clip, use lm.dtype=float32 or bfloat16",
            ) from error

    def log_reward(self, conditions: list[Condition], trajectories: Trajectories) -> Tensor:
        """Untempered log-rewards of the states that the objective compares, nats. Shape (B, S).

        Of every prefix, or of whole strings alone; −inf at the other states.
        """
        score = log_reward if self.objective.needs_prefixes else terminal_log_reward
        return score(self.lm, conditions, trajectories, self.rule, self.task.constraints())

    def _log_z(
        self,
        conditions: list[Condition],
        trajectories: Trajectories,
        phi_BS: Tensor,
        from_replay: bool,
    ) -> Tensor | None:
        """Learned log Z of the batch's conditions, begun at the mean terminal φ when first sampled.

        A batch that begins it takes it as a constant: the gradient at the mean would be rounding noise,
        of which Adam makes a whole step. A replay draw may come before that. It is measured against its
        own mean, and begins nothing: one demonstration's φ is no estimate of log Z. Nor does a mean that
        is not finite: the step is skipped, and the condition stays unvisited.
        """
        if not self.objective.needs_log_z:
            return None
        place_C = torch.tensor([self.place[c.key] for c in conditions], device=self.device)
        phi_B = phi_BS.detach().gather(1, trajectories.length_B[:, None])[:, 0]
        rows_CB = (
            trajectories.condition_B == torch.arange(len(conditions), device=self.device)[:, None]
        )
        mean_C = (phi_B * rows_CB).sum(dim=1) / rows_CB.sum(dim=1).clamp(min=1)
        known_C = ~self.log_z.detach()[place_C].isnan()
        begun_C = ~known_C & mean_C.isfinite() & (not from_replay)
        self._begin_log_z(
            place_C[known_C].tolist(), place_C[begun_C].tolist(), mean_C[begun_C].tolist()
        )
        # Other ranks may have begun some of them too.
        now_C = self.log_z.detach()[place_C]
        constant_C = torch.where(now_C.isnan(), mean_C, now_C)
        return torch.where(known_C, self.log_z[place_C], constant_C)

    @torch.no_grad()
    def _begin_log_z(self, known: list[int], places: list[int], means: list[float]) -> None:
        """Begin log Z at ``places``, on all ranks; and note where any rank's loss has a known one."""
        begun: dict[int, list[float]] = {}
        for in_step, own in gathered((known, list(zip(places, means, strict=True)))):
            self._log_z_in_step.update(in_step)
            for place, mean in own:
                begun.setdefault(place, []).append(mean)
        for place, values in begun.items():
            self.log_z[place] = sum(values) / len(values)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, with learning rates of its own where it has them."""
        groups: list[dict[str, Any]] = [{"params": list(self.lm.trainable().values())}]
        if self.objective.needs_log_z:
            groups.append(
                {
                    "params": [self.log_z],
                    "lr": getattr(self.objective, "log_z_lr", self.optim.lr),
                    "weight_decay": 0.0,
                }
            )
        return groups

    def configure_optimizers(self) -> dict[str, Any]:
        options, groups = self.optim, self.parameter_groups()
        optimizer = torch.optim.AdamW(
            groups, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
        )

        def factor(step: int) -> float:
            if self.rounds > 1:
                # Every E-step has a warm-up of its own, and a line of its own down to 0.
                step %= self.max_steps
            if step < options.warmup or not options.decay:
                return warmup_factor(step, options.warmup)
            done = (step - options.warmup) / max(1, self.max_steps - options.warmup)
            return max(1.0 - done, 1e-3)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self._group_options = [
            {name: group[name] for name in ("initial_lr", "weight_decay", "betas")}
            for group in optimizer.param_groups
        ]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Give a resumed optimizer the learning rates, decays and betas of the config.

        A checkpoint brings its own back with the moments; the config may say something else since. Where
        it does not, every number is the same as before, to the last bit.
        """
        schedule = self.lr_schedulers()
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        groups = schedule.optimizer.param_groups
        schedule.base_lrs = [options["initial_lr"] for options in self._group_options]
        rates = [
            base * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, options, rate in zip(groups, self._group_options, rates, strict=True):
            group.update(options, lr=rate)
        schedule._last_lr = rates

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """What of the policy and its optimizer is not finite; ``None`` where all is.

        Weights may be finite and too large to compute with, so the logits behind a prompt are looked at
        too. NaN in log Z marks a condition that was never visited. Every rank has to call it.
        """
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            is_log_z = self.objective.needs_log_z and parameter is self.log_z
            if (parameter.isinf() if is_log_z else ~parameter.isfinite()).any():
                return name
            for optimizer in self.trainer.optimizers:
                for moment, value in optimizer.state.get(parameter, {}).items():
                    if torch.is_tensor(value) and not value.isfinite().all():
                        return f"{moment} of {name}"
        with self.lm.in_step():
            logits_NV = self.lm.prefill([self.lm.encode_prompt(self._probe)]).last_logits_NV
        normalisers_N = logits_NV.float().logsumexp(dim=-1)
        return (
            None if normalisers_N.isfinite().all() else f"what the policy says at {self._probe!r}"
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Between the backward pass and the optimizer: what training steps have begun is in log Z."""
        if self.objective.needs_log_z:
            self._log_z_before_C = self.log_z.detach().clone()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """An optimizer step; log Z moves for the conditions in the step's loss only.

        Adam's momentum would go on moving the others.
        """
        super().optimizer_step(*args, **kwargs)
        if not self.objective.needs_log_z:
            return
        moves_C = torch.zeros_like(self.log_z, dtype=torch.bool)
        moves_C[list(self._log_z_in_step)] = True
        self._log_z_in_step.clear()
        with torch.no_grad():
            self.log_z.copy_(torch.where(moves_C, self.log_z, self._log_z_before_C))

    # -- evaluation ---------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> list[ConditionSamples]:
        generator = torch_generator_for(self.lm.device, "evaluate", self.seed, batch.index)
        options = self.evaluation
        if not self.final and options.singles_during is not None:
            options = dataclasses.replace(options, singles=options.singles_during)
        with self.phases("evaluation"):
            return draw_answers(
                self.lm, self.task, self.evaluation_rule, batch.conditions, options, generator
            )

    # -- Lightning ----------------------------------------------------------------------------

    def cpu(self) -> Self:
        """Stay where it is.

        Lightning calls this behind every fit and validation; M-steps, the base model's evaluation and the
        report come after them, and need the model on its device.
        """
        return self

    def on_fit_start(self) -> None:
        self.phases.profiler = getattr(self.trainer, "profiler", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained: adapter and log Z, never the base model."""
        kept = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in kept}
        checkpoint["task"], checkpoint["m_steps"] = self.task.name, self.lm.m_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("task") != self.task.name:
            raise UserError.one(
                "resume",
                f"the checkpoint is of task {checkpoint.get('task')!r}",
                f"a run of task {self.task.name!r}",
            )
        m_steps, step = checkpoint.get("m_steps", 0), checkpoint.get("global_step", 0)
        if m_steps > self.lm.m_steps:
            raise UserError.one(
                "resume",
                f"the checkpoint is of a policy behind M-step {m_steps}, but the answer adapter in the "
                f"run's folder has seen {self.lm.m_steps}",
                "checkpoint and answer_adapter of one run",
                "put its answer_adapter back, or train anew in another folder",
            )
        if step < self.lm.m_steps * self.max_steps and is_first():
            logger.warning(
                "the run goes on from step %d, but its M-step %d was made behind step %d: what lies "
                "between is trained again under the newer answer model",
                step,
                self.lm.m_steps,
                self.lm.m_steps * self.max_steps,
            )
        if self.objective.needs_log_z:
            log_z = checkpoint["state_dict"]["log_z"]
            # What a version before had begun at ±∞ begins anew; and all of it for another reward.
            log_z[log_z.isinf() | (m_steps != self.lm.m_steps)] = float("nan")
        shapes = {name: p.shape for name, p in self.named_parameters() if p.requires_grad}
        saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
        wrong = sorted(name for name, shape in shapes.items() if saved.get(name) != shape)
        if wrong:
            raise UserError.one(
                "resume",
                f"{len(wrong)} trained tensors are missing in the checkpoint or of another shape, "
                f"e.g. {wrong[0]}",
                "a checkpoint of a run with the same lm and lm.lora settings",
            )
