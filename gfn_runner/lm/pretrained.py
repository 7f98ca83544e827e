"""Config, tokenizer and weights by transformers, never by a model's own code; errors as one problem."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.architecture import (
    outside_the_language_model,
    without_dropout,
    without_missing_pad,
)

_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Source:
    """Where a pretrained model is, and who asks for it.

    Attributes:
        name: as the user gave it.
        path: an absolute folder, or a hub id.
        key: the config key that names it, for messages.
        allowed: what would be right there.
    """

    name: str
    path: str
    key: str
    allowed: str

    def config(self, **options: Any) -> Any:
        """The model's config, every dropout 0, without a padding token that has no embedding.

        Args:
            options: further ones of transformers.

        Raises:
            UserError: if it cannot be read.
        """
        from transformers import AutoConfig

        with self.explained("config"):
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=False, **options)
            return without_missing_pad(without_dropout(config))

    def tokenizer(self, **options: Any) -> Any:
        """The model's tokenizer.

        Raises:
            UserError: if it cannot be read.
        """
        from transformers import AutoTokenizer

        with self.explained("tokenizer"):
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False, **options)

    def model(self, auto: Any, config: Any, **options: Any) -> Any:
        """The model with its weights; every parameter comes from the checkpoint.

        Args:
            auto: one of transformers' auto classes.
            config: of :meth:`config`.
            options: further ones of ``from_pretrained``.

        Raises:
            UserError: if weights are missing, of other shapes, or cannot be read.
        """
        with self.explained("weights"), quiet_loading():
            model, info = auto.from_pretrained(
                self.path,
                config=config,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        problems = list(self._differences(model, info))
        if problems:
            raise UserError(problems)
        return model

    def weights_problems(self, auto: Any, config: Any, **options: Any) -> Iterator[Problem]:
        """What :meth:`model` would raise, asked of names and shapes; no tensor is read.

        Weights of a hub id that are not in the cache yet are not asked for.
        """
        try:
            with quiet_loading():
                self._cached_weights(auto, config, **options)
        except UserError as error:
            yield from error.problems

    def _cached_weights(self, auto: Any, config: Any, **options: Any) -> None:
        from pathlib import Path

        if not Path(self.path).is_dir():
            options["local_files_only"] = True
        try:
            self.model(auto, copy.deepcopy(config), device_map="meta", **options)
        except UserError as error:
            if "local_files_only" in options and isinstance(error.__cause__, OSError):
                return
            raise

    def _differences(self, model: Any, info: dict[str, Any]) -> Iterator[Problem]:
        """Weights that the checkpoint lacks or has in another shape."""
        mismatched = sorted(info["mismatched_keys"], key=lambda entry: entry[0])
        if mismatched:
            name, found, expected = mismatched[0]
            more = f"; {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
            yield Problem(
                self.key,
                f"the weights of {self.name!r} do not fit its config.json: {name} has shape "
                f"{tuple(found)}, the config asks for {tuple(expected)}{more}",
                self.allowed,
                "config.json and weights of one model",
            )
        missing = _missing(model, info["missing_keys"])
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            fix = "download the model again, or config.json and weights of one model"
            if any(name.startswith(("lm_head", "classifier", "score")) for name in missing):
                fix = "a checkpoint with that output layer: this one is of another task"
            yield Problem(
                self.key,
                f"the weights of {self.name!r} lack what its config.json asks for: {missing[0]}{more}; "
                "it would be random",
                self.allowed,
                fix,
            )

    @contextlib.contextmanager
    def explained(self, part: str) -> Iterator[None]:
        """Say what transformers could not read, and why.

        Args:
            part: ``config``, ``tokenizer`` or ``weights``.

        Raises:
            UserError: in place of whatever is raised within it, but for memory that runs out.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, MemoryError) or any(m in text.lower() for m in _MEMORY):
                raise
            what, fix = _reason(part, error)
            raise UserError.one(
                self.key,
                f"cannot read the {part} of {self.name!r}: {what}",
                self.allowed,
                fix,
            ) from error


def dequantized(config: Any) -> dict[str, Any]:
    """Options of ``from_pretrained`` that read MXFP4 weights, those of gpt-oss, in the model's dtype."""
    from transformers.utils.quantization_config import Mxfp4Config

    found = getattr(config, "quantization_config", None)
    if not isinstance(found, dict) or found.get("quant_method") != "mxfp4":
        return {}
    return {"quantization_config": Mxfp4Config(dequantize=True)}


def _missing(model: Any, names: Any) -> list[str]:
    """Missing parameters that matter: neither those beside the text's, nor the pooler's."""
    import re

    outside = None
    with contextlib.suppress(AttributeError, NotImplementedError):
        outside = outside_the_language_model(model)
    parameters = {name for name, _ in model.named_parameters()}
    return sorted(
        name
        for name in names
        if name in parameters
        and not name.startswith("pooler.")
        and not (outside and re.fullmatch(outside, name))
    )


def _reason(part: str, error: Exception) -> tuple[str, str]:
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
    if "untagged enum" in text or (part == "tokenizer" and "did not match" in text):
        return (
            f"tokenizers {version('tokenizers')} cannot parse its tokenizer.json, which a newer "
            f"version may have written ({text[:120]})",
            "pip install --upgrade tokenizers transformers, or save the tokenizer with this version",
        )
    if isinstance(error, KeyError):
        return f"unknown value {text} in its config.json", ""
    return text[:300], ""


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Within it transformers shows no bars and reports no names of weights: problems here do."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
