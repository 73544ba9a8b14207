import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.data import EpisodeChunk, EpisodePool
from themis_ray.errors import DataError


def make_chunk(episode, start, length, is_done=False, dtype=np.float32):
    """Every step's observation tells which episode and step it is."""
    steps = np.arange(start, start + length)
    return EpisodeChunk(
        episode_id=f"e{episode}",
        start_step=start,
        observations=np.stack([np.full(length, episode), steps], axis=1).astype(dtype),
        actions=steps % 3,
        true_rewards=(steps + 0.5).astype(np.float32),
        is_done=is_done,
    )


def make_pool(lengths, max_num_env_steps=10_000, **limits):
    pool = EpisodePool("Test-v0", max_num_env_steps, **limits)
    for episode, length in enumerate(lengths):
        pool.add(make_chunk(episode, 0, length, is_done=True))
    return pool


# Chunks of a few episodes as a learner sends them: interleaved, some unfinished, some with gaps.
CHUNKS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans(), st.sampled_from([0, 0, 0, 2])),
    min_size=1,
    max_size=25,
)


def make_chunks(plan):
    position: dict[int, tuple[int, int]] = {}
    for slot, length, is_done, gap in plan:
        generation, step = position.get(slot, (0, 0))
        yield make_chunk(slot + 10 * generation, step + gap, length, is_done)
        position[slot] = (generation + 1, 0) if is_done else (generation, step + gap + length)


@settings(max_examples=60, deadline=None)
@given(CHUNKS, st.integers(1, 8), st.integers(5, 60))
def test_segments_are_consecutive_steps_of_one_episode(plan, length, max_num_env_steps):
    pool = EpisodePool("Test-v0", max_num_env_steps)
    for chunk in make_chunks(plan):
        pool.add(chunk)
    if pool.num_starts(length) == 0:
        return
    for segment in pool.sample_segments(20, length, np.random.default_rng(0)):
        episodes, steps = segment.observations.T
        assert len(segment) == length
        assert len(set(episodes)) == 1
        assert segment.episode_id == f"e{int(episodes[0])}"
        assert steps.tolist() == list(range(segment.start_step, segment.start_step + length))
        assert segment.actions.tolist() == [step % 3 for step in steps]
        assert segment.true_rewards.tolist() == [step + 0.5 for step in steps]


