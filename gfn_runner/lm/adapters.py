"""LoRA adapters with PEFT: target modules, new adapters and saved ones."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gfn_runner.lm.architecture import outside_the_language_model
from gfn_runner.lm.load_errors import explained
from gfn_runner.lm.model_config import LoraSettings


def with_saved_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    # By default PEFT loads to "cuda", the first GPU, on every rank.
    device = str(next(model.parameters()).device)
    with explained_adapter(folder):
        return PeftModel.from_pretrained(
            model, str(folder), is_trainable=False, torch_device=device
        )


def explained_adapter(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Return a context manager that reports loading errors as a ``UserError`` naming the adapter."""
    what = f"the adapter in {folder} does not fit this model"
    return explained("lm.name", what, "the model that the adapter was trained on")


def with_adapter(model: Any, options: LoraSettings, seed: int) -> Any:
    from peft import get_peft_model

    with new_adapter(model, options, seed) as config:
        return get_peft_model(model, config)


@contextlib.contextmanager
def new_adapter(model: Any, options: LoraSettings, seed: int) -> Iterator[Any]:
    """Yield the PEFT config of a new LoRA adapter, which must be added inside the context.

    Args:
        model: transformers model, or PEFT model if it already has an adapter.
        seed: seed for initializing A; the state of torch's global generator is restored on exit.
    """
    from peft import LoraConfig

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    targets: list[str] | str = "all-linear"
    if options.targets:
        head = base.get_output_embeddings() if options.output_layer else None
        output = {name for name, module in base.named_modules() if module is head}
        targets = sorted({*options.targets, *output})
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=_never_adapted(base),
        task_type="CAUSAL_LM",
    )
    if options.output_layer and not options.targets:
        # PEFT's "all-linear" targets every linear layer and the experts of MoE models, but not this one.
        base.get_output_embeddings = lambda: None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield config
    finally:
        base.__dict__.pop("get_output_embeddings", None)


def _never_adapted(model: Any) -> str | None:
    """Return a regex for the names of modules that must not be adapted; ``None`` if there are none."""
    # Other towers of a multimodal model have linear layers with the same names.
    patterns = [outside_the_language_model(model)]
    # A router that is a linear layer returns a tuple, to which PEFT cannot add.
    routers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__
    }
    if routers:
        patterns.append(rf".*\.(?:{'|'.join(map(re.escape, sorted(routers)))})")
    return "|".join(pattern for pattern in patterns if pattern) or None
