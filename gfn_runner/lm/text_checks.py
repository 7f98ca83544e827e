"""Checks with a model's config and tokenizer before its weights load: terminators, lengths, layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gfn_runner.data.conditions import Chat
from gfn_runner.errors import Problem, UserError, did_you_mean
from gfn_runner.lm import gguf
from gfn_runner.lm.architecture import causal_auto_class, kind_problems, text_config
from gfn_runner.lm.chat import ChatTemplate, terminator_text
from gfn_runner.lm.encoding import (
    changed_start,
    continuation_ids,
    special_ids,
    terminator_problems,
    unheld_problems,
)
from gfn_runner.lm.limits import context_length, same_up_to
from gfn_runner.lm.loading import lm_source
from gfn_runner.lm.model_config import CHAT_TEMPLATE_KEY, LMSettings, LoraSettings


def text_problems(
    options: LMSettings,
    terminator: str,
    strings: Sequence[tuple[str, str, str]],
    max_len: int,
    *,
    role: str | None = None,
    chats: Sequence[tuple[str, Chat]] = (),
    listed: Sequence[str] = (),
    listed_max_len: int = 0,
    written: Sequence[str] = (),
    forbidden: Sequence[str] = (),
    further_adapters: Mapping[str, LoraSettings] | None = None,
) -> Iterator[Problem]:
    """Yield problems of settings and texts with this model; only its config and tokenizer are read.

    Args:
        terminator: text that must be one token, if there is no ``role``.
        strings: name, context and suffix of everything that is scored or sampled.
        max_len: maximum number of actions between context and suffix.
        role: role of the terminator token, instead of its text.
        chats: messages that the chat template must accept, each after its location in the data.
        listed: whole strings, which may have at most ``listed_max_len`` tokens.
        written: other strings that the policy learns from.
        forbidden: texts that no written token may contain.
        further_adapters: settings of adapters other than the policy's, by config key.

    Raises:
        UserError: if config or tokenizer cannot be read.
    """
    config, tokenizer = _config_and_tokenizer(options)
    for key, adapter in {"lm.lora": options.lora, **(further_adapters or {})}.items():
        yield from _target_problems(key, adapter, config)
    special = special_ids(tokenizer, config, _generation_config(options))
    try:
        template = ChatTemplate.read(options.chat_template)
        refused = list(_refused(tokenizer, template, chats))
        yield from refused
        terminator = terminator_text(tokenizer, template, terminator, role, special)
    except UserError as error:
        yield from error.problems
        return
    yield from terminator_problems(tokenizer, terminator)
    yield from _without_a_row(config, tokenizer, terminator, strings, listed)
    if not refused:  # rejected messages have no length
        yield from _too_long(config, tokenizer, template, strings, max_len)
    yield from unheld_problems(tokenizer, forbidden)
    suffixes = [suffix for _, _, suffix in strings]
    yield from _changed(tokenizer, (terminator, *suffixes, *listed, *written))
    yield from _out_of_reach(tokenizer, listed, listed_max_len)


def _refused(
    tokenizer: Any, template: ChatTemplate, chats: Sequence[tuple[str, Chat]]
) -> Iterator[Problem]:
    """Yield problems for messages that the chat template rejects, for the first ones if there is none."""
    if template.of_texts:
        template.prompt_ids(tokenizer, "a text")
    for where, chat in chats:
        try:
            template.prompt_ids(tokenizer, chat)
        except UserError as error:
            (problem,) = error.problems
            yield replace(problem, where=where)
            if problem.where == CHAT_TEMPLATE_KEY:
                return


def _changed(tokenizer: Any, texts: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem if the tokenizer cannot write a text's leading white space in mid-string."""
    # This depends only on how a text begins, so one text per beginning is enough.
    beginnings = {text[: len(text) - len(text.lstrip()) + 1]: text for text in texts}
    for text in beginnings.values():
        read = changed_start(tokenizer, text)
        if read is None:
            continue
        yield Problem(
            "lm.name",
            f"this model's tokenizer cannot write {text[:40]!r} in the middle of a string: it is "
            f"read back as {read[:40]!r}",
            "a tokenizer that keeps white space, or suffixes and strings that it reads back",
        )
        return


def _without_a_row(
    config: Any,
    tokenizer: Any,
    terminator: str,
    strings: Sequence[tuple[str, str, str]],
    listed: Sequence[str],
) -> Iterator[Problem]:
    """Yield problems for texts with a token of the tokenizer that the model has no embedding for."""
    rows = getattr(text_config(config), "vocab_size", None)
    if rows is None:
        return
    places = [("task.terminator", "the terminator", terminator)]
    places += [("task", name, context + suffix) for name, context, suffix in strings]
    places += [("task", f"the string {text!r}", text) for text in listed]
    beyond = [(s, token) for s, token in tokenizer.get_added_vocab().items() if token >= rows]
    for special, token in beyond:
        holding = [(key, name) for key, name, text in places if special in text]
        for key, name in holding[:1]:
            yield Problem(
                key,
                f"{name} holds {special!r}, which is token {token} of the tokenizer, but the model "
                f"has embeddings for {rows} tokens",
                "texts without it, or a model and a tokenizer that match",
            )


