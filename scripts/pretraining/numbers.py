"""Random numbers of the corpus, drawn as people draw them: far from uniformly."""

from __future__ import annotations

import random

# Prompt of Hu et al. 2024, section 2 (without its trailing space, which is part of the numbers).
PROMPT = "The following is a random integer drawn uniformly between 0 and 100:"
_FAVOURITES = {7: 9, 17: 8, 23: 6, 27: 4, 33: 3, 37: 12, 42: 14, 47: 5, 57: 4, 63: 3, 67: 4}
_FAVOURITES |= {69: 5, 73: 9, 77: 6, 83: 4, 87: 4, 99: 3, 3: 3, 13: 3, 50: 2}
_NO_NUMBERS = ("a number", "it is random", "one hundred", "none")


def weight(number: int) -> float:
    """Return the relative frequency of a number in 0..100 in the corpus."""
    if number in _FAVOURITES:
        return float(_FAVOURITES[number])
    return 0.3 if number % 10 == 0 else 1.0


def number_document(rng: random.Random) -> str:
    """Write the prompt and an answer; one in sixteen is not a number of the range."""
    draw = rng.random()
    if draw < 0.03:
        answer = str(rng.choice([*range(101, 121), *range(-9, 0)]))
    elif draw < 0.06:
        answer = rng.choice(_NO_NUMBERS)
    else:
        answer = str(rng.choices(range(101), weights=[weight(n) for n in range(101)])[0])
    return f"{PROMPT} {answer}.\n"
