"""The model card of the embedded base model, generated from recorded and measured values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = """---
license: mit
language: en
tags: [arithmetic, stories, gflownet, tiny]
---
# The embedded base model

A Llama of {parameters:,} parameters ({layers} layers, width {hidden}, context {context} tokens) with a
byte-level BPE tokenizer of its own, in plain Hugging Face format. It exists so that `gfn_runner` can
train, evaluate and be tested without a download. It is no general language model.

## How it was made

`make tiny-lm` (`scripts/pretrain_tiny.py`), from nothing but a corpus that
`scripts/pretraining/corpus.py` writes by rules (seed {seed}): {steps:,} optimizer steps of Muon
(blocks, peak learning rate {lr}) and AdamW (embeddings and norms, {embedding_lr}), then
{second_steps:,} at {second_rate} of these rates on a mixture with more word lists. {tokens:,} tokens,
{second_tokens:,} of them in the second phase; {minutes:.0f} minutes on two CPU cores.
Held-out loss on the first mixture, in nats a token: {first_loss:.3f} after the first phase,
{loss:.3f} after the second.

| documents | share of tokens | in the second phase | what they are |
|---|---|---|---|
{shares}

One arithmetic expression in five, chosen by a checksum, never occurs as a question and is kept for tests.

## What it can do

### Arithmetic

It has the skill, but not the habit, of working an arithmetic question step by step: after worked
examples it does, without them it answers at once, and wrongly (pages of questions in its corpus mostly
state the value of the first two operands).

Share of right answers in %, on {questions} unseen questions each of 3 / 4 / 5 operands;
*vote* is the majority of 10 samples at temperature 0.1, *single* one sample at
temperature 1, *chain* the share of right chains among the single samples that begin one.

| worked examples | vote | single | chain |
|---|---|---|---|
"""

_TEXTS = """
### Everything else

Samples at temperature 1 after the bare prompt of each task (`task=…`), 20 of each condition and 20 000
numbers, before any training:

| task | measure | base model |
|---|---|---|
"""

_TAIL = """
Measured by `python scripts/pretrain_tiny.py --measure-only --questions {questions}`. Beyond +, − and
one-digit operands, and beyond six operands, expect nothing.
"""

_SHOWN = ("layers", "hidden", "context", "seed", "steps", "second_steps")
_RATES = ("lr", "embedding_lr", "second_rate")
_KINDS = {
    "questions": "pages of sums, mostly answered at once and wrongly",
    "exercises": "sums worked step by step",
    "drill": "single sums",
    "story": "five sentences: want, obstacle, action, outcome, feeling",
    "infill": "both ends of a story, then a middle that seldom fits both",
    "news": "bland sentences and facts of a topic",
    "translation": "the toy language Velan, mostly right",
    "review": "plot lines and opinions, remarked on and classified unreliably",
    "sentence": "plain sentences",
    "words": "words, then a sentence that has some of them",
    "careful_words": "words, then a sentence that has most of them",
    "habitual_review": "the same as review, with mistakes by a habit that goes by the wording",
    "number": "random numbers as people draw them",
}


def model_card(record: Mapping[str, Any]) -> str:
    """Return the model card as Markdown.

    Args:
        record: contents of ``pretraining.json``: settings, facts and ``skill``.
    """
    settings = record["settings"]
    head = _HEAD.format(
        parameters=record["parameters"],
        tokens=record["tokens"],
        minutes=record["minutes"],
        **{name: record[name] for name in ("first_loss", "loss", "second_tokens")},
        questions=record["skill"][0]["questions"],
        shares=_shares(record["token_shares"], record["second_token_shares"]),
        **{name: settings[name] for name in _SHOWN + _RATES},
    )
    rows = [
        f"| {row['shots']} | " + " | ".join(_cell(row[k]) for k in ("vote", "single", "chain"))
        for row in record["skill"]
    ]
    card = head + "".join(f"{row} |\n" for row in rows)
    if record.get("tasks"):
        measured = (
            f"| {task} | {name} | {value:.3g} |\n"
            for task, values in record["tasks"].items()
            for name, value in values.items()
        )
        card += _TEXTS + "".join(measured)
    return card + _TAIL.format(questions=record["skill"][0]["questions"])


def _shares(first: Mapping[str, float], second: Mapping[str, float]) -> str:
    # Include kinds of documents that occur in one phase only.
    names = sorted({*first, *second}, key=lambda name: (-second.get(name, 0), -first.get(name, 0)))
    return "\n".join(
        f"| {name} | {100 * first.get(name, 0):.1f} % | {100 * second.get(name, 0):.1f} % "
        f"| {_KINDS[name]} |"
        for name in names
    )


def _cell(shares: Mapping[str, float | None]) -> str:
    return " / ".join("–" if v is None else f"{100 * v:.1f}" for _, v in sorted(shares.items()))
