"""W&B's side of real runs, read back from their offline files; and a server that goes away."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gfn_runner.app import main
from gfn_runner.callbacks.wandb_media import COLUMNS
from gfn_runner.loggers.wandb_run import STEP

from ..fake_wandb import fake_wandb
from .conftest import run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import wandb_dashboard as dashboard  # noqa: E402

# On-policy and replayed steps, and more than one sample of a condition: every kind of metric.
LINES = (
    "logger=wandb_offline",
    "logger.histograms_every=2",
    "logger.tags=[mine]",
    "sampling.tempered=0",
    "callbacks.evaluation.singles=2",
)


@pytest.fixture(scope="module", autouse=True)
def at_home(tmp_path_factory) -> Iterator[Path]:
    """A home of its own, without an account, that a run should leave as it is."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / "none"))
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
            patch.delenv(name, raising=False)
        yield home


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Path:
    """A run of three steps that is resumed to four, as a job of a sweep."""
    sweep = tmp_path_factory.mktemp("sweep") / "a sweep"
    sweep.mkdir()
    (sweep / "multirun.yaml").touch()
    run(sweep / "0", *LINES, "trainer.max_steps=3")
    return run(sweep / "0", *LINES, "trainer.max_steps=4", f"resume={sweep / '0'}")


@pytest.fixture(scope="module")
def of_text(tmp_path_factory) -> Path:
    """A run of a task that writes text."""
    lines = [
        "task=continuation",
        "task.data.n_test=2",
        "experiment=tiny/smoke",
        "trainer.threads=1",
    ]
    folder = tmp_path_factory.mktemp("text") / "run"
    shown = ["callbacks.progress.show=none", "callbacks.evaluation.baseline_shots=[]"]
    main([*lines, *shown, *LINES, f"hydra.run.dir={folder}"])
    return folder


@functools.cache
def inspected(file: Path, *flags: str) -> list[Any]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(file)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(text)] if flags else [json.loads(line) for line in text.splitlines()]


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def history(file: Path) -> list[dict[str, Any]]:
    return [r["history"]["item"] for r in inspected(file) if r["type"] == "history"]


def logged_by(*folders: Path) -> set[str]:
    """Names of scalars, tables and pictures in the histories."""
    names = {
        name for f in folders for part in parts_of(f) for item in history(part) for name in item
    }
    return {re.sub(r"\.[a-z_]\w*$", "", name) for name in names if not name.startswith("_")}


# -- what a run leaves ------------------------------------------------------------------------------


def test_a_resumed_run_is_one_run_in_its_sweep(offline):
    parts = parts_of(offline)
    assert len(parts) == 2 and parts[0].name == parts[1].name, "one id"
    for part in parts:
        (record,) = [r["run"] for r in inspected(part) if r["type"] == "run"]
        assert record["run_group"] == "a sweep" and record["job_type"] == "train"
        assert set(record["tags"]) == {"arithmetic", "JointBalance", "mine"}
        (summary,) = inspected(part, "--summary")
        assert summary["config"]["sampling"]["tempered"] == 0 and summary["state"] == "finished"
    trained = [[i[STEP] for i in history(part) if "train/loss" in i] for part in parts]
    assert trained == [[1, 2, 3], [4]]


def test_every_series_has_optimizer_steps_as_its_axis(offline):
    part = parts_of(offline)[0]
    defined = [r["metric"] for r in inspected(part) if r["type"] == "metric"]
    globs = {d["glob_name"] for d in defined if d.get("step_metric") == STEP}
    for name in logged_by(offline) - {STEP}:
        assert name.split("/")[0] + "/*" in globs, name
    assert all(STEP in item for item in history(part))


