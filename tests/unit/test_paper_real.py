"""The paper's tables on SmolLM2: every command holds, data lose what is trained on, pages of what is finished."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import paper_real
import paper_real_data
import pytest
import seed_tables
import yaml
from paper_real_data import DROPPED, FILES, STORY_MODEL, TEST, prepare
from paper_real_page import page
from paper_real_tables import TABLES, jobs_of
from run_records import FILE, Runs

from gfn_runner.data.questions import parse_question
from gfn_runner.runtime.overrides import quoted
from tests.runs import composed

RUNS = [(table, method) for table in TABLES for method in TABLES[table].methods]


def questions(*texts: str) -> str:
    rows = []
    for text in texts:
        query = f"Question: {text} = ? Answer:"
        own = {"num_sol": parse_question(query).value, "str_rationale": f"{text} ="}
        rows.append({"str_query": query, **own})
    return json.dumps(rows)


@pytest.fixture
def source(tmp_path) -> Path:
    """A user's folder, of a few lines a file."""
    folder = tmp_path / "source"
    kinds = ("objective", "subjective")
    lines = [
        json.dumps({"text": f"it is {n}", "label": n % 2, "label_text": kinds[n % 2]})
        for n in range(60)
    ]
    rationales = (f"{a} + {b} - 1" for a in range(8) for b in range(4))
    stories = "".join(f"a{n}.,b.,c.,d.,e.\n" for n in range(4))
    texts = {
        FILES["rationales.json"]: questions(*rationales),
        FILES["answers.json"]: questions("9 + 9 + 9", "8 - 8 - 8 + 1"),
        FILES["subjectivity_10.jsonl"]: "\n".join(lines[:10]),
        FILES["subjectivity_50.jsonl"]: "\n".join(lines[:50]),
        FILES["subjectivity_test.jsonl"]: "\n".join(lines[50:]),
        FILES["prompts.txt"]: "One thing happened. \nAnother did. \nA third.\n",
        FILES["stories.csv"]: f"sentence1,sentence2,sentence3,sentence4,sentence5\n{stories}",
    }
    tests = {
        3: ["1 + 2 - 1", "9 + 9 + 9", "5 - 5 - 5", "5 - 5 - 5"],
        4: ["8 - 8 - 8 + 1", "1 + 1 + 1 + 1"],
        5: ["1 + 1 + 1 + 1 + 1"],
    }
    tool = Path(FILES["answers.json"]).parent
    texts |= {str(tool / f"1digit_{n}_op+-_test.json"): questions(*own) for n, own in tests.items()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_test_questions_that_are_trained_on_are_dropped_and_it_is_said(source, tmp_path):
    prepare(source, [TEST], tmp_path / "data")
    left = [row["str_query"] for row in json.loads((tmp_path / "data" / TEST).read_text())]
    expected = ["5 - 5 - 5", "1 + 1 + 1 + 1", "1 + 1 + 1 + 1 + 1"]
    assert [text.split(": ")[1].split(" =")[0] for text in left] == expected
    note = (tmp_path / "data" / DROPPED).read_text()
    assert "3 at 3 operands, 1 left; 2 at 4 operands, 1 left; 1 at 5 operands, 1 left" in note


@pytest.mark.slow
@pytest.mark.parametrize(("table", "method"), RUNS, ids=map("-".join, RUNS))
def test_every_runs_command_holds(table, method, source, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_real_data, "tune", lambda stories, folder: folder.mkdir())
    prepare(source, TABLES[table].data.values(), tmp_path / "data")
    (tmp_path / table / "gflownet" / "seed0" / "adapter").mkdir(parents=True)
    job = next(job for job in jobs_of(table, tmp_path) if job.name == method)
    config = composed(*job.lines, "lm.name=embedded", "evaluation.encoder=words")
    assert config.task.name == TABLES[table].experiment.removesuffix("_tool")
    assert (config.baseline is None) == method.startswith("gflownet")
    trained = {condition.prompt for condition in config.data.train}
    # The one random number is trained on and asked for.
    if table != "random_number":
        assert not trained & {condition.prompt for condition in config.data.evaluation}


def test_rows_are_of_runs_with_numbers_for_the_columns_and_runs_within_twenty_hours():
    methods = []
    for table in TABLES.values():
        assert {row.method for row in table.rows} <= table.methods.keys()
        assert all(len(row.paper) <= len(table.columns) for row in table.rows)
        methods += table.methods.values()
    assert max(method.minutes for method in methods) <= 60
    assert sum(method.minutes * method.seeds for method in methods) <= 20 * 60


def test_the_model_of_the_stories_is_made_once_and_of_all_runs(source, tmp_path, monkeypatch):
    made: list[Path] = []

    def tune(stories: str, folder: Path) -> None:
        assert Path(stories) == tmp_path / "data" / "stories.csv" and Path(stories).is_file()
        folder.mkdir()
        made.append(folder)

    monkeypatch.setattr(paper_real_data, "tune", tune)
    for _ in range(2):
        prepare(source, TABLES["infilling_stories"].data.values(), tmp_path / "data")
    assert made == [tmp_path / "data" / STORY_MODEL]
    jobs = jobs_of("infilling_stories", tmp_path)
    assert jobs and all(f"lm.name={quoted(str(made[0]))}" in job.lines for job in jobs)


def test_stories_that_cannot_be_read_are_an_error_of_one_line(source, tmp_path):
    (source / FILES["stories.csv"]).write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match=r"--data: .*no column"):
        prepare(source, ["stories.csv", STORY_MODEL], tmp_path)


