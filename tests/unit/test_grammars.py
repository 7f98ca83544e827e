"""The corpus's grammars and their judges: what they write, they recognise, and nothing else."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from gfn_runner.data.synthetic import news, sentences, stories, velan
from gfn_runner.data.synthetic.judge import is_sentence


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def test_a_story_fits_its_own_ends_and_seldom_those_of_another(rng):
    drawn = [stories.draw_story(rng) for _ in range(400)]
    for story in drawn:
        assert len(story.sentences) == 5 and all(map(is_sentence, story.sentences))
        for judge in (stories.fits_both, stories.fits_beginning, stories.fits_ending):
            assert judge(story.plot, f" {story.middle}")
    others = [stories.fits_both(a.plot, b.middle) for a, b in itertools.pairwise(drawn)]
    assert sum(others) < 0.03 * len(others)


PLOT = stories.Plot("Mia", "kite", "ask", "uncle", "barn", "drum", "got", "bell")


@pytest.mark.parametrize(
    ("sentence", "both", "beginning", "ending"),
    [
        ("The uncle gave her a kite", True, True, True),
        ("The uncle had a kite for her", True, True, True),
        ("The uncle gave her a bell instead", False, True, False),
        ("The uncle could not help her", False, True, False),
        ("The aunt gave her a kite", False, False, True),
        ("The uncle gave him a kite", False, False, True),
        ("She found the kite there", False, False, True),
        ("The uncle gave her a kite.", False, False, False),
        ("The uncle gave her a kite and left", False, False, False),
        ("", False, False, False),
    ],
)
def test_which_end_a_middle_fits(sentence, both, beginning, ending):
    assert stories.fits_both(PLOT, sentence) is both
    assert stories.fits_beginning(PLOT, sentence) is beginning
    assert stories.fits_ending(PLOT, sentence) is ending


def test_the_ending_decides_the_outcome(rng):
    """No ending belongs to two outcomes of one plot: the fourth sentence is decided by the rest."""
    for _ in range(200):
        plot = stories.draw_plot(rng)
        said = {
            outcome: {t.format(**plot.words()) for t in stories._ENDINGS[outcome]}
            for outcome in stories.OUTCOMES
        }
        assert all(not said[a] & said[b] for a, b in itertools.combinations(said, 2))


def test_news_are_bland_or_facts_of_their_topic(rng):
    kinds = Counter()
    for _ in range(3000):
        topic = rng.choice(news.TOPICS)
        text = news.news_sentence(rng, topic)
        assert news.is_sentence(text) and is_sentence(text + ".")
        kinds["fact" if news.is_specific(text, topic) else "bland"] += 1
        other = news.TOPICS[news.TOPICS.index(topic) - 1]
        assert not news.is_specific(text, other)
    assert kinds["bland"] / kinds.total() == pytest.approx(0.6, abs=0.03)
    assert not news.is_sentence("The mayor of the town said")


def test_all_right_translations_and_only_those():
    assert velan.translations(("kesi", "vulo", "tari", "domu")) == [
        "the red fox sees the house",
        "the red fox sees the home",
        "the red fox watches the house",
        "the red fox watches the home",
    ]
    for wrong in (("kesi",), ("kesi", "vulo", "tari", "cat")):
        with pytest.raises(ValueError, match="no Velan"):
            velan.translations(wrong)


def test_word_lists_fit_into_one_sentence(rng):
    for words in sentences.word_lists(rng, 300):
        assert 1 <= len(words) <= 3
        slots = {s: w for w in words for s, known in sentences._SLOTS.items() if w in known}
        assert len(slots) == len(words)
        text = sentences.sentence(rng, **slots)
        assert sentences.is_sentence(text)
        assert all(re.search(rf"\b{word}\b", text) for word in words)
