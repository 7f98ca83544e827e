"""Draws from the base model: best of n, or resampled by importance."""

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
    """Sampling without training: the best of n base model draws, or some resampled by importance.

    Attributes:
        draws: numbers n of draws per condition; each uses the first n of the same draws.
        answers_known: whether the posterior may use the answer of a test question (a rationale that
            leads to the known answer, as in training). If not, it is p(Z ⊤ | X), which is all that is
            known when a question is asked. No effect if samples have no answers.
    """

    draws: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4, 16, 64, 256)
    answers_known: bool = False

    label: ClassVar[str] = "resampling"

    def problems(self) -> Iterator[Problem]:
        if not self.draws:
            yield Problem("baseline.draws", "given none", "at least one number of draws")

    def rows(self, drawing: Drawing) -> Rows:
        """Yield, for every n in ``draws``: ``best_of_n``, the draw with the highest R, and ``resampled_n``.

        ``resampled_n`` keeps ``options.singles`` of n draws by importance, and ``options.votes`` more for
        the vote. ``best_of_n`` keeps a single string, which is also its only vote.
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
    """Draw ``options.resampled`` strings from the base model and resample them by R^(1/T) / p.

    Sampling importance resampling (Rubin 1987): as the number of draws grows, the resampled strings
    follow the posterior. They are drawn with replacement: if few draws carry all the weight, there
    are few distinct strings, as their effective sample size shows.
    """
    return [_kept(d, samples) for samples in _draws(d, d.conditions, d.options.resampled)]


def _draws(d: Drawing, conditions: Sequence[Condition], n: int) -> list[ConditionSamples]:
    """Draw ``n`` strings from the base model for each condition."""
    options = dataclasses.replace(d.options, singles=n, votes=0)
    own = d.replace(conditions=conditions, options=options)
    return draw_row(own, "resampling", "resampling", d.seed)


def _of_conditions(
    d: Drawing, asked: Sequence[Condition], samples: Iterable[ConditionSamples]
) -> list[ConditionSamples]:
    """Assign samples to the original conditions; drop log R and log q of any other posterior."""
    return [
        s if c is a else dataclasses.replace(s, condition=c, log_reward=(), log_pf=())
        for s, a, c in zip(samples, asked, d.conditions, strict=True)
    ]


def _best(samples: ConditionSamples) -> ConditionSamples:
    """Keep the string with the highest log R, also as the only vote."""
    best = max(range(len(samples.log_reward)), key=samples.log_reward.__getitem__)
    one = _some(samples, [best])
    # Its density has no closed form.
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
    """Keep some of the singles, and none of the other samples and scores."""
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
        # The support was scored under the base model, not under the distribution shown.
        support_log_reward=(),
        support_log_pf=(),
        **columns,
    )


def _kept(d: Drawing, samples: ConditionSamples, *, votes: int = 0) -> ConditionSamples:
    """Resample ``options.singles`` singles and ``votes`` votes by R^(1/T) / p, with replacement."""
    temperature = d.temperature
    phi_N = torch.tensor(samples.log_reward) / temperature - torch.tensor(samples.log_pf)
    phi_N = phi_N.masked_fill(~phi_N.isfinite(), -math.inf)
    if phi_N.isneginf().all():
        phi_N = torch.zeros_like(phi_N)
    rng = rng_for("resampling", d.seed, samples.condition.key)
    weight_N = phi_N.double().softmax(dim=0)
    chosen = rng.choices(range(len(phi_N)), weights=weight_N.tolist(), k=d.options.singles)
    voting = rng.choices(range(len(phi_N)), weights=weight_N.tolist(), k=votes) if votes else []
    # Density of the resampled strings: the posterior, with Z estimated from the draws.
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
