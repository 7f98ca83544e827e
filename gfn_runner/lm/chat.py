"""Messages and texts through a chat template, and the end of a turn."""

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
# What stands for an answer while the end of a turn is looked for.
_ANSWER = "the answer"


@dataclass(frozen=True)
class ChatTemplate:
    """How prompts become text.

    Attributes:
        source: Jinja text; ``None`` for the tokenizer's own, if it has one.
        of_texts: whether a plain text is a user's message too.
    """

    source: str | None = None
    of_texts: bool = False

    @classmethod
    def read(cls, chosen: str) -> ChatTemplate:
        """The template that ``lm.chat_template`` names.

        Raises:
            UserError: if it is a file that cannot be read.
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
        """Token ids of a prompt at the start of a string.

        A chat, and every text where ``of_texts``, is rendered up to where the assistant's answer begins.
        The template writes the special tokens, so the tokenizer adds none.

        Raises:
            UserError: if there is no template, or it refuses the messages.
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
        """Bytes that the template adds to a text."""
        if not self.of_texts:
            return 0
        return len(self.rendered(tokenizer, [{"role": "user", "content": ""}]).encode("utf-8"))

    def rendered(
        self, tokenizer: Any, messages: Sequence[Mapping[str, str]], *, answers: bool = True
    ) -> str:
        """The text of messages; with ``answers`` up to the beginning of the assistant's answer.

        Raises:
            UserError: if there is no template, or it refuses the messages.
        """
        if self.source is None and not getattr(tokenizer, "chat_template", None):
            raise UserError.one(
                CHAT_TEMPLATE_KEY,
                "this model's tokenizer has no chat template",
                "a Jinja file, or prompts that are plain texts and lm.chat_template=off",
            )
        options = {} if self.source is None else {"chat_template": self.source}
        roles = ", ".join(message["role"] for message in messages)
        what = f"the chat template refuses messages of the roles {roles}"
        # Jinja's own errors, and whatever expressions in it raise.
        with explained("messages", what, "messages as the model's chat template takes them"):
            return tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answers, **options
            )

    def end_of_turn(self, tokenizer: Any, special: frozenset[int]) -> str:
        """The special token that the template writes right after what an assistant says.

        Args:
            special: ids of its special tokens.

        Raises:
            UserError: if there is none.
        """
        asked, again = ({"role": "user", "content": "a question"} for _ in range(2))
        answer = {"role": "assistant", "content": _ANSWER}
        rest = ""
        # Some templates end the last turn only, others every one but the last.
        for messages in ([asked, answer], [asked, answer, again]):
            text = self.rendered(tokenizer, messages, answers=False)
            rest = text[text.rfind(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
            ids = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"]
            # SentencePiece begins a text with a space of its own.
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
    """The text of ⊤: ``terminator``, or that of the special token with a role.

    Args:
        terminator: taken where ``role`` is ``None``.
        role: ``end_of_turn``, ``end_of_text`` (the tokenizer's end-of-sequence token) or ``None``.
        special: ids of the tokenizer's special tokens.

    Raises:
        UserError: if the model has no token of that role.
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
