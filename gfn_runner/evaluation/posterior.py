"""Samples of the posterior itself: enumerated, or resampled from draws of the base model by importance.

Their φ under a policy bounds log Z from above, as φ of the policy's own samples bounds it from below, so that the
two together show the modes that the policy misses (Blessing et al. 2024, "Beyond ELBOs", arXiv:2406.07423).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, limited
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.evaluation.draw import draw_many, policy_log_probs
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.rewards.reward import string_log_reward
from gfn_runner.runtime.seeds import rng_for, torch_generator_for


@dataclass(frozen=True)
class PosteriorDraws:
    """Different strings of one condition, with what is needed to weigh them at any reward temperature.

    Attributes:
        strings: of condition 0.
        log_reward_N: untempered log R, nats.
        log_density_N: log-probability of the string in one draw of the proposal, nats.
        count_N: how often it was drawn.
    """

    strings: Trajectories
    log_reward_N: Tensor
    log_density_N: Tensor
    count_N: Tensor

    def log_weight_N(self, temperature: float) -> Tensor:
        """Log-weight R^(1/T) / proposal of one draw of each string, nats, float64."""
        weight_N = self.log_reward_N.double() / temperature - self.log_density_N.double()
        return weight_N.masked_fill(~weight_N.isfinite(), -math.inf)

    def ess(self, temperature: float) -> float:
        """Effective sample size (Σ w)² / Σ w², as a share of the draws; 0 where no draw has a weight."""
        log_w_N, count_N = self.log_weight_N(temperature), self.count_N.double()
        if log_w_N.isneginf().all():
            return 0.0
        weight_N = (log_w_N - log_w_N.max()).exp()
        total = (count_N * weight_N).sum()
        return float(total**2 / (count_N * weight_N.square()).sum() / count_N.sum())

    def log_z(self, temperature: float) -> float:
        """Log of the mean weight: the importance estimate of log Z, nats; −∞ where no draw has a weight."""
        log_w_N, count_N = self.log_weight_N(temperature), self.count_N.double()
        return float((log_w_N + count_N.log()).logsumexp(dim=0) - count_N.sum().log())

    def resampled(self, n: int, temperature: float, offset: float) -> Tensor:
        """Places of ``n`` strings in proportion to R^(1/T), as far as the draws tell. Shape (n,).

        Systematic resampling: a string of share s comes ⌊n s⌋ or ⌈n s⌉ times (Carpenter et al. 1999). Empty
        where no draw has a weight.

        Args:
            n: how many.
            temperature: reward temperature T.
            offset: uniform in [0, 1); all that is random in it.
        """
        log_share_N = self.log_weight_N(temperature) + self.count_N.double().log()
        if log_share_N.isneginf().all():
            return log_share_N.new_zeros(0, dtype=torch.long)
        ends_N = log_share_N.softmax(dim=0).cumsum(dim=0)
        at_n = (torch.arange(n, dtype=torch.float64, device=ends_N.device) + offset) / n
        # Rounding may leave the last end below 1.
        return torch.searchsorted(ends_N, at_n * ends_N[-1], right=True).clamp(max=len(ends_N) - 1)


class PosteriorSampler:
    """Samples of posteriors from draws of the base model, which are made once and kept.

    The draws are a function of seed and condition alone, so that a resumed run has the same ones.

    Args:
        lm, task, rule: of the posterior.
        conditions: that may be asked for.
        n: draws of each condition after each prompt; see :meth:`draw`.
        options: how many strings are drawn at once.
        seed: of the draws.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        rule: StringRule,
        conditions: Sequence[Condition],
        n: int,
        options: EvaluationSettings,
        seed: int,
    ) -> None:
        self.lm, self.task, self.rule = lm, task, rule
        self.conditions = {condition.key: condition for condition in conditions}
        self.n, self.options, self.seed = n, options, seed
        self._draws: dict[str, PosteriorDraws] = {}
        self._m_steps = lm.m_steps

    def draws(self, key: str) -> PosteriorDraws:
        """The draws of a condition, from memory if it was asked for before."""
        if self._m_steps != self.lm.m_steps:  # another reward
            self._draws.clear()
            self._m_steps = self.lm.m_steps
        if key not in self._draws:
            self._draws[key] = self.draw(self.conditions[key])
        return self._draws[key]

    def resample(self, key: str, n: int, temperature: float) -> tuple[Trajectories, Tensor]:
        """``n`` strings of the condition's posterior R^(1/T), with repetitions, and their log R.

        Returns:
            The strings, all of condition 0, and ``log_reward_n``, untempered, nats. None of both where no draw
            has a weight.
        """
        draws = self.draws(key)
        offset = rng_for("posterior", self.seed, key, n).random()
        places_n = draws.resampled(n, temperature, offset)
        return draws.strings.rows(places_n), draws.log_reward_N[places_n]

    def draw(self, condition: Condition) -> PosteriorDraws:
        """New draws of a condition."""
        generator = torch_generator_for(self.lm.device, "posterior", self.seed, condition.key)
        (draws,) = draw_proposals(
            self.lm, self.task, self.rule, [condition], self.n, self.options, generator
        )
        return draws


