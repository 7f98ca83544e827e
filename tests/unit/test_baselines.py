"""Rows of baselines against what they come to on spaces that can be listed."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from gfn_runner.baselines.decoding import Decoding
from gfn_runner.baselines.exact import Exact
from gfn_runner.baselines.prompting import Prompting
from gfn_runner.baselines.resampling import Resampling
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import TaskData
from gfn_runner.errors import UserError
from gfn_runner.evaluation.draw import Drawing, draw_answers
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.rewards.reward import string_log_reward

from ..tiny_models import all_strings, as_trajectories, tiny_lm
from ..tiny_modules import Bare

CHARACTERS = "ab."
CONDITIONS = [
    Condition("one", "ba", (Term("ba"), Term("b", "a", weight=0.5)), answer="a"),
    Condition("two", "aab", (Term("aab", weight=0.5),), answer="b"),
]


class Listed(Bare):
    """Strings of up to two letters, all listed; the answer is part of the posterior."""

    def support(self, condition):
        return ["", "a", "b", "aa", "ab", "ba", "bb"]

    def without_answer(self, condition):
        if len(condition.terms) == 1:
            return condition
        return Condition(condition.key, condition.prompt, condition.terms[:1])

    def few_shot_prompt(self, condition, shots, rng):
        if shots > 50:
            raise UserError.one("evaluation.baseline_shots", f"given {shots}")
        return "ab." * shots + condition.prompt


def drawing(temperature: float = 1.0, **options) -> Drawing:
    lm = tiny_lm("llama", CHARACTERS, adapter="random")
    task = Listed(max_len=2, eval_max_len=2)
    settings = EvaluationSettings(**({"votes": 3, "singles": 4} | options))
    rule = string_rule(lm, task, 2)
    return Drawing(lm, task, rule, CONDITIONS, settings, seed=0, temperature=temperature)


def posterior(d: Drawing, condition: Condition) -> dict[str, float]:
    """R^(1/T) / Z of every string, from the log-rewards alone."""
    strings = all_strings(len(CHARACTERS), d.rule)
    log_reward_N, _ = string_log_reward(d.lm, [condition], as_trajectories(strings), d.rule)
    share_N = (log_reward_N / d.temperature).double().softmax(dim=0).tolist()
    return {d.lm.decode(ids): share for ids, share in zip(strings, share_N, strict=True)}


def distance(texts, shares: dict[str, float]) -> float:
    counts = Counter(texts)
    return 0.5 * sum(abs(counts[text] / len(texts) - share) for text, share in shares.items())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_exact_row_is_the_posterior(temperature):
    d = drawing(temperature, singles=4000)
    ((name, drawn),) = Exact().rows(d)
    assert name == "exact"
    for samples, condition in zip(drawn, CONDITIONS, strict=True):
        shares = posterior(d, condition)
        assert distance(samples.singles, shares) < 0.03
        for text, log_pf in list(zip(samples.singles, samples.log_pf, strict=True))[:50]:
            assert math.exp(log_pf) == pytest.approx(shares[text], rel=1e-4)
        assert sum(map(math.exp, samples.support_log_pf)) == pytest.approx(1.0)
        assert samples.greedy is None


def test_of_many_draws_the_resampled_are_the_posterior_and_the_best_is_the_likeliest_string():
    d = drawing(singles=4000)
    rows = dict(Resampling(draws=(1, 3000), answers_known=True).rows(d))
    assert list(rows) == ["best_of_1", "resampled_1", "best_of_3000", "resampled_3000"]
    for place, condition in enumerate(CONDITIONS):
        of_one, _, best, resampled = (row[place] for row in rows.values())
        shares = posterior(d, condition)
        assert best.singles == best.votes == [max(shares, key=shares.__getitem__)]
        assert best.log_reward[0] >= of_one.log_reward[0]
        assert distance(resampled.singles, shares) < 0.06
        assert resampled.condition is condition and len(resampled.votes) == 3
        assert 0 < resampled.draws_ess < 1
    for samples in rows["resampled_1"]:
        assert len(set(samples.singles)) == 1, "of one draw nothing else can be kept"


def test_a_hidden_answer_changes_what_is_kept_and_log_reward_is_not_reported():
    d = drawing(singles=4000)
    hidden = dict(Resampling(draws=(3000,)).rows(d))["resampled_3000"]
    first, second = hidden
    blind = posterior(d, d.task.without_answer(CONDITIONS[0]))
    assert distance(first.singles, blind) < 0.06
    assert distance(list(blind), posterior(d, CONDITIONS[0])) > 0.1, "the two posteriors differ"
    assert first.condition is CONDITIONS[0] and not first.log_reward and not first.log_pf
    # Where the answer is no part of the posterior, nothing is hidden.
    assert len(second.log_reward) == 4000


def test_decoders_and_their_larger_selves():
    d = drawing(singles=2, votes=0)
    rows = dict(Decoding(compute=3).rows(d))
    names = ["beam", "diverse_beam", "sampling", "tempered", "nucleus", "top_k"]
    assert list(rows) == ["greedy", *(n for name in names for n in (name, f"{name}_x3"))]
    for place, condition in enumerate(CONDITIONS):
        blind = posterior(d, d.task.without_answer(condition))
        likeliest = sorted(blind, key=blind.__getitem__, reverse=True)
        # Six beams see all seven strings but one: what they keep are the likeliest under R.
        assert rows["beam_x3"][place].singles[0] in likeliest[:2]
        assert len(rows["greedy"][place].singles) == 1
        for name in names:
            more = rows[f"{name}_x3"][place].singles
            assert 1 <= len(more) <= 2 and len(set(more)) == len(more)
            ranks = [likeliest.index(text) for text in more]
            assert ranks == sorted(ranks)
    # The base model decodes, not the policy.
    of_policy, _ = draw_answers(d, torch.Generator().manual_seed(0), at=0.0)
    assert rows["greedy"][0].log_pf[0] != pytest.approx(of_policy.log_pf[0], rel=1e-3)


def test_numbers_of_examples_that_do_not_fit_are_left_out(caplog):
    d = drawing()
    assert d.lm.context_length == 64
    names = [name for name, _ in Prompting(shots=(0, 2, 40)).rows(d)]
    assert names == ["base_0_shot", "base_2_shot"]
    assert "skipping the row with 40 worked examples" in caplog.text


class Unlisted(Listed):
    def support(self, condition):
        return []


def test_what_a_task_cannot_do_is_said():
    data, task = TaskData([], CONDITIONS), Listed(max_len=2, eval_max_len=2)
    (problem,) = Prompting(shots=(0, 60)).unfit(task, data)
    assert problem.where == "baseline.shots" and "60" in problem.what
    assert not list(Prompting(shots=(0,)).unfit(task, data))
    assert [p.where for p in Decoding(decoders=("beams",)).problems()] == ["baseline.decoders"]
    assert not list(Exact().unfit(task, data))
    (problem,) = Exact().unfit(Unlisted(), data)
    assert "cannot list" in problem.what and "resampling" in problem.allowed
