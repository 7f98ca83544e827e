"""What only a tokenizer can tell, told before weights load: terminators and prompts that are too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.policy import LMSettings, model_folder


def text_problems(
    options: LMSettings, terminator: str, strings: Sequence[tuple[str, str, str]], max_len: int
) -> Iterator[Problem]:
    """Problems of texts with this model's tokenizer and context.

    Args:
        options: the model; only its config and tokenizer are read.
        terminator: must be one token.
        strings: name, context and suffix of everything that is to be scored or sampled.
        max_len: actions that may stand between context and suffix.

    Raises:
        UserError: if config or tokenizer cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = model_folder(options.name)
    source = options.name if folder is None else str(folder)
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError.one(
            "lm.name",
            f"cannot read config and tokenizer of {options.name!r}: {reason}",
            "embedded, a folder in Hugging Face format, or a hub id that can be reached",
        ) from error
    n_terminator = len(tokenizer(terminator, add_special_tokens=False)["input_ids"])
    if n_terminator != 1:
        yield Problem(
            "task.terminator",
            f"given {terminator!r}, which is {n_terminator} tokens of this model",
            "a text that is exactly one token, such as '.'",
        )
    longest = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    if longest:
        yield from _too_long(tokenizer, strings, max_len, longest)


def _too_long(
    tokenizer: Any, strings: Sequence[tuple[str, str, str]], max_len: int, longest: int
) -> Iterator[Problem]:
    # A token has at least one character, so most texts need no tokenizing.
    suspects = [s for s in strings if len(s[1]) + len(s[2]) + max_len + 1 > longest]
    worst, worst_name = 0, ""
    for name, context, suffix in suspects:
        n_tokens = len(tokenizer(context)["input_ids"]) + len(
            tokenizer(suffix, add_special_tokens=False)["input_ids"]
        )
        if n_tokens > worst:
            worst, worst_name = n_tokens, name
    if worst + max_len > longest:
        yield Problem(
            "task",
            f"{worst_name} is {worst} tokens long; with {max_len} sampled tokens that is more than "
            f"the model's context of {longest}",
            f"context, sample and suffix together at most {longest} tokens",
            "fewer examples (task.n_demonstrations, callbacks.evaluation.baseline_shots), a smaller "
            "task.max_len / task.eval_max_len, or another model",
        )
