from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.rllib import ReplayBuffer, Transitions
from themis_ray.rllib import replay as replay_module
from themis_ray.rllib.replay import Piece

STATE = Box(-np.inf, np.inf, (3,), np.float32)
FRAME = Box(0, 255, (5, 5, 2), np.uint8)
TORQUE = Box(-1.0, 1.0, (2,), np.float32)
COLUMNS = ("observations", "next_observations", "actions", "true_rewards", "terminated")


def draw(num_rows: int, rng: np.random.Generator, state=STATE, action=TORQUE) -> tuple[Transitions, np.ndarray]:
    def observations() -> np.ndarray:
        if state.dtype == np.uint8:
            return rng.integers(256, size=(num_rows, *state.shape), dtype=np.uint8)
        return rng.normal(size=(num_rows, *state.shape)).astype(np.float32)

    if isinstance(action, Discrete):
        actions = rng.integers(action.n, size=num_rows)
    else:
        actions = rng.uniform(-1, 1, (num_rows, *action.shape)).astype(np.float32)
    rewards, predicted = rng.normal(size=(2, num_rows)).astype(np.float32)
    return Transitions(observations(), observations(), actions, rewards, rng.random(num_rows) < 0.2), predicted


@settings(max_examples=60, deadline=None)
@given(capacity=st.integers(1, 12), sizes=st.lists(st.integers(0, 12), max_size=12), seed=st.integers(0, 99))
def test_ring_holds_the_newest_rows_like_a_deque(capacity: int, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    replay, expected = ReplayBuffer(capacity, STATE, TORQUE), deque(maxlen=capacity)
    for size in sizes:
        transitions, predicted = draw(min(size, capacity), rng)
        replay.add(transitions, predicted)
        for i in range(len(transitions)):
            expected.append((*(getattr(transitions, name)[i] for name in COLUMNS), predicted[i]))
    assert replay.size == len(expected)
    # The oldest row is the next one to be overwritten, once the ring is full.
    start = replay.get_state()["position"] if replay.size == capacity else 0
    order = (start + np.arange(replay.size)) % capacity
    for i, row in zip(order, expected, strict=True):
        for name, value in zip((*COLUMNS, "predicted_rewards"), row, strict=True):
            np.testing.assert_array_equal(getattr(replay, name)[i], value, err_msg=name)


def test_true_and_predicted_reward_lie_side_by_side() -> None:
    replay = ReplayBuffer(50, STATE, TORQUE)
    transitions, predicted = draw(40, np.random.default_rng(0))
    replay.add(transitions, predicted)
    np.testing.assert_array_equal(replay.true_rewards[:40], transitions.true_rewards)
    np.testing.assert_array_equal(replay.predicted_rewards[:40], predicted)


@pytest.mark.parametrize("num_rows", [1, 50, 107])
def test_relabel_recomputes_every_prediction_and_nothing_else(num_rows: int, monkeypatch) -> None:
    chunk_size = 50
    monkeypatch.setattr(replay_module, "RELABEL_CHUNK_BYTES", chunk_size * 3 * 4)
    replay = ReplayBuffer(num_rows + 5, STATE, TORQUE)
    transitions, predicted = draw(num_rows, np.random.default_rng(1))
    replay.add(transitions, predicted)
    before, sizes = replay.get_state(), []

    def predict(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        sizes.append(len(actions))
        return observations.sum(-1) + actions[:, 0]

    replay.relabel(predict)
    after = replay.get_state()
    np.testing.assert_array_equal(
        after.pop("predicted_rewards"), transitions.observations.sum(-1) + transitions.actions[:, 0]
    )
    for name, column in after.items():
        np.testing.assert_array_equal(column, before[name], err_msg=name)
    assert sum(sizes) == num_rows
    assert len(sizes) == -(-num_rows // chunk_size)
    np.testing.assert_array_equal(replay.predicted_rewards[num_rows:], 0)


def test_relabel_of_an_empty_buffer_asks_nothing() -> None:
    ReplayBuffer(5, STATE, TORQUE).relabel(lambda *_: pytest.fail("asked"))


@pytest.mark.parametrize("num_rows", [4, 10, 17])
def test_state_round_trip_is_bit_equal_and_goes_on_alike(num_rows: int) -> None:
    rng = np.random.default_rng(2)
    first, second = (ReplayBuffer(10, FRAME, Discrete(4)) for _ in range(2))
    for _ in range(num_rows):
        first.add(*draw(1, rng, FRAME, Discrete(4)))
    second.add(*draw(10, rng, FRAME, Discrete(4)))  # overwritten by the state
    state = first.get_state()
    second.set_state(state)
    first.add(*draw(3, np.random.default_rng(3), FRAME, Discrete(4)))
    second.add(*draw(3, np.random.default_rng(3), FRAME, Discrete(4)))
    assert first.size == second.size
    for name, column in first.get_state().items():
        other = second.get_state()[name]
        np.testing.assert_array_equal(column, other, err_msg=name)
        if name != "position":
            assert column.dtype == other.dtype
            assert column.tobytes() == other.tobytes()


def test_state_is_a_copy() -> None:
    replay = ReplayBuffer(4, STATE, TORQUE)
    replay.add(*draw(4, np.random.default_rng(0)))
    state = replay.get_state()
    kept = state["observations"].copy()
    replay.add(*draw(4, np.random.default_rng(1)))
    np.testing.assert_array_equal(state["observations"], kept)


@pytest.mark.parametrize(
    ("action", "dtype", "shape"),
    [(TORQUE, np.float32, (2,)), (Discrete(3), np.int64, ()), (MultiDiscrete([2, 3]), np.float32, (2,))],
)
def test_columns_keep_what_the_spaces_say(action, dtype: type, shape: tuple[int, ...]) -> None:
    replay = ReplayBuffer(6, FRAME, action)
    assert replay.observations.dtype == replay.next_observations.dtype == np.uint8
    assert replay.observations.shape == (6, 5, 5, 2)
    assert replay.actions.dtype == dtype
    assert replay.actions.shape == (6, *shape)


def test_uint8_observations_survive_unchanged() -> None:
    replay = ReplayBuffer(8, FRAME, Discrete(4))
    transitions, predicted = draw(8, np.random.default_rng(5), FRAME, Discrete(4))
    replay.add(transitions, predicted)
    assert replay.observations.tobytes() == transitions.observations.tobytes()


def test_rows_are_drawn_uniformly_among_the_filled_ones() -> None:
    replay = ReplayBuffer(100, STATE, TORQUE)
    replay.add(*draw(10, np.random.default_rng(0)))
    rows = replay.sample_rows(50_000, np.random.default_rng(7))
    counts = np.bincount(rows, minlength=10)
    assert len(counts) == 10
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000 * 0.9)
    np.testing.assert_array_equal(rows, replay.sample_rows(50_000, np.random.default_rng(7)))


def walk(lengths: list[int], *, terminated: bool) -> Transitions:
    """Episodes of a counter, one after another; each ends for good or not."""
    counts = [1000 * i + np.arange(length) for i, length in enumerate(lengths)]
    states = np.concatenate(counts).astype(np.float32)
    ends = np.concatenate([np.arange(1, length + 1) == length for length in lengths])
    column = np.repeat(states[:, None], 3, axis=1)
    actions = np.zeros((len(states), 2), np.float32)
    rewards = np.arange(1, len(states) + 1, dtype=np.float32)
    pieces = [Piece(str(i), length, is_done=True) for i, length in enumerate(lengths)]
    return Transitions(column, column + 1, actions, rewards, ends & terminated, pieces)


@pytest.mark.parametrize("is_terminated", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_returns_of_n_steps_equal_a_loop_over_each_episode(n: int, is_terminated: bool) -> None:
    lengths, gamma = [4, 1, 6, 2], 0.9
    replay = ReplayBuffer(20, STATE, TORQUE)
    transitions = walk(lengths, terminated=is_terminated)
    replay.add(transitions, np.zeros(len(transitions), np.float32))
    rows = np.random.default_rng(0).permutation(len(transitions))
    returns, last, num_more = replay.n_step(rows, replay.true_rewards, n, gamma)
    ends = np.cumsum(lengths)
    for i, row in enumerate(rows):
        end = ends[np.searchsorted(ends, row, side="right")]
        steps = range(row, min(row + n, end))
        assert returns[i] == pytest.approx(sum(gamma ** (t - row) * replay.true_rewards[t] for t in steps))
        assert last[i] == steps[-1]
        assert num_more[i] == len(steps) - 1


def test_steps_are_not_followed_from_the_newest_row_into_the_oldest() -> None:
    replay = ReplayBuffer(5, STATE, TORQUE)
    transitions = walk([8], terminated=False)
    for start in (0, 4):
        part = slice(start, start + 4)
        names = set(Transitions.__dataclass_fields__) - {"pieces"}
        columns = {name: getattr(transitions, name)[part] for name in names}
        replay.add(Transitions(**columns, pieces=[Piece("0", 4, start == 4)]), np.zeros(4, np.float32))
    rows = np.arange(5)
    _, last, num_more = replay.n_step(rows, replay.true_rewards, 10, 1.0)
    newest = np.argmax(replay.true_rewards)
    assert set(last) == {newest}
    np.testing.assert_array_equal(num_more, replay.true_rewards[newest] - replay.true_rewards[rows])


@given(
    num_envs=st.integers(1, 5),
    capacity=st.integers(4, 40),
    piece_lengths=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    horizon=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_steps_of_several_environments_that_look_alike_are_told_apart(
    num_envs: int, capacity: int, piece_lengths: list[int], horizon: int, seed: int
) -> None:
    """All observations are equal, so only the episode says what follows; the true reward is the row's own number."""
    replay, n, rng = ReplayBuffer(capacity, STATE, TORQUE), 4, np.random.default_rng(seed)
    episodes, steps = [f"{env}-0" for env in range(num_envs)], [0] * num_envs
    rows: list[tuple[str, bool]] = []  # of everything that was ever added: episode, and whether it ended there
    for length in piece_lengths:
        pieces = []
        for env in rng.permutation(num_envs):
            num_steps = min(length, horizon - steps[env], capacity // num_envs)
            if num_steps == 0:
                continue
            steps[env] += num_steps
            is_done = steps[env] == horizon
            pieces.append(Piece(episodes[env], num_steps, is_done))
            rows += [(episodes[env], False)] * (num_steps - 1) + [(episodes[env], is_done)]
            if is_done:
                episodes[env], steps[env] = f"{env}-{len(rows)}", 0
        total = sum(piece.num_steps for piece in pieces)
        alike = np.zeros((total, 3), np.float32)
        numbers = np.arange(len(rows) - total, len(rows), dtype=np.float32)
        actions, never = np.zeros((total, 2), np.float32), np.zeros(total, np.bool_)
        replay.add(Transitions(alike, alike, actions, numbers, never, pieces), np.zeros(total, np.float32))
    sampled = np.arange(replay.size)
    returns, last, num_more = replay.n_step(sampled, replay.true_rewards, n, 0.5)
    for row in sampled:
        number = int(replay.true_rewards[row])
        same = [i for i in range(number, len(rows)) if rows[i][0] == rows[number][0]][:n]
        assert returns[row] == pytest.approx(sum(0.5**k * i for k, i in enumerate(same)))
        assert replay.true_rewards[last[row]] == same[-1]
        assert num_more[row] == len(same) - 1


def test_running_episodes_go_on_nowhere_in_a_restored_replay() -> None:
    first, second = ReplayBuffer(20, STATE, TORQUE), ReplayBuffer(8, STATE, TORQUE)
    running = replace(walk([12], terminated=False), pieces=[Piece("0", 12, is_done=False)])
    first.add(running, np.zeros(12, np.float32))
    second.set_state(first.get_state())
    second.add(walk([4], terminated=False), np.zeros(4, np.float32))  # the same episode, as far as its name goes
    _, last, num_more = second.n_step(np.arange(8), second.true_rewards, 10, 1.0)
    ends = {int(second.true_rewards[row]): int(second.true_rewards[last[row]]) for row in range(8)}
    assert ends == {1: 4, 2: 4, 3: 4, 4: 4, 9: 12, 10: 12, 11: 12, 12: 12}
    assert num_more[second.true_rewards == 9] == 3


def test_a_single_row_does_not_follow_itself() -> None:
    replay = ReplayBuffer(5, STATE, TORQUE)
    same = np.zeros((1, 3), np.float32)
    replay.add(
        Transitions(same, same, np.zeros((1, 2), np.float32), np.ones(1, np.float32), np.zeros(1, np.bool_)), [0.0]
    )
    returns, last, _ = replay.n_step(np.array([0]), replay.true_rewards, 5, 1.0)
    assert returns[0] == 1
    assert last[0] == 0


def test_memory_of_the_replay_has_a_bound() -> None:
    screens, vectors = Box(0, 255, (84, 84, 4), np.uint8), Box(-1, 1, (17,), np.float32)
    joints = Box(-1, 1, (6,), np.float32)
    assert ReplayBuffer.fitting_capacity(1_000_000, 2**33, vectors, joints) == 1_000_000
    kept = ReplayBuffer.fitting_capacity(1_000_000, 2**33, screens, Discrete(4))
    assert 150_000 < kept < 2**33 / (2 * 84 * 84 * 4)
    assert ReplayBuffer.fitting_capacity(5, 10, screens, Discrete(4)) == 1
