"""Settings of the language model and its adapter, and checks before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.errors import Problem
from gfn_runner.lm.model_folders import EMBEDDED, MINILM, SMOLLM2, folder_problems
from gfn_runner.runtime.local_paths import LocalPath

# Choices of ``lm.chat_template`` that are not files.
TEMPLATE_OFF, OWN_TEMPLATE = "off", "tokenizer"
CHAT_TEMPLATE_KEY = "lm.chat_template"
# The text encoder that needs no model: hashed word counts.
WORDS = "words"
ENCODER_KEY = "evaluation.encoder"
MODELS = "embedded, a folder in Hugging Face format, or a hub id that can be reached"
ENCODERS = (
    f"{WORDS} (needs no model), {MINILM} (needs its package), the folder of a sentence model, or a hub "
    "id that can be reached"
)
# True while a config is checked for another machine, whose devices are unknown.
ELSEWHERE: ContextVar[bool] = ContextVar("elsewhere", default=False)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class LoraSettings:
    """Settings of a LoRA adapter.

    Attributes:
        rank: rank of the update, which is scaled by alpha / rank.
        alpha: numerator of the scale.
        targets: names of the adapted layers; ``None`` adapts every linear layer of the blocks.
        output_layer: whether to also adapt the output layer, which returns the logits.
    """

    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[int, Field(ge=1)] = 32
    targets: tuple[str, ...] | None = None
    output_layer: bool = False


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class LMSettings:
    """Settings of the language model.

    Attributes:
        name: ``embedded``, ``smollm2`` (made by ``make smollm2``), a folder in Hugging Face format or a
            hub id.
        gguf_file: name of a GGUF file in that folder or hub repository, from which transformers reads
            config, tokenizer and (dequantized) weights; ``None`` for the usual files.
        dtype: dtype of the weights; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
        quantization: ``4bit`` needs bitsandbytes and a CUDA device.
        device: ``auto`` uses CUDA if available.
        lora: settings of the adapter.
        packed_rewards: whether to score all prefixes in one forward; ``auto`` compares this with plain
            forwards first and scores every prefix in a row of its own where they differ. Beyond an
            attention window, separate rows are always used.
        recompute_above: number of tokens in a step's strings above which activations and logits are
            recomputed in the backward pass instead of kept, in pieces of about as many tokens: less
            memory, a second forward. ``None`` always keeps them. M-steps of EM use pieces of at most as
            many tokens (``max_tokens_per_forward`` with ``None``) and recompute nothing.
        chat_template: chat template that renders text prompts and contexts, each as one user message:
            ``off``, ``tokenizer`` (its own template) or a Jinja file. Messages are always rendered: with
            the file if one is given, else with the tokenizer's own template.
        max_tokens_per_forward: rows are split into pieces of at most this many tokens where no
            gradient is needed; lower it when memory runs out.
    """

    name: Annotated[str, LocalPath((EMBEDDED, SMOLLM2))] = EMBEDDED
    gguf_file: Annotated[str, Field(min_length=1)] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "4bit"] = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    lora: LoraSettings = Field(default_factory=LoraSettings)
    packed_rewards: Literal["auto", "always", "never"] = "auto"
    chat_template: Annotated[str, LocalPath((TEMPLATE_OFF, OWN_TEMPLATE))] = TEMPLATE_OFF
    max_tokens_per_forward: Annotated[int, Field(ge=128)] = 32768
    recompute_above: Annotated[int, Field(ge=1)] | None = None

    def problems(self) -> Iterator[Problem]:
        """Yield settings that are known to be impossible before anything is loaded."""
        wants_cuda = self.device == "cuda" or self.quantization == "4bit"
        has_cuda = wants_cuda and (ELSEWHERE.get() or _cuda_is_available())
        if self.device == "cuda" and not has_cuda:
            yield Problem(
                "lm.device", "given 'cuda', but this machine has no CUDA device", "auto, cpu"
            )
        if self.quantization == "4bit":
            if importlib.util.find_spec("bitsandbytes") is None:
                yield Problem(
                    "lm.quantization",
                    "given '4bit', but the package bitsandbytes is not installed",
                    "none, or 4bit with bitsandbytes and a CUDA device",
                    "pip install 'gfn-runner[4bit]'",
                )
            if not has_cuda or self.device == "cpu":
                yield Problem(
                    "lm.quantization",
                    "given '4bit', which needs a CUDA device, and none is in use",
                    "none",
                )
        if (
            self.chat_template not in (TEMPLATE_OFF, OWN_TEMPLATE)
            and not Path(self.chat_template).expanduser().is_file()
        ):
            yield Problem(
                CHAT_TEMPLATE_KEY,
                f"no file {self.chat_template}",
                f"{TEMPLATE_OFF}, {OWN_TEMPLATE} or a Jinja file",
            )
        if self.gguf_file is not None:
            yield from self._gguf_problems()
        yield from folder_problems(self.name, "lm.name", MODELS, self.gguf_file)

    def _gguf_problems(self) -> Iterator[Problem]:
        if importlib.util.find_spec("gguf") is None:
            yield Problem(
                "lm.gguf_file",
                f"given {self.gguf_file!r}, but the package gguf is not installed",
                "null, or a GGUF file with that package",
                "pip install 'gfn-runner[gguf]'",
            )
        if self.quantization != "none":
            yield Problem(
                "lm.quantization",
                f"given {self.quantization!r} with lm.gguf_file, whose weights are dequantized",
                "none",
            )


def _cuda_is_available() -> bool:
    # Not imported at the top: most configs are checked without torch.
    import torch

    return torch.cuda.is_available()


def sentence_model_problems(name: str) -> Iterator[Problem]:
    """Yield problems with the name of a sentence model, without loading it."""
    if importlib.util.find_spec("sentence_transformers") is None:
        yield Problem(
            ENCODER_KEY,
            f"given {name!r}, but the package sentence-transformers is not installed",
            f"{WORDS}, or a sentence model with that package",
            "pip install 'gfn-runner[embeddings]'",
        )
    yield from folder_problems(name, ENCODER_KEY, ENCODERS)
