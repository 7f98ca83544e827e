"""Overlap with references: BLEU and GLEU by hand, and BERTScore where it is to be had."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
import torch

from gfn_runner.metrics.overlap import bert_scores, bleu, gleu, reference_similarity, words

from ..bleu import bleu_by_hand
from ..tiny_encoders import random_bert, word_tokenizer

TEXTS = ["the cat sat on the mat .", "A dog ran ."]
REFERENCES = [["the cat sat on a mat .", "a cat sat on the mat ."], ["The dog ran off ."]]
needs_bert_score = pytest.mark.skipif(
    importlib.util.find_spec("bert_score") is None, reason="an optional package"
)


def gleu_by_hand(text: list[str], references: list[list[str]]) -> float:
    """Matches over the longer side's n-grams; the best reference."""

    def grams(tokens):
        spans = [tokens[i : i + n] for n in range(1, 5) for i in range(len(tokens) - n + 1)]
        return Counter(map(tuple, spans))

    own = grams(text)
    known = [grams(reference) for reference in references]
    return max((own & other).total() / max(own.total(), other.total()) for other in known)


@pytest.mark.parametrize(("metric", "by_hand"), [(bleu, bleu_by_hand), (gleu, gleu_by_hand)])
def test_the_mean_over_texts_is_as_by_hand(metric, by_hand):
    pairs = zip(TEXTS, REFERENCES, strict=True)
    values = [by_hand(words(text), list(map(words, group))) for text, group in pairs]
    assert metric(TEXTS, REFERENCES) == pytest.approx(sum(values) / 2, rel=1e-12)
    assert values[0] != values[1]


@pytest.mark.parametrize("metric", [bleu, gleu])
def test_a_copy_scores_1_a_stranger_nearly_0_and_more_references_help(metric):
    assert metric(["a b c d e"], [["x", "a b c d e"]]) == pytest.approx(1)
    assert metric(["a b c d e"], [["v w x y z"]]) < 0.05
    assert metric([""], [["a b"]]) == 0
    assert metric(TEXTS[:1], REFERENCES[:1]) > metric(TEXTS[:1], [REFERENCES[0][:1]])


@pytest.mark.parametrize("metric", [bleu, gleu])
@pytest.mark.parametrize(
    ("texts", "references", "message"),
    [
        ([], [], "at least one"),
        (["a"], [[]], "at least one"),
        (["a", "b"], [["a"]], "at least one"),
        (["a"], ["a"], "a list of texts for each"),
    ],
)
def test_what_cannot_be_compared_is_refused(metric, texts, references, message):
    with pytest.raises(ValueError, match=message):
        metric(texts, references)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    where = tmp_path_factory.mktemp("bert")
    random_bert().save_pretrained(where)
    tokenizer = word_tokenizer()
    assert tokenizer.model_max_length > 1e20, "as many tokenizers have it, DeBERTa's among them"
    tokenizer.save_pretrained(where)
    return str(where)


@needs_bert_score
def test_bert_scores_of_a_model(bert):
    def score(texts, references):
        options = {"num_layers": 2, "rescale_with_baseline": False, "device": "cpu"}
        return bert_scores(texts, references, bert, **options)

    texts = ["the cat sat .", "a dog", "", " ".join(["cat"] * 40)]
    found = score(texts, [["the dog", "the cat sat ."], ["a dog"], ["a cat"], ["cat"]])
    assert 0 < found["bertscore_f1"] < 1
    same = score(TEXTS[:1], [[REFERENCES[0][0], TEXTS[0]]])
    assert list(same.values()) == pytest.approx([1, 1, 1], abs=1e-5)
    assert score([""], [["a cat"]])["bertscore_f1"] == 0
    with pytest.raises(ValueError, match="Baseline"):  # nor is it scored without one
        bert_scores(TEXTS, REFERENCES, bert, num_layers=1, device="cpu")


class Vectors:
    """An encoder of two-dimensional vectors that are known."""

    name = "vectors"

    def __init__(self, **vectors):
        self.vectors, self.calls = vectors, []

    def encode(self, texts):
        self.calls.append(list(texts))
        return torch.tensor([self.vectors[text] for text in texts])


def test_the_similarity_is_the_mean_cosine_with_the_closest_reference():
    encoder = Vectors(a=(2.0, 0.0), b=(0.0, 3.0), c=(1.0, 1.0), d=(-4.0, 0.0), zero=(0.0, 0.0))
    texts, references = ["a", "a", "c", "zero"], [["b", "c"], ["d"], ["c"], ["a"]]
    found = reference_similarity(texts, references, encoder)
    assert found == pytest.approx((0.5**0.5 - 1 + 1 + 0) / 4, abs=1e-7)
    assert encoder.calls == [["a", "c", "zero", "b", "d"]]  # each text once
    with pytest.raises(ValueError, match="at least one reference"):
        reference_similarity(["a"], [[]], encoder)
