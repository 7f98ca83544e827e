"""Rivals, answers and the M-step against sums written out, and a policy trained on such a reward."""

from __future__ import annotations

import math

import pytest
import torch

from gfn_runner.algorithms import em
from gfn_runner.algorithms.em import EMSettings, answer_losses, em_problems, m_step
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.errors import UserError
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.packing import score_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.scoring import score_policy, score_suffixes
from gfn_runner.lm.vocabulary import StringRule, allowed_mask
from gfn_runner.objectives.losses import JointBalance
from gfn_runner.objectives.phi import phi
from gfn_runner.rewards.reward import log_reward

from ..tiny_models import all_strings, as_trajectories, at_end, tiny_lm

LETTERS = "abcxy,."
COMMA, V = LETTERS.index(","), len(LETTERS)
RULE = StringRule(COMMA, 0, 2, allowed_mask(V, [LETTERS.index(c) for c in "xy."], COMMA))
NATS = 1e-4


def condition(name: str, right: str, *wrong: str, penalty: float = 50.0, weight: float = 1.0):
    term = Term(name, right, weight, rivals=wrong, rival_penalty=penalty)
    return Condition(name, name, (term,), answer=right)


def log_p(lm, context: str, text: str, suffix: str) -> tuple[float, float]:
    """log p(text | context) and log p(suffix | context text), each token by a forward of its own."""
    ids, parts = lm.encode_prompt(context), [0.0, 0.0]
    for part, piece in enumerate((text, suffix)):
        for place, token in enumerate(lm.encode(piece)):
            logits_V = lm.whole_logits([list(ids)])[0, -1].double()
            if part == 0 or (place == 0 and token == COMMA):
                logits_V = logits_V.masked_fill(~RULE.allowed_V, -math.inf)
            parts[part] += logits_V.log_softmax(0)[token].item()
            ids = (*ids, token)
    return parts[0], parts[1]


@pytest.fixture(scope="module", params=["always", "never"])
def lm(request):
    return tiny_lm("llama", LETTERS, adapter="random", packed_rewards=request.param)


@pytest.fixture(scope="module")
def base():
    return tiny_lm("llama", LETTERS)


# -- rivals -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_log_reward_with_rivals_is_its_definition(lm, base):
    """Conditions of one, two and no rivals in one batch; and the penalty bears no weight."""
    conditions = [
        condition("ab", ",x.", ",y.", penalty=50.0),
        condition("b", ",y.", ",x.", ",yy.", penalty=3.0, weight=0.5),
        condition("c", ",x.", penalty=9.0),
    ]
    strings = all_strings(V, RULE)
    places = [place for place in range(3) for _ in strings]
    rows = as_trajectories(strings * 3, places)
    log_reward_BS = log_reward(lm, conditions, rows, RULE)
    n_beaten = 0
    for row, (ids, place) in enumerate(zip(strings * 3, places, strict=True)):
        (term,) = conditions[place].terms
        for state in range(len(ids) + 1):
            text = base.decode(ids[:state])
            own = sum(log_p(base, term.context, text, term.suffix))
            beaten = any(sum(log_p(base, term.context, text, r)) > own for r in term.rivals)
            n_beaten += beaten
            expected = term.weight * own - beaten * term.rival_penalty
            assert log_reward_BS[row, state].item() == pytest.approx(expected, abs=NATS)
    assert 5 < n_beaten < 2 * (len(strings) * 3 - 5)


@torch.no_grad()
def test_a_suffix_never_loses_to_itself(lm):
    strings = as_trajectories(all_strings(V, RULE))
    plain = log_reward(lm, [condition("ab", ",x.")], strings, RULE)
    own = log_reward(lm, [condition("ab", ",x.", penalty=5.0)], strings, RULE)
    assert torch.equal(plain, own)


