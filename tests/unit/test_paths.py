"""Local paths of a config: absolute, whatever directory it is used from later."""

from __future__ import annotations

import json

import pytest

from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from gfn_runner.runtime.local_paths import LocalPath
from gfn_runner.runtime.overrides import absolute_lines
from gfn_runner.tasks.user_posterior import PosteriorData, UserPosterior

from ..command_line import configs

RECORD = {"prompt": "a", "constraint": {"classifier": {"name": "labels", "label": "good"}}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a model, data and a folder called like a word of the settings."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "mymodel").symlink_to(EMBEDDED_FOLDER)
    (here / "embedded").mkdir()
    (here / "own.jsonl").write_text(json.dumps({"prompt": "a", "terms": [{"context": "a"}]}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(here)
    return here


def test_what_is_a_path_and_what_is_none(place, monkeypatch):
    path = LocalPath(("embedded",))
    assert path.absolute("mymodel") == path.absolute("./mymodel/") == str(place / "mymodel")
    monkeypatch.setenv("HOME", str(place))
    assert path.absolute("~/mymodel") == str(place / "mymodel")
    # Nothing lies there: a path by its form, a hub id, a word, a data set, no name at all.
    assert path.absolute("./none") == str(place / "none")
    for name in ("gpt2", "owner/model", "embedded", "hub:owner/name:train", "", "x" * 5000):
        assert path.absolute(name) == name


def test_every_key_that_names_a_path_is_stored_absolute(place):
    lines = [
        "task=posterior", "task.data.train=own.jsonl", "lm.name=mymodel",
        "evaluation.encoder=mymodel", "evaluation.bertscore=mymodel",
    ]  # fmt: skip
    (config,) = configs(*lines)
    saved = config.values
    assert saved["task"]["data"]["train"] == str(place / "own.jsonl")
    models = (saved["lm"]["name"], saved["evaluation"]["encoder"])
    assert models == (str(place / "mymodel"),) * 2
    # A folder of that name does not take the place of the embedded model.
    assert configs("lm.name=embedded")[0].lm.name == "embedded"


def test_lines_mean_the_same_from_another_directory(place, tmp_path, monkeypatch):
    (place / "m2").symlink_to(EMBEDDED_FOLDER)
    model, data = place / "mymodel", place / "own.jsonl"
    lines = ["task=posterior", "task.data.train=own.jsonl", "lm.name=mymodel,m2"]
    made = absolute_lines(lines, [config.values for config in configs("-m", *lines)])
    assert f"task.data.train='{data}'" in made and f"lm.name='{model}','{place / 'm2'}'" in made
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = configs("-m", *made)
    assert [job.lm.name for job in again] == [str(model), str(place / "m2")]
    assert absolute_lines(made, [config.values for config in again]) == made


def test_a_path_of_a_yaml_file_gets_a_line_of_its_own(place):
    (place / "conf/lm").mkdir(parents=True)
    (place / "conf/lm/mine.yaml").write_text("name: mymodel\n")
    (config,) = configs("--config-dir", "conf", "lm=mine", "seed=1")
    made = absolute_lines(["lm=mine", "seed=1"], [config.values])
    assert made == ["lm=mine", "seed=1", f"++lm.name='{place / 'mymodel'}'"]
    in_a_list = {"t": {"a": [str(place / "own.jsonl"), "hub:a:b"]}}
    line = f"++t.a=['{place / 'own.jsonl'}','hub:a:b']"
    for lines in (["++t.a=[own.jsonl,'hub:a:b']"], []):
        assert absolute_lines(lines, [in_a_list]) == [line]


def test_lines_without_a_path_stay_as_they_were_written(place):
    lines = ["+x='a b'", "lm.name=gpt2", "task.data.test=[]", "~task.data.train", "n=1,2"]
    values = {"lm": {"name": "gpt2"}, "task": {"data": {"test": []}}, "output": "/outputs"}
    assert absolute_lines(lines, [values]) == lines


@pytest.mark.parametrize("at_file", [True, False])
def test_a_classifier_of_a_line_is_looked_for_beside_its_file_first(
    place, tmp_path, monkeypatch, at_file
):
    folder = tmp_path / "data"
    (folder / "labels" if at_file else place / "labels").mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / "own.jsonl").write_text(json.dumps(RECORD))
    data = UserPosterior(data=PosteriorData(train="../data/own.jsonl")).load(0)
    found = data.train[0].facts["constraint"].classifier.name
    assert found == str((place / "../data/labels" if at_file else place / "labels").absolute())
