"""Plain sentences of the corpus, and the word lists used to prompt for them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

NOUNS = "dog cat boy girl bird fox king farmer baker sailor teacher robot frog bear mouse".split()
ADJECTIVES = "small old red quiet happy tall green brave sleepy clever lost new blue kind".split()
THINGS = "ball boat hat pear lamp drum kite box book stone cake bell rope key coat map".split()
VERBS = "likes finds sees wants hides paints carries drops keeps loses takes makes".split()
PLACES = "garden house forest river market school kitchen field tower harbour barn".split()
SENTENCE_CONTEXT = "Sentence:"

_SLOTS = {"noun": NOUNS, "adjective": ADJECTIVES, "thing": THINGS, "verb": VERBS, "place": PLACES}
_SLOT_OF = {word: slot for slot, members in _SLOTS.items() for word in members}


def any_of(words: Iterable[str]) -> str:
    """Return a pattern that matches any of ``words``, which consist of letters only."""
    return f"(?:{'|'.join(words)})"


_SENTENCE = re.compile(
    f"The {any_of(ADJECTIVES)} {any_of(NOUNS)} {any_of(VERBS)} "
    f"the {any_of(ADJECTIVES)} {any_of(THINGS)}(?: in the {any_of(PLACES)})?"
)


def sentence(rng: random.Random, **words: str) -> str:
    """Draw a sentence, without its full stop.

    Args:
        rng: source of randomness for the slots that are not given.
        words: fixed words by slot: ``noun``, ``adjective``, ``verb``, ``thing`` or ``place``.
    """
    first, second = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES)
    if "adjective" in words:
        first, second = rng.sample([words["adjective"], second], 2)
    noun = words.get("noun") or rng.choice(NOUNS)
    verb = words.get("verb") or rng.choice(VERBS)
    thing = words.get("thing") or rng.choice(THINGS)
    place = words.get("place") or (rng.choice(PLACES) if rng.random() < 0.4 else "")
    tail = f" in the {place}" if place else ""
    return f"The {first} {noun} {verb} the {second} {thing}{tail}"


def is_sentence(text: str) -> bool:
    """Return whether the grammar generates the text (without its full stop)."""
    return _SENTENCE.fullmatch(text.strip()) is not None


def word_lists(rng: random.Random, n: int) -> list[tuple[str, ...]]:
    """Draw ``n`` lists of one to three words from different slots, so that they fit into one sentence."""
    lists = []
    for _ in range(n):
        slots = rng.sample(sorted(_SLOTS), rng.randint(1, 3))
        lists.append(tuple(rng.choice(_SLOTS[slot]) for slot in slots))
    return lists


def sentence_with(rng: random.Random, words: Iterable[str]) -> str:
    """Draw a sentence that contains the given words, each from a different slot; without its full stop."""
    return sentence(rng, **{_SLOT_OF[word]: word for word in words})


def words_prompt(words: tuple[str, ...]) -> str:
    """Return the prompt that asks for a sentence with these words."""
    return f"Words: {', '.join(words)}. {SENTENCE_CONTEXT}"
