"""The run as a recipe: check → build → fit → evaluate → report."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfn_runner.cli.compose import (
    CONF,
    OVERRIDES_FILE,
    Checked,
    check_config,
    checked,
    chosen_task,
    with_folder,
)
from gfn_runner.cli.overrides import absolute_lines, kept_overrides
from gfn_runner.config.validation import AUTO, RunConfig
from gfn_runner.distributed.ranks import (
    from_first,
    gathered,
    is_first,
    refuse_impossible,
    started_rank,
    together,
)
from gfn_runner.errors import NotBegun, Problem, UserError
from gfn_runner.runtime.environment import spin_briefly
from gfn_runner.runtime.files import tell_once, try_to_write, write_whole, writing_to
from gfn_runner.runtime.local_paths import local_paths
from gfn_runner.runtime.terminal import print_everywhere, refuse_undecodable

if TYPE_CHECKING:
    import torch

    from gfn_runner.build import Experiment
    from gfn_runner.cli.resume import Start
    from gfn_runner.data.samples import ConditionSamples
    from gfn_runner.report.states import Word
    from gfn_runner.sweeps.record import Sweep

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 and one screen of text if the command line holds a mistake."""
    spin_briefly()
    arguments = list(sys.argv[1:] if argv is None else argv)
    print_everywhere()
    try:
        refuse_undecodable(arguments)
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
            arguments = _in_folder(prepared)
        except UserError as error:
            show(error.problems)
            raise SystemExit(2) from None
    if prepared is not None and prepared.multirun:
        _sweep(arguments, prepared.jobs[0].callbacks.report.pages != "off")
    else:
        _start_hydra(arguments)


def _in_folder(prepared: Checked) -> list[str]:
    """The command line with the folder that the run or sweep goes to."""
    if prepared.parent is not None:
        with writing_to(prepared.parent, "output", "output=<another folder>"):
            unfinished = _unfinished(prepared)
            if unfinished is None:
                return with_folder(prepared)
        with writing_to(unfinished, "resume", "resume=null begins another run"):
            try_to_write(unfinished)
        return with_folder(prepared, unfinished)
    named = "hydra.sweep.dir" if prepared.multirun else "hydra.run.dir"
    key, fix = named, f"{named}=<another folder>"
    if prepared.jobs[0].resume not in (None, AUTO):
        key, fix = "resume", "make it writable, or resume=<a copy of it>"
    for folder in (line.partition("=")[2].strip("'") for line in prepared.argv if named in line):
        if "$" not in folder:  # else Hydra alone knows what it stands for
            with writing_to(Path(folder), key, fix):
                Path(folder).mkdir(parents=True, exist_ok=True)
                try_to_write(Path(folder))
    return prepared.argv


def _sweep(arguments: list[str], pages: bool) -> None:
    """All runs of a sweep, then table and page of them. Exits with 1 if one has not ended well."""
    from gfn_runner.sweeps.launching.launch import Refused, opened
    from gfn_runner.sweeps.launching.signals import ends_when_told
    from gfn_runner.sweeps.table import show_sweep

    done = False
    try:
        with ends_when_told():
            _start_hydra(arguments)
        done = True
    except Refused as refused:
        show(refused.error.problems, effect=_effect(opened()))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        sweep = opened() or (_made_before(arguments) if done else None)
        if sweep is not None:
            sweep.searches = False
            sweep.keep()
            try:
                show_sweep(sweep)
            except OSError as error:  # a full disk, or a terminal that is closed
                logger.warning("the sweep's table cannot be written: %s", error)
            if pages:
                _write_page(sweep)
    if sweep is not None and sweep.failures:
        raise SystemExit(1)


def _made_before(arguments: Sequence[str]) -> Sweep | None:
    """A search that had nothing left to do when it was started again."""
    from gfn_runner.sweeps.record import Sweep

    folders = [
        line.partition("=")[2].strip("'") for line in arguments if "hydra.sweep.dir=" in line
    ]
    sweep = Sweep.read(Path(folders[-1])) if folders else None
    if sweep is None or not sweep.jobs:
        return None
    for job in sweep.jobs:
        job.again = False
    return sweep


