"""LoRA adapters in PEFT: which layers they adapt, fresh ones and saved ones."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gfn_runner.errors import UserError
from gfn_runner.lm.architecture import outside_the_language_model
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

    with seeded(seed), lora_config(model, options, "lm.lora.targets") as config:
        return get_peft_model(model, config)


def _lora_config(model: Any, options: LoraSettings) -> Any:
    from peft import LoraConfig

    targets: list[str] | str = "all-linear"
    if options.targets:
        head = {_output_layer(model)} if options.output_layer else set()
        targets = sorted({*options.targets, *head})
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=_never_adapted(model),
        task_type="CAUSAL_LM",
    )


def _never_adapted(model: Any) -> str | None:
    """Pattern of the names of linear layers that get no adapter; ``None`` if there are none."""
    # Towers of a multimodal model have linear layers of the same names.
    patterns = [outside_the_language_model(model)]
    # A router that is a linear layer gives a tuple, to which PEFT cannot add.
    routers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__
    }
    if routers:
        patterns.append(rf".*\.(?:{'|'.join(map(re.escape, sorted(routers)))})")
    return "|".join(pattern for pattern in patterns if pattern) or None


def _output_layer(model: Any) -> str:
    """The name of the layer that gives the logits."""
    layer = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is layer)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own generator at ``seed``; behind it as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def lora_config(model: Any, options: LoraSettings, key: str) -> Iterator[Any]:
    """PEFT's settings of an adapter, to be added within it.

    Args:
        model: of transformers, or of PEFT if it has an adapter already.
        options: of the adapter.
        key: of the config that names the layers, for messages.

    Raises:
        UserError: with the layers that there are, if none is called as ``options.targets`` say.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    config = _lora_config(base, options)
    if options.output_layer and not options.targets:
        # PEFT's "all-linear" takes every linear layer, and the experts of a mixture, but this one.
        base.get_output_embeddings = lambda: None
    try:
        yield config
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
    finally:
        base.__dict__.pop("get_output_embeddings", None)
