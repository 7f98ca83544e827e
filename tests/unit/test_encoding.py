"""Texts in the middle of a string, by tokenizers that put a space in front and by others."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gfn_runner.errors import UserError
from gfn_runner.lm.encoding import continuation_ids, prompt_ids

from ..tiny_models import character_tokenizer

ENTRIES = ["<s>", "▁", *".ab\n17", "▁a", "▁17", "17"]


@pytest.fixture
def spaced() -> PreTrainedTokenizerFast:
    """As SentencePiece's: every text begins with ▁."""
    merges = [("▁", "a"), ("1", "7"), ("▁", "17")]
    model = models.BPE({text: i for i, text in enumerate(ENTRIES)}, merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def names(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


def test_no_space_is_put_in_front_of_a_continuation(spaced):
    assert names(spaced, spaced(".", add_special_tokens=False)["input_ids"]) == ["▁", "."]
    for text, wanted in {
        ".": ["."],
        "a": ["a"],
        " a": ["▁a"],
        " 17": ["▁17"],
        "17": ["17"],
        "\n": ["\n"],
        "": [],
    }.items():
        assert names(spaced, continuation_ids(spaced, text)) == wanted


def test_a_prompt_begins_as_the_tokenizer_begins_it(spaced):
    assert names(spaced, prompt_ids(spaced, "a")) == ["▁a"]


def test_pieces_join_to_the_whole(spaced):
    plain = character_tokenizer()
    for tokenizer in (spaced, plain):
        whole = prompt_ids(tokenizer, "a 17.")
        pieces = prompt_ids(tokenizer, "a") + continuation_ids(tokenizer, " 17")
        assert pieces + continuation_ids(tokenizer, ".") == whole


def test_an_empty_prompt_needs_a_token_to_begin_with(spaced):
    assert names(spaced, prompt_ids(spaced, "")) == ["<s>"]
    with pytest.raises(UserError, match="no token to begin with"):
        prompt_ids(character_tokenizer(), "")
