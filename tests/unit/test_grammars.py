"""The corpus's grammars and their judges: what they write, they recognise, and nothing else."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from gfn_runner.data.synthetic import news, numbers, reviews, sentences, stories, velan
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
        assert not said["got"] & said["nothing"]
        assert not said["got"] & said["other"]
        assert not said["nothing"] & said["other"]


def test_infill_documents_seldom_fit(rng):
    fits = Counter()
    for _ in range(2000):
        document = stories.infill_document(rng)
        found = re.fullmatch(r"Beginning: (.+)\nEnding: (.+)\nMiddle: (.+)\.\n", document)
        assert found
        fits[is_sentence(found[3])] += 1
    assert fits[False] == 0


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


def test_the_corpus_translates_mostly_right(rng):
    right = Counter()
    for _ in range(1500):
        for line in velan.translation_document(rng).splitlines():
            found = re.fullmatch(r"Velan: (.+)\. English: (.+)\.", line)
            right[found[2] in velan.translations(found[1].split())] += 1
    assert 0.75 < right[True] / right.total() < 0.9


def test_word_lists_fit_into_one_sentence(rng):
    for words in sentences.word_lists(rng, 300):
        assert 1 <= len(words) <= 3
        slots = {s: w for w in words for s, known in sentences._SLOTS.items() if w in known}
        assert len(slots) == len(words)
        text = sentences.sentence(rng, **slots)
        assert sentences.is_sentence(text)
        assert all(re.search(rf"\b{word}\b", text) for word in words)


def test_numbers_are_far_from_uniform_and_sometimes_none(rng):
    drawn = Counter(numbers.number_document(rng) for _ in range(20_000))
    pattern = re.escape(numbers.PROMPT) + r" (\d+)\.\n"
    valid = Counter()
    for text, count in drawn.items():
        found = re.fullmatch(pattern, text)
        if found and 0 <= int(found[1]) <= 100:
            valid[int(found[1])] += count
    assert 0.03 < 1 - valid.total() / drawn.total() < 0.09
    assert valid[42] > 20 * valid[40] and len(valid) == 101


_REMARK = re.compile(r'.*: "(.+)" This review is (.+), so it is (\w+)\.')
_AT_ONCE = re.compile(r'.*: "(.+)" This review is (\w+)\.')
WRITERS = {
    reviews.review_document: reviews.by_length,
    reviews.habitual_review_document: reviews.by_wording,
}


def kind_of(text: str) -> str:
    """What a review is, by the grammar: plot lines begin with a person."""
    return "objective" if text.split()[2] in reviews._PEOPLE else "subjective"


@pytest.mark.parametrize("writer", WRITERS)
def test_remarks_err_together_and_lead_to_labels(rng, writer):
    """Of a text that looks like the other kind, most remarks are wrong: votes do not mend it."""
    looks_like, noticed, led = WRITERS[writer], Counter(), Counter()
    for _ in range(4000):
        for line in writer(rng).splitlines():
            if (found := _REMARK.fullmatch(line)) is None:
                continue
            text, remark, label = found.groups()
            about = next(name for name, known in reviews.REMARKS.items() if remark in known)
            led[remark, about == label] += 1
            if looks_like(text) != kind_of(text):
                noticed[about == kind_of(text)] += 1
    assert noticed[True] / noticed.total() == pytest.approx(reviews.NOTICES, abs=0.04)
    for remarks in reviews.REMARKS.values():
        for remark, share in remarks.items():
            n = led[remark, True] + led[remark, False]
            assert led[remark, True] / n == pytest.approx(share, abs=0.08)


def test_labels_given_at_once_go_by_the_habit(rng):
    right = Counter()
    for _ in range(4000):
        for line in reviews.habitual_review_document(rng).splitlines():
            if (found := _AT_ONCE.fullmatch(line)) is not None:
                text, label = found.groups()
                misled = reviews.by_wording(text) != kind_of(text)
                right[misled, label == kind_of(text)] += 1
    assert right[False, False] == 0
    wrong = right[True, False] / (right[True, True] + right[True, False])
    assert 0.7 < wrong < 1 - reviews.NOTICES_AT_ONCE + 0.03


@pytest.mark.parametrize("looks_like", WRITERS.values())
@pytest.mark.parametrize("label", reviews.LABELS)
def test_a_habit_misleads_about_a_third_of_the_reviews(rng, label, looks_like):
    drawn = [reviews.draw_review(rng, label) for _ in range(2000)]
    assert all(kind_of(text) == label for text in drawn)
    assert 0.55 < sum(looks_like(text) == label for text in drawn) / 2000 < 0.8
