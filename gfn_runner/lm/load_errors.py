"""What transformers, PEFT, chat templates and the hub's client raise, as one problem with a reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import version

from gfn_runner.errors import UserError
from gfn_runner.runtime.phases import is_out_of_memory


@contextlib.contextmanager
def explained(key: str, what: str, allowed: str, fix: str = "") -> Iterator[None]:
    """Turn what transformers, PEFT and the hub's client raise into one problem.

    Args:
        what: could not be done; the reason is added.
        fix: a suggestion, where the reason has none of its own.

    Raises:
        UserError: in place of whatever is raised within it, but for memory that runs out.
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
    """What is wrong, and the fix, of an exception of transformers."""
    text = " ".join(str(error).split()) or type(error).__name__
    transformers = version("transformers")
    if "trust_remote_code" in text:
        return (
            "it needs Python code that comes with the model (auto_map), which is never run; "
            f"transformers {transformers} has no class of its own for it",
            "a checkpoint of the same model that transformers itself can read",
        )
    if "does not recognize this architecture" in text:
        model_type = text.partition("model type `")[2].partition("`")[0]
        return (
            f"model_type {model_type!r} in its config.json is unknown to transformers {transformers}",
            "pip install --upgrade transformers, if a later version knows it",
        )
    if "Should have a `model_type` key" in text:
        return (
            "its config.json has no model_type",
            "config.json as the model's authors publish it, or add the model_type",
        )
    if "untagged enum" in text or "did not match any variant" in text:
        return (
            f"tokenizers {version('tokenizers')} cannot parse its tokenizer.json, which a newer "
            f"version may have written ({text[:120]})",
            "pip install --upgrade tokenizers transformers, or save the tokenizer with this version",
        )
    if isinstance(error, KeyError):
        return f"unknown value {text} in its config.json", ""
    return text[:300], ""
