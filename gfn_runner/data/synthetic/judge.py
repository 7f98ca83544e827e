"""Whether a sentence is one of the corpus's."""

from __future__ import annotations

from gfn_runner.data.synthetic import news, sentences, stories


def is_sentence(text: str) -> bool:
    """Whether stories, news or plain sentences of the corpus may hold it.

    Args:
        text: with or without its full stop.
    """
    bare = text.strip().removesuffix(".")
    return any(grammar.is_sentence(bare) for grammar in (stories, news, sentences))
