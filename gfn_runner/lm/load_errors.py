"""Errors of transformers, PEFT, chat templates and the hub client, as one problem with a reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import version

from gfn_runner.errors import UserError
from gfn_runner.runtime.phases import is_out_of_memory


@contextlib.contextmanager
def explained(key: str, what: str, allowed: str, fix: str = "") -> Iterator[None]:
    """Turn exceptions of transformers, PEFT and the hub client into one problem.

    Args:
        what: what failed; the reason is appended.
        fix: suggested fix, used if the reason has none of its own.

    Raises:
        UserError: in place of any exception raised inside the context, except out-of-memory errors.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason, own_fix = _reason(error)
        raise UserError.one(key, f"{what}: {reason}", allowed, own_fix or fix) from error


def _reason(error: Exception) -> tuple[str, str]:
    """Return what is wrong, in the library's own words where they explain it, and a suggested fix."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text:  # not an option here
        return (
            "it needs Python code that comes with the model (auto_map), which is never run; "
            f"transformers {version('transformers')} has no class of its own for it",
            "a checkpoint of the same model that transformers itself can read",
        )
    if isinstance(error, KeyError):
        return f"unknown value {text} in its config.json", ""
    return text[:300], ""
