"""The replay callback with a light module: what enters the buffer, and what a replay step gets."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from gfn_runner.algorithms.base import SamplingSettings
from gfn_runner.algorithms.gflownet import GFlowNet
from gfn_runner.callbacks.demonstrations import fitting_demonstrations, written_demonstrations
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.replay_buffer import Entry
from gfn_runner.data.samples import DemonstrationPrompt
from gfn_runner.data.tools import Calculator
from gfn_runner.data.trajectories import Batch, PolicyScores, StepOutput, Trajectories
from gfn_runner.evaluation.draw import Drawing
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.objectives.losses import JointBalance
from gfn_runner.rewards.reward import log_reward

from ..copied_runs import assert_same
from ..tiny_models import CHARACTERS, random_model, tiny_lm
from ..tokenizer_kinds import metaspace

DOT = CHARACTERS.index(".")
TEXTS = {"a": ("abc", "1+2"), "b": ("ddd",), "c": (), "d": ("1+1=2,3",)}
CONDITIONS = [Condition(key, key, (Term(key, ". c"),), TEXTS[key]) for key in TEXTS]


def fake_module(*, max_len: int = 8, min_len: int = 0, tool=None, adapter: str = "none"):
    lm, rule = tiny_lm("gpt2", adapter=adapter), StringRule(DOT, min_len, max_len)
    module = SimpleNamespace(
        lm=lm,
        rule=rule,
        seed=0,
        in_sft_steps=False,
        reward_temperature=1.0,
        evaluation=EvaluationSettings(),
        sampling=SamplingSettings(n_samples=5),
        algorithm=GFlowNet(JointBalance()),
        tool=lambda: tool,
        constraints=tuple,
        support=lambda condition: (),
        demonstration_prompt=lambda _: None,
        log_reward=lambda conditions, rows: log_reward(lm, conditions, rows, rule),
    )
    module.drawing = lambda conditions: Drawing(lm, module, rule, conditions, module.evaluation)
    return module


def callback(conditions=CONDITIONS, **options) -> ReplayBufferCallback:
    settings = {"probability": 1.0, "tolerance": 0.0} | options
    replay = ReplayBufferCallback(**settings)
    replay.setup(None, SimpleNamespace(conditions=conditions), "fit")  # type: ignore[arg-type]
    return replay


def texts(replay: ReplayBufferCallback, lm, key: str) -> set[str]:
    return {lm.decode(entry.tokens) for entry in replay.buffer.entries(key)}


def assert_own_rewards(replay: ReplayBufferCallback, module, condition: Condition) -> None:
    for entry in replay.buffer.entries(condition.key):
        rows = Trajectories.from_rows([entry.tokens], [entry.is_action], [0])
        expected = module.log_reward([condition], rows)[0].tolist()
        assert entry.log_reward == pytest.approx(expected, abs=1e-4)


# -- demonstrations ---------------------------------------------------------------------------------


def warnings_of(caplog) -> list[str]:
    """Without the status lines that slow work logs."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_demonstrations_seed_the_buffer_with_their_rewards(caplog):
    module, replay = fake_module(), callback()
    replay.on_fit_start(None, module)
    assert replay.buffer.keys() == ["a", "b", "d"] and not warnings_of(caplog)
    for condition in CONDITIONS:
        assert texts(replay, module.lm, condition.key) == set(condition.demonstrations)
        assert_own_rewards(replay, module, condition)
        for entry in replay.buffer.entries(condition.key):
            assert all(map(math.isfinite, entry.log_reward))


@pytest.mark.parametrize(
    ("demonstrations", "bounds", "n_out"),
    [
        (("abc", "1+2", "ddd", "1+1=2,3"), {"max_len": 6}, 1),
        (("abc", "1+2", "ddd", "1+1=2,3"), {"max_len": 7}, 0),
        (("1+1=2,3", "abc", "1+2", "ddd"), {"min_len": 4}, 3),
        (("ab", "ab.cd"), {}, 1),  # the terminator inside
        (("ab", "a" * 80), {}, 1),  # over the context
    ],
)
def test_demonstrations_that_do_not_fit_are_reported_and_left_out(
    demonstrations, bounds, n_out, caplog
):
    module = fake_module(**bounds)
    halves = {"x": demonstrations[::2], "y": demonstrations[1::2]}
    replay = callback([Condition(key, key, (Term(key),), own) for key, own in halves.items()])
    replay.on_fit_start(None, module)
    n = len(demonstrations)
    kept = texts(replay, module.lm, "x") | texts(replay, module.lm, "y")
    assert kept == set(demonstrations[: n - n_out])
    said = f"{n_out} of {n} demonstrations are not strings that the policy can write (task.min_len"
    assert [said in text for text in warnings_of(caplog)] == [True] * (n_out > 0)


