"""Chat templates: messages and texts become prompts, the end of a turn is found, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from gfn_runner.config.tokenizer_checks import check_texts
from gfn_runner.data.conditions import Chat, Condition, Term
from gfn_runner.errors import UserError
from gfn_runner.evaluation.draw import policy_log_probs
from gfn_runner.inference import Policy
from gfn_runner.lm.chat import ChatTemplate, terminator_text
from gfn_runner.lm.encoding import special_ids
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.rewards.reward import string_log_reward
from gfn_runner.tasks.user_posterior import PosteriorData, UserPosterior

from ..command_line import configs
from ..tiny_models import as_trajectories, character_tokenizer, random_model
from ..tokenizer_kinds import byte_level, metaspace

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Spaces around everything, no system message, turns in alternation.
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
# Another sign at the very end than between turns.
LAST = (
    "{% for m in messages %}<|im_start|>{{ m.content }}"
    "{% if not loop.last %}<|im_end|>{% elif m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)
BETWEEN = (
    "{% for m in messages %}{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
)
USER = [{"role": "user", "content": "A cat?"}]
SYSTEM = [{"role": "system", "content": "Be."}, *USER]


def chat_tokenizer(
    template: str | None = CHATML, *, spaced: bool = False
) -> PreTrainedTokenizerFast:
    tokenizer = metaspace("first") if spaced else byte_level(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken(m, special=True) for m in ("<|im_start|>", "<|im_end|>")])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.chat_template = template
    return tokenizer


def folder_of(path, template: str | None = CHATML) -> str:
    tokenizer = chat_tokenizer(template)
    size = {"max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1}
    random_model("llama", len(tokenizer), **size).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


# -- prompts ----------------------------------------------------------------------------------------


def test_messages_are_rendered_up_to_the_assistants_answer():
    tokenizer = chat_tokenizer()
    written = "<s><|im_start|>user\nA cat?<|im_end|>\n<|im_start|>assistant\n"
    ids = ChatTemplate().prompt_ids(tokenizer, Chat.of(USER))
    assert tokenizer.decode(list(ids)) == written
    # The template's <s> alone, where the tokenizer would put another in front.
    assert list(ids).count(0) == 1 and tokenizer(written)["input_ids"].count(0) == 2
    marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [token for token in ids if token in marks] == [marks[0], marks[1], marks[0]]


def test_texts_go_through_the_template_only_where_that_is_asked_for(written):
    tokenizer = chat_tokenizer()
    chat = ChatTemplate().prompt_ids(tokenizer, Chat.of(USER))
    off, own = ChatTemplate.read("off"), ChatTemplate.read("tokenizer")
    assert off.prompt_ids(tokenizer, "A cat?") == tuple(tokenizer("A cat?")["input_ids"])
    assert own.prompt_ids(tokenizer, "A cat?") == chat
    # A prompt with the template's signs written by hand has its special tokens.
    by_hand = "<|im_start|>user\nA cat?<|im_end|>\n<|im_start|>assistant\n"
    assert off.prompt_ids(tokenizer, by_hand) == chat
    of_file = ChatTemplate.read(written("template.jinja", PLAIN))
    plain = tokenizer("user: A cat?\nassistant:", add_special_tokens=False)["input_ids"]
    assert of_file.prompt_ids(tokenizer, "A cat?") == tuple(plain)
    assert of_file.prompt_ids(chat_tokenizer(None), Chat.of(USER)) == tuple(plain)


# -- the end of a turn ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "role", "found"),
    [(CHATML, "end_of_turn", "<|im_end|>"), (LLAMA2, "end_of_turn", "</s>"),
     (LAST, "end_of_turn", "</s>"), (BETWEEN, "end_of_turn", "<|im_end|>"),
     (CHATML, "end_of_text", "</s>"), (None, "end_of_text", "</s>"), (None, None, ".")],
)  # fmt: skip
@pytest.mark.parametrize("spaced", [False, True])
def test_the_terminator_by_its_role(template, role, found, spaced):
    tokenizer = chat_tokenizer(template, spaced=spaced)
    special = special_ids(tokenizer)
    assert terminator_text(tokenizer, ChatTemplate(), ".", role, special) == found
    lm = LanguageModel(random_model("llama", len(tokenizer)), tokenizer)
    rule = string_rule(lm, UserPosterior(terminator_role=role), 5)
    assert rule.terminator == tokenizer.convert_tokens_to_ids(found)
    assert rule.allowed_V[rule.terminator]
    assert not rule.allowed_V[list(special - {rule.terminator})].any()
    # The text that it replaces is like any other.
    assert rule.allowed_V[tokenizer.convert_tokens_to_ids(".")]


@pytest.mark.parametrize(
    ("tokenizer", "role", "what"),
    [(chat_tokenizer(PLAIN), "end_of_turn", "begins with no special token"),
     (chat_tokenizer(None), "end_of_turn", "has no chat template"),
     (character_tokenizer(), "end_of_text", "no end-of-sequence token")],
)  # fmt: skip
def test_a_role_that_the_model_has_no_token_of(tokenizer, role, what):
    with pytest.raises(UserError, match=what):
        terminator_text(tokenizer, ChatTemplate(), ".", role, special_ids(tokenizer))


# -- lines of a file --------------------------------------------------------------------------------


def own(file: str, **options) -> UserPosterior:
    return UserPosterior(data=PosteriorData(train=file), **options)


def test_a_line_with_messages_becomes_a_condition(file):
    path = file(
        {"messages": USER, "terms": [{"messages": SYSTEM, "weight": 2}, {"context": "c"}]},
        {"messages": SYSTEM, "constraint": {"pattern": r"[a-z]+\."}, "demonstrations": ["a."]},
    )
    first, second = own(path, terminator_role="end_of_turn").load(0).train
    assert first.prompt == Chat.of(USER) and isinstance(first.prompt, Chat)
    assert type(first.key) is str and first.key == first.prompt
    assert first.terms == (Term(Chat.of(SYSTEM), "", 2.0), Term("c"))
    assert isinstance(first.terms[0].context, Chat) and not isinstance(first.terms[1].context, Chat)
    assert second.terms == (Term(Chat.of(SYSTEM)),)
    # A full stop ends the string only where it is the terminator.
    with pytest.raises(UserError) as caught:
        own(path).load(0)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("change", "field", "what"),
    [
        ({"prompt": "a"}, "messages", "given together with prompt"),
        ({"messages": None}, "prompt", "missing"),
        ({"messages": []}, "messages", "none"),
        ({"messages": [{"role": "usr", "content": ""}]}, "messages[0].role", "given 'usr'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [*USER, {"role": "assistant", "content": "b"}]}, "messages[1].role", "last"),
        ({"terms": [{"context": "a", "messages": USER}]}, "terms[0].messages", "with context"),
        ({"terms": [{"messages": []}]}, "terms[0].messages", "none"),
    ],
)
def test_a_wrong_line_with_messages_is_named_with_its_field(file, change, field, what):
    good = {"messages": USER, "terms": [{"messages": USER}]}
    path = file({**good, "messages": SYSTEM}, {**good, **change})
    with pytest.raises(UserError) as caught:
        own(path).load(0)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}, line 2, field {field}"
    assert what in problem.what and problem.allowed


# -- what only the tokenizer can tell ---------------------------------------------------------------


CONTEXT = [{"context": "c"}]


def found_problems(name: str, path: str, *more: str):
    given = ["task=posterior", "experiment=tiny/smoke", f"lm.name={name}", "lm.lora.rank=2"]
    (config,) = configs(*given, f"task.data.train={path}", *more)
    with pytest.raises(UserError) as caught:
        check_texts(config)
    return caught.value.problems


def test_messages_that_the_template_refuses_are_named_with_their_line(file, tmp_path):
    folder = folder_of(tmp_path / "model", LLAMA2)
    terms = [*CONTEXT, {"messages": [*USER, *USER]}]
    path = file({"messages": SYSTEM, "terms": CONTEXT}, {"prompt": "p", "terms": terms})
    first, second = found_problems(folder, path)
    assert first.where == f"{path}, line 1, field messages" and "no system role" in first.what
    assert second.where == f"{path}, line 2, field terms[1].messages"
    assert "roles must alternate" in second.what


def test_messages_need_a_template(file, tmp_path):
    folder = folder_of(tmp_path / "model", None)
    path = file(*({"messages": m, "terms": CONTEXT} for m in (USER, SYSTEM)))
    (problem,) = found_problems(folder, path)
    assert problem.where == f"{path}, line 1, field messages"
    assert "no chat template" in problem.what and "Jinja file" in problem.allowed
    texts = file({"prompt": "p", "terms": CONTEXT}, name="texts.jsonl")
    (problem,) = found_problems(folder, texts, "lm.chat_template=tokenizer")
    assert problem.where == "lm.chat_template"
    (problem,) = LMSettings(chat_template=str(tmp_path / "none.jinja")).problems()
    assert problem.where == "lm.chat_template" and "no file" in problem.what
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for %}")
    problem, *_ = found_problems(folder, path, f"lm.chat_template={broken}")
    assert "chat template rejects" in problem.what


def test_lengths_are_those_of_rendered_prompts(file, tmp_path):
    folder = folder_of(tmp_path / "model", "x" * 400 + CHATML)
    cases = [({"prompt": "p"}, ["lm.chat_template=tokenizer"]), ({"messages": USER}, [])]
    for prompt, options in cases:
        (problem,) = found_problems(folder, file(prompt | {"terms": CONTEXT}), *options)
        assert "more than the model's context of 256" in problem.what


# -- in use -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_policy_reads_messages_as_in_training(file, tmp_path):
    folder = folder_of(tmp_path / "model")
    lm = load(LMSettings(name=folder, device="cpu", chat_template="tokenizer"))
    path = file({"messages": USER, "terms": [{"messages": USER}]})
    task = own(path, terminator_role="end_of_turn")
    policy = Policy(lm, task, conditions=task.load(0).train)
    by_list = policy.sample(USER, 3)
    assert by_list == policy.sample(json.dumps(USER, indent=1), 3)
    condition = policy.condition(USER)
    assert isinstance(condition, Condition) and all(s.log_reward is not None for s in by_list)
    # A fresh policy is the base model, and the reward's context is its prompt.
    rows = as_trajectories([lm.encode(" cat.")])
    log_q_B = policy_log_probs(lm, [lm.encode_prompt(condition.prompt)], rows, policy.rule)
    log_reward_B, _ = string_log_reward(lm, [condition], rows, policy.rule)
    torch.testing.assert_close(log_q_B, log_reward_B, atol=1e-3, rtol=0.0)
    # A text is the user's message here; as a prompt it has no posterior of its own.
    ids = [lm.encode_prompt(prompt) for prompt in ("A cat?", Chat.of(USER))]
    assert ids[0] == ids[1] and policy.sample("A cat?", 1)[0].log_reward is None
    assert policy.sample("[1, 2]", 1)
