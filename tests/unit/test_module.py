"""The training step of GFlowNets: the same loss with and without the rewards of prefixes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from gfn_runner.data.conditions import Condition
from gfn_runner.data.trajectories import Batch, ReplayDraw, Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm.scoring import score_policy
from gfn_runner.objectives.losses import JointBalance, TrajectoryBalance, VarGradTB
from gfn_runner.objectives.phi import phi
from gfn_runner.rewards.reward import log_reward
from gfn_runner.tasks.infilling import StoryInfilling
from tests.tiny_models import as_trajectories, at_end
from tests.tiny_modules import tiny_module

TASK = StoryInfilling(max_len=4, template="{beginning}{ending}:")
OBJECTIVES = [VarGradTB(), TrajectoryBalance(), JointBalance()]


def conditions_of(*endings: str) -> list[Condition]:
    return [TASK._condition("a b.", "c.", ending) for ending in endings]


@torch.no_grad()
def loss_of_all_prefixes(module, objective, conditions, rows: Trajectories) -> torch.Tensor:
    """What a training step should have for its loss."""
    scores = score_policy(module.lm, module.prompts(conditions), rows, module.rule)
    rewards_BS = log_reward(module.lm, conditions, rows, module.rule, TASK.constraints())
    phi_BS = phi(scores, rewards_BS, 1.0)
    log_z = module.algorithm.log_z if objective.needs_log_z else None
    return objective(phi_BS, scores.terminable_BS, rows.length_B, rows.condition_B, log_z)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_step_has_the_loss_that_all_prefixes_give(objective):
    conditions = conditions_of("d.", "e f.")
    module = tiny_module(TASK, objective, conditions)
    step = module.training_step(Batch(conditions), 0)
    rows = step["output"].trajectories
    expected = loss_of_all_prefixes(module, objective, conditions, rows)
    torch.testing.assert_close(step["loss"].detach(), expected, atol=1e-3, rtol=1e-4)
    known_BS = step["output"].log_reward_BS.isfinite()
    every_state = module.rule.terminable_BS(rows).sum()
    assert known_BS.sum() == (every_state if objective.needs_prefixes else len(rows))
    assert expected > 0.1
    step["loss"].backward()
    gradients = [p.grad for p in module.lm.trainable().values()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_strings_of_the_buffer_join_the_groups_of_fresh_ones(objective):
    """The loss is that of all strings; the output is of the fresh ones, as without the buffer."""
    conditions = conditions_of("d.", "e f.")
    module = tiny_module(TASK, objective, conditions)
    lm = module.lm
    alone = module.training_step(Batch(conditions), 0)["output"]
    stored = as_trajectories([lm.encode(text) for text in (" a", " e c", " b")], [1, 0, 1])
    rewards_BS = module.log_reward(conditions, stored)
    if objective.needs_log_z:
        module.algorithm.log_z.data.fill_(-3.0)
    batch = Batch(conditions, replay=ReplayDraw(stored, rewards_BS, beside_fresh=True))
    step = module.training_step(batch, 0)
    output = step["output"]
    assert not output.from_replay
    assert output.trajectories.strings() == alone.trajectories.strings()
    torch.testing.assert_close(output.phi_BS, alone.phi_BS, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.log_reward_BS, alone.log_reward_BS, atol=1e-4, rtol=0)

    together = Trajectories.concatenated([alone.trajectories, stored])
    expected = loss_of_all_prefixes(module, objective, conditions, together)
    torch.testing.assert_close(step["loss"].detach(), expected, atol=1e-3, rtol=1e-4)


def test_the_model_stays_where_it_is_when_lightning_is_done_with_it():
    module = tiny_module(TASK, VarGradTB(), conditions_of("d.")).to("meta")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.strategy.teardown()
    assert module.lm.device.type == "meta"


def test_a_checkpoint_and_the_answer_model_of_a_run_belong_together(caplog):
    module = tiny_module(TASK, VarGradTB(), conditions_of("d."))
    state = {"task": TASK.name, "m_steps": 1, "global_step": 2, "state_dict": {}}
    with pytest.raises(UserError, match=r"M-step 1, but the answer adapter .* has seen 0"):
        module.on_load_checkpoint(state)
    module.lm.m_steps, module.max_steps = 1, 3
    state["state_dict"] = {n: p for n, p in module.named_parameters() if p.requires_grad}
    module.on_load_checkpoint(state)
    assert "resumes from step 2, but its M-step 1 was made after step 3" in caplog.text
    caplog.clear()
    module.on_load_checkpoint(state | {"m_steps": 0, "global_step": 3})
    assert not caplog.text


def test_weights_moments_and_logits_that_are_not_finite_are_named():
    module = tiny_module(TASK, TrajectoryBalance(), conditions_of("d."))
    optimizer = module.configure_optimizers()["optimizer"]
    trainer = SimpleNamespace(optimizers=[optimizer])
    module._trainer = trainer  # type: ignore[assignment]
    # A condition never visited is none of them.
    assert module.algorithm.log_z.isnan().all() and module.not_finite() is None
    name, weight = next((n, p) for n, p in module.named_parameters() if "lora_B" in n)
    kept = weight.detach().clone()
    for value, said in ((float("nan"), name), (float("inf"), name), (3e38, "the policy's output")):
        weight.data.fill_(value)
        assert module.not_finite().startswith(said), value
    weight.data.copy_(kept)
    optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg_sq": torch.full((2,), torch.inf)}
    assert module.not_finite() == f"exp_avg_sq of {name}"
    optimizer.state.clear()
    module.algorithm.log_z.data.fill_(torch.inf)
    assert module.not_finite() == "algorithm.log_z"


class Steps(L.LightningDataModule):
    """Batches as given, one after the other."""

    def __init__(self, batches: list[list[Condition]]):
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        batches = [Batch(conditions, index) for index, conditions in enumerate(self.batches)]
        return DataLoader(batches, batch_size=None, num_workers=0)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        return batch


class Losses(L.Callback):
    """Loss and mean terminal φ by condition of every batch, and log Z after each optimizer step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.means: list[list[float]] = []
        self.log_z: list[list[float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        output = outputs["output"]
        rows = output.trajectories
        phi_B = at_end(output.phi_BS, rows)
        places = range(len(output.conditions))
        self.means.append([phi_B[rows.condition_B == place].mean().item() for place in places])
        if len(self.log_z) < trainer.global_step:
            self.log_z.append(module.algorithm.log_z.tolist())


def balanced(batches: list[list[int]], samples: int, accumulate=1, others=(0.0,) * 4) -> Losses:
    """Trajectory balance on batches of numbered conditions; ``others`` is added to log Z's gradient.

    Every batch gets another reward: where the same strings are drawn again, φ differs all the same.
    """
    conditions = conditions_of(*(f"d{n}." for n in range(4)))
    objective = TrajectoryBalance(log_z_lr=0.05)
    module = tiny_module(TASK, objective, conditions, samples=samples, warmup_steps=0)
    own, number = module.log_reward, itertools.count()
    module.log_reward = lambda c, t: own(c, t) + 100 * next(number)  # type: ignore[method-assign]
    module.algorithm.log_z.register_hook(lambda gradient_C: gradient_C + torch.tensor(others))
    seen = Losses()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[seen],
        enable_progress_bar=False, enable_model_summary=False, max_epochs=1, log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, Steps([[conditions[n] for n in batch] for batch in batches]))
    return seen


def nan_at(values: list[float]) -> list[int]:
    return [place for place, value in enumerate(values) if math.isnan(value)]


@pytest.mark.parametrize("samples", [1, 6])
def test_log_z_begins_at_the_first_step_and_moves_in_the_steps_of_its_condition(samples):
    """However large the gradient is that rounding leaves of a mean's: exactly 0 with one sample."""
    seen = balanced([[0, 1], [0, 2], [0, 1]], samples)
    assert [nan_at(values) for values in seen.log_z] == [[2, 3], [3], [3]]
    first, second, third = seen.log_z
    # At the mean itself: its gradient is 0, or rounding noise that Adam would make a step of 0.05 of.
    assert first[:2] == pytest.approx(seen.means[0], abs=1e-3)
    assert second[2] == pytest.approx(seen.means[1][1], abs=1e-3)
    # Adam moves log Z by about its rate, and only where a step has it in its loss.
    assert 0.01 < abs(second[0] - first[0]) < 0.2 and second[1] == first[1]
    assert third[2] == second[2] and 0.01 < abs(third[1] - second[1]) < 0.2
    assert min(seen.losses[1:]) > 1e-6
    assert samples > 1 or seen.losses[0] == 0, "φ itself is the first value of log Z"


def test_the_conditions_of_every_batch_of_a_step_belong_to_it():
    seen = balanced([[0], [1], [1], [2]], samples=1, accumulate=2)
    first, second = seen.log_z
    assert nan_at(first) == [2, 3] and nan_at(second) == [3]
    assert second[0] == first[0] and 0.01 < abs(second[1] - first[1]) < 0.2
    # The second batch of a step finds what the first has begun.
    twice = balanced([[0], [0]], samples=1, accumulate=2)
    assert twice.losses[1] > 1e-6


def test_what_other_ranks_have_in_their_loss_moves_here_too(monkeypatch):
    """Gradients are averaged over ranks, and so log Z must move alike on all of them."""
    theirs = iter([([], [(3, -7.0)]), ([3], [])])
    monkeypatch.setattr(
        "gfn_runner.algorithms.gflownet.all_gather", lambda own: [own, next(theirs)]
    )
    seen = balanced([[0], [0]], samples=1, others=(0.0, 0.0, 1.0, 1.0))
    first, second = seen.log_z
    assert first[3] == -7.0 and nan_at(first) == nan_at(second) == [1, 2]
    assert -7.2 < second[3] < -7.01
