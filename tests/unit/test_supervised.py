"""Supervised fine-tuning: its loss against another's, its strings, and the adapter of another run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gfn_runner.algorithms.sft import SFT, cross_entropy
from gfn_runner.callbacks.training_log import measures
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import TaskData
from gfn_runner.data.trajectories import Batch, PolicyScores, Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.tasks.base import GFlowNetModule

from ..tiny_models import as_trajectories, tiny_lm
from ..tiny_modules import Bare, NoTrainer, tiny_module


class Letters(Bare):
    """Known strings of letters; a class may have choices instead."""

    choices = ()

    def direct_choices(self, condition):
        return self.choices

    def answer_choices(self, condition, texts):
        return [(text, text) for text in self.choices]


class Labels(Letters):
    choices = ("a", "bb")


def module_of(task_class=Letters, algorithm=None, **condition) -> tuple[GFlowNetModule, Condition]:
    asked = Condition("c", "ab", (Term("ba"),), **condition)
    module = tiny_module(
        task_class(max_len=3, eval_max_len=3), algorithm or SFT(), [asked],
        lm=tiny_lm("llama", "ab.", adapter="fresh"),
    )  # fmt: skip
    return module, asked


def test_the_loss_is_transformers_own_over_string_and_end():
    lm = tiny_lm("llama", "ab.", adapter="random")
    rule, prompt = StringRule(2, 0, 9), (0, 1)
    rows = as_trajectories([(0, 0, 1), (1,)])
    found = cross_entropy(score_policy(lm, [prompt], rows, rule), rows, rule)
    ids = torch.tensor([[0, 1, 0, 0, 1, 2], [0, 1, 1, 2, 0, 0]])
    labels = torch.tensor([[-100, -100, 0, 0, 1, 2], [-100, -100, 1, 2, -100, -100]])
    expected = lm.model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(found, expected)


def test_a_tools_tokens_are_not_learnt():
    lm = tiny_lm("llama", "ab.", adapter="random")
    rule = StringRule(2, 0, 9)
    for is_action, n_learnt in (([True, True], 2), ([True, False], 1)):
        rows = Trajectories.from_rows([(0, 1)], [is_action], [0])
        scores = score_policy(lm, [(0,)], rows, rule)
        learnt = scores.log_pf_BT[0, :n_learnt].sum() + scores.log_pf_stop_BS[0, 2]
        torch.testing.assert_close(cross_entropy(scores, rows, rule), -learnt / (n_learnt + 1))


def test_an_end_that_is_all_but_certain_counts_and_a_forced_one_does_not():
    rows = as_trajectories([(0,)])
    terminable = torch.ones(1, 2, dtype=torch.bool)
    scores = PolicyScores(torch.tensor([[-1.0]]), torch.zeros(1, 2), terminable)
    assert cross_entropy(scores, rows, StringRule(2, 0, 9)).item() == 0.5
    assert cross_entropy(scores, rows, StringRule(2, 0, 1)).item() == 1.0


def learnt(module, condition, steps: int) -> float:
    optimizer = torch.optim.Adam(module.lm.trainable().values(), lr=0.03)
    for index in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(Batch([condition], index), index)["loss"]
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_string_as_long_as_may_be_is_learnt_with_its_end():
    """At max_len φ has the end forced; here it has to be learnt, for longer strings may come."""
    module, condition = module_of(demonstrations=("abb",))
    assert learnt(module, condition, 60) < 0.05
    longer = StringRule(2, 0, 9)
    rows = as_trajectories([(0, 1, 1)])
    scores = score_policy(module.lm, [module.lm.encode_prompt("ab")], rows, longer)
    assert scores.log_pf_stop_BS[0, 3].exp() > 0.8


def test_a_step_learns_several_strings_of_a_condition_and_asks_for_no_reward():
    module, condition = module_of(algorithm=SFT(n_strings=9), demonstrations=("a", "bb"))
    module.constraints = lambda: pytest.fail("a reward was asked for")
    step = module.training_step(Batch([condition], 0), 0)
    rows = step["output"].trajectories
    texts = [module.lm.decode(rows.ids(row)) for row in range(len(rows))]
    assert len(texts) == 9 and set(texts) == {"a", "bb"}
    assert "log_reward" not in (found := measures(step["output"]))
    assert "phi_spread" not in found and 1 < found["length"] < 2


def test_right_answers_are_learnt_at_once():
    module, condition = module_of(Labels, answer="bb")
    assert module.algorithm.trained_on(module, [condition]) == [condition]
    assert learnt(module, condition, 60) < 0.05
    (drawn,) = module.validation_step(Batch([condition], 0), 0)
    first, second = drawn.greedy_answer_log_probs
    assert second > -0.1 > first, "the adapter answers, not the base model"


def test_a_policy_of_another_run_is_imitated(tmp_path):
    """Its strings are drawn with its adapter, of another rank, of which nothing stays."""
    teacher = tiny_lm("llama", "ab.", adapter="random", rank=8)
    teacher.save_adapter(tmp_path / "adapter")
    algorithm = SFT(samples_of=str(tmp_path), n_samples=200)
    module, condition = module_of(algorithm=algorithm, demonstrations=())
    names = list(module.lm.model.state_dict())
    wanted = set(module.lm.trainable())
    module._trainer = NoTrainer()
    module.on_fit_start()
    assert list(module.lm.model.state_dict()) == names
    assert set(module.lm.trainable()) == wanted and wanted
    strings = algorithm.written["c"]
    assert len(strings) == 200 and len({tuple(ids) for ids, _ in strings}) > 3
    rows = Trajectories.from_rows(*zip(*strings, strict=True), [0] * 200)
    prompts = [module.lm.encode_prompt("ab")]
    with torch.no_grad():
        of_teacher, of_student = (
            cross_entropy(score_policy(lm, prompts, rows, module.rule), rows, module.rule)
            for lm in (teacher, module.lm)
        )
    assert of_teacher < of_student - 0.05
    assert learnt(module, condition, 1) > 0


class Ends(Letters):
    """A string is right where it ends as the answer has it."""

    def is_right(self, condition, text):
        return text.endswith(condition.answer)


def test_only_right_strings_are_imitated(tmp_path):
    tiny_lm("llama", "ab.", adapter="random", rank=8).save_adapter(tmp_path / "adapter")
    algorithm = SFT(samples_of=str(tmp_path), n_samples=50, right_only=True)
    module, known = module_of(Ends, algorithm, answer="b")
    never = replace(known, key="never", answer="x")
    module.conditions = [known, never]
    module._trainer = NoTrainer()
    module.on_fit_start()
    assert list(algorithm.written) == ["c"]
    texts = [module.lm.decode(ids) for ids, _ in algorithm.written["c"]]
    assert 0 < len(texts) < 50 and all(text.endswith("b") for text in texts)
    # Nothing is learnt of a condition without one; another takes its place.
    step = module.training_step(Batch([never, known], 0), 0)
    assert step["output"].conditions == [known, known]
    # So it is where the strings are the task's own, and one condition has none.
    untold = replace(known, key="untold", demonstrations=())
    told = replace(known, demonstrations=("a",))
    algorithm.written, module.conditions = {}, [told, untold]
    step = module.training_step(Batch([untold, told], 0), 0)
    assert step["output"].conditions == [told, told]
    algorithm.written, module.conditions = {}, [never]
    with pytest.raises(UserError, match="no string of the policy"):
        module.on_fit_start()


def test_right_strings_need_a_policy_and_a_task_that_tells(tmp_path):
    (tmp_path / "adapter").mkdir()
    module, condition = module_of(demonstrations=("a",))
    data = TaskData([condition], [])
    assert [p.where for p in SFT(right_only=True).problems()] == ["baseline.right_only"]
    algorithm = SFT(samples_of=str(tmp_path), right_only=True)
    assert [p.where for p in algorithm.unfit(module, data)] == ["baseline.right_only"]
    assert not [*algorithm.unfit(Ends(), TaskData([replace(condition, answer="a")], []))]


@pytest.mark.parametrize("algorithm", [SFT(), SFT(samples_of="no such folder")])
def test_what_cannot_be_learnt_from_is_refused(algorithm):
    module, condition = module_of()
    problems = [*algorithm.problems(), *algorithm.unfit(module, TaskData([condition], []))]
    assert len(problems) == 1
