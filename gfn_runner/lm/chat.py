"""Chat templates: rendering of messages and texts, and the end-of-turn token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfn_runner.data.conditions import Chat
from gfn_runner.errors import UserError
from gfn_runner.lm.encoding import prompt_ids
from gfn_runner.lm.load_errors import explained
from gfn_runner.lm.model_config import CHAT_TEMPLATE_KEY, OWN_TEMPLATE, TEMPLATE_OFF

ROLE_KEY = "task.terminator_role"
END_OF_TURN, END_OF_TEXT = "end_of_turn", "end_of_text"
# Placeholder for the assistant's answer in the search for the end-of-turn token.
_ANSWER = "the answer"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that renders prompts as text.

    Attributes:
        source: Jinja source; ``None`` for the tokenizer's own template, if it has one.
        of_texts: whether plain texts are rendered too, each as one user message.
    """

    source: str | None = None
    of_texts: bool = False

    @classmethod
    def read(cls, chosen: str) -> ChatTemplate:
        """Load the template that ``lm.chat_template`` names.

        Raises:
            UserError: if the template file cannot be read.
        """
        if chosen in (TEMPLATE_OFF, OWN_TEMPLATE):
            return cls(of_texts=chosen == OWN_TEMPLATE)
        try:
            source = Path(chosen).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError.one(
                CHAT_TEMPLATE_KEY,
                f"cannot read {chosen}: {error}",
                "off, tokenizer or a Jinja file",
            ) from error
        return cls(source, of_texts=True)

    def prompt_ids(self, tokenizer: Any, prompt: str) -> tuple[int, ...]:
        """Return the token ids of a prompt at the start of a sequence.

        Chats, and plain texts if ``of_texts`` is set, are rendered up to the start of the assistant's
        answer. The template writes the special tokens, so the tokenizer adds none.

        Raises:
            UserError: if there is no template, or the template rejects the messages.
        """
        if isinstance(prompt, Chat):
            messages: Sequence[Mapping[str, str]] = prompt.messages
        elif self.of_texts:
            messages = [{"role": "user", "content": prompt}]
        else:
            return prompt_ids(tokenizer, prompt)
        text = self.rendered(tokenizer, messages)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def length(self, tokenizer: Any) -> int:
        """Return the number of bytes that the template adds to a text."""
        if not self.of_texts:
            return 0
        return len(self.rendered(tokenizer, [{"role": "user", "content": ""}]).encode("utf-8"))

    def rendered(
        self, tokenizer: Any, messages: Sequence[Mapping[str, str]], *, answers: bool = True
    ) -> str:
        """Render messages as text; with ``answers``, up to the start of the assistant's answer.

        Raises:
            UserError: if there is no template, or the template rejects the messages.
        """
        if self.source is None and not getattr(tokenizer, "chat_template", None):
            raise UserError.one(
                CHAT_TEMPLATE_KEY,
                "this model's tokenizer has no chat template",
                "a Jinja file, or plain-text prompts and lm.chat_template=off",
            )
        options = {} if self.source is None else {"chat_template": self.source}
        roles = ", ".join(message["role"] for message in messages)
        what = f"the chat template rejects messages with the roles {roles}"
        # Jinja's own errors, and whatever expressions in the template raise.
        with explained("messages", what, "messages that the model's chat template accepts"):
            return tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answers, **options
            )

    def end_of_turn(self, tokenizer: Any, special: frozenset[int]) -> str:
        """Return the special token that the template writes right after an assistant's message.

        Args:
            special: ids of the tokenizer's special tokens.

        Raises:
            UserError: if the template writes none there.
        """
        asked, again = ({"role": "user", "content": "a question"} for _ in range(2))
        answer = {"role": "assistant", "content": _ANSWER}
        rest = ""
        # Some templates close only the last turn, others every turn but the last.
        for messages in ([asked, answer], [asked, answer, again]):
            text = self.rendered(tokenizer, messages, answers=False)
            rest = text[text.rfind(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
            ids = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"]
            # SentencePiece prepends a space to a text.
            shown = (i for i in ids if tokenizer.convert_ids_to_tokens([i])[0].strip("▁Ġ "))
            first = next(shown, None)
            if first in special:
                return str(tokenizer.convert_ids_to_tokens([first])[0])
        raise UserError.one(
            ROLE_KEY,
            f"given {END_OF_TURN!r}, but after an assistant's message the chat template of this model "
            f"writes {rest[:40]!r}, which begins with no special token",
            f"{END_OF_TEXT}, or null and a text as task.terminator",
        )


def terminator_text(
    tokenizer: Any,
    template: ChatTemplate,
    terminator: str,
    role: str | None,
    special: frozenset[int],
) -> str:
    """Return the text of the terminator ⊤: ``terminator``, or the special token with the given role.

    Args:
        terminator: used if ``role`` is ``None``.
        role: ``end_of_turn``, ``end_of_text`` (the tokenizer's end-of-sequence token) or ``None``.
        special: ids of the tokenizer's special tokens.

    Raises:
        UserError: if the model has no token with that role.
    """
    if role is None:
        return terminator
    if role == END_OF_TURN:
        return template.end_of_turn(tokenizer, special)
    if tokenizer.eos_token is None:
        raise UserError.one(
            ROLE_KEY,
            f"given {END_OF_TEXT!r}, but this model's tokenizer has no end-of-sequence token",
            "null and a text as task.terminator",
        )
    return str(tokenizer.eos_token)
