"""Segments know how to come to their first step again, in the pool, in its state and on disk."""

import pickle
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from themis_ray.data import Choice, EpisodeChunk, EpisodePool, Origin, Preference, PreferenceDataset, Query, Segment
from themis_ray.data import episodes as episodes_module

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ACTIONS = np.random.default_rng(0).integers(0, 9, 40).astype(np.int32)


def chunk(start: int, stop: int, episode_id: str = "e", seed: int | None = 7, is_done: bool = False) -> EpisodeChunk:
    steps = np.arange(start, stop)
    observations = steps[:, None].astype(np.float32)
    return EpisodeChunk(
        episode_id, start, observations, ACTIONS[start:stop], steps.astype(np.float32), is_done, 0,
        seed if start == 0 else None,
    )  # fmt: skip


def filled(max_num_env_steps: int = 1000) -> EpisodePool:
    pool = EpisodePool("Test-v0", max_num_env_steps)
    for start in range(0, 40, 8):
        pool.add(chunk(start, start + 8, is_done=start == 32))
    return pool


def check(segments: list[Segment]) -> None:
    assert segments
    for segment in segments:
        assert segment.origin is not None
        assert segment.origin.reset_seed == 7
        np.testing.assert_array_equal(segment.origin.earlier_actions, ACTIONS[: segment.start_step])
        with pytest.raises(ValueError, match="read-only"):
            segment.origin.earlier_actions[...] = 0


def test_segments_of_a_pool_know_all_actions_since_the_reset():
    pool = filled()
    check(pool.sample_segments(50, 5, np.random.default_rng(0)))
    early = pool.sample_segments(1, 5, np.random.default_rng(1))
    pool.add(chunk(0, 8, "other", 9))
    check(early)  # views of rows that are never written again


def test_a_state_restores_origins():
    pool, restored = filled(), EpisodePool("Test-v0", 1000)
    restored.set_state(pickle.loads(pickle.dumps(pool.get_state())))
    check(restored.sample_segments(50, 5, np.random.default_rng(0)))


def test_a_piece_that_goes_on_in_another_one_keeps_its_origin():
    pool = filled(max_num_env_steps=30)  # an episode that would fill half of the pool goes on in a new piece
    assert pool.num_episodes > 1
    segments = pool.sample_segments(50, 5, np.random.default_rng(0))
    assert max(segment.start_step for segment in segments) > 15
    check(segments)


def test_without_the_first_steps_or_with_a_gap_there_is_no_origin(monkeypatch):
    pool = EpisodePool("Test-v0", 1000)
    pool.add(chunk(8, 16))
    pool.add(chunk(0, 8, "unseeded", None))
    pool.add(chunk(0, 8, "gap"))
    pool.add(chunk(16, 24, "gap"))
    late = [s for s in pool.sample_segments(200, 5, np.random.default_rng(0)) if s.episode_id != "gap" or s.start_step]
    assert all(segment.origin is None for segment in late if segment.start_step >= 16 or segment.episode_id != "gap")
    monkeypatch.setattr(episodes_module, "MAX_HISTORY_BYTES", 16 * ACTIONS.itemsize)
    endless = filled()
    assert all((segment.origin is None) for segment in endless.sample_segments(20, 5, np.random.default_rng(0)))


def test_an_origin_must_be_that_of_the_first_step():
    arrays = np.zeros((5, 1), np.float32), np.zeros(5, np.int32), np.zeros(5, np.float32)
    with pytest.raises(ValueError, match="origin of step 3 needs as many actions, not 2"):
        Segment.create("Test-v0", "e", 3, *arrays, Origin(1, ACTIONS[:2]))


def preference(query: Query) -> Preference:
    return Preference(query.id, query.left.id, query.right.id, Choice.LEFT, "oracle", 0, 10, NOW, NOW)


def test_a_dataset_stores_each_episode_once_and_hands_origins_back(tmp_path: Path):
    pool = filled()
    pool.add(chunk(0, 8, "unseeded", None))
    dataset = PreferenceDataset(tmp_path)
    for seed in range(2):
        queries = pool.sample_queries(5, 5, np.random.default_rng(seed))
        dataset.append(queries, [preference(query) for query in queries])
    stored = PreferenceDataset(tmp_path)
    for found in (dataset, stored):
        check([segment for segment in found.segments if segment.episode_id == "e"])
        assert all(segment.origin is None for segment in found.segments if segment.episode_id == "unseeded")
    assert len(list((tmp_path / "episodes").glob("*.parquet"))) == 2
    size = sum(path.stat().st_size for path in (tmp_path / "episodes").glob("*.parquet"))
    assert size < 10_000


def test_a_dataset_of_box_actions_and_one_without_origins(tmp_path: Path):
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 2)).astype(np.float32)
    pool = EpisodePool("Test-v0", 1000)
    observations = np.arange(30, dtype=np.float32)[:, None]
    pool.add(EpisodeChunk("e", 0, observations, actions, np.zeros(30, np.float32), True, 0, 5))
    queries = pool.sample_queries(3, 4, np.random.default_rng(0))
    PreferenceDataset(tmp_path / "a").append(queries, [preference(query) for query in queries])
    for segment in PreferenceDataset(tmp_path / "a").segments:
        assert segment.origin is not None
        assert segment.origin.earlier_actions.dtype == np.float32
        np.testing.assert_array_equal(segment.origin.earlier_actions, actions[: segment.start_step])
    plain = [Query(*(pickle.loads(pickle.dumps(side)) for side in (query.left, query.right))) for query in queries]
    PreferenceDataset(tmp_path / "b").append(plain, [preference(query) for query in plain])
    assert not (tmp_path / "b" / "episodes").exists()
    assert all(segment.origin is None for segment in PreferenceDataset(tmp_path / "b").segments)