@settings(max_examples=60, deadline=None)
@given(CHUNKS, st.integers(1, 8), st.integers(5, 60))
def test_a_restored_pool_goes_on_like_the_old_one(plan, length, max_num_env_steps):
    chunks = list(make_chunks(plan))
    pool = EpisodePool("Test-v0", max_num_env_steps)
    for chunk in chunks[: len(chunks) // 2]:
        pool.add(chunk)
    restored = EpisodePool("Test-v0", max_num_env_steps)
    restored.set_state(pickle.loads(pickle.dumps(pool.get_state())))
    for chunk in chunks[len(chunks) // 2 :]:
        pool.add(chunk)
        restored.add(chunk)
    assert restored.num_env_steps == pool.num_env_steps
    assert restored.num_episodes == pool.num_episodes
    assert restored.num_starts(length) == pool.num_starts(length)
    for ours, theirs in zip(restored.recent_returns(), pool.recent_returns(), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    if pool.num_starts(length):
        ids = [[s.id for s in p.sample_segments(9, length, np.random.default_rng(1))] for p in (pool, restored)]
        assert ids[0] == ids[1]


@settings(max_examples=60, deadline=None)
@given(CHUNKS, st.integers(1, 40))
def test_a_limit_is_kept_and_the_newest_steps_stay(plan, max_num_env_steps):
    pool = EpisodePool("Test-v0", max_num_env_steps)
    for chunk in make_chunks(plan):
        pool.add(chunk)
        assert pool.num_env_steps <= max_num_env_steps or pool.num_episodes == 1
        newest = pool.get_state()["pieces"][-1]
        assert newest["episode_id"] == chunk.episode_id
        assert newest["arrays"][0][-1].tolist() == chunk.observations[-1].tolist()


def test_state_of_another_environment_is_refused():
    with pytest.raises(ValueError, match="Test-v0"):
        EpisodePool("Other-v0", 10).set_state(make_pool([5]).get_state())


def test_the_state_is_not_changed_by_later_steps():
    pool = EpisodePool("Test-v0", 100)
    pool.add(make_chunk(0, 0, 4))
    state = pool.get_state()
    before = pickle.dumps(state)
    pool.add(make_chunk(0, 4, 4, is_done=True))
    assert pickle.dumps(state) == before


def test_every_start_is_valid_up_to_and_with_the_last():
    pool = make_pool([5, 3, 7])
    assert [pool.num_starts(length) for length in (1, 3, 5, 7, 8)] == [15, 9, 4, 1, 0]
    segments = pool.sample_segments(500, 3, np.random.default_rng(0))
    starts = {(segment.episode_id, segment.start_step) for segment in segments}
    assert starts == {("e0", i) for i in range(3)} | {("e1", 0)} | {("e2", i) for i in range(5)}


def test_starts_are_uniform():
    pool = make_pool([6, 10, 4])
    segments = pool.sample_segments(14_000, 4, np.random.default_rng(0))
    _, counts = np.unique([f"{s.episode_id} {s.start_step}" for s in segments], return_counts=True)
    assert len(counts) == 11
    # Chi-square with 10 degrees of freedom is above 29.6 once in a thousand seeds.
    expected = 14_000 / 11
    assert ((counts - expected) ** 2 / expected).sum() < 29.6


def test_queries_are_uniform_over_ordered_pairs():
    pool = make_pool([4])
    queries = pool.sample_queries(6_000, 2, np.random.default_rng(0))
    _, counts = np.unique([f"{q.left.start_step} {q.right.start_step}" for q in queries], return_counts=True)
    assert len(counts) == 6
    # Chi-square with 5 degrees of freedom is above 20.5 once in a thousand seeds.
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5


def test_unfinished_episodes_are_sampled_and_chunks_joined():
    pool = EpisodePool("Test-v0", 100)
    for start in range(10):
        pool.add(make_chunk(0, start, 1))
    assert (pool.num_env_steps, pool.num_episodes, pool.num_starts(10)) == (10, 1, 1)
    (segment,) = pool.sample_segments(1, 10, np.random.default_rng(0))
    assert segment.observations[:, 1].tolist() == list(range(10))


def test_no_segment_reaches_over_an_episode_end_or_a_gap():
    pool = EpisodePool("Test-v0", 100)
    pool.add(make_chunk(0, 0, 4, is_done=True))
    pool.add(make_chunk(0, 4, 4))
    pool.add(make_chunk(0, 9, 4))
    assert pool.num_episodes == 3
    assert pool.num_starts(4) == 3
    assert pool.num_starts(5) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=4, max_size=40), st.integers(1, 4))
def test_a_query_never_has_the_same_content_twice(values, length):
    observations = np.array(values, np.uint8)
    pool = EpisodePool("Test-v0", 1000)
    pool.add(EpisodeChunk("e", 0, observations, np.zeros(len(values)), np.zeros(len(values)), True))
    contents = {tuple(values[i : i + length]) for i in range(len(values) - length + 1)}
    if len(contents) < 2:
        with pytest.raises(DataError, match="2 distinct segments"):
            pool.sample_queries(10, length, np.random.default_rng(0))
    else:
        for query in pool.sample_queries(30, length, np.random.default_rng(0)):
            assert query.left.observations.tolist() != query.right.observations.tolist()


def test_one_different_segment_among_many_equal_ones_is_found():
    observations = np.zeros(3000, np.uint8)
    observations[-1] = 1
    pool = EpisodePool("Test-v0", 10_000)
    pool.add(EpisodeChunk("e", 0, observations, np.zeros(3000), np.zeros(3000), True))
    for query in pool.sample_queries(3, 1, np.random.default_rng(0)):
        assert {int(query.left.observations[0]), int(query.right.observations[0])} == {0, 1}


@pytest.mark.parametrize("lengths", [[], [4], [5]])
def test_too_few_segments_is_an_error_that_tells_what_to_do(lengths):
    pool = make_pool(lengths)
    with pytest.raises(DataError, match="collect more steps or shorten segment_length"):
        pool.sample_queries(1, 5, np.random.default_rng(0))


def test_no_segment_to_sample_is_an_error():
    with pytest.raises(DataError, match="1 distinct segments of 5 steps"):
        make_pool([4]).sample_segments(1, 5, np.random.default_rng(0))


def test_asking_for_nothing_gives_nothing():
    rng = np.random.default_rng(0)
    assert make_pool([]).sample_segments(0, 5, rng) == []
    assert make_pool([]).sample_queries(0, 5, rng) == []


def test_the_same_seed_draws_the_same_queries():
    pool = make_pool([30, 40])
    ids = [[q.id for q in pool.sample_queries(20, 5, np.random.default_rng(3))] for _ in range(2)]
    assert ids[0] == ids[1]


def test_the_oldest_episodes_are_dropped_whole():
    pool = make_pool([10, 10, 10], max_num_env_steps=25)
    assert (pool.num_env_steps, pool.num_episodes) == (20, 2)
    assert {s.episode_id for s in pool.sample_segments(50, 3, np.random.default_rng(0))} == {"e1", "e2"}


def test_an_episode_that_goes_on_is_not_the_oldest():
    pool = EpisodePool("Test-v0", 20)
    pool.add(make_chunk(0, 0, 5))
    pool.add(make_chunk(1, 0, 8, is_done=True))
    pool.add(make_chunk(0, 5, 5))
    pool.add(make_chunk(2, 0, 8, is_done=True))
    assert {s.episode_id for s in pool.sample_segments(50, 3, np.random.default_rng(0))} == {"e0", "e2"}


def test_the_byte_limit_counts_frames_as_uint8():
    bytes_per_step = 8 * 8 + 8 + 4
    pool = EpisodePool("Test-v0", 10_000, max_bytes=25 * bytes_per_step)
    for episode in range(3):
        frames = np.zeros((10, 8, 8), np.uint8)
        pool.add(EpisodeChunk(f"e{episode}", 0, frames, np.arange(10), np.zeros(10), True))
    assert pool.num_episodes == 2
    (segment,) = pool.sample_segments(1, 5, np.random.default_rng(0))
    assert segment.observations.dtype == np.uint8


def test_the_only_episode_stays_when_it_is_over_the_limit():
    assert make_pool([50], max_num_env_steps=10).num_env_steps == 50


def test_an_endless_episode_stays_within_the_limit_and_keeps_its_return():
    pool = EpisodePool("Test-v0", 20)
    for start in range(0, 200, 5):
        pool.add(make_chunk(0, start, 5, is_done=start == 195))
        assert pool.num_env_steps <= 20
    returns, lengths = pool.recent_returns()
    assert lengths.tolist() == [200]
    assert returns.tolist() == [sum(range(200)) + 100]


def add_rounds(pool, lengths, round_length=5):
    """Steps one endless row of episodes per length in turn, until each has ended twice."""
    for step in range(0, 2 * max(lengths), round_length):
        for slot, length in enumerate(lengths):
            start, episode = step % length, slot + 10 * (step // length)
            pool.add(make_chunk(episode, start, round_length, is_done=start + round_length == length))


def test_long_episodes_keep_their_returns_when_the_pool_drops_their_steps():
    pool = EpisodePool("Test-v0", 20)
    add_rounds(pool, [10, 10, 10, 40, 40])
    returns, lengths = pool.recent_returns(100)
    assert sorted(lengths.tolist()) == [10] * 24 + [40] * 4
    assert returns.tolist() == [sum(range(length)) + length / 2 for length in lengths]


def test_a_restored_pool_knows_the_returns_of_episodes_whose_steps_were_dropped():
    pool, restored = (EpisodePool("Test-v0", 20) for _ in range(2))
    pool.add(make_chunk(0, 0, 10))
    pool.add(make_chunk(1, 0, 15, is_done=True))
    restored.set_state(pickle.loads(pickle.dumps(pool.get_state())))
    restored.add(make_chunk(0, 10, 5, is_done=True))
    returns, lengths = restored.recent_returns()
    assert (returns.tolist(), lengths.tolist()) == ([sum(range(15)) + 7.5] * 2, [15, 15])


def test_the_state_of_an_earlier_version_goes_on():
    """It kept the return so far with each piece, None where steps before were not seen."""
    pool, restored = (EpisodePool("Test-v0", 100) for _ in range(2))
    for episode, start in ((0, 0), (1, 3)):
        pool.add(make_chunk(episode, start, 4))
    state = pool.get_state()
    del state["running"]
    for piece, true_return in zip(state["pieces"], (8.0, None), strict=True):
        piece["true_return"] = true_return
    restored.set_state(state)
    restored.add(make_chunk(0, 4, 2, is_done=True))
    restored.add(make_chunk(1, 7, 2, is_done=True))
    returns, lengths = restored.recent_returns()
    assert (returns.tolist(), lengths.tolist()) == ([sum(range(6)) + 3], [6])


def test_recent_returns_are_of_the_last_finished_episodes():
    pool = make_pool([3, 4, 5])
    pool.add(make_chunk(9, 0, 6))
    returns, lengths = pool.recent_returns(2)
    assert lengths.tolist() == [4, 5]
    assert returns.tolist() == [0.5 + 1.5 + 2.5 + 3.5, 0.5 + 1.5 + 2.5 + 3.5 + 4.5]
    assert (returns.dtype, lengths.dtype) == (np.float64, np.int64)
    assert len(pool.recent_returns(0)[0]) == 0


def test_recent_returns_outlive_the_steps_up_to_100_episodes():
    pool = make_pool([10] * 150, max_num_env_steps=20)
    assert pool.num_episodes == 2
    assert len(pool.recent_returns(1000)[0]) == 100


def test_an_episode_with_unseen_steps_has_no_return():
    pool = EpisodePool("Test-v0", 100)
    pool.add(make_chunk(0, 3, 4, is_done=True))
    pool.add(make_chunk(1, 0, 4))
    pool.add(make_chunk(1, 6, 4, is_done=True))
    assert len(pool.recent_returns()[0]) == 0


def test_another_shape_or_dtype_is_refused():
    pool = make_pool([5])
    with pytest.raises(ValueError, match="shapes and dtypes"):
        pool.add(make_chunk(1, 0, 5, dtype=np.float64))


def test_the_pool_does_not_change_with_the_arrays_it_was_given():
    chunk = make_chunk(0, 0, 5, is_done=True)
    pool = EpisodePool("Test-v0", 100)
    pool.add(chunk)
    chunk.observations[:] = -1
    (segment,) = pool.sample_segments(1, 5, np.random.default_rng(0))
    assert (segment.observations >= 0).all()


def test_sampled_segments_do_not_change_when_their_episode_goes_on():
    pool = EpisodePool("Test-v0", 100)
    for start in range(3):
        pool.add(make_chunk(0, start, 1))
    (segment,) = pool.sample_segments(1, 3, np.random.default_rng(0))
    pool.add(make_chunk(0, 3, 5, is_done=True))
    assert segment.observations[:, 1].tolist() == [0, 1, 2]
    assert not segment.observations.flags.writeable


@pytest.mark.parametrize("limits", [{"max_num_env_steps": 0}, {"max_num_env_steps": 5, "max_bytes": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="at least 1"):
        EpisodePool("Test-v0", **limits)


def test_a_length_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        make_pool([5]).num_starts(0)


@pytest.mark.parametrize(("start", "length"), [(-1, 3), (0, 0)])
def test_impossible_chunks_are_refused(start, length):
    with pytest.raises(ValueError, match="at least"):
        make_chunk(0, start, length)
