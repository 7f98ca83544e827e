"""Folders of runs and sweeps as a run leaves them, and what is on their pages; for tests of reports."""

from __future__ import annotations

import json
import re
import time

import yaml

from gfn_runner.report import panels
from gfn_runner.report.methods import methods_of
from gfn_runner.report.run_page import write_run_page
from gfn_runner.report.runs import find_runs, read_runs
from gfn_runner.report.summary import sections
from gfn_runner.report.sweep_page import write_sweep_page
from gfn_runner.runtime.json_lines import write_lines

ARITHMETIC = "gfn_runner.tasks.arithmetic.IntegerArithmetic"
PROMPTING = "gfn_runner.baselines.prompting.Prompting"
FAILED = (
    "ERROR gfn_runner.cli.main: the run has failed: Traceback (most recent call last):\n"
    '  File "x.py", line 3, in step\n    raise ValueError\n'
    "ValueError: the loss is not finite\nat step 3\n"
)
PHASES = dict(zip(panels.PHASES, (0.3, 0.2, 0.2, 0.1, 0.1, 0.1), strict=True))


def training(step, **values):
    """A record of an optimizer step: by turns on-policy, tempered, replayed."""
    turn = step % 3
    record = {
        "step": step, "time": time.time() - 100 + step, "train/loss": 2.0 / step,
        "train/log_reward": -5.0 + step, "train/phi_spread": 1.0, "train/phi_spread_max": 2.0,
        "train/phi_spread_terminal": 0.5, "train/grad_norm": 3.0, "train/lr": 1e-3, "train/length": 4.0,
        "train/reward_temperature": 1.0, "train/buffer_size": 10.0 * step, "train/seconds": 1.0,
        "train/from_replay": 1.0 if turn == 2 else 0.0,
        "train/exploration_temperature": None if turn == 2 else 1.0 + turn,
    }  # fmt: skip
    if turn == 0:
        record |= {"train/elbo": -3.0, "train/log_z_bound": -2.5, "train/log_z_gap": 0.5}
        record["train/entropy"] = 1.5
    return record | {f"seconds/{name}": value for name, value in PHASES.items()} | values


def evaluation(step, kind="eval"):
    metrics = {
        "vote_accuracy": 0.25, "single_accuracy": 0.5, "log_reward": -4.0, "log_likelihood": -6.0,
        "phi_spread": 0.7, "elbo": -3.0, "log_z_bound": -2.0, "diversity": 0.4, "unique": 0.9,
        "distinct_2": 0.8, "self_bleu": 0.3,
    }  # fmt: skip
    sets = ("3_operands", "4_operands")
    named = {f"{kind}/{name}/{group}": value for name, value in metrics.items() for group in sets}
    return {"step": step, "time": time.time(), **named}


def start_run(folder, config, overrides, commit):
    """What every run leaves at its start."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    git = {"commit": commit, "changed": False}
    (folder / "environment.json").write_text(json.dumps({"git": git}))


def make_run(folder, *, steps=6, wanted=6, finished=True, overrides=(), **config):
    """A run's folder as a run leaves it."""
    whole = {
        "task": {"_target_": ARITHMETIC},
        "objective": {"_target_": "gfn_runner.objectives.losses.JointBalance"},
        "lm": {"name": "embedded", "lora": {"rank": 4}},
        "trainer": {"max_steps": wanted},
        "callbacks": {
            "evaluation": {"every_n_steps": 2},
            "report": {"pages": "live", "refresh": 70, "pause": 0},
        },
        "seed": 3,
    } | config
    start_run(folder, whole, ["task=arithmetic", *overrides], "c0ffee" * 6)
    (folder / "run.log").write_text("WARNING gfn_runner.lm: something <odd>\n")
    records = [training(step) for step in range(1, steps + 1)]
    records += [evaluation(step) for step in range(2, steps + 1, 2)]
    records += [evaluation(steps, "final")] if finished else []
    write_lines(folder / "metrics.jsonl", records)
    if finished:
        write_lines(folder / "samples.jsonl", [sample("the last")])
        final = {n: v for n, v in records[-1].items() if "/" in n}
        facts = {
            "run/seed": 3.0, "run/steps": float(wanted), "run/minutes": 2.0,
            "final/vote_accuracy_low/3_operands": 0.1, "final/vote_accuracy_high/3_operands": 0.4,
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(final | facts))
    return folder


def add_records(folder, *records):
    """To what a run has logged."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(own, ensure_ascii=False) + "\n" for own in records)


def sample(text, **others):
    own = {"condition": "q", "prompt": "1 + 1 = ?", "answer": 2}
    return record([text, ""], [-1.5, -9.0], [-0.25, -3.0]) | own | others


def page_of(folder, known=None):
    return write_run_page(folder, known).read_text()


def plots_of(html):
    """Title to figure, as Plotly is given it."""
    found = re.findall(
        r'<section class="panel"><h4>(.*?)</h4>\s*<div class="plot"><script type="application/json">'
        r"(.*?)</script>",
        html,
    )
    return {title: json.loads(figure) for title, figure in found}


def curves_of(html, title):
    """Name of each trace to its last point."""
    return {own["name"]: (own["x"][-1], own["y"][-1]) for own in plots_of(html)[title]["data"]}


def facts_of(html):
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))


def reloads(html):
    return '<body data-refresh="70">' in html


def make_sweep(folder, *jobs, **record):
    """A sweep's folder with its record; a job is its overrides, or a dictionary of its entry."""
    folder.mkdir(parents=True)
    entries = [job if isinstance(job, dict) else {"overrides": job.split()} for job in jobs]
    entries = [{"number": n, "folder": str(n)} | own for n, own in enumerate(entries)]
    whole = {"overrides": [], "searches": False, "jobs": entries} | record
    (folder / "sweep.json").write_text(json.dumps(whole))
    return folder


