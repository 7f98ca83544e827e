"""The comparison of recipes: every command holds, equal minutes, a page of what is finished."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import recipes
import seed_tables
import yaml

from tests.runs import composed

RUNS = [(task, job.name) for task in recipes.SECTIONS for job in recipes.jobs_of(task, [5], 0)]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), RUNS, ids=map(" ".join, RUNS))
def test_every_runs_command_holds(task, name):
    job = next(job for job in recipes.jobs_of(task, [5], 0) if job.name == name)
    config = composed(*job.lines)
    assert config.task.name == task and config.evaluation.posterior_draws > 0


def test_steps_of_a_recipe_take_its_minutes():
    for task, section in recipes.SECTIONS.items():
        steps = {
            job.name: int(job.lines[-2].removeprefix("trainer.max_steps="))
            for job in recipes.jobs_of(task, [2, 10], 0)
            if job.lines[-2].startswith("trainer.max_steps=")
        }
        for name, recipe in section.recipes.items():
            for minutes in (2, 10):
                seconds = steps[f"{name}, {minutes} min"] * recipe.seconds
                assert seconds == pytest.approx(60 * minutes, abs=recipe.seconds / 2)


@pytest.fixture
def program(monkeypatch):
    """In place of the program: a run leaves its folder."""
    calls: list[str] = []

    def run(command, **how):
        place = Path(command[-1].removeprefix("hydra.run.dir="))
        calls.append(place.parent.name)
        place.mkdir(parents=True)
        lines = [line for line in command[3:-2] if not line.startswith("resume=")]
        (place / "overrides.yaml").write_text(yaml.safe_dump(lines))
        config = {"task": {"_target_": "some.Task"}, "seed": 0, "trainer": {"max_steps": 4}}
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        (place / "metrics.json").write_text(
            json.dumps({"run/steps": 4, "final/jeffreys/stories": 1.5})
        )
        steps = [{"step": n, "train/cpu_seconds": 30.0, "time": 0} for n in range(1, 5)]
        (place / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(seed_tables.subprocess, "run", run)
    return calls


def test_the_page_has_what_is_finished_and_what_it_cost(tmp_path, program):
    page = tmp_path / "recipes.md"
    page.write_text("before\n<!-- recipes -->\n<!-- /recipes -->\nafter\n")
    asked = ["--tasks", "infilling", "--minutes", "5", "--seeds", "0", "--write", str(page)]
    recipes.main([*asked, "--folder", str(tmp_path / "runs")])
    n_runs = len(recipes.jobs_of("infilling", [5], 0))
    assert len(program) == n_runs
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "| default, 5 min | 1 | 4 | 2.00 | 1.50 |" in text and "2 min" not in text
    options = "sampling.sft_share=0 optimizer.lr=2e-3 objective.regression.kind=squared"
    assert f"- squared loss, no SFT: `{options}`" in text
    # Another machine has the numbers.
    recipes.main([*asked, "--folder", str(tmp_path / "other")])
    assert len(program) == n_runs and page.read_text() == text
