"""Sequence classifiers in Hugging Face format: loading, labels, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gfn_runner.errors import Problem, UserError, did_you_mean
from gfn_runner.lm.model_folders import folder_problems
from gfn_runner.lm.pretrained import Source, quantization_problems, resolve

_BATCH = 64
_ALLOWED = "a folder in Hugging Face format, or a hub id, of a sequence classifier"


class SequenceClassifier:
    """A sequence classifier with one logit per label.

    Attributes:
        labels: label names, in the order of the logits.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any):
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.labels = _labels(model.config)
        if model.config.pad_token_id is None:
            # Some heads look for the last non-padding token and need a padding id even if nothing
            # is padded. No token has this one.
            model.config.pad_token_id = -1
        longest = getattr(model.config, "max_position_embeddings", None)
        self.longest = min(longest or 512, tokenizer.model_max_length)

    def index(self, label: str) -> int:
        """Return the index of a label given by name (case-insensitive) or by number.

        Raises:
            UserError: if there is no such label.
        """
        found = _index(self.labels, label)
        if found is None:
            raise UserError([_no_label(self.name, label, self.labels)])
        return found

    @torch.no_grad()
    def log_probs(self, texts: Sequence[str]) -> Tensor:
        """Return log p(label | text) in nats, fp32, on the CPU. Shape (texts, labels).

        Multi-label models use an independent log-sigmoid per label. Only texts of equal token length
        are batched, so no value depends on padding. Texts beyond the model's context are truncated.
        """
        rows = [self._ids(text) for text in texts]
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(rows):
            by_length.setdefault(len(ids), []).append(place)
        independent = self.model.config.problem_type == "multi_label_classification"
        result_NL = torch.zeros(len(rows), len(self.labels))
        for same in by_length.values():
            for start in range(0, len(same), _BATCH):
                places = same[start : start + _BATCH]
                token_NT = torch.tensor([rows[p] for p in places], device=self.model.device)
                output = self.model(input_ids=token_NT, attention_mask=torch.ones_like(token_NT))
                logits_NL = output.logits.float().cpu()
                result_NL[places] = (
                    logsigmoid(logits_NL) if independent else logits_NL.log_softmax(-1)
                )
        return result_NL

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text)["input_ids"][: self.longest]
        if ids:
            return ids
        # The text is empty and the tokenizer adds no special tokens.
        tokens = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return [next((token for token in tokens if token is not None), 0)]


@lru_cache(maxsize=8)
def _loaded(name: str) -> SequenceClassifier:
    from transformers import AutoModelForSequenceClassification

    source = _source(name)
    config, tokenizer = source.config(), source.tokenizer()
    problems = list(quantization_problems(config.to_dict(), name, source.key, "none"))
    if problems:
        raise UserError(problems)
    model = source.model(AutoModelForSequenceClassification, config, dtype=torch.float32)
    return SequenceClassifier(name, model.eval(), tokenizer)


def classifier(name: str, device: str | None = None) -> SequenceClassifier:
    """Load the classifier from a folder or hub id, once per process.

    Args:
        device: device to move it to; ``None`` leaves it where it is.

    Raises:
        UserError: if it cannot be found or read.
    """
    found = _loaded(name)
    if device is not None:
        found.model.to(device)
    return found


def label_problems(name: str, labels: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    """Yield problems with a classifier's name and the labels requested of it, without loading weights.

    Args:
        labels: pairs of where the label is requested (for messages) and the label.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        source = _source(name)
        config, _ = source.config(), source.tokenizer()
        problems = list(source.weights_problems(AutoModelForSequenceClassification, config))
    except UserError as error:
        problems = error.problems
    if problems:
        yield from problems
        return
    known = _labels(config)
    if len(known) < 2:
        yield Problem(
            f"classifier {name}", f"it has the labels {list(known)}", "at least two labels"
        )
        return
    for where, label in labels:
        if _index(known, label) is None:
            yield _no_label(where, label, known)


def _source(name: str) -> Source:
    key = f"classifier {name}"
    problems = list(folder_problems(name, key, _ALLOWED))
    if problems:
        raise UserError(problems)
    source = resolve(name, key, _ALLOWED)
    source.require_available()
    return source


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[place]) for place in range(config.num_labels))


def _index(labels: Sequence[str], label: str) -> int | None:
    folded = [name.casefold() for name in labels]
    if label.casefold() in folded:
        return folded.index(label.casefold())
    return int(label) if label.isdecimal() and int(label) < len(labels) else None


def _no_label(where: str, label: str, known: Sequence[str]) -> Problem:
    allowed = f"{', '.join(known)}, or a number from 0 to {len(known) - 1}"
    return Problem(where, f"no label {label!r}", allowed, did_you_mean(label, known))