def test_the_tools_answers_are_put_into_demonstrations():
    conditions = [Condition("x", "x", (Term("x"),), ("1+2=,3-9=",))]
    module = fake_module(tool=Calculator(), max_len=20)
    rows, n_unfit = fitting_demonstrations(module, conditions)
    assert n_unfit == 0
    assert module.lm.decode(rows.ids(0)) == "1+2= 3,3-9= -6"
    observed = "".join("ta"[a] for a in rows.is_action_BT[0].tolist())
    assert observed == "aaaattaaaaattt"
    replay = callback(conditions)
    # 9 actions: the answers do not count.
    replay.on_fit_start(None, fake_module(max_len=9, tool=Calculator()))
    (entry,) = replay.buffer.entries("x")
    assert entry.is_action == tuple(rows.is_action_BT[0].tolist())


def test_a_resumed_buffer_is_not_seeded_again_and_drops_conditions_that_are_gone(caplog):
    first, again = callback(), callback()
    for key in ("gone", "c"):
        first.buffer.add(key, Entry((1,), (True,), (-1.0, -2.0)))
    again.load_state_dict(first.state_dict())
    again.on_fit_start(None, fake_module())
    assert again.buffer.keys() == ["c"] and len(again.buffer) == 1
    assert "'gone' is not in this run's data" in caplog.text


# -- draws ------------------------------------------------------------------------------------------


def filled(keys: str = "abcd", **options) -> ReplayBufferCallback:
    replay = callback(**options)
    for place, key in enumerate(keys):
        for n in range(4):
            tokens = tuple(range(place, place + n))
            rewards = (*(-1.0 - 10 * place - i for i in range(n)), -20.0 * (place + 1) - n)
            replay.buffer.add(key, Entry(tokens, (True,) * n, rewards))
    return replay


def start(replay: ReplayBufferCallback, keys: str, index: int = 0, *, pairs: bool = False) -> Batch:
    batch = Batch([c for c in CONDITIONS if c.key in keys], index)
    module = SimpleNamespace(
        lm=SimpleNamespace(device=torch.device("cpu")),
        algorithm=SimpleNamespace(needs_pairs_between=pairs),
        sampling=SamplingSettings(n_samples=5),
        seed=0,
        in_sft_steps=False,
    )
    replay.on_train_batch_start(None, module, batch, 0)
    return batch


def test_a_replay_step_has_the_rewards_that_were_stored():
    replay = filled()
    batch = start(replay, "abc")
    draw, rows = batch.replay, batch.replay.trajectories
    assert [c.key for c in batch.conditions] == ["a", "b", "c"]
    places = rows.condition_B.tolist()
    assert places == [0] * 4 + [1] * 4 + [2] * 4  # each has four strings
    assert len({(place, *rows.ids(row)) for row, place in enumerate(places)}) == 12
    assert draw.log_reward_BS.shape == (12, rows.token_BT.shape[1] + 1)
    for row, place in enumerate(places):
        length = int(rows.length_B[row])
        stored = {e.tokens: e for e in replay.buffer.entries(batch.conditions[place].key)}
        entry = stored[tuple(rows.ids(row))]
        assert tuple(draw.log_reward_BS[row, : length + 1].tolist()) == entry.log_reward
        assert draw.log_reward_BS[row, length + 1 :].isneginf().all()
        assert tuple(rows.is_action_BT[row, :length].tolist()) == entry.is_action


def test_a_single_string_is_not_drawn_where_only_pairs_count():
    replay = filled("b")
    replay.buffer.add("a", Entry((1,), (True,), (-1.0, -2.0)))
    assert [c.key for c in start(replay, "a").conditions] == ["a"]
    assert [c.key for c in start(replay, "a", pairs=True).conditions] == ["b"]
    replay.buffer.drop("b")
    assert start(replay, "a", pairs=True).replay is None


