"""The log-reward against sums written out, and φ of a fresh adapter, which must be constant."""

from __future__ import annotations

import math

import pytest
import torch

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule, allowed_mask
from gfn_runner.objectives.losses import (
    DetailedBalance,
    JointBalance,
    SubTB,
    TrajectoryBalance,
    VarGradTB,
)
from gfn_runner.objectives.phi import phi
from gfn_runner.rewards.reward import log_reward

from ..tiny_models import CHARACTERS, all_strings, as_trajectories, at_end, tiny_lm

DOT = CHARACTERS.index(".")
V = len(CHARACTERS)
NATS = 1e-4

CONDITIONS = [
    Condition("a", "abc", (Term("ab?", ". c1", 1.0), Term("1+2=", "3", -0.5), Term("hi", "", 2.0))),
    Condition("b", "Q:", (Term("Q: 7 A:", ".", 0.7), Term("j", ".12", 1.0), Term("e", "f", -1.0))),
]
TEXTS = (("a=b", 0), ("", 0), ("123", 1), ("j", 1), ("+-", 0), ("d0d", 1))


def rule(min_len: int = 0, max_len: int = 5, forbidden: str = "") -> StringRule:
    allowed_V = allowed_mask(V, [CHARACTERS.index(c) for c in forbidden], DOT)
    return StringRule(DOT, min_len, max_len, allowed_V)


def rows_of(lm, texts=TEXTS) -> Trajectories:
    ids = [lm.encode(text) for text, _ in texts]
    return Trajectories.from_rows(ids, [[True] * len(i) for i in ids], [c for _, c in texts])


def log_p(lm, context: str, prefix: str, suffix: str, strings_rule: StringRule) -> float:
    """Σ over the string's tokens under the rule, and the suffix's under the whole vocabulary."""
    context_ids, total = lm.encode_prompt(context), 0.0
    ids = [*lm.encode(prefix), *(lm.encode(suffix) or (DOT,))]
    for step, token in enumerate(ids):
        logits_V = lm.whole_logits([[*context_ids, *ids[:step]]])[0, -1].double()
        ends = step == len(prefix) and token == DOT
        if step < len(prefix) or ends:
            closed_V = ~strings_rule.allowed_V.clone()
            closed_V[DOT] = step < strings_rule.min_len
            logits_V = logits_V.masked_fill(closed_V, float("-inf"))
        total += logits_V.log_softmax(0)[token].item()
    return total


def by_hand(lm, text: str, condition: Condition, strings_rule: StringRule) -> float:
    return sum(
        term.weight * log_p(lm, term.context, text, term.suffix, strings_rule)
        for term in condition.terms
    )


@pytest.fixture(scope="module", params=["always", "never"])
def lm(request):
    return tiny_lm("llama", adapter="random", packed_rewards=request.param)


@pytest.fixture(scope="module")
def base():
    return tiny_lm("llama")


@pytest.mark.parametrize(
    "strings_rule",
    [rule(), rule(min_len=2), rule(forbidden="AQ5")],
    ids=["plain", "min_len", "some_tokens"],
)
@torch.no_grad()
def test_the_reward_is_its_weighted_sum(lm, base, strings_rule):
    """On the base model without any adapter: what the reward must not depend on is not there."""
    log_reward_BS = log_reward(lm, CONDITIONS, rows_of(lm), strings_rule)
    assert log_reward_BS.dtype == torch.float32 and not log_reward_BS.requires_grad
    for row, (text, place) in enumerate(TEXTS):
        for state in range(log_reward_BS.shape[1]):
            value = log_reward_BS[row, state].item()
            if strings_rule.min_len <= state <= len(text):
                expected = by_hand(base, text[:state], CONDITIONS[place], strings_rule)
                assert value == pytest.approx(expected, abs=NATS)
            else:
                assert value == -math.inf


@pytest.mark.parametrize("weight", [1.0, 0.0, -1.0])
def test_a_string_that_may_not_be_written_has_reward_0_whatever_the_weight(lm, weight):
    conditions = [Condition("a", "a", (Term("ab", "", 1.0), Term("ab", ". c", weight)))]
    texts = (("abc", 0), ("ade", 0), ("e", 0))
    log_reward_BS = log_reward(lm, conditions, rows_of(lm, texts), rule(forbidden="b"))
    finite_BS = [[True, True, False, False], [True] * 4, [True, True, False, False]]
    assert log_reward_BS.isfinite().tolist() == finite_BS
    assert not log_reward_BS.isnan().any() and not log_reward_BS.isposinf().any()


