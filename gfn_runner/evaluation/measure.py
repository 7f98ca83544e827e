"""Metrics of every task: likelihood, log Z, φ, exact distances, overlap, diversity.

Per evaluation set, over samples at temperature 1:

- ``log_likelihood``: mean log p_LM(z ⊤ | c) under the base model, with c the context of the posterior's
  first term, in nats; ``…_max``: the maximum within a condition, averaged over conditions;
- ``log_pf``: mean log q under the sampling model, ``log_pf_max`` likewise; ``log_reward``: mean log R;
- ``phi_spread``: standard deviation of φ = log R/T − log q within a condition, in nats; 0 for an exact
  policy; absent for resampled rows, whose q is defined by R;
- ``elbo``: mean φ; ``log_z_bound``: the importance-weighted bound, in nats; ``ess``: its effective sample
  size as a fraction of the samples (for resampled rows: of the draws);
- ``eubo``: mean φ of posterior samples; ``jeffreys`` = ``eubo`` − ``elbo`` over the same conditions, in nats;
  ``posterior_ess``: effective sample size, as a fraction, of the draws behind the posterior samples;
- ``exact_tv``, ``exact_kl`` = KL(posterior ‖ policy) in nats, if the task can enumerate all strings;
- ``bleu``, ``gleu`` of samples against references, if there are any, and with a sentence encoder
  ``reference_similarity``, the mean cosine similarity of a sample and its reference;
- for tasks that generate text: ``diversity``, 1 − mean pairwise cosine similarity of embeddings,
  ``distinct_2``, ``self_bleu``, and ``unique``, the share of distinct strings, within a condition. Without
  their encoder, ``diversity`` and ``reference_similarity`` are absent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp, softmax

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.task import Task
from gfn_runner.errors import UserError
from gfn_runner.evaluation.draw import Drawing, draw_answers
from gfn_runner.evaluation.groups import Measure, per_group
from gfn_runner.evaluation.optional import OptionalMetrics
from gfn_runner.evaluation.posterior import PosteriorSampler, with_posterior
from gfn_runner.lm.encoder import load_encoder
from gfn_runner.lm.model_config import WORDS
from gfn_runner.metrics.diversity import distinct_n, embedding_diversity, self_bleu
from gfn_runner.metrics.evidence import evidence, mean_phi, terminal_phi
from gfn_runner.metrics.overlap import bleu, gleu, reference_similarity

logger = logging.getLogger(__name__)
# The cost of pairwise metrics is quadratic in the number of samples.
_MOST_TEXTS = 50
_MOST_COMPARED = 10


def measure(
    task: Task,
    samples: Sequence[ConditionSamples],
    *,
    temperature: float = 1.0,
    encoder: str = "words",
    optional: OptionalMetrics | None = None,
) -> dict[str, float]:
    """Compute all metrics of samples, as ``<metric>/<evaluation set>``.

    Args:
        task: its own metrics take precedence over those above with the same name.
        samples: samples of an evaluation; not empty.
        temperature: reward temperature T in φ.
        encoder: text encoder; see ``EvaluationSettings``.
        optional: BERTScore and judge, if enabled.
    """
    metrics: list[Measure] = [
        _likelihoods,
        partial(_evidence, temperature=temperature),
        partial(_from_above, temperature=temperature),
        partial(_exact, temperature=temperature),
        partial(_overlap, encoder=encoder),
    ]
    if task.writes_text:
        metrics.append(partial(_diversity, encoder=encoder))
    result = per_group(samples, *metrics) | task.metrics(samples)
    return result if optional is None else result | optional(samples)


def evaluate(
    d: Drawing,
    generator: torch.Generator,
    *,
    optional: OptionalMetrics | None = None,
    name: str = "evaluation",
) -> tuple[list[ConditionSamples], dict[str, float]]:
    """Draw samples of each condition and its posterior, and measure them. Must be called on every rank.

    Args:
        d, generator, name: see :func:`draw_answers`.
        optional: BERTScore and judge, if enabled.

    Returns:
        The samples, and their metrics as named by :func:`measure`.
    """
    sampler = PosteriorSampler(d)
    posterior = partial(with_posterior, sampler=sampler, temperature=d.temperature)
    samples = draw_answers(d.replace(posterior=posterior), generator, name=name)
    encoder = d.options.encoder
    return samples, measure(
        d.task, samples, temperature=d.temperature, encoder=encoder, optional=optional
    )


def _likelihoods(samples: Sequence[ConditionSamples]) -> dict[str, float]:
    columns: dict[str, list[Sequence[float]]] = {
        "log_pf": [s.log_pf for s in samples],
        "log_reward": [s.log_reward for s in samples],
        "log_likelihood": [s.log_likelihood for s in samples],
    }
    result = {}
    for name, values in columns.items():
        # A string truncated where it cannot end has probability 0.
        finite = [list(filter(math.isfinite, own)) for own in values]
        finite = [own for own in finite if own]
        if finite:
            result[name] = fmean(value for own in finite for value in own)
            result[f"{name}_max"] = fmean(max(own) for own in finite)
    return result


def _evidence(samples: Sequence[ConditionSamples], temperature: float) -> dict[str, float]:
    measured = evidence(terminal_phi(s.log_reward, s.log_pf, temperature) for s in samples)
    draws = [s.draws_ess for s in samples if s.draws_ess is not None]
    if measured and draws:
        # φ of resampled strings equals the draws' estimate of log Z; the weights belong to the draws.
        return {"log_z_bound": measured["log_z_bound"], "ess": fmean(draws)}
    return measured


def _from_above(samples: Sequence[ConditionSamples], temperature: float) -> dict[str, float]:
    """Compute the evidence upper bound and its gap to the lower bound, over conditions with both."""
    bounds, shares = [], []
    for s in samples:
        own = terminal_phi(s.log_reward, s.log_pf, temperature)
        above = _posterior_phi(s, temperature)
        shares += [] if s.posterior_ess is None else [s.posterior_ess]
        if above is not None and len(own):
            bounds.append((above, above - mean_phi(own)))
    measured = {"posterior_ess": fmean(shares)} if shares else {}
    if bounds:
        eubo, jeffreys = map(fmean, zip(*bounds, strict=True))
        measured |= {"eubo": eubo, "jeffreys": jeffreys}
    return measured


def _posterior_phi(s: ConditionSamples, temperature: float) -> float | None:
    """Return the mean φ under the posterior: from its samples, or exactly if all strings are enumerated."""
    if s.posterior_log_pf:
        phi_K = terminal_phi(s.posterior_log_reward, s.posterior_log_pf, temperature)
        # A string that the policy cannot generate makes the bound infinite.
        return mean_phi(phi_K) if len(phi_K) == len(s.posterior_log_pf) else math.inf
    if s.support_log_pf:
        log_r_N = np.asarray(s.support_log_reward, dtype=np.float64) / temperature
        return float(softmax(log_r_N) @ (log_r_N - np.asarray(s.support_log_pf)))
    return None


def _exact(samples: Sequence[ConditionSamples], temperature: float) -> dict[str, float]:
    """Compute distances over the support; mass of q outside it counts as error."""
    distances = []
    for s in samples:
        if s.support_log_pf:
            log_target = np.asarray(s.support_log_reward, dtype=np.float64) / temperature
            log_target -= logsumexp(log_target)
            log_q = np.asarray(s.support_log_pf, dtype=np.float64)
            target, q = np.exp(log_target), np.exp(log_q)
            outside = max(0.0, 1 - q.sum())
            kl = float((target * (log_target - log_q)).sum())
            distances.append((float(np.abs(q - target).sum() + outside) / 2, kl))
    if not distances:
        return {}
    total_variations, divergences = zip(*distances, strict=True)
    return {"exact_tv": fmean(total_variations), "exact_kl": fmean(divergences)}


def _overlap(samples: Sequence[ConditionSamples], encoder: str) -> dict[str, float]:
    pairs = [
        (text, s.condition.facts["references"])
        for s in samples
        if s.condition.facts.get("references")
        for text in s.singles[:_MOST_COMPARED]
    ]
    if not pairs:
        return {}
    texts, references = zip(*pairs, strict=True)
    measured = {"bleu": bleu(texts, references), "gleu": gleu(texts, references)}
    # With word counts it would be just another word overlap.
    if encoder != WORDS and (loaded := _encoder(encoder)) is not None:
        measured["reference_similarity"] = reference_similarity(texts, references, loaded)
    return measured


def _diversity(samples: Sequence[ConditionSamples], encoder: str) -> dict[str, float]:
    texts = [list(s.singles)[:_MOST_TEXTS] for s in samples if len(s.singles) > 1]
    if not texts:
        return {}
    loaded = _encoder(encoder)
    diversity = {}
    if loaded is not None:
        diversity["diversity"] = fmean(embedding_diversity(own, loaded) for own in texts)
    return diversity | {
        "distinct_2": fmean(distinct_n(own, 2) for own in texts),
        "self_bleu": fmean(self_bleu(own) for own in texts),
        "unique": fmean(len(set(own)) / len(own) for own in texts),
    }


@lru_cache(maxsize=2)
def _encoder(name: str) -> Any:
    """Load the encoder once; return ``None``, with a warning, if it cannot be loaded."""
    try:
        return load_encoder(name)
    except UserError as error:
        # An unreachable hub must not cost a finished training.
        logger.warning("%s\n    its metrics are left out of this run's evaluations", error)
        return None
