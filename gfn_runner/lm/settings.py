"""Which language model and which adapter: settings, and what can be known before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.errors import Problem

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "tiny" / "model"
# Choices of ``lm.chat_template`` that are no file.
TEMPLATE_OFF, OWN_TEMPLATE = "off", "tokenizer"
CHAT_TEMPLATE_KEY = "lm.chat_template"
# The encoder of texts that needs no model: hashed word counts.
WORDS = "words"
ENCODER_KEY = "callbacks.evaluation.encoder"
# True while a config is checked for another machine, whose devices are not known here.
ELSEWHERE: ContextVar[bool] = ContextVar("elsewhere", default=False)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class LoraSettings:
    """The adapter.

    Attributes:
        rank: of the update; alpha / rank scales it.
        alpha: numerator of the scale.
        targets: names of the adapted layers; ``None`` takes every linear layer of the blocks.
        output_layer: adapt the layer behind the blocks, which gives the logits, too.
    """

    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[int, Field(ge=1)] = 32
    targets: tuple[str, ...] | None = None
    output_layer: bool = False


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class LMSettings:
    """Which language model, and how it is held.

    Attributes:
        name: ``embedded``, a folder in Hugging Face format or a hub id.
        dtype: of the weights; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
        quantization: ``4bit`` needs bitsandbytes and a CUDA device.
        device: ``auto`` takes CUDA where there is one.
        lora: the adapter.
        packed_rewards: score all prefixes in one forward; ``auto`` tries it once against the plain
            way and falls back where the model cannot do it.
        recompute_above: tokens of a step's strings above which their activations and logits are not kept
            for the backward pass but computed again there, in pieces of about as many tokens: less
            memory, a second forward. ``None`` keeps them always.
        chat_template: whether prompts and contexts that are texts go through a chat template, each as one
            message of the user's: ``off``, ``tokenizer`` (its own template) or a Jinja file. Messages
            always do: through the file if one is named, else the tokenizer's own.
        max_tokens_per_forward: rows are cut into pieces of at most this many tokens where no
            gradient is needed; lower it when memory runs out.
    """

    name: str = EMBEDDED
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "4bit"] = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    lora: LoraSettings = Field(default_factory=LoraSettings)
    packed_rewards: Literal["auto", "always", "never"] = "auto"
    chat_template: Annotated[str, Field(min_length=1)] = TEMPLATE_OFF
    max_tokens_per_forward: Annotated[int, Field(ge=128)] = 32768
    recompute_above: Annotated[int, Field(ge=1)] | None = None

    def problems(self) -> Iterator[Problem]:
        """What can be known to be impossible before anything is loaded."""
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
        folder = model_folder(self.name)
        if folder is not None:
            yield from _folder_problems(folder)


def _cuda_is_available() -> bool:
    # Not at the top: most configs are checked without torch.
    import torch

    return torch.cuda.is_available()


def model_folder(name: str) -> Path | None:
    """The folder that ``lm.name`` means, or ``None`` if it is a hub id."""
    if name == EMBEDDED:
        return EMBEDDED_FOLDER
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or path.is_dir()
    return path if looks_like_path else None


def _folder_problems(folder: Path) -> Iterator[Problem]:
    if not folder.is_dir():
        yield Problem("lm.name", f"no folder {folder}", "a model folder or a hub id")
        return
    if not (folder / "config.json").is_file():
        yield Problem("lm.name", f"{folder} has no config.json", "a folder in Hugging Face format")
    tokenizer_files = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
    if not any((folder / name).is_file() for name in tokenizer_files):
        yield Problem(
            "lm.name",
            f"{folder} has no tokenizer",
            f"a folder that also holds one of {', '.join(tokenizer_files)}",
            "save it there with tokenizer.save_pretrained(folder)",
        )


def sentence_model_problems(name: str) -> Iterator[Problem]:
    """What is wrong with the name of a sentence model, seen without loading it."""
    path = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not path.is_dir():
        yield Problem(
            ENCODER_KEY,
            f"no folder {path}",
            "words, the folder of a sentence model, or its hub id",
        )