def _effect(sweep: Sweep | None) -> str:
    """What a sweep that is refused has done before: a search may be refused at its tenth trial."""
    if sweep is None:
        return "no run was started"
    return f"the sweep stops; its folder is {sweep.folder}"


def _write_page(sweep: Sweep) -> None:
    """The sweep's page as it is at the end: no run knows what became of the others."""
    from gfn_runner.report import sweeps
    from gfn_runner.report.live import excused
    from gfn_runner.report.sweep_page import write_sweep_page

    words: dict[str, Word] = {
        "ok": "ok",
        "interrupted": "interrupted",
        "waiting": "not begun",
        "submitted": "not begun",
        "running": "running",
    }
    told = {job.folder: words.get(job.state, "failed") for job in sweep.jobs}
    with excused(logger.warning):
        write_sweep_page(sweeps.Sweep(sweep.folder), told)


def _unfinished(prepared: Checked) -> Path | None:
    """With ``resume=auto``, the newest run of the same overrides that has not ended, if there is one."""
    config = prepared.jobs[0]
    if prepared.multirun or prepared.parent is None or config.resume != AUTO:
        return None
    from gfn_runner.cli.resume import newest_unfinished

    lines = [word for word in prepared.argv if not word.startswith("-")]
    kept = kept_overrides(lines, chosen_task(lines))
    return newest_unfinished(prepared.parent, config, kept)


def _use(config: RunConfig) -> None:
    """A finished run's policy at work."""
    from gfn_runner.cli.policy_modes import use

    use(config)


def _check_texts(jobs: Sequence[RunConfig]) -> None:
    """Every job's texts with its tokenizer, before a folder is made."""
    from gfn_runner.config.tokenizer_checks import check_texts

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
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    print_everywhere()  # the job may be in a process of its own
    tell_once(logging.getLogger())
    hydra_config = HydraConfig.get()
    lines = list(hydra_config.overrides.task)
    with open_dict(composed):
        composed.hydra = OmegaConf.create({"runtime": {"choices": hydra_config.runtime.choices}})
    folder = Path(hydra_config.runtime.output_dir)
    try:
        # Paths are relative to where the command was typed, whatever hydra.job.chdir says.
        with contextlib.chdir(hydra_config.runtime.cwd):
            config = check_config(composed, lines)
            lines = absolute_lines(lines, local_paths(config))
        return train_and_evaluate(config, folder, lines)
    except UserError as error:
        begun = not isinstance(error, NotBegun)
        if begun:
            _leave_reason(folder, str(error))
        show(error.problems, folder if begun else None)
        if hydra_config.mode == RunMode.MULTIRUN:
            # Hydra notes it, and the other runs of the sweep go on.
            raise RuntimeError(str(error)) from None
        raise SystemExit(2) from None
    except Exception:
        _leave_reason(folder, traceback.format_exc())
        raise


def _leave_reason(folder: Path, reason: str) -> None:
    """Say in the run's log why it failed: whoever looks through a sweep's folders has no terminal."""
    with contextlib.suppress(OSError), (folder / "run.log").open("a", encoding="utf-8") as log:
        log.write(f"ERROR gfn_runner.app: the run has failed: {reason.rstrip()}\n")
    _end_pages(folder)


