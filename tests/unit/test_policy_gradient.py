"""PPO and GRPO against numbers worked out by hand, and against what they are in the first update."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from gfn_runner.algorithms.grpo import GRPO, group_advantages
from gfn_runner.algorithms.policy_gradient import chosen_log_probs, clipped_gain
from gfn_runner.algorithms.ppo import PPO, gae, whitened
from gfn_runner.algorithms.schedules import linear_schedule
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.trajectories import Batch, Trajectories
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule

from ..tiny_models import all_strings, as_trajectories, tiny_lm
from ..tiny_modules import Bare, NoTrainer, tiny_module
from .test_recompute import kept_numbers


def module_of(algorithm, *, samples=32, characters="ab.", max_len=2):
    """Strings of ``max_len`` letters at most; the reward is the base model's."""
    condition = Condition("c", "ab", (Term("ba"),))
    module = tiny_module(
        Bare(max_len=max_len, eval_max_len=max_len), algorithm, [condition],
        lm=tiny_lm("llama", characters, adapter="fresh"), samples=samples,
    )  # fmt: skip
    module._trainer = NoTrainer()
    return module, condition


def test_advantages_of_a_string_worked_out_by_hand():
    """Three states, values 1, 2, 3, rewards 0.5, −1, 4; the second string has one state only."""
    reward_BS = torch.tensor([[0.5, -1.0, 4.0], [2.0, 99.0, 99.0]])
    value_BS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 99.0, 99.0]])
    length_B = torch.tensor([2, 0])
    # Differences: 0.5 + 2 − 1 = 1.5; −1 + 3 − 2 = 0; 4 − 3 = 1.
    expected = [[1.5 + 0.5 * (0 + 0.5 * 1), 0 + 0.5 * 1, 1.0], [1.5, 0.0, 0.0]]
    torch.testing.assert_close(gae(reward_BS, value_BS, length_B, 0.5), torch.tensor(expected))
    # λ = 1: what is still to come, without the value.
    all_BS = gae(reward_BS, value_BS, length_B, 1.0)[0]
    torch.testing.assert_close(all_BS, torch.tensor([3.5 - 1, 3.0 - 2, 4.0 - 3]))


def test_groups_are_compared_with_themselves():
    reward_B = torch.tensor([1.0, 10.0, 3.0, 30.0, 7.0])
    condition_B = torch.tensor([0, 1, 0, 1, 2])
    advantage_B = group_advantages(reward_B, condition_B)
    half = 1 / math.sqrt(2)  # of two values, the standard deviation is their distance over √2
    expected = torch.tensor([-half, -half, half, half, 0.0])
    torch.testing.assert_close(advantage_B, expected, atol=1e-3, rtol=0)


def test_the_ratio_counts_up_to_its_bounds():
    old = torch.zeros(4)
    now = torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0])
    # A rise is worth no more than 1.2 times; a fall is not forgiven.
    expected = torch.tensor([2.4, -3.0, 1.0, -1.6])
    torch.testing.assert_close(clipped_gain(now, old, advantage, 0.2), expected)


def test_whitening_looks_at_the_mask_alone():
    values = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[True, True, False]])
    out = whitened(values, mask)[mask]
    assert out.mean().abs() < 1e-6 and out.std() == pytest.approx(1.0)


