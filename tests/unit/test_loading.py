"""Model folders that cannot be loaded: one problem at their key, before a run folder is made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from gfn_runner.cli.main import main
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.classifier import classifier, label_problems
from gfn_runner.lm.encoder import encoder_problems, load_encoder
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import ENCODER_KEY, LMSettings, sentence_model_problems
from gfn_runner.lm.text_checks import text_problems

from ..tiny_encoders import random_bert, word_tokenizer
from ..tiny_models import character_tokenizer, random_model

CHARACTERS = "\n 0123456789,.abcdefghijklmnopqrstuvwxyz"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"
PRINTED = "this code ran"


def saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder that can be loaded."""
    model = random_model("llama", len(CHARACTERS))
    return saved(model, character_tokenizer(CHARACTERS), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole_classifier(tmp_path_factory) -> Path:
    tokenizer = character_tokenizer()
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_labels=2,
        num_hidden_layers=1, num_attention_heads=2, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    return saved(model, tokenizer, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def whole_encoder(tmp_path_factory) -> Path:
    return saved(random_bert(), word_tokenizer(), tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def model(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def json_with(name: str, **values: object) -> Callable[[Path], None]:
    """These entries in a file of JSON; ``None`` takes one out."""

    def change(folder: Path) -> None:
        path = folder / name
        entries = json.loads(path.read_text()) | values
        for key in [key for key, value in values.items() if value is None]:
            del entries[key]
        path.write_text(json.dumps(entries))

    return change


def config_with(**values: object) -> Callable[[Path], None]:
    return json_with("config.json", **values)


def text_in(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def cut(at: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:at])

    return change


def cut_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-200])


def without_a_shard(folder: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / names[0])
    index = {"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a")
    (folder / "model.safetensors.index.json").write_text("[]")


def only_an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def own_code(folder: Path) -> None:
    auto_map = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}
    config_with(model_type="mine", auto_map=auto_map)(folder)
    (folder / "code.py").write_text(f"print({PRINTED!r})\n")


def own_tokenizer_code(folder: Path) -> None:
    auto_map = {"AutoTokenizer": ["code.MyTokenizer", None]}
    own = {"tokenizer_class": "MyTokenizer", "auto_map": auto_map}
    json_with("tokenizer_config.json", **own)(folder)
    (folder / "code.py").write_text(f"print({PRINTED!r})\n")


BROKEN: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "LFS weights": (text_in("model.safetensors", POINTER), ("Git LFS pointers", "lfs pull")),
    "LFS tokenizer": (text_in("tokenizer.json", POINTER), ("tokenizer.json", "lfs pull")),
    "LFS config": (text_in("config.json", POINTER), ("config.json", "lfs pull")),
    "cut": (cut(-100), ("cannot read the weights", "file not fully covered")),
    "cut header": (cut(60), ("cannot read the weights", "invalid header")),
    "empty": (text_in("model.safetensors", ""), ("cannot read the weights", "header too small")),
    "cut pickle": (cut_pickle, ("cannot read the weights", "corrupted")),
    "shard": (without_a_shard, ("model-00002-of-00002.safetensors",)),
    "index": (broken_index, ("cannot read the weights",)),
    "none": (lambda f: (f / "model.safetensors").unlink(), ("no file named model.safetensors",)),
    "adapter": (only_an_adapter, ("no config.json", "the base model")),
    "shape": (
        config_with(intermediate_size=64),
        ("layers.0.mlp.down_proj.weight has shape (32, 48), the config asks for (32, 64); 5 more",
         "of one model"),
    ),
    "layers": (config_with(num_hidden_layers=3), ("lack", "layers.2.", "random", "download")),
    "other model": (config_with(model_type="gpt2"), ("lack", "random", "of one model")),
    "no JSON": (text_in("config.json", '{"a": '), ("cannot read the config", "valid JSON")),
    "list": (text_in("config.json", "[1]"), ("cannot read the config", "model_type")),
    "no model_type": (config_with(model_type=None), ("cannot read the config", "model_type")),
    "unknown model_type": (
        config_with(model_type="llama9"), ("`llama9`", "version of Transformers is out of date"),
    ),
    "type": (config_with(hidden_size="big"), ("hidden_size", "expected int")),
    "activation": (config_with(hidden_act="sillu"), ("unknown value 'sillu'", "config.json")),
    "tokenizer": (
        json_with("tokenizer.json", pre_tokenizer={"type": "New"}),
        ("cannot read the tokenizer", "untagged enum"),
    ),
    "code": (own_code, ("Python code", "never run", "transformers itself can read")),
    "tokenizer code": (own_tokenizer_code, ("cannot read the tokenizer", "Python code", "never run")),
    "GPTQ": (
        config_with(quantization_config={"quant_method": "gptq", "bits": 4}),
        ("(gptq)", "without quantization", "lm.quantization"),
    ),
    "4-bit": (
        config_with(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("bitsandbytes 4-bit", "fix: lm.quantization=4bit"),
    ),
    "8-bit": (
        config_with(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("bitsandbytes 8-bit", "without quantization"),
    ),
}  # fmt: skip


def is_only(problems: list[Problem], where: str, *words: str) -> bool:
    """One problem at that key, with these words in it."""
    (problem,) = problems
    return problem.where == where and all(word in str(problem) for word in words)


def settings(folder: Path) -> LMSettings:
    return LMSettings(name=str(folder), device="cpu")


def problems(folder: Path) -> list[Problem]:
    """Of ``lm.name=folder``, in the program's two steps."""
    found = list(settings(folder).problems())
    if not found:
        try:
            found = list(text_problems(settings(folder), "\n", [], 8))
        except UserError as error:
            found = error.problems
    return found


@pytest.fixture
def no_code(monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    yield
    messages = capsys.readouterr()
    assert PRINTED not in messages.out + messages.err


@pytest.mark.parametrize("how", BROKEN)
def test_a_folder_that_cannot_be_loaded_is_one_problem(how, model, no_code):
    change, messages = BROKEN[how]
    change(model)
    assert is_only(problems(model), "lm.name", *messages), problems(model)


@pytest.mark.parametrize(("how", "lines"), [("LFS weights", ["dry_run=true"]), ("code", [])])
def test_the_program_says_it_and_makes_no_folder(how, lines, model, tmp_path, capsys, no_code):
    change, words = BROKEN[how]
    change(model)
    output = tmp_path / "runs"
    with pytest.raises(SystemExit) as stopped:
        main(["task=random_number", f"lm.name={model}", f"output={output}", *lines])
    out, said = capsys.readouterr()
    assert stopped.value.code == 2 and not output.exists()
    assert "nothing was started" in said and said.count("lm.name: ") == 1
    assert "Traceback" not in said and PRINTED not in out + said
    assert all(word in " ".join(said.split()) for word in words), said


def test_a_whole_folder_and_one_of_shards_are_accepted(model):
    assert not list(settings(model).problems())
    load(settings(model)).model.get_base_model().save_pretrained(model, max_shard_size="5KB")
    (model / "model.safetensors").unlink(missing_ok=True)
    assert len(list(model.glob("model-*.safetensors"))) > 1
    assert not list(settings(model).problems())


def test_loading_itself_refuses_what_a_check_before_it_has_not_seen(model):
    config_with(num_hidden_layers=3)(model)
    with pytest.raises(UserError, match=r"lm\.name: .* lack .*layers\.2\."):
        load(settings(model))


def test_code_that_a_known_architecture_does_not_need_is_not_run(model, no_code):
    config_with(auto_map={"AutoModelForCausalLM": "code.MyModel"})(model)
    (model / "code.py").write_text(f"print({PRINTED!r})\n")
    assert load(settings(model)).vocab_size == len(CHARACTERS)


def test_a_padding_token_without_an_embedding_changes_nothing(whole, model):
    tokenizer = character_tokenizer(CHARACTERS, pad_token="<pad>")
    tokenizer.save_pretrained(model)
    config_with(pad_token_id=len(CHARACTERS))(model)
    plain, padded = (load(settings(folder)) for folder in (whole, model))
    assert padded.tokenizer.pad_token_id == padded.vocab_size == len(CHARACTERS)
    prompts = [[1, 2, 3, 4], [5]]
    expected, found = plain.prefill(prompts), padded.prefill(prompts)
    torch.testing.assert_close(found.last_logits_NV, expected.last_logits_NV)


def test_an_encoder_whose_padding_token_has_no_embedding(whole_encoder, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = shutil.copytree(whole_encoder, tmp_path / "folder")
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(folder)
    config_with(pad_token_id=tokenizer.pad_token_id)(folder)
    texts = ["the cat sat on the mat .", "a dog"]
    expected, found = (load_encoder(str(f)).encode(texts) for f in (whole_encoder, folder))
    torch.testing.assert_close(found, expected)


WITHOUT_ROW = "a<pad>b"


@pytest.mark.parametrize(
    ("terminator", "strings", "listed"),
    [
        ("<pad>", [], []),
        ("\n", [("the prompt of x", WITHOUT_ROW, "")], []),
        ("\n", [("the prompt of x", "a", WITHOUT_ROW)], []),
        ("\n", [], [WITHOUT_ROW]),
    ],
    ids=["terminator", "prompt", "suffix", "listed"],
)
def test_a_text_with_a_token_that_has_no_embedding(terminator, strings, listed, model):
    character_tokenizer(CHARACTERS, pad_token="<pad>").save_pretrained(model)
    options = {"listed": listed, "listed_max_len": 8}
    found = list(text_problems(settings(model), terminator, strings, 8, **options))
    key = "task" if terminator == "\n" else "task.terminator"
    assert is_only(found, key, "'<pad>'", f"the model has embeddings for {len(CHARACTERS)} tokens")


SHARED = (
    "LFS weights", "cut", "shard", "none", "shape", "unknown model_type", "tokenizer", "code",
    "4-bit",
)  # fmt: skip


def broken(whole: Path, tmp_path: Path, how: str) -> tuple[str, str]:
    folder = shutil.copytree(whole, tmp_path / "folder")
    change, messages = BROKEN[how]
    change(folder)
    return str(folder), "do not fit" if how == "shape" else messages[0]


@pytest.mark.parametrize("how", SHARED)
def test_a_classifier_that_cannot_be_loaded(how, whole_classifier, tmp_path):
    folder, message = broken(whole_classifier, tmp_path, how)
    found = list(label_problems(folder, []))
    assert is_only(found, f"classifier {folder}", message), found


@pytest.mark.parametrize("how", SHARED)
def test_a_sentence_encoder_that_cannot_be_loaded(how, whole_encoder, tmp_path):
    folder, message = broken(whole_encoder, tmp_path, how)
    found = list(sentence_model_problems(folder)) or list(encoder_problems(folder))
    assert is_only(found, ENCODER_KEY, message), found
    with pytest.raises(UserError, match=ENCODER_KEY):
        load_encoder(folder)


def test_a_base_model_is_no_classifier(whole):
    said = ("score.weight", "it would be random", "for another task")
    assert is_only(list(label_problems(str(whole), [])), f"classifier {whole}", *said)
    with pytest.raises(UserError, match="it would be random"):
        classifier(str(whole))


def test_a_classifier_is_no_language_model(whole_classifier):
    said = ("lack", "lm_head.weight", "for another task")
    assert is_only(problems(whole_classifier), "lm.name", *said)
