"""Log-probability of every prefix: choice of the method, and checks that it is right for a model.

Packed scoring (:mod:`gfn_runner.lm.prefixes`) is fastest. It passes a 4-D attention mask, which
transformers uses as it is: no layer applies its own window to it, and some models add a bias of their own
that ignores branches. So it is used only within the window and where it agrees with plain forwards.
Otherwise every prefix is scored in a row of its own, like a whole string after a cached context.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm.architecture import CAUSAL
from gfn_runner.lm.limits import attention_window, context_length, counts_places
from gfn_runner.lm.pieces import GivenStrings, by_length, scored_in_pieces, wider
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.prefixes import logits_at_once, packed_prefixes, plain_prefixes
from gfn_runner.lm.scoring import whole_rows
from gfn_runner.lm.vocabulary import StringRule

logger = logging.getLogger(__name__)
_SEPARATE = "rewards use one row per prefix"

# Packed scoring may differ from plain scoring by this multiple of the rounding error, and always by this
# many nats. In bfloat16, correct models were seen at 0.2 to 0.7 times, wrong ones at 3.6 and more.
_ROUNDING, _NATS = 1.5, 1e-3
# Scores with a cache are rejected only if they are wrong beyond doubt.
_WRONG, _WRONG_NATS = 5.0, 0.05
_SHORT = 12  # tokens of the longest sequence in the check after loading


@torch.no_grad()
def score_prefixes(lm: LanguageModel, given: GivenStrings) -> Tensor:
    """Return log p(z_1..z_i suffix | context) for every prefix. Shape (B, S), nats.

    A tool's tokens are conditioned on, not scored. The tokens of z are normalized over what the rule
    allows, and so is the suffix's first token if it is the terminator; other suffix tokens over the
    whole vocabulary. States at which a string cannot end get −inf.
    """
    if not packs(lm, given):
        return separate_prefixes(lm, given)
    longest = max(map(len, given.suffixes))

    def tokens(length: int) -> int:
        return length + (max(0, length - given.rule.min_len) + 1) * longest

    states, again = given.trajectories.token_BT.shape[1] + 1, sum(map(len, given.contexts))

    def score(rows: Trajectories) -> tuple[Tensor]:
        return (wider(packed_prefixes(lm, given.of(rows)), states, float("-inf")),)

    pieces = by_length(given.trajectories, tokens, lm.max_tokens_per_forward, again)
    return scored_in_pieces(pieces, score)[0]


@torch.no_grad()
def separate_prefixes(lm: LanguageModel, given: GivenStrings) -> Tensor:
    """Score like :func:`score_prefixes`, each prefix and suffix in a row of its own; contexts run once.

    Sampling and policy use the same kind of masks, so windows, chunks and biases are the model's own.
    """
    terminable_BS = given.terminable_BS
    result_BS = torch.full(terminable_BS.shape, float("-inf"), device=lm.device)
    row_N, state_N = terminable_BS.nonzero(as_tuple=True)
    if not len(row_N):
        return result_BS
    given = given.used()
    prefixes = _prefixes(given.trajectories, row_N, state_N)
    prompts = lm.prefill(given.contexts)
    around, longest = max(map(len, given.contexts)), max(map(len, given.suffixes))
    logits = logits_at_once(lm.device) // lm.vocab_size

    def tokens(length: int) -> int:
        # Either the keys or the logits dominate memory.
        read = length + longest
        return max(around + read, read * lm.max_tokens_per_forward // max(1, logits))

    string_N, suffix_N = scored_in_pieces(
        by_length(prefixes, tokens, lm.max_tokens_per_forward),
        lambda rows: whole_rows(lm, prompts, given.of(rows)),
    )
    result_BS[row_N, state_N] = string_N + suffix_N
    return result_BS


def _prefixes(trajectories: Trajectories, row_N: Tensor, state_N: Tensor) -> Trajectories:
    """Return the first ``state_N`` tokens of the rows ``row_N``."""
    rows = trajectories.rows(row_N)
    steps_T = torch.arange(rows.token_BT.shape[1], device=row_N.device)
    kept_NT = steps_T < state_N[:, None]
    return Trajectories(
        rows.token_BT * kept_NT, state_N, rows.is_action_BT & kept_NT, rows.condition_B
    )


def packs(lm: LanguageModel, given: GivenStrings) -> bool:
    """Return whether these strings are scored packed.

    With ``packed_rewards="auto"``, packed scoring is first compared with plain forwards, once per model
    for every power of two that the sequence length reaches.
    """
    if lm.packed_rewards == "never":
        return False
    around = max(map(len, given.contexts)) + max(map(len, given.suffixes)) - 1
    length = around + given.trajectories.token_BT.shape[1]
    window = attention_window(lm.model.config)
    fits = window is None or (length <= window and not counts_places(lm.model.config))
    if not fits and not lm.window_logged:
        what = "packed scoring is off for sequences of %d tokens (the model has an attention window of %d): %s"
        logger.info(what, length, window, _SEPARATE)
        lm.window_logged = True
    if lm.packed_rewards == "auto" and length > lm.compared[fits]:
        # The next power of two, as far as context and window allow.
        limits = [context_length(lm.model.config), window if fits else None]
        compared = min(filter(None, [*limits, 1 << max(5, (length - 1).bit_length())]))
        # The longest context and suffix may belong to two conditions, and together exceed the limits.
        lm.compared[fits] = max(compared, length)
        _compare(lm, compared, packed=fits)
    return fits and lm.packed_rewards != "never"


def check_cache(lm: LanguageModel, name: str) -> None:
    """Compare cached, left-padded forwards with plain ones on a few short strings.

    Some classes of transformers ignore padding, position ids or the cache, or let a token attend to later
    ones; no config states this.

    Args:
        lm: the model, checked in its :meth:`~LanguageModel.reference` state.
        name: name of the model, for messages.

    Raises:
        UserError: at ``lm.name``, if they differ beyond doubt or cannot be run.
    """
    length = min(_SHORT, lm.context_length or _SHORT)
    try:
        _compare(lm, length, packed=False)
        return
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        what = f"it cannot be run with left padding and a cache: {type(error).__name__}: {error}"
    except UserError as error:
        what = f"it is not causal, or takes no position ids: {error.problems[0].what}"
    kind = lm.model.config.model_type
    raise UserError.one("lm.name", f"{name!r} ({kind}) is not supported: {what}", CAUSAL)


def _compare(lm: LanguageModel, length: int, packed: bool) -> None:
    """Disable packed scoring for this model unless it agrees with plain forwards up to a length.

    The difference may not exceed the effect of rounding, which is measured as the change of plain scores
    when the embeddings are perturbed by up to one unit in the last place.

    Args:
        length: number of tokens of the longest sequence.
        packed: whether packed scoring is compared; prefixes in rows of their own always are.

    Raises:
        UserError: if those are wrong too, which means that samples and the policy are as well.
    """
    with torch.no_grad(), lm.reference():
        probes = _probes(lm, length)
        plain = [plain_prefixes(lm, probe) for probe in probes]

        @functools.cache
        def rounding() -> float:
            """Return how much plain scores change with other rounding, in nats."""
            with _other_rounding(lm):
                return _largest_gap([plain_prefixes(lm, probe) for probe in probes], plain)

        separate = _largest_gap([separate_prefixes(lm, probe) for probe in probes], plain)
        # Negated, so that NaN counts as wrong.
        if not (separate <= _WRONG_NATS or separate <= _WRONG * rounding()):
            raise UserError.one(
                "lm.name",
                f"log-probabilities with left padding and a cache differ by {separate:.2g} nats from "
                f"those of a plain forward at {length} tokens, where rounding changes {rounding():.2g}",
                "an architecture of docs/models.md",
            )
        try:
            ways = [packed_prefixes(lm, probe) for probe in probes if packed]
            gap = _largest_gap(ways, plain) if packed else 0.0
            works = gap <= _NATS or gap <= _ROUNDING * rounding()
            reason = "" if works else f"it differs by {gap:.2g} nats, rounding by {rounding():.2g}"
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            works, reason = False, str(error).splitlines()[0]
    if not works:
        lm.packed_rewards = "never"
        logger.warning("packed scoring is off for this model (%s): %s", reason, _SEPARATE)


def _largest_gap(found: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """Return the largest absolute difference in nats; NaN if any is NaN."""
    pairs = zip(found, plain, strict=True)
    gaps_N = torch.cat([(own - right)[right.isfinite()] for own, right in pairs])
    return gaps_N.abs().max().item()


@contextlib.contextmanager
def _other_rounding(lm: LanguageModel) -> Iterator[None]:
    """Perturb the embeddings' output by up to one unit in the last place inside the context."""
    generator = torch.Generator().manual_seed(1)

    def off(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        units = 2 * torch.rand(output.shape, generator=generator) - 1
        factor = 1 + torch.finfo(output.dtype).eps * units.to(output.device)
        return (output.float() * factor).to(output.dtype)

    hook = lm.model.get_input_embeddings().register_forward_hook(off)
    try:
        yield
    finally:
        hook.remove()


def _probes(lm: LanguageModel, length: int) -> list[GivenStrings]:
    """Return random strings with contexts and suffixes: short ones, and one sequence of ``length``."""
    generator = torch.Generator().manual_seed(0)
    closed = lm.special_ids
    open_V = [token for token in range(lm.vocab_size) if token not in closed] or [0]

    def ids(n: int) -> list[int]:
        return [open_V[i] for i in torch.randint(len(open_V), (n,), generator=generator).tolist()]

    def probe(
        n_contexts: Sequence[int], n_tokens: Sequence[int], n_suffixes: Sequence[int]
    ) -> GivenStrings:
        rule = StringRule(open_V[0], 0, max(n_tokens))
        # A string ends at its terminator, so it cannot contain one.
        strings = [
            [token if token != open_V[0] else open_V[-1] for token in ids(n)] for n in n_tokens
        ]
        actions = [[True] * n for n in n_tokens]
        rows = Trajectories.from_rows(strings, actions, list(range(len(strings))), lm.device)
        contexts, suffixes = ([ids(n) for n in many] for many in (n_contexts, n_suffixes))
        return GivenStrings(contexts, suffixes, rows, rule)

    most = max(1, length // 3)
    sizes = [min(most, n) for n in (9, 4, 6, 2, 8, 3)], [min(most, n) for n in (6, 3, 5, 6, 1, 4)]
    n_string, n_suffix = min(most, 6), min(most, 3)
    long = max(1, length - n_string - n_suffix)
    short = probe(*sizes, [min(most, n) for n in (3, 2, 3, 1, 3, 2)])
    return [short, probe([long], [n_string], [n_suffix])]