def test_every_step_has_equally_many_conditions():
    """Those without a string give way to others from the buffer, each once."""
    replay = filled("bd")
    for index in range(20):
        batch = start(replay, "ab", index)
        assert sorted(c.key for c in batch.conditions) == ["b", "d"]
        assert batch.conditions[0].key == "b"  # what has strings stays
    replaced = {start(filled("bcd"), "a", index).conditions[0].key for index in range(40)}
    assert replaced == {"b", "c", "d"}


def test_an_empty_buffer_makes_no_replay_step():
    assert start(callback(), "ab").replay is None
    batch, trainer = Batch(CONDITIONS[:2], 0), SimpleNamespace(global_step=0)
    callback(beside_fresh=3).on_train_batch_start(trainer, fake_module(), batch, 0)
    assert batch.replay is None


# -- what enters ------------------------------------------------------------------------------------


def step_output(*, from_replay: bool) -> StepOutput:
    rows = Trajectories.from_rows([[1, 2], [3], []], [[True, False], [True], []], [1, 0, 1])
    inf = -math.inf
    rewards = torch.tensor([[-1.0, inf, -3.0], [-2.0, -4.0, inf], [inf, inf, inf]])
    # The tool writes the first row's second token.
    read = torch.tensor([[True, False, True], [True, True, False], [True, False, False]])
    scores = PolicyScores(torch.zeros(3, 2), torch.zeros(3, 3), read)
    return StepOutput(CONDITIONS[:2], rows, rewards, scores, torch.zeros(3, 3), from_replay)


def store(replay: ReplayBufferCallback, output: StepOutput) -> None:
    trainer = SimpleNamespace(global_step=7)
    replay.on_train_batch_end(trainer, None, {"output": output}, Batch([]), 0)


def test_only_fresh_strings_are_stored():
    replay = callback(probability=0.5)
    store(replay, step_output(from_replay=False))
    # Without padding, under their own condition, and never with reward 0.
    assert replay.buffer.entries("a") == [Entry((3,), (True,), (-2.0, -4.0), 7)]
    rewards = (-1.0, -math.inf, -3.0)
    assert replay.buffer.entries("b") == [Entry((1, 2), (True, False), rewards, 7)]
    for from_replay, probability in ((True, 0.5), (False, 0.0)):
        replay = callback(probability=probability)
        store(replay, step_output(from_replay=from_replay))
        assert len(replay.buffer) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_string_of_which_no_loss_could_be_made_is_not_stored(value):
    replay, output = callback(probability=0.5), step_output(from_replay=False)
    output.log_reward_BS[0, 0] = output.log_reward_BS[1, 0] = value
    output.scores.terminable_BS[1, 0] = False  # that one is not looked at
    store(replay, output)
    assert replay.buffer.entries("b") == []
    (entry,) = replay.buffer.entries("a")
    assert entry.tokens == (3,) and entry.score == -4.0
    # Nor is a demonstration.
    module, seeded = fake_module(), callback()
    sound = module.log_reward
    module.log_reward = lambda conditions, rows: sound(conditions, rows).index_fill(
        1, torch.tensor([1]), value
    )
    seeded.on_fit_start(None, module)
    assert len(seeded.buffer) == 0


def test_strings_get_their_rewards_anew_after_an_m_step():
    module, replay = fake_module(adapter="fresh"), callback()
    replay.on_fit_start(None, module)
    keys = replay.buffer.keys()
    before = replay.buffer.entries("a")
    store(replay, step_output(from_replay=False))
    known = {key: texts(replay, module.lm, key) for key in keys}
    assert sorted(replay.buffer.steps()) == [0, 0, 0, 0, 7, 7]
    state = replay.state_dict()
    module.lm.add_answer_adapter(LoraSettings(rank=2, alpha=2), seed=0)
    with torch.no_grad():
        for parameter in module.lm.answer_parameters():
            parameter.add_(0.2)
    module.lm.m_steps = 1
    resumed = callback()
    resumed.load_state_dict(state)
    for one in (replay, resumed):
        one.on_fit_start(None, module)
        assert one.buffer.keys() == keys
        assert {key: texts(one, module.lm, key) for key in keys} == known
        assert_own_rewards(one, module, CONDITIONS[0])
        assert one.buffer.entries("a")[0].score != pytest.approx(before[0].score, abs=0.1)
        assert one.state_dict()["m_steps"] == 1
        # Scored anew they are as old as before.
        assert sorted(one.buffer.steps()) == [0, 0, 0, 0, 7, 7]


