"""Pages of reviews in the corpus, with remarks and labels.

A remark made before classifying either reflects what the text is or follows a habit: texts with emotional
words look like opinions. The remarks on one text therefore err together, and a majority vote does not
correct them. Labels given without a remark nearly always follow the habit. Some remarks lead to their label
more often than others.

(In the first phase of pretraining, the habit depends on the length of the text, which a small model hardly
learns, and labels given at once are almost random. The second phase has the habit above.)
"""

from __future__ import annotations

import random
from collections.abc import Callable

from gfn_runner.data.synthetic.reviews import LABELS, draw_review, label_suffix, review_prompt

# Remarks for each label, and how often they lead to it.
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
# Emotional adjectives, which occur in plot lines as well as in opinions.
MOVING = frozenset("lonely brave charming moving funny touching dull silly flat".split())
NOTICES = 0.4  # share of remarks that reflect what the text is
NOTICES_AT_ONCE = 0.15  # the same for labels given at once; 0.1 more on pages with several
LONG = 9  # number of words from which a text looks like a report
BLIND = 0.53  # share of labels given at once that are right


def _other(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def by_length(text: str) -> str:
    """Return the label that a text's length suggests."""
    return "objective" if len(text.split()) >= LONG else "subjective"


def by_wording(text: str) -> str:
    """Return the label that a text's words suggest."""
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
    """Write one to four reviews, either all classified at once or all after a remark.

    Pages with several reviews classified at once are slightly more accurate: examples help a little.

    Args:
        rng: random generator.
        habit: returns the label that a text seems to have.
        at_once: share of labels given at once that reflect what the text is.
        otherwise: returns the other labels given at once, by text and true label.
    """
    n, remarks = rng.choice((1, 1, 2, 3, 4)), rng.random() < 0.6
    notices = at_once if n == 1 else at_once + 0.1
    lines = (
        _line(rng, habit) if remarks else _line_at_once(rng, notices, otherwise) for _ in range(n)
    )
    return "".join(lines)


def review_document(rng: random.Random) -> str:
    """Write a page for the first phase."""
    return _page(rng, by_length, BLIND, lambda text, label: _other(label))


def habitual_review_document(rng: random.Random) -> str:
    """Write a page for the second phase, whose mistakes follow the wording."""
    return _page(rng, by_wording, NOTICES_AT_ONCE, lambda text, label: by_wording(text))
