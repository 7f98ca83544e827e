"""Scoring whole strings, repeated strings and chunks: the same numbers as the plain way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.evaluation.draw import Drawing, base_log_likelihood, string_scores
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_policy, score_strings, score_suffixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.tasks.random_number import RandomNumbers
from tests.tiny_models import as_trajectories, tiny_lm

RULE = StringRule(terminator=1, min_len=0, max_len=3)


def test_a_forward_has_at_most_so_many_tokens(monkeypatch):
    """Contexts and suffixes count for whole strings; of a policy whose activations are recomputed, states."""
    lm, n_rows, read = tiny_lm(adapter="random"), [], []
    extend, prefill = lm.extend, lm.prefill
    monkeypatch.setattr(lm, "prefill", lambda prompts: read.append(1) or prefill(prompts))
    monkeypatch.setattr(lm, "extend", lambda *given: n_rows.append(len(given[1])) or extend(*given))
    rows = as_trajectories([[3, 4, 5]] * 12)
    given = GivenStrings([[2, 5, 3]], [[1, 3]], rows, RULE)
    expected_B = score_strings(lm, given)
    lm.max_tokens_per_forward = 3 * (3 + 3 + 2)
    torch.testing.assert_close(score_strings(lm, given), expected_B)
    assert n_rows == [12, 3, 3, 3, 3] and len(read) == 2, "contexts once, whatever the pieces"
    n_rows.clear()
    with torch.no_grad():
        score_policy(lm, [[2, 5, 3]], rows, RULE)
    assert n_rows == [4, 4, 4], "of prompt and string, 6 tokens each"
    n_rows.clear()
    lm.recompute_above = 2 * (3 + 1)
    score_policy(lm, [[2, 5, 3]], rows, RULE)
    assert n_rows == [2] * 6


@pytest.mark.parametrize("strings", [[[], []], [[3, 4, 5], []], [[3] * 3] * 12])
def test_ranks_that_share_weights_run_equally_many_forwards_with_gradients(strings):
    """Whatever their strings are; and the numbers stay the same."""
    lm, forwards = tiny_lm(adapter="random"), []
    rows = as_trajectories(strings)
    contexts, suffixes = [[2, 5, 3]], [[4]]
    plain = (
        score_policy(lm, contexts, rows, RULE),
        score_suffixes(lm, GivenStrings(contexts, suffixes, rows, RULE)),
    )
    lm.lockstep = SimpleNamespace(announce=lambda: forwards.append(1))
    lm.max_tokens_per_forward = 16
    policy = score_policy(lm, contexts, rows, RULE)
    assert len(forwards) == 2, "the prompt and the strings"
    suffix_B = score_suffixes(lm, GivenStrings(contexts, suffixes, rows, RULE))
    assert len(forwards) == 4
    for name in ("log_pf_BT", "log_pf_stop_BS"):
        torch.testing.assert_close(getattr(policy, name), getattr(plain[0], name))
    torch.testing.assert_close(suffix_B, plain[1])


@pytest.mark.parametrize("answers", [False, True])
def test_base_model_and_reference_read_the_last_prompts_once(monkeypatch, answers):
    """Where nothing can change between; the scores are the same to the last bit."""
    lm, read = tiny_lm(adapter="random"), []
    if answers:
        lm.add_answer_adapter(LoraSettings(rank=2), seed=0)
    forward = lm._read
    monkeypatch.setattr(lm, "_read", lambda prompts: read.append(prompts) or forward(prompts))
    rows = as_trajectories([[3, 4, 5], [4], [5, 3]], [0, 1, 1])
    one, other = [[2, 5, 3], [5]], [[2, 5], [5]]

    def scores(contexts, suffix) -> torch.Tensor:
        return score_strings(lm, GivenStrings(contexts, [suffix] * 2, rows, RULE))

    def all_scores() -> list[torch.Tensor]:
        with lm.reference():
            found = [scores(one, [1]), scores(one, [3, 4]), scores(other, [4])]
        with lm.base():
            return [*found, scores(other, [4]), scores(one, [1])]

    plain = all_scores()
    assert len(read) == 5
    with lm.prompts_kept():
        read.clear()
        kept = all_scores()
        # The answer adapter is another model.
        assert read == [one, other, *([other] if answers else []), one]
        read.clear()
        score_policy(lm, one, rows, RULE)
        with torch.no_grad():
            score_policy(lm, one, rows, RULE)
        with lm.base():
            score_policy(lm, one, rows, RULE)
        assert read == [one] * 3, "the policy, and what gradients flow to"
    for one_B, other_B in zip(kept, plain, strict=True):
        assert torch.equal(one_B, other_B)
    all_scores()
    assert len(read) == 8


def test_distinct_keeps_one_row_a_string_and_condition():
    rows = as_trajectories([[3], [3, 4], [3], [3], []], [0, 0, 0, 1, 1])
    distinct, inverse_B = rows.distinct()
    assert [distinct.ids(i) for i in range(len(distinct))] == [[3], [3, 4], [3], []]
    assert distinct.condition_B.tolist() == [0, 0, 1, 1]
    assert inverse_B.tolist() == [0, 1, 0, 2, 3]


def test_concatenated_sorts_by_condition_and_keeps_order():
    one = as_trajectories([[3], [4, 5]], [0, 1])
    two = as_trajectories([[6, 7, 8], []], [0, 1])
    whole = Trajectories.concatenated([one, two])
    assert [whole.ids(i) for i in range(4)] == [[3], [6, 7, 8], [4, 5], []]
    assert whole.condition_B.tolist() == [0, 0, 1, 1]
    assert whole.is_action_BT.sum(dim=1).tolist() == [1, 3, 2, 0]


def test_a_repeated_string_has_one_score():
    lm, task = tiny_lm(), RandomNumbers()
    condition = task.load(0).train[0]
    prompt = lm.encode_prompt(condition.prompt)
    rows = sample(lm, [prompt], 50, RULE, torch.Generator().manual_seed(0))
    drawing = Drawing(lm, task, RULE, [condition], EvaluationSettings())
    log_reward_B, log_pf_B, log_p_BK = string_scores(drawing, [condition], rows)
    assert log_p_BK.shape == (50, 0) and len(log_reward_B) == len(log_pf_B) == 50
    seen = {}
    for row, log_pf in enumerate(log_pf_B.tolist()):
        assert log_pf == seen.setdefault(tuple(rows.ids(row)), log_pf)


def test_likelihood_is_of_the_text_under_the_bare_base_model():
    """No suffix, no weight, no adapter: log p(z ⊤ | context), or of the prompt without a term."""
    lm = tiny_lm(adapter="random")
    lm.add_answer_adapter(LoraSettings(rank=2, alpha=2), seed=1)
    with torch.no_grad():
        for parameter in lm.answer_parameters():
            parameter.add_(0.3)
    dot = lm.encode(".")[0]
    rule = StringRule(dot, min_len=0, max_len=3)
    conditions = [
        Condition("a", "QA", (Term("ab", ". c", weight=2.0), Term("b"))),
        Condition("b", "Q", ()),
    ]
    strings = ["cd", "", "e"]
    rows = as_trajectories([lm.encode(z) for z in strings], [0, 0, 1])
    drawing = Drawing(lm, RandomNumbers(), rule, conditions, EvaluationSettings())
    found_B = base_log_likelihood(drawing, conditions, rows)
    plain = tiny_lm()
    for value, context, z in zip(found_B.tolist(), ("ab", "ab", "Q"), strings, strict=True):
        ids = [*plain.encode_prompt(context), *plain.encode(z + ".")]
        log_p_TV = plain.whole_logits([ids])[0].log_softmax(-1)
        first = len(context)
        expected = sum(log_p_TV[at - 1, ids[at]].item() for at in range(first, len(ids)))
        assert value == pytest.approx(expected, abs=1e-4)