def leave(folder: Path, table: str, method: str, seed: int, metrics: dict, samples=()) -> None:
    """A finished run as the table's command would leave it."""
    job = next(j for j in jobs_of(table, folder) if (j.name, j.seed) == (method, seed))
    place = job.place(folder / table)
    place.mkdir(parents=True)
    (place / "overrides.yaml").write_text(yaml.safe_dump(["task=there", *job.lines]))
    config = {"task": {"_target_": "some.Task"}, "seed": seed, "trainer": {"max_steps": 5}}
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    (place / "environment.json").write_text(json.dumps({"git": {"commit": "c" * 40}}))
    numbers = {"run/steps": 5, "run/cpu_minutes": 9, **metrics}
    (place / "metrics.json").write_text(json.dumps(numbers))
    (place / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))


def test_the_page_has_what_is_finished_and_the_papers_numbers(tmp_path):
    for seed, share in enumerate((0.1, 0.2, 0.3)):
        metrics = {"final/vote_accuracy/3_operands": share}
        leave(tmp_path, "arithmetic_tool", "gflownet", seed, metrics)
    text = page(tmp_path, Runs(tmp_path, tmp_path / FILE))
    assert "| GFlowNet | 3 of 3 | 20.0 ± 24.8 (95.2 ± 1.3) |" in text
    # Of other overrides: not this table's.
    other = tmp_path / "arithmetic_tool/gflownet/seed2/overrides.yaml"
    other.write_text(yaml.safe_dump(["task=there", "optimizer.lr=1", "seed=2"]))
    text = page(tmp_path, Runs(tmp_path, tmp_path / FILE))
    assert "| GFlowNet | 2 of 3 | 15.0 ± 63.5 (95.2 ± 1.3) |" in text
    assert "| PPO | 0 of 2 | not run (30.6 ± 4.1) |" in text
    assert "Commit cccccccccc;" in text
    assert "| gflownet | 80 | 8 × 3 | 24, 34 in evaluation |" in text
    assert "| 28, 9 |" in text, "minutes, estimated and of computing"
    assert all(f"## {table.title}\n" in text for table in TABLES.values())
    assert "Not run: needs ppo and gflownet above." in text


def test_rationales_stand_beside_each_other_wrong_ones_of_ppo_first(tmp_path):
    def record(key: str, answer: int, text: str, log_reward: float) -> dict:
        own = {"singles": [text], "log_reward": [log_reward]}
        return {"group": "g", "condition": key, "answer": answer, **own}

    ppo = [record("1 + 1", 2, " 1 + 1 = 2", -3.0), record("1 - 9", -8, " 1 - 9", -2.0)]
    ours = [record("1 - 9", -8, " 1 - 9 = -8", -5.0), record("1 + 1", 2, " 1 + 1 = 2", -3.0)]
    leave(tmp_path, "arithmetic", "ppo", 0, {}, ppo)
    leave(tmp_path, "arithmetic", "gflownet", 0, {}, ours)
    text = page(tmp_path, Runs(tmp_path, tmp_path / FILE))
    first = text.index("| 1 - 9 | PPO | `1 - 9` | -2.00 | no |")
    assert first < text.index("| 1 - 9 | GFlowNet | `1 - 9 = -8` | -5.00 | yes |")
    assert first < text.index("| 1 + 1 | PPO | `1 + 1 = 2` | -3.00 | yes |")