def test_what_is_chosen_sums_to_log_q_without_a_tools_tokens():
    lm = tiny_lm("llama", "ab.", adapter="random")
    rule = StringRule(2, 0, 2)
    strings = as_trajectories(all_strings(3, rule))
    scores = score_policy(lm, [(0, 1)], strings, rule)
    chosen_BS, mask_BS = chosen_log_probs(scores, strings, rule)
    assert chosen_BS.sum(dim=1).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    # An end that is forced is not chosen; one that is free is.
    assert torch.equal(mask_BS.sum(dim=1), (strings.length_B + 1).clamp(max=2))
    longer, with_tool = StringRule(2, 0, 4), [[True, False, True]]
    strings = Trajectories.from_rows([[0, 1, 0]], with_tool, [0])
    _, mask_BS = chosen_log_probs(score_policy(lm, [(0,)], strings, longer), strings, longer)
    assert mask_BS.tolist() == [[True, False, True, True]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
def test_the_value_head_reads_what_the_output_layer_reads(architecture):
    lm = tiny_lm(architecture, "ab.", adapter="random")
    with lm.final_states() as read:
        logits = lm.whole_logits([[0, 1, 0]])
    (state_NTH,) = read
    torch.testing.assert_close(lm.model.get_output_embeddings()(state_NTH), logits)
    with lm.final_states() as later:
        pass
    lm.whole_logits([[0]])
    assert not later, "the hook is gone after the context"


def test_the_value_of_a_state_belongs_to_its_prefix():
    """States of a batch of strings are those of whole forwards over prompt and prefix."""
    module, condition = module_of(PPO())
    value = module.algorithm.value
    torch.nn.init.normal_(value.weight)
    strings = as_trajectories([(0, 1), (1,)])
    prompts = [module.lm.encode_prompt(condition.prompt)]
    scores = score_policy(module.lm, prompts, strings, module.rule, value)
    plain = score_policy(module.lm, prompts, strings, module.rule)
    torch.testing.assert_close(scores.log_pf_BT, plain.log_pf_BT)
    torch.testing.assert_close(scores.log_pf_stop_BS, plain.log_pf_stop_BS)
    for row, ids in enumerate([(0, 1), (1,)]):
        for state in range(len(ids) + 1):
            with module.lm.final_states() as read:
                module.lm.whole_logits([[*prompts[0], *ids[:state]]])
            torch.testing.assert_close(scores.value_BS[row, state], value(read[0][0, -1])[0])


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_activations_computed_again_give_the_same_gradients_from_fewer_kept_numbers(kind):
    found, sizes = [], []
    for recompute_above in (None, 10):
        module, condition = module_of(kind(), characters="abcdef.", max_len=4)
        if kind is PPO:
            torch.nn.init.constant_(module.algorithm.value.weight, 0.1)
        module.lm.recompute_above = recompute_above
        with kept_numbers() as total:
            loss = module.training_step(Batch([condition], 0), 0)["loss"]
        loss.backward()
        found.append([p.grad for p in module.parameters() if p.grad is not None])
        sizes.append(total.pop())
    assert max(gradient.abs().max() for gradient in found[0]) > 1e-3
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_a_rollout_serves_so_many_updates_and_a_new_one_follows(kind):
    module, condition = module_of(kind())
    seen, epochs = [], module.algorithm.epochs
    for index in range(2 * epochs):
        step = module.training_step(Batch([condition], index), index)
        seen.append(step["output"].trajectories.token_BT)
        assert step["output"].from_replay == (index % epochs != 0)
    first, second = seen[:epochs], seen[epochs:]
    assert all(one is first[0] for one in first) and all(one is second[0] for one in second)
    assert first[0] is not second[0]


@pytest.mark.parametrize("kind", [partial(PPO, reward_scale=1.0), GRPO])
def test_what_an_update_is_watched_by(kind):
    module, condition = module_of(kind())
    algorithm = module.algorithm
    step = module.training_step(Batch([condition], 0), 0)
    rollout = algorithm.rollouts[0]
    # The adapter begins at the base model.
    assert step["measures"]["kl_base"] == pytest.approx(0.0, abs=1e-5)
    assert step["measures"]["clipped"] == 0.0
    if isinstance(algorithm, PPO):
        # The value head begins at 0.
        squares_N = rollout.return_BS[rollout.chosen_BS].square()
        half = 0.5 * squares_N.mean().item()
        assert step["measures"]["value_loss"] == pytest.approx(half, rel=1e-4) and half > 0.1
    else:
        assert "value_loss" not in step["measures"]
    rollout.old_BS = rollout.old_BS.clone()
    state = rollout.chosen_BS.nonzero()[0]
    rollout.old_BS[tuple(state)] -= math.log(1 + 2 * algorithm.clip)
    rollout.base_BS = rollout.base_BS - 0.5 * rollout.chosen_BS
    again = module.training_step(Batch([condition], 1), 1)
    choices, strings = int(rollout.chosen_BS.sum()), len(rollout.reward_B)
    assert choices > strings
    assert again["measures"]["clipped"] == pytest.approx(1 / choices)
    assert again["measures"]["kl_base"] == pytest.approx(0.5 * choices / strings, rel=1e-4)


def test_the_scale_of_the_reward_moves_ppos_value_loss_alone():
    """Advantages are whitened: at the same ratio of KL to reward the policy's gradient is the same."""

    def found(scale: float) -> tuple[list[torch.Tensor], float]:
        # Without a value head's say in the loss; the head begins at 0 at every scale.
        algorithm = PPO(reward_scale=scale, kl_weight=0.05 * scale, value_weight=0.0)
        module, condition = module_of(algorithm)
        step = module.training_step(Batch([condition], 0), 0)
        parameters = list(module.lm.trainable().values())
        return list(torch.autograd.grad(step["loss"], parameters)), step["measures"]["value_loss"]

    (whole, loss), (tenth, small) = found(1.0), found(0.1)
    assert any(gradient.abs().max() > 1e-4 for gradient in whole)
    for one, other in zip(whole, tenth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert small == pytest.approx(loss / 100, rel=1e-3)


def test_the_first_update_of_grpo_is_the_policy_gradient():
    """At ratio 1 and without a KL term: −mean of advantage × gradient of log q a token."""
    module, condition = module_of(GRPO(kl_weight=0.0))
    step = module.training_step(Batch([condition], 0), 0)
    rollout = module.algorithm.rollouts[0]
    parameters = list(module.lm.trainable().values())
    found = torch.autograd.grad(step["loss"], parameters)
    prompts = [module.lm.encode_prompt(condition.prompt)]
    scores = score_policy(module.lm, prompts, rollout.trajectories, module.rule)
    log_q_BS, mask_BS = chosen_log_probs(scores, rollout.trajectories, module.rule)
    advantage_B = group_advantages(rollout.reward_B, rollout.trajectories.condition_B)
    loss = -(advantage_B * log_q_BS.sum(dim=1) / mask_BS.sum(dim=1)).mean()
    expected = torch.autograd.grad(loss, parameters)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def every_string(module, condition) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log q, log p under the base model, and log R of all strings. Shapes (N,)."""
    strings = as_trajectories(all_strings(3, module.rule))
    prompts = [module.lm.encode_prompt(condition.prompt)]
    with torch.no_grad():
        scores = score_policy(module.lm, prompts, strings, module.rule)
        log_q_N = chosen_log_probs(scores, strings, module.rule)[0].sum(dim=1)
        with module.lm.base():
            scores = score_policy(module.lm, prompts, strings, module.rule)
        log_p_N = chosen_log_probs(scores, strings, module.rule)[0].sum(dim=1)
    log_reward_BS = module.log_reward([condition], strings)
    return log_q_N, log_p_N, log_reward_BS.gather(1, strings.length_B[:, None])[:, 0]


def trained(module, condition, updates: int, lr: float) -> None:
    module.make_optimizer = partial(torch.optim.Adam, lr=lr)
    module.make_scheduler = partial(linear_schedule, warmup_steps=0)
    optimizer = module.configure_optimizers()["optimizer"]
    for index in range(updates):
        optimizer.zero_grad()
        module.training_step(Batch([condition], index), index)["loss"].backward()
        optimizer.step()


PULLED = {"kl_weight": 1.0, "reward_scale": 1e-9}


@pytest.mark.parametrize("kind", [partial(PPO, value_lr=0.02, **PULLED), partial(GRPO, **PULLED)])
def test_a_kl_term_pulls_towards_the_base_model(kind):
    """With no reward to win, what is left is the divergence, and it falls."""
    module, condition = module_of(kind(), samples=64)
    with torch.no_grad():
        for name, parameter in module.lm.trainable().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.15, generator=torch.Generator().manual_seed(0))

    def divergence() -> float:
        log_q_N, log_p_N, _ = every_string(module, condition)
        return float((log_q_N.exp() * (log_q_N - log_p_N)).sum())

    before = divergence()
    trained(module, condition, 80, lr=0.01)
    assert before > 0.02 and divergence() < 0.3 * before


PPO_FAST = partial(PPO, kl_weight=0.01, reward_scale=1.0, value_lr=0.05)


@pytest.mark.parametrize("kind", [PPO_FAST, partial(GRPO, kl_weight=0.01)])
def test_log_reward_rises_and_the_policy_narrows(kind):
    """What the comparison is about: maximising log R ends in one string."""
    module, condition = module_of(kind())
    log_p_N = every_string(module, condition)[2].log_softmax(dim=0)  # the posterior
    trained(module, condition, 45, lr=0.02)
    log_q_N, _, log_reward_N = every_string(module, condition)
    q_N, p_N = log_q_N.exp(), log_p_N.exp()
    assert q_N.sum().item() == pytest.approx(1.0, abs=1e-4)
    mean, posterior = (q_N * log_reward_N).sum(), (p_N * log_reward_N).sum()
    assert mean - posterior > 0.6 * (log_reward_N.max() - posterior)
    assert -(q_N * log_q_N).sum() < -0.6 * (p_N * log_p_N).sum(), "its entropy"
