"""Posteriors of tasks on toys that can be listed: log-rewards by hand, and training until exact."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from gfn_runner.data.task import Task
from gfn_runner.evaluation.draw import Drawing, draw_answers
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.objectives.losses import JointBalance, SubTB
from gfn_runner.objectives.phi import phi
from gfn_runner.rewards.reward import log_reward, string_log_reward, terminal_log_reward
from gfn_runner.tasks.arithmetic import ArithmeticData, IntegerArithmetic
from gfn_runner.tasks.continuation import PromptData, SentenceContinuation
from gfn_runner.tasks.contrastive import Contrastive
from gfn_runner.tasks.infilling import StoryData, StoryInfilling
from gfn_runner.tasks.random_number import RandomNumbers
from gfn_runner.tasks.subjectivity import Subjectivity, SubjectivityData
from gfn_runner.tasks.translation import Translation, TranslationData

from ..tiny_models import all_strings, as_trajectories, at_end, tiny_lm

NATS = 2e-4

# log p(text | context) under the base model, nats.
LogP = Callable[[str, str], float]


@dataclass(frozen=True)
class Toy:
    """A task whose strings can be listed.

    Attributes:
        task: all its texts are of ``characters``.
        characters: each is a token.
        terms: of a string, log p of every term before its weight, nats.
        formula: log R out of those and the string, nats.
    """

    task: Task
    characters: str
    terms: Callable[[LogP, str], list[float]]
    formula: Callable[[list[float], str], float]

    def rule(self, lm):
        return string_rule(lm, self.task, self.task.max_len)

    def strings(self, lm) -> list[tuple[int, ...]]:
        return all_strings(lm.vocab_size, self.rule(lm))


def random_number(folder) -> Toy:
    table = {" 0": 0.09, " 1": 0.42, " 2": 0.49}  # (0.3 + 0.7)²
    return Toy(
        RandomNumbers(
            prompt="n:",
            low=0,
            high=2,
            distribution="binomial",
            parameter=0.7,
            penalty=2.5,
            max_len=2,
        ),
        " 012n:.",
        lambda log_p, z: [],
        lambda terms, z: math.log(table[z]) if z in table else -2.5 - len(z) * math.log(7),
    )


def prompts(folder) -> PromptData:
    for name, text in (("train.txt", "ab a\n"), ("test.txt", "bb\n")):
        (folder / name).write_text(text)
    return PromptData(str(folder / "train.txt"), str(folder / "test.txt"))


def continuation(folder) -> Toy:
    (folder / "toy_judge.py").write_text("def well_ended(text):\n    return text.endswith('a')\n")
    return Toy(
        SentenceContinuation(
            data=prompts(folder), max_len=3, illegal=("b", "z"), illegal_penalty=1.25,
            validator="toy_judge.well_ended", validator_penalty=0.75,
        ),
        "ab .",
        lambda log_p, z: [log_p("ab a", z + ".")],
        lambda terms, z: terms[0] - 1.25 * z.count("b") - 0.75 * (not z.endswith("a")),
    )  # fmt: skip


def contrastive(folder) -> Toy:
    return Toy(
        Contrastive(
            data=prompts(folder), max_len=3, illegal=("b",), illegal_penalty=0.5,
            alpha=1.2, beta=-0.4, neutral_context="b ",
        ),
        "ab .",
        lambda log_p, z: [log_p("ab a", z + "."), log_p("b ", z + ".")],
        lambda terms, z: 1.2 * terms[0] - 0.4 * terms[1] - 0.5 * z.count("b"),
    )  # fmt: skip


def translation(folder) -> Toy:
    for name, source in (("train.tsv", "ba"), ("test.tsv", "ab")):
        (folder / name).write_text(f"source\ttarget\n{source}\tb\n")
    data = TranslationData(str(folder / "train.tsv"), str(folder / "test.tsv"))
    return Toy(
        Translation(data=data, template="a: {source} b:", terminator="\n", max_len=3),
        "ab: \n",
        lambda log_p, z: [log_p("a: ba b:", z + "\n")],
        lambda terms, z: terms[0],
    )


def infilling(folder) -> Toy:
    header = ",".join(f"sentence{number}" for number in range(1, 6))
    for name, row in (("train.csv", "a.,bb.,b a.,b.,ab."), ("test.csv", "b.,b.,b.,a.,a.")):
        (folder / name).write_text(f"{header}\n{row}\n")
    data = StoryData(str(folder / "train.csv"), str(folder / "test.csv"))
    return Toy(
        StoryInfilling(data=data, template="{ending}|{beginning}|", max_len=3),
        "ab |.",
        # The policy reads the end first; the reward reads the story in its order.
        lambda log_p, z: [log_p("a. bb. b a.", z + ". ab.")],
        lambda terms, z: terms[0],
    )


def subjectivity(folder) -> Toy:
    for name, text in (("train", "ab"), ("test", "ba")):
        record = {"text": text, "label": 0, "label_text": "a"}
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    data = SubjectivityData(str(folder / "train.jsonl"), str(folder / "test.jsonl"), n_train=1)
    characters = "ab |,."

    def formula(terms: list[float], z: str) -> float:
        # The penalty falls where the wrong label is likelier after the rationale.
        wrong = plain(characters)("ab|", z + ", b.")
        return terms[0] - 2.0 * (wrong > terms[0])

    return Toy(
        Subjectivity(
            data=data, labels=("a", "b"), prompt="{text}|", answer=", {label}.",
            wrong_label_penalty=2.0, max_len=3,
        ),
        characters,
        lambda log_p, z: [log_p("ab|", z + ", a.")],
        formula,
    )  # fmt: skip


def arithmetic(folder) -> Toy:
    def entry(text: str, value: int) -> dict[str, object]:
        asked = f"Question: {text} = ? Answer:"
        steps = f"{text} = {value}"
        return {"str_query": asked, "num_sol": value, "str_rationale": steps}

    files = {
        "rationales": [entry("1 + 2", 3), entry("3 - 1", 2)],
        "answers": [entry("2 + 2", 4)],
        "test": [entry("1 + 1", 2)],
    }
    for name, entries in files.items():
        (folder / f"{name}.json").write_text(json.dumps(entries))
    data = ArithmeticData(
        str(folder / "rationales.json"), str(folder / "answers.json"), (str(folder / "test.json"),)
    )
    # The other question with a rationale, worked out; then the one that is asked.
    context = "Question: 3 - 1 = ? Answer: 3 - 1 = 2. The answer is 2.\nQuestion: 1 + 2 = ? Answer:"
    return Toy(
        IntegerArithmetic(data=data, n_demonstrations=1, max_len=2),
        "".join(sorted({*context, *" 4"})),
        lambda log_p, z: [log_p(context, z + ". The answer is 3.")],
        lambda terms, z: terms[0],
    )


TOYS = (
    random_number,
    continuation,
    contrastive,
    translation,
    infilling,
    subjectivity,
    arithmetic,
)


@pytest.fixture
def toy(request, tmp_path, monkeypatch) -> Toy:
    monkeypatch.syspath_prepend(tmp_path)  # for a toy's own validator
    return request.param(tmp_path)


def plain(characters: str) -> LogP:
    """Sums of log-softmax of one whole forward without a cache, on the model without an adapter."""
    lm = tiny_lm(characters=characters)

    @torch.no_grad()
    def log_p(context: str, text: str) -> float:
        ids = [characters.index(character) for character in context + text]
        log_p_TV = lm.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        return sum(log_p_TV[at - 1, ids[at]].item() for at in range(len(context), len(ids)))

    return log_p


def by_hand(toy: Toy, strings) -> dict[tuple[int, ...], tuple[float, list[float]]]:
    """log R and terms of every string."""
    log_p, rewards = plain(toy.characters), {}
    for ids in strings:
        text = "".join(toy.characters[token] for token in ids)
        terms = toy.terms(log_p, text)
        rewards[ids] = (toy.formula(terms, text), terms)
    return rewards


@pytest.mark.parametrize("packed", ["always", "never"])
@pytest.mark.parametrize("toy", TOYS, indirect=True)
def test_the_log_reward_of_every_string_is_its_formula(toy, packed):
    lm = tiny_lm(characters=toy.characters, adapter="random", packed_rewards=packed)
    strings, condition = toy.strings(lm), toy.task.load(0).train[0]
    assert len(strings) >= 40
    rows, expected = as_trajectories(strings), by_hand(toy, strings)
    arguments = ([condition], rows, toy.rule(lm), toy.task.constraints())
    log_reward_BS = log_reward(lm, *arguments)
    for row, ids in enumerate(strings):
        values = [expected[ids[:state]][0] for state in range(len(ids) + 1)]
        assert log_reward_BS[row, : len(values)].tolist() == pytest.approx(values, abs=NATS)
        assert log_reward_BS[row, len(values) :].isneginf().all()
    log_reward_B, log_p_BK = string_log_reward(lm, *arguments)
    for row, ids in enumerate(strings):
        value, terms = expected[ids]
        assert log_reward_B[row].item() == pytest.approx(value, abs=NATS)
        assert log_p_BK[row].tolist() == pytest.approx(terms, abs=NATS)
    at_ends_BS = terminal_log_reward(lm, *arguments)
    is_end_BS = torch.arange(log_reward_BS.shape[1]) == rows.length_B[:, None]
    torch.testing.assert_close(at_ends_BS[is_end_BS], log_reward_BS[is_end_BS], atol=NATS, rtol=0)
    assert at_ends_BS[~is_end_BS].isneginf().all()


def test_the_ending_after_a_middle_is_scored_as_text(tmp_path):
    """By the whole story's forward, and under the base model, not the policy."""
    toy = infilling(tmp_path)
    lm, condition = tiny_lm(characters=toy.characters, adapter="random"), toy.task.load(0).train[0]
    options = EvaluationSettings(votes=0, singles=12)
    generator = torch.Generator().manual_seed(0)
    drawing = Drawing(lm, toy.task, toy.rule(lm), [condition], options)
    samples = draw_answers(drawing, generator, at=5.0)
    texts, log_p = samples[0].singles, plain(toy.characters)
    assert len(set(texts)) > 5
    expected = [log_p(f"{condition.terms[0].context}{text}.", " ab.") for text in texts]
    found = toy.task.metrics(samples)["ending_log_prob/train"]
    assert found == pytest.approx(sum(expected) / len(expected), abs=NATS)