def _end_pages(folder: Path) -> None:
    """The last pages of a run, finished or failed; they need its log and metrics."""
    from gfn_runner.report.live import end_pages

    end_pages(folder)


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
        What ``optimized_metric`` names, averaged over evaluation sets (for sweepers).
    """
    from gfn_runner.report.headline import optimized_value

    refuse_impossible(config.trainer.processes)
    started, start, file = _Clock(), None, None
    with contextlib.ExitStack() as stack:
        if not started_rank(config.trainer.processes):
            from gfn_runner.cli.resume import held

            assert folder is not None  # the first process makes it
            stack.enter_context(
                writing_to(folder, "hydra.run.dir", f"free some, then resume={folder}")
            )
            with _refused():
                stack.enter_context(held(folder))
            start, file = _prepared(config, folder, overrides), folder / "config.yaml"
        stack.enter_context(together(config.trainer.processes, file))
        folder, start = from_first((folder, start))
        assert folder is not None and start is not None
        if start.finished is not None:
            if is_first():
                _say_finished(config, folder)
            known = {name: value for name, value in start.finished.items() if value is not None}
            return optimized_value(config.optimized_metric, config.default_metric, known)
        from gfn_runner.callbacks.preemption import usr2_spares
        from gfn_runner.runtime.status import silent

        with usr2_spares(), silent(config.callbacks.progress.show == "none"):
            return _train_and_evaluate(config, folder, start.checkpoint, started)


def _prepared(config: RunConfig, folder: Path, overrides: Sequence[str]) -> Start:
    """Check what needs model or folder, and write down what the run is."""
    from gfn_runner.cli.resume import start_of
    from gfn_runner.config.tokenizer_checks import check_texts

    holds_run = (folder / OVERRIDES_FILE).exists()
    with _refused() if holds_run else contextlib.nullcontext():
        start = start_of(config, folder)
        if start.finished is None:
            check_texts(config)
    if start.finished is None:
        _describe(config, folder, overrides)
        for note in config.data.notes:
            logger.info("%s", note)
    return start


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What is a mistake within it leaves the folder, which another run may be in, as it is."""
    try:
        yield
    except UserError as error:
        raise NotBegun(error.problems) from None


def _say_finished(config: RunConfig, folder: Path) -> None:
    """Of a run that has nothing left to do; a page that an interruption has cost is made up for."""
    from gfn_runner.cli.resume import other_settings

    print(f"finished before, not run again: {folder}", flush=True)
    others = other_settings(config, folder)
    if others:
        print(f"it was made with other settings: {' '.join(others)}", flush=True)
    page, results = folder / "report.html", folder / "metrics.json"
    if config.callbacks.report.pages != "off" and (
        not page.exists() or page.stat().st_mtime < results.stat().st_mtime
    ):
        _end_pages(folder)


def _train_and_evaluate(
    config: RunConfig, folder: Path, checkpoint: Path | None, started: _Clock
) -> float | None:
    from gfn_runner.build import build
    from gfn_runner.rounds import train
    from gfn_runner.runtime.environment import count_gpu_memory
    from gfn_runner.runtime.phases import explained

    count_gpu_memory()
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
        device = experiment.module.lm.device
        metrics |= experiment.log.latest | _run_facts(config, folder, started, steps, device)
        headline = _report(config, folder, metrics) if is_first() else None
        experiment.media.at_the_end(folder, metrics, steps)
        failed = False
        return headline
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning makes exit code 1 of a Ctrl-C that comes into its part.
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            _say_stopped(folder)
            raise SystemExit(130) from None
        failed = False  # interrupted behind its saved state; it goes on under the same id
        raise
    finally:
        if experiment.media.wandb is not None:
            experiment.media.wandb.finish(failed=failed)


def _say_stopped(folder: Path) -> None:
    """At once, by Ctrl-C: nothing was saved for that."""
    if is_first():
        saved = any((folder / "checkpoints").glob("*.ckpt"))
        rest = (
            "goes on from the newest checkpoint" if saved else "begins anew: nothing was saved yet"
        )
        command = f"python -m gfn_runner resume={folder if saved else 'auto'}"
        print(f"gfn_runner: stopped at once; `{command}` {rest}", file=sys.stderr, flush=True)


