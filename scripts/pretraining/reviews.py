"""Pages of reviews in the corpus, and what is said about them.

Whoever remarks on a text before classifying it notices what it is, or goes by a habit: texts with
words that sound of feeling look like opinions. So the remarks on one text err together, and a vote of
many does not mend them. Whoever classifies at once goes by the habit nearly always. Some remarks lead
to the label that goes with them more often than others.

(The first phase of pretraining has a habit that a small model hardly learns, the length of the text, and
labels given at once that are almost blind. The second phase has the one above.)
"""

from __future__ import annotations

import random
from collections.abc import Callable

from gfn_runner.data.synthetic.reviews import LABELS, draw_review, label_suffix, review_prompt

# Remarks that go with a label, and how often they lead to it.
REMARKS: dict[str, dict[str, float]] = {
    "objective": {
        "a plot summary": 0.95,
        "about events": 0.9,
        "a story": 0.75,
        "a report": 0.6,
        "told as facts": 0.5,
    },
    "subjective": {
        "an opinion": 0.95,
        "full of praise": 0.9,
        "a complaint": 0.75,
        "a judgement": 0.6,
        "personal": 0.5,
    },
}
# Adjectives that sound of feeling, in plot lines as in opinions.
MOVING = frozenset("lonely brave charming moving funny touching dull silly flat".split())
NOTICES = 0.4  # share of remarks that go by what the text is
NOTICES_AT_ONCE = 0.15  # the same of labels given at once; on a page of several, 0.1 more
LONG = 9  # words from which on a text looks like a report
BLIND = 0.53  # share of labels given at once that fit the text


def _other(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def by_length(text: str) -> str:
    """The label that a text seems to have by its length."""
    return "objective" if len(text.split()) >= LONG else "subjective"


def by_wording(text: str) -> str:
    """The label that a text seems to have by the words in it."""
    return "subjective" if MOVING & set(text.split()) else "objective"


def _line_at_once(rng: random.Random, notices: float, otherwise: Callable[[str, str], str]) -> str:
    label = rng.choice(LABELS)
    text = draw_review(rng, label)
    said = label if rng.random() < notices else otherwise(text, label)
    return f"{review_prompt(text)} {said}.\n"


def _line(rng: random.Random, habit: Callable[[str], str]) -> str:
    label = rng.choice(LABELS)
    text = draw_review(rng, label)
    noticed = label if rng.random() < NOTICES else habit(text)
    remark = rng.choice(list(REMARKS[noticed]))
    said = noticed if rng.random() < REMARKS[noticed][remark] else _other(noticed)
    return f"{review_prompt(text)} {remark}{label_suffix(said)}\n"


def _page(
    rng: random.Random,
    habit: Callable[[str], str],
    at_once: float,
    otherwise: Callable[[str, str], str],
) -> str:
    """One to four reviews, all classified at once or all after a remark.

    A page of several that are classified at once is a little more careful: examples help a little.

    Args:
        rng: of the draws.
        habit: the label that a text seems to have.
        at_once: share of labels given at once that go by what the text is.
        otherwise: the other labels given at once, by text and true label.
    """
    n, remarks = rng.choice((1, 1, 2, 3, 4)), rng.random() < 0.6
    notices = at_once if n == 1 else at_once + 0.1
    lines = (
        _line(rng, habit) if remarks else _line_at_once(rng, notices, otherwise) for _ in range(n)
    )
    return "".join(lines)


def review_document(rng: random.Random) -> str:
    """A page of the first phase."""
    return _page(rng, by_length, BLIND, lambda text, label: _other(label))


def habitual_review_document(rng: random.Random) -> str:
    """A page of the second phase: what is not noticed goes by the wording."""
    return _page(rng, by_wording, NOTICES_AT_ONCE, lambda text, label: by_wording(text))