def test_tables_of_samples_hold_what_was_written(offline):
    part = parts_of(offline)[0]
    files = part.parent / "files"
    tables = {}
    for item in history(part):
        for name in item:
            if name.endswith("._type") and item[name] == "table-file":
                key = name.removesuffix("._type")
                tables[key] = json.loads((files / item[f"{key}.path"]).read_text())
    assert tables.keys() == {"samples/eval", "samples/final", "samples/base_0_shot"}
    assert all(table["columns"] == list(COLUMNS) for table in tables.values())
    # Those of the newest part are in samples.jsonl.
    again = parts_of(offline)[1]
    (key,) = [item["samples/final.path"] for item in history(again) if "samples/final.path" in item]
    rows = json.loads((again.parent / "files" / key).read_text())["data"]
    saved = [json.loads(line) for line in (offline / "samples.jsonl").read_text().splitlines()]
    expected = [
        [
            4,
            s["group"],
            s["prompt"],
            text,
            pytest.approx(log_r, abs=1e-4),
            pytest.approx(log_q, abs=1e-4),
        ]
        for s in saved
        for text, log_r, log_q in zip(s["singles"], s["log_reward"], s["log_pf"], strict=True)
    ]
    assert [row[:6] for row in rows] == expected and len(rows) == 12
    temperature = (
        1.1 - 4 * (1.1 - 0.6) / 100
    )  # after four steps of conf/callbacks/tempering/cooling
    for row in rows:
        assert row[6] == pytest.approx(row[4] / temperature - row[5], rel=1e-4)


def test_histograms_are_of_the_strings_of_a_step(offline):
    items = [i for i in history(parts_of(offline)[0]) if "histogram/phi.values" in i]
    assert [item[STEP] for item in items] == [1, 2]
    # A replayed step of an arithmetic run, then a fresh one; 2 conditions of 4 strings.
    for item in items:
        for name in ("phi", "log_reward", "length"):
            assert sum(item[f"histogram/{name}.values"]) <= 8
    assert sum(items[1]["histogram/length.values"]) == 8
    metrics = [i for i in history(parts_of(offline)[0]) if i.get("train/buffer_size")]
    for item, trained in zip(items, metrics, strict=False):
        for name in ("buffer_log_reward", "buffer_age"):
            assert sum(item[f"histogram/{name}.values"]) == trained["train/buffer_size"]


def test_the_end_brings_figures_the_adapter_and_all_metrics(offline):
    part = parts_of(offline)[1]
    figures = {path.stem for path in (offline / "figures").glob("*.png")}
    assert {f"figures/{stem}" for stem in figures} <= logged_by(offline) and len(figures) == 4
    artifacts = [r["artifact"] for r in inspected(part) if r["type"] == "artifact"]
    (adapter,) = [a for a in artifacts if a["type"] == "model"]
    kept = {entry["path"]: entry["local_path"] for entry in adapter["manifest"]["contents"]}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= kept.keys()
    assert all(Path(path).parent == offline / "adapter" for path in kept.values()), "no copies"
    (summary,) = inspected(part, "--summary")
    final = json.loads((offline / "metrics.json").read_text())
    assert "base_0_shot/vote_accuracy/3_operands" in final
    for name, value in final.items():
        assert value is None or summary["summary"][name] == pytest.approx(value), name


def test_the_age_of_the_buffer_goes_on_after_a_resume(offline):
    file = max((offline / "checkpoints").glob("*.ckpt"))
    state = torch.load(file, weights_only=True)["callbacks"]["ReplayCallback"]["buffer"]
    stored = [entry["step"] for rows in state.values() for entry in rows]
    # Demonstrations, strings of the first part, strings of the resumed one.
    assert {0, 4} < set(stored) and set(stored) & {2, 3}
    logged = [i for i in history(parts_of(offline)[1]) if "train/loss" in i]
    assert [i["train/buffer_size"] for i in logged] == [len(stored)]
    assert logged[0]["train/buffer_age"] == pytest.approx(4 - sum(stored) / len(stored))


def test_a_run_leaves_the_home_as_it_is(offline, at_home):
    assert not list(at_home.glob(".local/**/staging/*"))


def test_an_evaluation_later_is_a_run_of_its_own_kind(offline, capsys):
    main(["mode=evaluate", f"run={offline}"])
    (folder,) = offline.glob("evaluations/*/*")
    (part,) = parts_of(folder)
    (record,) = [r["run"] for r in inspected(part) if r["type"] == "run"]
    assert record["job_type"] == "evaluate" and record["run_group"] == "a sweep"
    (summary,) = inspected(part, "--summary")
    assert {"samples/final", "final/vote_accuracy/3_operands"} <= summary["summary"].keys()
    assert f"wandb sync '{part.parent}'" in capsys.readouterr().out


