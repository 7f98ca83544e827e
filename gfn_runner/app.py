"""The run as a recipe: check → build → fit → evaluate → report."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfn_runner.commandline import (
    CONF,
    OVERRIDES_FILE,
    check_config,
    checked,
    chosen_task,
    with_folder,
)
from gfn_runner.config import RunConfig
from gfn_runner.errors import Problem, UserError
from gfn_runner.ranks import (
    from_first,
    gathered,
    is_first,
    refuse_impossible,
    started_rank,
    together,
)

if TYPE_CHECKING:
    from gfn_runner.build import Experiment
    from gfn_runner.tasks.base import ConditionSamples

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 and one screen of text if the command line holds a mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        prepared = checked(arguments)
    except UserError as error:
        show(error.problems)
        raise SystemExit(2) from None
    if prepared is not None:
        arguments = prepared.argv
        if any(job.dry_run for job in prepared.jobs):
            for job in prepared.jobs:
                _show_config(job)
            return
        try:
            if prepared.jobs[0].mode != "train":
                _use(prepared.jobs[0])
                return
            _check_texts(prepared.jobs)
            if started_rank(prepared.jobs[0].trainer.processes):
                for job in prepared.jobs:
                    # Folders are rank 0's, which goes through Hydra.
                    train_and_evaluate(job, None)
                return
        except UserError as error:
            show(error.problems)
            raise SystemExit(2) from None
        arguments = with_folder(prepared)
    _start_hydra(arguments)


def _use(config: RunConfig) -> None:
    """A finished run's policy at work."""
    from gfn_runner.use import use

    use(config)


def _check_texts(jobs: Sequence[RunConfig]) -> None:
    """Every job's texts with its tokenizer, before a folder is made."""
    from gfn_runner.checks import check_texts

    problems: dict[str, Problem] = {}
    # Jobs of a sweep mostly share model and texts; a seed changes which examples, not how long.
    different = {repr((j.lm, j.task, j.callbacks.evaluation.shots(j.task))): j for j in jobs}
    for job in different.values():
        try:
            check_texts(job)
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise UserError(list(problems.values()))


def _start_hydra(arguments: list[str]) -> None:
    import hydra

    sys.argv = [sys.argv[0], *arguments]
    hydra.main(version_base=None, config_path=str(CONF), config_name="config")(_job)()


def _job(composed: Any) -> float | None:
    """One job of Hydra's: a run in a folder of its own."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    hydra_config = HydraConfig.get()
    lines = list(hydra_config.overrides.task)
    with open_dict(composed):
        composed.hydra = OmegaConf.create({"runtime": {"choices": hydra_config.runtime.choices}})
    folder = Path(hydra_config.runtime.output_dir)
    try:
        config = check_config(composed, lines)
        return train_and_evaluate(config, folder, lines)
    except UserError as error:
        _leave_reason(folder, str(error))
        show(error.problems, folder)
        raise SystemExit(2) from None
    except Exception:
        _leave_reason(folder, traceback.format_exc())
        raise


def _leave_reason(folder: Path, reason: str) -> None:
    """Say in the run's log why it failed: whoever looks through a sweep's folders has no terminal."""
    with contextlib.suppress(OSError), (folder / "run.log").open("a", encoding="utf-8") as log:
        log.write(f"ERROR gfn_runner.app: the run has failed: {reason.rstrip()}\n")


def train_and_evaluate(
    config: RunConfig, folder: Path | None, overrides: Sequence[str] = ()
) -> float | None:
    """Train, evaluate, write and print.

    Args:
        config: checked.
        folder: of the run; a resumed run goes on in its own. ``None`` in a process that takes part in
            another's run and is told.
        overrides: command-line lines that led to the config; saved for ``resume``.

    Returns:
        The task's first headline metric, averaged over evaluation sets (for sweepers).
    """
    refuse_impossible(config.trainer.processes)
    started, checkpoint, file = time.time(), None, None
    if not started_rank(config.trainer.processes):
        assert folder is not None  # the first process makes it
        checkpoint, file = _prepared(config, folder, overrides), folder / "config.yaml"
    with together(config.trainer.processes, file):
        folder, checkpoint = from_first((folder, checkpoint))
        assert folder is not None
        return _train_and_evaluate(config, folder, checkpoint, started)


def _prepared(config: RunConfig, folder: Path, overrides: Sequence[str]) -> Path | None:
    """Check what needs model or folder, and write down what the run is. Returns its checkpoint."""
    from gfn_runner.callbacks.checkpoint import newest_checkpoint
    from gfn_runner.checks import check_texts

    if config.resume is None and (folder / OVERRIDES_FILE).exists():
        raise UserError.one(
            "hydra.run.dir",
            f"{folder} holds a run already",
            "a folder without one",
            f"resume={folder} to go on with it",
        )
    checkpoint = _checkpoint_to_resume(config, folder, newest_checkpoint(folder / "checkpoints"))
    check_texts(config)
    _describe(config, folder, overrides)
    for note in config.data.notes:
        logger.info("%s", note)
    return checkpoint


def _train_and_evaluate(
    config: RunConfig, folder: Path, checkpoint: Path | None, started: float
) -> float | None:
    from gfn_runner.build import build
    from gfn_runner.phases import explained
    from gfn_runner.rounds import train

    experiment = build(config, folder)
    trains = config.baseline is None or config.baseline.lightning_module is not None
    metrics: dict[str, float] = {}
    failed = True
    try:
        if trains:
            metrics = train(config, experiment, folder, checkpoint)
            if is_first():
                experiment.module.lm.save_adapter(folder / "adapter")
        with explained("evaluation"):
            metrics |= _evaluate(config, experiment, folder, trains)
        steps = experiment.trainer.global_step
        metrics |= experiment.log.latest | _run_facts(config, started, steps)
        headline = _report(config, folder, metrics) if is_first() else None
        experiment.media.at_the_end(folder, metrics, steps)
        failed = False
        return headline
    finally:
        if experiment.media.wandb is not None:
            experiment.media.wandb.finish(failed=failed)


def _checkpoint_to_resume(config: RunConfig, folder: Path, newest: Path | None) -> Path | None:
    if config.resume is None:
        return None
    if newest is None:
        raise UserError.one("resume", f"{folder} has no checkpoint yet", "a run that has saved one")
    _refuse_other_run(config, folder)
    from gfn_runner.em import read_record

    step = int(newest.stem.removeprefix("step-"))
    trained = step >= config.total_steps and read_record(folder).m_steps == config.em.rounds
    if trained and _evaluated_at(folder) == step:
        raise UserError.one(
            "resume",
            f"{folder} is finished: it has done {step} of {config.trainer.max_steps} steps",
            f"trainer.max_steps above {step}",
            f"resume={config.resume} trainer.max_steps={2 * step}",
        )
    return newest


def _evaluated_at(folder: Path) -> int:
    """Optimizer steps of the policy that ``metrics.json`` speaks of; −1 without one."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return int(metrics["run/steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


