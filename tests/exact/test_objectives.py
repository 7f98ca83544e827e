"""Objectives against enumeration: trained policies become exact, and losses equal their formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gfn_runner.data.trajectories import PolicyScores, Trajectories
from gfn_runner.metrics.evidence import phi_moments
from gfn_runner.objectives.losses import (
    DetailedBalance,
    JointBalance,
    Regression,
    SubTB,
    TrajectoryBalance,
    VarGradTB,
)
from gfn_runner.objectives.phi import group_states, phi
from tests.slow import mostly_slow

OBJECTIVES = {
    "subtb": SubTB(),
    "subtb-0.8": SubTB(lam=0.8),
    "db": DetailedBalance(),
    "vargrad": VarGradTB(),
    "tb": TrajectoryBalance(),
    "joint": JointBalance(),
    "joint-0.5": JointBalance(between=0.5),
    "joint-huber": JointBalance(regression=Regression(kind="huber", delta=0.5)),
    "joint-cosh": JointBalance(regression=Regression(kind="cosh")),
    "subtb-huber": SubTB(regression=Regression(kind="huber", delta=1.0)),
}


class Space:
    """All strings over ``n_tokens`` tokens of length ``min_len`` to ``max_len``, with a reward each.

    A string is forced to stop at ``max_len``. ``log_reward`` maps strings to nats.
    """

    def __init__(self, n_tokens: int, max_len: int, min_len: int = 0, seed: int = 0):
        self.n_tokens, self.max_len, self.min_len = n_tokens, max_len, min_len
        self.prefixes = [
            z for n in range(max_len + 1) for z in itertools.product(range(n_tokens), repeat=n)
        ]
        generator = torch.Generator().manual_seed(seed)
        values = 2.0 * torch.randn(len(self.prefixes), generator=generator)
        self.log_reward = dict(zip(self.prefixes, values.tolist(), strict=True))
        self.strings = [z for z in self.prefixes if len(z) >= min_len]
        self.place = {z: i for i, z in enumerate(self.prefixes)}
        self.trajectories = Trajectories.from_rows(
            self.strings, [[True] * len(z) for z in self.strings], [0] * len(self.strings)
        )
        rows = [[self.place[z[:i]] for i in range(max_len + 1)] for z in self.strings]
        self.prefix_BS = torch.tensor([[*r[: max_len + 1]] for r in rows])
        state_S = torch.arange(max_len + 1)
        length_B1 = self.trajectories.length_B[:, None]
        self.terminable_BS = (state_S <= length_B1) & (state_S >= min_len)
        self.log_reward_BS = values[self.prefix_BS].masked_fill(~self.terminable_BS, -math.inf)

    def target(self, temperature: float) -> tuple[torch.Tensor, float]:
        """Probabilities of ``strings``, and log Z in nats, by brute force."""
        log_r = torch.tensor([self.log_reward[z] for z in self.strings]) / temperature
        return log_r.softmax(0), log_r.logsumexp(0).item()

    def scores(self, table: torch.Tensor) -> PolicyScores:
        """A tabular policy: a row of logits (tokens, then stop) for every prefix."""
        stop = self.n_tokens
        length_P = torch.tensor([len(z) for z in self.prefixes])
        logits = table.clone()
        logits[:, stop] = logits[:, stop].masked_fill(length_P < self.min_len, -math.inf)
        log_q = logits.log_softmax(-1)
        token_BT = self.trajectories.token_BT
        log_pf_BT = log_q[self.prefix_BS[:, :-1]].gather(2, token_BT[..., None])[..., 0]
        log_pf_stop_BS = log_q[:, stop][self.prefix_BS]
        forced_BS = torch.arange(self.max_len + 1) == self.max_len
        log_pf_stop_BS = log_pf_stop_BS.masked_fill(forced_BS, 0.0)
        return PolicyScores(
            log_pf_BT.masked_fill(~self.trajectories.is_action_BT, 0.0),
            log_pf_stop_BS.masked_fill(~self.terminable_BS, 0.0),
            self.terminable_BS,
        )

    def law(self, scores: PolicyScores) -> torch.Tensor:
        """Probability of every string under the policy."""
        end_B1 = self.trajectories.length_B[:, None]
        stop_B = scores.log_pf_stop_BS.gather(1, end_B1)[:, 0]
        return (scores.log_pf_BT.sum(1) + stop_B).exp()


def train(space: Space, objective, temperature: float, *, steps: int = 500, pick=None):
    """Train a tabular policy; ``pick`` chooses the rows of a step (default: all strings)."""
    table = torch.zeros(len(space.prefixes), space.n_tokens + 1, requires_grad=True)
    log_z = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [table]}, {"params": [log_z]}], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        scores = space.scores(table)
        phi_BS = phi(scores, space.log_reward_BS, temperature)
        rows = torch.arange(len(space.strings)) if pick is None else pick(step, space.law(scores))
        loss = objective(
            phi_BS[rows],
            space.terminable_BS[rows],
            space.trajectories.length_B[rows],
            torch.zeros(len(rows), dtype=torch.long),
            log_z if objective.needs_log_z else None,
        )
        optimizer.zero_grad()
        loss.backward()
        assert table.grad.isfinite().all()
        # As in the program; else Adam remembers the first gradients of a cosh for too long.
        torch.nn.utils.clip_grad_norm_([table, log_z], 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        scores = space.scores(table)
        phi_BS = phi(scores, space.log_reward_BS, temperature)
    return scores, phi_BS, log_z.item()


def assert_exact(space, objective, temperature, trained, *, tv=0.02, nats=0.05):
    scores, phi_BS, log_z = trained
    target, exact_log_z = space.target(temperature)
    law = space.law(scores)
    assert law.sum().item() == pytest.approx(1, abs=1e-5)
    assert 0.5 * (law - target).abs().sum().item() < tv
    mean_C, spread_C = phi_moments(
        phi_BS, space.terminable_BS, torch.zeros(len(space.strings), dtype=torch.long)
    )
    assert mean_C.item() == pytest.approx(exact_log_z, abs=nats)
    assert spread_C.item() < 2 * nats
    if objective.needs_log_z:
        assert log_z == pytest.approx(exact_log_z, abs=nats)


@pytest.mark.parametrize(
    "name", mostly_slow(OBJECTIVES, ["subtb", "db", "vargrad", "tb", "joint", "joint-cosh"])
)
def test_a_trained_policy_is_exact(name):
    objective = OBJECTIVES[name]
    space, temperature = Space(n_tokens=3, max_len=3), 0.6
    assert_exact(space, objective, temperature, train(space, objective, temperature))


@pytest.mark.parametrize("space", mostly_slow([(2, 4), (4, 2), (3, 3)], [(2, 4)]))
@pytest.mark.parametrize("objective", [SubTB(), JointBalance(), TrajectoryBalance()])
def test_on_other_spaces(objective, space):
    space = Space(*space, seed=1)
    assert_exact(space, objective, 1.0, train(space, objective, 1.0))


@pytest.mark.parametrize("name", ["vargrad", "tb", "joint"])
def test_with_a_minimum_length_where_log_z_is_shared(name):
    space = Space(n_tokens=3, max_len=3, min_len=2)
    objective = OBJECTIVES[name]
    assert_exact(space, objective, 1.0, train(space, objective, 1.0))


def test_with_a_minimum_length_the_first_tokens_get_no_credit_within_trajectories():
    """Why the config check refuses SubTB with a minimum length."""
    space = Space(n_tokens=3, max_len=3, min_len=2)
    scores, _, _ = train(space, SubTB(), 1.0)
    target, _ = space.target(1.0)
    assert 0.5 * (space.law(scores) - target).abs().sum() > 0.05


@pytest.mark.parametrize(
    "name", mostly_slow(["subtb", "db", "vargrad", "tb", "joint"], ["subtb", "tb", "joint"])
)
def test_from_samples_on_and_off_policy(name):
    space = Space(n_tokens=2, max_len=3)
    generator = torch.Generator().manual_seed(0)

    def pick(step: int, law: torch.Tensor) -> torch.Tensor:
        weights = torch.ones_like(law) if step % 2 else law.detach()
        return torch.multinomial(weights, 16, replacement=True, generator=generator)

    objective = OBJECTIVES[name]
    assert_exact(space, objective, 1.0, train(space, objective, 1.0, steps=800, pick=pick))


# -- formulas -------------------------------------------------------------------------------------


def ragged(seed: int = 0):
    """Random φ of 7 trajectories of 3 conditions with random terminable states."""
    generator = torch.Generator().manual_seed(seed)
    length_B = torch.tensor([3, 0, 5, 2, 4, 1, 5])
    condition_B = torch.tensor([0, 1, 0, 2, 1, 0, 1])
    phi_BS = 2 * torch.randn(7, 6, generator=generator)
    open_BS = torch.rand(7, 6, generator=generator) < 0.7
    open_BS.scatter_(1, length_B[:, None], True)
    terminable_BS = open_BS & (torch.arange(6) <= length_B[:, None])
    return phi_BS.masked_fill(~terminable_BS, 0.0), terminable_BS, length_B, condition_B


def test_subtb_of_all_pairs_needs_no_loop():
    """λ = 1: Σ_{i<j} (φ_i − φ_j)² = m Σ φ² − (Σ φ)² for m states."""
    phi_BS, terminable_BS, length_B, condition_B = ragged()
    m_B = terminable_BS.sum(1)
    pairs_B = m_B * (m_B - 1) / 2
    sums_B = m_B * phi_BS.square().sum(1) - phi_BS.sum(1).square()
    expected = (sums_B / pairs_B.clamp(min=1))[pairs_B > 0].mean()
    assert SubTB()(phi_BS, terminable_BS, length_B, condition_B).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_subtb_becomes_detailed_balance():
    arguments = ragged()
    assert SubTB(lam=1e-6)(*arguments).item() == pytest.approx(
        DetailedBalance()(*arguments).item(), rel=1e-4
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_pair_of_states_has_a_weight_that_is_not_negative(name):
    phi_BS, terminable_BS, length_B, condition_B = ragged()
    objective = OBJECTIVES[name]
    members = group_states(phi_BS, terminable_BS, length_B, condition_B, by=objective.group)
    weight_GMM = objective.pair_weights(members)
    groups, most = members.phi_GM.shape
    assert weight_GMM.shape == (groups, most, most) and (weight_GMM >= 0).all()
    # A learned log Z takes the place of the other state.
    assert (weight_GMM.sum() == 0) == objective.needs_log_z


@pytest.mark.parametrize("name", OBJECTIVES)
def test_everything_is_made_on_the_device_of_phi(name):
    """As on a GPU: a tensor on the default device, which has no numbers here, would not fit."""
    arguments, log_z_C = ragged(), torch.tensor([0.5, -1.0, 2.0])
    loss = OBJECTIVES[name](*arguments, log_z_C)
    with torch.device("meta"):
        assert OBJECTIVES[name](*arguments, log_z_C).item() == loss.item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_constant_phi_is_the_only_zero(name):
    objective, (phi_BS, terminable_BS, length_B, condition_B) = OBJECTIVES[name], ragged()
    log_z_C = torch.tensor([0.5, -1.0, 2.0])
    constant_BS = log_z_C[condition_B][:, None].expand_as(phi_BS).clone().requires_grad_()
    loss = objective(constant_BS, terminable_BS, length_B, condition_B, log_z_C)
    (gradient_BS,) = torch.autograd.grad(loss, constant_BS)
    assert loss.item() == 0 and gradient_BS.abs().max() == 0
    assert objective(phi_BS, terminable_BS, length_B, condition_B, log_z_C) > 0.1


def test_every_regression_is_quadratic_near_zero_and_finite_far_away():
    near = torch.tensor([0.01, -0.02])
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    for kind in ("squared", "huber", "cosh"):
        rho = Regression(kind=kind, delta=1.0)
        torch.testing.assert_close(rho(near), near.square(), rtol=1e-3, atol=1e-9)
        (gradient,) = torch.autograd.grad(rho(far).sum(), far)
        assert rho(far).isfinite().all() and gradient.isfinite().all()


def test_phi_is_its_definition():
    space = Space(n_tokens=3, max_len=2, min_len=1)
    table = torch.randn(len(space.prefixes), 4, generator=torch.Generator().manual_seed(0))
    scores = space.scores(table)
    phi_BS = phi(scores, space.log_reward_BS, 0.7)
    for row, string in enumerate(space.strings):
        for state in range(space.min_len, len(string) + 1):
            log_c = scores.log_pf_BT[row, :state].sum()
            log_r = space.log_reward[string[:state]] / 0.7
            expected = log_r - log_c - scores.log_pf_stop_BS[row, state]
            assert phi_BS[row, state].item() == pytest.approx(expected.item(), abs=1e-5)
    assert (phi_BS[~space.terminable_BS] == 0).all()


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_only_states_that_count_need_a_reward(objective):
    """With −inf as the reward of all others, loss and gradient are those of the whole table."""
    space = Space(n_tokens=2, max_len=3)
    length_B, zero_B = space.trajectories.length_B, torch.zeros(len(space.strings)).long()
    log_z = torch.zeros(1) if objective.needs_log_z else None
    counted_BS = objective.counted_BS(space.terminable_BS, length_B)
    results = []
    for terminable_BS in (space.terminable_BS, counted_BS):
        table = torch.linspace(-1, 1, 3 * len(space.prefixes)).view(-1, 3).requires_grad_()
        scores = space.scores(table)
        scores.terminable_BS = terminable_BS
        known_BS = space.log_reward_BS.masked_fill(~terminable_BS, -math.inf)
        phi_BS = phi(scores, known_BS, 0.7)
        loss = objective(phi_BS, terminable_BS, length_B, zero_B, log_z)
        loss.backward()
        results.append((loss.detach(), table.grad))
    torch.testing.assert_close(results[0], results[1])
    assert counted_BS.sum() == (
        space.terminable_BS.sum() if objective.needs_prefixes else len(space.strings)
    )
