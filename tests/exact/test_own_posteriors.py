"""Posteriors out of a user's file against enumeration: log R of every string, and trained policies."""

from __future__ import annotations

import json

import pytest
import torch

from gfn_runner.data.conditions import Condition
from gfn_runner.data.task import Task
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.objectives.losses import JointBalance
from gfn_runner.rewards.reward import log_reward
from gfn_runner.tasks.constrained import ConstrainedData, ConstrainedGeneration
from gfn_runner.tasks.user_posterior import PosteriorData, UserPosterior

from ..tiny_models import all_strings, as_trajectories, at_end, tiny_lm
from .test_objectives import Space, assert_exact, train

CHARACTERS = "ab ."
PENALTY = 5.0
LENGTHS = {"max_len": 3, "eval_max_len": 3}


def posterior_task(folder) -> UserPosterior:
    lines = [
        {
            "prompt": "ab",
            "terms": [{"context": "ba", "suffix": " b", "weight": 0.7}, {"context": "a"}],
            "constraint": {"words": ["a"], "max_words": 1},
        },
        {"prompt": "b", "constraint": {"pattern": "b*( b*)?", "min_words": 1}},
        {"prompt": "a b", "terms": [{"context": "bb", "weight": 1.5}]},
    ]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = PosteriorData(train=str(folder / "own.jsonl"))
    return UserPosterior(data=data, penalty=PENALTY, **LENGTHS)


def constrained_task(folder) -> ConstrainedGeneration:
    lines = [{"words": ["a", "b"]}, {"words": ["a"], "max_words": 1}]
    for name in ("train", "test"):
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
        lines = [{"words": ["b"]}]
    data = ConstrainedData(train=str(folder / "train"), test=str(folder / "test"))
    options = {"prompt_template": "{words} ", "context": "b ", "forbidden": ()}
    return ConstrainedGeneration(data=data, penalty=PENALTY, **options, **LENGTHS)


def violations(text: str, prompt: str) -> int:
    """The constraint of each condition above, written out."""
    words = text.split()
    return {
        "ab": ("a" not in words) + (len(words) > 1),
        "b": ("a" in text or text.strip().count(" ") > 1) + (len(words) < 1),
        "a b": 0,
        "a, b ": ("a" not in words) + ("b" not in words),
        "a ": ("a" not in words) + (len(words) > 1),
    }[prompt]


TERMS = {
    "ab": [("ba", " b", 0.7), ("a", ".", 1.0)],
    "b": [("b", ".", 1.0)],
    "a b": [("bb", ".", 1.5)],
    "a, b ": [("b ", ".", 1.0)],
    "a ": [("b ", ".", 1.0)],
}
TASKS = {"posterior": posterior_task, "constrained": constrained_task}


@pytest.fixture(params=TASKS)
def task(request, tmp_path) -> Task:
    return TASKS[request.param](tmp_path)


@torch.no_grad()
def by_hand(base, text: str, prompt: str) -> float:
    """log R, token by token and without any of the program's scoring."""
    total = -PENALTY * violations(text, prompt)
    for context, suffix, weight in TERMS[prompt]:
        ids = [CHARACTERS.index(c) for c in context + text + suffix]
        log_p_TV = base.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = range(len(context), len(ids))
        total += weight * sum(log_p_TV[place - 1, ids[place]].item() for place in places)
    return total


def enumerated(lm, task: Task, condition: Condition):
    rule = string_rule(lm, task, task.max_len)
    rows = as_trajectories(all_strings(len(CHARACTERS), rule))
    rewards_BS = log_reward(lm, [condition], rows, rule, task.constraints())
    return rule, rows, rewards_BS


def test_log_r_of_every_string_is_its_definition(task):
    lm, base = tiny_lm("llama", CHARACTERS, adapter="random"), tiny_lm("llama", CHARACTERS)
    conditions = task.load(0).train
    assert len(conditions) >= 2
    for condition in conditions:
        _, rows, rewards_BS = enumerated(lm, task, condition)
        assert len(rows) == 1 + 3 + 9 + 27
        met = 0
        for row, reward in enumerate(at_end(rewards_BS, rows).tolist()):
            text = lm.decode(rows.ids(row))
            assert reward == pytest.approx(by_hand(base, text, condition.prompt), abs=1e-3)
            met += violations(text, condition.prompt) == 0
        assert met > 0


def test_all_conditions_in_one_batch_have_the_same_rewards(task):
    """Their numbers of terms differ."""
    lm = tiny_lm("llama", CHARACTERS, adapter="random")
    conditions = list(task.load(0).train)
    rule = string_rule(lm, task, task.max_len)
    strings = all_strings(len(CHARACTERS), rule)
    rows = as_trajectories(strings * len(conditions))
    rows.condition_B = torch.arange(len(conditions)).repeat_interleave(len(strings))
    together_BS = log_reward(lm, conditions, rows, rule, task.constraints())
    alone = [enumerated(lm, task, condition)[2] for condition in conditions]
    torch.testing.assert_close(together_BS, torch.cat(alone), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_policy_trained_on_these_rewards_is_the_posterior(task):
    """A tabular policy of the first condition, which has the most constraints."""
    lm, condition = tiny_lm("llama", CHARACTERS), task.load(0).train[0]
    _, rows, rewards_BS = enumerated(lm, task, condition)
    space = Space(n_tokens=3, max_len=3)
    assert space.strings == [tuple(rows.ids(row)) for row in range(len(rows))]
    space.log_reward = dict(zip(space.strings, at_end(rewards_BS, rows).tolist(), strict=True))
    space.log_reward_BS = rewards_BS
    with torch.enable_grad():
        trained = train(space, JointBalance(), 1.0)
    assert_exact(space, JointBalance(), 1.0, trained)