def test_a_policy_learns_a_reward_with_rivals_exactly():
    lm = tiny_lm("llama", LETTERS, adapter="fresh", rank=16)
    # Not "b": of one letter repeated a Llama cannot tell how often, so no policy could be exact.
    conditions = [
        condition("ab", ",x.", ",y.", penalty=2.0),
        condition("cb", ",y.", ",x.", penalty=2.0),
    ]
    strings = all_strings(V, RULE)
    n = len(strings)
    rows = as_trajectories(strings * 2, [0] * n + [1] * n)
    prompts = [lm.encode_prompt(c.prompt) for c in conditions]
    with torch.no_grad():
        log_reward_BS = log_reward(lm, conditions, rows, RULE)
    target_CN = at_end(log_reward_BS, rows).view(2, n).softmax(1)
    optimizer = torch.optim.Adam(lm.trainable().values(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    far = []
    for _ in range(300):
        scores = score_policy(lm, prompts, rows, RULE)
        log_q_B = scores.log_pf_BT.sum(1) + at_end(scores.log_pf_stop_BS, rows)
        law_CN = log_q_B.detach().view(2, n).exp()
        far.append(0.5 * (law_CN - target_CN).abs().sum(1).max().item())
        if far[-1] < 0.01:
            break
        loss = JointBalance()(
            phi(scores, log_reward_BS, 1.0),
            scores.terminable_BS,
            rows.length_B,
            rows.condition_B,
            None,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(law_CN.sum(1), torch.ones(2), atol=1e-4, rtol=0)
    assert far[0] > 0.1 and far[-1] < 0.02


# -- answers ----------------------------------------------------------------------------------------


def pairs(lm):
    conditions = [condition("ab", ",x."), condition("b", ",yy."), condition("cc", "y")]
    texts = [("ab", 1), ("", 0), ("c", 2), ("cb", 0), ("", 2)]
    rows = as_trajectories([lm.encode(text) for text, _ in texts], [at for _, at in texts])
    return conditions, texts, rows


@torch.no_grad()
def test_what_a_suffix_scores_after_a_string_is_its_sum(lm, base, monkeypatch):
    conditions, texts, rows = pairs(lm)
    contexts = [lm.encode_prompt(c.prompt) for c in conditions]
    suffixes = [lm.encode(c.terms[0].suffix) for c in conditions]
    with lm.reference():
        score_B = score_suffixes(lm, GivenStrings(contexts, suffixes, rows, RULE))
        whole_B = at_end(score_prefixes(lm, GivenStrings(contexts, suffixes, rows, RULE)), rows)
    for row, (text, at) in enumerate(texts):
        of_text, of_suffix = log_p(
            base, conditions[at].prompt, text, conditions[at].terms[0].suffix
        )
        assert score_B[row].item() == pytest.approx(of_suffix, abs=NATS)
        assert whole_B[row].item() == pytest.approx(of_text + of_suffix, abs=NATS)
    monkeypatch.setattr(lm, "max_tokens_per_forward", 6)
    with lm.reference():
        again_B = score_suffixes(lm, GivenStrings(contexts, suffixes, rows, RULE))
    torch.testing.assert_close(again_B, score_B, atol=NATS, rtol=0)


def brute_force_loss(lm, conditions, texts) -> torch.Tensor:
    """One plain forward a pair, without a cache."""
    total = torch.zeros(())
    for text, at in texts:
        start = (*lm.encode_prompt(conditions[at].prompt), *lm.encode(text))
        suffix = lm.encode(conditions[at].terms[0].suffix)
        logits_TV = lm.whole_logits([[*start, *suffix]])[0, len(start) - 1 :]
        for place, token in enumerate(suffix):
            logits_V = logits_TV[place]
            if place == 0 and token == COMMA:
                logits_V = logits_V.masked_fill(~RULE.allowed_V, -math.inf)
            total = total - logits_V.log_softmax(0)[token]
    return total / len(texts)


def test_the_supervised_loss_and_its_gradient_are_the_brute_force():
    lm = tiny_lm("llama", LETTERS, adapter="random")
    lm.add_answer_adapter(LoraSettings(rank=2, alpha=2), seed=3)
    parameters = lm.answer_parameters()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    conditions, texts, rows = pairs(lm)
    for parameter in parameters:
        parameter.requires_grad_(True)
    with lm.reference():
        loss = answer_losses(lm, conditions, rows, RULE).mean()
        by_hand = brute_force_loss(lm, conditions, texts)
    assert loss.item() == pytest.approx(by_hand.item(), abs=NATS)
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, by_hand)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert max(g.abs().max() for g in gradients[0]) > 1e-3
    with lm.base():
        plain = answer_losses(lm, conditions, rows, RULE).mean()
    assert abs(plain.item() - loss.item()) > 0.01


def test_an_m_step_raises_the_answers_and_nothing_else_moves():
    lm = tiny_lm("llama", LETTERS, adapter="random")
    conditions = [condition("ab", ",x."), condition("b", ",yy.")]
    prompts = [lm.encode_prompt(c.prompt) for c in conditions]
    rows = as_trajectories([(0,), (1, 2)], [0, 1])

    @torch.no_grad()
    def seen():
        policy = score_policy(lm, prompts, rows, RULE).log_pf_BT
        with lm.base():
            bare = log_reward(lm, conditions, rows, RULE)
        return policy, bare, log_reward(lm, conditions, rows, RULE)

    before, trainable = seen(), {n: p.clone() for n, p in lm.trainable().items()}
    options = EMSettings(rounds=1, m_steps=25, m_lr=2e-2, m_batch=4, lora=LoraSettings(rank=4))
    measured = m_step(lm, conditions, RULE, options, tool=None, seed=0)
    after = seen()
    assert measured["loss_after"] < measured["loss_before"] - 0.5
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], atol=1e-5, rtol=0)
    assert not torch.allclose(before[2], after[2], atol=0.1)
    assert lm.m_steps == 1 and set(lm.trainable()) == set(trainable)
    assert all(torch.equal(p, trainable[name]) for name, p in lm.trainable().items())
    assert not any(p.requires_grad for p in lm.answer_parameters())
    # A second one goes on with the same adapter.
    again = m_step(lm, conditions, RULE, options, tool=None, seed=0)
    assert again["loss_before"] < measured["loss_before"] - 0.5 and lm.m_steps == 2


