"""Rounds of EM: E-steps by GFlowNet training, each followed by one M-step.

Every E-step after the first continues from the newest checkpoint, like a resumed run, so a run interrupted
at any point ends like an uninterrupted one. The replay buffer callback rescores its strings when
``lm.m_steps`` has changed.
"""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L

from gfn_runner.algorithms.em import (
    EMSettings,
    m_step,
    read_record,
    remove_answers_before,
    save_answers,
)
from gfn_runner.callbacks.checkpoint import newest_checkpoint
from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.log_metrics import log_metrics
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.callbacks.non_finite_steps import SkipNonFiniteSteps
from gfn_runner.callbacks.reward_tempering import reward_schedule
from gfn_runner.data.datamodule import ConditionData
from gfn_runner.data.samples import limited
from gfn_runner.distributed.ranks import broadcast_tensors, compute_on_rank_zero, is_rank_zero
from gfn_runner.evaluation.measure import evaluate
from gfn_runner.runtime.json_lines import is_logged
from gfn_runner.runtime.seeds import torch_generator_for
from gfn_runner.tasks.base import GFlowNetModule

logger = logging.getLogger(__name__)


def train_rounds(
    trainer: L.Trainer,
    module: GFlowNetModule,
    data: ConditionData,
    em: EMSettings,
    checkpoint: Path | None,
) -> dict[str, float]:
    """Perform all E- and M-steps that are missing in the run's folder; without EM, just train.

    Args:
        trainer, module, data: of the run. The model already has the answer adapter from the run's folder.

    Returns:
        For the last round, ``e_step/<metric>`` from the evaluation before its M-step, and ``m_step/…``, see
        :func:`m_step`. Empty if there is no M-step.
    """
    lm, folder = module.lm, Path(trainer.default_root_dir)
    # Only rank 0 reads the folder: ranks that see different contents would diverge.
    metrics = dict(compute_on_rank_zero(lambda: read_record(folder).metrics))
    step = lm.m_steps * module.max_steps
    log = folder / "metrics.jsonl"
    if lm.m_steps and not compute_on_rank_zero(lambda: is_logged(log, step, "m_step/")):
        # The run was killed between the M-step and the logging of its metrics.
        if is_rank_zero():
            remove_answers_before(folder)
        log_metrics(trainer, metrics, step)
    if lm.m_steps == em.rounds:
        # All M-steps are done (or none are configured): only training may be missing.
        _e_step(trainer, module, data, checkpoint, number=max(1, lm.m_steps))
    for number in range(lm.m_steps + 1, em.rounds + 1):
        _e_step(trainer, module, data, checkpoint, number=number)
        metrics = _evaluated(module, data)
        metrics |= _m_step(trainer, module, data, em)
        if is_rank_zero():
            save_answers(lm, folder, metrics)
        log_metrics(trainer, metrics, number * module.max_steps)
        checkpoint = compute_on_rank_zero(lambda: newest_checkpoint(folder / "checkpoints"))
    return metrics


def _e_step(
    trainer: L.Trainer,
    module: GFlowNetModule,
    data: ConditionData,
    checkpoint: Path | None,
    *,
    number: int,
) -> None:
    """Train until the end of round ``number``; if a checkpoint of that step exists, only load it."""
    trainer.fit_loop.epoch_loop.max_steps = number * module.max_steps
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    temperature = reward_schedule(trainer)
    evaluation = find_callback(trainer, EvaluationCallback)
    if evaluation is not None and evaluation.lacks(trainer):
        # Interrupted during the evaluation of the last step, after which no training is left.
        module.reward_temperature = temperature(trainer.global_step - 1)
        trainer.validate(module, datamodule=data, verbose=False)
    # A checkpoint of the round's last step trains no batch, so the temperature was not set.
    module.reward_temperature = temperature(trainer.global_step)


def _evaluated(module: GFlowNetModule, data: ConditionData) -> dict[str, float]:
    """Evaluate the current policy and answer model on the conditions of the final evaluation."""
    generator = torch_generator_for(module.lm.device, "e-step", module.seed, module.lm.m_steps)
    conditions = limited(data.data.evaluation, module.evaluation.final)
    drawing = module.drawing(conditions, module.reward_temperature)
    _, measured = evaluate(drawing, generator, name="evaluation before the M-step")
    return {f"e_step/{name}": value for name, value in measured.items()}


def _m_step(
    trainer: L.Trainer, module: GFlowNetModule, data: ConditionData, em: EMSettings
) -> dict[str, float]:
    """Train the answer adapter; return the measurements of :func:`m_step` as ``m_step/<name>``."""
    lm = module.lm
    if is_rank_zero():
        print(
            f"M-step {lm.m_steps + 1}: train the answer adapter on the policy's samples", flush=True
        )
    skips = find_callback(trainer, SkipNonFiniteSteps)
    measured = m_step(
        lm,
        data.data.train,
        module.rule,
        em,
        tool=module.tool(),
        seed=module.seed,
        most_non_finite=skips.steps.most_in_a_row if skips is not None else 0,
    )
    broadcast_tensors(lm.answer_parameters())  # ranks may differ by rounding
    if is_rank_zero():
        line = "M-step %d: loss %.4g → %.4g nats per answer, %d steps skipped"
        names = ("loss_before", "loss_after", "skipped")
        logger.info(line, lm.m_steps, *(measured[name] for name in names))
    return {f"m_step/{name}": value for name, value in measured.items()}
