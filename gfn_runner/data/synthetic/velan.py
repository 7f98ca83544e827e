"""The toy language Velan of the corpus: words with several right translations, and their checks.

A Velan sentence is a verb, its subject, the subject's adjective, its object: ``kesi vulo tari domu``,
*sees fox red house*, is "the red fox sees the house". Some words have two English ones, so that most
sentences have several right translations; the corpus prefers one of them, and makes mistakes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

# First the more frequent translation.
NOUNS: dict[str, tuple[str, ...]] = {
    "domu": ("house", "home"),
    "vulo": ("fox",),
    "maro": ("sea", "ocean"),
    "pesa": ("stone", "rock"),
    "kani": ("dog", "hound"),
    "rego": ("king",),
    "nava": ("boat", "ship"),
    "lito": ("child", "kid"),
    "tano": ("bank", "shore"),
    "arbo": ("tree",),
    "luma": ("lamp", "light"),
    "bulo": ("bird",),
}
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "tari": ("red",),
    "gila": ("happy", "glad"),
    "mico": ("small", "little"),
    "grano": ("big", "large"),
    "veto": ("old",),
    "biso": ("beautiful", "pretty"),
    "fredo": ("cold",),
}
VERBS: dict[str, tuple[str, ...]] = {
    "kesi": ("sees", "watches"),
    "ami": ("loves",),
    "tovi": ("finds", "discovers"),
    "lasi": ("leaves",),
    "timi": ("fears", "dreads"),
    "pati": ("carries", "bears"),
}
_LEXICON = NOUNS | ADJECTIVES | VERBS


def draw_source(rng: random.Random) -> tuple[str, ...]:
    """A Velan sentence as words: verb, noun, adjective, noun."""
    subject, thing = rng.sample(list(NOUNS), 2)
    return (rng.choice(list(VERBS)), subject, rng.choice(list(ADJECTIVES)), thing)


def translations(source: Sequence[str]) -> list[str]:
    """Every right translation of a sentence of four words, without its full stop.

    Raises:
        ValueError: if it is no sentence of this language.
    """
    if len(source) != 4 or any(word not in _LEXICON for word in source):
        raise ValueError(f"{' '.join(source)!r} is no Velan sentence: verb noun adjective noun")
    verb, subject, adjective, thing = (_LEXICON[word] for word in source)
    return [
        f"the {a} {s} {v} the {t}"
        for a, s, v, t in itertools.product(adjective, subject, verb, thing)
    ]


def prompt(source: Sequence[str]) -> str:
    return f"Velan: {' '.join(source)}. English:"
