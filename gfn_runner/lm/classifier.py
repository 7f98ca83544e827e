"""A sequence classifier in Hugging Face format: load, labels, log-probabilities; knows no posterior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from rapidfuzz import process
from torch import Tensor

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.checkpoint_files import checkpoint_problems, quantization_problems
from gfn_runner.lm.checks import must_be_at_hand
from gfn_runner.lm.pretrained import Source
from gfn_runner.lm.settings import model_folder

_BATCH = 64
_ALLOWED = "a folder in Hugging Face format, or a hub id, of a sequence classifier"


class SequenceClassifier:
    """A model with one logit a label.

    Attributes:
        labels: names, in the order of the logits.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any):
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.labels = _labels(model.config)
        if model.config.pad_token_id is None:
            # Some heads look for the last token that is no padding, and ask for an id even where
            # there is none. No token has this one.
            model.config.pad_token_id = -1
        longest = getattr(model.config, "max_position_embeddings", None)
        self.longest = min(longest or 512, tokenizer.model_max_length)

    def index(self, label: str) -> int:
        """Number of a label that is given by name, in capitals or not, or by number.

        Raises:
            UserError: if there is none.
        """
        found = _index(self.labels, label)
        if found is None:
            raise UserError([_no_label(self.name, label, self.labels)])
        return found

    @torch.no_grad()
    def log_probs(self, texts: Sequence[str]) -> Tensor:
        """log p(label | text) in nats, fp32, on the CPU. Shape (texts, labels).

        A model of independent labels gives each its own log-sigmoid. Texts of one length share a
        forward, so that no value depends on padding. What is longer than the model's context is cut.
        """
        rows = [self._ids(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        result_NL = torch.zeros(len(rows), len(self.labels))
        start = 0
        while start < len(order):
            length = len(rows[order[start]])
            end = start
            while end < len(order) and end - start < _BATCH and len(rows[order[end]]) == length:
                end += 1
            places = order[start:end]
            token_NT = torch.tensor([rows[place] for place in places], device=self.model.device)
            mask_NT = torch.ones_like(token_NT)
            logits_NL = self.model(input_ids=token_NT, attention_mask=mask_NT).logits.float().cpu()
            independent = self.model.config.problem_type == "multi_label_classification"
            log_p_NL = (
                torch.nn.functional.logsigmoid(logits_NL)
                if independent
                else logits_NL.log_softmax(-1)
            )
            result_NL[places] = log_p_NL
            start = end
        return result_NL

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text)["input_ids"][: self.longest]
        if ids:
            return ids
        # The empty text of a tokenizer that adds no special tokens.
        tokens = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return [next((token for token in tokens if token is not None), 0)]


@lru_cache(maxsize=8)
def _loaded(name: str) -> SequenceClassifier:
    from transformers import AutoModelForSequenceClassification

    source, config = _config(name)
    tokenizer = source.tokenizer()
    model = source.model(AutoModelForSequenceClassification, config, dtype=torch.float32)
    return SequenceClassifier(name, model.eval(), tokenizer)


def classifier(name: str, device: str | None = None) -> SequenceClassifier:
    """The classifier in a folder or of a hub id, loaded once for a process.

    Args:
        name: folder or hub id.
        device: to move it to; ``None`` leaves it where it is.

    Raises:
        UserError: if it cannot be found or read.
    """
    found = _loaded(name)
    if device is not None:
        found.model.to(device)
    return found


def label_problems(name: str, labels: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    """What is wrong with a classifier's name and with labels asked of it; loads no weights.

    Args:
        name: folder or hub id.
        labels: the place that asks, for messages, and the label.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        source, config = _config(name)
        source.tokenizer()
    except UserError as error:
        yield from error.problems
        return
    problems = list(source.weights_problems(AutoModelForSequenceClassification, config))
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


def _config(name: str) -> tuple[Source, Any]:
    key = f"classifier {name}"
    folder = model_folder(name)
    if folder is not None and not (folder / "config.json").is_file():
        raise UserError.one(key, f"{folder} has no config.json", _ALLOWED)
    problems = [] if folder is None else list(checkpoint_problems(folder, key))
    if problems:
        raise UserError(problems)
    # Absolute: "./judge" must not become the hub id "judge".
    source = Source(name, name if folder is None else str(folder.absolute()), key, _ALLOWED)
    if folder is None:
        must_be_at_hand(source.path, key, _ALLOWED)
    config = source.config()
    problems = list(quantization_problems(config.to_dict(), name, key, "none"))
    if problems:
        raise UserError(problems)
    return source, config


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[place]) for place in range(config.num_labels))


def _index(labels: Sequence[str], label: str) -> int | None:
    folded = [name.casefold() for name in labels]
    if label.casefold() in folded:
        return folded.index(label.casefold())
    return int(label) if label.isdecimal() and int(label) < len(labels) else None


def _no_label(where: str, label: str, known: Sequence[str]) -> Problem:
    near = process.extractOne(label, known, score_cutoff=60)
    return Problem(
        where,
        f"no label {label!r}",
        f"{', '.join(known)}, or a number from 0 to {len(known) - 1}",
        f"did you mean {near[0]}?" if near else "",
    )
