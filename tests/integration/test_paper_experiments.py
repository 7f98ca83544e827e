"""The paper's experiments: their settings, and two steps of each on a tiny model of its architecture.

What stands in ``PAPER`` was read in the authors' released code, apart from the yaml files (whose comments
say where), so that a setting that an experiment inherits from a group unawares is found.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.optim import AdamW
from transformers import AutoTokenizer

from gfn_runner.algorithms.schedules import linear_schedule
from gfn_runner.config.run_config import RunConfig
from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from tests.runs import CONF, composed, metrics_of, run, steps_of
from tests.slow import mostly_slow
from tests.tiny_models import random_model

# Architectures by model: transformers' names.
ARCHITECTURES = {
    "gpt2-xl": "gpt2",
    "gpt2-large": "gpt2",
    "nlpcloud/instruct-gpt-j-fp16": "gptj",
}


@dataclass(frozen=True)
class Settings:
    """Of one experiment.

    Attributes:
        lora: rank, alpha and targets.
        batch: samples of the one condition, and batches a step.
        rate: learning rate, warm-up, whether it falls to 0, weight decay and AdamW's betas.
        steps: of the optimizer.
        lengths: of a string, in training and evaluation.
        temperature: of the reward: start, end and the steps between.
        behaviour: shares of on-policy, tempered and replayed batches.
        buffer: capacity and tolerance; ``None`` where there is none.
    """

    model: str
    lora: tuple[int, int, set[str]]
    batch: tuple[int, int]
    rate: tuple[float, int, bool, float, tuple[float, float]]
    steps: int
    lengths: tuple[int, int]
    temperature: tuple[float, float, int]
    behaviour: tuple[float, float, float]
    buffer: tuple[int, float] | None


ARITHMETIC = Settings(
    model="nlpcloud/instruct-gpt-j-fp16",
    lora=(64, 16, {"k_proj", "v_proj", "q_proj", "out_proj"}),
    batch=(16, 32),
    rate=(1e-4, 20, False, 0.01, (0.9, 0.999)),
    steps=2000,
    lengths=(18, 21),
    temperature=(1.1, 0.5, 150),
    behaviour=(0.25, 0.5, 0.25),
    buffer=(50, 0.25),
)
PAPER = {
    "arithmetic": ARITHMETIC,
    "arithmetic_tool": ARITHMETIC,
    "continuation": Settings(
        model="gpt2-xl",
        lora=(64, 16, {"c_attn", "c_proj", "c_fc"}),
        batch=(8, 32),
        rate=(1e-4, 20, False, 0.01, (0.9, 0.999)),
        steps=300 * 30,
        lengths=(30, 30),
        temperature=(1.0, 0.8, 750),
        behaviour=(0.25, 0.5, 0.25),
        buffer=(50, 0.25),
    ),
    "infilling": Settings(
        model="gpt2-large",
        lora=(64, 16, {"c_attn", "c_proj"}),
        batch=(64, 16),
        rate=(1e-4, 20, False, 0.01, (0.9, 0.999)),
        steps=2000,
        lengths=(25, 25),
        temperature=(1.1, 0.85, 100),
        behaviour=(0.25, 0.5, 0.25),
        buffer=(50, 0.25),
    ),
    "random_number": Settings(
        model="nlpcloud/instruct-gpt-j-fp16",
        lora=(512, 32, {"k_proj", "v_proj"}),
        batch=(8, 8),
        rate=(5e-4, 10, True, 0.01, (0.9, 0.999)),
        steps=2560,
        lengths=(5, 5),
        temperature=(1.0, 1.0, 0),
        behaviour=(1.0, 0.0, 0.0),
        buffer=None,
    ),
    "subjectivity": Settings(
        model="nlpcloud/instruct-gpt-j-fp16",
        lora=(256, 16, {"k_proj", "v_proj"}),
        batch=(64, 8),
        rate=(5e-4, 100, True, 0.01, (0.9, 0.99)),
        steps=1000,
        lengths=(5, 5),
        temperature=(1.2, 1.0, 150),
        behaviour=(0.25, 0.25, 0.5),
        buffer=(100, 0.1),
    ),
}

# Of what the authors compare with: experiment whose other settings it has, LoRA, rate and warm-up, steps,
# strings a step.
BASELINES: dict[str, tuple[str, str, tuple[int, int, set[str]], tuple[float, int], int, int]] = {
    "random_number_ppo": (
        "random_number", "PPO", (512, 32, {"k_proj", "v_proj"}), (1.41e-5, 0), 256 * 10, 8,
    ),
    "random_number_sft": (
        "random_number", "SFT", (512, 32, {"k_proj", "v_proj"}), (5e-4, 10), 10 * 32, 64,
    ),
    "subjectivity_sft": (
        "subjectivity", "SFT", (256, 16, {"k_proj", "v_proj"}), (1e-3, 20), 100, 32 * 8,
    ),
}  # fmt: skip

# All that a run here has less of than the experiment; data and model come on top.
LESS = (
    "trainer.max_steps=2",
    "trainer.accumulate_grad_batches=2",
    "trainer.log_every_n_steps=1",
    "num_threads=1",
    "sampling.n_samples=4",
    "logger=local",
    "callbacks.progress.show=none",
    "callbacks.evaluation.every_n_steps=0",
    "evaluation.final=2",
    "evaluation.singles=2",
    "evaluation.baseline_shots=[0]",
    "evaluation.baseline_temperatures=[]",
    "evaluation.resampled=0",
    "evaluation.bertscore=null",
    "callbacks/report=off",
)
LESS_OF_ONE = {
    "subjectivity": ["task.n_demonstrations=2", "em.m_steps=2", "em.m_batch=4"],
    "random_number": ["evaluation.singles=50"],
}


def paper(name: str, *lines: str) -> RunConfig:
    return composed(f"experiment=paper/{name}", *lines)


def rate_of(config: RunConfig) -> tuple[float, int, bool, float, tuple[float, float]]:
    """As in :class:`Settings`."""
    optimizer, scheduler = config.optimizer, config.scheduler
    assert optimizer.func is AdamW and scheduler.func is linear_schedule
    given = optimizer.keywords
    schedule = (scheduler.keywords["warmup_steps"], scheduler.keywords["decay"])
    return (given["lr"], *schedule, given["weight_decay"], tuple(given["betas"]))


def test_no_experiment_is_missed():
    assert {path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml")} == {
        *PAPER,
        *BASELINES,
    }


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_those_of_the_authors(name):
    config = paper(name)
    lora, sampling, trainer = config.lm.lora, config.sampling, config.trainer
    replay, temperature = config.callbacks["replay_buffer"], config.reward_temperature
    fresh = 1 - replay.probability
    found = Settings(
        model=config.lm.name,
        lora=(lora.rank, lora.alpha, set(lora.targets or ())),
        batch=(sampling.n_samples, trainer.arguments["accumulate_grad_batches"]),
        rate=rate_of(config),
        steps=trainer.arguments["max_steps"],
        lengths=(config.task.max_len, config.task.eval_max_len),
        temperature=(temperature.start, temperature.end, temperature.steps),
        behaviour=(
            pytest.approx(fresh * (1 - sampling.exploration_probability), abs=1e-3),
            pytest.approx(fresh * sampling.exploration_probability, abs=1e-3),
            replay.probability,
        ),
        buffer=(replay.buffer.capacity, replay.buffer.tolerance) if replay.probability else None,
    )
    assert found == PAPER[name]
    assert type(config.objective).__name__ == "SubTB" and config.objective.lam == 1
    assert sampling.n_conditions == 1 and not lora.output_layer
    assert (sampling.min_temperature, sampling.max_temperature) == (0.5, 2.0)
    assert config.task.tool() is None or name == "arithmetic_tool"


def test_the_m_step_is_that_of_the_authors():
    em = paper("subjectivity").em
    assert (em.rounds, em.m_steps, em.m_lr, em.m_batch) == (1, 100, 1e-4, 32 * 8)
    assert (em.lora.rank, em.lora.alpha, em.lora.targets) == (256, 16, ("k_proj", "v_proj"))


def run_small(name: str, shares_with: str, folder: Path) -> Path:
    """Two steps of an experiment on a tiny model of the same architecture."""
    model = tiny_model(folder / "model", ARCHITECTURES[PAPER[shares_with].model])
    more = [*data_of(shares_with, folder), *LESS_OF_ONE.get(shares_with, [])]
    return run(folder / "run", f"experiment=paper/{name}", f"lm.name={model}", *more, base=LESS)


# One of each architecture, and the M-step.
@pytest.mark.parametrize(
    "name", mostly_slow(PAPER, ["infilling", "arithmetic_tool", "subjectivity"])
)
def test_two_steps_of_a_tiny_model_of_the_same_architecture(name, tmp_path):
    expected, folder = PAPER[name], run_small(name, name, tmp_path)
    metrics = metrics_of(folder)
    assert metrics["run/steps"] == 2 and any(key.startswith("final/") for key in metrics)
    assert adapter_of(folder / "adapter") == expected.lora
    if name == "subjectivity":
        assert adapter_of(folder / "answer_adapter") == expected.lora

    trained = steps_of(folder)
    rate, warmup = expected.rate[:2]
    start, end, steps = expected.temperature
    assert [record["step"] for record in trained] == [1, 2]
    assert [r["train/lr"] for r in trained] == pytest.approx([rate / warmup, 2 * rate / warmup])
    second = start + (end - start) / steps if steps else end
    assert [r["train/reward_temperature"] for r in trained] == pytest.approx([start, second])
    if expected.buffer is None:
        assert [r["train/from_replay"] for r in trained] == [0, 0]
        assert [r["train/exploration_temperature"] for r in trained] == [1, 1]


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_the_settings_of_the_authors(name):
    shares_with, label, lora, rate, steps, strings = BASELINES[name]
    config, other = paper(name), paper(shares_with)
    assert config.baseline is not None and config.baseline.label == label
    adapter = config.lm.lora
    assert (adapter.rank, adapter.alpha, set(adapter.targets or ())) == lora
    assert rate_of(config)[:2] == rate
    assert rate_of(config)[4] == rate_of(other)[4] and config.lm.name == other.lm.name
    sampling = config.sampling
    arguments = config.trainer.arguments
    assert arguments["max_steps"] == steps
    batches = arguments["accumulate_grad_batches"]
    assert sampling.n_conditions * sampling.n_samples * batches == strings
    # The rest is the experiment's: data, lengths, evaluation.
    assert config.values["task"] == other.values["task"] and config.evaluation == other.evaluation
    every = [made.callbacks["evaluation"].every_n_steps for made in (config, other)]
    assert every[0] == every[1]
    if label == "PPO":
        assert (config.baseline.epochs, config.baseline.kl_weight) == (10, 0.2)


@pytest.mark.parametrize("name", mostly_slow(BASELINES, ["random_number_ppo"]))
def test_two_steps_of_a_baseline(name, tmp_path):
    folder = run_small(name, BASELINES[name][0], tmp_path)
    metrics = metrics_of(folder)
    assert metrics["run/steps"] == 2 and any(key.startswith("final/") for key in metrics)
    assert adapter_of(folder / "adapter") == BASELINES[name][2]


def tiny_model(folder: Path, architecture: str) -> Path:
    """Random weights; the embedded model's tokenizer, byte-pair encoding as GPT-2's and GPT-J's."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    end = tokenizer.eos_token_id
    model = random_model(
        architecture, len(tokenizer), n_positions=512, bos_token_id=end, eos_token_id=end
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_of(folder: Path) -> tuple[int, int, set[str]]:
    """Rank, alpha and targets of a saved adapter."""
    saved = json.loads((folder / "adapter_config.json").read_text())
    return saved["r"], saved["lora_alpha"], set(saved["target_modules"])


# -- data in the form in which a user gives them, under the keys that the experiments name -----------


def data_of(name: str, folder: Path) -> list[str]:
    """Tiny files, and the lines that give them."""
    if name.startswith("arithmetic"):
        return arithmetic_files(folder, calculator=name == "arithmetic_tool")
    if name == "continuation":
        texts = ["Tom had a red ball.", "Anna went home.", "It was late. Max slept.", "Mia ran."]
        (folder / "prompts.txt").write_text("\n".join(texts) + "\n")
        return [f"task.data.prompts={folder / 'prompts.txt'}"]
    if name == "infilling":
        write_stories(folder / "stories.csv", ["pear", "cake", "kite"])
        write_stories(folder / "test.csv", ["bell", "drum"])
        return [
            f"task.data.stories={folder / 'stories.csv'}",
            f"task.data.test={folder / 'test.csv'}",
        ]
    if name == "subjectivity":
        write_reviews(folder / "train.jsonl", ["a king meets a sailor", "the acting is clumsy"])
        write_reviews(folder / "test.jsonl", ["a doctor saves a farmer", "a script full of charm"])
        return [
            f"task.data.train={folder / 'train.jsonl'}",
            f"task.data.test={folder / 'test.jsonl'}",
        ]
    return []


def arithmetic_files(folder: Path, *, calculator: bool) -> list[str]:
    sums = [(1, 2, 3), (4, 1, 2), (7, 0, 5), (6, 3, 3), (2, 2, 9), (8, 1, 1)]
    answers, test = [(5, 5, 1), (3, 1, 2)], [(9, 4, 4), (0, 1, 6)]
    files = {"rationales": sums, "answers": answers, "test": test}
    for name, rows in files.items():
        entries = [question(*row, calculator=calculator) for row in rows]
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return [
        f"task.data.rationales={folder / 'rationales.json'}",
        f"task.data.answers={folder / 'answers.json'}",
        f"task.data.test=[{folder / 'test.json'}]",
    ]


def question(a: int, b: int, c: int, *, calculator: bool) -> dict[str, object]:
    results = ("", "") if calculator else (f" {a + b}", f" {a + b - c}")
    return {
        "str_query": f"Question: {a} + {b} - {c} = ? Answer:",
        "num_sol": a + b - c,
        "str_rationale": f"{a} + {b} ={results[0]}, {a + b} - {c} ={results[1]}",
    }


def write_stories(path: Path, things: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"sentence{number}" for number in range(1, 6)])
        for thing in things:
            begun = [f"Max wanted a {thing}.", "But he had lost it.", "So he went to the barn."]
            writer.writerow(
                [*begun, f"He found the {thing} there.", f"Max played with the {thing}."]
            )


def write_reviews(path: Path, texts: list[str]) -> None:
    labels = ["objective", "subjective"]
    rows = [
        {"text": text, "label": number, "label_text": labels[number]}
        for number, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
