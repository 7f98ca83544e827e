"""Overlap of texts with references: BLEU-4, GLEU-4 and, where it is installed, BERTScore."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gfn_runner.metrics.words import words

BERT_MODEL = "microsoft/deberta-xlarge-mnli"


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean sentence BLEU-4, in 0..1 (Papineni et al. 2002; smoothing method 1, Chen & Cherry 2014).

    ``nltk``'s, over the words of :func:`words`, in their own case. The mean is over texts: this is not
    corpus BLEU.

    Args:
        texts: one or more.
        references: of each text, at least one; the closest counts.

    Raises:
        ValueError: without texts, or at a text without references.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    return _mean(
        lambda known, text: sentence_bleu(known, text, smoothing_function=smooth), texts, references
    )


def gleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean sentence GLEU, n-grams of 1 to 4 words, in 0..1 (Wu et al. 2016, arXiv:1609.08144).

    Words, references and errors as in :func:`bleu`.
    """
    from nltk.translate.gleu_score import sentence_gleu

    return _mean(sentence_gleu, texts, references)


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


@dataclass(frozen=True)
class BertScores:
    """Means over texts; rescaled ones may lie below 0."""

    precision: float
    recall: float
    f1: float


class BertScorer:
    """BERTScore (Zhang et al. 2020, arXiv:1904.09675) by the package ``bert-score``, if it can be had.

    The model is loaded when it is first needed, and kept; where that fails it is not tried again.

    Args:
        model: a hub id that the package knows, or any model together with its ``layer``.
        layer: whose hidden states are compared; ``None`` takes the package's choice for the model.
        rescale: with the package's English baseline of the model, as in the paper.
        device: ``None`` takes CUDA where there is one.
    """

    def __init__(
        self,
        model: str = BERT_MODEL,
        *,
        layer: int | None = None,
        rescale: bool = True,
        device: str | None = None,
    ):
        self.model, self.layer, self.rescale, self.device = model, layer, rescale, device
        self._scorer: Any = None
        self._missing = ""

    def scores(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> tuple[BertScores | None, str]:
        """Means over texts.

        Args:
            texts: one or more.
            references: of each text, at least one; the best counts.

        Returns:
            The scores and an empty message; or ``None`` and why there are none. Nothing stands in for
            them: without package or model the metric is absent, and the caller says so.

        Raises:
            ValueError: without texts, or at a text without references.
        """
        _check(texts, references)
        if not self._missing and self._scorer is None:
            self._load()
        if self._missing:
            return None, self._missing
        try:
            values = self._scorer.score(list(texts), [list(group) for group in references])
        except Exception as error:
            return None, self._left_out(error)
        precision, recall, f1 = (float(value.double().mean()) for value in values)
        return BertScores(precision, recall, f1), ""

    def _load(self) -> None:
        if importlib.util.find_spec("bert_score") is None:
            why = "the package bert-score is not installed: pip install 'gfn-runner[bertscore]'"
            self._missing = f"BERTScore is left out: {why}"
            return
        try:
            self._scorer = _bert_scorer(self.model, self.layer, self.rescale, self.device)
        except Exception as error:
            self._missing = self._left_out(error)

    def _left_out(self, error: Exception) -> str:
        # Whatever a foreign package and a foreign model stumble over, it must not end a run.
        first_line = (str(error).strip() or "no message").splitlines()[0]
        why = f"model {self.model!r} cannot be used: {type(error).__name__}: {first_line}"
        return f"BERTScore is left out: {why}"


def bert_scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], **options: Any
) -> tuple[BertScores | None, str]:
    """:meth:`BertScorer.scores` of a scorer that is used once; ``options`` are its arguments."""
    return BertScorer(**options).scores(texts, references)


def _bert_scorer(model: str, layer: int | None, rescale: bool, device: str | None) -> Any:
    from bert_score import BERTScorer

    scorer = BERTScorer(
        model_type=model,
        num_layers=layer,
        lang="en",
        rescale_with_baseline=rescale,
        device=device,
    )
    # bert-score 0.3.13 and transformers 5 miss each other in two points: a limit of 1e30 tokens, which
    # is how a tokenizer states none, overflows; and the tokens of an empty text are asked of a method
    # that is gone.
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