def test_two_tables_after_one_prompt_are_two_posteriors():
    lm = tiny_lm(characters=" 012n:.")
    for parameter in (0.7, 0.2):
        task = RandomNumbers(
            prompt="n:", low=0, high=1, distribution="binomial", parameter=parameter, max_len=2
        )
        rows = as_trajectories([lm.encode(" 0"), lm.encode(" 1")])
        log_r_BS = log_reward(
            lm, task.load(0).train, rows, string_rule(lm, task, 2), task.constraints()
        )
        assert at_end(log_r_BS, rows).exp().tolist() == pytest.approx([1 - parameter, parameter])


def trained(toy: Toy, objective, temperature: float, steps: int):
    """A policy trained on all strings; its law and φ at the end of each."""
    lm = tiny_lm(characters=toy.characters, adapter="fresh", rank=16)
    rows, rule = as_trajectories(toy.strings(lm)), toy.rule(lm)
    condition = toy.task.load(0).train[0]
    log_reward_BS = log_reward(lm, [condition], rows, rule, toy.task.constraints())
    optimizer = torch.optim.Adam(lm.trainable().values(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prompt = [lm.encode_prompt(condition.prompt)]

    def forward():
        scores = score_policy(lm, prompt, rows, rule)
        return scores, phi(scores, log_reward_BS, temperature)

    def law(scores) -> torch.Tensor:
        return (scores.log_pf_BT.sum(1) + at_end(scores.log_pf_stop_BS, rows)).exp()

    before_B = law(forward()[0]).detach()
    for _ in range(steps):
        scores, phi_BS = forward()
        loss = objective(phi_BS, scores.terminable_BS, rows.length_B, rows.condition_B)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.trainable().values(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        scores, phi_BS = forward()
    return before_B, law(scores), at_end(phi_BS, rows)


@pytest.mark.parametrize(
    ("toy", "temperature", "objective", "steps"),
    [
        (random_number, 1.0, JointBalance(), 200),
        (continuation, 0.8, SubTB(), 200),
        pytest.param(contrastive, 1.0, JointBalance(), 200, marks=pytest.mark.slow),
        (infilling, 1.0, JointBalance(), 200),
        pytest.param(subjectivity, 2.0, JointBalance(), 250, marks=pytest.mark.slow),
    ],
    indirect=["toy"],
)
def test_a_trained_policy_samples_from_the_posterior(toy, temperature, objective, steps):
    before_B, law_B, phi_B = trained(toy, objective, temperature, steps)
    strings = toy.strings(tiny_lm(characters=toy.characters))
    rewards = torch.tensor([value for value, _ in by_hand(toy, strings).values()])
    target_B, log_z = (rewards / temperature).softmax(0), (rewards / temperature).logsumexp(0)
    assert law_B.sum().item() == pytest.approx(1, abs=1e-4)
    assert 0.5 * (before_B - target_B).abs().sum() > 0.1
    assert 0.5 * (law_B - target_B).abs().sum() < 0.02
    torch.testing.assert_close(phi_B @ target_B, log_z, atol=0.05, rtol=0)
