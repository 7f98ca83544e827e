"""Factors of constraints: penalties, a classifier's log-probability, and what is said of them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from gfn_runner.callbacks.satisfaction import SatisfactionCallback
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import StepOutput, Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm.classifier import SequenceClassifier, classifier, label_problems
from gfn_runner.rewards.factors import ClassifierFactor, ConstraintPenalty
from gfn_runner.rewards.reward import BatchedConstraint, CheckableConstraint
from gfn_runner.rewards.text_constraints import ClassifierLabel, TextConstraint
from gfn_runner.tasks.constrained import ConstrainedData, ConstrainedGeneration

from ..tiny_models import character_tokenizer, tiny_lm

LABELS = {0: "sad", 1: "happy", 2: "Neutral"}


def condition(key: str = "a", constraint: TextConstraint | None = None) -> Condition:
    facts = {} if constraint is None else {"constraint": constraint}
    return Condition(key, "a", (Term("a"),), facts=facts)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def make_classifier(folder, architecture: str = "llama", **options):
    tokenizer = character_tokenizer()
    labels = {"id2label": LABELS, "label2id": {name: place for place, name in LABELS.items()}}
    sizes = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5,
    }  # fmt: skip
    if architecture == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    config = AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=0, eos_token_id=0,
        **(sizes | labels | options),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("judge") / "model")


# -- penalties --------------------------------------------------------------------------------------


def test_each_violation_costs_the_penalty(lm):
    constraint = ConstraintPenalty(penalty=7.0)
    assert isinstance(constraint, CheckableConstraint)
    assert not isinstance(constraint, BatchedConstraint)
    asked = condition(constraint=TextConstraint(words=("ab", "cd"), max_words=1))
    for text, factor in (("ab", -7.0), ("ab cd", -7.0), ("", -14.0), ("a b", -21.0)):
        assert constraint.log_factor(lm, asked, lm.encode(text)) == factor
    assert constraint.log_factor(lm, condition(), lm.encode("a")) == 0.0
    assert constraint.satisfied(condition(), "anything")
    assert not constraint.satisfied(asked, "ab cd") and not constraint.satisfied(asked, "ab")


# -- classifiers ------------------------------------------------------------------------------------


def plain_log_prob(folder: str, text: str, label: int) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = character_tokenizer()(text)["input_ids"] or [0]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)[label].item()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "bert"])
def test_log_probabilities_do_not_depend_on_what_is_asked_together(tmp_path, architecture):
    folder = make_classifier(tmp_path, architecture)
    texts = ["abc", "", "d", "abd", "0123456789" * 3, "abc"]
    together_NL = classifier(folder).log_probs(texts)
    assert together_NL.dtype == torch.float32
    for place, text in enumerate(texts):
        for label in LABELS:
            expected = plain_log_prob(folder, text, label)
            assert together_NL[place, label].item() == pytest.approx(expected, abs=1e-5)
    assert together_NL.exp().sum(-1).tolist() == pytest.approx([1.0] * 6, abs=1e-5)
    assert together_NL.std(0).max() > 0.05


def test_the_factor_is_the_weighted_log_probability(lm, judge, monkeypatch):
    constraint = ClassifierFactor()
    assert isinstance(constraint, BatchedConstraint)
    assert not isinstance(constraint, CheckableConstraint)
    happy = condition("h", TextConstraint(classifier=ClassifierLabel(judge, "happy", 2.0)))
    neutral = condition("n", TextConstraint(classifier=ClassifierLabel(judge, "neutral")))
    asked = [(happy, "ab"), (condition(), "ab"), (neutral, "ab"), (happy, ""), (happy, "ab")]
    expected = [2 * plain_log_prob(judge, "ab", 1), 0.0, plain_log_prob(judge, "ab", 2),
                2 * plain_log_prob(judge, "", 1), 2 * plain_log_prob(judge, "ab", 1)]  # fmt: skip
    seen, original = [], SequenceClassifier.log_probs

    def log_probs(self, texts):
        seen.append(list(texts))
        return original(self, texts)

    monkeypatch.setattr(SequenceClassifier, "log_probs", log_probs)
    pairs = [(c, lm.encode(text)) for c, text in asked]
    assert constraint.log_factors(lm, pairs) == pytest.approx(expected, abs=1e-5)
    assert seen == [["", "ab"]]
    for pair, value in zip(pairs, expected, strict=True):
        assert constraint.log_factor(lm, *pair) == pytest.approx(value, abs=1e-5)
    assert constraint.log_factors(lm, []) == []
    assert constraint.probabilities(condition(), ["a"]) is None
    (share,) = constraint.probabilities(neutral, ["ab"])
    assert share == pytest.approx(torch.tensor(expected[2]).exp().item(), abs=1e-5)


def test_independent_labels_have_each_their_own_sigmoid(tmp_path):
    folder = make_classifier(tmp_path, problem_type="multi_label_classification")
    log_p_NL = classifier(folder).log_probs(["abc"])
    assert (log_p_NL < 0).all() and log_p_NL.exp().sum() != pytest.approx(1.0, abs=1e-3)


def test_labels_by_name_and_number(judge):
    model = classifier(judge)
    assert [model.index(label) for label in ("SAD", "1", "neutral")] == [0, 1, 2]
    with pytest.raises(UserError, match=r"no label 'hapy'(.|\n)*did you mean happy\?"):
        model.index("hapy")
    with pytest.raises(UserError, match="a number from 0 to 2"):
        model.index("3")


def test_what_is_wrong_with_a_classifier_is_said_before_its_weights_load(judge, tmp_path):
    assert not list(label_problems(judge, [("x", "happy"), ("y", "0")]))
    (problem,) = label_problems(judge, [("file, line 3, field label", "good"), ("y", "sad")])
    assert problem.where == "file, line 3, field label" and "sad, happy, Neutral" in problem.allowed
    (problem,) = label_problems(str(tmp_path), [("x", "a")])
    assert "no config.json" in problem.what and "sequence classifier" in problem.allowed
    (tmp_path / "config.json").write_text("{")
    problem, *_ = label_problems(str(tmp_path), [("x", "a")])
    assert "cannot read the config" in problem.what
    one_logit = make_classifier(tmp_path, id2label={0: "score"}, label2id={"score": 0})
    (problem,) = label_problems(one_logit, [("x", "LABEL_0")])
    assert "at least two labels" in problem.allowed


# -- constraints that are never met ---------------------------------------------------------------------


def step(lm, conditions, texts, *, from_replay=False):
    ids = [lm.encode(text) for text, _ in texts]
    rows = Trajectories.from_rows(ids, [[True] * len(i) for i in ids], [c for _, c in texts])
    return {"output": StepOutput(conditions, rows, None, None, None, from_replay)}


def test_a_condition_whose_constraints_are_never_met_is_named_once(lm, caplog):
    module = SimpleNamespace(lm=lm, constraints=lambda: [ConstraintPenalty(), ClassifierFactor()])
    callback = SatisfactionCallback(warn_after=3)
    conditions = [
        condition("never", TextConstraint(words=("ab",), max_words=0)),
        condition("once", TextConstraint(words=("ab",))),
        condition("free"),
    ]
    texts = [("ab", 0), ("a", 0), ("a", 1), ("a", 2)]
    with caplog.at_level(logging.WARNING):
        replayed = step(lm, conditions, texts, from_replay=True)
        callback.on_train_batch_end(None, module, replayed, None, 0)
        assert not callback.draws
        callback.on_train_batch_end(None, module, step(lm, conditions, texts), None, 0)
        assert callback.draws == {"never": 2, "once": 1} and callback.met == {"free"}
        assert not caplog.messages
        again = SatisfactionCallback(warn_after=3)
        again.load_state_dict(callback.state_dict())
        texts = [("b", 0), ("b", 0), ("ab", 1), ("a", 1)]
        again.on_train_batch_end(None, module, step(lm, conditions, texts), None, 0)
        again.on_fit_end(None, module)
    assert again.met == {"free", "once"}
    first, last = caplog.messages
    assert first.startswith("none of 3 samples of condition 'never' met its constraints")
    assert last.startswith("no sample met the constraints of 1 of 3 conditions")


def test_constrained_generation_asks_a_classifier_too(lm, judge, file):
    asked = {"name": judge, "label": "happy", "weight": 3.0}
    records = {"prompt": "A glad line:"}, {"words": ["ab"]}
    path = file(*(record | {"classifier": asked} for record in records))
    task = ConstrainedGeneration(data=ConstrainedData(path, path), penalty=5.0)
    glad, both = task.load(0).evaluation
    assert glad.group == "no_words" and both.group == "1_words"
    log_p = plain_log_prob(judge, "cd", 1)
    for asked_of, expected in ((glad, 3 * log_p), (both, 3 * log_p - 5)):
        factors = [c.log_factor(lm, asked_of, lm.encode("cd")) for c in task.constraints()]
        assert sum(factors) == pytest.approx(expected, abs=1e-5)
    samples = [ConditionSamples(c, [], ["cd"], [0.0], [0.0]) for c in (glad, both)]
    measured = task.metrics(samples)
    for group in ("no_words", "1_words"):
        share = measured[f"label_probability/{group}"]
        assert share == pytest.approx(torch.tensor(log_p).exp().item(), abs=1e-5)
    assert measured["satisfied_share/1_words"] == 0
    assert "satisfied_share/no_words" not in measured
