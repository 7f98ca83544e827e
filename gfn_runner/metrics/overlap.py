"""Likeness of texts and references: BLEU-4, GLEU-4, embeddings and, where it is installed, BERTScore.

All of them are means over one or more texts. A text has at least one reference, and the closest counts.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch.nn.functional import normalize

if TYPE_CHECKING:
    from gfn_runner.lm.encoder import Encoder

logger = logging.getLogger(__name__)


def words(text: str) -> list[str]:
    """Runs of letters and digits, and runs of punctuation, in the text's own case.

    ``nltk``'s ``wordpunct_tokenize``: it needs no data file. ``"It's 7."`` is ``It ' s 7 .``.
    """
    from nltk.tokenize import wordpunct_tokenize

    return wordpunct_tokenize(text)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean sentence BLEU-4, in 0..1 (Papineni et al. 2002; smoothing method 1, Chen & Cherry 2014).

    ``nltk``'s, over the words of :func:`words`, in their own case. The mean is over texts: this is not
    corpus BLEU.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    return _mean(
        lambda known, text: sentence_bleu(known, text, smoothing_function=smooth), texts, references
    )


def gleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean sentence GLEU, n-grams of 1 to 4 words, in 0..1 (Wu et al. 2016, arXiv:1609.08144)."""
    from nltk.translate.gleu_score import sentence_gleu

    return _mean(sentence_gleu, texts, references)


def _mean(
    score: Callable[[list[list[str]], list[str]], float],
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
) -> float:
    scores = [
        score([words(reference) for reference in group], words(text))
        for text, group in zip(texts, references, strict=True)
    ]
    return float(sum(scores) / len(scores))


def reference_similarity(
    texts: Sequence[str], references: Sequence[Sequence[str]], encoder: Encoder
) -> float:
    """Mean cosine of each text's embedding and its reference's, in −1..1.

    Numbers of different encoders are not comparable. A vector of length 0 is orthogonal to all others.
    """
    # Each text is embedded once: samples of a condition share their references.
    different = list(dict.fromkeys([*texts, *(r for group in references for r in group)]))
    unit_NE = normalize(encoder.encode(different).double().cpu(), dim=1)
    vector = dict(zip(different, unit_NE, strict=True))
    closest = [
        max(float(vector[text] @ vector[reference]) for reference in group)
        for text, group in zip(texts, references, strict=True)
    ]
    return sum(closest) / len(closest)


def bert_scores(
    model: str, texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """BERTScore (Zhang et al. 2020, arXiv:1904.09675) by the optional package ``bert-score``.

    Rescaled with the package's English baseline of the model, as in the paper.

    Args:
        model: a hub id that the package knows.
        texts, references: see above.

    Returns:
        ``bertscore_precision``, ``…_recall``, ``…_f1``; empty, with a line in the log, without package, model
        or baseline.
    """
    try:
        scorer = _bert_scorer(model)
        if scorer is None:
            return {}
        values = scorer.score(list(texts), [list(group) for group in references])
    except Exception as error:  # of the package or of the model; it must not end a run
        _bert_is_left_out(model, error)
        return {}
    names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
    return {name: float(value.double().mean()) for name, value in zip(names, values, strict=True)}


def _bert_is_left_out(model: str, error: Exception) -> None:
    first_line = (str(error).strip() or "no message").splitlines()[0]
    why = f"model {model!r} cannot be used: {type(error).__name__}: {first_line}"
    logger.warning("BERTScore is left out: %s", why)


@lru_cache(maxsize=1)
def _bert_scorer(model: str) -> Any:
    """The package's scorer, loaded once; ``None``, with a line in the log, where that fails."""
    if importlib.util.find_spec("bert_score") is None:
        why = "the package bert-score is not installed: pip install 'gfn-runner[bertscore]'"
        logger.warning("BERTScore is left out: %s", why)
        return None
    try:
        return _loaded_bert_scorer(model)
    except Exception as error:
        _bert_is_left_out(model, error)
        return None


def _loaded_bert_scorer(model: str, **options: Any) -> Any:
    from bert_score import BERTScorer

    options = {"lang": "en", "rescale_with_baseline": True} | options
    scorer = BERTScorer(model_type=model, **options)
    # bert-score 0.3.13 with transformers 5: a limit of 1e30 tokens, which is how a tokenizer states none,
    # overflows; and a method that it calls for empty texts is gone.
    tokenizer = scorer._tokenizer
    positions = getattr(scorer._model.config, "max_position_embeddings", None) or 512
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if not hasattr(tokenizer, "build_inputs_with_special_tokens"):
        tokenizer.build_inputs_with_special_tokens = lambda ids: tokenizer("")["input_ids"]
    return scorer
