"""A finished run's policy at work: samples, posterior predictive, evaluation of other data."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from gfn_runner.errors import UserError
from gfn_runner.inference import Policy
from tests.runs import contents, exit_code, jobs, metrics_of

PROMPT = "Question: 3 + 4 - 9 = ? Answer:"


@pytest.fixture(scope="module")
def policy(finished) -> Policy:
    return Policy.load(finished, device="cpu")


def suffix_log_prob(policy: Policy, context: str, text: str, suffix: str) -> float:
    """log p_LM(suffix | context text), by one plain forward of the base model."""
    lm, rule = policy.lm, policy.rule
    start, ids = lm.encode_prompt(context) + lm.encode(text), lm.encode(suffix)
    with lm.reference():
        logits_TV = lm.whole_logits([[*start, *ids]])[0, len(start) - 1 :]
    first = rule.log_probs(logits_TV[:1], torch.tensor([True]))[0, ids[0]]
    rest = [logits_TV[i].log_softmax(-1)[token] for i, token in enumerate(ids) if i > 0]
    return (first + sum(rest)).item()


@torch.no_grad()
def test_samples_carry_their_log_q_and_log_reward(policy):
    samples = policy.sample(PROMPT, n=40, seed=3)
    assert samples == policy.sample(PROMPT, n=40, seed=3) != policy.sample(PROMPT, n=40, seed=4)
    condition, lm = policy.condition(PROMPT), policy.lm
    context = condition.terms[0].context
    for sample in samples:
        ids, start = lm.encode(sample.text), lm.encode_prompt(PROMPT)
        if lm.decode(ids) != sample.text or len(ids) >= policy.rule.max_len:
            continue
        logits_TV = lm.whole_logits([[*start, *ids]])[0, len(start) - 1 :]
        log_p_TV = policy.rule.log_probs(logits_TV, torch.ones(len(ids) + 1, dtype=torch.bool))
        tokens = [*ids, policy.rule.terminator]
        log_q = sum(log_p_TV[i, token].item() for i, token in enumerate(tokens))
        assert sample.log_q == pytest.approx(log_q, abs=1e-3)
        with lm.reference():
            whole = lm.encode_prompt(context)
            logits_TV = lm.whole_logits([[*whole, *ids]])[0, len(whole) - 1 :]
        log_p_TV = policy.rule.log_probs(logits_TV, torch.ones(len(ids) + 1, dtype=torch.bool))
        log_p = sum(log_p_TV[i, token].item() for i, token in enumerate(ids))
        log_r = log_p + suffix_log_prob(policy, context, sample.text, ". The answer is -2.")
        assert sample.log_reward == pytest.approx(log_r, abs=1e-3)
        return
    pytest.fail("no sample was short enough to be checked")


@torch.no_grad()
def test_predict_is_the_bayesian_model_average(policy):
    answers = ["-2", "7", "16"]
    shares = policy.predict(PROMPT, answers, n=5, seed=1)
    assert list(shares) == answers and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    context = policy.condition(PROMPT).terms[0].context
    expected = torch.zeros(3)
    for sample in policy.sample(PROMPT, n=5, seed=1):
        scores = [
            suffix_log_prob(policy, context, sample.text, f". The answer is {answer}.")
            for answer in answers
        ]
        # Unnormalised: a sample under which no answer is likely says little.
        expected += torch.tensor(scores).exp() / 5
    expected /= expected.sum()
    torch.testing.assert_close(torch.tensor(list(shares.values())), expected, atol=1e-4, rtol=1e-3)


def test_an_answer_that_is_given_twice_counts_once(policy):
    once = policy.predict(PROMPT, ["-2", "7"], n=3, seed=1)
    assert policy.predict(PROMPT, (a for a in ["-2", "7", "-2"]), n=3, seed=1) == once


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("n", {"n": 0}),
        ("temperature", {"temperature": -1.0}),
        ("temperature", {"temperature": math.nan}),
        ("prompt", {"prompt": "The king " * 1000}),
    ],
)
def test_arguments_out_of_range_are_user_errors(policy, where, options):
    with pytest.raises(UserError) as caught:
        policy.sample(**({"prompt": PROMPT} | options))
    assert [problem.where for problem in caught.value.problems] == [where]


def test_an_answer_may_be_too_long_for_the_context(policy):
    with pytest.raises(UserError, match="more than the model's context of 512"):
        policy.predict(PROMPT, ["-2", "7 " * 600], n=1)


def test_a_typed_question_has_the_posterior_that_training_gave_it(policy):
    known = policy.condition(PROMPT)
    assert known == policy.task.condition_for(PROMPT, policy.seed) or known.demonstrations
    data = policy.task.load(policy.seed)
    for condition in (data.train[-1], data.evaluation[0]):
        typed = policy.task.condition_for(condition.prompt, policy.seed)
        assert (typed.terms, typed.answer) == (condition.terms, condition.answer)


def test_without_a_posterior_there_is_no_log_reward_and_no_prediction(policy):
    assert [s.log_reward for s in policy.sample("Good morning", n=2)] == [None, None]
    with pytest.raises(UserError, match="cannot tell"):
        policy.predict("Good morning", ["1", "2"])
    with pytest.raises(UserError, match="two different"):
        policy.predict(PROMPT, ["1", "1"])


def test_modes_on_the_command_line(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "[run]")
    before = contents(folder)
    assert exit_code("mode=sample", f"run={folder}", f"prompt={PROMPT}", "n=3") == 0
    assert "log q" in capsys.readouterr().out
    # What looks like rich's markup is text.
    answers = "answers=[-2,'[/b]']"
    assert exit_code("mode=predict", f"run={folder}", f"prompt={PROMPT}", answers) == 0
    said = capsys.readouterr().out
    assert "probability" in said and "[/b]" in said
    assert exit_code("mode=evaluate", f"run={folder}", "evaluation.final=2") == 0
    (left,) = folder.glob("evaluations/**/metrics.json")
    assert "[run]/evaluations" in capsys.readouterr().out
    assert metrics_of(left.parent)["final/n_questions/3_operands"] == 2
    assert contents(folder).items() >= before.items()


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["mode=sample"], {"run", "prompt"}),
        (["mode=predict", "prompt=x", "answers=[1]"], {"run", "answers"}),
        (["mode=dream"], {"mode"}),
        (["mode=sample", "run=/no/run", "prompt=x"], {"run"}),
        (["prompt=x"], {"prompt"}),
        (["n=0"], {"n"}),
        (["-m", "mode=evaluate", "run=/tmp"], {"run"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors(argv, where):
    with pytest.raises(UserError) as caught:
        jobs(*argv)
    assert {problem.where for problem in caught.value.problems} == where


def test_an_unfinished_run_is_said_to_be_one(finished, tmp_path):
    for name in ("overrides.yaml", "config.yaml"):
        (tmp_path / name).write_text((finished / name).read_text())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="not finished"):
        Policy.load(tmp_path)
