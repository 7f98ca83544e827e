"""The subjectivity task: data, posterior, answers and metrics, without a model."""

from __future__ import annotations

import json
import math
import random
import re

import pytest

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.synthetic.reviews import label_suffix, review_prompt
from gfn_runner.errors import UserError
from gfn_runner.metrics.accuracy import with_interval
from gfn_runner.tasks.subjectivity import Subjectivity, SubjectivityData

GOOD = [("plot one", 0), ("so dull", 1), ("plot two", 0), ("so fine", 1)]
LABELS = ("objective", "subjective")


def lines(*pairs: tuple[str, int]) -> str:
    records = [{"text": t, "label_text": LABELS[n]} for t, n in pairs]
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def task_of(written):
    """A task of two files."""

    def make(train: str, test: str, n_train: int = 50) -> Subjectivity:
        paths = written("train.jsonl", train), written("test.jsonl", test)
        return Subjectivity(data=SubjectivityData(*paths, n_train=n_train), terminator=",")

    return make


def test_generated_reviews_are_balanced_and_none_is_in_both_sets():
    task = Subjectivity(data=SubjectivityData(n_train=20))
    data = task.load(0)
    assert (len(data.train), len(data.evaluation)) == (20, 500) and not data.notes
    keys = [c.key for c in (*data.train, *data.evaluation)]
    assert len(set(keys)) == len(keys)
    for conditions in (data.train, data.evaluation):
        assert sum(c.answer == "objective" for c in conditions) == len(conditions) / 2
    other = task.load(1)
    assert [c.key for c in other.evaluation] == [c.key for c in data.evaluation]
    assert {c.key for c in other.train} != {c.key for c in data.train}


def test_the_posterior_of_a_review():
    condition = Subjectivity().load(0).train[0]
    (term,) = condition.terms
    assert condition.prompt == term.context == review_prompt(condition.key)
    question = "Classify this movie review as objective or subjective:"
    assert term.context == f'{question} "{condition.key}" This review is'
    assert term.suffix == label_suffix("objective"), "as the corpus has it"
    assert (term.suffix, term.rivals) == (", so it is objective.", (", so it is subjective.",))
    assert term.rival_penalty == 50 and condition.group == "train"
    free = Subjectivity(wrong_label_penalty=0.0).load(0).train[0]
    assert free.terms[0].rivals == () and free.terms[0].rival_penalty == 0


def test_braces_in_a_text_are_text(task_of):
    data = task_of(lines(*GOOD, ("a {text} of {label}", 0)), lines(("new", 1))).load(0)
    assert [c.answer for c in data.train] == [*("objective", "subjective") * 2, "objective"]
    assert '"a {text} of {label}"' in data.train[-1].prompt


def test_a_text_is_the_same_whatever_stands_around_it(task_of):
    train = lines(*GOOD, ("so dull", 1), ("in both", 0), (" plot one ", 0))
    test = lines(("in both", 0), ("new", 1), ("new", 1))
    data = task_of(train, test, n_train=4).load(0)
    assert [c.key for c in data.train] == [text for text, _ in GOOD]
    assert [c.key for c in data.evaluation] == ["in both", "new"]


def test_all_mistakes_of_a_file_are_named_at_once(task_of):
    train = lines(("a", 0)) + '\n{text}\n{"text": 3}\n{"text": " ", "label_text": "neither"}\n'
    with pytest.raises(UserError) as caught:
        task_of(train, lines(("b", 1))).load(0)
    problems = caught.value.problems
    assert [p.where.partition("train.jsonl, ")[2] for p in problems] == [
        "line 3", "line 4, field text", "line 4, field label_text",
        "line 5, field text", "line 5, field label_text",
    ]  # fmt: skip
    assert "not JSON" in problems[0].what and "'neither'" in problems[-1].what


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"labels": ("a", "a"), "data": SubjectivityData("x", "x")}, {"task.labels"}),
        ({"labels": ("good", "bad")}, {"task.labels"}),
        ({"prompt": "text"}, {"task.prompt"}),
        ({"answer": ", {label} {label}"}, {"task.answer"}),
        ({"answer": "; so {label}."}, {"task.answer"}),
        ({"demonstration": ""}, {"task.demonstration"}),
        ({"demonstration_keep": "("}, {"task.demonstration_keep"}),
        ({"data": SubjectivityData(train="none.jsonl")}, {"task.data.train"}),
        ({"min_len": 40}, {"task.min_len"}),
    ],
)
def test_impossible_settings(options, where):
    found = {problem.where for problem in Subjectivity(terminator=",", **options).problems()}
    assert where <= found and found <= where | {"task.data.train", "task.data.test"}


