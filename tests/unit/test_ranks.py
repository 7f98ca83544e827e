"""What belongs to which rank, and what is impossible; in one process that plays several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gfn_runner.callbacks import replay_buffer as replay_module
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.cli.main import main
from gfn_runner.data import datamodule as data
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer
from gfn_runner.distributed import launch, ranks
from gfn_runner.errors import UserError

KEYS = [f"question {number}" for number in range(11)]
CONDITIONS = [Condition(k, k, (Term(k),), weight=float(i < 9)) for i, k in enumerate(KEYS)]


@pytest.fixture
def play(monkeypatch):
    """Make this process believe to be each rank of several in turn, or one of them."""

    def become(world: int, only: int | None = None) -> Iterator[int]:
        for number in range(world) if only is None else [only]:
            for module in (ranks, data, replay_module):
                monkeypatch.setattr(module, "rank", lambda own=number: own)
                monkeypatch.setattr(module, "world", lambda: world)
            yield number

    return become


@pytest.mark.parametrize("world", [1, 2, 3, 11, 20])
def test_ranks_share_everything_among_them(play, world):
    """Slices are in order; who has a key does not depend on the order."""
    shares, owned = [], []
    for _ in play(world):
        shares.append(list(ranks.share_of_rank(KEYS)))
        owned.append(sorted(ranks.keys_of_rank(KEYS)))
        assert owned[-1] == sorted(ranks.keys_of_rank(KEYS[::-1]))
    assert [key for share in shares for key in share] == KEYS
    assert sorted(key for own in owned for key in own) == sorted(KEYS)
    for parts in (shares, owned):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_the_assignment_is_fixed_for_ever(play):
    """Also from one process to the next: Python's own hash is not."""
    next(play(3, 1))
    assert ranks.keys_of_rank(KEYS) == [KEYS[n] for n in (3, 8, 9, 10)]


def test_where_there_are_fewer_than_ranks_all_are_everyones(play):
    next(play(4, 2))
    assert data.own_conditions(CONDITIONS[:3]) == CONDITIONS[:3]


def test_batches_of_ranks_are_of_their_own_conditions(play):
    seen, indices = [], []
    for _ in play(2):
        stream = iter(data.TrainBatches(CONDITIONS, 3, seed=0, first=5))
        batches = [next(stream) for _ in range(40)]
        seen.append({condition.key for batch in batches for condition in batch.conditions})
        indices.append([batch.index for batch in batches[:2]])
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(KEYS[:9])
    assert indices == [[10, 12], [11, 13]]


def callback_of(**options) -> ReplayBufferCallback:
    callback = ReplayBufferCallback(**options)
    callback.setup(None, SimpleNamespace(conditions=CONDITIONS), "fit")  # type: ignore[arg-type]
    return callback


def saved(*buffers: ReplayBuffer) -> dict[str, Any]:
    """The state of a callback on as many ranks."""
    return {"buffers": [buffer.state_dict() for buffer in buffers], "m_steps": 0, "drawn": []}


def test_a_buffer_is_shared_out_when_it_is_loaded(play, caplog):
    buffer, kept = ReplayBuffer(), []
    for key in (*KEYS, "unknown"):
        buffer.add(key, Entry((1, 2), (True, True), (-3.0, -2.0, -1.0)))
    state = saved(buffer)
    for _ in play(3):
        callback = callback_of()
        callback.load_state_dict(state)
        kept += callback.buffer.keys()
        assert set(callback.buffer.keys()) == set(callback.conditions)
    assert sorted(kept) == sorted(KEYS)
    assert "'unknown'" in caplog.text and KEYS[0] not in caplog.text


@pytest.mark.parametrize("world", [2, 1])
def test_ranks_that_share_a_condition_get_their_own_strings_back(world, play):
    """Of fewer conditions than ranks each has all; another number of ranks gets the best of both."""
    both = [ReplayBufferCallback(), ReplayBufferCallback()]
    for number, replay in enumerate(both):
        replay.buffer.add("a", Entry((number + 3,), (True,), (-1.0, -2.0 - number), 1))
    state = saved(*(replay.buffer for replay in both))
    for rank in play(world):
        resumed = ReplayBufferCallback()
        resumed.conditions = {"a": Condition("a", "a", ())}
        resumed.load_state_dict(state)
        found = [entry.tokens for entry in resumed.buffer.entries("a")]
        assert found == ([(rank + 3,)] if world == 2 else [(3,), (4,)])


@pytest.mark.parametrize("world", [1, 2])
def test_all_ranks_replay_at_the_same_steps(play, world):
    module = SimpleNamespace(
        seed=0, in_sft_steps=False, algorithm=SimpleNamespace(needs_pairs_between=False)
    )
    turns = []
    for rank in play(world):
        callback = callback_of(probability=0.5)
        own = []
        for step in range(30):
            asked = []
            callback.buffer.keys = lambda at_least, asked=asked: asked.append(1) or []
            batch = data.Batch([], index=step * world + rank)
            callback.on_train_batch_start(None, module, batch, 0)
            own.append(bool(asked))
        turns.append(own)
    assert all(own == turns[0] for own in turns) and 5 < sum(turns[0]) < 25


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS_PER_NODE": "2",
}


