"""Samples of the posterior itself against the enumerated one, and the evidence bounds made of them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.evaluation.draw import Drawing, policy_log_probs
from gfn_runner.evaluation.measure import evaluate, measure
from gfn_runner.evaluation.posterior import PosteriorDraws, PosteriorSampler, with_posterior
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.rewards.reward import string_log_reward

from ..tiny_models import all_strings, as_trajectories, tiny_lm
from ..tiny_modules import Bare
from ..unit.test_measures import drawn

OPTIONS = EvaluationSettings(singles=400, votes=0, posterior_draws=8000)
CONDITION = Condition(
    "a", "ab:", (Term("b", ". c"), Term("n", ".", weight=-0.5)), group="all", facts={}
)


@pytest.fixture(scope="module")
def toy():
    """Model with an adapter, task and rule: strings of up to two of seven letters."""
    lm = tiny_lm(characters="abc :n.", adapter="random")
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(0.3)
    task = Bare(max_len=2, eval_max_len=2)
    return lm, task, string_rule(lm, task, 2)


@pytest.fixture(scope="module")
def sampler(toy) -> PosteriorSampler:
    lm, task, rule = toy
    return PosteriorSampler(Drawing(lm, task, rule, [CONDITION], OPTIONS))


@torch.no_grad()
def enumerated(toy):
    """Every string with log R, log q and its log-probability in a draw of the proposal."""
    lm, task, rule = toy
    rows = as_trajectories(all_strings(lm.vocab_size, rule))
    log_reward_N, _ = string_log_reward(lm, [CONDITION], rows, rule, task.constraints())
    log_q_N = policy_log_probs(lm, [lm.encode_prompt("ab:")], rows, rule)
    with lm.base():
        after = [policy_log_probs(lm, [lm.encode_prompt(p)], rows, rule) for p in ("ab:", "b")]
    density_N = torch.stack(after).exp().mean(dim=0)
    return rows, log_reward_N.double(), log_q_N.double(), density_N.double()


def key(rows, row: int) -> tuple[int, ...]:
    return tuple(rows.ids(row))


def test_proposals_are_drawn_after_both_prompts_with_the_mixtures_density(toy, sampler):
    rows, log_reward_N, _, density_N = enumerated(toy)
    draws = sampler.draws("a")
    known = {key(rows, n): n for n in range(len(rows))}
    places = [known[key(draws.strings, n)] for n in range(len(draws.strings))]
    assert len(set(places)) == len(places) and draws.count_N.sum() == 2 * OPTIONS.posterior_draws
    torch.testing.assert_close(
        draws.log_density_N.double(), density_N[places].log(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(draws.log_reward_N.double(), log_reward_N[places], atol=1e-4, rtol=0)
    # Four standard errors of a share.
    shares = draws.count_N / draws.count_N.sum()
    error = (shares - density_N[places]).abs() / (density_N[places] / 16_000).sqrt()
    assert error.max() < 4.5


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
def test_weights_give_the_enumerated_posterior_log_z_and_sample_size(toy, sampler, temperature):
    rows, log_reward_N, _, density_N = enumerated(toy)
    target_N = (log_reward_N / temperature).softmax(dim=0)
    draws = sampler.draws("a")
    counts = Counter(
        key(draws.strings, n) for n in draws.resampled(4000, temperature, 0.3).tolist()
    )
    share_N = torch.tensor([counts[key(rows, n)] / 4000 for n in range(len(rows))])
    assert (share_N - target_N).abs().sum() / 2 < 0.03
    log_z = float((log_reward_N / temperature).logsumexp(dim=0))
    assert draws.log_z(temperature) == pytest.approx(log_z, abs=0.03)
    limit = 1 / float((target_N.square() / density_N).sum())
    assert draws.ess(temperature) == pytest.approx(limit, rel=0.1)
    # The test would notice another temperature.
    other_N = (log_reward_N / (temperature + 1)).softmax(dim=0)
    assert (share_N - other_N).abs().sum() / 2 > 0.06


def listing(toy) -> PosteriorDraws:
    """Every string, as if each had been drawn once from a uniform proposal."""
    rows, log_reward_N, _, _ = enumerated(toy)
    flat_N = torch.full((len(rows),), -math.log(len(rows)))
    return PosteriorDraws(rows, log_reward_N, flat_N, torch.ones(len(rows), dtype=torch.long))


def test_systematic_resampling_is_right_on_average_and_within_one_of_it(toy):
    draws = listing(toy)
    share_N = draws.log_reward_N.softmax(dim=0)
    total_N = torch.zeros(len(share_N), dtype=torch.float64)
    offsets = [(2 * k + 1) / 1000 for k in range(500)]
    for offset in offsets:
        count_N = draws.resampled(10, 1.0, offset).bincount(minlength=len(share_N))
        assert ((count_N - 10 * share_N).abs() < 1 + 1e-9).all()
        total_N += count_N
    # An offset of the grid stands for those within 1/1000 of it, on either end of a share.
    torch.testing.assert_close(total_N / 500, 10 * share_N, atol=2 / 500, rtol=0)


def test_draws_without_weight_give_nothing(toy):
    draws = listing(toy)
    none = replace(draws, log_reward_N=torch.full_like(draws.log_reward_N, -math.inf))
    assert len(none.resampled(5, 1.0, 0.5)) == 0
    assert none.ess(1.0) == 0.0 and none.log_z(1.0) == -math.inf


def test_eubo_and_jeffreys_are_those_of_the_enumerated_policy(toy, sampler):
    """Against Σ p φ and Σ p φ − mean φ of the samples; the samples' ELBO is their own."""
    _, task, _ = toy
    _, log_reward_N, log_q_N, _ = enumerated(toy)
    phi_N = log_reward_N - log_q_N
    samples = drawn(log_reward=[-1.0, -2.0], log_pf=[-2.0, -2.5])
    samples = with_posterior(replace(samples, condition=CONDITION), sampler, 1.0)
    measured = measure(task, [samples])
    eubo = float(log_reward_N.softmax(dim=0) @ phi_N)
    assert measured["eubo/all"] == pytest.approx(eubo, abs=0.06)
    assert measured["elbo/all"] == pytest.approx((1.0 + 0.5) / 2)
    assert measured["jeffreys/all"] == pytest.approx(measured["eubo/all"] - 0.75)
    assert 0 < measured["posterior_ess/all"] < 1
    log_z = float(log_reward_N.logsumexp(dim=0))
    assert eubo > log_z, "a policy that is not exact"