@pytest.fixture
def program(monkeypatch, tmp_path):
    """In place of the program: a run leaves its folder; the model is there."""
    calls: list[str] = []

    def run(command, **how):
        place = Path(command[-1].removeprefix("hydra.run.dir="))
        calls.append("/".join(place.parts[-3:]))
        leave(place.parents[2], *place.parts[-3:-1], int(place.name.removeprefix("seed")), {})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(seed_tables.subprocess, "run", run)
    monkeypatch.setattr(paper_real, "SMOLLM2_FOLDER", tmp_path)
    return calls


@pytest.fixture
def make(tmp_path, program, source):
    """The script with this folder of runs, tables and options: the runs that it makes."""

    def main(folder: str, *asked: str, data: Path | None = source) -> list[str]:
        program.clear()
        words = ["--folder", tmp_path / folder, "--write", tmp_path / "docs", "--table", *asked]
        words += ["--data", data] if data else []
        paper_real.main(list(map(str, words)))
        return list(program)

    return main


def test_runs_are_made_once_first_seeds_first_and_listed(tmp_path, make, capsys):
    tables = ["infilling", "continuation"]
    assert not make("runs", *tables, "--list", data=None)
    assert "continuation     decoding         seed 0  not run, about" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    made = make("runs", *tables)
    is_first = [name.endswith("seed0") for name in made]
    assert len(made) == len(paper_real.in_order(tables, tmp_path))
    assert is_first == sorted(is_first, reverse=True) and set(is_first) == {True, False}
    assert "| GFlowNet | 2 of 2 |" in (tmp_path / "docs/README.md").read_text()
    assert not make("runs", *tables)
    make("runs", *tables, "--list", data=None)
    assert "left: 0 minutes" in capsys.readouterr().out


def test_another_machine_makes_only_the_runs_that_are_not_recorded(tmp_path, make):
    file = tmp_path / "docs" / FILE
    made = make("one", "infilling")
    assert len(made) == len(paper_real.in_order(["infilling"], tmp_path))
    page_before, records = (tmp_path / "docs/README.md").read_text(), file.read_text()
    assert str(tmp_path) not in records
    assert not make("other", "infilling", "--jobs", "2")
    assert (tmp_path / "docs/README.md").read_text() == page_before
    # A record of other overrides is of another run.
    file.write_text(records.replace("trainer.max_steps=100", "trainer.x=1"))
    made = make("other", "infilling", "--jobs", "2")
    assert sorted(made) == ["infilling/sft/seed0", "infilling/sft/seed1"]


def test_a_recorded_run_is_made_again_for_one_that_reads_its_folder(tmp_path, make):
    make("one", "arithmetic_tool")
    file = tmp_path / "docs" / FILE
    records = file.read_text().splitlines(keepends=True)
    last = '"method": "sft_on_gflownet", "seed": 2'
    file.write_text("".join(line for line in records if last not in line))
    made = make("other", "arithmetic_tool")
    assert made == ["arithmetic_tool/gflownet/seed2", "arithmetic_tool/sft_on_gflownet/seed2"]


def test_without_data_it_is_refused_in_a_line(tmp_path, source, make, monkeypatch):
    monkeypatch.delenv(paper_real.VARIABLE, raising=False)
    with pytest.raises(SystemExit, match="--data FOLDER"):
        make("runs", "infilling", data=None)
    with pytest.raises(SystemExit, match=r"stories\.csv cannot be read; --data FOLDER"):
        make("runs", "infilling", data=tmp_path / "nothing")
    monkeypatch.setenv(paper_real.VARIABLE, str(source))
    make("runs", "infilling", data=None)
    (source / FILES["stories.csv"]).write_text("other\n")
    with pytest.raises(SystemExit, match=r"another stories\.csv than that of the runs there"):
        make("runs", "infilling", data=None)
