"""The corpus of the embedded base model: an endless seeded mixture of documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from pretraining.documents import (
    infill_document,
    news_document,
    sentence_document,
    story_document,
    translation_document,
    words_document,
)
from pretraining.numbers import number_document
from pretraining.reviews import habitual_review_document, review_document
from pretraining.sums import drill_document, exercises_document, questions_document

# Writer and its share of the documents, whose lengths differ: see ``token_shares`` in the model's
# pretraining.json for shares of tokens.
WRITERS: dict[str, tuple[Callable[[random.Random], str], float]] = {
    "questions": (questions_document, 0.2),
    "exercises": (exercises_document, 0.085),
    "drill": (drill_document, 0.04),
    "story": (story_document, 0.17),
    "infill": (infill_document, 0.14),
    "news": (news_document, 0.09),
    "translation": (translation_document, 0.1),
    "review": (review_document, 0.08),
    "sentence": (sentence_document, 0.02),
    "words": (words_document, 0.05),
    "number": (number_document, 0.025),
    # Second phase only; last, so that a share of 0 leaves the stream of the first phase unchanged.
    "careful_words": (partial(words_document, keep=0.85), 0.0),
    "habitual_review": (habitual_review_document, 0.0),
}

# Using a word because it is in a list is a skill that is learned late, and the first phase has too few lists
# for it: a second, shorter phase of pretraining has many. It also has reviews with habitual mistakes (see
# reviews.py).
SECOND_PHASE = {"careful_words": 2.3, "review": 0.0, "habitual_review": 0.25}


def documents(seed: int, shares: Mapping[str, float] | None = None) -> Iterator[str]:
    """Yield an endless stream of documents; the same seed and shares give the same stream.

    Args:
        seed: seed of the draws.
        shares: weights of some kinds, replacing those in ``WRITERS``.
    """
    for _, text in named_documents(seed, shares):
        yield text


def named_documents(
    seed: int, shares: Mapping[str, float] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the same stream with the name of each document's writer."""
    rng = random.Random(seed)
    weights_by_name = {name: share for name, (_, share) in WRITERS.items()} | dict(shares or {})
    names, weights = list(weights_by_name), list(weights_by_name.values())
    while True:
        name = rng.choices(names, weights=weights)[0]
        yield name, WRITERS[name][0](rng)
