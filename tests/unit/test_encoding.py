"""Texts in the middle of a string, by tokenizers of many kinds; tokens that are never written."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from gfn_runner.errors import UserError
from gfn_runner.lm.encoding import (
    changed_start,
    continuation_ids,
    continuation_text,
    ids_holding,
    prompt_ids,
    special_ids,
    token_texts,
    unheld_problems,
)
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.lm.text_checks import text_problems
from gfn_runner.tasks.user_posterior import UserPosterior

from ..tiny_models import character_tokenizer, random_model
from ..tokenizer_kinds import EXACT, LINES, byte_level, lower_case, stripping, word_piece

# -- round trips ------------------------------------------------------------------------------------


def parts(n: int) -> list[str]:
    """Parts of the lines, cut anywhere."""
    rng, found = random.Random(0), []
    for _ in range(n):
        line = rng.choice(LINES)
        start = rng.randrange(len(line))
        found.append(line[start : start + rng.randint(1, 12)])
    return [*found, " cat", "cat", ".", "\n", "\nA", "  two", " ", "17", "\n\nand", "café"]


@pytest.mark.parametrize("kind", EXACT)
def test_a_text_in_the_middle_of_a_string_is_read_back(kind):
    tokenizer = EXACT[kind]()
    for text in parts(150):
        ids = continuation_ids(tokenizer, text)
        assert continuation_text(tokenizer, ids) == text
        assert changed_start(tokenizer, text) is None


@pytest.mark.parametrize("kind", EXACT)
def test_tokens_are_read_as_they_stand_after_a_prompt(kind):
    tokenizer, rng = EXACT[kind](), random.Random(1)
    prompt = prompt_ids(tokenizer, "A dog")
    before = tokenizer.decode(list(prompt))
    texts = token_texts(tokenizer)
    assert len(texts) == len(tokenizer)
    whole = [i for i, text in enumerate(texts) if "\ufffd" not in text and i > 2]
    for _ in range(60):
        ids = rng.choices(whole, k=rng.randint(1, 6))
        read = continuation_text(tokenizer, ids)
        assert tokenizer.decode([*prompt, *ids]) == before + read
        assert read == "".join(texts[token] for token in ids)
        assert texts[ids[0]] == continuation_text(tokenizer, ids[:1])
    assert continuation_text(tokenizer, ()) == ""


def test_bytes_that_are_no_character_leave_what_stands_before_alone():
    tokenizer = EXACT["byte_fallback"]()
    ids = tokenizer.convert_tokens_to_ids(["▁", "<0xE6>", "<0x97>", "<0xA5>"])
    assert continuation_text(tokenizer, ids) == " 日"
    assert continuation_text(tokenizer, ids[:2]) == " \ufffd"


def test_what_a_tokenizer_cannot_write_is_known():
    strips, lowers = stripping(), lower_case()
    # After other text the space is not at an end, and stays.
    assert continuation_text(strips, continuation_ids(strips, " cat")) == " cat"
    assert changed_start(strips, "\n") == ""
    assert continuation_text(lowers, continuation_ids(lowers, " The cat")) == " the cat"
    assert changed_start(lowers, " The cat") is None
    pieces = word_piece()
    assert continuation_text(pieces, continuation_ids(pieces, " cat")) == " cat"
    assert changed_start(pieces, "-") == " -"
    assert continuation_ids(pieces, "17")


# -- tokens that are never written -------------------------------------------------------------------

MARKS = ("<|im_start|>", "<|im_end|>", "<|file|>")


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Special tokens, of which some have no name, and added ones that are text."""
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer.add_tokens(["cat\ndog", " tea", "tea\n"])
    return tokenizer


def chat_lm() -> LanguageModel:
    tokenizer = chat_tokenizer()
    ids = {"bos_token_id": 0, "eos_token_id": [1, 9], "pad_token_id": None}
    return LanguageModel(random_model("llama", len(tokenizer) + 3, **ids), tokenizer)


@pytest.mark.parametrize("terminator", [".", "<|im_end|>"])
def test_no_special_token_can_be_written(terminator):
    lm = chat_lm()
    names = {*lm.tokenizer.all_special_tokens, *MARKS}
    assert {"<s>", "</s>", "<unk>", *MARKS} == names
    rule = string_rule(lm, UserPosterior(terminator=terminator), 5)
    assert rule.terminator == lm.tokenizer.convert_tokens_to_ids(terminator)
    closed = {i for i, is_open in enumerate(rule.allowed_V.tolist()) if not is_open}
    special = set(lm.tokenizer.convert_tokens_to_ids(list(names)))
    assert special_ids(lm.tokenizer) == special
    # What the model's config calls an end is one, whatever the tokenizer says; rows of the embedding
    # without a token are closed too.
    extra = {len(lm.tokenizer) + row for row in range(3)}
    assert closed == special - {rule.terminator} | {9} | extra


@pytest.mark.parametrize("missing", [1, 2])
def test_a_model_may_have_fewer_logits_than_the_tokenizer_entries(missing):
    tokenizer = chat_tokenizer()  # its last entries: "cat\ndog", " tea", "tea\n"
    lm = LanguageModel(random_model("llama", len(tokenizer) - missing), tokenizer)
    rule = string_rule(lm, UserPosterior(forbidden=("tea",)), 5)
    assert len(rule.allowed_V) == lm.vocab_size == len(tokenizer) - missing
    assert rule.allowed_V[-1].item() is (missing == 2)


def test_a_terminator_is_one_token():
    with pytest.raises(UserError) as refused:
        string_rule(chat_lm(), UserPosterior(terminator="xyz"), 5)
    (problem,) = refused.value.problems
    assert problem.where == "task.terminator" and "which is 3 tokens" in problem.what


def test_no_token_that_holds_a_forbidden_text_can_be_written():
    lm = chat_lm()
    rule = string_rule(lm, UserPosterior(forbidden=("\n", "tea")), 5)
    texts = token_texts(lm.tokenizer)
    holding = {i for i, text in enumerate(texts) if "\n" in text or "tea" in text}
    assert {"\n", "cat\ndog", " tea", "tea\n"} <= {texts[token] for token in holding}
    assert holding == ids_holding(lm.tokenizer, ("\n", "tea"))
    assert not rule.allowed_V[list(holding)].any()
    # Nothing closes the terminator, and the letters of a word stay open.
    ending = string_rule(lm, UserPosterior(terminator="\n", forbidden=("\n",)), 5)
    assert ending.allowed_V[ending.terminator] and rule.allowed_V[lm.encode("t")[0]]


def test_a_text_that_no_token_holds_cannot_be_forbidden():
    tokenizer = chat_tokenizer()
    (problem,) = unheld_problems(tokenizer, ["\n", "tea", "xyzzy"])
    assert problem.where == "task.forbidden" and "'xyzzy'" in problem.what
    # What cannot be written at all needs no closing.
    assert not list(unheld_problems(character_tokenizer(), ["\n"]))
    (problem,) = text_problems(LMSettings(), ".", [], 5, forbidden=["\n", "xyzzy"])
    assert problem.where == "task.forbidden"
