"""The M-step of EM: the answer model learns to answer after the policy's samples.

Hu et al. 2024 (arXiv:2310.04363), section 3.2: GFlowNet training is the E-step, in which the policy
learns to sample Z ~ p(Z | X, Y); the M-step increases log p(Y | X Z) for those Z. The model that defines
the reward is then the base model with an adapter of its own, the answer adapter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from gfn_runner.algorithms.skipped_steps import SkippedSteps, named
from gfn_runner.data.conditions import Condition
from gfn_runner.data.tools import Tool
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.distributed.ranks import (
    all_gather,
    broadcast,
    compute_on_rank_zero,
    rank,
    share_of_rank,
    sum_gradients,
    world,
)
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.pieces import GivenStrings, row_slices
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_suffixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.runtime.files import sync
from gfn_runner.runtime.seeds import rng_for, torch_generator_for
from gfn_runner.runtime.status import ProgressLogger

logger = logging.getLogger(__name__)

FOLDER = "answer_adapter"
_BEFORE = f"{FOLDER}.old"  # the previous one, while a new one replaces it
_RECORD = "em.json"
_MOST_MEASURED = 64
_GRAD_CLIP = 1.0
_FIX = "lower em.m_lr, use lm.dtype=float32 or bfloat16; resume=<run folder> repeats the M-step"


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EMSettings:
    """Settings of EM: how often, and how, the answer model is trained.

    Attributes:
        rounds: number of E-steps (``trainer.max_steps`` optimizer steps of GFlowNet training each), each
            followed by an M-step; 0 is GFlowNet training alone.
        m_steps: optimizer steps per M-step.
        m_lr: learning rate of the M-step (AdamW, no weight decay).
        m_batch: conditions per optimizer step, each with a fresh sample of the policy.
        lora: settings of the answer adapter.
    """

    rounds: Annotated[int, Field(ge=0)] = 0
    m_steps: Annotated[int, Field(ge=1)] = 100
    m_lr: Annotated[float, Field(gt=0)] = 1e-4
    m_batch: Annotated[int, Field(ge=1)] = 16
    lora: LoraSettings = Field(default_factory=LoraSettings)


def em_problems(options: EMSettings, conditions: Sequence[Condition]) -> Iterator[Problem]:
    """Yield a problem if an M-step cannot learn from the training conditions."""
    without = [c.key for c in conditions if not (c.terms and c.terms[0].suffix)]
    if options.rounds and without:
        yield Problem(
            "em.rounds",
            f"given {options.rounds}, but {len(without)} training conditions have no answer after "
            f"their samples (the suffix of the first term), e.g. {without[0]!r}",
            "0 for this task",
        )


def answer_losses(
    lm: LanguageModel, conditions: Sequence[Condition], trajectories: Trajectories, rule: StringRule
) -> Tensor:
    """Return −log p(Y | X Z) in nats of every string Z under the currently active adapter. Shape (B,).

    X and Y are context and suffix of the condition's first term.
    """
    contexts = [lm.encode_prompt(condition.terms[0].context) for condition in conditions]
    suffixes = [lm.encode(condition.terms[0].suffix) for condition in conditions]
    return -score_suffixes(lm, GivenStrings(contexts, suffixes, trajectories, rule))


def m_step(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    rule: StringRule,
    options: EMSettings,
    *,
    tool: Tool | None,
    seed: int,
    most_non_finite: int = 1,
) -> dict[str, float]:
    """Train the answer adapter on pairs of a fresh sample and an answer; the policy is not changed.

    A step whose loss or gradient is not finite is skipped. The conditions of a step are divided among the
    ranks, all of which must call this.

    Args:
        lm: gets an answer adapter if it has none; ``lm.m_steps`` counts the M-step.
        conditions: training conditions, drawn by their weight with replacement.
        most_non_finite: number of skipped steps in a row that ends the run; see :class:`SkippedSteps`.

    Returns:
        ``loss_before`` and ``loss_after`` in nats per answer on the same samples; ``skipped`` steps.

    Raises:
        UserError: after ``most_non_finite`` skipped steps in a row, naming their conditions.
    """
    if not lm.has_answer_adapter:
        lm.add_answer_adapter(options.lora, seed)
    number = lm.m_steps + 1
    pool = [condition for condition in conditions if condition.weight > 0]
    measured = rng_for("m-step", seed, number).sample(pool, min(len(pool), _MOST_MEASURED))
    known = _samples(lm, measured, rule, tool, "m-step", seed, number)
    before = _measured_loss(lm, measured, known, rule)
    parameters = lm.answer_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=options.m_lr, weight_decay=0.0)
    skipped = SkippedSteps(most_non_finite, _FIX)
    progress = ProgressLogger(f"M-step {number}", options.m_steps, "steps")
    with _unfrozen(parameters), progress as count:
        for step in range(options.m_steps):
            rng = rng_for("m-step", seed, number, step)
            drawn = rng.choices(pool, [c.weight for c in pool], k=options.m_batch)
            own = share_of_rank(drawn)
            place = (step, rank()) if world() > 1 else (step,)
            strings = _samples(lm, own, rule, tool, "m-step", seed, number, *place)
            optimizer.zero_grad()
            problem = _gradient(lm, drawn, own, strings, rule)
            if skipped.passes(step + 1, problem, f"M-step {number}, "):
                optimizer.step()
            count.advance()
    lm.m_steps = number
    return {
        "loss_before": before,
        "loss_after": _measured_loss(lm, measured, known, rule),
        "skipped": float(skipped.total),
    }


def _gradient(
    lm: LanguageModel,
    drawn: Sequence[Condition],
    own: Sequence[Condition],
    strings: Trajectories,
    rule: StringRule,
) -> str | None:
    """Compute the clipped gradient of a step's mean loss for the answer adapter, summed over ranks.

    Each rank computes its part in pieces, so that the activations of only one piece are kept at a time.

    Args:
        drawn: conditions of all ranks; ``own`` and ``strings`` are this rank's.

    Returns:
        What is not finite, with its conditions; ``None`` if everything is finite. The same on every rank.
    """
    contexts = [len(lm.encode_prompt(c.terms[0].context)) for c in own]
    suffixes = [len(lm.encode(c.terms[0].suffix)) for c in own]
    around = max(contexts, default=0) + max(suffixes, default=0) + strings.token_BT.shape[1]
    # Ranks with sharded weights must run equally many forwards with gradients.
    around = max(all_gather(around))
    losses: list[float] = []
    with lm.reference():
        budget = lm.recompute_above or lm.max_tokens_per_forward
        for rows in row_slices(len(strings), around, budget):
            loss_N = answer_losses(lm, own, strings.rows(rows), rule)
            (loss_N.sum() / len(drawn)).backward()
            losses += loss_N.tolist()
    losses = [loss for share in all_gather(losses) for loss in share]
    parameters = lm.answer_parameters()
    sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, _GRAD_CLIP).item()
    # Norms of ranks may differ by rounding: rank 0 decides.
    return broadcast(_non_finite(drawn, losses, norm))


def _samples(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    rule: StringRule,
    tool: Tool | None,
    *name: object,
) -> Trajectories:
    """Sample one string of the policy for each condition."""
    generator = torch_generator_for(lm.device, *name)
    prompts = [lm.encode_prompt(condition.prompt) for condition in conditions]
    if not prompts:  # there are fewer conditions than ranks
        return Trajectories.from_rows([], [], [], lm.device)
    with lm.in_step():
        return sample(lm, prompts, 1, rule, generator, tool=tool)


@torch.no_grad()
def _measured_loss(
    lm: LanguageModel, conditions: Sequence[Condition], strings: Trajectories, rule: StringRule
) -> float:
    with lm.in_step(), lm.reference():
        return answer_losses(lm, conditions, strings, rule).mean().item()


@contextlib.contextmanager
def _unfrozen(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Enable gradients of parameters inside the context; freeze them and drop gradients on exit."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _non_finite(
    conditions: Sequence[Condition], losses: Sequence[float], norm: float
) -> str | None:
    """Return what is not finite in a step, with its conditions; ``None`` if everything is finite."""
    bad = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        keys = (conditions[place].key for place in bad)
        return f"the loss of condition {named(keys)} is {losses[bad[0]]}"
    if not math.isfinite(norm):
        keys = (condition.key for condition in conditions)
        return f"the gradient is not finite; the step's conditions are {named(keys)}"
    return None


# -- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """Record of the newest M-step in a run's folder.

    Attributes:
        m_steps: number of M-steps so far.
        metrics: metrics around the newest one, with the prefixes ``e_step/`` and ``m_step/``.
    """

    m_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def save_answers(lm: LanguageModel, folder: Path, metrics: Mapping[str, float]) -> None:
    """Save the answer adapter and its record to a run's folder, both or neither.

    The previous one is removed last: if this is interrupted, the folder contains the old or the new one.
    """
    unfinished, place, before = folder / f"{FOLDER}.part", folder / FOLDER, folder / _BEFORE
    shutil.rmtree(unfinished, ignore_errors=True)
    lm.save_answer_adapter(unfinished)
    record = {"m_steps": lm.m_steps, "metrics": dict(metrics)}
    (unfinished / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in unfinished.iterdir():
        with path.open("rb") as file:
            sync(file.fileno())
    if place.is_dir():
        shutil.rmtree(before, ignore_errors=True)
        place.rename(before)
    unfinished.rename(place)
    remove_answers_before(folder)


def remove_answers_before(folder: Path) -> None:
    """Remove the previous answer adapter, which has been replaced, if it is still there."""
    shutil.rmtree(folder / _BEFORE, ignore_errors=True)


def _saved(folder: Path) -> Path:
    """Return where a run's folder contains the answer adapter, if there is one."""
    place = folder / FOLDER
    return place if place.is_dir() else folder / _BEFORE


def read_record(folder: Path) -> Record:
    """Read the record in a run's folder; without one, return that of no M-step.

    Raises:
        UserError: if it cannot be read.
    """
    file = _saved(folder) / _RECORD
    if not file.is_file():
        return Record()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Record(int(found["m_steps"]), dict(found["metrics"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        allowed = "the record that the run's newest M-step wrote"
        raise UserError.one(str(file), f"cannot be read ({error!r:.200})", allowed) from error


def load_answers(lm: LanguageModel, folder: Path) -> None:
    """Load the answer adapter of a run's folder, if there is one; every rank must call this."""

    def found() -> tuple[Path, int]:
        return _saved(folder), read_record(folder).m_steps

    place, m_steps = compute_on_rank_zero(found)
    if m_steps:
        lm.load_answer_adapter(place, m_steps)
