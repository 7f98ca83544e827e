"""Five-sentence stories of the corpus and their checks: want, obstacle, action, outcome, feeling.

The fourth sentence is determined by the others: the action (third sentence) says who or what it is about,
and the ending says how it turns out. Since the grammar is known, it can decide whether any sentence fits
the beginning, the ending, or both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gfn_runner.data.synthetic.sentences import PLACES, THINGS, any_of

HEROES: dict[str, str] = dict.fromkeys("Tom Sam Ben Max Leo Finn Paul Jack".split(), "he") | (
    dict.fromkeys("Mia Anna Lily Rosa Emma Nora Kate Jane".split(), "she")
)
HELPERS = "uncle aunt father mother friend teacher neighbour sister".split()
_PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her")}

_WANTS = (
    "{Name} wanted a {thing}",
    "{Name} dreamed of a {thing}",
    "{Name} was looking for a {thing}",
)
_OBSTACLES = {
    "ask": ("But the shop was closed", "But {he} did not know where to find one"),
    "work": ("But {he} had no money", "But it cost too much"),
    "search": ("But somebody had hidden it", "But {he} had lost it"),
    "trade": ("But the shop took no money", "But {he} only had a {own}"),
}
_ACTIONS = {
    "ask": ("So {he} asked {his} {helper}", "So {he} went to see {his} {helper}"),
    "work": ("So {he} worked in the {place}", "So {he} helped in the {place}"),
    "search": ("So {he} looked in the {place}", "So {he} went to the {place}"),
    "trade": ("So {he} took {his} {own} to the {place}", "So {he} offered {his} {own}"),
}
_MIDDLE_LINES = """
ask got: The {helper} gave {him} a {thing} | The {helper} had a {thing} for {him}
ask nothing: The {helper} had no {thing} | The {helper} could not help {him}
ask other: The {helper} gave {him} a {other} instead | The {helper} only had a {other}
work got: {He} earned enough for the {thing} | After a week {he} could buy the {thing}
work nothing: {He} earned too little for the {thing} | Nobody paid {him}
work other: {He} earned enough for a {other} | {He} was paid with a {other}
search got: {He} found the {thing} there | The {thing} was in the {place}
search nothing: {He} found nothing there | There was no {thing} in the {place}
search other: {He} found a {other} there | Only a {other} was in the {place}
trade got: A man took the {own} for a {thing} | {He} got a {thing} for the {own}
trade nothing: Nobody wanted the {own} | Nobody had a {thing} for {him}
trade other: A man took the {own} for a {other} | {He} got a {other} for the {own}
"""
_ENDING_LINES = """
got: {Name} was happy with the {thing} | {Name} played with the {thing} all day | {Name} showed the \
{thing} to everyone
nothing: {Name} went home without a {thing} | {Name} was sad that day | {Name} still had no {thing}
other: {Name} was happy with the {other} | {Name} played with the {other} all day | {Name} showed \
the {other} to everyone
"""


def _templates(lines: str) -> dict[str, tuple[str, ...]]:
    pairs = (line.split(": ") for line in lines.strip().splitlines())
    return {key: tuple(templates.split(" | ")) for key, templates in pairs}


MIDDLES = {(*key.split(),): sentences for key, sentences in _templates(_MIDDLE_LINES).items()}
_ENDINGS = _templates(_ENDING_LINES)
OUTCOMES = {"got": 0.4, "nothing": 0.3, "other": 0.3}


@dataclass(frozen=True)
class Plot:
    """The content of a story, independent of its wording.

    Attributes:
        thing: the thing the hero wants.
        action: ``ask``, ``work``, ``search`` or ``trade``.
        helper, place, own: whom the hero asks, where the story takes place, what the hero offers in trade.
        outcome: ``got``, ``nothing`` or ``other``.
        other: the thing the hero may get instead of ``thing``.
    """

    hero: str
    thing: str
    action: str
    helper: str
    place: str
    own: str
    outcome: str
    other: str

    def words(self) -> dict[str, str]:
        """Return the words that fill the slots of the templates."""
        he, him, his = _PRONOUNS[HEROES[self.hero]]
        slots = {"thing": self.thing, "helper": self.helper, "place": self.place}
        slots |= {"own": self.own, "other": self.other, "Name": self.hero}
        return slots | {"he": he, "him": him, "his": his, "He": he.capitalize()}


@dataclass(frozen=True)
class Story:
    """A plot written out in five sentences, stored without their full stops."""

    plot: Plot
    sentences: tuple[str, str, str, str, str]

    @property
    def beginning(self) -> str:
        return " ".join(f"{sentence}." for sentence in self.sentences[:3])

    @property
    def middle(self) -> str:
        return self.sentences[3]

    @property
    def ending(self) -> str:
        return f"{self.sentences[4]}."

    def text(self) -> str:
        return " ".join(f"{sentence}." for sentence in self.sentences)


def draw_plot(rng: random.Random) -> Plot:
    """Draw a plot with independent parts; the three things are distinct."""
    thing, own, other = rng.sample(THINGS, 3)
    return Plot(
        hero=rng.choice(list(HEROES)),
        thing=thing,
        action=rng.choice(list(_ACTIONS)),
        helper=rng.choice(HELPERS),
        place=rng.choice(PLACES),
        own=own,
        outcome=rng.choices(list(OUTCOMES), weights=list(OUTCOMES.values()))[0],
        other=other,
    )


def draw_story(rng: random.Random) -> Story:
    """Draw a plot and one wording of it."""
    plot = draw_plot(rng)
    parts = (
        _WANTS,
        _OBSTACLES[plot.action],
        _ACTIONS[plot.action],
        MIDDLES[plot.action, plot.outcome],
        _ENDINGS[plot.outcome],
    )
    words = plot.words()
    first, second, third, fourth, fifth = (rng.choice(part).format(**words) for part in parts)
    return Story(plot, (first, second, third, fourth, fifth))


def middles(plot: Plot) -> tuple[str, ...]:
    """Return every fourth sentence that the grammar can generate for a plot, without full stops."""
    words = plot.words()
    return tuple(template.format(**words) for template in MIDDLES[plot.action, plot.outcome])


def fits_both(plot: Plot, sentence: str) -> bool:
    """Return whether a fourth sentence (without its full stop) fits both the beginning and the ending."""
    return sentence.strip() in middles(plot)


def fits_beginning(plot: Plot, sentence: str) -> bool:
    """Return whether a fourth sentence can follow the beginning, whatever its outcome."""
    groups = (group for (action, _), group in MIDDLES.items() if action == plot.action)
    return _fits(sentence, groups, plot.words() | {"other": any_of(THINGS)})


def fits_ending(plot: Plot, sentence: str) -> bool:
    """Return whether a fourth sentence has the outcome that the ending tells, whoever it is about."""
    groups = (group for (_, outcome), group in MIDDLES.items() if outcome == plot.outcome)
    return _fits(sentence, groups, _any_words() | {"thing": plot.thing, "other": plot.other})


def is_sentence(sentence: str) -> bool:
    """Return whether the story grammar can generate this sentence (without its full stop)."""
    parts = (_OBSTACLES, _ACTIONS, MIDDLES, _ENDINGS)
    groups = [_WANTS, *(group for part in parts for group in part.values())]
    return _fits(sentence, groups, _any_words())


def _fits(sentence: str, groups: Iterable[Sequence[str]], words: dict[str, str]) -> bool:
    # Templates contain only letters, spaces and slots, so nothing needs escaping.
    patterns = (template.format(**words) for group in groups for template in group)
    return any(re.fullmatch(pattern, sentence.strip()) for pattern in patterns)


def _any_words() -> dict[str, str]:
    things = any_of(THINGS)
    slots = {"thing": things, "own": things, "other": things, "Name": any_of(HEROES)}
    slots |= {"helper": any_of(HELPERS), "place": any_of(PLACES), "He": any_of(["He", "She"])}
    return slots | {
        "he": any_of(["he", "she"]),
        "him": any_of(["him", "her"]),
        "his": any_of(["his", "her"]),
    }