def test_the_base_model_writes_demonstrations_where_the_task_asks_for_them():
    module, replay = fake_module(adapter="random"), callback()
    asked = {
        "c": DemonstrationPrompt("ab", 12, "[^Q]+"),
        "a": DemonstrationPrompt("ab", 6, "no such text"),
    }
    module.demonstration_prompt = lambda condition: asked.get(condition.key)
    replay.on_fit_start(None, module)
    written = texts(replay, module.lm, "c")
    assert 0 < len(written) <= 12 and not any("Q" in text for text in written)
    assert texts(replay, module.lm, "a") == set(TEXTS["a"])
    generator = torch.Generator().manual_seed(0)
    arguments = ({"c": asked["c"]}, module.rule)
    by_policy = written_demonstrations(module.lm, *arguments, generator)
    generator.manual_seed(0)
    assert by_policy == written_demonstrations(tiny_lm("gpt2"), *arguments, generator)


def test_what_the_model_wrote_enters_the_buffer_in_its_own_tokens(monkeypatch):
    module, replay = fake_module(), callback()
    ids = (*module.lm.encode("a"), *module.lm.encode("b"))
    monkeypatch.setattr(replay, "_written", lambda module: {"c": (ids,)})
    # As if the tokenizer had one token for the same text.
    monkeypatch.setitem(module.lm._encoded, "ab", module.lm.encode("c"))
    replay.on_fit_start(None, module)
    (entry,) = replay.buffer.entries("c")
    assert entry.tokens == ids


@pytest.mark.parametrize("keep", ["(?s).*", "[^ ]* ?[^ ]*"])
def test_written_demonstrations_are_no_less_probable_than_what_was_drawn(keep):
    tokenizer = metaspace("always")
    lm = LanguageModel(random_model("llama", len(tokenizer), seed=1), tokenizer)
    rule = StringRule(lm.encode(".")[0], 0, 8)
    asked = {"x": DemonstrationPrompt("The cat", 40, keep)}
    (kept,) = written_demonstrations(lm, asked, rule, torch.Generator().manual_seed(0)).values()
    drawn = sample(lm, [lm.encode_prompt("The cat")], 40, rule, torch.Generator().manual_seed(0))
    beginnings = {tuple(drawn.ids(row)[:n]) for row in range(40) for n in range(1, 9)}
    assert kept and set(kept) <= beginnings
    # Most of a random model's strings are spelled as no tokenizer would.
    assert any(lm.encode(lm.decode(ids)) != ids for ids in kept)


def test_samples_of_the_posterior_enter_the_buffer_once_and_join_fresh_strings():
    module = fake_module(max_len=3, adapter="random")
    replay = callback(posterior_draws=40, beside_fresh=3, capacity=10)
    trainer, batch = SimpleNamespace(global_step=5), Batch(CONDITIONS[:2], 0)
    replay.on_train_batch_start(trainer, module, batch, 0)
    assert replay.buffer.keys() == ["a", "b"] and batch.replay.beside_fresh
    assert batch.replay.trajectories.condition_B.tolist() == [0] * 3 + [1] * 3
    for condition in CONDITIONS[:2]:
        entries = replay.buffer.entries(condition.key)
        assert 3 <= len(entries) <= 10
        assert {entry.step for entry in entries} == {5}
        assert_own_rewards(replay, module, condition)
    before = replay.state_dict()
    replay.on_train_batch_start(trainer, module, Batch(CONDITIONS[:2], 1), 0)
    assert_same(replay.state_dict(), before)  # drawn once
    again = callback(posterior_draws=40, beside_fresh=3, capacity=10)
    again.load_state_dict(before)
    again.on_train_batch_start(trainer, module, Batch(CONDITIONS[:3], 2), 0)
    assert again.state_dict()["drawn"] == ["a", "b", "c"]
    assert again.buffer.entries("a") == replay.buffer.entries("a")
