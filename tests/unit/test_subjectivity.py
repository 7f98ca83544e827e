"""The subjectivity task: data, posterior, answers and metrics, without a model."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import pytest

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.errors import UserError
from gfn_runner.metrics.accuracy import with_interval
from gfn_runner.tasks.subjectivity import Subjectivity, SubjectivityData

GOOD = [("plot one", 0), ("so dull", 1), ("plot two", 0), ("so fine", 1)]
LABELS = ("objective", "subjective")


def lines(*pairs: tuple[str, int]) -> str:
    records = [{"text": t, "label_text": LABELS[n]} for t, n in pairs]
    return "".join(json.dumps(record) + "\n" for record in records)


def task_of(folder: Path, train: str | bytes, test: str | bytes, **options) -> Subjectivity:
    paths = []
    for name, text in (("train", train), ("test", test)):
        path = folder / f"{name}.jsonl"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        paths.append(str(path))
    data = {"n_train": options.pop("n_train", 50)}
    return Subjectivity(data=SubjectivityData(*paths, **data), terminator=",", **options)


def wrong(task: Subjectivity) -> list[tuple[str, str]]:
    with pytest.raises(UserError) as caught:
        task.load(0)
    return [(p.where.rsplit("/", 1)[-1], p.what) for p in caught.value.problems]


# -- data -------------------------------------------------------------------------------------------


def test_generated_reviews_are_balanced_and_none_is_in_both_sets():
    task = Subjectivity(data=SubjectivityData(n_train=20))
    data = task.load(0)
    assert (len(data.train), len(data.evaluation)) == (20, 500) and not data.notes
    keys = [c.key for c in (*data.train, *data.evaluation)]
    assert len(set(keys)) == len(keys)
    for conditions in (data.train, data.evaluation):
        share = sum(c.answer == "objective" for c in conditions) / len(conditions)
        assert share == 0.5
    other = task.load(1)
    assert [c.key for c in other.evaluation] == [c.key for c in data.evaluation]
    assert {c.key for c in other.train} != {c.key for c in data.train}


def test_the_posterior_of_a_review():
    condition = Subjectivity().load(0).train[0]
    (term,) = condition.terms
    assert condition.prompt == term.context
    assert re.fullmatch(
        r'Classify this movie review as objective or subjective: ".+" This review is', term.context
    )
    assert (term.suffix, term.rivals) == (", so it is objective.", (", so it is subjective.",))
    assert term.rival_penalty == 50 and condition.group == "train"
    free = Subjectivity(wrong_label_penalty=0.0).load(0).train[0]
    assert free.terms[0].rivals == () and free.terms[0].rival_penalty == 0


def test_the_generated_reviews_are_asked_as_the_corpus_asks():
    from gfn_runner.data.synthetic.reviews import label_suffix, review_prompt

    condition = Subjectivity().load(0).train[0]
    assert condition.prompt == review_prompt(condition.key)
    assert condition.terms[0].suffix == label_suffix("objective")


def test_braces_in_a_text_are_text(tmp_path):
    task = task_of(tmp_path, lines(*GOOD, ("a {text} of {label}", 0)), lines(("new", 1)))
    data = task.load(0)
    assert [c.answer for c in data.train] == [*("objective", "subjective") * 2, "objective"]
    assert '"a {text} of {label}"' in data.train[-1].prompt


def test_a_text_is_the_same_whatever_stands_around_it(tmp_path):
    train = lines(*GOOD, ("so dull", 1), ("in both", 0), (" plot one ", 0))
    data = task_of(tmp_path, train, lines(("in both", 0), ("new", 1), ("new", 1)), n_train=4).load(
        0
    )
    assert [c.key for c in data.train] == [text for text, _ in GOOD]
    assert [c.key for c in data.evaluation] == ["in both", "new"]


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path):
    train = b"\n".join(
        [
            b'{"text": "a", "label_text": "objective"}',
            b"",
            b"{text}",
            b"[1]",
            b'{"text": 3}',
            b'{"text": " ", "label_text": "neither"}',
        ]
    )
    test = lines(("b", 1))
    found = wrong(task_of(tmp_path, train, test))
    assert [where for where, _ in found] == [
        "train.jsonl, line 3",
        "train.jsonl, line 4",
        "train.jsonl, line 5, field text",
        "train.jsonl, line 5, field label_text",
        "train.jsonl, line 6, field text",
        "train.jsonl, line 6, field label_text",
    ]
    assert "not JSON" in found[0][1] and "'neither'" in found[-1][1]
    bytes_of = b'{"text": "\xff", "label_text": "objective"}'
    ((where, what), *_) = wrong(task_of(tmp_path, bytes_of, test))
    assert where == "train.jsonl, line 1" and "not UTF-8" in what


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


# -- prompts ----------------------------------------------------------------------------------------


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
