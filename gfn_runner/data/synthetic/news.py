"""News of the corpus and their checks: facts specific to a topic, and bland sentences for any topic.

Bland sentences are likely as a class and long: they share their beginning, and can continue in hundreds
of ways. Facts are short and fixed. Sharpening every next-token distribution therefore favors bland
sentences, while ``p^(1/T)`` over whole sentences favors facts, and sentences specific to a topic can be
distinguished from those common to all.
"""

from __future__ import annotations

import random
import re

from gfn_runner.data.synthetic.sentences import any_of

_FACTS = """
flood: Water covered the road. Boats went from house to house. Two bridges are gone. Schools stay \
closed until Monday. Rain fell for nine days
fire: Smoke could be seen for miles. Nobody was hurt. Ten houses burned down. Firemen came by \
night. A cat was saved from a roof
football: United won again. Both goals came late. Thousands of fans sang. Snow stopped the match. \
Our keeper broke a hand
election: Every vote was counted twice. Half of all voters stayed at home. Polls close at six. Nine \
women stood for office. Results come on Friday
strike: Trains did not run. Drivers ask for more pay. Talks broke down on Tuesday. Buses were full. \
Workers marched in silence
storm: Trees fell on cars. Wind tore off roofs. Power failed at noon. Ships stayed in port. Waves \
rose as high as walls
museum: Old coins are on show. Entry is free for children. Thieves took a painting. Visitors queue \
for hours. Bones of a whale hang there
harvest: Wheat prices fell. Apples are small this year. Frost killed the vines. Barns are full. \
Bees have come back
court: Judges heard nine witnesses. Lawyers asked for time. He pleaded not guilty. Prison for five \
years. Evidence was lost
space: Rockets start at dawn. Three men circle the moon. Signals arrive from Mars. Telescopes found \
a comet. Dust storms delay landing
"""
# The facts of each topic, without full stops.
FACTS: dict[str, tuple[str, ...]] = {
    topic: tuple(facts.split(". "))
    for topic, facts in (line.split(": ") for line in _FACTS.strip().splitlines())
}
TOPICS = list(FACTS)
_PEOPLE = "mayor minister council police press people speaker chairman".split()
_OFFICES = "town city county region country district".split()
_SPOKE = "said told asked thanked met heard answered warned".split()
_WHO = "reporters residents visitors families officials experts".split()
_WHEN = "today yesterday again later early".split()
_SHARE_BLAND = 0.6
NEWS_CONTEXT = "News:"

_BLAND = re.compile(
    f"The {any_of(_PEOPLE)} of the {any_of(_OFFICES)} {any_of(_SPOKE)} "
    f"the {any_of(_WHO)}(?: {any_of(_WHEN)})?"
)
_ALL_FACTS = {fact for facts in FACTS.values() for fact in facts}


def bland(rng: random.Random) -> str:
    """Draw a sentence that may occur in any news item, without its full stop."""
    when = f" {rng.choice(_WHEN)}" if rng.random() < 0.5 else ""
    return (
        f"The {rng.choice(_PEOPLE)} of the {rng.choice(_OFFICES)} {rng.choice(_SPOKE)} "
        f"the {rng.choice(_WHO)}{when}"
    )


def news_sentence(rng: random.Random, topic: str) -> str:
    return bland(rng) if rng.random() < _SHARE_BLAND else rng.choice(FACTS[topic])


def is_sentence(text: str) -> bool:
    """Return whether the sentence (without its full stop) can occur in the news."""
    return text.strip() in _ALL_FACTS or _BLAND.fullmatch(text.strip()) is not None


def is_specific(text: str, topic: str) -> bool:
    """Return whether the text is one of the topic's own facts."""
    return text.strip() in FACTS[topic]


def topic_prompt(topic: str) -> str:
    return f"Topic: {topic}. {NEWS_CONTEXT}"
