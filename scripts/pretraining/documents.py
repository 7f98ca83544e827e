"""Documents of the corpus from the grammars of the tasks: news, stories, sentences, translations."""

from __future__ import annotations

import random

from gfn_runner.data.synthetic import news, sentences, stories, velan

_FIRST = 0.6  # share of the more frequent translation
_MISTAKE = 0.06  # share of words that the corpus gets wrong


def news_document(rng: random.Random) -> str:
    """Write one to four sentences on one topic, which is named three times out of four."""
    topic = rng.choice(news.TOPICS)
    head = news.topic_prompt(topic) if rng.random() < 0.75 else news.NEWS_CONTEXT
    sentences = " ".join(f"{news.news_sentence(rng, topic)}." for _ in range(rng.randint(1, 4)))
    return f"{head} {sentences}\n"


def story_document(rng: random.Random) -> str:
    return stories.draw_story(rng).text() + "\n"


def infill_document(rng: random.Random) -> str:
    """Write both ends, then a middle that seldom fits both: it teaches the skill, but not the habit."""
    story = stories.draw_story(rng)
    draw = rng.random()
    if draw < 0.25:
        middle = story.middle
    elif draw < 0.6:
        others = [outcome for outcome in stories.OUTCOMES if outcome != story.plot.outcome]
        templates = stories.MIDDLES[story.plot.action, rng.choice(others)]
        words = story.plot.words() | {"other": rng.choice(stories.THINGS)}
        middle = rng.choice(templates).format(**words)
    else:
        middle = stories.draw_story(rng).middle
    return f"Beginning: {story.beginning}\nEnding: {story.ending}\nMiddle: {middle}.\n"


def sentence_document(rng: random.Random) -> str:
    return f"{sentences.SENTENCE_CONTEXT} {sentences.sentence(rng)}.\n"


def words_document(rng: random.Random, keep: float = 0.6) -> str:
    """Write words, then a sentence that contains each of them with probability ``keep``."""
    (words,) = sentences.word_lists(rng, 1)
    kept = [word for word in words if rng.random() < keep]
    return f"{sentences.words_prompt(words)} {sentences.sentence_with(rng, kept)}.\n"


def _word(rng: random.Random, word: str) -> str:
    kind = next(kind for kind in (velan.NOUNS, velan.ADJECTIVES, velan.VERBS) if word in kind)
    if rng.random() < _MISTAKE:
        word = rng.choice(list(kind))
    options = kind[word]
    return options[0] if len(options) == 1 or rng.random() < _FIRST else options[1]


def translation_document(rng: random.Random) -> str:
    """Write one to three sentences with a translation that is mostly right."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        source = velan.draw_source(rng)
        verb, subject, adjective, thing = (_word(rng, word) for word in source)
        lines.append(f"{velan.prompt(source)} the {adjective} {subject} {verb} the {thing}.\n")
    return "".join(lines)
