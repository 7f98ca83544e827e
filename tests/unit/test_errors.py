"""What is said of a user error."""

from __future__ import annotations

from gfn_runner.errors import Problem


def test_a_long_text_of_the_users_is_quoted_in_part():
    said = str(Problem("task", f"the prompt {'word ' * 60_000!r} has 60001 tokens", "512"))
    assert len(said) < 700 and said.startswith("task: the prompt 'word ")
    assert "has 60001 tokens\n    allowed: 512" in said
