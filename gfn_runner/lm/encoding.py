"""Tokenization and decoding of texts, at the start of a string and in its middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from gfn_runner.errors import Problem, UserError

# Texts to put before another one while it is tokenized. Tokenizers differ in what they merge with the text
# that follows: a newline rarely with a letter, a letter not with punctuation, punctuation not with a letter.
_BEFORE = ("\n", ".", "a", "0")
_UNKNOWN = "\ufffd"


def continuation_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the token ids of a text in the middle of a string: no special tokens, no space prepended.

    Many tokenizers prepend a space to every text (SentencePiece, byte-level ones with
    ``add_prefix_space``), or drop the space that a text begins with. A text that :func:`continuation_text`
    does not recover is therefore tokenized after another text, whose tokens are removed again.

    Returns:
        Ids that decode to ``text``. If there are none, because the tokenizer normalizes texts (case,
        quotation marks), ids whose text begins with the same white space as ``text``; failing that, the
        ids of ``text`` on its own. :func:`changed_start` reports the last case.
    """
    plain = _ids(tokenizer, text, special=False)
    if not text:
        return plain
    begins_alike = None
    for ids in _spellings(tokenizer, text, plain):
        read = continuation_text(tokenizer, ids)
        if read == text:
            return ids
        if begins_alike is None and _white_space(read) == _white_space(text):
            begins_alike = ids
    return plain if begins_alike is None else begins_alike


def _spellings(tokenizer: Any, text: str, plain: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the tokens of a text on its own, then its tokens after other texts."""
    yield plain
    for before in _BEFORE:
        first = _ids(tokenizer, before, special=False)
        whole = _ids(tokenizer, before + text, special=False)
        if first and len(whole) > len(first) and whole[: len(first)] == first:
            yield whole[len(first) :]


def continuation_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode token ids in the middle of a string, with all spaces kept.

    SentencePiece decoders drop the space that the first token begins with. The ids are therefore decoded
    after another token, whose text is removed again.
    """
    anchor, before = _anchor(tokenizer)
    text = _decoded(tokenizer, (*anchor, *ids))
    return text[len(before) :] if text.startswith(before) else _decoded(tokenizer, ids)


def changed_start(tokenizer: Any, text: str) -> str | None:
    """Return what a text in the middle of a string decodes to, if its leading white space changes.

    Return ``None`` if it does not: other changes, such as lower-casing, are intended by the tokenizer.
    """
    read = continuation_text(tokenizer, continuation_ids(tokenizer, text))
    return None if _white_space(read) == _white_space(text) else read


@lru_cache(maxsize=4)
def token_texts(tokenizer: Any) -> tuple[str, ...]:
    """Return every token's text in the middle of a string, by id; partial characters are U+FFFD."""
    size, backend = len(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tuple(continuation_text(tokenizer, (token,)) for token in range(size))
    # Same result as decoding one by one, which takes seconds for a large vocabulary.
    anchor, before = _anchor(tokenizer)
    rows = [[*anchor, token] for token in range(size)]
    return tuple(
        text[len(before) :] if text.startswith(before) else continuation_text(tokenizer, (token,))
        for token, text in enumerate(backend.decode_batch(rows, skip_special_tokens=False))
    )


def special_ids(tokenizer: Any, *configs: Any) -> frozenset[int]:
    """Return the ids of control tokens, which do not represent text.

    These are the tokens that the tokenizer marks as special, whether it names them (like ``eos_token``)
    or only lists them among its added tokens, and the configs' begin, end and padding tokens.

    Args:
        configs: model config and generation config; ``None`` for a missing one.
    """
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    for config in configs:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [value])
    return frozenset(token for token in found if token is not None and token >= 0)


@lru_cache(maxsize=4)  # it iterates over the whole vocabulary
def ids_holding(tokenizer: Any, texts: tuple[str, ...]) -> frozenset[int]:
    """Return the ids of tokens whose text contains one of ``texts``.

    Without these tokens, a text of one ASCII character cannot be written. A longer text still can, if
    several tokens together spell it.
    """
    known = enumerate(token_texts(tokenizer))
    return frozenset(token for token, own in known if any(text in own for text in texts))


def terminator_problems(tokenizer: Any, terminator: str) -> Iterator[Problem]:
    """Yield a problem if the terminator is not exactly one token."""
    ids = continuation_ids(tokenizer, terminator)
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(list(ids))
        yield Problem(
            "task.terminator",
            f"given {terminator!r}, which is {len(ids)} tokens of this model: {pieces}",
            "a text that is exactly one token after other text, such as '.'",
        )


def unheld_problems(tokenizer: Any, texts: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for every forbidden text that can be written but that no single token contains."""
    for text in texts:
        ids = continuation_ids(tokenizer, text)
        if text in continuation_text(tokenizer, ids) and not ids_holding(tokenizer, (text,)):
            pieces = tokenizer.convert_ids_to_tokens(list(ids))
            yield Problem(
                "task.forbidden",
                f"given {text!r}, which no single token of this model contains: it is split into {pieces}",
                "texts that a single token contains, such as a character",
                "a constraint with a pattern, such as (?!.*word).*",
            )


def prompt_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the token ids of a text at the start of a string, with the tokenizer's initial special tokens.

    Raises:
        UserError: if the text is empty and the tokenizer has no token to begin with.
    """
    ids = _ids(tokenizer, text, special=True)
    # Some tokenizers also append an end token, which a prompt must not have.
    if (
        len(ids) > 1
        and ids[-1] == tokenizer.eos_token_id
        and not text.endswith(str(tokenizer.eos_token))
    ):
        ids = ids[:-1]
    if ids:
        return ids
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    if start is None:
        raise UserError.one(
            "prompt", "empty, and the tokenizer has no token to begin with", "a text"
        )
    return (start,)


def _ids(tokenizer: Any, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _white_space(text: str) -> str:
    """Return the leading white space of a text."""
    return text[: len(text) - len(text.lstrip())]


@lru_cache(maxsize=4)
def _anchor(tokenizer: Any) -> tuple[tuple[int, ...], str]:
    """Return a token to decode tokens in the middle of a string after, and its own text.

    The token must be text on its own, not a byte, since bytes are decoded together; both may be empty.
    """
    for text in ("a", "0", "."):
        ids = _ids(tokenizer, text, special=False)[-1:]
        read = _decoded(tokenizer, ids)
        if read.strip() and _UNKNOWN not in read:
            return ids, read
    return (), ""