class Vowels:
    """Doubles the probability of each vowel, and fines strings with a j."""

    def __init__(self):
        self.asked = []

    def log_factor(self, lm, condition, prefix) -> float:
        text = lm.decode(prefix)
        self.asked.append((condition.key, text))
        if "j" in text:
            return -50.0
        return math.log(2) * sum(c in "aei" for c in text) - (condition.key == "b")


class AllAtOnce(Vowels):
    calls = 0

    def log_factors(self, lm, asked):
        self.calls += 1
        return [self.log_factor(lm, condition, prefix) for condition, prefix in asked]


@pytest.mark.parametrize("min_len", [0, 1])
def test_constraints_are_added(lm, min_len):
    """One by one or asked for all strings at once, and only where a string may end."""
    single, batched = Vowels(), AllAtOnce()
    plain_BS = log_reward(lm, CONDITIONS, rows_of(lm), rule(min_len))
    both_BS = log_reward(lm, CONDITIONS, rows_of(lm), rule(min_len), [single, batched])
    ends = set()
    for row, (text, place) in enumerate(TEXTS):
        for state in range(min_len, len(text) + 1):
            ends.add((CONDITIONS[place].key, text[:state]))
            factor = 2 * Vowels().log_factor(lm, CONDITIONS[place], lm.encode(text[:state]))
            expected = plain_BS[row, state].item() + factor
            assert both_BS[row, state].item() == pytest.approx(expected, abs=NATS)
    assert both_BS[3].tolist()[1] < -100 and not both_BS.isnan().any()
    assert set(single.asked) == set(batched.asked) == ends and batched.calls == 1


def test_a_constraint_that_forbids_is_told_to_fine(lm):
    class Forbids:
        def log_factor(self, lm, condition, prefix) -> float:
            return -math.inf if prefix else 0.0

    with pytest.raises(ValueError, match=r"Forbids.log_factor gave -inf for condition .* -50"):
        log_reward(lm, CONDITIONS, rows_of(lm), rule(), [Forbids()])


# -- a fresh adapter --------------------------------------------------------------------------------

OBJECTIVES = [
    SubTB(),
    SubTB(lam=0.5),
    DetailedBalance(),
    VarGradTB(),
    TrajectoryBalance(),
    JointBalance(),
    JointBalance(between=0.3),
]
FREE = [Condition(name, text, (Term(text, ""),)) for name, text in (("a", "ab?"), ("b", "Q: 7"))]


def phi_of(lm, rows, strings_rule):
    prompts = [lm.encode_prompt(c.prompt) for c in FREE]
    with torch.no_grad():
        scores = score_policy(lm, prompts, rows, strings_rule)
    log_reward_BS = log_reward(lm, FREE, rows, strings_rule)
    return phi(scores, log_reward_BS, 1.0), scores


@pytest.mark.parametrize("strings_rule", [rule(), rule(min_len=1, forbidden="0123AQ")])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_phi_of_a_fresh_adapter_is_constant_and_every_loss_is_0(architecture, strings_rule):
    """With R = p(Z ⊤ | X) at T = 1; all strings here are shorter than max_len."""
    lm = tiny_lm(architecture, adapter="fresh")
    rows = rows_of(lm, [("abcd", 0), ("e", 0), ("ij=", 1), ("+-", 1), ("hhhh", 1)])
    phi_BS, scores = phi_of(lm, rows, strings_rule)
    assert scores.terminable_BS.sum() >= 14 and scores.log_pf_BT.min() < -1
    assert phi_BS.abs().max() < NATS
    arguments = (scores.terminable_BS, rows.length_B, rows.condition_B, torch.zeros(2))
    random_BS = phi_of(tiny_lm(architecture, adapter="random"), rows, strings_rule)[0]
    for objective in OBJECTIVES:
        assert objective(phi_BS, *arguments).item() < 1e-5
        assert objective(random_BS, *arguments).item() > 0.01


