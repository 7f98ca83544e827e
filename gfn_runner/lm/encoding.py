"""How a text becomes tokens, at the start of a string and in the middle of one; knows no model."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from gfn_runner.errors import UserError

# No tokenizer merges it with a letter, a digit or a mark behind it.
_ANCHOR = "\n"
# Asked for every text, and the same for all texts of a tokenizer.
_SPACED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def continuation_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a text in the middle of a string: no special token, and no space put in front.

    Tokenizers of the SentencePiece family begin every text with a space of their own ("." becomes
    "▁", "."). For those the text is read behind an anchor, which is then taken off.
    """
    plain = _ids(tokenizer, text, special=False)
    if not text or not _puts_a_space_in_front(tokenizer):
        return plain
    anchor = _ids(tokenizer, _ANCHOR, special=False)
    whole = _ids(tokenizer, _ANCHOR + text, special=False)
    return whole[len(anchor) :] if whole[: len(anchor)] == anchor else plain


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


def _puts_a_space_in_front(tokenizer: Any) -> bool:
    known = _SPACED.get(tokenizer)
    if known is None:
        known = _SPACED[tokenizer] = _begins_with_a_space(tokenizer)
    return known


def _begins_with_a_space(tokenizer: Any) -> bool:
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁")
