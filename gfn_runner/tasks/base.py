"""The Lightning module that every experiment is: a policy, its posterior and a training algorithm.

To add an experiment, write a subclass of :class:`GFlowNetModule` with its hooks
(:class:`~gfn_runner.data.task.Task`) in a file of its own here, and a yaml in ``conf/task`` that names it by
``_target_``. It has no training step of its own: that is the algorithm's, so that every algorithm trains
every experiment.
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
    """An experiment. By itself it gives data and metrics; with a model attached it is trained.

    Args:
        terminator, terminator_role, min_len, max_len, eval_max_len: see
            :class:`~gfn_runner.data.task.Task`.

    Attributes:
        reward_temperature: T of the posterior R^(1/T); set by the reward tempering callback.
        final: whether evaluation is the one after training.
        sft_steps: optimizer steps of supervised fine-tuning, before the algorithm's.
        last_output: of the newest training step, detached; for the callbacks that run before the
            step's end.
        phases: their seconds.
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
        self._group_options: list[dict[str, Any]] = []  # of the optimizer, by the config

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
        """Give the experiment its model, and what it is trained with.

        Args:
            lm: the policy, and the model that the reward speaks of.
            algorithm: what a training step computes.
            conditions: to train on.
            sampling: trajectories of a training step.
            evaluation: what an evaluation draws.
            evaluated: its conditions; of the first ones, samples of the posterior are drawn too.
            optimizer: called with parameter groups.
            scheduler: called with the optimizer and, where it takes them, ``total_steps`` (optimizer steps
                of a round) and ``n_rounds``.
            max_steps: optimizer steps of a round.
            n_rounds: rounds of EM, at least 1.
            seed: of everything random.

        Raises:
            UserError: if the terminator is not one token of the model.
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
        # Supervised fine-tuning begins with itself.
        share = 0.0 if isinstance(algorithm, SFT) else self.sampling.sft_share
        self.sft, self.sft_steps = SFT(), round(share * max_steps)
        algorithm.setup(self)
        return self

    # -- training -----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The algorithm's step, after the first ``sft_steps``; see :meth:`Algorithm.training_step`."""
        if self.in_sft_steps:
            step = self.sft.string_step(self, batch)
            # DDP waits for a gradient of every parameter. Not p · 0: that of NaN, an unknown log Z, is NaN.
            unused = (torch.zeros_like(p).where(p.isnan(), p) for p in self.algorithm.parameters())
            step["loss"] = step["loss"] + sum(0.0 * p.sum() for p in unused)
        else:
            step = self.algorithm.training_step(self, batch)
        self.last_output = step["output"]
        return step

    @property
    def in_sft_steps(self) -> bool:
        """Whether the next step is supervised fine-tuning that the algorithm begins after."""
        return self.sft_steps > 0 and self.global_step < self.sft_steps

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, timed."""
        with self.phases("backward"):
            super().backward(loss, *args, **kwargs)

    def prompts(self, conditions: Sequence[Condition]) -> list[tuple[int, ...]]:
        """Tokens of the conditions' prompts."""
        return [self.lm.encode_prompt(condition.prompt) for condition in conditions]

    def exploration_temperature(self, index: int) -> float:
        """Of the fresh trajectories of batch ``index``: 1 on-policy, else drawn as the settings say."""
        rng = rng_for("explore", self.seed, index)
        if rng.random() < self.sampling.exploration_probability:
            return rng.uniform(self.sampling.min_temperature, self.sampling.max_temperature)
        return 1.0

    def explore(
        self, prompts: list[tuple[int, ...]], index: int, temperature: float
    ) -> Trajectories:
        """Fresh trajectories of the policy at an exploration temperature."""
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
        """Untempered log-rewards of the states that the algorithm compares, nats. Shape (B, S).

        Of every prefix, or of whole strings alone; −inf at the other states.
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
        """Give a resumed optimizer the options and the schedule of the config.

        A checkpoint restores its own with the moments; the config may have changed since. Where it has
        not, every number is the same as before, to the last bit.
        """
        optimizer = self.trainer.optimizers[0]
        for group, options in zip(optimizer.param_groups, self._group_options, strict=True):
            group.pop("initial_lr", None)
            group.update(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps of a schedule without the optimizer's
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler = self._schedule(optimizer)
                for _ in range(self.global_step):
                    config.scheduler.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.algorithm.before_optimizer_step(self)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, then what the algorithm has to do after it."""
        super().optimizer_step(*args, **kwargs)
        self.algorithm.after_optimizer_step(self)

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """What of the policy and its optimizer is not finite; ``None`` where all is.

        Weights may be finite and too large to compute with, so the logits after a prompt are looked at
        too. Every rank has to call it.
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
        return None if finite else f"what the policy says at {prompt!r}"

    # -- evaluation ---------------------------------------------------------------------------

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int
    ) -> list[ConditionSamples]:
        with self.phases("evaluation"):
            return self.algorithm.validation_step(self, batch)

    def draw_answers(self, batch: Batch) -> list[ConditionSamples]:
        """Samples of the policy for an evaluation batch."""
        generator = torch_generator_for(self.lm.device, "evaluate", self.seed, batch.index)
        options = self.evaluation
        if not self.final and options.singles_during is not None:
            options = dataclasses.replace(options, singles=options.singles_during)
        drawing = self.drawing(batch.conditions, self.reward_temperature, posterior=True)
        return draw_answers(drawing.replace(options=options), generator)

    def drawing(
        self, conditions: Sequence[Condition], temperature: float = 1.0, *, posterior: bool = False
    ) -> Drawing:
        """What samples for conditions are drawn with; ``temperature`` is that of their posterior.

        Args:
            posterior: whether samples of the posterior are added.
        """
        own = (self.lm, self, self.evaluation_rule, conditions, self.evaluation, self.seed)
        if not posterior:
            return Drawing(*own, temperature)
        add = partial(with_posterior, sampler=self.posterior_sampler, temperature=temperature)
        return Drawing(*own, temperature, add)

    # -- Lightning ----------------------------------------------------------------------------

    def cpu(self) -> Self:
        """Stay on the device.

        Lightning calls this after every fit and validation; M-steps, the base model's evaluation and the
        report come after them, and need the model on its device.
        """
        return self

    def on_fit_start(self) -> None:
        self.phases.profiler = getattr(self.trainer, "profiler", None)
        self.algorithm.on_fit_start(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained: adapter and the algorithm's parameters, never the base model."""
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
        # A run that is made longer does not go back to supervised fine-tuning.
        self.sft_steps = checkpoint.get("sft_steps", 0)
        self.algorithm.on_load_checkpoint(self, checkpoint)
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

    def _check_m_steps(self, m_steps: int, step: int) -> None:
        """Compare a checkpoint's M-steps with those of the answer adapter in the run's folder."""
        if m_steps > self.lm.m_steps:
            raise UserError.one(
                "resume",
                f"the checkpoint's policy was trained after M-step {m_steps}, but the answer adapter in "
                f"the run's folder has seen {self.lm.m_steps}",
                "checkpoint and answer_adapter of one run",
                "put its answer_adapter back, or train anew in another folder",
            )
        if step < self.lm.m_steps * self.max_steps and is_rank_zero():
            logger.warning(
                "the run goes on from step %d, but its M-step %d was made after step %d: the steps "
                "between are trained again under the newer answer model",
                step,
                self.lm.m_steps,
                self.lm.m_steps * self.max_steps,
            )