@torch.no_grad()
def draw_proposals(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    n: int,
    options: EvaluationSettings,
    generator: torch.Generator,
) -> list[PosteriorDraws]:
    """``n`` strings of the base model after the policy's prompt, and ``n`` after the posterior's own context.

    The latter is the context of the posterior's first term. The density is that of the mixture, so that a string
    counts the same whichever prompt it was drawn after (balance heuristic, Veach & Guibas 1995).

    Args:
        lm, task, rule: of the posterior.
        conditions: each gets its draws, in their order.
        n: draws after each prompt.
        options: how many strings are drawn at once.
        generator: of the model's device.
    """
    own = [c.prompt for c in conditions]
    contexts = [c.terms[0].context if c.terms else c.prompt for c in conditions]
    texts = [own] if contexts == own else [own, contexts]
    prompts = [[lm.encode_prompt(text) for text in column] for column in texts]
    with lm.base():
        drawn = Trajectories.concatenated(
            [draw_many(lm, task, rule, some, [1.0] * n, options, generator) for some in prompts]
        )
        strings, inverse_B = drawn.distinct()
        densities = [policy_log_probs(lm, some, strings, rule) for some in prompts]
    log_density_N = torch.stack(densities).logsumexp(dim=0) - math.log(len(prompts))
    log_reward_N, _ = string_log_reward(lm, conditions, strings, rule, task.constraints())
    count_N = inverse_B.bincount(minlength=len(strings))
    draws = []
    for place in range(len(conditions)):
        of_N = strings.condition_B == place
        rows = strings.rows(of_N)
        rows = dataclasses.replace(rows, condition_B=torch.zeros_like(rows.condition_B))
        draws.append(PosteriorDraws(rows, log_reward_N[of_N], log_density_N[of_N], count_N[of_N]))
    return draws


def posterior_sampler(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    seed: int,
) -> PosteriorSampler | None:
    """For the conditions of an evaluation; ``None`` where ``options`` ask for no samples of the posterior.

    Where all strings of a condition are listed, nothing is drawn: their weights are known.
    """
    chosen = [c for c in limited(conditions, options.posterior_limit) if not task.support(c)]
    n = options.posterior_draws
    return PosteriorSampler(lm, task, rule, chosen, n, options, seed) if n and chosen else None


@torch.no_grad()
def with_posterior(
    samples: ConditionSamples, sampler: PosteriorSampler, temperature: float
) -> ConditionSamples:
    """The samples with log R and log q of samples of the posterior, under the model as it is switched now.

    A quarter as many strings are kept as were drawn after each prompt. A condition that the sampler does not know
    has none.
    """
    lm, condition = sampler.lm, samples.condition
    if condition.key not in sampler.conditions:
        return samples
    draws = sampler.draws(condition.key)
    kept, log_reward_K = sampler.resample(condition.key, math.ceil(sampler.n / 4), temperature)
    if not len(kept):
        return dataclasses.replace(samples, posterior_ess=0.0)
    distinct, inverse_K = kept.distinct()
    prompts = [lm.encode_prompt(condition.prompt)]
    log_pf_K = policy_log_probs(lm, prompts, distinct, sampler.rule)[inverse_K]
    return dataclasses.replace(
        samples,
        posterior=[lm.decode(ids) for ids in kept.strings()],
        posterior_log_reward=log_reward_K.tolist(),
        posterior_log_pf=log_pf_K.tolist(),
        posterior_ess=draws.ess(temperature),
        posterior_log_z=draws.log_z(temperature),
    )
