"""What config and tokenizer of a model tell before its weights load: terminators, lengths, layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rapidfuzz import process

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.encoding import continuation_ids, prompt_ids
from gfn_runner.lm.policy import LMSettings, LoraSettings, model_folder


def text_problems(
    options: LMSettings,
    terminator: str,
    strings: Sequence[tuple[str, str, str]],
    max_len: int,
    further_adapters: Mapping[str, LoraSettings] | None = None,
) -> Iterator[Problem]:
    """Problems of settings and texts with this model's config and tokenizer.

    Args:
        options: the model; only its config and tokenizer are read.
        terminator: must be one token.
        strings: name, context and suffix of everything that is to be scored or sampled.
        max_len: actions that may stand between context and suffix.
        further_adapters: others than the policy's, by config key.

    Raises:
        UserError: if config or tokenizer cannot be read.
    """
    config, tokenizer = _config_and_tokenizer(options)
    n_terminator = len(continuation_ids(tokenizer, terminator))
    if n_terminator != 1:
        pieces = tokenizer.convert_ids_to_tokens(list(continuation_ids(tokenizer, terminator)))
        yield Problem(
            "task.terminator",
            f"given {terminator!r}, which is {n_terminator} tokens of this model: {pieces}",
            "a text that is exactly one token behind other text",
        )
    for key, adapter in {"lm.lora": options.lora, **(further_adapters or {})}.items():
        yield from _target_problems(key, adapter, config)
    longest = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    if longest:
        yield from _too_long(tokenizer, strings, max_len, longest)


def _config_and_tokenizer(options: LMSettings) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    folder = model_folder(options.name)
    source = options.name if folder is None else str(folder.absolute())
    if folder is None:
        _must_be_at_hand(source)
    try:
        return AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError.one(
            "lm.name",
            f"cannot read config and tokenizer of {options.name!r}: {reason}",
            "embedded, a folder in Hugging Face format, or a hub id that can be reached",
        ) from error


def _must_be_at_hand(name: str) -> None:
    """Ask once whether a hub id is in the cache or on the hub, rather than wait through retries."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # whatever the hub's client raises, the model is not to be had
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError.one(
            "lm.name",
            f"{name!r} is not in the local cache and cannot be asked for: {reason}",
            "embedded, a folder in Hugging Face format, or a hub id that can be reached",
            "lm.name=/path/to/model for a folder",
        ) from error


def _target_problems(key: str, adapter: LoraSettings, config: Any) -> Iterator[Problem]:
    """Adapted layers that the model does not have; asked of a model without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    if not adapter.targets:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    full = [name for name, module in model.named_modules() if not list(module.children())]
    known = sorted({name.rsplit(".", 1)[-1] for name in full if "." in name})
    for place, target in enumerate(adapter.targets):
        if not any(name == target or name.endswith(f".{target}") for name in full):
            near = process.extractOne(target, known, score_cutoff=60)
            yield Problem(
                f"{key}.targets[{place}]",
                f"given {target!r}, and no layer of this model is called so",
                ", ".join(known),
                f"did you mean {near[0]}?" if near else "",
            )


def _too_long(
    tokenizer: Any, strings: Sequence[tuple[str, str, str]], max_len: int, longest: int
) -> Iterator[Problem]:
    # A token has at least one byte, so most texts need no tokenizing.
    suspects = [s for s in strings if len((s[1] + s[2]).encode("utf-8")) + max_len + 1 > longest]
    too_long: list[tuple[int, str]] = []
    for name, context, suffix in suspects:
        n_tokens = len(prompt_ids(tokenizer, context)) + len(continuation_ids(tokenizer, suffix))
        if n_tokens + max_len > longest:
            too_long.append((n_tokens, name))
    if too_long:
        worst, worst_name = max(too_long)
        others = f" ({len(too_long) - 1} more are too long)" if len(too_long) > 1 else ""
        yield Problem(
            "task",
            f"{worst_name} is {worst} tokens long; with {max_len} sampled tokens that is more than "
            f"the model's context of {longest}{others}",
            f"context, sample and suffix together at most {longest} tokens",
            "fewer examples (task.n_demonstrations, callbacks.evaluation.baseline_shots), a smaller "
            "task.max_len / task.eval_max_len, or another model",
        )
