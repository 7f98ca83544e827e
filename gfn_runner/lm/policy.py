"""A language model with an adapter: tokenization, cached forwards, adapters, saving.

Policy and reference are one model: with the adapter enabled it is the policy, with the adapter disabled
the base model. A second adapter, if there is one, changes the reference: it is then the model whose
posterior the reward defines (the answer model of EM).
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gfn_runner.data.conditions import Chat
from gfn_runner.errors import UserError
from gfn_runner.lm.adapters import explained_adapter, new_adapter
from gfn_runner.lm.architecture import cache_argument
from gfn_runner.lm.cache import PromptCache
from gfn_runner.lm.chat import ChatTemplate, terminator_text
from gfn_runner.lm.encoding import continuation_ids, continuation_text, special_ids
from gfn_runner.lm.limits import context_length, same_up_to
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.output_layer import keep_fp32_logits
from gfn_runner.lm.pieces import padded

# Adapter names in PEFT, the first being PEFT's default; _BASE stands for no adapter.
_POLICY, _ANSWERS, _BASE = "default", "answers", "base"
# Temporary adapter: the policy of another run.
_OTHER = "other"


class LanguageModel(nn.Module):
    """A causal language model and its tokenizer, with or without an adapter.

    Dropout is 0 everywhere: sampling, policy and reward must use the same distribution.

    Attributes:
        m_steps: number of M-steps that trained the answer adapter; 0 without one. Log-rewards computed
            at another number belong to another posterior.
        lockstep: lockstep of ranks with sharded weights (``lm.sharding``); else ``None``.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        packed_rewards: str = "always",
        max_tokens_per_forward: int = 32768,
        recompute_above: int | None = None,
        chat: ChatTemplate | None = None,
    ):
        super().__init__()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        _fuse_gelu(model)
        keep_fp32_logits(model)
        # Models of transformers have more than nn.Module's interface.
        self.model: Any = model
        self.tokenizer = tokenizer
        self.packed_rewards = packed_rewards
        # Lengths up to which lm.packing has compared packed (True) and other scores with plain forwards.
        self.compared = {True: 0, False: 0}
        self.window_logged = False
        self.max_tokens_per_forward = max_tokens_per_forward
        self.recompute_above = recompute_above
        self.chat = chat or ChatTemplate()
        inner: Any = getattr(model, "get_base_model", lambda: model)()
        parameters = inspect.signature(inner.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._cache = cache_argument(inner.forward) or "past_key_values"
        self._takes_positions = "position_ids" in parameters
        self._same_up_to = min(same_up_to(model.config).items(), default=(None, ""))
        self._encoded: dict[str, tuple[int, ...]] = {}
        self._prompts: dict[tuple[bool, str], tuple[int, ...]] = {}
        self.m_steps = 0
        self._bare = False
        self._switched_to = _POLICY  # or another adapter, or _BASE
        self._kept: dict[Any, PromptCache] | None = None
        self.lockstep: Any = None

    # -- text ---------------------------------------------------------------------------------

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text in the middle of a string; see :func:`continuation_ids`."""
        if text not in self._encoded:
            self._encoded[text] = continuation_ids(self.tokenizer, text)
        return self._encoded[text]

    def encode_prompt(self, prompt: str) -> tuple[int, ...]:
        """Return the token ids of a prompt or context (a text or a ``Chat``) at the start of a string.

        Raises:
            UserError: as in :meth:`ChatTemplate.prompt_ids`.
        """
        key = (isinstance(prompt, Chat), prompt)
        if key not in self._prompts:
            self._prompts[key] = self.chat.prompt_ids(self.tokenizer, prompt)
        return self._prompts[key]

    def terminator_text(self, terminator: str, role: str | None) -> str:
        """Return the text of the terminator ⊤; see :func:`gfn_runner.lm.chat.terminator_text`."""
        return terminator_text(self.tokenizer, self.chat, terminator, role, self.special_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids in the middle of a string; see :func:`continuation_text`."""
        return continuation_text(self.tokenizer, ids)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which do not represent text; see :func:`special_ids`."""
        configs = (self.model.config, getattr(self.model, "generation_config", None))
        return special_ids(self.tokenizer, *configs)

    @property
    def context_length(self) -> int | None:
        """Maximum sequence length in tokens, or ``None`` if the model states none."""
        return context_length(self.model.config)

    @property
    def vocab_size(self) -> int:
        """Number of logits; a model may have input embeddings for further tokens."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # -- model --------------------------------------------------------------------------------

    def reference(self) -> contextlib.AbstractContextManager[None]:
        """Switch to the reward's model inside the context: the base model, plus an answer adapter if any."""
        if self._bare or not self.has_answer_adapter:
            return self._adapters_off()
        return self._adapter(_ANSWERS)

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Switch to the base model without adapters inside the context, also for :meth:`reference`."""
        before, self._bare = self._bare, True
        try:
            with self._adapters_off():
                yield
        finally:
            self._bare = before

    @contextlib.contextmanager
    def _adapters_off(self) -> Iterator[None]:
        off = getattr(self.model, "disable_adapter", contextlib.nullcontext)
        with self._noted(_BASE), off():
            yield

    @contextlib.contextmanager
    def _adapter(self, name: str) -> Iterator[None]:
        before = self.model.active_adapter
        self._activate(name)
        try:
            with self._noted(name):
                yield
        finally:
            self._activate(before)

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        before, self._switched_to = self._switched_to, name
        try:
            yield
        finally:
            self._switched_to = before

    def _activate(self, name: str) -> None:
        """Activate an adapter and keep ``requires_grad`` of all, where PEFT would freeze the others."""
        adapters = [p for key, p in self.model.named_parameters() if "lora_" in key]
        wanted = [parameter.requires_grad for parameter in adapters]
        self.model.set_adapter(name)
        for parameter, needs in zip(adapters, wanted, strict=True):
            parameter.requires_grad_(needs)

    @contextlib.contextmanager
    def adapter_of(self, folder: Path) -> Iterator[None]:
        """Use a saved PEFT adapter of any rank as the policy inside the context; remove it on exit."""
        self._load_adapter(folder, _OTHER)
        try:
            with self._adapter(_OTHER):
                yield
        finally:
            self.model.delete_adapter(_OTHER)

    @contextlib.contextmanager
    def final_states(self) -> Iterator[list[Tensor]]:
        """Collect the inputs of the output layer inside the context: one tensor (N, Q, H) per forward."""
        kept: list[Tensor] = []
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            yield kept
        finally:
            hook.remove()

    @property
    def has_answer_adapter(self) -> bool:
        return _ANSWERS in getattr(self.model, "peft_config", {})

    def add_answer_adapter(self, options: LoraSettings, seed: int) -> None:
        """Add a new, frozen adapter to the reference; B is 0, so it still equals the base model."""
        wanted = {name: p.requires_grad for name, p in self.model.named_parameters()}
        with new_adapter(self.model, options, seed) as config:
            self.model.add_adapter(_ANSWERS, config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(wanted.get(name, False))

    def load_answer_adapter(self, folder: Path, m_steps: int) -> None:
        """Load what :meth:`save_answer_adapter` wrote, trained by ``m_steps`` M-steps."""
        self._load_adapter(folder, _ANSWERS)
        self.m_steps = m_steps

    def _load_adapter(self, folder: Path, name: str) -> None:
        """Load a PEFT adapter to this rank's device; PEFT's default is the first GPU on every rank."""
        with explained_adapter(folder):
            self.model.load_adapter(
                str(folder), name, is_trainable=False, torch_device=str(self.device)
            )

    def answer_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the answer adapter, which are frozen except during an M-step."""
        return [p for name, p in self.model.named_parameters() if f".{_ANSWERS}." in name]

    @contextlib.contextmanager
    def prompts_kept(self) -> Iterator[None]:
        """Run repeated prompts of base model and reference only once inside the context.

        The cache of the last prompts is kept. Without gradients only; weights may not change meanwhile.
        """
        before = self._kept
        self._kept = {} if before is None else before
        try:
            yield
        finally:
            self._kept = before

    def prefill(self, prompts: Sequence[Sequence[int]]) -> PromptCache:
        """Run the prompts once, left-padded, one row each. Do not modify the returned cache."""
        # Not for the policy: its weights may be merged (lm/merging.py), and only sampling repeats prompts.
        kept = self._kept if self._switched_to in (_BASE, _ANSWERS) else None
        if kept is None or torch.is_grad_enabled():
            return self._read(prompts)
        key = (self._switched_to, *map(tuple, prompts))
        if key not in kept:
            kept.clear()  # frees memory before the next one takes it
            kept[key] = self._read(prompts)
        return kept[key]

    def _read(self, prompts: Sequence[Sequence[int]]) -> PromptCache:
        token_NP, mask_NP = (a.to(self.device) for a in padded(prompts, left=True))
        position_NP = (mask_NP.long().cumsum(dim=1) - 1).clamp(min=0)
        keep = {"logits_to_keep": 1} if self._keeps_logits else {}
        output = self._forward(token_NP, mask_NP.long(), position_NP, use_cache=True, **keep)
        return PromptCache(getattr(output, self._cache), mask_NP, output.logits[:, -1])

    def extend(
        self, prompt: PromptCache, token_NQ: Tensor, mask: Tensor, position_NQ: Tensor
    ) -> Tensor:
        """Return the logits after further tokens, by which the cache grows.

        Args:
            mask: which keys are visible: (N, keys), or (N, 1, Q, keys) with one row per query.
        """
        if mask.ndim == 4:
            # Additive, since not every attention implementation accepts a boolean 4-D mask.
            dtype = self.model.get_input_embeddings().weight.dtype
            closed = torch.finfo(dtype).min
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, closed)
        else:
            mask = mask.long()
        given = {"use_cache": True, self._cache: prompt.cache}
        return self._forward(token_NQ, mask, position_NQ, **given).logits

    def whole_logits(self, rows: Sequence[Sequence[int]], first: int = 0) -> Tensor:
        """Return logits of right-padded rows from a plain forward without cache. Shape (N, T − first, V).

        The model computes the position ids itself, so this verifies those that are passed elsewhere.

        Args:
            first: position of the first logits to return; those of long contexts take memory.
        """
        token_NT, mask_NT = (a.to(self.device) for a in padded(rows))
        longest = token_NT.shape[1]
        keep = {"logits_to_keep": longest - first} if self._keeps_logits else {}
        output = self._forward(token_NT, mask_NT.long(), None, use_cache=False, **keep)
        return output.logits[:, first - longest :]

    def _forward(
        self, token_NQ: Tensor, mask: Tensor, position_NQ: Tensor | None, **options: Any
    ) -> Any:
        # A prompt given to a trained policy has not been checked before.
        limit, why = self._same_up_to
        last = token_NQ.shape[1] - 1 if position_NQ is None else position_NQ.max()
        if limit and (given := int(last) + 1) > limit:
            raise UserError.one(
                "lm.name",
                f"a sequence of {given} tokens, and above {limit} this model cannot be sampled and "
                f"scored alike: {why} of a batch",
                f"context, sample and suffix together at most {limit} tokens",
                "shorter prompts, a smaller task.max_len / task.eval_max_len, or another model",
            )
        if self._takes_positions and position_NQ is not None:
            options["position_ids"] = position_NQ
        if self.lockstep is not None:
            self.lockstep.announce()
        return self.model(input_ids=token_NQ, attention_mask=mask, **options)

    def in_step(self) -> contextlib.AbstractContextManager[None]:
        """Allow ranks with sharded weights to run different numbers of forwards without gradients.

        Every rank must enter this context equally often.
        """
        return contextlib.nullcontext() if self.lockstep is None else self.lockstep

    @torch.no_grad()
    def empty_forward(self) -> None:
        """Take part in a forward pass of other ranks."""
        one = torch.ones(1, 1, dtype=torch.long, device=self.device)
        options = {"position_ids": one} if self._takes_positions else {}
        self.model(input_ids=one, attention_mask=one, use_cache=False, **options)

    # -- files --------------------------------------------------------------------------------

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters, those of the adapter, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def save_adapter(self, folder: Path) -> None:
        """Save the policy's adapter in PEFT format, to be read by ``PeftModel.from_pretrained``."""
        self._save(folder, _POLICY)

    def _save(self, folder: Path, adapter: str) -> None:
        # The vocabulary never grows, so the embeddings of the base model need no copy, even if the
        # output layer, which shares them, is adapted.
        self.model.save_pretrained(
            str(folder), selected_adapters=[adapter], save_embedding_layers=False
        )

    def save_answer_adapter(self, folder: Path) -> None:
        """Save the answer adapter in PEFT format to a folder that does not exist yet."""
        # PEFT saves an adapter with a non-default name to a subfolder of that name.
        parent = folder.with_name(folder.name + ".parent")
        self._save(parent, _ANSWERS)
        (parent / _ANSWERS).rename(folder)
        shutil.rmtree(parent)


def _fuse_gelu(model: nn.Module) -> None:
    """Replace the written-out tanh GELU of GPT-2 and GPT-J in transformers by torch's own.

    They are equal up to rounding (2e-7); the written-out form keeps five tensors of the MLP's width for
    the backward pass, torch's only its input.
    """
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
