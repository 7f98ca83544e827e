"""Work to measure: models, shapes of the experiments, and batches of synthetic conditions of a shape."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.lm.adapters import with_adapter
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings, LoraSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.tasks.base import GFlowNetModule

TERMINATOR = 1


@dataclass(frozen=True)
class Shape:
    """Sizes of a training batch, all but the first two in tokens.

    Attributes:
        conditions, samples: conditions per batch, and samples per condition.
        shortest, longest: bounds on the length of sampled strings.
        context: what the reward's model reads before a string.
        prompt: what the policy reads.
        suffix: what the reward's model scores after a string; 1 is the terminator alone.
    """

    conditions: int
    samples: int
    shortest: int
    longest: int
    context: int
    prompt: int
    suffix: int

    @property
    def size(self) -> str:
        return f"{self.conditions} × {self.samples}"


# Sizes of the paper's experiments: a context of three demonstrations, an ending of a dozen tokens.
SHAPES = {
    "arithmetic": Shape(8, 16, 18, 27, 130, 14, 7),
    "continuation": Shape(8, 20, 30, 30, 20, 20, 1),
    "infilling": Shape(2, 64, 25, 25, 40, 60, 12),
    "subjectivity": Shape(8, 16, 5, 5, 50, 50, 7),
}

# Hugging Face configs of models with random weights.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "gpt-j": {"model_type": "gptj"},
}


class IdTokenizer:
    """Tokenizer for texts of decimal token ids, which gives a text exactly the desired tokens."""

    eos_token_id = bos_token_id = eos_token = None
    all_special_ids: ClassVar[list[int]] = []

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return " ".join(map(str, ids))

    def convert_ids_to_tokens(self, token: int) -> str:
        return str(token)


class Synthetic(GFlowNetModule):
    """A task with random token ids."""

    name: ClassVar[str] = "synthetic"

    def load(self, seed: int) -> TaskData:
        return TaskData([], [])

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        return {}


def make_task(shape: Shape) -> Synthetic:
    return Synthetic(
        terminator=str(TERMINATOR),
        min_len=shape.shortest,
        max_len=shape.longest,
        eval_max_len=shape.longest,
    )


def make_conditions(shape: Shape, vocab_size: int, seed: int = 0) -> list[Condition]:
    """Draw conditions of random ids in a shape's sizes."""
    rng = random.Random(seed)

    def text(n: int) -> str:
        return " ".join(str(rng.randrange(2, vocab_size)) for _ in range(n))

    conditions = []
    for number in range(shape.conditions):
        # The suffix starts with the terminator, as in arithmetic, infilling and subjectivity.
        suffix = "" if shape.suffix == 1 else f"{TERMINATOR} {text(shape.suffix - 1)}"
        term = Term(text(shape.context), suffix)
        conditions.append(Condition(str(number), text(shape.prompt), (term,)))
    return conditions


def make_lm(name: str, device: str, **config: Any) -> LanguageModel:
    """Load the embedded model, or create another one with random weights; both have a fresh adapter.

    Args:
        name: ``embedded``, or a key of ``CONFIGS``.
        device: ``cpu`` in float32 or ``cuda`` in bfloat16.
        config: changes to the config of the random model.
    """
    if name == "embedded":
        model = load(LMSettings(device=device), seed=0).model  # type: ignore[arg-type]
        return LanguageModel(model, IdTokenizer(model.get_input_embeddings().weight.shape[0]))
    from transformers import AutoConfig, AutoModelForCausalLM

    options = CONFIGS[name] | config
    full = AutoConfig.for_model(
        **options,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=TERMINATOR,
        eos_token_id=TERMINATOR,
    )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(full, dtype=dtype)
    model = with_adapter(model, LoraSettings(rank=64, alpha=16), 0).eval()
    return LanguageModel(model, IdTokenizer(full.vocab_size))