# What a checkpoint depends on; the rest (schedules, steps, evaluation, loggers) may change.
_FIXED = (
    "task",
    "objective._target_",
    "baseline",
    "lm.name",
    "lm.lora",
    "seed",
    "sampling.conditions",
)


def _refuse_other_run(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with a run under settings that its checkpoint does not belong to."""
    import yaml

    from gfn_runner.rounds import resume_problems

    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    now = config.as_dict()
    problems = []
    for key in _FIXED:
        before, given = _at(saved, key), _at(now, key)
        if before != given:
            problems.append(
                Problem(key, f"given {given!r}", f"{before!r}, as in the run to be resumed")
            )
    problems += resume_problems(saved, config, folder)
    if problems:
        raise UserError(problems)


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _describe(config: RunConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Leave the resolved config, the overrides and the environment in the folder."""
    import yaml

    from gfn_runner.environment import environment

    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    passing = ("resume=", "mode=", "run=", "prompt=", "n=", "answers=", "hydra.")
    kept = [line for line in overrides if not line.lstrip("+").startswith(passing)]
    (folder / OVERRIDES_FILE).write_text(yaml.safe_dump(_last_of_each(kept)), encoding="utf-8")
    # A resumed run may go on elsewhere: each part says where it ran.
    parts = len(list(folder.glob("environment*.json")))
    name = f"environment-{parts + 1}.json" if parts else "environment.json"
    (folder / name).write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")


def _last_of_each(lines: Sequence[str]) -> list[str]:
    """One line a key, the last one given; the order of the last ones stays."""
    latest: dict[str, str] = {}
    for line in lines:
        key = line.split("=", 1)[0].lstrip("+")
        latest.pop(key, None)
        latest[key] = line
    if not any(key == "task" for key in latest):
        return ["task=" + chosen_task(()), *latest.values()]
    return list(latest.values())


def _evaluate(
    config: RunConfig, experiment: Experiment, folder: Path, trained: bool
) -> dict[str, float]:
    """Final evaluation of what was trained and of the rows below it; writes ``samples*.jsonl``."""
    from gfn_runner.measures import measure
    from gfn_runner.optional_measures import optional_measures
    from gfn_runner.report.samples import write_demonstrations, write_sample_table, write_samples
    from gfn_runner.report.table import row_labels

    module, data, options = experiment.module, experiment.data, config.callbacks.evaluation
    data.final = experiment.evaluation.final = module.final = True
    metrics: dict[str, float] = {}
    shown = {}
    if trained:
        if is_first():
            print("final evaluation: policy, then base model", flush=True)
        experiment.trainer.validate(module, datamodule=data, verbose=False)
        if config.baseline is None:
            write_demonstrations(
                folder / "demonstrations.jsonl", module, config.data.train, options
            )
        if is_first():
            own = experiment.evaluation.samples
            measured = experiment.evaluation.metrics | optional_measures(own, options)
            metrics = {f"final/{name}": value for name, value in measured.items()}
            write_samples(folder / "samples.jsonl", own)
            shown["final"] = own
    temperature = module.reward_temperature if trained else _final_temperature(config)
    for name, samples in _rows(config, experiment, temperature):
        if not is_first():
            continue  # its share of the drawing
        shown[name] = samples
        experiment.media.samples(name, samples, experiment.trainer.global_step, temperature)
        write_samples(folder / f"samples_{name}.jsonl", samples)
        measured = measure(config.task, samples, temperature=temperature, encoder=options.encoder)
        measured |= optional_measures(samples, options)
        metrics |= {f"{name}/{metric}": value for metric, value in measured.items()}
    if is_first():
        labels = row_labels(metrics)
        named = {labels.get(name, name): samples for name, samples in shown.items()}
        write_sample_table(folder / "samples.md", named)
    return metrics


def _final_temperature(config: RunConfig) -> float:
    """Reward temperature at which a policy of this config would end."""
    return config.callbacks.tempering(config.total_steps)


def _rows(
    config: RunConfig, experiment: Experiment, temperature: float
) -> Iterator[tuple[str, list[ConditionSamples]]]:
    """What stands below a policy, or what a baseline does that trains none."""
    from gfn_runner.baselines.methods import Drawing
    from gfn_runner.baselines.rows import baseline_rows, made_rows
    from gfn_runner.evaluation import limited

    module, options = experiment.module, config.callbacks.evaluation
    conditions = limited(experiment.data.evaluation_conditions(), options.baseline_limit)
    drawing = Drawing(
        module.lm,
        config.task,
        module.evaluation_rule,
        conditions,
        options,
        config.seed,
        temperature,
    )
    if config.baseline is None or config.baseline.lightning_module is not None:
        yield from baseline_rows(drawing)
        return
    for name, samples in made_rows(drawing, config.baseline):
        if is_first():
            print(f"evaluated: {name}", flush=True)
        yield name, samples


def _run_facts(config: RunConfig, started: float, steps: int) -> dict[str, float]:
    from gfn_runner.environment import peak_memory_gib

    return {
        "run/seed": float(config.seed),
        "run/steps": float(steps),
        "run/minutes": (time.time() - started) / 60,
        "run/peak_memory_gib": max(gathered(peak_memory_gib())),
    }


def _report(config: RunConfig, folder: Path, metrics: dict[str, float]) -> float | None:
    from rich.console import Console

    from gfn_runner.loggers import jsonable
    from gfn_runner.report.figures import draw_all
    from gfn_runner.report.table import result_table, row_labels

    flat = {name: jsonable(value) for name, value in sorted(metrics.items())}
    unfinished = folder / "metrics.json.part"
    unfinished.write_text(json.dumps(flat, indent=2) + "\n")
    unfinished.replace(folder / "metrics.json")
    draw_all(folder)
    console = Console()
    method = "this run" if config.baseline is None else config.baseline.label
    console.print(result_table(config.task, metrics, method))
    console.print(
        f"{metrics['run/steps']:.0f} optimizer steps, {metrics['run/minutes']:.1f} minutes, "
        f"{metrics['run/peak_memory_gib']:.2f} GiB of memory at most"
    )
    console.print(f"everything is in {folder}", soft_wrap=True)
    # Without training it is the first row that stands for the run.
    row = next(iter(row_labels(metrics)), "final")
    values = [
        value
        for name, value in metrics.items()
        if config.task.headline and name.startswith(f"{row}/{config.task.headline[0]}/")
    ]
    return sum(values) / len(values) if values else None


def show(problems: Sequence[Problem], folder: Path | None = None) -> None:
    """Problems on one screen; ``folder`` is the run's if a job has begun."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    many = f"{len(problems)} mistakes" if len(problems) > 1 else "a mistake"
    effect = "nothing was started, nothing was written"
    if folder is not None:
        effect = f"the run stops; its folder is {folder}"
    console.print(f"gfn_runner: {many}; {effect}", style="bold red")
    for problem in problems:
        console.print(str(problem), markup=False)


def _show_config(config: RunConfig) -> None:
    import yaml
    from rich.console import Console
    from rich.syntax import Syntax

    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, "yaml"))
    else:
        print(text)