@pytest.fixture
def variables(monkeypatch):
    """Set the variables of a launcher, and no others."""

    def launched(values: dict[str, str]) -> None:
        for key in (*TORCHRUN, *SRUN):
            monkeypatch.delenv(key, raising=False)
        for key, value in values.items():
            monkeypatch.setenv(key, value)

    launched({})
    return launched


@pytest.mark.parametrize(
    ("options", "launcher", "where", "named"),
    [
        ({"devices": 2, "nodes": 2}, {}, "trainer.num_nodes", "torchrun"),
        ({"devices": 1}, TORCHRUN, "trainer.devices", "WORLD_SIZE=2"),
        ({"devices": 3}, TORCHRUN, "trainer.devices", "WORLD_SIZE=2"),
        ({"devices": 2, "nodes": 2}, TORCHRUN, "trainer.devices", "trainer.num_nodes"),
    ],
)
def test_processes_that_do_not_fit_are_refused(variables, options, launcher, where, named):
    variables(launcher)
    with pytest.raises(UserError, match=named) as caught:
        launch.check_world_size(ranks.Processes(**options))
    assert [problem.where for problem in caught.value.problems] == [where]


@pytest.mark.parametrize(("launcher", "processes"), [(TORCHRUN, (2, 1)), (SRUN, (2, 2))])
def test_a_sweep_within_launched_processes_is_refused(variables, launcher, processes):
    """Rank 0 alone would know which runs the sweep makes."""
    variables(launcher)
    launch.check_launcher(ranks.Processes(*processes))
    with pytest.raises(UserError, match="the command without torchrun or srun"):
        launch.check_launcher(ranks.Processes(*processes), multirun=True)


@pytest.mark.parametrize("more", [[], ["trainer.devices=2", "seed=1,2", "-m"]])
def test_the_command_line_refuses_what_torchrun_does_not_fit(variables, tmp_path, more, capsys):
    variables(TORCHRUN)
    with pytest.raises(SystemExit, match="2"):
        main(["experiment=tiny/smoke", f"output={tmp_path}", *more])
    assert "WORLD_SIZE" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_ranks_of_srun_are_known_and_a_batch_script_is_alone(variables):
    wanted = ranks.Processes(2, 2)
    variables({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"})
    assert not launch.is_worker(wanted)
    variables({key: value for key, value in SRUN.items() if key != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(UserError, match="ntasks-per-node"):
        launch.is_worker(wanted)
    variables(SRUN)
    assert launch.is_worker(wanted) and not launch.is_worker(ranks.Processes())
    assert launch.cluster_environment(wanted).local_rank() == 1
    assert launch.lightning_devices(wanted) == {"devices": 2, "num_nodes": 2}
    launch.check_world_size(wanted)


def test_with_one_gpu_per_task_each_process_takes_the_one_it_sees(variables, monkeypatch):
    variables(SRUN)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    wanted = ranks.Processes(2, 2)
    launch.check_world_size(wanted)
    environment, devices = launch.cluster_environment(wanted), launch.lightning_devices(wanted)
    assert (environment.local_rank(), environment.global_rank()) == (0, 3)
    assert environment.world_size() == devices["devices"] * devices["num_nodes"] == 4
    environment.validate_settings(devices["devices"], devices["num_nodes"])
    variables({})
    with pytest.raises(UserError, match="at most 1"):
        launch.check_world_size(ranks.Processes(2))


def test_a_further_process_of_torchrun_makes_no_folder(variables, monkeypatch, tmp_path):
    variables(TORCHRUN)
    taken = []
    monkeypatch.setattr(
        "gfn_runner.train.train_and_evaluate", lambda config, folder, *_: taken.append(folder)
    )
    main(["experiment=tiny/smoke", "trainer.devices=2", f"output={tmp_path}"])
    assert taken == [None] and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_worker_that_fails_before_it_has_joined_ends_the_run(variables, tmp_path):
    """Rank 0 raises, and does not wait for it, nor end its own process, which may be a sweep's."""
    run = launch.launch_ranks(ranks.Processes(2), tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="another rank of this run has failed"), run:
        raise AssertionError("the worker has no config")
    assert "RANK" not in os.environ and ranks.world() == 1


def test_one_process_needs_nothing():
    launch.check_world_size(ranks.Processes())
    with launch.launch_ranks(ranks.Processes(), None):
        assert (ranks.rank(), ranks.world(), ranks.is_rank_zero()) == (0, 1, True)
        assert ranks.all_gather("a") == ["a"] and ranks.broadcast("b") == "b"
