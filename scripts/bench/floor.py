"""The floor of a step: the model's own forward and backward passes over the same tokens, nothing else.

It consists of four parts that no implementation of the step can omit: sampling token by token with a cache
of the prompts, one forward pass over what the reward scores, one forward and backward pass over what the
policy is trained on, and the optimizer's update. No masks, softmax, sampling or loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.ours import synchronise
from bench.work import Shape
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.policy import LanguageModel


class Floor:
    """The bare passes of a step of a given shape."""

    def __init__(self, lm: LanguageModel, shape: Shape):
        self.lm, self.shape, self.model = lm, shape, lm.model
        self.optimizer = torch.optim.AdamW(lm.trainable().values(), lr=0.0)

    def __call__(self, trajectories: Trajectories) -> None:
        """Run the passes over the tokens of our step's trajectories."""
        self._sample(trajectories)
        self._reward(trajectories)
        self._policy(trajectories)
        synchronise(self.lm.device)

    def _ids(self, *shape: int) -> Tensor:
        return torch.randint(2, self.lm.vocab_size, shape, device=self.lm.device)

    def _cache(self, length: int) -> Any:
        """Return keys and values of one context per condition, repeated for its samples."""
        output = self.model(
            input_ids=self._ids(self.shape.conditions, length), use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(self.shape.samples)
        return cache

    @torch.no_grad()
    def _sample(self, trajectories: Trajectories) -> None:
        cache = self._cache(self.shape.prompt)
        for place in range(trajectories.token_BT.shape[1]):
            token_B1 = trajectories.token_BT[:, place : place + 1]
            self.model(input_ids=token_B1, past_key_values=cache, use_cache=True)

    @torch.no_grad()
    def _reward(self, trajectories: Trajectories) -> None:
        # The string, and after every state at which it may end, the suffix without its last token, which is
        # only predicted.
        rows, tokens = trajectories.token_BT.shape
        ends = max(0, tokens - self.shape.shortest) + 1
        n_read = tokens + ends * (self.shape.suffix - 1)
        with self.lm.base():
            cache = self._cache(self.shape.context)
            self.model(input_ids=self._ids(rows, n_read), past_key_values=cache, use_cache=True)

    def _policy(self, trajectories: Trajectories) -> None:
        output = self.model(
            input_ids=self._ids(self.shape.conditions, self.shape.prompt),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(self.shape.samples)
        logits = self.model(
            input_ids=trajectories.token_BT, past_key_values=cache, use_cache=True
        ).logits
        logits.backward(torch.ones_like(logits))
        self.optimizer.step()
        self.optimizer.zero_grad()
