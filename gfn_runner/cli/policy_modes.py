"""``mode=sample``, ``predict`` and ``evaluate``: use the policy of a finished run without training."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gfn_runner.config.run_config import RunConfig
from gfn_runner.inference import Policy, adapter_folder


def use(config: RunConfig) -> None:
    """Execute ``config.mode`` with the policy of ``config.run``, and print the result.

    Raises:
        UserError: if the run has no policy yet, or its task does not support the mode.
    """
    folder = Path(os.path.expanduser(str(config.run)))
    adapter_folder(folder)
    from gfn_runner.train import quiet

    quiet()
    # Hydra, which configures the log of a run, is not involved here.
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("gfn_runner").setLevel(logging.INFO)
    if config.mode == "evaluate":
        _evaluate(config, folder)
        return
    policy = Policy.of(config, folder)
    console = Console()
    if config.mode == "sample":
        console.print(_samples(policy, str(config.prompt), config.n), soft_wrap=True)
    else:
        shares = policy.predict(str(config.prompt), config.answers, config.n)
        console.print(_answers(shares, config.n), soft_wrap=True)


def _samples(policy: Policy, prompt: str, n: int) -> Table:
    table = Table("log R", "log q", "sample", box=SIMPLE_HEAD, pad_edge=False)
    table.caption = "log R untempered and log q at temperature 1, in nats"
    for sample in sorted(policy.sample(prompt, n), key=lambda s: -s.log_q):
        reward = "" if sample.log_reward is None else f"{sample.log_reward:.2f}"
        table.add_row(reward, f"{sample.log_q:.2f}", escape(repr(sample.text)))
    return table


def _answers(shares: Mapping[str, float], n: int) -> Table:
    table = Table("answer", "probability", box=SIMPLE_HEAD, pad_edge=False)
    table.caption = f"posterior predictive: mean over {n} samples, normalised over these answers"
    for answer, share in sorted(shares.items(), key=lambda pair: -pair[1]):
        table.add_row(escape(answer), f"{share:.4f}")
    return table


def _evaluate(config: RunConfig, run: Path) -> None:
    """Repeat the final evaluation, possibly on other data, and write it to a new folder inside the run's."""
    from gfn_runner.algorithms.sft import SFT
    from gfn_runner.baselines.direct import answer_directly
    from gfn_runner.callbacks.wandb_media import add_results, add_samples
    from gfn_runner.config.compose import new_folder
    from gfn_runner.config.tokenizer_checks import check_texts
    from gfn_runner.data.samples import limited
    from gfn_runner.evaluation.measure import evaluate, measure
    from gfn_runner.evaluation.optional import OptionalMetrics
    from gfn_runner.loggers.json_lines import jsonable
    from gfn_runner.loggers.wandb import RunLogger
    from gfn_runner.report.samples import write_samples
    from gfn_runner.report.table import print_results
    from gfn_runner.runtime.json_lines import object_or_empty
    from gfn_runner.runtime.seeds import torch_generator_for
    from gfn_runner.runtime.status import muted_progress_lines

    check_texts(config)
    policy, options = Policy.of(config, run), config.evaluation
    conditions = limited(config.data.evaluation, options.final)
    generator = torch_generator_for(policy.lm.device, "evaluate-again", config.seed)
    recorded = object_or_empty(run / "metrics.json").get("run/reward_temperature")
    temperature = config.reward_temperature(config.total_steps) if recorded is None else recorded
    with muted_progress_lines(getattr(config.callbacks.get("progress"), "show", "auto") == "none"):
        drawing = policy.drawing(conditions, temperature)
        optional = OptionalMetrics(options.bertscore, options.judge)
        algorithm = config.algorithm
        if isinstance(algorithm, SFT) and algorithm.learns_answers(config.task, conditions):
            samples = answer_directly(drawing, shots=0)
            measured = measure(
                config.task,
                samples,
                temperature=temperature,
                encoder=options.encoder,
                optional=optional,
            )
        else:
            samples, measured = evaluate(drawing, generator, optional=optional)
    metrics = {f"final/{name}": value for name, value in measured.items()}
    folder = new_folder(run / "evaluations" / f"{datetime.now():%Y-%m-%d/%H-%M-%S}")
    write_samples(folder / "samples.jsonl", samples)
    flat = {name: jsonable(value) for name, value in sorted(metrics.items())}
    (folder / "metrics.json").write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")
    console = Console()
    print_results(console, config.task, metrics)
    console.print(f"results are in {folder}", soft_wrap=True, markup=False)
    runtime = {"config": config.values, "job_type": "evaluate", "run_tags": config.tags}
    for logger in config.make_loggers(save_dir=str(folder), **runtime):
        if isinstance(logger, RunLogger) and logger.run is not None:
            rows = getattr(config.callbacks.get("wandb_media"), "max_table_rows", 0)
            add_samples(logger.run, rows, "final", samples, config.total_steps, temperature)
            add_results(logger.run, folder, metrics, config.total_steps)
            logger.run.finish()
