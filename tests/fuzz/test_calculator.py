"""The calculator and the parsers of answers, on random and hostile texts.

``make fuzz ARGS='tests/fuzz/test_calculator.py --budget=250'`` tries a million texts.
"""

from __future__ import annotations

import random
import re
import sys
import tracemalloc

import pytest

from gfn_runner.data.questions import parse_question
from gfn_runner.data.tools import Calculator
from gfn_runner.metrics.judge import rating_in
from gfn_runner.tasks.arithmetic import IntegerArithmetic
from tests.budget import cases
from tests.fuzz.bounded import at_most

PIECES = (
    *"0123456789", "+", "-", "=", " ", "  ", ",", ";", ":", "?", ".", "\n", "\t", "\r", "(", ")", "*", "/", "%",
    "**", "<", "!", "'", '"', "{", "}", "\\", "\0", "_", "e", "x", "inf", "nan", "1e308", "0x1f", "1_0", "- -", "--",
    "999999999999999999", "9999999999999999999", "٣", "３", "²", "Ⅷ", "−", "–", "\u00a0", "\u2028", "\u200b", "\ud800",
    "🙂", "The answer is", "Score:", "Question: ", " = ? Answer:", "__import__('os').system('touch pwned')", "eval(",
    "os.system", "lambda:0", "%s", "${x}", "{0.__class__}",
)  # fmt: skip

HOSTILE = {
    "deep brackets": "(" * 50_000 + "1" + ")" * 50_000 + " =",
    "a huge integer": "9" * 100_000 + " + 1 =",
    "many terms": "1" + " + 1" * 20_000 + " =",
    "many terms, no end": "1" + " + 1" * 20_000,
    "newlines": "\n" * 5_000 + "=",
    "commas": "," * 20_000 + "=",
    "spaces": "1" + " " * 20_000 + "x=",
    "spaces at the end": "1 =" + " " * 20_000 + "x",
    "equals": "=" * 20_000,
    "minus": "-" * 20_000 + "1 =",
    "power": "9**9**9**9 =",
    "import": "__import__('os').system('touch pwned') =",
    "format": "{0.__class__.__mro__} =",
    "NUL": "1 + 1\0 =",
    "digits of other scripts": "٣ + ３ =",
    "a lone surrogate": "1 + \ud800 =",
    "empty": "",
}
DIGITS = tuple("0123456789")
CHAIN = re.compile(r"\s*-?[0-9]{1,18}(\s*[+-]\s*[0-9]{1,18})*\s*", re.ASCII)


def expected(text: str) -> str | None:
    """The value of what stands between the last separator that leaves a chain and the final ``=``."""
    body = text.rstrip(" \t\n\r\f\v")
    if not body.endswith("="):
        return None
    starts = [0] + [
        at + 1
        for at, character in enumerate(body)
        if character in ",;:?\n" or (character == "." and body[at + 1 : at + 2] not in DIGITS)
    ]
    for start in starts:
        chain = body[start:-1]
        if CHAIN.fullmatch(chain):
            joined = re.sub(r"\s", "", chain)
            return f" {sum(map(int, re.findall(r'[+-]?[0-9]+', joined)))}"
    return None


def random_text(rng: random.Random) -> str:
    if rng.random() < 0.5:
        pieces = rng.choices(
            ("0", "1", "23", " + ", " - ", "-", "+", " ", ",", ". ", "="), k=rng.randrange(12)
        )
    else:
        pieces = rng.choices(PIECES, k=rng.randrange(20))
    return "".join(pieces) + rng.choice(("", "=", " =", "= "))


READERS = {
    "calculator": (Calculator("expression").answer, r" -?[0-9]+"),
    "arithmetic": (IntegerArithmetic.read_answer, r"-?[0-9]{1,18}"),
    "judge": (rating_in, r"[0-9.]+"),
}


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", READERS)
def test_random_texts(name):
    read, form = READERS[name]
    rng = random.Random(f"{name} {cases(1)}")
    answered = 0
    for _ in range(cases(4_000)):
        text = random_text(rng)
        answer = read(text)
        assert answer is None or re.fullmatch(form, str(answer), re.ASCII), (text, answer)
        if name == "calculator":
            assert answer == expected(text), repr(text)
        answered += answer is not None
    assert answered > 8, "random texts hardly ever reach the end of the reader"


def test_random_questions():
    rng = random.Random(cases(2))
    for _ in range(cases(4_000)):
        text = random_text(rng)
        prompt = rng.choice((text, f"Question: {text.strip(' =')} = ? Answer:"))
        try:
            expression = parse_question(prompt)
        except ValueError:
            continue
        assert isinstance(expression.value, int)


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", READERS)
def test_hostile_texts_take_bounded_time_and_memory(name, case):
    read, form = READERS[name]
    text = HOSTILE[case]
    tracemalloc.start()
    try:
        with at_most(2.0):
            answer = read(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer is None or re.fullmatch(form, str(answer), re.ASCII)
    assert peak < 100 * sys.getsizeof(text) + 100_000


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_questions_are_refused_or_worked_out(case):
    prompt = f"Question: {HOSTILE[case]} = ? Answer:"
    with at_most(2.0):
        try:
            parse_question(prompt)
        except ValueError as error:
            assert "Question" in str(error)