def test_phi_of_a_forced_end_is_the_models_own_log_p_of_stopping():
    """There log q(⊤) = 0, while the reward is a statement about text and keeps log p(⊤)."""
    lm, short = tiny_lm("llama", adapter="fresh"), rule(max_len=2)
    rows = rows_of(lm, [("ab", 0), ("=j", 1), ("c", 0)])
    phi_BS, _ = phi_of(lm, rows, short)
    assert phi_BS[:, :2].abs().max() < NATS
    for row, (text, place) in enumerate((("ab", 0), ("=j", 1))):
        context = FREE[place].prompt
        expected = log_p(lm, context, text, ".", short) - sum(
            log_p(lm, context + text[:i], "", text[i], rule()) for i in range(len(text))
        )
        assert phi_BS[row, 2].item() == pytest.approx(expected, abs=NATS)
        assert expected < -0.1


def test_the_reward_of_all_strings_sums_to_the_lms_mass_on_them():
    """Σ_z p(z ⊤) is 1 less the mass of the strings that would go on at max_len."""
    lm = tiny_lm("gpt2", "abc.")
    strings_rule = StringRule(3, 0, 3, allowed_mask(4, [], 3))
    conditions = [Condition("a", "ab", (Term("ab", ""),))]
    rows = as_trajectories(all_strings(4, strings_rule))
    reward_B = at_end(log_reward(lm, conditions, rows, strings_rule), rows).exp()
    with torch.no_grad():
        scores = score_policy(lm, [lm.encode_prompt("ab")], rows, strings_rule)
    full_B = rows.length_B == 3
    goes_on = (scores.log_pf_BT[full_B].sum(1).exp() - reward_B[full_B]).sum().item()
    assert reward_B.sum().item() + goes_on == pytest.approx(1, abs=1e-5)
    assert 0.05 < goes_on < 0.95


# -- what a batch is cut into -----------------------------------------------------------------------


def test_padding_order_and_batching_change_nothing(lm, monkeypatch):
    whole_BS = log_reward(lm, CONDITIONS, rows_of(lm), rule())

    def check(rows: Trajectories, expected_BS: torch.Tensor, conditions=CONDITIONS) -> None:
        found_BS = log_reward(lm, conditions, rows, rule())
        n_rows, n_states = expected_BS.shape
        assert found_BS[:n_rows, n_states:].isneginf().all()
        found_BS = found_BS[:n_rows, :n_states]
        assert torch.equal(found_BS.isneginf(), expected_BS.isneginf())
        torch.testing.assert_close(found_BS, expected_BS, atol=NATS, rtol=0)

    order = [4, 0, 5, 3, 1, 2]
    check(rows_of(lm, [TEXTS[i] for i in order]), whole_BS[order])
    check(rows_of(lm, [*TEXTS, ("ababa", 1)]), whole_BS)
    rows = rows_of(lm)
    rows.token_BT.masked_fill_(~rows.token_mask_BT, 7)
    check(rows, whole_BS)
    for row, (text, place) in enumerate(TEXTS):
        alone_BS = whole_BS[row : row + 1, : len(text) + 1]
        check(rows_of(lm, [(text, 0)]), alone_BS, [CONDITIONS[place]])
    for budget in (1, 40):
        monkeypatch.setattr(lm, "max_tokens_per_forward", budget)
        check(rows_of(lm), whole_BS)


def test_a_tools_tokens_are_read_and_not_scored(lm, base):
    """The sum runs over actions only; what follows an observation is conditioned on it."""
    text, chosen = "1+1=2,", [True] * 4 + [False] + [True]
    conditions = [Condition("a", "ab", (Term("ab", ""),))]
    rows = Trajectories.from_rows([lm.encode(text)], [chosen], [0])
    log_reward_BS = log_reward(lm, conditions, rows, rule(max_len=9))
    terms = [log_p(base, "ab" + text[:i], "", c, rule()) for i, c in enumerate(text) if chosen[i]]
    expected = sum(terms) + log_p(base, "ab" + text, "", ".", rule())
    assert log_reward_BS[0, -1].item() == pytest.approx(expected, abs=NATS)
    assert log_reward_BS[0, 4].item() == -math.inf and log_reward_BS[0, 5].item() > -math.inf
