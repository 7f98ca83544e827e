"""Rounds of EM: E-steps by GFlowNet training and the M-steps between them, each made once.

An E-step after the first goes on from the newest checkpoint, just as a resumed run does: so a run that
was interrupted anywhere ends where an uninterrupted one does. (Stored log-rewards of the old answer
model are made new by the replay callback, which sees that ``lm.m_steps`` has changed.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gfn_runner.algorithms.em import m_step, m_step_line, read_record, save_answers
from gfn_runner.build import Experiment
from gfn_runner.callbacks.checkpoint import newest_checkpoint
from gfn_runner.config.validation import RunConfig
from gfn_runner.distributed.ranks import is_first, same_as_first
from gfn_runner.errors import Problem
from gfn_runner.evaluation.draw import draw_answers, limited
from gfn_runner.evaluation.measure import measure
from gfn_runner.runtime.json_lines import read_metrics
from gfn_runner.runtime.seeds import torch_generator_for

logger = logging.getLogger(__name__)


def train(
    config: RunConfig, experiment: Experiment, folder: Path, checkpoint: Path | None
) -> dict[str, float]:
    """Make all E- and M-steps that the run's folder does not hold yet.

    Args:
        config: of the run.
        experiment: its model has the folder's answer adapter already.
        folder: gets the answer adapter behind every M-step.
        checkpoint: to begin with, or ``None``.

    Returns:
        Of the last round, ``e_step/<metric>``: the evaluation before its M-step; and ``m_step/…``, see
        :func:`m_step`. Empty if there is no M-step.
    """
    module, lm = experiment.module, experiment.module.lm
    metrics = dict(read_record(folder).metrics)
    if lm.m_steps and not _is_logged(
        folder / "metrics.jsonl", lm.m_steps * config.trainer.max_steps
    ):
        # The run was killed behind the M-step, before its line was written.
        _log(experiment, metrics, lm.m_steps)
    if lm.m_steps == config.em.rounds:
        # All M-steps are made (or none is wanted): what may be missing is training.
        _e_step(config, experiment, checkpoint, rounds=max(1, lm.m_steps))
    for number in range(lm.m_steps, config.em.rounds):
        _e_step(config, experiment, checkpoint, rounds=number + 1)
        metrics = _evaluated(config, experiment)
        if is_first():
            print(
                f"M-step {number + 1}: the answer model learns behind the policy's samples",
                flush=True,
            )
        # Every rank makes the same M-step, from one seed; what rounding has done is undone behind it.
        measured = m_step(
            lm,
            config.data.train,
            module.rule,
            config.em,
            tool=config.task.tool(),
            seed=config.seed,
            most_non_finite=config.callbacks.health.most_non_finite,
        )
        same_as_first(lm.answer_parameters())
        metrics |= {f"m_step/{name}": value for name, value in measured.items()}
        if is_first():
            logger.info("M-step %d: %s", number + 1, m_step_line(measured))
            save_answers(lm, folder, metrics)
        _log(experiment, metrics, number + 1)
        checkpoint = newest_checkpoint(folder / "checkpoints")
    return metrics


def _log(experiment: Experiment, metrics: dict[str, float], number: int) -> None:
    """The line of an M-step."""
    for log in experiment.trainer.loggers:
        log.log_metrics(metrics, step=number * experiment.module.max_steps)


def _is_logged(lines: Path, step: int) -> bool:
    """Whether the M-step behind an optimizer step has its line."""
    records = read_metrics(lines)
    return any(r["step"] == step and any(n.startswith("m_step/") for n in r) for r in records)


def _e_step(
    config: RunConfig, experiment: Experiment, checkpoint: Path | None, *, rounds: int
) -> None:
    """Train to the end of a round; a checkpoint of that step is only read."""
    trainer = experiment.trainer
    trainer.fit_loop.epoch_loop.max_steps = rounds * config.trainer.max_steps
    trainer.fit(
        experiment.module, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True
    )
    if experiment.evaluation.lacks(trainer.global_step):
        # Interrupted in the evaluation of the last step, behind which there is nothing to train.
        experiment.module.reward_temperature = config.callbacks.tempering(trainer.global_step - 1)
        trainer.validate(experiment.module, datamodule=experiment.data, verbose=False)
    # A checkpoint of the round's last step trains no batch, before which it would have been set.
    experiment.module.reward_temperature = config.callbacks.tempering(trainer.global_step)


def _evaluated(config: RunConfig, experiment: Experiment) -> dict[str, float]:
    """The final evaluation's conditions, as the policy and the answer model are now."""
    module, options = experiment.module, config.callbacks.evaluation
    generator = torch_generator_for(module.lm.device, "e-step", config.seed, module.lm.m_steps)
    conditions = limited(config.data.evaluation, options.final)
    samples = draw_answers(
        module.lm,
        config.task,
        module.evaluation_rule,
        conditions,
        options,
        generator,
        name="evaluation before the M-step",
    )
    measured = measure(
        config.task,
        samples,
        temperature=module.reward_temperature,
        encoder=options.encoder,
    )
    return {f"e_step/{name}": value for name, value in measured.items()}


def resume_problems(saved: Mapping[str, Any], config: RunConfig, folder: Path) -> Iterator[Problem]:
    """What may not change once an M-step was made: where it was made, and its adapter.

    Args:
        saved: the config that the run has had.
        config: the one it is to go on with.
        folder: of the run.
    """
    made = read_record(folder).m_steps
    if not made:
        return
    if config.em.rounds < made:
        yield Problem(
            "em.rounds", f"given {config.em.rounds}", f"at least {made}: so many M-steps were made"
        )
    before = saved["trainer"]["max_steps"]
    if config.trainer.max_steps != before:
        yield Problem(
            "trainer.max_steps",
            f"given {config.trainer.max_steps}, but the run's M-steps were made every {before} steps",
            f"{before}",
            f"em.rounds={made + 1} to train on",
        )
    if saved["em"]["lora"] != config.as_dict()["em"]["lora"]:
        yield Problem(
            "em.lora",
            f"given {config.as_dict()['em']['lora']!r}",
            f"{saved['em']['lora']!r}, as in the run to be resumed",
        )
