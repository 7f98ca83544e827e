"""Loading by transformers, never by a model's own code: config, tokenizer, weights; errors as one problem."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm import gguf
from gfn_runner.lm.architecture import (
    outside_the_language_model,
    without_dropout,
    without_missing_pad,
)
from gfn_runner.lm.load_errors import explained
from gfn_runner.lm.model_folders import model_folder


def resolve(name: str, key: str, allowed: str, gguf_file: str | None = None) -> Source:
    """Return where the named model is loaded from; arguments are the attributes of :class:`Source`."""
    folder = model_folder(name)
    # Absolute: "./gpt2" must not become the hub id "gpt2".
    path = name if folder is None else str(folder.absolute())
    return Source(name, path, key, allowed, gguf_file)


@dataclass(frozen=True)
class Source:
    """Location of a pretrained model and the config key that names it; created by :func:`resolve`.

    Attributes:
        name: ``embedded``, ``smollm2``, ``minilm``, a folder or a hub id, as the user gave it.
        path: absolute folder path, or hub id.
        key: config key that names the model, for messages.
        allowed: description of valid values of the key, for messages.
        gguf_file: name of a GGUF file there, from which everything is read; ``None`` for the usual files.
    """

    name: str
    path: str
    key: str
    allowed: str
    gguf_file: str | None = None

    def require_available(self) -> None:
        """Check once that a hub id is in the cache or on the hub, rather than wait through retries.

        Raises:
            UserError: if it is in neither.
        """
        from huggingface_hub import HfApi, try_to_load_from_cache

        if model_folder(self.name) is not None:
            return
        if isinstance(try_to_load_from_cache(self.path, self.gguf_file or "config.json"), str):
            return
        fix = "lm.name=/path/to/model for a folder" if self.key == "lm.name" else ""
        what = f"{self.name!r} is not in the local cache and cannot be looked up on the hub"
        with explained(self.key, what, self.allowed, fix):
            HfApi().model_info(self.path, timeout=10)

    def config(self) -> Any:
        """Load the model's config, with every dropout 0 and no padding token without an embedding.

        Raises:
            UserError: if it cannot be read.
        """
        from transformers import AutoConfig

        with self.explained("config"):
            config = AutoConfig.from_pretrained(self.path, **self._options())
            return without_missing_pad(without_dropout(config))

    def tokenizer(self) -> Any:
        """Load the model's tokenizer.

        Raises:
            UserError: if it cannot be read.
        """
        from transformers import AutoTokenizer

        with self.explained("tokenizer"):
            return AutoTokenizer.from_pretrained(self.path, **self._options())

    def _options(self) -> dict[str, Any]:
        # A model's own code is never run.
        own = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {"trust_remote_code": False, **own}

    def model(self, auto: Any, config: Any, **options: Any) -> Any:
        """Load the model with its weights; every parameter comes from the checkpoint.

        Args:
            auto: one of transformers' auto classes.
            config: the config from :meth:`config`.

        Raises:
            UserError: if weights are missing, have other shapes or cannot be read.
        """
        quiet = gguf.no_progress_bar() if self.gguf_file else contextlib.nullcontext()
        if self.gguf_file is not None:
            options |= gguf.dequantizing_options(self.gguf_file)
        with self.explained("weights"), quiet_loading(), quiet:
            model, info = auto.from_pretrained(
                self.path,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **self._options(),
                **options,
            )
        if self.gguf_file is not None:
            gguf.without_quantization(model)
        problems = list(self._differences(model, info))
        if problems:
            raise UserError(problems)
        return model

    def weights_problems(
        self, auto: Any, config: Any, quantization: str = "none"
    ) -> Iterator[Problem]:
        """Yield the problems that :meth:`model` would raise, by names and shapes; no tensor is read.

        Weights of a hub id that are not in the cache yet are not checked.
        """
        problems = list(
            quantization_problems(config.to_dict(), repr(self.name), self.key, quantization)
        )
        yield from problems
        options = dequantized(config)
        if problems or (hasattr(config, "quantization_config") and not options):
            return
        if not Path(self.path).is_dir():
            options["local_files_only"] = True
        try:
            with quiet_loading():
                self.model(auto, copy.deepcopy(config), device_map="meta", **options)
        except UserError as error:
            if not (options.get("local_files_only") and isinstance(error.__cause__, OSError)):
                yield from error.problems

    def _differences(self, model: Any, info: dict[str, Any]) -> Iterator[Problem]:
        """Yield problems with weights that the checkpoint lacks or has in another shape."""
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
                fix = "a checkpoint with that output layer: this one is for another task"
            yield Problem(
                self.key,
                f"the weights of {self.name!r} lack what its config.json asks for: {missing[0]}{more}; "
                "it would be random",
                self.allowed,
                fix,
            )

    def explained(self, part: str) -> contextlib.AbstractContextManager[None]:
        """Return :func:`explained` for reading the ``config``, ``tokenizer`` or ``weights``."""
        return explained(self.key, f"cannot read the {part} of {self.name!r}", self.allowed)


def quantization_problems(
    config: Mapping[str, Any], name: str, key: str, quantization: str
) -> Iterator[Problem]:
    """Yield a problem if a checkpoint is quantized in a way that ``lm.quantization`` does not support.

    Args:
        config: config of the model, as in ``config.json``.
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return
    four_bit = bool(found.get("load_in_4bit"))
    bitsandbytes = four_bit or bool(found.get("load_in_8bit"))
    method = str(found.get("quant_method") or ("bitsandbytes" if bitsandbytes else "unknown"))
    if method == "mxfp4" and key == "lm.name" and quantization == "none":
        return  # dequantized to lm.dtype
    fix = "the model's checkpoint without quantization"
    if key == "lm.name":
        fix += ", with lm.quantization=4bit if memory is short"
    if method == "bitsandbytes":
        if four_bit and quantization == "4bit":
            return
        if four_bit and key == "lm.name":
            fix = "lm.quantization=4bit, which reads such a checkpoint"
        method = f"bitsandbytes {'4-bit' if four_bit else '8-bit'}"
    yield Problem(
        key,
        f"the weights of {name} are quantized already ({method}), which is not supported",
        "weights in float32, bfloat16 or float16",
        fix,
    )


def dequantized(config: Any) -> dict[str, Any]:
    """Return ``from_pretrained`` options that dequantize MXFP4 weights (gpt-oss) to the model's dtype."""
    from transformers.utils.quantization_config import Mxfp4Config

    found = getattr(config, "quantization_config", None)
    if not isinstance(found, dict) or found.get("quant_method") != "mxfp4":
        return {}
    return {"quantization_config": Mxfp4Config(dequantize=True)}


def _missing(model: Any, names: Any) -> list[str]:
    """Return missing parameters that matter: not those outside the language model, nor the pooler's."""
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


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide transformers' progress bars and weight reports in the context; problems name weights instead."""
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