def grid(**values):
    """Overrides of each job of a grid, as Hydra's sweeper makes them."""
    jobs = [""]
    for key, own in values.items():
        jobs = [f"{job} {key.replace('__', '.')}={value}".strip() for job in jobs for value in own]
    return jobs


def sweep_page(folder):
    return write_sweep_page(folder).read_text()


def rows_of(html):
    table = html[html.index("<h2>Runs</h2>") :].partition("</table>")[0]
    strip = lambda cell: re.sub(r"<[^>]*>", "", cell).strip()  # noqa: E731
    return [
        [strip(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr.*?</tr>", table, re.S)
    ]


# -- finished runs for comparisons --------------------------------------------------------------------


CONTINUATION = "gfn_runner.tasks.continuation.SentenceContinuation"
NUMBERS = "gfn_runner.tasks.random_number.RandomNumbers"
JOINT = {"_target_": "gfn_runner.objectives.losses.JointBalance", "between": 1.0}
PPO, SFT = ({"_target_": f"gfn_runner.algorithms.{name}"} for name in ("ppo.PPO", "sft.SFT"))
SUBTB = {"_target_": "gfn_runner.objectives.losses.SubTB", "lam": 0.9}


def leave_run(folder, metrics=None, *, seed=0, task=ARITHMETIC, commit="a" * 40, **config):
    """A run's folder as a run leaves it; ``metrics=None`` for one that has not finished."""
    steps = 10
    whole = {
        "task": {"_target_": task},
        "objective": JOINT,
        "lm": {"name": "embedded", "device": "auto", "lora": {"rank": 4}},
        "sampling": {"n_conditions": 2, "n_samples": 4},
        "trainer": {"max_steps": steps, "accumulate_grad_batches": 1},
        "num_threads": None,
        "callbacks": {
            "reward_tempering": {"start": 1.0, "end": 0.5, "steps": 5, "shape": "linear"}
        },
        "seed": seed,
        "output": "outputs",
    } | config
    start_run(folder, whole, ["task=some", f"seed={seed}"], commit)
    if metrics is not None:
        facts = {"run/seed": seed, "run/steps": steps, "run/minutes": 1.0, "train/loss": 0.5}
        facts |= {"run/reward_temperature": 1.0 - 0.1 * min(5, max(0, steps - 1))}
        (folder / "metrics.json").write_text(json.dumps(metrics | facts))
    return folder


def accuracy(final, base=None, **others):
    """Metrics of arithmetic at three operands."""
    found = {} if final is None else {"final/vote_accuracy/3_operands": final}
    found |= {} if base is None else {"base_0_shot/vote_accuracy/3_operands": base}
    return found | others


def read(*folders):
    return read_runs(find_runs([str(folder) for folder in folders]))


def labels(*folders):
    return [method.label for method in methods_of(read(*folders))]


def record(singles, log_reward, log_pf, condition="some", **others):
    return {
        "group": "3_operands", "condition": condition, "prompt": f"Question: {condition}",
        "answer": None, "votes": [], "singles": singles, "log_reward": log_reward, "log_pf": log_pf,
    } | others  # fmt: skip


def only_section(*folders):
    (section,) = sections(read(*folders))
    return section


LIKELY = {
    "diversity/news": 0.5, "log_likelihood/news": -9.0, "log_likelihood_max/news": -7.0,
}  # fmt: skip


def logged(folder, values, **clocks):
    """Training records and evaluations on the way, as ``metrics.jsonl`` has them; the last is final."""
    lines = []
    for number, (step, value) in enumerate(values.items(), 1):
        kind = "final" if number == len(values) else "eval"
        lines.append({"step": step, "time": 1.0, "train/loss": 1.0} | clocks)
        lines.append({"step": step, "time": 2.0, f"{kind}/vote_accuracy/x": value})
    write_lines(folder / "metrics.jsonl", lines)


def whole_run(tmp_path):
    metrics = {"final/vote_accuracy/x": 0.6} | {f"final/{n}": v for n, v in LIKELY.items()}
    folder = leave_run(tmp_path / "a", metrics)
    logged(folder, {5: 0.2, 10: 0.6})
    hostile = "<script src='http://example.com/x.js'></script> | `x` *y* ![z](http://example.com)"
    drawn = record([hostile, "b"], [-1.0, -2.0], [-1.0, -2.0])
    write_lines(folder / "samples.jsonl", [drawn])
    return folder


SCRIPT = "<script>alert('pwned')</script>"
CLOSING = "</script><script>alert('pwned')</script><img src=x onerror=alert(1)> \" ' & {{ 7 * 7 }}"


def hostile_run(folder):
    """With scripts in samples, prompt, log, metrics' names, overrides and config."""
    make_run(
        folder,
        overrides=[f"name={SCRIPT}"],
        lm={"name": SCRIPT, "lora": {"rank": CLOSING}},
        objective={"_target_": f"x.{SCRIPT}"},
    )
    drawn = sample(CLOSING, prompt=SCRIPT, condition=SCRIPT, group=CLOSING, answer=SCRIPT)
    write_lines(folder / "samples.jsonl", [drawn, sample(SCRIPT)])
    (folder / "run.log").write_text(f"WARNING gfn_runner.x: {CLOSING}\n", encoding="utf-8")
    names = {f"eval/vote_accuracy/{CLOSING}": 0.5, f"{SCRIPT}/x": 1.0}
    add_records(folder, {"step": 6, "time": 1.0, **names})
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics |= {f"final/vote_accuracy/{CLOSING}": 0.5, f"{SCRIPT}/vote_accuracy/x": 0.5}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder
