"""Text to tokens and back, at the start of a string and in its middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from gfn_runner.errors import Problem, UserError

# Texts that stand before another one while it is tokenized. Tokenizers differ in what they merge with
# what follows: a newline rarely with a letter, a letter not with a mark, a mark not with a letter.
_BEFORE = ("\n", ".", "a", "0")
_UNKNOWN = "\ufffd"


def continuation_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a text in the middle of a string: no special token, and no space put in front.

    Many tokenizers begin every text with a space of their own (SentencePiece, byte-level ones with
    ``add_prefix_space``), or drop the one that a text begins with. What :func:`continuation_text` does
    not read back is therefore tokenized after another text, whose tokens are taken off again.

    Returns:
        Ids that are read back as ``text``. Where there are none, since the tokenizer changes texts
        (capitals, quotation marks), ids whose text begins with white space if and only if ``text`` does;
        failing that, those of ``text`` by itself. :func:`changed_start` tells of the last case.
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
    """Tokens of a text by itself, and as they are after other texts."""
    yield plain
    for before in _BEFORE:
        first = _ids(tokenizer, before, special=False)
        whole = _ids(tokenizer, before + text, special=False)
        if first and len(whole) > len(first) and whole[: len(first)] == first:
            yield whole[len(first) :]


def continuation_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of token ids in the middle of a string, spaces as they are.

    A decoder of the SentencePiece family drops the space that its first token begins with. The ids are
    therefore decoded after another token, whose text is taken off again.
    """
    anchor, before = _anchor(tokenizer)
    text = _decoded(tokenizer, (*anchor, *ids))
    return text[len(before) :] if text.startswith(before) else _decoded(tokenizer, ids)


def changed_start(tokenizer: Any, text: str) -> str | None:
    """What a text in the middle of a string is read back as, if white space at its start differs.

    ``None`` where it does not: a tokenizer without capitals changes texts too, and means to.
    """
    read = continuation_text(tokenizer, continuation_ids(tokenizer, text))
    return None if _white_space(read) == _white_space(text) else read


@lru_cache(maxsize=4)
def token_texts(tokenizer: Any) -> tuple[str, ...]:
    """The text of every token in the middle of a string, by id; part of a character is U+FFFD."""
    size, backend = len(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tuple(continuation_text(tokenizer, (token,)) for token in range(size))
    # The same as one by one, which takes seconds for a large vocabulary.
    anchor, before = _anchor(tokenizer)
    rows = [[*anchor, token] for token in range(size)]
    return tuple(
        text[len(before) :] if text.startswith(before) else continuation_text(tokenizer, (token,))
        for token, text in enumerate(backend.decode_batch(rows, skip_special_tokens=False))
    )


def special_ids(tokenizer: Any, *configs: Any) -> frozenset[int]:
    """Control tokens, which are no text.

    They are those that the tokenizer marks as special, whether it has a name for them (as ``eos_token``)
    or only lists them among its added tokens, and what the configs call begin, end and padding.

    Args:
        configs: of the model and of its generation; ``None`` for one that is not there.
    """
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    for config in configs:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [value])
    return frozenset(token for token in found if token is not None and token >= 0)


@lru_cache(maxsize=4)  # it goes through the whole vocabulary
def ids_holding(tokenizer: Any, texts: tuple[str, ...]) -> frozenset[int]:
    """Tokens whose text holds one of ``texts``.

    Without them a text of one ASCII character cannot be written. A longer one still can, from the pieces
    that it can be divided into.
    """
    known = enumerate(token_texts(tokenizer))
    return frozenset(token for token, own in known if any(text in own for text in texts))


def terminator_problems(tokenizer: Any, terminator: str) -> Iterator[Problem]:
    """A terminator that is not exactly one token."""
    ids = continuation_ids(tokenizer, terminator)
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(list(ids))
        yield Problem(
            "task.terminator",
            f"given {terminator!r}, which is {len(ids)} tokens of this model: {pieces}",
            "a text that is exactly one token after other text, such as '.'",
        )


def unheld_problems(tokenizer: Any, texts: Sequence[str]) -> Iterator[Problem]:
    """Forbidden texts that can be written, but that no single token holds."""
    for text in texts:
        ids = continuation_ids(tokenizer, text)
        if text in continuation_text(tokenizer, ids) and not ids_holding(tokenizer, (text,)):
            pieces = tokenizer.convert_ids_to_tokens(list(ids))
            yield Problem(
                "task.forbidden",
                f"given {text!r}, which no single token of this model holds: it is {pieces}",
                "texts that one token holds, such as a character",
                "a constraint with a pattern, such as (?!.*word).*",
            )


def prompt_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a text at the start of a string, as the model's own tokenizer begins it.

    Raises:
        UserError: if the text and the tokenizer together give no token at all.
    """
    ids = _ids(tokenizer, text, special=True)
    # Some tokenizers also close the string; a prompt is not closed.
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
    """What a text begins with of white space."""
    return text[: len(text) - len(text.lstrip())]


@lru_cache(maxsize=4)
def _anchor(tokenizer: Any) -> tuple[tuple[int, ...], str]:
    """A token that tokens in the middle of a string are decoded after, and its own text.

    It is a text by itself: no byte, since bytes are decoded together; else there is none.
    """
    for text in ("a", "0", "."):
        ids = _ids(tokenizer, text, special=False)[-1:]
        read = _decoded(tokenizer, ids)
        if read.strip() and _UNKNOWN not in read:
            return ids, read
    return (), ""
