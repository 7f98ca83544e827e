"""Constraints on texts: words, a pattern, a length, a classifier's label.

A text is a string as the policy wrote it, without its terminator. Surrounding white space is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Annotated, Any

import regex
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as record

from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.local_paths import LocalPath

# A pattern with catastrophic backtracking would block a run forever.
MATCH_SECONDS = 2.0
_OTHER_TERMINATOR = "another task.terminator"


@record(frozen=True, config=ConfigDict(extra="forbid"))
class ClassifierLabel:
    """A classifier's factor p(label | text) ** weight.

    Attributes:
        name: folder or hub id of a sequence classifier; a relative folder is looked up next to the
            file that names it, then in the working directory.
        label: one of its labels, by name or number.
        weight: exponent of the factor.
    """

    name: Annotated[str, LocalPath()]
    label: str
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


@record(frozen=True, config=ConfigDict(extra="forbid"))
class TextConstraint:
    """Constraint on the strings of one condition.

    Attributes:
        words: each must occur as a whole word, regardless of case; a word may contain spaces.
        pattern: a regular expression that the whole text must match (``fullmatch``), in the syntax of
            the library ``regex``, which accepts that of ``re`` too.
        min_words, max_words: bounds on the number of words, separated by white space.
        classifier: a label that the text should have, as a soft constraint.
    """

    words: tuple[str, ...] = ()
    pattern: str | None = None
    min_words: Annotated[int, Field(ge=0)] | None = None
    max_words: Annotated[int, Field(ge=0)] | None = None
    classifier: ClassifierLabel | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it requires nothing."""
        return self == TextConstraint()

    @property
    def is_checkable(self) -> bool:
        """Whether it requires words, a pattern or a length, which a text either has or does not have."""
        asked = (self.pattern, self.min_words, self.max_words)
        return bool(self.words) or any(value is not None for value in asked)

    def missing(self, text: str) -> list[str]:
        """Return the words that do not occur in a text."""
        return [word for word in self.words if not _word(word).search(text)]

    def violations(self, text: str) -> int:
        """Count the missing words, plus 1 if the pattern does not match, plus 1 for a wrong length.

        Raises:
            UserError: if the pattern takes more than two seconds on this text.
        """
        n_words = len(text.split())
        too_short = self.min_words is not None and n_words < self.min_words
        too_long = self.max_words is not None and n_words > self.max_words
        unmatched = self.pattern is not None and not _matches(self.pattern, text.strip())
        return len(self.missing(text)) + (too_short or too_long) + unmatched

    def satisfied(self, text: str) -> bool:
        """Return whether words, pattern and length are as required; the classifier is ignored."""
        return self.violations(text) == 0

    def problems(
        self, at: Callable[[str], str], terminator: str, max_len: int
    ) -> Iterator[Problem]:
        """Yield constraints that no string can meet, as far as can be told without a model.

        Args:
            at: function from a field's name to its location, for messages.
            terminator: text of the terminator ⊤, which never occurs in a judged text.
            max_len: maximum number of tokens of a string; a word has at least one.
        """
        yield from self._word_problems(at, terminator, max_len)
        yield from self._length_problems(at, max_len)
        if self.pattern is not None:
            yield from _pattern_problems(self.pattern, at("pattern"), terminator)

    def _word_problems(
        self, at: Callable[[str], str], terminator: str, max_len: int
    ) -> Iterator[Problem]:
        seen: dict[str, int] = {}
        for place, word in enumerate(self.words):
            folded = " ".join(word.casefold().split())
            if not folded:
                yield Problem(at(f"words[{place}]"), f"given {word!r}", "a word")
            elif terminator and terminator in word:
                what = f"{word!r} holds {terminator!r}, which ends a string"
                yield Problem(at(f"words[{place}]"), what, "words without it", _OTHER_TERMINATOR)
            elif folded in seen:
                earlier = f"the same as words[{seen[folded]}]"
                yield Problem(at(f"words[{place}]"), f"{word!r} is {earlier}", "each word once")
            seen.setdefault(folded, place)
        n_words = len({part for word in seen for part in word.split()})
        if n_words > max_len:
            yield Problem(
                at("words"),
                f"{n_words} different words, but a string has at most {max_len} tokens",
                f"at most {max_len} words",
                "raise task.max_len and task.eval_max_len",
            )
        elif self.max_words is not None and n_words > self.max_words:
            yield Problem(
                at("max_words"),
                f"given {self.max_words}, but {n_words} different words are required",
                f"at least {n_words}",
            )

    def _length_problems(self, at: Callable[[str], str], max_len: int) -> Iterator[Problem]:
        low, high = self.min_words, self.max_words
        if low is not None and high is not None and low > high:
            yield Problem(at("min_words"), f"given {low}, above max_words = {high}", f"0 to {high}")
        if low is not None and low > max_len:
            yield Problem(
                at("min_words"),
                f"given {low}, but a string has at most {max_len} tokens",
                f"at most {max_len}",
                "raise task.max_len and task.eval_max_len",
            )


@lru_cache(maxsize=4096)
def _word(word: str) -> re.Pattern[str]:
    parts = r"\s+".join(map(re.escape, word.split()))
    return re.compile(rf"(?<!\w){parts}(?!\w)", re.IGNORECASE)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)


def _matches(pattern: str, text: str) -> bool:
    try:
        return _compiled(pattern).fullmatch(text, timeout=MATCH_SECONDS) is not None
    except TimeoutError as error:
        raise UserError.one(
            f"the pattern {pattern!r}",
            f"takes more than {MATCH_SECONDS:g} s on {text!r}",
            "a pattern that is fast to match",
            "no repetition inside a repetition of the same characters, such as (a+)+",
        ) from error


def _pattern_problems(pattern: str, where: str, terminator: str) -> Iterator[Problem]:
    try:
        _compiled(pattern)
    except regex.error as error:
        at = f", at character {error.pos + 1}" if error.pos is not None else ""
        yield Problem(
            where,
            f"given {pattern!r}, not a valid regular expression: {error.msg}{at}",
            "a regular expression; escape a literal special character with \\",
        )
        return
    except (RecursionError, OverflowError, MemoryError) as error:
        yield Problem(where, f"too large: {error}", "a smaller regular expression")
        return
    if terminator and pattern.endswith(re.escape(terminator)):
        yield Problem(
            where,
            f"given {pattern!r}, which ends in {terminator!r}; that ends a string, and the text is "
            "matched without it",
            f"a pattern without {terminator!r}",
            _OTHER_TERMINATOR,
        )
