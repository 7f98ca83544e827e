"""Texts and tokens of a real tokenizer: special tokens, round trips, the chat template."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.data.conditions import Chat
from gfn_runner.lm.chat import ChatTemplate
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.tasks.random_number import RandomNumbers

pytestmark = pytest.mark.real
MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
TEXTS = (
    " 42",
    "42",
    "  two spaces",
    "\nA new line.\n\n",
    "\tTab",
    "It's 3.14, isn't it?",
    "naïve café – 東京 🙂",
    " ",
    "",
    "a" * 40,
)


def special_ids(lm) -> set[int]:
    entries = lm.tokenizer.added_tokens_decoder.items()
    return {index for index, entry in entries if entry.special}


def test_the_special_tokens_are_those_of_the_model(lm):
    assert len(special_ids(lm)) == 17
    assert len(lm.tokenizer) == lm.vocab_size == 49_152


def test_no_special_token_may_be_written(lm):
    rule = string_rule(lm, RandomNumbers(), 5)
    assert rule.allowed_V is not None
    assert not rule.allowed_V[sorted(special_ids(lm))].any()


def test_no_special_token_is_written_where_the_model_wants_to(lm):
    """After an answer the chat model writes the end of its turn with near certainty."""
    text = lm.tokenizer.apply_chat_template(
        [*MESSAGES, {"role": "assistant", "content": "Paris."}], tokenize=False
    )
    text = text.removesuffix("<|im_end|>\n")
    rule = string_rule(lm, RandomNumbers(), 5)
    prompts = [lm.encode_prompt(text)]
    with lm.reference(), torch.no_grad():
        logits_V = lm.prefill(prompts).last_logits_NV[0]
        assert int(logits_V.argmax()) in special_ids(lm)
        strings = sample(lm, prompts, 256, rule, torch.Generator().manual_seed(0))
    written = {token for row in range(len(strings)) for token in strings.ids(row)}
    assert written and not written & special_ids(lm)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_read_back(lm, text):
    assert lm.decode(lm.encode(text)) == text


def test_digits_are_tokens_of_their_own_and_so_is_the_space_before(lm):
    pieces = [lm.decode([index]) for index in lm.encode(" 100")]
    assert pieces == [" ", "1", "0", "0"]


def test_what_is_sampled_is_read_back(lm):
    rule = StringRule(lm.encode(".")[0], 0, 12, None)
    prompts = [lm.encode_prompt("She opened the old box in the attic and found")]
    strings = sample(lm, prompts, 64, rule, torch.Generator().manual_seed(0))
    own = 0
    for row in range(len(strings)):
        ids = tuple(strings.ids(row))
        text = lm.decode(ids)
        again = lm.encode(text)
        # A text may be spelt in other tokens than the tokenizer's own, but it stays the same text.
        assert lm.decode(again) == text
        own += again == ids
    assert own >= 32


def test_messages_go_through_the_models_own_chat_template(lm):
    tokenizer = lm.tokenizer
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith(
        f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    )
    given = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert lm.encode_prompt(Chat.of(MESSAGES)) == tuple(given)
    # With lm.chat_template=tokenizer a plain prompt is the user's message.
    of_texts = ChatTemplate.read("tokenizer").prompt_ids(tokenizer, MESSAGES[0]["content"])
    assert of_texts == tuple(given)
    assert lm.encode_prompt(MESSAGES[0]["content"]) != tuple(given)


def test_through_the_chat_template_it_answers_and_ends_its_turn(lm):
    rule = string_rule(lm, RandomNumbers(terminator_role="end_of_turn"), 8)
    assert lm.decode([rule.terminator]) == "<|im_end|>"
    prompts = [lm.encode_prompt(Chat.of(MESSAGES))]
    with lm.reference():
        answer = sample(lm, prompts, 1, rule, torch.Generator(), temperature=0.0)
    assert "Paris" in lm.decode(answer.ids(0))
    assert answer.length_B.item() < 8, "the end of the turn ends the string"
