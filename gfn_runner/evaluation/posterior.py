"""Samples from the posterior itself, by importance resampling of draws from the base model.

Their φ under a policy bounds log Z from above, as φ of the policy's own samples bounds it from below;
together they reveal modes that the policy misses (Blessing et al. 2024, "Beyond ELBOs", arXiv:2406.07423).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, limited
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.evaluation.draw import Drawing, draw_many, policy_log_probs
from gfn_runner.metrics.evidence import effective_sample_size, importance_bound
from gfn_runner.rewards.reward import string_log_reward
from gfn_runner.runtime.seeds import rng_for, torch_generator_for

_AT_ONCE = 10  # conditions whose draws are made together


@dataclass(frozen=True)
class PosteriorDraws:
    """Distinct strings of one condition, with what is needed to weight them at any reward temperature.

    Attributes:
        strings: the strings, with condition index 0.
        log_reward_N: untempered log R, in nats.
        log_density_N: log-probability of the string in one draw from the proposal, in nats.
        count_N: how often the string was drawn.
    """

    strings: Trajectories
    log_reward_N: Tensor
    log_density_N: Tensor
    count_N: Tensor

    def log_weight_N(self, temperature: float) -> Tensor:
        """Return the log-weight R^(1/T) / proposal of one draw of each string, in nats, float64."""
        weight_N = self.log_reward_N.double() / temperature - self.log_density_N.double()
        return weight_N.masked_fill(~weight_N.isfinite(), -math.inf)

    def ess(self, temperature: float) -> float:
        """Return the effective sample size as a fraction of the draws; 0 if all weights are zero."""
        phi_K = self._phi_K(temperature)
        return effective_sample_size(phi_K) / int(self.count_N.sum()) if len(phi_K) else 0.0

    def log_z(self, temperature: float) -> float:
        """Return the importance-sampling estimate of log Z, in nats; −∞ if all weights are zero."""
        phi_K = self._phi_K(temperature)
        if not len(phi_K):
            return -math.inf
        return importance_bound(phi_K) + math.log(len(phi_K) / int(self.count_N.sum()))

    def _phi_K(self, temperature: float) -> NDArray[np.float64]:
        """Return φ, relative to the proposal, of every draw with a nonzero weight."""
        phi_K = self.log_weight_N(temperature).repeat_interleave(self.count_N)
        return phi_K[phi_K.isfinite()].cpu().numpy()

    def resampled(self, n: int, temperature: float, offset: float) -> Tensor:
        """Resample ``n`` strings in proportion to R^(1/T), and return their indices. Shape (n,).

        Systematic resampling: a string with normalized weight s occurs ⌊n s⌋ or ⌈n s⌉ times (Carpenter et al.
        1999). Empty if all weights are zero.

        Args:
            offset: uniform in [0, 1); the only source of randomness.
        """
        log_share_N = self.log_weight_N(temperature) + self.count_N.double().log()
        if log_share_N.isneginf().all():
            return log_share_N.new_zeros(0, dtype=torch.long)
        ends_N = log_share_N.softmax(dim=0).cumsum(dim=0)
        at_n = (torch.arange(n, dtype=torch.float64, device=ends_N.device) + offset) / n
        # Due to rounding, the last end may be below 1.
        return torch.searchsorted(ends_N, at_n * ends_N[-1], right=True).clamp(max=len(ends_N) - 1)


class PosteriorSampler:
    """Sampler of posteriors, which keeps its draws from the base model.

    Args:
        drawing: ``posterior_draws`` strings are drawn after each prompt. Covers the first
            ``posterior_limit`` conditions of each set, except those with a ``support`` (known posterior).
    """

    def __init__(self, drawing: Drawing) -> None:
        self.drawing, options = drawing, drawing.options
        asked = limited(drawing.conditions, options.posterior_limit)
        asked = [c for c in asked if options.posterior_draws and not drawing.task.support(c)]
        self.conditions = {c.key: c for c in asked}
        self._draws: dict[str, PosteriorDraws] = {}
        self._m_steps = drawing.lm.m_steps

    def draws(self, key: str) -> PosteriorDraws:
        """Return the draws of a condition, which are cached.

        Several conditions are drawn together, since one at a time would take several times as long. The
        draws depend only on the seed and the conditions, so a resumed run gets the same ones.
        """
        lm = self.drawing.lm
        if self._m_steps != lm.m_steps:  # the reward has changed
            self._draws.clear()
            self._m_steps = lm.m_steps
        if key not in self._draws:
            keys = list(self.conditions)
            first = keys.index(key) // _AT_ONCE * _AT_ONCE
            own = keys[first : first + _AT_ONCE]
            generator = torch_generator_for(lm.device, "posterior", self.drawing.seed, first)
            drawn = self.draw([self.conditions[k] for k in own], generator)
            self._draws |= zip(own, drawn, strict=True)
        return self._draws[key]

    @torch.no_grad()
    def draw(
        self, conditions: Sequence[Condition], generator: torch.Generator
    ) -> list[PosteriorDraws]:
        """Draw from the base model for each condition, half of the strings after the policy's prompt.

        The other half is drawn after the context of the posterior's first term. The density is that of the
        mixture, so the weight of a string does not depend on which prompt it was drawn after (balance
        heuristic, Veach & Guibas 1995).
        """
        d, ones = self.drawing, [1.0] * self.drawing.options.posterior_draws
        own = [c.prompt for c in conditions]
        contexts = [c.terms[0].context if c.terms else c.prompt for c in conditions]
        texts = [own] if contexts == own else [own, contexts]
        prompts = [[d.lm.encode_prompt(text) for text in column] for column in texts]
        with d.lm.base():
            drawn = [draw_many(d, some, ones, generator) for some in prompts]
            strings, inverse_B = Trajectories.concatenated(drawn).distinct()
            densities = [policy_log_probs(d.lm, some, strings, d.rule) for some in prompts]
        log_density_N = torch.stack(densities).logsumexp(dim=0) - math.log(len(prompts))
        log_reward_N, _ = string_log_reward(d.lm, conditions, strings, d.rule, d.task.constraints())
        count_N = inverse_B.bincount(minlength=len(strings))
        draws = []
        for place in range(len(conditions)):
            of_N = strings.condition_B == place
            rows = strings.rows(of_N)
            rows = dataclasses.replace(rows, condition_B=torch.zeros_like(rows.condition_B))
            draws.append(
                PosteriorDraws(rows, log_reward_N[of_N], log_density_N[of_N], count_N[of_N])
            )
        return draws


@torch.no_grad()
def with_posterior(
    samples: ConditionSamples, sampler: PosteriorSampler, temperature: float
) -> ConditionSamples:
    """Add log R and log q of posterior samples, under the model with its active adapter, if any.

    A quarter of the number of draws per prompt is kept. Conditions unknown to the sampler are returned
    unchanged.
    """
    d, condition = sampler.drawing, samples.condition
    if condition.key not in sampler.conditions:
        return samples
    draws = sampler.draws(condition.key)
    n = math.ceil(d.options.posterior_draws / 4)
    offset = rng_for("posterior", d.seed, condition.key).random()
    places_K = draws.resampled(n, temperature, offset)
    if not len(places_K):
        return dataclasses.replace(samples, posterior_ess=0.0)
    kept = draws.strings.rows(places_K)
    distinct, inverse_K = kept.distinct()
    log_pf_K = policy_log_probs(d.lm, d.prompts([condition]), distinct, d.rule)[inverse_K]
    return dataclasses.replace(
        samples,
        posterior=[d.lm.decode(ids) for ids in kept.strings()],
        posterior_log_reward=draws.log_reward_N[places_K].tolist(),
        posterior_log_pf=log_pf_K.tolist(),
        posterior_ess=draws.ess(temperature),
        posterior_log_z=draws.log_z(temperature),
    )
