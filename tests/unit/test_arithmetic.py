"""The arithmetic task: its questions, generated or read from files, its answers and its metrics."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter

import pytest
from scipy.stats import binomtest

from gfn_runner.data.expressions import Expression, is_held_out, question
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.tools import Calculator
from gfn_runner.errors import UserError
from gfn_runner.metrics.accuracy import with_interval
from gfn_runner.tasks.arithmetic import (
    ArithmeticData,
    Examples,
    IntegerArithmetic,
    parse_question,
    read_questions,
)

from ..tiny_models import signed_sum

read_answer = IntegerArithmetic.read_answer


@pytest.fixture(scope="module")
def data():
    return IntegerArithmetic().load(0)


# -- generated questions ----------------------------------------------------------------------------


def test_questions_are_as_many_as_asked_for_all_different_and_on_their_side(data):
    questions = [*data.train, *data.evaluation]
    assert len(data.train) == 50 + 1000 and data.notes == ()
    assert len({c.prompt for c in questions}) == len({c.key for c in questions}) == 2550
    assert not any(is_held_out(c.facts["expression"]) for c in data.train)
    assert all(is_held_out(c.facts["expression"]) for c in data.evaluation)
    lengths = Counter(len(c.facts["expression"].operands) for c in data.train)
    assert lengths == {3: 525, 4: 525}
    groups = Counter((c.group, len(c.facts["expression"].operands)) for c in data.evaluation)
    assert groups == {("3_operands", 3): 500, ("4_operands", 4): 500, ("5_operands", 5): 500}


def test_answers_are_right_and_terms_ask_for_them(data):
    for condition in (*data.train, *data.evaluation):
        body = condition.prompt.removeprefix("Question: ").removesuffix(" = ? Answer:")
        assert re.fullmatch(r"\d( [+-] \d)+", body)
        assert condition.answer == signed_sum(body)
        (term,) = condition.terms
        assert term.suffix == f". The answer is {condition.answer}." and term.weight == 1
        assert term.context.endswith("\n" + condition.prompt) and term.context.count("\n") == 3


def test_questions_with_a_rationale_have_it_as_their_demonstration(data):
    for condition in data.train[:50]:
        (text,) = condition.demonstrations
        assert text == " " + condition.facts["expression"].steps()
        assert read_answer(text) == condition.answer
        assert condition.weight == 1 and condition.group == "train"
    assert {(c.weight, c.demonstrations) for c in data.train[50:]} == {(0.2, ())}


def test_worked_examples_are_others_with_a_rationale_and_right(data):
    known = {c.prompt: c for c in data.train[:50]}
    for condition in (*data.train, *data.evaluation[::10]):
        asked = set()
        for line in condition.terms[0].context.splitlines()[:-1]:
            prompt, rest = line.split("Answer:")
            example = known[prompt + "Answer:"]
            assert rest == f"{example.demonstrations[0]}. The answer is {example.answer}."
            asked.add(example.prompt)
        assert len(asked) == 3 and condition.prompt not in asked


def test_examples_are_fixed_per_question_and_differ_between_questions(data):
    again = IntegerArithmetic().load(0)
    assert [c.terms for c in again.train] == [c.terms for c in data.train]
    assert [c.terms for c in again.evaluation] == [c.terms for c in data.evaluation]
    # Also where other questions come and go around them.
    fewer = IntegerArithmetic(data=ArithmeticData(n_answers=10, n_test=20)).load(0)
    by_key = {c.key: c.terms for c in (*data.train, *data.evaluation)}
    shared = [c for c in (*fewer.train, *fewer.evaluation) if c.key in by_key]
    assert len(shared) >= 80 and all(by_key[c.key] == c.terms for c in shared)
    assert len({c.terms[0].context.removesuffix(c.prompt) for c in data.train}) > 1000


def test_seeds_change_training_and_leave_the_test_questions(data):
    other = IntegerArithmetic().load(1)
    assert [c.key for c in other.evaluation] == [c.key for c in data.evaluation]
    shared = {c.key for c in other.train[:50]} & {c.key for c in data.train[:50]}
    assert len(shared) < 10
    assert [c.terms for c in other.evaluation] != [c.terms for c in data.evaluation]


def test_numbers_of_operands_and_of_questions_are_settings():
    options = ArithmeticData(
        n_rationales=6, n_answers=0, n_test=4, train_operands=(2, 5), test_operands=(6,)
    )
    data = IntegerArithmetic(data=options, n_demonstrations=0).load(0)
    assert [len(c.facts["expression"].operands) for c in data.train] == [2, 5] * 3
    assert [c.group for c in data.evaluation] == ["6_operands"] * 4
    assert all(c.terms[0].context == c.prompt for c in data.train)


def test_more_questions_than_there_are_is_an_error():
    data = ArithmeticData(n_rationales=300, train_operands=(2,), n_test=1)
    with pytest.raises(UserError, match=r"only 1.. different ones"):
        IntegerArithmetic(data=data).load(0)


def test_with_the_calculator_demonstrations_leave_the_right_sides_to_it():
    task = IntegerArithmetic(calculator="two_operands", data=ArithmeticData(n_answers=10, n_test=2))
    assert isinstance(task.tool(), Calculator) and IntegerArithmetic().tool() is None
    for condition in task.load(0).train[:50]:
        (text,) = condition.demonstrations
        assert re.fullmatch(r" -?\d+ [+-] \d =(, -?\d+ [+-] \d =)+", text)
        # The examples of the context are whole: they are text, and no tool is called there.
        assert "= ?" in condition.terms[0].context and "=," not in condition.terms[0].context
        answered = ", ".join(step + task.tool().answer(step) for step in text[1:].split(", "))
        assert answered == condition.facts["expression"].steps()


def test_the_few_shot_prompt_holds_as_many_other_examples(data):
    condition = data.train[0]
    for shots in (0, 1, 10):
        prompt = IntegerArithmetic().few_shot_prompt(condition, shots, random.Random(0))
        *examples, last = prompt.split("\n")
        assert len(examples) == shots == len(set(examples)) and last == condition.prompt
        assert condition.prompt not in "".join(examples)


def test_problems_of_settings():
    bad = IntegerArithmetic(
        n_demonstrations=8,
        min_len=9,
        max_len=4,
        data=ArithmeticData(n_rationales=8, test_operands=(), answers="/no/such.json"),
    )
    keys = ("min_len", "n_demonstrations", "data.test_operands", "data.answers")
    assert {p.where for p in bad.problems()} == {f"task.{key}" for key in keys}
    assert not list(IntegerArithmetic().problems())


# -- answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6", -6),
        ("6 - 0 =6  ", 6),
        ("6 - 0 = 6\n", 6),
        (" 14", 14),
        ("-3", -3),
        ("007", 7),
        ("1 + 2 = 3 = 4", 4),
        ("\n5", 5),
    ],
)
def test_read_answer(text, answer):
    assert read_answer(text) == answer


NO_ANSWER = [
    "", "   ", "6 - 0", "6 - 0 =", "6 - 0 = 6,", "6 - 0 = 6, 6 - 4", "6 - 0 = 6 dogs", "6 - 0 = - 6",
    "6 - 0 = --6", "6 - 0 = 6 6", "6 - 0 = 6.5", "the dog 5", "x\n5", "6 - 0 = ٣", "= ²",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_ANSWER)
def test_texts_without_an_answer(text):
    assert read_answer(text) is None


@pytest.mark.parametrize(
    "expression", [Expression((6, 0, 4), ("-", "+")), Expression((12, 7), ("+",))]
)
def test_parse_question_undoes_question(expression):
    assert parse_question(question(expression)) == expression
    assert parse_question(f"\n {question(expression)} ") == expression


@pytest.mark.parametrize(
    "text",
    [
        "",
        "6 - 0 = ?",
        *(f"Question: {body} = ? Answer:" for body in ("6", "6 * 2", "-6 + 2", "6 +  2", "٣ + 2")),
        "Question: 6 + 2 = ? Answer: 8",
    ],
)
def test_parse_question_refuses_what_is_none(text):
    with pytest.raises(ValueError, match="is not of the form"):
        parse_question(text)


# -- metrics ----------------------------------------------------------------------------------------


def samples(body: str, votes, singles, log_reward=(), group="3_operands") -> ConditionSamples:
    task = IntegerArithmetic(data=ArithmeticData(n_test=1))
    words = body.split()
    expression = Expression(tuple(map(int, words[::2])), tuple(words[1::2]))
    condition = task._condition(expression, Examples(()), 0, group=group)
    return ConditionSamples(condition, votes, singles, log_reward, [0.0] * len(log_reward))


def metrics(*rows: ConditionSamples, group: str = "3_operands") -> dict[str, float]:
    """Of one group."""
    found = IntegerArithmetic().metrics(rows)
    return {key.split("/")[0]: value for key, value in found.items() if key.endswith(group)}


def test_metrics_of_samples_made_by_hand():
    rows = [
        # 1 + 2 + 3 = 6: the vote is right in spite of two that do not parse.
        samples(
            "1 + 2 + 3",
            ["1 + 2 = 3, 3 + 3 = 6", "6", "5", "?", "?"],
            [" 1 + 2 = 3, 3 + 3 = 6", " 6", " 5", "the dog"],
            [-1.0, -2.0, -3.0, -6.0],
        ),
        # 1 - 2 - 3 = -4: a tie goes to the first that was given, which is wrong.
        samples("1 - 2 - 3", ["-1", "-4", "-4", "-1"], ["-4", "-4", "-1", "-4"], [-2.0] * 4),
        # No vote at all.
        samples("9 - 9 + 1", ["?", ""], ["1", "", "", ""], [-5.0, -5.0, -5.0, -7.0]),
        samples("1 + 1 + 1 + 1", ["4"], ["4"], group="4_operands"),
    ]
    vote = binomtest(1, 3).proportion_ci(method="wilson")
    # 2 + 3 + 1 of 12 singles are 1.5 of 3 questions.
    single = with_interval("single_accuracy", 1.5 / 3, 3)
    assert single["single_accuracy_low"] + single["single_accuracy_high"] == pytest.approx(1)
    expected = {
        "vote_accuracy": 1 / 3,
        "vote_accuracy_low": vote.low,
        "vote_accuracy_high": vote.high,
        **single,
        "parsed": 8 / 12,
        "right_rationale": 1 / 12,
        "n_questions": 3.0,
    }
    assert metrics(*rows) == pytest.approx(expected)
    four = metrics(*rows, group="4_operands")
    assert four["vote_accuracy"] == four["single_accuracy"] == four["n_questions"] == 1
    assert four["right_rationale"] == 0
    assert len(IntegerArithmetic().metrics(rows)) == len(expected) + len(four)
    assert IntegerArithmetic().metrics([]) == {}


def test_the_predictive_answer_may_overrule_how_many_samples_lead_to_another():
    one = dataclasses.replace(samples("1 + 1 + 1", ["3"], ["4", "4", "3"]), choices=(4, 3))
    for table, accuracy in (([[-3, -2], [-3, -2], [-9, -0.1]], 1), ([[-0.1, -9]] * 3, 0)):
        weighed = dataclasses.replace(one, answer_log_probs=table)
        assert metrics(weighed)["predictive_accuracy"] == accuracy


def test_the_greedy_rationale_has_an_accuracy_of_its_own():
    row = samples("1 + 2 + 3", [], [" 6"])
    greedy = (" 1 + 2 = 3, 3 + 3 = 6", " 1 + 2 = 4", " who knows", " 6")
    rows = [dataclasses.replace(row, greedy=text) for text in greedy]
    assert metrics(*rows)["greedy_accuracy"] == 0.5
    assert "greedy_accuracy" not in metrics(row)


# -- files ------------------------------------------------------------------------------------------


def record(body: str, answer: int, rationale: str | None = None) -> dict:
    entry = {"str_query": f"Question: {body} = ? Answer:", "num_sol": answer}
    return entry | ({"str_rationale": rationale} if rationale is not None else {})


def test_files_are_read_without_duplicates_and_overlaps(written):
    """Of 5 rationales one is in the test set and one there twice; of 5 answers three go."""
    files = {
        "rationales": [
            record("1 + 2 + 3", 6, "1 + 2 = 3, 3 + 3 = 6"),
            record("9 - 1 - 1", 7, "9 - 1 = 8, 8 - 1 = 7"),
            record("2 + 2 + 2", 6, "in the test set"),
            record("1 + 2 + 3", 6, "again, and not the first"),
            record("4 - 4 - 4", -4, "4 - 4 =, 0 - 4 ="),
        ],
        "answers": [
            record("5 + 5 + 5", 15),
            record("1 + 2 + 3", 6),
            record("3 - 1 + 1 - 2", 1),
            record("5 + 5 + 5", 15),
            record("8 - 1 + 1 + 1", 9),
        ],
        "test": [record("2 + 2 + 2", 6), record("1 + 1 + 1 + 1 + 1", 5), record("2 + 2 + 2", 6)],
        "more": [record("8 - 1 + 1 + 1", 9), record("7 + 7 - 7", 7)],
    }
    paths = {name: written(f"{name}.json", json.dumps(rows)) for name, rows in files.items()}
    paths["test"] = (paths["test"], paths.pop("more"))
    data = IntegerArithmetic(n_demonstrations=2, data=ArithmeticData(**paths)).load(0)
    assert [c.key for c in data.train] == [
        "1 + 2 + 3", "9 - 1 - 1", "4 - 4 - 4", "5 + 5 + 5", "3 - 1 + 1 - 2",
    ]  # fmt: skip
    assert [(c.key, c.group) for c in data.evaluation] == [
        ("2 + 2 + 2", "3_operands"),
        ("7 + 7 - 7", "3_operands"),
        ("8 - 1 + 1 + 1", "4_operands"),
        ("1 + 1 + 1 + 1 + 1", "5_operands"),
    ]
    # The first entry of a question is kept; right-hand sides that a file leaves out are put in.
    assert [c.demonstrations for c in data.train[:3]] == [
        (" 1 + 2 = 3, 3 + 3 = 6",),
        (" 9 - 1 = 8, 8 - 1 = 7",),
        (" 4 - 4 = 0, 0 - 4 = -4",),
    ]
    assert [c.weight for c in data.train] == [1, 1, 1, 0.2, 0.2]
    assert data.notes == ("5 training questions dropped: in a test set, or duplicates",)


def test_all_malformed_entries_are_named_with_line_and_field(written):
    text = """[
 {"str_query": "Question: 1 + 2 = ? Answer:", "num_sol": 3, "str_rationale": "1 + 2 = 3"},
 {"str_query": "Question: 1 + 2 = ? Answer:", "num_sol": 4, "str_rationale": ""},
 {"str_query": "1 plus 2",
  "num_sol": 3, "str_rationale": ""},
 {"num_sol": "3", "str_rationale": ""}, 17,
 {"str_query": "Question: 1 + 2 = ? Answer:", "num_sol": true, "str_rationale": ""},
 {"str_query": "Question: 1 + 2 = ? Answer:", "num_sol": 3.0}
]"""
    path = written("bad.json", text)
    with pytest.raises(UserError) as caught:
        read_questions(path, rationale=True)
    problems = caught.value.problems
    assert [p.where.removeprefix(f"{path}, line ") for p in problems] == [
        "3, field num_sol",
        "4, field str_query",
        "6, field str_query",
        "6, field num_sol",
        "6",
        "7, field num_sol",
        "8, field num_sol",
        "8, field str_rationale",
    ]
    assert "given 4, but 1 + 2 is 3" in problems[0].what
    assert problems[2].what == "missing" and problems[3].what == "given '3'"
    assert "17" in problems[4].what and "str_query, num_sol, str_rationale" in problems[4].allowed


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [("[]", "", "no question in it"), ("3", ", line 1", "given 3")],
)
def test_files_that_are_no_list_of_questions(written, content, where, what):
    path = written("bad.json", content)
    with pytest.raises(UserError) as caught:
        read_questions(path)
    (problem,) = caught.value.problems
    assert problem.where == path + where and what in problem.what
