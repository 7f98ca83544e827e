"""Scores of random tiny models: packed, cached, cut and permuted ways all give what plain forwards give."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm import sampling
from gfn_runner.lm.packing import separate_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.prefixes import packed_prefixes, plain_prefixes
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_policy, score_strings
from gfn_runner.lm.vocabulary import StringRule, allowed_mask
from gfn_runner.rewards.reward import log_reward, string_log_reward
from tests.budget import examples
from tests.properties.worlds import World, conditions, tools, worlds

# Logits of these models reach some tens, fp32 has 24 bits: 4e-6 a logit, and up to 10 tokens are added.
NATS = 3e-4


def assert_same(left: torch.Tensor, right: torch.Tensor, nats: float = NATS) -> None:
    assert torch.equal(left.isneginf(), right.isneginf())
    assert not left.isnan().any()
    torch.testing.assert_close(left, right, atol=nats, rtol=0)


@given(worlds())
@examples(12)
@torch.no_grad()
def test_packed_scores_of_all_prefixes_equal_one_forward_a_prefix(world: World):
    arguments = (world.lm, GivenStrings(world.contexts, world.suffixes, world.rows, world.rule))
    plain_BS = plain_prefixes(*arguments)
    assert_same(packed_prefixes(*arguments), plain_BS)
    assert_same(separate_prefixes(*arguments), plain_BS)
    ends_B1 = world.rows.length_B[:, None]
    assert_same(score_strings(*arguments), plain_BS.gather(1, ends_B1)[:, 0])


@given(worlds(), st.data())
@examples(8)
@torch.no_grad()
def test_the_samplers_log_probability_is_the_scorers(world: World, data):
    tool = data.draw(tools(world.characters))
    temperature = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    seed, seen = data.draw(st.integers(0, 2**31)), {}
    draw_token = sampling._draw

    def watched(batch, rule, generator):
        log_q_AV = rule.log_probs(batch.logits_AV, rule.may_stop(batch.n_actions_A))
        for place, row in enumerate(batch.row_A.tolist()):
            seen.setdefault(row, []).append(log_q_AV[place])
        return draw_token(batch, rule, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_draw", watched)
        rows = sample(
            world.lm, world.contexts, 3, world.rule, torch.Generator().manual_seed(seed),
            temperature=temperature, tool=tool,
        )  # fmt: skip
    scores = score_policy(world.lm, world.contexts, rows, world.rule)
    stop_B = scores.log_pf_stop_BS.gather(1, rows.length_B[:, None])[:, 0]
    scored_B = scores.log_pf_BT.sum(dim=1) + stop_B
    for row, string in enumerate(rows.strings()):
        chosen = rows.is_action_BT[row, : len(string)].tolist()
        n_actions = sum(chosen)
        assert world.rule.min_len <= n_actions <= world.rule.max_len
        acted = [token for token, own in zip(string, chosen, strict=True) if own]
        assert world.rule.terminator not in acted
        assert all(world.rule.allowed_V[token] for token in acted)
        log_q = [seen[row][t][z].item() for t, z in enumerate(string) if chosen[t]]
        if n_actions < world.rule.max_len:
            log_q.append(seen[row][len(string)][world.rule.terminator].item())
        assert scored_B[row].item() == pytest.approx(sum(log_q), abs=NATS)


def by_hand(world: World, condition, prefix, is_action, constraint) -> tuple[float, bool]:
    """Log-reward of one prefix by plain forwards, one a term and rival; and whether a rival is close."""
    row = Trajectories.from_rows([prefix], [is_action], [0])
    total, close = constraint, False
    for term in condition.terms:
        suffixes = (term.suffix, *term.rivals)
        encoded = [world.lm.encode(s) or (world.rule.terminator,) for s in suffixes]
        own, *rivals = (
            plain_prefixes(
                world.lm, GivenStrings([world.lm.encode_prompt(term.context)], [s], row, world.rule)
            )[0, len(prefix)].item()
            for s in encoded
        )
        if own == -math.inf:
            return -math.inf, False
        close |= term.rival_penalty > 0 and any(abs(r - own) < 10 * NATS for r in rivals)
        total += term.weight * own - term.rival_penalty * any(rival > own for rival in rivals)
    return total, close


class ByLength:
    """A finite factor of every prefix."""

    def log_factor(self, lm, condition, prefix) -> float:
        return -0.75 * len(prefix)


@given(worlds(), st.data())
@examples(6)
@torch.no_grad()
def test_a_posterior_is_the_weighted_sum_of_its_terms(world: World, data):
    n_conditions = len(world.contexts)
    asked = [data.draw(conditions(world.characters)) for _ in range(n_conditions)]
    constraints = [ByLength()] * data.draw(st.integers(0, 2))
    rows = world.rows
    with world.lm.reference():
        expected_BS = torch.full((len(rows), rows.token_BT.shape[1] + 1), -math.inf)
        for row, state in world.rule.terminable_BS(rows).nonzero().tolist():
            is_action = rows.is_action_BT[row, :state].tolist()
            condition = asked[int(rows.condition_B[row])]
            factor = -0.75 * state * len(constraints)
            prefix = rows.ids(row)[:state]
            expected_BS[row, state], close = by_hand(world, condition, prefix, is_action, factor)
            assume(not close)
    given_BS = log_reward(world.lm, asked, rows, world.rule, constraints)
    # Three terms of weight 2 at most.
    assert_same(given_BS, expected_BS, 6 * NATS)
    ends_B = expected_BS.gather(1, rows.length_B[:, None])[:, 0]
    whole_B, _ = string_log_reward(world.lm, asked, rows, world.rule, constraints)
    assert_same(whole_B, ends_B, 6 * NATS)


@given(worlds(), st.randoms(use_true_random=False))
@examples(8)
def test_the_order_of_rows_and_micro_batches_change_no_score_and_no_gradient(world: World, rng):
    order = list(range(len(world.rows)))
    rng.shuffle(order)
    cut = rng.randint(0, len(order))
    generator = torch.Generator().manual_seed(0)
    shape = (len(order), world.rows.token_BT.shape[1] + 1)
    weights_BS = torch.randn(shape, generator=generator)
    parameters = list(world.lm.trainable().values())

    def scored(index: list[int]):
        rows = world.rows.rows(torch.tensor(index, dtype=torch.long))
        scores = score_policy(world.lm, world.contexts, rows, world.rule)
        width = scores.log_pf_stop_BS.shape[1]
        weight_NS = weights_BS[index][:, :width]
        stop_NS = scores.log_pf_stop_BS.masked_fill(scores.log_pf_stop_BS.isneginf(), 0.0)
        log_pf_NT = scores.log_pf_BT.masked_fill(scores.log_pf_BT.isneginf(), 0.0)
        total = (stop_NS * weight_NS).sum() + (log_pf_NT * weight_NS[:, 1:]).sum()
        return scores, total

    whole, total = scored(list(range(len(order))))
    parts = [scored(index) for index in (order[:cut], order[cut:]) if index]
    for name in ("log_pf_BT", "log_pf_stop_BS", "terminable_BS"):
        wanted = getattr(whole, name)
        for (scores, _), index in zip(
            parts, [i for i in (order[:cut], order[cut:]) if i], strict=True
        ):
            found = getattr(scores, name)
            if found.dtype == torch.bool:
                assert torch.equal(found, wanted[index][:, : found.shape[1]])
            else:
                assert_same(found, wanted[index][:, : found.shape[1]])
    gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
    again = torch.autograd.grad(sum(p for _, p in parts), parameters, materialize_grads=True)
    largest = max(gradient.abs().max().item() for gradient in gradients)
    for one, other in zip(gradients, again, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4 * max(largest, 1e-3), rtol=1e-3)


@st.composite
def ruled(draw):
    n_tokens = draw(st.integers(2, 5))
    rule = StringRule(
        draw(st.integers(0, n_tokens - 1)), draw(st.integers(0, 3)), draw(st.integers(3, 6))
    )
    forbidden = draw(st.lists(st.integers(0, n_tokens - 1), max_size=2))
    mask = allowed_mask(n_tokens, forbidden, rule.terminator)
    rule = StringRule(
        rule.terminator, rule.min_len, rule.max_len, draw(st.sampled_from([None, mask]))
    )
    strings = draw(
        st.lists(st.lists(st.integers(0, n_tokens - 1), max_size=8), min_size=1, max_size=4)
    )
    actions = [[draw(st.booleans()) for _ in string] for string in strings]
    return n_tokens, rule, strings, actions


@given(ruled())
@examples(100)
def test_masks_are_what_the_rule_says_of_every_prefix(case):
    n_tokens, rule, strings, actions = case
    rows = Trajectories.from_rows(strings, actions, [0] * len(strings))
    terminable_BS, forced_BS = rule.terminable_BS(rows), rule.forced_BS(rows)
    for row, (string, chosen) in enumerate(zip(strings, actions, strict=True)):
        for state in range(rows.token_BT.shape[1] + 1):
            n_actions = sum(chosen[:state])
            ended = any(
                z == rule.terminator and own
                for z, own in zip(string[:state], chosen[:state], strict=True)
            )
            waits = state < len(string) and not chosen[state]
            can = state <= len(string) and n_actions >= rule.min_len and not waits and not ended
            assert bool(terminable_BS[row, state]) == can
            assert bool(forced_BS[row, state]) == (can and n_actions >= rule.max_len)
    n_actions_N = torch.arange(rule.max_len + 1)
    logits_NV = torch.randn(len(n_actions_N), n_tokens, generator=torch.Generator().manual_seed(0))
    log_p_NV = rule.log_probs(logits_NV, rule.may_stop(n_actions_N))
    for n in n_actions_N.tolist():
        is_open = [
            (rule.allowed_V is None or bool(rule.allowed_V[z]))
            and (z != rule.terminator or n >= rule.min_len)
            for z in range(n_tokens)
        ]
        if not any(is_open):
            continue
        weight = [math.exp(x) * ok for x, ok in zip(logits_NV[n].tolist(), is_open, strict=True)]
        for z in range(n_tokens):
            log_p = math.log(weight[z] / sum(weight)) if is_open[z] else -math.inf
            assert log_p_NV[n, z].item() == pytest.approx(log_p, abs=1e-5)
