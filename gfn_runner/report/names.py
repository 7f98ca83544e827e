"""Titles and units of metrics and training scalars, shared by all charts and tables.

An unlisted name becomes its own title: ``vote_accuracy`` is "vote accuracy (%)".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """Display name of a metric.

    Attributes:
        title: short enough for a column header.
        unit: empty for numbers without a unit.
    """

    title: str
    unit: str = ""

    @property
    def with_unit(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


# Evaluation metrics, without the row prefix and the evaluation set.
_METRICS: Mapping[str, Name] = {
    "log_likelihood": Name("log-likelihood under the base model", "nats"),
    "log_likelihood_max": Name("best log-likelihood of a condition under the base model", "nats"),
    "log_pf": Name("log q", "nats"),
    "log_pf_max": Name("best log q of a condition", "nats"),
    "log_reward": Name("mean log R", "nats"),
    "log_reward_max": Name("best log R of a condition", "nats"),
    "phi_spread": Name("φ spread", "nats"),
    "elbo": Name("ELBO: mean φ", "nats"),
    "eubo": Name("EUBO: mean φ of samples of the posterior", "nats"),
    "jeffreys": Name("EUBO − ELBO: Jeffreys divergence", "nats"),
    "posterior_ess": Name("effective sample size of the posterior's draws", "share"),
    "log_z_bound": Name("bound on log Z", "nats"),
    "ess": Name("effective sample size", "share of samples"),
    "exact_tv": Name("total variation, exact", "0 to 1"),
    "exact_kl": Name("KL(posterior ‖ policy), exact", "nats"),
    "tv": Name("total variation of valid samples", "0 to 1"),
    "kl": Name("KL(valid samples ‖ target)", "nats"),
    "kl_floor": Name("KL of as many samples of the target", "nats"),
    "kl_over_floor": Name("KL over that of the target's samples", "ratio"),
    "diversity": Name("diversity: 1 − mean pairwise cosine"),
    "distinct_2": Name("different bigrams", "share of all"),
    "self_bleu": Name("self-BLEU: low is diverse", "0 to 1"),
    "unique": Name("different samples of a condition", "share"),
    "bleu": Name("BLEU-4", "0 to 1"),
    "gleu": Name("GLEU-4", "0 to 1"),
    "reference_similarity": Name("cosine with the reference"),
    "ending_log_prob": Name("log p(ending | beginning Z)", "nats"),
    "bertscore_f1": Name("BERTScore F1"),
    "judge_rating": Name("judge rating", "1 to 5"),
    "pointwise_mutual_information": Name("pointwise mutual information", "nats"),
    "label_log_prob": Name("log p(right label | X Z)", "nats"),
    "label_probability": Name("probability of the labels asked for", "0 to 1"),
    "predictive_accuracy": Name("accuracy of the Bayesian model average", "%"),
    "parsed": Name("samples with an answer", "share"),
    "right_rationale": Name("samples of which every step is right", "share"),
}
# Scalars logged during training.
_TRAINING: Mapping[str, Name] = {
    "train/log_reward": Name("mean log R in training", "nats"),
    "train/phi_spread_terminal": Name("φ spread in training, whole strings", "nats"),
    "train/phi_spread": Name("φ spread in training, all states", "nats"),
    "train/elbo": Name("mean terminal φ, on-policy batches", "nats"),
    "train/log_z_bound": Name("bound on log Z, on-policy batches", "nats"),
    "train/log_z_gap": Name("gap of log Z: bound less mean φ, on-policy", "nats"),
    "train/loss": Name("loss"),
    "train/skipped": Name("skipped steps: non-finite loss or gradient"),
    "train/grad_norm": Name("gradient norm"),
    "train/lr": Name("learning rate"),
    "train/reward_temperature": Name("reward temperature T"),
    "train/exploration_temperature": Name("exploration temperature", "1: on-policy"),
    "train/entropy": Name("entropy: −log q, on-policy", "nats"),
    "train/length": Name("string length", "tokens"),
    "train/buffer_size": Name("replay buffer", "strings"),
    "train/buffer_age": Name("age of the replay buffer", "optimizer steps"),
    "train/from_replay": Name("batches from replay", "share"),
    "train/seconds": Name("seconds per optimizer step"),
    "train/tokens_per_second": Name("tokens per second"),
    "train/kl_base": Name(
        "log q − log p of the rollout's strings, p the base model", "nats per string"
    ),
    "train/clipped": Name("choices with a ratio beyond 1 ± clip", "share"),
    "train/value_loss": Name("value loss: ½ (V − return)²", "squared units of the scaled reward"),
}


def name_of(name: str) -> Name:
    """Return the display name of a training scalar, or of a metric with or without an evaluation set."""
    if name.startswith("train/"):
        return _TRAINING.get(name) or Name(readable(name.removeprefix("train/")))
    metric = name.partition("/")[0]
    if metric in _METRICS:
        return _METRICS[metric]
    return Name(readable(metric), "%" if is_share(metric) else "")


def column_title(column: str) -> str:
    """Return a metric's column title, with its evaluation set if any: ``kl/all`` is "KL(…), all (nats)"."""
    known, group = name_of(column), column.partition("/")[2]
    title = f"{known.title}, {readable(group)}" if group else known.title
    return Name(title, known.unit).with_unit


def readable(name: str) -> str:
    return name.replace("_", " ").replace("/", ", ")


def by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``best_of_4`` before ``best_of_16``."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]


def is_share(name: str) -> bool:
    """Return whether a metric is a share in 0..1, displayed in %; others keep their unit."""
    return name.partition("/")[0].endswith(("accuracy", "_share"))
