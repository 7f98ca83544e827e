"""The toy language Velan of the corpus: words with several correct translations, and their checks.

A Velan sentence consists of verb, subject, the subject's adjective, and object: ``kesi vulo tari domu``,
*sees fox red house*, means "the red fox sees the house". Some words have two English translations, so most
sentences have several correct ones; the corpus prefers one of them, and contains mistakes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

# The more frequent translation comes first.
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
    """Draw a Velan sentence as a tuple of words: verb, noun, adjective, noun."""
    subject, thing = rng.sample(list(NOUNS), 2)
    return (rng.choice(list(VERBS)), subject, rng.choice(list(ADJECTIVES)), thing)


def translations(source: Sequence[str]) -> list[str]:
    """Return every correct translation of a four-word sentence, without full stops.

    Raises:
        ValueError: if the words are not a Velan sentence.
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
