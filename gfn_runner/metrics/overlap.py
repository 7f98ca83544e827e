"""Similarity of texts and references: BLEU-4, GLEU-4, embeddings and, if it is installed, BERTScore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch.nn.functional import normalize

if TYPE_CHECKING:
    from gfn_runner.lm.encoder import Encoder


def words(text: str) -> list[str]:
    """Split a text into runs of letters and digits and runs of punctuation; case is kept.

    This is ``wordpunct_tokenize`` of ``nltk``, which needs no data file. ``"It's 7."`` is ``It ' s 7 .``.
    """
    from nltk.tokenize import wordpunct_tokenize

    return wordpunct_tokenize(text)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return mean sentence BLEU-4, in 0..1 (Papineni et al. 2002; smoothing method 1, Chen & Cherry 2014).

    Computed by ``nltk`` on the words of :func:`words`, case-sensitively. The mean is over texts: this is
    not corpus BLEU.

    Args:
        texts: one or more.
        references: at least one for each text; n-grams may match any of them.

    Raises:
        ValueError: without texts, or if a text has no references.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    return _mean(
        lambda known, text: sentence_bleu(known, text, smoothing_function=smooth), texts, references
    )


def gleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return mean sentence GLEU, n-grams of 1 to 4 words, in 0..1 (Wu et al. 2016, arXiv:1609.08144).

    Words and errors are as in :func:`bleu`; each text's best reference counts.
    """
    from nltk.translate.gleu_score import sentence_gleu

    return _mean(sentence_gleu, texts, references)


def reference_similarity(
    texts: Sequence[str], references: Sequence[Sequence[str]], encoder: Encoder
) -> float:
    """Return the mean cosine similarity of each text's embedding and its reference's, in −1..1.

    Args:
        texts: one or more.
        references: at least one for each text; the closest counts.
        encoder: text encoder; numbers from different encoders are not comparable. A zero vector is
            orthogonal to all others.

    Raises:
        ValueError: without texts, or if a text has no references.
    """
    _check(texts, references)
    # Each text is embedded once: samples of a condition share their references.
    different = list(dict.fromkeys([*texts, *(r for group in references for r in group)]))
    unit_NE = normalize(encoder.encode(different).double().cpu(), dim=1)
    vector = dict(zip(different, unit_NE, strict=True))
    closest = [
        max(float(vector[text] @ vector[reference]) for reference in group)
        for text, group in zip(texts, references, strict=True)
    ]
    return sum(closest) / len(closest)


def _mean(
    score: Callable[[list[list[str]], list[str]], float],
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
) -> float:
    _check(texts, references)
    scores = [
        score([words(reference) for reference in group], words(text))
        for text, group in zip(texts, references, strict=True)
    ]
    return float(sum(scores) / len(scores))


def bert_scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], model: str, **options: Any
) -> dict[str, float]:
    """Return mean BERTScores (Zhang et al. 2020, arXiv:1904.09675), by the package ``bert-score``.

    Args:
        texts: one or more.
        references: at least one for each text; the best counts.
        model: a hub id that the package knows; loaded once.
        options: options of ``BERTScorer``; scores are rescaled by its English baseline, as in the paper.

    Returns:
        ``bertscore_precision``, ``…_recall``, ``…_f1``; they may be below 0 if rescaled.

    Raises:
        ValueError: without texts, or if a text has no references.
        Exception: whatever is raised if the package, the model or its baseline is missing.
    """
    _check(texts, references)
    values = _bert_scorer(model, **options).score(list(texts), [list(g) for g in references])
    names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
    return {n: float(value.double().mean()) for n, value in zip(names, values, strict=True)}


@lru_cache(maxsize=1)
def _bert_scorer(model: str, **options: Any) -> Any:
    from bert_score import BERTScorer

    scorer = BERTScorer(
        model_type=model, **{"lang": "en", "rescale_with_baseline": True, **options}
    )
    # bert-score 0.3.13 with transformers 5: the limit of 1e30 tokens of a tokenizer without a limit
    # overflows; and a method that bert-score calls for empty texts no longer exists.
    tokenizer = scorer._tokenizer
    positions = getattr(scorer._model.config, "max_position_embeddings", None) or 512
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if not hasattr(tokenizer, "build_inputs_with_special_tokens"):
        tokenizer.build_inputs_with_special_tokens = lambda ids: tokenizer("")["input_ids"]
    return scorer


def _check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not texts or len(texts) != len(references) or not all(references):
        raise ValueError("overlap needs texts, and at least one reference for each of them")
    if any(isinstance(group, str) for group in references):
        raise ValueError("references are a list of texts for each text")
