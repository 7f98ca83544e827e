"""LoRA adapters in PEFT: which layers they adapt, fresh ones and saved ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gfn_runner.errors import UserError
from gfn_runner.lm.settings import LoraSettings


def with_saved_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    with explained_adapter(folder):
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False)


@contextlib.contextmanager
def explained_adapter(folder: Path) -> Iterator[None]:
    """Say of which adapter a failure to read one speaks."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError.one(
            "lm.name",
            f"the adapter in {folder} does not fit this model: {str(error).splitlines()[0]}",
            "the model that the adapter was trained on",
        ) from error


def with_adapter(model: Any, options: LoraSettings, seed: int) -> Any:
    from peft import get_peft_model

    with seeded(seed), explained_targets(model, options, "lm.lora.targets"):
        return get_peft_model(model, lora_config(model, options))


def lora_config(model: Any, options: LoraSettings) -> Any:
    from peft import LoraConfig

    targets: list[str] | str = list(options.targets) if options.targets else "all-linear"
    if options.output_layer:
        # PEFT's "all-linear" leaves the output layer out.
        targets = sorted({*(options.targets or _linear_layers(model)), _output_layer(model)})
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=_routers(model) or None,
        task_type="CAUSAL_LM",
    )


def _routers(model: Any) -> list[str]:
    """Linear layers that give more than a product, to which PEFT cannot add, as Llama 4's routers."""
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and type(module).__name__.endswith("Router")
        }
    )


def _linear_layers(model: Any) -> set[str]:
    """What linear layers are called, without the path to them; those of an adapter do not count."""
    from transformers.pytorch_utils import Conv1D

    names = [
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name
    ]
    return {name.rsplit(".", 1)[-1] for name in names}


def _output_layer(model: Any) -> str:
    """What the layer that gives the logits is called, without the path to it."""
    layer = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is layer)
    return name.removesuffix(".base_layer").rsplit(".", 1)[-1]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own generator at ``seed``; behind it as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def explained_targets(model: Any, options: LoraSettings, key: str) -> Iterator[None]:
    """Say which layers there are where none is called as ``options.targets`` say."""
    try:
        yield
    except ValueError as error:
        names = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, m in model.named_modules()
                if not list(m.children()) and hasattr(m, "weight")
            }
        )
        raise UserError.one(
            key,
            f"no layer is called any of {list(options.targets or ())}",
            ", ".join(names),
        ) from error