def break_losses(monkeypatch: pytest.MonkeyPatch, bad: set[int], key: str, value: float) -> None:
    """The loss of a condition is ``value`` in these optimizer steps (from 0) of an M-step."""
    calls = iter(range(-1, 99))  # the first one measures what was before
    sound = em.answer_losses

    def broken(lm, conditions, strings, rule):
        step, loss_B = next(calls), sound(lm, conditions, strings, rule)
        factors = [value if step in bad and c.key == key else 1.0 for c in conditions]
        return loss_B * torch.tensor(factors)

    monkeypatch.setattr(em, "answer_losses", broken)


def broken_m_step(monkeypatch, bad: set[int], value: float, most: int) -> tuple[list, dict]:
    """Parameters of the answer adapter after each optimizer step, and what was measured."""
    lm, moved = tiny_lm("llama", LETTERS, adapter="random"), []
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        real(self, *args, **kwargs)
        moved.append([p.detach().clone() for p in lm.answer_parameters()])

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    break_losses(monkeypatch, bad, "ab", value)
    conditions = [condition("ab", ",x."), condition("b", ",yy.")]
    options = EMSettings(rounds=1, m_steps=6, m_lr=2e-2, m_batch=8, lora=LoraSettings(rank=4))
    measured = m_step(lm, conditions, RULE, options, tool=None, seed=0, most_non_finite=most)
    return moved, measured


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_m_step_skips_what_is_not_finite(value, monkeypatch, caplog):
    moved, measured = broken_m_step(monkeypatch, {0, 1, 3, 4}, value, most=3)
    assert len(moved) == 2 and measured["skipped"] == 4
    assert all(p.isfinite().all() for own in moved for p in own)
    assert math.isfinite(measured["loss_after"])
    text = f"M-step 1, optimizer step 4 is skipped: the loss of condition 'ab' is {value}"
    assert text in caplog.text and "'b'" not in caplog.text


def test_many_steps_of_an_m_step_that_are_not_finite_end_the_run_and_name_the_conditions(
    monkeypatch,
):
    with pytest.raises(UserError) as caught:
        broken_m_step(monkeypatch, {1, 3, 4}, math.nan, most=2)
    (problem,) = caught.value.problems
    assert problem.where == "M-step 1, optimizer step 5"
    assert problem.what.startswith("2 steps in a row are not finite. step 4: the loss of condition")
    assert "'ab'" in problem.what and "'b'" not in problem.what
    assert "callbacks.non_finite_steps.max_in_a_row" in problem.allowed


def test_em_is_refused_where_no_answer_follows_a_sample():
    bare = Condition("a", "a", (Term("a"),))
    (problem,) = em_problems(EMSettings(rounds=1), [condition("b", ",x."), bare])
    assert problem.where == "em.rounds" and "'a'" in problem.what
    assert not list(em_problems(EMSettings(), [bare]))
