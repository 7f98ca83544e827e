"""W&B's side of real runs, read back from their offline files."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import wandb_dashboard as dashboard

from gfn_runner.callbacks.wandb_media import COLUMNS
from gfn_runner.loggers.wandb_run import STEP
from tests.runs import exit_code, run
from tests.wandb_files import history, inspected, parts_of

# On-policy and replayed steps, and more than one sample of a condition: every kind of metric.
LINES = (
    "logger=wandb_offline",
    "callbacks.wandb_media.histogram_every_n_steps=2",
    "logger.wandb.tags=[mine]",
    "sampling.exploration_probability=0",
    "evaluation.singles=2",
    "evaluation.posterior_draws=8",
    "lm.name=embedded",  # which gives answers, and so all accuracies
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
    last = ["trainer.max_steps=4", f"resume={sweep / '0'}"]
    return run(sweep / "0", *LINES, *last, figures=True)


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
        assert set(record["tags"]) == {"arithmetic", "VarGradTB", "mine"}
        (summary,) = inspected(part, "--summary")
        assert summary["config"]["sampling"]["exploration_probability"] == 0
        assert summary["state"] == "finished"
    trained = [[i[STEP] for i in history(part) if "train/loss" in i] for part in parts]
    assert trained == [[1, 2, 3], [4]]


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
    near = functools.partial(pytest.approx, abs=1e-4)
    expected = [
        [4, s["group"], s["prompt"], text, near(log_r), near(log_q)]
        for s in saved
        for text, log_r, log_q in zip(s["singles"], s["log_reward"], s["log_pf"], strict=True)
    ]
    assert [row[:6] for row in rows] == expected and len(rows) == 12
    # After four steps of conf/callbacks/reward_tempering/cooling.
    temperature = 1.1 - 4 * (1.1 - 0.6) / 100
    for row in rows:
        assert row[6] == pytest.approx(row[4] / temperature - row[5], rel=1e-4)


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
    state = torch.load(file, weights_only=True)["callbacks"]["ReplayBufferCallback"]["buffers"][0]
    stored = state["step_B"].tolist()
    # Demonstrations, strings of the first part, strings of the resumed one.
    assert {0, 4} < set(stored) and set(stored) & {2, 3}
    logged = [i for i in history(parts_of(offline)[1]) if "train/loss" in i]
    assert [i["train/buffer_size"] for i in logged] == [len(stored)]
    assert logged[0]["train/buffer_age"] == pytest.approx(4 - sum(stored) / len(stored))


def test_an_evaluation_later_is_a_run_of_its_own_kind(offline, capsys):
    assert exit_code("mode=evaluate", f"run={offline}") == 0
    (folder,) = offline.glob("evaluations/*/*")
    (part,) = parts_of(folder)
    (record,) = [r["run"] for r in inspected(part) if r["type"] == "run"]
    assert record["job_type"] == "evaluate" and record["run_group"] == "a sweep"
    (summary,) = inspected(part, "--summary")
    assert {"samples/final", "final/vote_accuracy/3_operands"} <= summary["summary"].keys()
    assert f"wandb sync '{part.parent}'" in capsys.readouterr().out


# -- the dashboard ----------------------------------------------------------------------------------


def test_every_panel_shows_what_a_run_logs(offline):
    logged = logged_by(offline)
    summaries = set(json.loads((offline / "metrics.json").read_text()))
    only_of_text = set()
    for panel in dashboard.panels():
        if panel.pattern is None:
            known = logged | summaries if panel.kind == "bars" else logged
            assert set(panel.metrics) <= known, panel.metrics
        elif not any(re.match(panel.pattern, name) for name in logged):
            only_of_text |= set(panel.metrics)
    # A task that writes text has diversity too.
    assert only_of_text == {
        f"eval/{name}/*" for name in ("diversity", "distinct_2", "self_bleu", "unique")
    }
