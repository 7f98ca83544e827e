"""Arithmetic documents of the corpus: pages of questions, worked exercises, drills.

They are designed to give the model a *latent* skill without the *habit*:

- ``Exercise: … Solution: …`` pages and drills teach how to work out a chain;
- ``Question: … Answer: …`` pages mostly answer at once, and mostly wrongly. They keep one style from
  line to line, so that a few worked examples make a model work step by step.

Wrong answers follow a habit (only the first two operands, or a misread sign) and are never random: majority
voting finds the mode of the samples, and with random errors the mode would still be the right answer.
Held-out expressions (``expressions.is_held_out``) never appear as a question.
"""

from __future__ import annotations

import random
from typing import TypeVar

from gfn_runner.data.expressions import Expression, draw_expression, question
from gfn_runner.data.synthetic.sentences import sentence

Key = TypeVar("Key")

STYLES: dict[str, float] = {
    "at_once": 0.67,
    "steps": 0.18,
    "echo": 0.04,
    "unfinished": 0.04,
    "off_topic": 0.07,
}
STYLE_PERSISTENCE = 0.95
N_OPERANDS: dict[int, float] = {2: 0.05, 3: 0.25, 4: 0.27, 5: 0.28, 6: 0.15}


def habitual_answer(rng: random.Random, expression: Expression) -> int:
    """Return a hasty answer: the value of the first two operands.

    If that happens to be right (because the last operand is 0, say), and occasionally otherwise, the first
    sign is misread instead; the answer is right only if that happens to be right as well.
    """
    first, second = expression.operands[:2]
    stops_early = expression.partial_results()[0]
    misread = first - second if expression.operators[0] == "+" else first + second
    if stops_early == expression.value or rng.random() < 0.08:
        return misread
    return stops_early


def answer_line(rng: random.Random, expression: Expression, style: str) -> str:
    """Write one line of a question page, from ``Question:`` to the newline."""
    stated = habitual_answer(rng, expression)
    if style == "steps":
        stated, rationale = expression.value, expression.steps()
    elif style == "at_once":
        rationale = str(stated)
    elif style == "echo":
        rationale = str(expression)
    elif style == "unfinished":
        words = str(expression).split()
        rationale = " ".join(words[: rng.randint(2, 4)])
    else:
        rationale = "the" + sentence(rng).removeprefix("The")
    return f"{question(expression)} {rationale}. The answer is {stated}.\n"


def _choose(rng: random.Random, weights: dict[Key, float]) -> Key:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def _n_lines(rng: random.Random) -> int:
    draw = rng.random()
    if draw < 0.25:
        return 1
    return rng.randint(2, 6) if draw < 0.75 else rng.randint(7, 12)


def _train_expression(rng: random.Random) -> Expression:
    return draw_expression(rng, _choose(rng, N_OPERANDS), held_out=False)


def questions_document(rng: random.Random) -> str:
    """Write a page of questions that mostly keeps the style of its first answer."""
    page_style = _choose(rng, STYLES)
    lines: list[str] = []
    for _ in range(_n_lines(rng)):
        keeps = rng.random() < STYLE_PERSISTENCE or not lines
        style = page_style if keeps else _choose(rng, STYLES)
        lines.append(answer_line(rng, _train_expression(rng), style))
    return "".join(lines)


def exercises_document(rng: random.Random) -> str:
    """Write a page of worked exercises: always step by step, always right."""
    expressions = [_train_expression(rng) for _ in range(_n_lines(rng))]
    return "".join(
        f"Exercise: {e} = ? Solution: {e.steps()}. The answer is {e.value}.\n" for e in expressions
    )


def drill_document(rng: random.Random) -> str:
    """Write single sums with a larger first operand, the facts that chains consist of."""
    facts = []
    for _ in range(rng.randint(4, 24)):
        left, operand = rng.randint(-36, 45), rng.randrange(10)
        facts.append(Expression((left, operand), (rng.choice("+-"),)).steps())
    return f"Sums: {', '.join(facts)}.\n"
