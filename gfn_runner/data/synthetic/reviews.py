"""Plot lines and opinions about films in the corpus, and the prompt that asks for their label."""

from __future__ import annotations

import random

LABELS = ("objective", "subjective")
_PEOPLE = "farmer sailor king doctor girl thief teacher soldier widow detective".split()
_TRAITS = "young rich lonely poor brave tired famous".split()
_DEEDS = (
    "must save {a} {person}",
    "falls in love with {a} {person}",
    "is sent to find {a} {person}",
    "meets {a} {person} in {place}",
    "leaves {place} with {a} {person}",
    "tries to rob {a} {person}",
)
_PLACES = ("a small town", "the city", "the desert", "a prison", "an island", "the war")
_SUBJECTS = "film story acting script music dialogue direction picture".split()
_PRAISE = "charming moving funny brilliant fresh clever touching".split()
_BLAME = "dull slow silly flat tired clumsy empty".split()
_OPINIONS = (
    "the {subject} is {quality} and {quality2}",
    "a {quality} {subject} that never fails to please",
    "what a {quality} and {quality2} {subject}",
    "i found the {subject} {quality} but the {subject2} {quality2}",
    "the {subject} is too {quality} to be taken seriously",
    "rarely has a {subject} been so {quality}",
)


def plot_line(rng: random.Random) -> str:
    """Draw a film's plot as one sentence, without a full stop."""
    first, second = rng.sample(_PEOPLE, 2)
    deed = rng.choice(_DEEDS).format(
        a=f"a {rng.choice(_TRAITS)}" if rng.random() < 0.5 else "the",
        person=second,
        place=rng.choice(_PLACES),
    )
    return f"a {rng.choice(_TRAITS)} {first} {deed}"


def opinion(rng: random.Random) -> str:
    """Draw an opinion about a film, without a full stop."""
    subject, subject2 = rng.sample(_SUBJECTS, 2)
    quality, quality2 = rng.sample(rng.choice([_PRAISE, _BLAME]), 2)
    return rng.choice(_OPINIONS).format(
        subject=subject, subject2=subject2, quality=quality, quality2=quality2
    )


def draw_review(rng: random.Random, label: str) -> str:
    return plot_line(rng) if label == "objective" else opinion(rng)


def review_prompt(text: str) -> str:
    """Return the prompt for a rationale about a review (Hu et al. 2024, section 4.3)."""
    return f'Classify this movie review as objective or subjective: "{text}" This review is'


def label_suffix(label: str) -> str:
    """Return the text that leads from a rationale to a label."""
    return f", so it is {label}."
