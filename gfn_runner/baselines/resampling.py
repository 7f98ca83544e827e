"""The base model's own draws, the best of n or some by importance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.baselines.base import Baseline, Rows, draw_row
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.errors import Problem
from gfn_runner.evaluation.draw import Drawing
from gfn_runner.runtime.seeds import rng_for


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Resampling(Baseline):
    """What one would do without training: n draws of the base model, the best or some by importance.

    Attributes:
        draws: numbers n of draws per condition; each number uses the first n of the same draws.
        answers_known: whether the posterior may use the answer of a test question (a rationale that
            leads to the known answer, as in training). Off, it is p(Z ⊤ | X), which is all that one has
            when the answer is asked for. It changes nothing where samples have no answer.
    """

    draws: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4, 16, 64, 256)
    answers_known: bool = False

    label: ClassVar[str] = "resampling"

    def problems(self) -> Iterator[Problem]:
        if not self.draws:
            yield Problem("baseline.draws", "given none", "at least one number of draws")

    def rows(self, drawing: Drawing) -> Rows:
        """For every number n of draws: ``best_of_n``, the likeliest under R, and ``resampled_n``.

        Of n draws, ``options.singles`` strings are kept by importance, and ``options.votes`` more for
        the vote. Of the best there is one, which is the only vote.
        """
        d, asked = drawing, list(drawing.conditions)
        if not self.answers_known:
            asked = [d.task.without_answer(condition) for condition in asked]
        drawn = _draws(d, asked, max(self.draws))
        for n in self.draws:
            first = [_some(samples, range(n)) for samples in drawn]
            yield f"best_of_{n}", _of_conditions(d, asked, map(_best, first))
            kept = (_kept(d, samples, votes=d.options.votes) for samples in first)
            yield f"resampled_{n}", _of_conditions(d, asked, kept)


def resample_base_model(d: Drawing) -> list[ConditionSamples]:
    """Draw ``options.resampled`` strings of the base model and keep some by R^(1/T) / p.

    Sampling importance resampling (Rubin 1987): as the number of draws grows, what is kept is
    distributed as the posterior. Kept with replacement: where few draws carry all the weight, there
    are few different strings, which is what their effective sample size says.
    """
    return [_kept(d, samples) for samples in _draws(d, d.conditions, d.options.resampled)]


def _draws(d: Drawing, conditions: Sequence[Condition], n: int) -> list[ConditionSamples]:
    """``n`` strings of the base model for each condition."""
    options = dataclasses.replace(d.options, singles=n, votes=0)
    own = d.replace(conditions=conditions, options=options)
    return draw_row(own, "resampling", "resampling", d.seed)


def _of_conditions(
    d: Drawing, asked: Sequence[Condition], samples: Iterable[ConditionSamples]
) -> list[ConditionSamples]:
    """Samples of the conditions as they are; log R and log q of another posterior are left out."""
    return [
        s if c is a else dataclasses.replace(s, condition=c, log_reward=(), log_pf=())
        for s, a, c in zip(samples, asked, d.conditions, strict=True)
    ]


def _best(samples: ConditionSamples) -> ConditionSamples:
    """The one string with the largest log R, also as the only vote."""
    best = max(range(len(samples.log_reward)), key=samples.log_reward.__getitem__)
    one = _some(samples, [best])
    # It is drawn by no density that could be written down.
    return dataclasses.replace(one, votes=one.singles, vote_answer_log_probs=one.answer_log_probs)


_COLUMNS = (
    "singles",
    "log_reward",
    "log_pf",
    "log_likelihood",
    "term_log_probs",
    "answer_log_probs",
)


def _some(samples: ConditionSamples, places: Sequence[int]) -> ConditionSamples:
    """Some of the singles; nothing that was drawn or scored beside them."""
    columns: dict[str, Any] = {
        name: [values[i] for i in places] if (values := getattr(samples, name)) else ()
        for name in _COLUMNS
    }
    return dataclasses.replace(
        samples,
        votes=(),
        vote_answer_log_probs=(),
        greedy=None,
        greedy_answer_log_probs=(),
        # The support was scored under the base model, which is not what is shown.
        support_log_reward=(),
        support_log_pf=(),
        **columns,
    )


def _kept(d: Drawing, samples: ConditionSamples, *, votes: int = 0) -> ConditionSamples:
    """``options.singles`` singles and ``votes`` votes, drawn with replacement by R^(1/T) / p."""
    temperature = d.temperature
    phi_N = torch.tensor(samples.log_reward) / temperature - torch.tensor(samples.log_pf)
    phi_N = phi_N.masked_fill(~phi_N.isfinite(), -math.inf)
    if phi_N.isneginf().all():
        phi_N = torch.zeros_like(phi_N)
    rng = rng_for("resampling", d.seed, samples.condition.key)
    weight_N = phi_N.double().softmax(dim=0)
    chosen = rng.choices(range(len(phi_N)), weights=weight_N.tolist(), k=d.options.singles)
    voting = rng.choices(range(len(phi_N)), weights=weight_N.tolist(), k=votes) if votes else []
    # The density of what is kept: that of the posterior, with Z as the draws estimate it.
    log_z = float(phi_N.logsumexp(dim=0)) - math.log(len(phi_N))
    log_pf = [samples.log_reward[i] / temperature - log_z for i in chosen]
    ess = 1 / float(weight_N.square().sum()) / len(phi_N)
    answers = samples.answer_log_probs
    return dataclasses.replace(
        _some(samples, chosen),
        log_pf=log_pf,
        draws_ess=ess,
        votes=tuple(samples.singles[i] for i in voting),
        vote_answer_log_probs=[answers[i] for i in voting] if answers else (),
    )