def test_listed_strings_give_the_bound_exactly(toy):
    _, task, _ = toy
    log_r, log_q = np.array([0.0, -1.0, -3.0]), np.log([0.5, 0.2, 0.2])
    samples = drawn(
        log_reward=[0.0], log_pf=[-0.5], support_log_reward=list(log_r), support_log_pf=list(log_q)
    )
    share = np.exp(log_r / 0.5) / np.exp(log_r / 0.5).sum()
    measured = measure(task, [samples], temperature=0.5)
    assert measured["eubo/all"] == pytest.approx(share @ (log_r / 0.5 - log_q))
    assert measured["jeffreys/all"] == pytest.approx(measured["eubo/all"] - 0.5)


def test_draws_do_not_depend_on_what_was_asked_for_before(toy, sampler):
    lm, task, rule = toy
    other = Condition("b", "c", (Term("c", "."),), group="all")
    options = EvaluationSettings(posterior_draws=20)
    few = PosteriorSampler(Drawing(lm, task, rule, [CONDITION, other], options, 7))
    first = few.draws("a")
    again = PosteriorSampler(Drawing(lm, task, rule, [CONDITION, other], options, 7))
    again.draws("b")
    assert first.strings.strings() == again.draws("a").strings.strings()
    assert few.draws("a") is first, "drawn once"


def test_draws_for_many_conditions_are_each_conditions_own(toy):
    lm, task, rule = toy
    other = Condition("b", "cc", (Term("c", "."),), group="all")
    generator = torch.Generator().manual_seed(0)
    options = EvaluationSettings(posterior_draws=50)
    sampler = PosteriorSampler(Drawing(lm, task, rule, (), options))
    both = sampler.draw([CONDITION, other], generator)
    for draws, condition in zip(both, (CONDITION, other), strict=True):
        expected, _ = string_log_reward(lm, [condition], draws.strings, rule, task.constraints())
        torch.testing.assert_close(draws.log_reward_N, expected, atol=1e-4, rtol=0)
        assert draws.count_N.sum() == 100


def test_only_the_first_conditions_of_a_set_have_samples_of_the_posterior(toy):
    lm, task, rule = toy
    conditions = [
        Condition(f"{group}{n}", "a", (Term("a", "."),), group=group)
        for group in "xy"
        for n in range(3)
    ]
    for draws, expected in ((4, {"x0", "x1", "y0", "y1"}), (0, set())):
        options = EvaluationSettings(votes=0, singles=1, posterior_draws=draws, posterior_limit=2)
        generator = torch.Generator().manual_seed(0)
        found, _ = evaluate(Drawing(lm, task, rule, conditions, options), generator)
        assert {s.condition.key for s in found if s.posterior_log_pf} == expected
