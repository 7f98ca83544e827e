"""Measures of every task by hand-made samples, and resampling against exact weights on a toy."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from gfn_runner.baselines.resampling import resample_base_model
from gfn_runner.baselines.rows import baseline_rows
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.evaluation import optional
from gfn_runner.evaluation.draw import Drawing, draw_answers, policy_log_probs
from gfn_runner.evaluation.measure import measure
from gfn_runner.evaluation.optional import OptionalMetrics
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.metrics.overlap import bleu, gleu
from gfn_runner.rewards.reward import log_reward
from gfn_runner.tasks.random_number import RandomNumbers

from ..tiny_models import all_strings, as_trajectories, at_end, tiny_lm
from ..tiny_modules import Bare


class Writing(Bare):
    """Of texts."""

    writes_text = True


class Own(Bare):
    """Means something of its own by a name that every task has."""

    def metrics(self, samples) -> dict[str, float]:
        return {"log_pf/all": 7.0}


def drawn(key: str = "a", group: str = "all", **columns) -> ConditionSamples:
    """Samples of one condition: two, unless others are given."""
    facts = columns.pop("facts", {})
    condition = Condition(key, f"prompt {key}", (Term("x"),), group=group, facts=facts)
    numbers = {"log_reward": (-1.0, -3.0), "log_pf": (-2.0, -1.0)}
    return ConditionSamples(condition, **({"votes": (), "singles": ("u", "v")} | numbers | columns))


MEANS = {
    "over samples, the best over conditions": (
        [
            drawn("a", log_pf=(-2.0, -4.0), log_likelihood=(-1.0, -2.0)),
            drawn("b", log_pf=(-6.0, -8.0), log_likelihood=(-5.0, -4.0)),
        ],
        {"log_pf/all": -5.0, "log_pf_max/all": -4.0, "log_reward/all": -2.0}
        | {"log_likelihood/all": -3.0, "log_likelihood_max/all": -2.5},
    ),
    "sets apart": (
        [drawn("a", "one"), drawn("b", "two", log_pf=(-3.0, -5.0))],
        {"log_pf/one": -1.5, "log_pf/two": -4.0},
    ),
    "strings of probability 0 left out": (
        [
            drawn("a", log_reward=(-1.0, -math.inf), log_likelihood=(-1.0, -math.inf)),
            drawn("b", log_reward=(-2.0, -4.0), log_likelihood=(-3.0, -5.0)),
            drawn("c", log_reward=(-math.inf,) * 2, log_likelihood=(math.nan,) * 2),
        ],
        {"log_likelihood/all": -3.0, "log_likelihood_max/all": -2.0, "log_reward/all": -7 / 3}
        # One finite φ is no spread: only the second condition counts.
        | {"elbo/all": (0.0 - 3.0) / 2},
    ),
}


@pytest.mark.parametrize("which", MEANS)
def test_means(which):
    samples, expected = MEANS[which]
    measured = measure(Bare(), samples)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)


def test_a_tasks_own_names_win():
    assert measure(Own(), [drawn()])["log_pf/all"] == 7.0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_evidence_is_that_of_phi(temperature):
    rewards = [(-1.0, -3.0, -2.0), (-4.0, -1.0, 0.5)]
    log_pf = [(-2.0, -1.0, -1.5), (-3.0, -2.0, -1.0)]
    samples = [
        drawn(str(i), singles=("u",) * 3, log_reward=rewards[i], log_pf=log_pf[i]) for i in (0, 1)
    ]
    measured = measure(Bare(), samples, temperature=temperature)
    phi = np.array(rewards) / temperature - np.array(log_pf)
    weight = np.exp(phi)
    expected = {
        "phi_spread": np.sqrt(((phi - phi.mean(1, keepdims=True)) ** 2).mean(1)),
        "elbo": phi.mean(1),
        "log_z_bound": np.log(weight.mean(1)),
        "ess": weight.sum(1) ** 2 / (weight**2).sum(1) / 3,
    }
    for name, of_condition in expected.items():
        assert measured[f"{name}/all"] == pytest.approx(of_condition.mean()), name


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("inside", [1.0, 0.6])
def test_exact_distances_count_what_is_written_outside_the_support(inside, temperature):
    log_reward, q = np.array([-1.0, -2.0, -0.5]), inside * np.array([0.2, 0.5, 0.3])
    samples = drawn(support_log_reward=log_reward.tolist(), support_log_pf=np.log(q).tolist())
    measured = measure(Bare(), [samples], temperature=temperature)
    target = np.exp(log_reward / temperature) / np.exp(log_reward / temperature).sum()
    # A fourth outcome stands for all other strings: the posterior has nothing there.
    both = zip([*target, 0.0], [*q, 1 - inside], strict=True)
    # The largest difference in the probability of any event.
    assert measured["exact_tv/all"] == pytest.approx(sum(max(0.0, p - r) for p, r in both))
    kl = sum(p * math.log(p / r) for p, r in zip(target, q, strict=True))
    assert measured["exact_kl/all"] == pytest.approx(kl)


def test_the_support_of_a_task_is_scored_under_policy_and_posterior():
    """By the law of all strings, of which the numbers are a part."""
    lm, task = tiny_lm(characters=" 012n:.", adapter="random"), number_task(penalty=3.0)
    rule, condition = string_rule(lm, task, 2), task.load(0).evaluation[0]
    options = EvaluationSettings(votes=0, singles=2)
    generator = torch.Generator().manual_seed(0)
    (samples,) = draw_answers(Drawing(lm, task, rule, [condition], options), generator)
    strings = all_strings(lm.vocab_size, rule)
    rows = as_trajectories(strings)
    with torch.no_grad():
        scores = score_policy(lm, [lm.encode_prompt("n:")], rows, rule)
    law = (scores.log_pf_BT.sum(1) + at_end(scores.log_pf_stop_BS, rows)).exp().double().numpy()
    binomial = {" 0": 0.09, " 1": 0.42, " 2": 0.49}
    target = np.array([binomial.get(lm.decode(z), 0.0) for z in strings])
    measured = measure(task, [samples])
    assert measured["exact_tv/numbers"] == pytest.approx(np.abs(law - target).sum() / 2, abs=1e-5)
    own = target > 0
    kl = (target[own] * np.log(target[own] / law[own])).sum()
    assert measured["exact_kl/numbers"] == pytest.approx(kl, abs=1e-4)


def test_overlap_is_of_the_samples_that_have_references():
    texts, reference = ("the cat sat on it", "a dog ran"), ("the cat sat",)
    with_reference = drawn("a", singles=texts, facts={"references": reference})
    measured = measure(Bare(), [with_reference, drawn("b", singles=("x", "y"))])
    for name, metric in (("bleu/all", bleu), ("gleu/all", gleu)):
        assert measured[name] == pytest.approx(metric(texts, [reference] * 2)) and measured[name]
        assert name not in measure(Bare(), [drawn()])


def test_diversity_is_of_one_condition_and_of_tasks_that_write_text():
    samples = [drawn("a", singles=("red fox", "blue sea")), drawn("b", singles=("same", "same"))]
    measured = measure(Writing(), samples)
    # No word in common, and all in common; between conditions nothing is compared.
    assert measured["diversity/all"] == pytest.approx(0.5, abs=1e-6)
    assert measured["unique/all"] == pytest.approx(0.75)
    assert measured["distinct_2/all"] == pytest.approx(0.5)
    assert 0 < measured["self_bleu/all"] < 1
    names = {"diversity/all", "unique/all", "distinct_2/all", "self_bleu/all"}
    assert not names & measure(Bare(), samples).keys()
    single = drawn(singles=("one",), log_reward=(-1.0,), log_pf=(-1.0,))
    assert not names & measure(Writing(), [single]).keys()


@pytest.mark.parametrize("loads", [True, False])
def test_bertscores_model_is_loaded_once_and_what_is_missing_said_once(loads, caplog, monkeypatch):
    asked, means = [], [torch.tensor([0.5])] * 3

    def scorer(*options, **_):
        asked.append(options)
        if not loads:
            raise OSError("no such model")
        return SimpleNamespace(score=lambda texts, references: means)

    monkeypatch.setattr("gfn_runner.metrics.overlap._bert_scorer", lru_cache(scorer))
    facts = {"references": ("r",)}
    samples = [drawn("a", "one", facts=facts), drawn("b", "two", facts=facts)]
    optional = OptionalMetrics("m", None)
    rows = [optional(samples), optional(samples)]
    assert len(asked) == 1
    assert [row.get("bertscore_f1/two") for row in rows] == [0.5 if loads else None] * 2
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if loads else 1)
    assert loads or said[0].startswith("BERTScore is left out (OSError: no such model)")


def test_the_first_sample_of_each_condition_is_scored_and_judged(monkeypatch):
    asked = []

    def rate(fields):
        asked.extend(fields)
        metrics = {"judge_rating": 4.0, "judge_failures": 1.0}
        return SimpleNamespace(failures={"no reply": 1}, metrics=lambda: metrics)

    def scores(texts, references, model):
        assert (list(texts), list(references), model) == ([" u"], [("r",)], "m")
        return {"bertscore_precision": 0.1, "bertscore_recall": 0.2, "bertscore_f1": 0.3}

    monkeypatch.setattr(optional, "Judge", lambda settings: SimpleNamespace(rate=rate))
    monkeypatch.setattr(optional, "bert_scores", scores)
    judge = {"base_url": "http://localhost:1/v1", "model": "m"}
    options = EvaluationSettings(bertscore="m", judge=judge)
    facts = {"references": ("r",), "beginning": "B.", "ending": "E."}
    samples = [drawn("a", "one", singles=(" u", "v"), facts=facts)]
    assert OptionalMetrics(options.bertscore, options.judge)(samples) == {
        "bertscore_f1/one": 0.3, "bertscore_precision/one": 0.1, "bertscore_recall/one": 0.2,
        "judge_rating/one": 4.0, "judge_failures/one": 1.0,
    }  # fmt: skip
    assert asked == [
        {"prompt": "prompt a", "sample": "u", "middle": "u", "beginning": "B.", "ending": "E."}
    ]


def number_task(**options) -> RandomNumbers:
    return RandomNumbers(
        prompt="n:", low=0, high=2, distribution="binomial", parameter=0.7,
        max_len=2, eval_max_len=2, **options,
    )  # fmt: skip


def flat_lm(**options):
    """No string is so unlikely that importance weights tell nothing."""
    lm = tiny_lm(characters=" 012n:.", **options)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(0.15)
    return lm


@pytest.fixture(scope="module")
def toy():
    """Model, task, rule and condition: six letters, at most two tokens."""
    lm, task = flat_lm(adapter="random"), number_task(penalty=1.5)
    return lm, task, string_rule(lm, task, 2), task.load(0).evaluation[0]


@torch.no_grad()
def posterior(toy, temperature: float) -> dict[str, float]:
    lm, task, rule, condition = toy
    rows = as_trajectories(all_strings(lm.vocab_size, rule))
    log_r_B = at_end(log_reward(lm, [condition], rows, rule, task.constraints()), rows)
    share_B = (log_r_B.double() / temperature).softmax(0).tolist()
    return {lm.decode(rows.ids(row)): share for row, share in enumerate(share_B)}


def resampled(toy, temperature: float, draws: int, kept: int) -> ConditionSamples:
    lm, task, rule, condition = toy
    options = EvaluationSettings(singles=kept, votes=3, resampled=draws)
    (samples,) = resample_base_model(Drawing(lm, task, rule, [condition], options, 1, temperature))
    return samples


def test_kept_strings_are_distributed_as_the_posterior(toy):
    lm, task, rule, condition = toy
    samples = resampled(toy, 2.0, 40_000, 2000)
    target, counts = posterior(toy, 2.0), Counter(samples.singles)
    assert len(samples.singles) == 2000 and samples.votes == ()
    assert counts.keys() <= target.keys()
    expected = [2000 * share for share in target.values()]
    assert chisquare([counts[text] for text in target], expected).pvalue > 0.01
    # The test would notice the posterior at another temperature.
    other = [2000 * share for share in posterior(toy, 1.4).values()]
    assert chisquare([counts[text] for text in target], other).pvalue < 1e-6
    # They bring their own reward; their density is the posterior's, as far as the draws tell Z.
    strings = as_trajectories([lm.encode(text) for text in samples.singles])
    log_r_BS = log_reward(lm, [condition], strings, rule, task.constraints())
    assert samples.log_reward == pytest.approx(at_end(log_r_BS, strings).tolist(), abs=1e-4)
    assert len(samples.term_log_probs) == 2000
    known = [math.log(target[text]) for text in samples.singles]
    assert samples.log_pf == pytest.approx(known, abs=0.1)


def test_the_draws_behind_what_is_kept_have_their_effective_sample_size(toy):
    """Against its limit: 1 over the mean square of the normalised weights under the base model."""
    lm, task, rule, condition = toy
    samples, target = resampled(toy, 1.0, 20_000, 50), posterior(toy, 1.0)
    with torch.no_grad(), lm.base():
        rows = as_trajectories(all_strings(lm.vocab_size, rule))
        prompts = [lm.encode_prompt(condition.prompt)] * len(rows)
        log_p_B = policy_log_probs(lm, prompts, rows, rule)
    texts = [lm.decode(rows.ids(row)) for row in range(len(log_p_B))]
    square = sum(target[t] ** 2 / math.exp(p) for t, p in zip(texts, log_p_B.tolist(), strict=True))
    assert samples.draws_ess == pytest.approx(1 / square, rel=0.05) and samples.draws_ess < 0.9
    assert measure(task, [samples])["ess/numbers"] == samples.draws_ess


def test_the_draws_are_of_the_base_model(toy):
    without_adapter = (flat_lm(), *toy[1:])
    samples = [resampled(given, 1.0, 200, 50).singles for given in (toy, without_adapter)]
    assert samples[0] == samples[1]


def test_rows_of_the_base_model_at_temperatures(toy):
    """Token by token, with the adapter off; log q stays the one at temperature 1."""
    lm, task, rule, condition = toy
    options = EvaluationSettings(
        singles=4000, votes=0, baseline_shots=(0,), baseline_temperatures=(0.5, 2.0), resampled=10
    )
    rows = dict(baseline_rows(Drawing(lm, task, rule, [condition], options, 3, 1.0)))
    assert list(rows) == ["base_0_shot", "base_at_T0.5", "base_at_T2", "resampled"]
    base = flat_lm()
    logits_NV = base.prefill([base.encode_prompt("n:")]).last_logits_NV
    law_V = rule.log_probs(logits_NV, torch.tensor([True]))
    for name, temperature in (("base_0_shot", 1.0), ("base_at_T0.5", 0.5), ("base_at_T2", 2.0)):
        (samples,) = rows[name]
        first = Counter(text[:1] or "." for text in samples.singles)
        share = (law_V[0].double() / temperature).softmax(0).tolist()
        expected = [4000 * share[base.encode(letter)[0]] for letter in " 012n:."]
        assert chisquare([first[letter] for letter in " 012n:."], expected).pvalue > 0.001
        empty = [q for text, q in zip(samples.singles, samples.log_pf, strict=True) if not text]
        expected = [law_V[0, rule.terminator].item()] * len(empty)
        assert empty and empty == pytest.approx(expected, abs=1e-4)
