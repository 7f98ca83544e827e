"""Diversity, against n-grams, BLEU and cosines counted by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gfn_runner.lm.encoder import load_encoder
from gfn_runner.metrics.diversity import distinct_n, embedding_diversity, self_bleu
from gfn_runner.metrics.overlap import words

from ..bleu import bleu_by_hand

TEXTS = ["The cat sat on the mat.", "The cat ran off.", "A dog, it's said, sat on the mat."]


class Fixed:
    """An encoder that gives what it was given."""

    name = "fixed"

    def __init__(self, rows):
        self.rows = torch.tensor(rows)

    def encode(self, texts):
        return self.rows


def test_words_are_runs_of_letters_and_of_punctuation_in_their_own_case():
    assert words("It's 7...  Über\nx") == ["It", "'", "s", "7", "...", "Über", "x"]
    assert words(" \n") == []


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b", "a b"], 1) == 2 / 6
    assert distinct_n(["a b a b", "a b"], 2) == 2 / 4
    assert distinct_n(["a b", "b a"], 2) == 1, "n-grams do not run from text to text"
    assert distinct_n(["a b", "b a"], 3) == 0
    with pytest.raises(ValueError, match="at least one word"):
        distinct_n(["a", "b"], 0)


def test_self_bleu_is_the_mean_against_all_others():
    split = [words(text) for text in TEXTS]
    by_hand = [bleu_by_hand(t, split[:i] + split[i + 1 :]) for i, t in enumerate(split)]
    assert self_bleu(TEXTS) == pytest.approx(sum(by_hand) / 3, rel=1e-12)


def test_embedding_diversity_is_the_mean_over_pairs_of_different_samples():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    cosines = [
        torch.cosine_similarity(*pair, dim=0).item() for pair in itertools.permutations(rows, 2)
    ]
    found = embedding_diversity(["x"] * 6, Fixed((rows * 3).tolist()))
    assert found == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)


def test_embedding_diversity_of_copies_opposites_and_zeros():
    assert embedding_diversity(["x"] * 3, Fixed([[1.0, 2.0]] * 3)) == pytest.approx(0, abs=1e-12)
    assert embedding_diversity(["x"] * 2, Fixed([[1.0, 2.0], [-1.0, -2.0]])) == pytest.approx(2)
    assert embedding_diversity(["", ""], Fixed([[0.0, 0.0]] * 2)) == 0
    assert embedding_diversity(["", "x"], Fixed([[0.0, 0.0], [1.0, 0.0]])) == 1
    with pytest.raises(ValueError, match="not finite"):
        embedding_diversity(["x"] * 2, Fixed([[math.nan, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_fewer_than_two_texts_have_no_diversity(texts):
    for metric in (
        lambda: distinct_n(texts, 1),
        lambda: self_bleu(texts),
        lambda: embedding_diversity(texts, Fixed([[1.0]])),
    ):
        with pytest.raises(ValueError, match="two texts"):
            metric()


def test_word_counts_are_cosines_of_lower_case_words():
    encoder = load_encoder("words")
    vectors = encoder.encode(["The cat. The dog!", "a cat", "", "9 x"])
    assert vectors.dtype == torch.float32 and vectors.shape == (4, encoder.n_features)
    assert sorted(vectors[0][vectors[0] > 0].tolist()) == [1, 1, 2]
    cosine = torch.cosine_similarity(vectors[0], vectors[1], dim=0).item()
    # (the 2, cat 1, dog 1) · (a 1, cat 1): words of one letter count.
    assert cosine == pytest.approx(1 / (math.sqrt(6) * math.sqrt(2)), rel=1e-6)
    assert not vectors[2].any() and vectors[3].sum() == 2
    assert embedding_diversity(["Cat dog", "dog cat"], encoder) == pytest.approx(0, abs=1e-12)
    assert embedding_diversity(["cat", "dog"], encoder) == 1
