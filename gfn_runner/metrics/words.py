"""Words of a text, as diversity and overlap count them."""

from __future__ import annotations


def words(text: str) -> list[str]:
    """Runs of letters and digits, and runs of punctuation, in the text's own case.

    ``nltk``'s ``wordpunct_tokenize``: it needs no data file. ``"It's 7."`` is ``It ' s 7 .``.
    """
    from nltk.tokenize import wordpunct_tokenize

    return wordpunct_tokenize(text)