def _describe(config: RunConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Leave the resolved config, the overrides and the environment in the folder."""
    import yaml

    from gfn_runner.cli.resume import BEGUN
    from gfn_runner.runtime.environment import environment

    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    write_whole(folder / "config.yaml", text)
    kept = kept_overrides(overrides, chosen_task(()))
    write_whole(folder / OVERRIDES_FILE, yaml.safe_dump(kept))
    # A resumed run may go on elsewhere: each part says where it ran.
    parts = len(list(folder.glob("environment*.json")))
    name = f"environment-{parts + 1}.json" if parts else "environment.json"
    facts = {BEGUN: time.time()} | environment()
    write_whole(folder / name, json.dumps(facts, indent=2) + "\n")


def _evaluate(
    config: RunConfig, experiment: Experiment, folder: Path, trained: bool
) -> dict[str, float]:
    """Final evaluation of what was trained and of the rows below it; writes ``samples*.jsonl``."""
    from gfn_runner.evaluation.measure import measure
    from gfn_runner.evaluation.optional import OptionalMeasures
    from gfn_runner.report.samples import write_demonstrations, write_sample_table, write_samples
    from gfn_runner.report.table import row_labels

    module, data, options = experiment.module, experiment.data, config.callbacks.evaluation
    data.final = experiment.evaluation.final = module.final = True
    optional = OptionalMeasures(options)
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
            measured = experiment.evaluation.metrics | optional(own)
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
        measured |= optional(samples)
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
    from gfn_runner.evaluation.draw import limited

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


@dataclass(frozen=True)
class _Clock:
    """When a part of a run began: seconds since 1970, and seconds that the process had computed."""

    wall: float = field(default_factory=time.time)
    cpu: float = field(default_factory=time.process_time)


def _run_facts(
    config: RunConfig, folder: Path, started: _Clock, steps: int, device: torch.device
) -> dict[str, float]:
    """How long the run took and how much memory; of several processes the largest of each."""
    from gfn_runner.cli.resume import seconds_before
    from gfn_runner.runtime.environment import peak_gpu_memory_gib, peak_memory_gib

    on_gpu = [gib for gib in gathered(peak_gpu_memory_gib(device)) if gib is not None]
    facts = {
        "run/seed": float(config.seed),
        "run/steps": float(steps),
        "run/minutes": (seconds_before(folder) + time.time() - started.wall) / 60,
        "run/cpu_minutes": (time.process_time() - started.cpu) / 60,
        "run/peak_memory_gib": max(gathered(peak_memory_gib())),
    }
    return facts | ({"run/peak_gpu_memory_gib": max(on_gpu)} if on_gpu else {})


def _report(config: RunConfig, folder: Path, metrics: dict[str, float]) -> float | None:
    from rich.console import Console

    from gfn_runner.loggers.json_lines import jsonable
    from gfn_runner.report.figures import draw_all
    from gfn_runner.report.headline import memory_at_most, optimized_value
    from gfn_runner.report.table import result_table

    flat = {name: jsonable(number) for name, number in sorted(metrics.items())}
    draw_all(folder, flat)
    # Last of the results: where it lies the run has nothing left to do.
    write_whole(folder / "metrics.json", json.dumps(flat, indent=2) + "\n")
    _end_pages(folder)
    console = Console()
    method = "this run" if config.baseline is None else config.baseline.label
    console.print(result_table(config.task, metrics, method))
    steps = metrics["run/steps"]
    console.print(
        f"{steps:.0f} optimizer step{'' if steps == 1 else 's'}, {metrics['run/minutes']:.1f} minutes, "
        f"{memory_at_most(metrics)} at most"
    )
    console.print(f"everything is in {folder}", soft_wrap=True)
    # Last: all of the run is there even if nobody has measured what is asked for.
    return optimized_value(config.optimized_metric, config.default_metric, metrics)


def show(problems: Sequence[Problem], folder: Path | None = None, effect: str = "") -> None:
    """Problems on one screen.

    Args:
        problems: at least one.
        folder: of the run, if one has begun.
        effect: what comes of them, where neither folder nor its absence says it.
    """
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    many = f"{len(problems)} mistakes" if len(problems) > 1 else "a mistake"
    if folder is not None:
        effect = f"the run stops; its folder is {folder}"
    effect = effect or "nothing was started, nothing was written"
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
