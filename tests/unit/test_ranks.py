"""What belongs to which rank, and what is impossible; in one process that plays several."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gfn_runner import app
from gfn_runner.callbacks import replay_buffer as replay_module
from gfn_runner.callbacks.replay_buffer import ReplayCallback
from gfn_runner.data import datamodule as data
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer, ReplaySettings
from gfn_runner.distributed import ranks
from gfn_runner.errors import UserError

KEYS = [f"question {number}" for number in range(11)]
CONDITIONS = [Condition(k, k, (Term(k),), weight=float(i < 9)) for i, k in enumerate(KEYS)]


@pytest.fixture
def play(monkeypatch):
    """Make this process believe to be one of several."""

    def become(rank: int, world: int) -> None:
        for module in (ranks, data, replay_module):
            monkeypatch.setattr(module, "rank", lambda: rank)
            monkeypatch.setattr(module, "world", lambda: world)

    return become


@pytest.mark.parametrize("world", [1, 2, 3, 11, 20])
def test_shares_make_up_the_whole_in_order(play, world):
    shares = []
    for rank in range(world):
        play(rank, world)
        shares.append(list(ranks.own_share(KEYS)))
    assert [key for share in shares for key in share] == KEYS
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 11])
def test_every_key_has_one_rank_whatever_the_order(play, world):
    owned, again = [], []
    for rank in range(world):
        play(rank, world)
        owned.append(ranks.own_keys(KEYS))
        again.append(ranks.own_keys(KEYS[::-1]))
    assert sorted(key for own in owned for key in own) == sorted(KEYS)
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    assert [sorted(own) for own in owned] == [sorted(own) for own in again]


def test_the_assignment_is_the_same_in_every_process(play):
    play(1, 3)
    code = (
        "from gfn_runner.distributed import ranks; ranks.rank = lambda: 1; ranks.world = lambda: 3; "
        f"print(ranks.own_keys({KEYS!r}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(ranks.own_keys(KEYS))


def test_where_there_are_fewer_than_ranks_all_are_everyones(play):
    play(2, 4)
    assert data.own_conditions(CONDITIONS[:3]) == CONDITIONS[:3]


def test_batches_of_ranks_are_of_their_own_conditions(play):
    seen, indices = [], []
    for rank in range(2):
        play(rank, 2)
        stream = iter(data.TrainBatches(CONDITIONS, 3, seed=0, first=5))
        batches = [next(stream) for _ in range(40)]
        seen.append({condition.key for batch in batches for condition in batch.conditions})
        indices.append([batch.index for batch in batches[:2]])
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(KEYS[:9])
    assert indices == [[10, 12], [11, 13]]


def buffer_of(keys) -> ReplayBuffer:
    buffer = ReplayBuffer(ReplaySettings())
    for key in keys:
        buffer.add(key, Entry((1, 2), (True, True), (-3.0, -2.0, -1.0)))
    return buffer


def test_a_buffer_is_shared_out_when_it_is_loaded(play, caplog):
    state = {"buffer": buffer_of([*KEYS, "unknown"]).state_dict(), "m_steps": 0}
    kept = []
    for rank in range(3):
        play(rank, 3)
        callback = ReplayCallback(ReplaySettings(), CONDITIONS, n_samples=2, seed=0)
        callback.load_state_dict(state)
        kept += callback.buffer.keys()
        assert set(callback.buffer.keys()) == set(callback.conditions)
    assert sorted(kept) == sorted(KEYS)
    assert "'unknown'" in caplog.text and KEYS[0] not in caplog.text


def test_buffers_become_one_again(monkeypatch):
    callback = ReplayCallback(ReplaySettings(tolerance=0.0), CONDITIONS, n_samples=2, seed=0)
    better = ReplayBuffer(ReplaySettings(tolerance=0.0))
    better.add("question 1", Entry((5,), (True,), (-1.0, -0.5)))
    states = [buffer_of(KEYS[:2]).state_dict(), better.state_dict()]
    monkeypatch.setattr(replay_module, "gathered", lambda _: states)
    whole = ReplayBuffer(ReplaySettings(tolerance=0.0))
    whole.load_state_dict(callback.state_dict()["buffer"])
    assert whole.keys() == KEYS[:2]
    assert [entry.tokens for entry in whole.entries("question 1")] == [(5,), (1, 2)]


@pytest.mark.parametrize("world", [1, 2])
def test_all_ranks_replay_at_the_same_steps(play, world):
    turns = []
    for rank in range(world):
        play(rank, world)
        callback = ReplayCallback(ReplaySettings(probability=0.5), CONDITIONS, n_samples=2, seed=0)
        own = []
        for step in range(30):
            asked = []
            callback.buffer.keys = lambda at_least, asked=asked: asked.append(1) or []
            batch = data.Batch([], index=step * world + rank)
            callback.on_train_batch_start(None, _Module, batch, 0)
            own.append(bool(asked))
        turns.append(own)
    assert all(own == turns[0] for own in turns) and 5 < sum(turns[0]) < 25


class _Module:
    class objective:
        needs_pairs_between = False


@pytest.mark.parametrize(
    ("options", "variables", "where"),
    [
        ({"devices": 2, "nodes": 2}, {}, "trainer.nodes"),
        ({"devices": 3}, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "trainer.devices"),
    ],
)
def test_what_cannot_be_started_is_refused(monkeypatch, options, variables, where):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError) as caught:
        ranks.refuse_impossible(ranks.Processes(**options))
    assert [problem.where for problem in caught.value.problems] == [where]


def test_ranks_of_srun_are_known_and_a_batch_script_is_alone(monkeypatch):
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    wanted = ranks.Processes(2, 2)
    assert ranks.started_rank(wanted) == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="ntasks-per-node"):
        ranks.started_rank(wanted)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert ranks.started_rank(wanted) == 3 and ranks.started_rank(ranks.Processes()) == 0
    ranks.refuse_impossible(wanted)


def test_a_further_process_of_torchrun_makes_no_folder(monkeypatch, tmp_path):
    for key, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    taken = []
    monkeypatch.setattr(app, "train_and_evaluate", lambda config, folder: taken.append(folder))
    app.main(["experiment=tiny/smoke", "trainer.devices=2", f"output={tmp_path}"])
    assert taken == [None] and not list(tmp_path.iterdir())


def test_one_process_needs_nothing(monkeypatch):
    ranks.refuse_impossible(ranks.Processes())
    with ranks.together(ranks.Processes(), None):
        assert (ranks.rank(), ranks.world(), ranks.is_first()) == (0, 1, True)
        assert ranks.gathered("a") == ["a"] and ranks.from_first("b") == "b"
