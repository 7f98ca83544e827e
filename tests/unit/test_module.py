"""The Lightning module's training step: the same loss with and without the rewards of prefixes."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from gfn_runner.errors import UserError
from gfn_runner.lm.scoring import score_policy
from gfn_runner.module import GFlowNetModule
from gfn_runner.objectives import JointBalance, Objective, TrajectoryBalance, VarGradTB
from gfn_runner.phi import phi
from gfn_runner.posterior.reward import log_reward
from gfn_runner.settings import EvaluationSettings, OptimSettings, SamplingSettings
from gfn_runner.tasks.infilling import Infilling
from gfn_runner.trajectories import Batch
from gfn_runner.types import Condition
from tests.tiny_models import tiny_lm

TASK = Infilling(max_len=4, template="{beginning}{ending}:")


def small_module(objective: Objective, conditions: list[Condition]) -> GFlowNetModule:
    return GFlowNetModule(
        TASK,
        tiny_lm(adapter="random"),
        objective,
        conditions=conditions,
        sampling=SamplingSettings(samples=6),
        optim=OptimSettings(),
        evaluation=EvaluationSettings(),
        max_steps=1,
        seed=0,
    )


@pytest.mark.parametrize("objective", [VarGradTB(), TrajectoryBalance(), JointBalance()])
def test_a_training_step_has_the_loss_that_all_prefixes_give(objective):
    conditions = [TASK._condition("a b.", "c.", ending) for ending in ("d.", "e f.")]
    module = small_module(objective, conditions)
    lm = module.lm
    step = module.training_step(Batch(conditions), 0)
    trajectories = step["output"].trajectories
    with torch.no_grad():
        prompts = [lm.encode_prompt(condition.prompt) for condition in conditions]
        scores = score_policy(lm, prompts, trajectories, module.rule)
        rewards_BS = log_reward(lm, conditions, trajectories, module.rule, TASK.constraints())
        log_z_C = module.log_z if objective.needs_log_z else None
        expected = objective(
            phi(scores, rewards_BS, 1.0),
            scores.terminable_BS,
            trajectories.length_B,
            trajectories.condition_B,
            log_z_C,
        )
    torch.testing.assert_close(step["loss"].detach(), expected, atol=1e-3, rtol=1e-4)
    known_BS = step["output"].log_reward_BS.isfinite()
    n_states = scores.terminable_BS.sum() if objective.needs_prefixes else len(trajectories)
    assert expected > 0.1 and known_BS.sum() == n_states
    step["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.trainable().values())


def test_the_model_stays_where_it_is_when_lightning_is_done_with_it():
    module = small_module(VarGradTB(), [TASK._condition("a b.", "c.", "d.")]).to("meta")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.strategy.teardown()
    assert module.lm.device.type == "meta"


def test_a_checkpoint_and_the_answer_model_of_a_run_belong_together(caplog):
    module = small_module(VarGradTB(), [TASK._condition("a b.", "c.", "d.")])
    state = {"task": TASK.name, "m_steps": 1, "global_step": 2, "state_dict": {}}
    with pytest.raises(UserError, match=r"M-step 1, but the answer adapter .* has seen 0"):
        module.on_load_checkpoint(state)
    module.lm.m_steps, module.max_steps = 1, 3
    state["state_dict"] = {n: p for n, p in module.named_parameters() if p.requires_grad}
    module.on_load_checkpoint(state)
    assert "goes on from step 2, but its M-step 1 was made behind step 3" in caplog.text
    caplog.clear()
    module.on_load_checkpoint(state | {"m_steps": 0, "global_step": 3})
    assert not caplog.text


def test_weights_moments_and_logits_that_are_not_finite_are_named():
    module = small_module(TrajectoryBalance(), [TASK._condition("a b.", "c.", "d.")])
    optimizer = module.configure_optimizers()["optimizer"]
    trainer = SimpleNamespace(optimizers=[optimizer])
    module._trainer = trainer  # type: ignore[assignment]
    assert module.log_z.isnan().all() and module.not_finite() is None, "a condition never visited"
    name, weight = next((n, p) for n, p in module.named_parameters() if "lora_B" in n)
    kept = weight.detach().clone()
    for value, said in ((float("nan"), name), (float("inf"), name), (3e38, "what the policy says")):
        weight.data.fill_(value)
        assert module.not_finite().startswith(said), value
    weight.data.copy_(kept)
    optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg_sq": torch.full((2,), torch.inf)}
    assert module.not_finite() == f"exp_avg_sq of {name}"
    optimizer.state.clear()
    module.log_z.data.fill_(torch.inf)
    assert module.not_finite() == "log_z"