# -- the dashboard ----------------------------------------------------------------------------------


def test_every_panel_shows_what_a_run_logs(offline, of_text):
    arithmetic, text = logged_by(offline), logged_by(of_text)
    summaries = set(json.loads((offline / "metrics.json").read_text()))
    for panel in dashboard.panels():
        assert bool(panel.metrics) != bool(panel.pattern), panel.title
        known = arithmetic | summaries if panel.kind == "bars" else arithmetic
        missing = set(panel.metrics) - known
        assert not missing, f"{panel.title}: {missing}"
        if panel.pattern:
            assert any(re.match(panel.pattern, name) for name in arithmetic | text), panel.title
    # What a text adds is diversity, and nothing else is found there only.
    only = {
        p.title
        for p in dashboard.panels()
        if p.pattern and not any(re.match(p.pattern, n) for n in arithmetic)
    }
    assert only == {"diversity of texts", "self-BLEU of texts (low is diverse)"}


# -- a server that goes away ------------------------------------------------------------------------

RUN = """
import json, logging, sys, time
from pathlib import Path
logging.basicConfig(format="%(message)s")
from gfn_runner.callbacks.wandb_media import add_results, add_samples
from gfn_runner.config.schemas import LoggerSettings
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.conditions import Condition
from gfn_runner.loggers.wandb_run import start_wandb

folder = Path(sys.argv[1])
options = LoggerSettings(wandb="online", finish_timeout=3)
own = start_wandb(options, folder, {}, job_type="train", tags=())
own.log("scalars", {"train/loss": 1.0}, 1)
print(json.dumps({"offline": own.offline}), flush=True)
sys.stdin.readline()
drawn = [ConditionSamples(Condition("x", "x", ()), (), ["a"], [-1.0], [-2.0])]
seconds = {}
def timed(name, action):
    started = time.perf_counter()
    action()
    seconds[name] = time.perf_counter() - started
timed("scalars", lambda: [own.log("scalars", {"train/loss": 0.5}, n) for n in range(2, 200)])
timed("first table", lambda: add_samples(own, 9, "eval", drawn, 200, 1.0))
timed("next tables", lambda: [add_samples(own, 9, "eval", drawn, n, 1.0) for n in range(201, 220)])
timed("end", lambda: own.finish())
print(json.dumps(seconds), flush=True)
"""


def test_a_server_that_vanishes_costs_seconds_once_and_is_spoken_of_once(tmp_path):
    with fake_wandb() as server:
        variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40}
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | variables, cwd=ROOT,
        )  # fmt: skip
        assert json.loads(process.stdout.readline()) == {"offline": False}
        assert "UpsertBucket" in server.asked
        server.vanish()
        out, said = process.communicate("gone\n", timeout=120)
    assert process.returncode == 0, said
    end, seconds = out.strip().splitlines()
    seconds = json.loads(seconds)
    assert seconds["scalars"] < 5 and seconds["first table"] < 40
    assert seconds["next tables"] < 1 and seconds["end"] < 20
    assert said.count("W&B gets no more tables of samples") == 1
    assert said.count("W&B did not get all of this run") == 1 and "more scalars" not in said
    # Nothing that was a scalar is lost: it is in the file that the command sends.
    assert "wandb sync --include-online" in end
    (part,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert [i[STEP] for i in history(part)] == [*range(1, 200)]


def test_a_server_that_was_never_there_makes_the_run_an_offline_one(tmp_path):
    code = "from gfn_runner.loggers import wandb_run; wandb_run._INIT_TIMEOUT_S = 3.0\n" + RUN
    variables = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "x" * 40}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input="\n", capture_output=True, text=True, timeout=120, env=os.environ | variables, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, end, _ = done.stdout.strip().splitlines()
    assert json.loads(first) == {"offline": True} and "wandb sync" in end
    assert done.stderr.count("W&B does not start online") == 1
    (part,) = parts_of(tmp_path)
    assert [i[STEP] for i in history(part) if "train/loss" in i] == [*range(1, 200)]
