"""Losses on pairs of φ against sums written out, for random batches; groups of states, order and micro-batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfn_runner.objectives import losses
from gfn_runner.objectives.phi import group_states
from tests.budget import examples

REGRESSIONS = st.one_of(
    st.just(losses.Regression()),
    st.builds(losses.Regression, kind=st.just("huber"), delta=st.floats(0.1, 5.0)),
    st.just(losses.Regression(kind="cosh")),
)
OBJECTIVES = st.one_of(
    st.builds(losses.SubTB, regression=REGRESSIONS, lam=st.floats(0.1, 1.5)),
    st.builds(losses.DetailedBalance, regression=REGRESSIONS),
    st.builds(losses.VarGradTB, regression=REGRESSIONS),
    st.builds(losses.TrajectoryBalance, regression=REGRESSIONS),
    st.builds(losses.JointBalance, regression=REGRESSIONS, between=st.floats(0.0, 2.0)),
)


@st.composite
def batches(draw, most_rows: int = 6, longest: int = 6):
    """φ, states that count, lengths and conditions of ragged rows; log Z of each condition."""
    n_rows = draw(st.integers(1, most_rows))
    n_conditions = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(0, longest), min_size=n_rows, max_size=n_rows))
    conditions = [draw(st.integers(0, n_conditions - 1)) for _ in lengths]
    states = max(lengths) + 1 + draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    phi_BS = 3 * torch.randn(n_rows, states, generator=generator, dtype=torch.float64)
    length_B = torch.tensor(lengths)
    inside_BS = torch.arange(states) <= length_B[:, None]
    terminable_BS = inside_BS & (torch.rand(n_rows, states, generator=generator) < 0.8)
    log_z_C = torch.randn(n_conditions, generator=generator, dtype=torch.float64)
    return phi_BS, terminable_BS, length_B, torch.tensor(conditions), log_z_C


def rho(regression: losses.Regression, d: float) -> float:
    size = abs(d)
    if regression.kind == "squared":
        return d * d
    if regression.kind == "huber":
        delta = regression.delta
        return d * d if size <= delta else 2 * delta * size - delta**2
    limit = 10.0
    inside = 2 * (math.cosh(min(size, limit)) - 1)
    return inside + 2 * math.sinh(limit) * max(0.0, size - limit)


def weight(objective, a, b, n_states) -> float:
    """Of an ordered pair of states (row, rank, terminal), as the docstrings of the objectives say it."""
    (row_a, rank_a, end_a), (row_b, rank_b, end_b) = a, b
    if isinstance(objective, losses.SubTB):
        return objective.lam ** (rank_b - rank_a - 1) if rank_a < rank_b else 0.0
    if isinstance(objective, losses.DetailedBalance):
        return float(rank_b == rank_a + 1)
    if isinstance(objective, losses.VarGradTB):
        return float(end_a and end_b and row_a != row_b)
    share = 1 / n_states[row_a] / n_states[row_b]
    if row_a == row_b:
        return share if rank_a != rank_b else 0.0
    return objective.between * share


def by_hand(objective, phi_BS, terminable_BS, length_B, condition_B, log_z_C) -> float:
    lengths, conditions = length_B.tolist(), condition_B.tolist()
    if isinstance(objective, losses.TrajectoryBalance):
        ended = [row for row, n in enumerate(lengths) if terminable_BS[row, n]]
        found = [
            rho(
                objective.regression,
                float(phi_BS[row, lengths[row]] - log_z_C[conditions[row]]),
            )
            for row in ended
        ]
        return sum(found) / max(1, len(found))
    labels = conditions if objective.group == "condition" else range(len(lengths))
    groups: dict[int, list] = {}
    n_states = {row: int(mask.sum()) for row, mask in enumerate(terminable_BS)}
    for row, label in enumerate(labels):
        counted = [s for s in range(terminable_BS.shape[1]) if terminable_BS[row, s]]
        groups.setdefault(label, []).extend(
            ((row, rank, state == lengths[row]), float(phi_BS[row, state]))
            for rank, state in enumerate(counted)
        )
    found = []
    for members in groups.values():
        total = loss = 0.0
        for (a, phi_a), (b, phi_b) in itertools.product(members, members):
            w = weight(objective, a, b, n_states)
            total += w
            loss += w * rho(objective.regression, phi_a - phi_b)
        if total > 0:
            found.append(loss / total)
    return sum(found) / max(1, len(found))


@given(OBJECTIVES, batches())
@examples(60)
def test_a_loss_is_the_sum_over_pairs_written_out(objective, batch):
    # fp32 weights meet fp64 φ: λ^n is rounded to 2⁻²⁴, nothing else is.
    expected = by_hand(objective, *batch)
    assert objective(*batch).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(OBJECTIVES, batches(), st.randoms(use_true_random=False))
@examples(40)
def test_the_order_of_rows_and_padding_change_no_loss_and_no_gradient(objective, batch, rng):
    phi_BS, terminable_BS, length_B, condition_B, log_z_C = batch
    order = list(range(len(length_B)))
    rng.shuffle(order)
    order_B = torch.tensor(order)
    pad = rng.randrange(3)
    given_BS = phi_BS.clone().requires_grad_()
    loss = objective(given_BS, terminable_BS, length_B, condition_B, log_z_C)
    moved = [torch.nn.functional.pad(t[order_B], (0, pad)) for t in (given_BS, terminable_BS)]
    again = objective(*moved, length_B[order_B], condition_B[order_B], log_z_C)
    # The same numbers are added in another order: n² terms, each rounded to 2⁻⁵³.
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(v, given_BS, retain_graph=True)[0] for v in (loss, again)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "objective",
    [losses.SubTB(lam=0.9), losses.DetailedBalance(), losses.VarGradTB(), losses.JointBalance()],
    ids=lambda objective: type(objective).__name__,
)
def test_weights_are_as_precise_as_phi(objective, dtype):
    phi_BS = torch.zeros(2, 3, dtype=dtype)
    everywhere_BS, length_B, condition_B = phi_BS == 0, torch.tensor([2, 1]), torch.tensor([0, 0])
    members = group_states(phi_BS, everywhere_BS, length_B, condition_B, by=objective.group)
    assert objective.pair_weights(members).dtype == dtype


@given(OBJECTIVES, batches(), st.data())
@examples(40)
def test_micro_batches_of_whole_conditions_add_up(objective, batch, data):
    """Each weighted by its number of groups with a pair, as accumulated batches of equal size are."""
    phi_BS, terminable_BS, length_B, condition_B, log_z_C = batch
    cut = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    first_B = torch.tensor([cut[c] for c in condition_B.tolist()])
    whole = objective(*batch).item()
    total, groups = 0.0, 0
    for rows_B in (first_B, ~first_B):
        if not rows_B.any():
            continue
        part = (phi_BS[rows_B], terminable_BS[rows_B], length_B[rows_B], condition_B[rows_B])
        n_groups = n_losses(objective, part)
        total += objective(*part, log_z_C).item() * n_groups
        groups += n_groups
    assert total / max(1, groups) == pytest.approx(whole, rel=1e-6, abs=1e-9)


def n_losses(objective, part) -> int:
    """Groups of a batch that have a pair; rows that ended, for trajectory balance."""
    _, terminable_BS, length_B, condition_B = part
    if isinstance(objective, losses.TrajectoryBalance):
        return int(terminable_BS.gather(1, length_B[:, None]).sum())
    n_states_B = terminable_BS.sum(dim=1).tolist()
    if objective.group == "trajectory":
        return sum(n > 1 for n in n_states_B)
    ends = terminable_BS.gather(1, length_B[:, None])[:, 0].tolist()
    found = 0
    for condition in set(condition_B.tolist()):
        rows = [row for row, c in enumerate(condition_B.tolist()) if c == condition]
        if isinstance(objective, losses.VarGradTB):
            found += sum(ends[row] for row in rows) > 1
        else:
            alive = [row for row in rows if n_states_B[row]]
            between = objective.between > 0 and len(alive) > 1
            found += between or any(n_states_B[row] > 1 for row in rows)
    return found


@given(OBJECTIVES, batches())
@examples(20)
def test_strings_that_may_end_nowhere_give_no_loss(objective, batch):
    phi_BS, terminable_BS, *others = batch
    phi_BS.requires_grad_()
    loss = objective(phi_BS, torch.zeros_like(terminable_BS), *others)
    (gradient_BS,) = torch.autograd.grad(loss, phi_BS)
    assert loss.item() == 0 and (gradient_BS == 0).all()


@pytest.mark.parametrize(
    ("by", "phi_GM", "rows", "ranks", "terminal"),
    [
        (
            "condition",
            [[15.0, 17.0, 0.0], [10.0, 11.0, 18.0]],
            [[1, 1, 0], [0, 0, 2]], [[0, 1, 0], [0, 1, 0]],
            [[False, True, False], [False, True, False]],
        ),
        (
            "trajectory",
            [[10.0, 11.0], [15.0, 17.0], [18.0, 0.0]],
            [[0, 0], [1, 1], [2, 0]], [[0, 1], [0, 1], [0, 0]],
            [[False, True], [False, True], [False, False]],
        ),
    ],
)  # fmt: skip
def test_groups_of_states(by, phi_GM, rows, ranks, terminal):
    """Of strings of 1, 3, 2 and 0 tokens; the third may not end where it did, the last nowhere."""
    phi_BS = torch.arange(10.0, 26.0).view(4, 4)
    terminable_BS = torch.tensor(
        [[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool
    )
    length_B, condition_B = torch.tensor([1, 3, 2, 0]), torch.tensor([7, 3, 7, 8])
    members = group_states(phi_BS, terminable_BS, length_B, condition_B, by=by)
    assert members.phi_GM.tolist() == phi_GM
    assert members.valid_GM.tolist() == [[value > 0 for value in row] for row in phi_GM]
    assert members.row_GM.tolist() == rows
    assert members.rank_GM.tolist() == ranks
    assert members.is_terminal_GM.tolist() == terminal
