"""Base class of all experiments: a Lightning module with a policy, a posterior and a training algorithm.

To add an experiment, subclass :class:`GFlowNetModule` in a new file of this package, implement the hooks of
:class:`~gfn_runner.data.task.Task`, and add a yaml file to ``conf/task`` whose ``_target_`` is the subclass.
The training step is defined by the algorithm rather than the experiment, so every algorithm can train every
experiment.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

import lightning as L
import torch
from pydantic import Field
from torch import Tensor

from gfn_runner.algorithms.base import Algorithm, SamplingSettings
from gfn_runner.algorithms.schedules import linear_schedule
from gfn_runner.algorithms.sft import SFT
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Batch, StepOutput, Trajectories
from gfn_runner.distributed.ranks import is_rank_zero
from gfn_runner.errors import UserError
from gfn_runner.evaluation.draw import Drawing, draw_answers
from gfn_runner.evaluation.posterior import PosteriorSampler, with_posterior
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.rewards.reward import log_reward, terminal_log_reward
from gfn_runner.runtime.phases import Phases
from gfn_runner.runtime.seeds import rng_for, torch_generator_for

logger = logging.getLogger(__name__)


class GFlowNetModule(Task, L.LightningModule):
    """An experiment. By itself it provides data and metrics; with a model attached it can be trained.

    Args:
        terminator, terminator_role, min_len, max_len, eval_max_len: see
            :class:`~gfn_runner.data.task.Task`.

    Attributes:
        reward_temperature: T of the posterior R^(1/T); set by the reward tempering callback.
        final: whether the current evaluation is the one after training.
        sft_steps: optimizer steps of supervised fine-tuning before those of the algorithm.
        last_output: detached output of the latest training step, for callbacks that run before the step
            ends.
        phases: timer for the phases of a step.
    """

    def __init__(
        self,
        *,
        terminator: str = ".",
        terminator_role: Literal["end_of_turn", "end_of_text"] | None = None,
        min_len: Annotated[int, Field(ge=0)] = 0,
        max_len: Annotated[int, Field(ge=1)] = 30,
        eval_max_len: Annotated[int, Field(ge=1)] = 30,
    ) -> None:
        super().__init__()
        self.terminator, self.terminator_role = terminator, terminator_role
        self.min_len, self.max_len, self.eval_max_len = min_len, max_len, eval_max_len
        self.reward_temperature = 1.0
        self.final = False
        self.last_output: StepOutput | None = None
        self.phases = Phases()
        self.strict_loading = False
        self._group_options: list[dict[str, Any]] = []  # optimizer options set by the config

    def attach(
        self,
        lm: LanguageModel,
        algorithm: Algorithm,
        *,
        conditions: Sequence[Condition] = (),
        sampling: SamplingSettings | None = None,
        evaluation: EvaluationSettings | None = None,
        evaluated: Sequence[Condition] = (),
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] = linear_schedule,
        max_steps: int = 1,
        n_rounds: int = 1,
        seed: int = 0,
    ) -> Self:
        """Attach a model and everything needed to train it.

        Args:
            lm: the policy, and the model that defines the reward.
            algorithm: computes the training step.
            conditions: conditions to train on.
            sampling: how the trajectories of a training step are sampled.
            evaluation: what an evaluation samples and measures.
            evaluated: evaluation conditions; posterior samples are also drawn for the first ones.
            optimizer: called with the parameter groups.
            scheduler: called with the optimizer and, if it accepts them, ``total_steps`` (optimizer steps per
                round) and ``n_rounds``.
            max_steps: optimizer steps per round.
            n_rounds: number of EM rounds, at least 1.
            seed: seed of all random streams.

        Raises:
            UserError: if the terminator is not a single token of the model.
        """
        self.lm, self.algorithm = lm, algorithm
        self.conditions = list(conditions)
        self.sampling = sampling or SamplingSettings()
        self.evaluation = evaluation or EvaluationSettings()
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.max_steps, self.n_rounds, self.seed = max_steps, n_rounds, seed
        self.rule = string_rule(lm, self, self.max_len)
        self.evaluation_rule = string_rule(lm, self, self.eval_max_len)
        self.posterior_sampler = PosteriorSampler(self.drawing(evaluated))
        # Supervised fine-tuning itself needs no SFT steps before it.
        share = 0.0 if isinstance(algorithm, SFT) else self.sampling.sft_share
        self.sft, self.sft_steps = SFT(), round(share * max_steps)
        algorithm.setup(self)
        return self

    # -- training -----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Run SFT for ``sft_steps``, then the algorithm's step; see :meth:`Algorithm.training_step`."""
        if self.in_sft_steps:
            step = self.sft.string_step(self, batch)
            # DDP expects a gradient for every parameter. p · 0 would be NaN for an unknown (NaN) log Z.
            unused = (torch.zeros_like(p).where(p.isnan(), p) for p in self.algorithm.parameters())
            step["loss"] = step["loss"] + sum(0.0 * p.sum() for p in unused)
        else:
            step = self.algorithm.training_step(self, batch)
        self.last_output = step["output"]
        return step

    @property
    def in_sft_steps(self) -> bool:
        """Whether the next step is one of supervised fine-tuning before the algorithm starts."""
        return self.sft_steps > 0 and self.global_step < self.sft_steps

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run Lightning's backward pass and time it."""
        with self.phases("backward"):
            super().backward(loss, *args, **kwargs)

    def prompts(self, conditions: Sequence[Condition]) -> list[tuple[int, ...]]:
        """Return the token ids of the conditions' prompts."""
        return [self.lm.encode_prompt(condition.prompt) for condition in conditions]

    def exploration_temperature(self, index: int) -> float:
        """Return the sampling temperature for batch ``index``: 1 on-policy, otherwise drawn as configured."""
        rng = rng_for("explore", self.seed, index)
        if rng.random() < self.sampling.exploration_probability:
            return rng.uniform(self.sampling.min_temperature, self.sampling.max_temperature)
        return 1.0

    def explore(
        self, prompts: list[tuple[int, ...]], index: int, temperature: float
    ) -> Trajectories:
        """Sample fresh trajectories from the policy at an exploration temperature."""
        generator = torch_generator_for(self.lm.device, "sample", self.seed, index)
        return sample(
            self.lm,
            prompts,
            self.sampling.n_samples,
            self.rule,
            generator,
            temperature=temperature,
            tool=self.tool(),
        )

    def log_reward(self, conditions: Sequence[Condition], trajectories: Trajectories) -> Tensor:
        """Return untempered log-rewards of the states that the algorithm compares, in nats. Shape (B, S).

        The compared states are all prefixes, or only the complete strings; all others have −inf.
        """
        score = log_reward if self.algorithm.needs_prefixes else terminal_log_reward
        return score(self.lm, conditions, trajectories, self.rule, self.constraints())

    # -- optimization -------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        groups = [{"params": list(self.lm.trainable().values())}]
        optimizer = self.make_optimizer([*groups, *self.algorithm.parameter_groups()])
        self._group_options = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        schedule = {"scheduler": self._schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        lengths = {"total_steps": self.max_steps, "n_rounds": self.n_rounds}
        takes = inspect.signature(self.make_scheduler).parameters
        return self.make_scheduler(optimizer, **{k: v for k, v in lengths.items() if k in takes})

    def on_train_start(self) -> None:
        """Apply the optimizer options and schedule of the config to a resumed optimizer.

        A checkpoint restores the old options along with the moments, but the config may have changed since.
        If it has not, all values remain bitwise the same as before.
        """
        optimizer = self.trainer.optimizers[0]
        for group, options in zip(optimizer.param_groups, self._group_options, strict=True):
            group.pop("initial_lr", None)
            group.update(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about scheduler steps without optimizer steps
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler = self._schedule(optimizer)
                for _ in range(self.global_step):
                    config.scheduler.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.algorithm.before_optimizer_step(self)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Run Lightning's optimizer step, then the algorithm's hook."""
        super().optimizer_step(*args, **kwargs)
        self.algorithm.after_optimizer_step(self)

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """Name a non-finite tensor of the policy or its optimizer; return ``None`` if all are finite.

        Weights can be finite but too large to compute with, so the logits after a prompt are checked too.
        Must be called on every rank.
        """
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            nan_is_fine = self.algorithm.missing_value_is_finite(name, parameter)
            if (parameter.isinf() if nan_is_fine else ~parameter.isfinite()).any():
                return name
            for optimizer in self.trainer.optimizers:
                for moment, value in optimizer.state.get(parameter, {}).items():
                    if torch.is_tensor(value) and not value.isfinite().all():
                        return f"{moment} of {name}"
        prompt = self.conditions[0].prompt if self.conditions else ""
        with self.lm.in_step():
            logits_NV = self.lm.prefill([self.lm.encode_prompt(prompt)]).last_logits_NV
        finite = logits_NV.float().logsumexp(dim=-1).isfinite().all()
        return None if finite else f"the policy's output at {prompt!r}"

    # -- evaluation ---------------------------------------------------------------------------

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int
    ) -> list[ConditionSamples]:
        with self.phases("evaluation"):
            return self.algorithm.validation_step(self, batch)

    def draw_answers(self, batch: Batch) -> list[ConditionSamples]:
        """Sample from the policy for an evaluation batch."""
        generator = torch_generator_for(self.lm.device, "evaluate", self.seed, batch.index)
        options = self.evaluation
        if not self.final and options.singles_during is not None:
            options = dataclasses.replace(options, singles=options.singles_during)
        drawing = self.drawing(batch.conditions, self.reward_temperature, posterior=True)
        return draw_answers(drawing.replace(options=options), generator)

    def drawing(
        self, conditions: Sequence[Condition], temperature: float = 1.0, *, posterior: bool = False
    ) -> Drawing:
        """Return the inputs for sampling; ``temperature`` is the reward temperature of the posterior.

        Args:
            posterior: whether to add samples from the posterior.
        """
        own = (self.lm, self, self.evaluation_rule, conditions, self.evaluation, self.seed)
        if not posterior:
            return Drawing(*own, temperature)
        add = partial(with_posterior, sampler=self.posterior_sampler, temperature=temperature)
        return Drawing(*own, temperature, add)

    # -- Lightning ----------------------------------------------------------------------------

    def cpu(self) -> Self:
        """Stay on the device.

        Lightning calls this after every fit and validation, but the M-steps, base model evaluation and report
        that follow need the model on its device.
        """
        return self

    def on_fit_start(self) -> None:
        self.phases.profiler = getattr(self.trainer, "profiler", None)
        self.algorithm.on_fit_start(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save trained parameters only: the adapter and those of the algorithm, never the base model."""
        kept = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in kept}
        checkpoint["task"], checkpoint["m_steps"] = self.name, self.lm.m_steps
        checkpoint["sft_steps"] = self.sft_steps
        self.algorithm.on_save_checkpoint(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("task") != self.name:
            raise UserError.one(
                "resume",
                f"the checkpoint is of task {checkpoint.get('task')!r}",
                f"a run of task {self.name!r}",
            )
        self._check_m_steps(checkpoint.get("m_steps", 0), checkpoint.get("global_step", 0))
        # A run that is extended does not return to supervised fine-tuning.
        self.sft_steps = checkpoint.get("sft_steps", 0)
        self.algorithm.on_load_checkpoint(self, checkpoint)
        shapes = {name: p.shape for name, p in self.named_parameters() if p.requires_grad}
        saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
        wrong = sorted(name for name, shape in shapes.items() if saved.get(name) != shape)
        if wrong:
            raise UserError.one(
                "resume",
                f"{len(wrong)} trained tensors are missing in the checkpoint or have another shape, "
                f"e.g. {wrong[0]}",
                "a checkpoint of a run with the same lm and lm.lora settings",
            )

    def _check_m_steps(self, m_steps: int, step: int) -> None:
        """Compare the M-steps of a checkpoint with those of the answer adapter in the run's folder."""
        if m_steps > self.lm.m_steps:
            raise UserError.one(
                "resume",
                f"the checkpoint's policy was trained after M-step {m_steps}, but the answer adapter in "
                f"the run's folder has seen {self.lm.m_steps}",
                "checkpoint and answer_adapter of one run",
                "restore its answer_adapter, or train from scratch in another folder",
            )
        if step < self.lm.m_steps * self.max_steps and is_rank_zero():
            logger.warning(
                "the run resumes from step %d, but its M-step %d was made after step %d: the steps "
                "between are trained again under the newer answer model",
                step,
                self.lm.m_steps,
                self.lm.m_steps * self.max_steps,
            )