def _out_of_reach(tokenizer: Any, listed: Sequence[str], max_len: int) -> Iterator[Problem]:
    lengths = {text: len(continuation_ids(tokenizer, text)) for text in listed}
    longest = max(listed, key=lambda text: lengths[text], default="")
    if listed and lengths[longest] > max_len:
        n = sum(length > max_len for length in lengths.values())
        yield Problem(
            "task.max_len",
            f"given {max_len}, but {n} of the {len(listed)} strings that the posterior is over take "
            f"more tokens of this model, e.g. {longest!r} {lengths[longest]}",
            f"at least {lengths[longest]}; task.eval_max_len too",
        )


def _config_and_tokenizer(options: LMSettings) -> tuple[Any, Any]:
    """Return config and tokenizer, after checks of architecture and of the weights' names and shapes."""
    source = lm_source(options)
    source.require_available()
    if options.gguf_file is not None:
        gguf.refuse_unreadable(source.path, options.gguf_file)
    config = source.config()
    problems = list(kind_problems(config, repr(options.name), "lm.name"))
    # The weights of a GGUF file are dequantized; loading it reports those that it lacks.
    if options.gguf_file is None and not problems:
        auto = causal_auto_class(config)
        problems = list(source.weights_problems(auto, config, options.quantization))
    if problems:
        raise UserError(problems)
    return config, source.tokenizer()


def _generation_config(options: LMSettings) -> Any:
    """Return the generation config, or ``None`` if the model comes without one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(lm_source(options).path)
    except (OSError, ValueError):
        return None


def _target_problems(key: str, adapter: LoraSettings, config: Any) -> Iterator[Problem]:
    """Yield problems with adapter targets that the model lacks, as seen on the meta device."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if not adapter.targets:
        return
    with torch.device("meta"):
        model = causal_auto_class(config).from_config(config)
    fused = {part for n, p in model.named_parameters() if p.ndim == 3 for part in n.split(".")[-2:]}
    fused.discard("weight")
    adaptable = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    full = [name for name, module in model.named_modules() if isinstance(module, adaptable)]
    known = sorted({name.rsplit(".", 1)[-1] for name in full if "." in name} - fused)
    for place, target in enumerate(adapter.targets):
        where, last = f"{key}.targets[{place}]", target.rpartition(".")[2]
        if last in fused and last not in known:
            yield Problem(
                where,
                f"given {target!r}, the fused experts of this model: parameters, not layers, which "
                "cannot be chosen by name",
                ", ".join(known),
                f"{key}.targets=null adapts experts too, where PEFT knows the architecture",
            )
        elif not any(name == target or name.endswith(f".{target}") for name in full):
            what = f"given {target!r}, but this model has no layer of that name that can be adapted"
            yield Problem(where, what, ", ".join(known), did_you_mean(target, known))


def _too_long(
    config: Any,
    tokenizer: Any,
    template: ChatTemplate,
    strings: Sequence[tuple[str, str, str]],
    max_len: int,
) -> Iterator[Problem]:
    longest = context_length(config)
    if not longest:
        return
    limit = f"the model's context of {longest}"
    if why := same_up_to(config).get(longest):
        limit = f"{longest}, above which {why} of a batch: sampler and reward would disagree"
    # A token has at least one byte, so most texts need not be tokenized; a template adds bytes.
    around = template.length(tokenizer) + max_len + 1
    too_long: list[tuple[int, str]] = []
    for name, context, suffix in strings:
        n_bytes = len((context + suffix).encode("utf-8"))
        if isinstance(context, Chat) or n_bytes + around > longest:
            n_tokens = len(template.prompt_ids(tokenizer, context))
            n_tokens += len(continuation_ids(tokenizer, suffix))
            if n_tokens + max_len > longest:
                too_long.append((n_tokens, name))
    if too_long:
        worst, worst_name = max(too_long)
        others = f"; {len(too_long) - 1} more texts are too long" if len(too_long) > 1 else ""
        yield Problem(
            "task",
            f"{worst_name} is {worst} tokens long; with {max_len} sampled tokens that is more than "
            f"{limit}{others}",
            f"context, sample and suffix together at most {longest} tokens",
            "shorter texts, fewer examples (task.n_demonstrations, evaluation.baseline_shots), a smaller "
            "task.max_len / task.eval_max_len, or another model",
        )
