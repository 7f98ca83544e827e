"""The model that scripts/story_model.py fine-tunes on stories."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import story_model
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gfn_runner.data.synthetic.stories import draw_story
from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from gfn_runner.tasks.infilling import StoryData, StoryInfilling


@pytest.fixture
def stories(tmp_path) -> Path:
    rng = random.Random(0)
    file = tmp_path / "stories.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow([f"sentence{n}" for n in range(1, 6)])
        rows.writerows([f"{s}." for s in draw_story(rng).sentences] for _ in range(60))
    return file


def test_stories_become_likelier_and_the_model_loads(stories, tmp_path, monkeypatch):
    learnt: list[str] = []
    encoded = story_model._tokens
    monkeypatch.setattr(story_model, "BATCH", 4)
    monkeypatch.setattr(story_model, "_tokens", lambda t, c: learnt.append(c.key) or encoded(t, c))
    folder = tmp_path / "models" / "stories"
    story_model.tune(str(stories), folder, EMBEDDED_FOLDER, epochs=3, lr=1e-3)
    record = json.loads((folder / story_model.RECORD).read_text())
    assert record["held_out_nats_per_token"] < record["held_out_nats_per_token_before"] - 0.01
    # The task holds out the same stories, and none of them is learnt.
    data = StoryInfilling(data=StoryData(stories=str(stories))).load(0)
    assert record["stories"] == len(data.train) == 30
    assert sorted(learnt[:30]) == sorted(c.key for c in data.train)
    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = encoded(AutoTokenizer.from_pretrained(folder), data.evaluation[0])
    assert torch.isfinite(model(whole[None]).logits).all()
    assert [path.name for path in folder.parent.iterdir()] == ["stories"]


def test_a_story_is_read_as_the_reward_reads_it(stories):
    condition = StoryInfilling(data=StoryData(stories=str(stories))).load(0).train[0]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    text = tokenizer.decode(story_model._tokens(tokenizer, condition), skip_special_tokens=True)
    (term,) = condition.terms
    assert text == f"{term.context} {condition.facts['references'][0]}{term.suffix}"


def test_the_loss_of_a_padded_batch_is_that_of_its_tokens():
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER)
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 500, (length,), generator=rng) for length in (4, 9)]
    alone = [story_model._loss(model, [row]).item() * (len(row) - 1) for row in rows]
    together = story_model._loss(model, rows).item()
    assert together == pytest.approx(sum(alone) / (3 + 8), rel=1e-4)


def test_bad_input_is_an_error_of_one_line_and_nothing_is_written(
    stories, tmp_path, monkeypatch, capsys
):
    new, bad = tmp_path / "models" / "new", tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    cases = {
        "exists already": ["--stories", str(stories), "--folder", str(tmp_path)],
        "no such file": ["--stories", str(tmp_path / "none.csv"), "--folder", str(new)],
        "no column": ["--stories", str(bad), "--folder", str(new)],
        "is not a folder": ["--stories", str(stories), "--folder", str(new), "--base", "/no/model"],
    }
    for said, given in cases.items():
        base = [] if "--base" in given else ["--base", str(EMBEDDED_FOLDER)]
        monkeypatch.setattr("sys.argv", ["story_model.py", *given, *base])
        with pytest.raises(SystemExit) as stop:
            story_model.main()
        assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not new.parent.exists()