def test_labelled_examples_stand_in_front_and_never_the_review_itself():
    task = Subjectivity(data=SubjectivityData(n_train=4, n_test=2))
    data = task.load(0)
    for condition in (data.evaluation[0], data.train[0]):
        prompt = task.few_shot_prompt(condition, 3, random.Random(0))
        *shown, last = prompt.split("\n")
        assert last == condition.prompt and len(shown) == 3
        assert all(re.search(r" This review is (ob|sub)jective\.$", line) for line in shown)
        assert prompt.count(f'"{condition.key}"') == 1
    with pytest.raises(UserError, match="at most 3"):
        task.few_shot_prompt(data.train[0], 4, random.Random(0))


def test_what_the_base_model_reads_to_write_demonstrations():
    condition = Subjectivity().load(0).train[1]
    assert Subjectivity().demonstration_prompt(condition) is None
    asked = Subjectivity(n_demonstrations=20).demonstration_prompt(condition)
    assert asked.prompt == condition.prompt + " subjective because it is" and asked.n == 20
    kept = {
        text: (m.group() if (m := re.match(asked.keep, text)) else None)
        for text in (" an opinion, so", " full of  praise", "2 good", "", " a (n)", "fun.")
    }
    assert list(kept.values()) == [" an opinion", " full of", None, None, " a", "fun"]


def test_a_typed_review_has_a_posterior_without_a_label():
    task = Subjectivity()
    prompt = task.load(0).train[0].prompt
    typed = task.condition_for(prompt, 0)
    assert typed.answer is None and typed.terms[0].context == prompt
    assert typed.terms[0].suffix == "" and task.condition_for("Good morning", 0) is None
    assert task.answer_suffix("subjective") == ", so it is subjective."
    assert task.answer_suffix("dull") is None


# -- metrics ----------------------------------------------------------------------------------------


def judged(answer: str, votes, singles, greedy, group: str = "test") -> ConditionSamples:
    def logs(rows):
        # Not normalised: another answer may follow too.
        return [[math.log(p) - 3.0 for p in row] for row in rows]

    return ConditionSamples(
        Condition("x", "x", (), answer=answer, group=group),
        votes=[""] * len(votes),
        singles=[""] * len(singles),
        log_reward=[-1.0] * len(singles),
        log_pf=[0.0] * len(singles),
        vote_answer_log_probs=logs(votes),
        answer_log_probs=logs(singles),
        greedy="",
        greedy_answer_log_probs=logs([greedy])[0],
    )


def test_metrics_by_hand():
    # Two of three votes say 0; singles: one is sure of 1, two lean to 0, so the mean says 1.
    samples = [
        judged("subjective", [(0.6, 0.4), (0.6, 0.4), (0.1, 0.9)],
               [(0.05, 0.95), (0.55, 0.45), (0.55, 0.45)], (0.2, 0.8)),
        judged("objective", [(0.6, 0.4)], [(0.9, 0.1), (0.3, 0.7)], (0.4, 0.6)),
        judged("objective", [(0.5, 0.5)], [(0.2, 0.8)], (0.9, 0.1), group="other"),
    ]  # fmt: skip
    metrics = Subjectivity().metrics(samples)
    assert metrics["n_questions/test"] == 2 and metrics["n_questions/other"] == 1
    assert metrics["vote_accuracy/test"] == 0.5  # wrong, right
    assert metrics["predictive_accuracy/test"] == 1.0
    assert metrics["greedy_accuracy/test"] == 0.5  # right, wrong
    assert metrics["single_accuracy/test"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    mean_1 = (math.log(0.95) + 2 * math.log(0.45)) / 3
    mean_2 = (math.log(0.9) + math.log(0.3)) / 2
    assert metrics["label_log_prob/test"] == pytest.approx((mean_1 + mean_2) / 2)
    # The single share is no whole number of reviews.
    for name, share in (("vote", 1 / 2), ("greedy", 1 / 2), ("single", (1 / 3 + 1 / 2) / 2)):
        for end, value in with_interval(f"{name}_accuracy", share, 2).items():
            assert metrics[f"{end}/test"] == pytest.approx(value)
    assert metrics["vote_accuracy/other"] == 1.0  # a tie goes to the first label
    assert metrics["single_accuracy/other"] == 0.0
