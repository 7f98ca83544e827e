"""Check whether a sentence belongs to the language of the corpus."""

from __future__ import annotations

from gfn_runner.data.synthetic import news, sentences, stories


def is_sentence(text: str) -> bool:
    """Return whether the sentence can occur in the stories, news or plain sentences of the corpus.

    Args:
        text: the sentence, with or without its full stop.
    """
    bare = text.strip().removesuffix(".")
    return any(grammar.is_sentence(bare) for grammar in (stories, news, sentences))
