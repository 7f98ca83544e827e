"""A plain implementation of the same step, as most code does it, for comparison.

Gradients flow through sampling with a cache, the reward of every prefix is a separate forward pass (even
where no string may end, whose rewards are discarded afterwards), and a micro-batch contains one condition.
The loss is the package's own, and the numbers equal those of its packed implementation. A careful plain
implementation omits the forward passes whose rewards are unused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.ours import synchronise
from bench.work import TERMINATOR, Shape, make_conditions, make_task
from gfn_runner.data.trajectories import PolicyScores, Trajectories
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.objectives.losses import JointBalance
from gfn_runner.objectives.phi import phi


class PlainStep:
    """One optimizer step, one condition at a time.

    Args:
        careful: only score prefixes at which a string may end.
    """

    def __init__(self, lm: LanguageModel, shape: Shape, careful: bool = False):
        self.careful = careful
        self.lm, self.shape, self.model = lm, shape, lm.model
        self.task = make_task(shape)
        self.conditions = make_conditions(shape, lm.vocab_size)
        self.objective = JointBalance()
        self.optimizer = torch.optim.AdamW(lm.trainable().values(), lr=0.0)

    def __call__(self) -> None:
        for condition in self.conditions:
            prompt = self.lm.encode_prompt(condition.prompt)
            trajectories, scores = self._sample(prompt)
            term = condition.terms[0]
            log_reward_BS = self._log_reward(
                self.lm.encode_prompt(term.context),
                self.lm.encode(term.suffix) or (TERMINATOR,),
                trajectories,
                scores.terminable_BS,
            )
            loss = self.objective(
                phi(scores, log_reward_BS, 1.0),
                scores.terminable_BS,
                trajectories.length_B,
                trajectories.condition_B,
            )
            (loss / len(self.conditions)).backward()
        torch.nn.utils.clip_grad_norm_(self.lm.trainable().values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronise(self.lm.device)

    def _sample(self, prompt: tuple[int, ...]) -> tuple[Trajectories, PolicyScores]:
        """Sample strings of one condition; return them with the policy's scores, with gradients."""
        shape, device = self.shape, self.lm.device
        n = shape.samples
        ids_BT = torch.tensor([prompt] * n, device=device)
        output = self.model(input_ids=ids_BT, use_cache=True)
        tokens, log_pf, log_stop, alive = [], [], [], [torch.ones(n, device=device).bool()]
        for place in range(shape.longest + 1):
            log_q_BV = output.logits[:, -1].float().log_softmax(dim=-1)
            log_stop.append(log_q_BV[:, TERMINATOR])
            if place == shape.longest:
                break
            closed_BV = torch.zeros_like(log_q_BV, dtype=torch.bool)
            closed_BV[:, TERMINATOR] = place < shape.shortest
            probability_BV = log_q_BV.detach().masked_fill(closed_BV, -torch.inf).softmax(dim=-1)
            token_B = torch.multinomial(probability_BV, 1)[:, 0]
            tokens.append(token_B)
            log_pf.append(log_q_BV.gather(1, token_B[:, None])[:, 0])
            alive.append(alive[-1] & (token_B != TERMINATOR))
            output = self.model(
                input_ids=token_B[:, None], past_key_values=output.past_key_values, use_cache=True
            )
        alive_BS = torch.stack(alive, dim=1)
        trajectories = Trajectories(
            torch.stack(tokens, dim=1),
            alive_BS[:, 1:].sum(dim=1),
            alive_BS[:, 1:],
            torch.zeros(n, dtype=torch.long, device=device),
        )
        state_S = torch.arange(shape.longest + 1, device=device)
        scores = PolicyScores(
            torch.stack(log_pf, dim=1) * alive_BS[:, 1:],
            torch.stack(log_stop, dim=1),
            alive_BS & (state_S >= shape.shortest),
        )
        return trajectories, scores

    @torch.no_grad()
    def _log_reward(
        self,
        context: tuple[int, ...],
        suffix: tuple[int, ...],
        trajectories: Trajectories,
        terminable_BS: Tensor,
    ) -> Tensor:
        """Return log p(prefix suffix | context), with one forward pass per prefix length."""
        rows, device = len(trajectories), self.lm.device
        context_BP = torch.tensor([context] * rows, device=device)
        suffix_BM = torch.tensor([suffix] * rows, device=device)
        columns = []
        with self.lm.base():
            for state in range(terminable_BS.shape[1]):
                if self.careful and not terminable_BS[:, state].any():
                    columns.append(torch.full((rows,), -torch.inf, device=device))
                    continue
                ids = torch.cat([context_BP, trajectories.token_BT[:, :state], suffix_BM], dim=1)
                logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
                log_p = logits[:, len(context) - 1 :].float().log_softmax(dim=-1)
                chosen = log_p.gather(2, ids[:, len(context) :, None])[..., 0]
                columns.append(chosen.sum(dim=1))
        return torch.stack(columns, dim=1).masked_fill(~terminable_BS, -torch.inf)
