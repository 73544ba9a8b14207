"""What every sampler does, whatever it picks by."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.config import load_config, resolve
from themis_ray.data import EpisodeChunk
from themis_ray.feedback import SAMPLERS, Candidates
from themis_ray.reward import left_probabilities
from themis_ray.rllib.loop import PreferenceLoop

sampler_names = pytest.mark.parametrize("name", sorted(SAMPLERS))


def make_candidates(num_candidates: int, seed: int = 0, num_members: int = 3, num_labelled: int = 4) -> Candidates:
    """Candidates whose segments repeat, as those of a small pool do."""
    rng = np.random.default_rng(seed)
    num_segments = max(2, num_candidates // 2)
    observations = rng.integers(0, 4, (num_segments, 5)).astype(np.float32)
    returns = rng.normal(size=(num_members, num_segments))
    left = rng.integers(num_segments, size=num_candidates)
    right = (left + rng.integers(1, num_segments, size=num_candidates)) % num_segments
    return Candidates(
        left_probabilities=left_probabilities(returns[:, left], returns[:, right]),
        left_returns=returns[:, left],
        right_returns=returns[:, right],
        left_segments=left,
        right_segments=right,
        embeddings=np.concatenate([observations[left], observations[right]], axis=1),
        labelled_embeddings=rng.normal(size=(num_labelled, 10)).astype(np.float32),
    )


def sample(name: str, candidates: Candidates, n: int, seed: int = 0) -> list[int]:
    return SAMPLERS[name].sample(candidates, n, np.random.default_rng(seed)).tolist()


@sampler_names
@given(
    num_candidates=st.integers(0, 30),
    num_members=st.integers(1, 4),
    num_labelled=st.integers(0, 3),
    n=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50)
def test_min_of_n_and_all_distinct_indices_are_returned(name, num_candidates, num_members, num_labelled, n, seed):
    candidates = make_candidates(num_candidates, seed, num_members, num_labelled)
    chosen = SAMPLERS[name].sample(candidates, n, np.random.default_rng(seed))
    assert chosen.dtype == np.int64
    assert chosen.shape == (min(n, num_candidates),)
    assert len(set(chosen.tolist())) == len(chosen)
    assert set(chosen.tolist()) <= set(range(num_candidates))


@sampler_names
def test_the_same_rng_picks_the_same(name):
    candidates = make_candidates(40)
    assert sample(name, candidates, 10, 3) == sample(name, candidates, 10, 3)


@sampler_names
def test_the_first_picks_do_not_depend_on_how_many_are_wanted(name):
    """Most wanted first. k-center of the better half looks at more candidates when more than half are wanted."""
    candidates = make_candidates(40)
    longest = sample(name, candidates, 20, 3)
    assert [sample(name, candidates, n, 3) for n in range(21)] == [longest[:n] for n in range(21)]


@sampler_names
def test_the_candidates_are_left_as_they_were(name):
    candidates = make_candidates(30)
    before = {field.name: getattr(candidates, field.name).copy() for field in fields(candidates)}
    sample(name, candidates, 10)
    for key, value in before.items():
        np.testing.assert_array_equal(getattr(candidates, key), value)


@sampler_names
def test_what_a_sampler_says_that_it_needs_is_enough(name):
    sampler, candidates = SAMPLERS[name], make_candidates(30)
    known = replace(
        candidates,
        left_probabilities=candidates.left_probabilities if sampler.needs_model else None,
        left_returns=candidates.left_returns if sampler.needs_model else None,
        right_returns=candidates.right_returns if sampler.needs_model else None,
        embeddings=candidates.embeddings if sampler.needs_embeddings else None,
        labelled_embeddings=candidates.labelled_embeddings if sampler.needs_embeddings else None,
    )
    assert sample(name, known, 10) == sample(name, candidates, 10)


@sampler_names
def test_a_sampler_that_needs_something_says_so_when_it_is_missing(name):
    sampler = SAMPLERS[name]
    bare = Candidates(left_segments=np.array([0, 1]), right_segments=np.array([2, 3]))
    if sampler.needs_model or sampler.needs_embeddings:
        with pytest.raises(ValueError, match="lack an array"):
            sampler.sample(bare, 1, np.random.default_rng(0))
    else:
        assert sampler.sample(bare, 1, np.random.default_rng(0)).shape == (1,)


@sampler_names
def test_candidates_that_nothing_tells_apart_are_equally_likely_in_every_place(name):
    num_candidates, n, num_trials = 8, 3, 4000
    same = np.full((3, num_candidates), 0.3)
    candidates = Candidates(
        left_probabilities=same,
        left_returns=same,
        right_returns=same,
        left_segments=np.arange(num_candidates),
        right_segments=np.arange(num_candidates, 2 * num_candidates),
        embeddings=np.full((num_candidates, 4), 0.3, np.float32),
        labelled_embeddings=np.full((5, 4), 0.3, np.float32),
    )
    rng = np.random.default_rng(1)
    counts = np.zeros((n, num_candidates))
    for _ in range(num_trials):
        counts[np.arange(n), SAMPLERS[name].sample(candidates, n, rng)] += 1
    # Each place is one of 8 with equal probability: chi-squared with 7 degrees of freedom is above 29.9 once in 10^4.
    expected = num_trials / num_candidates
    assert (((counts - expected) ** 2) / expected).sum(axis=1).max() < 29.9


@sampler_names
def test_a_sampler_is_described_in_one_line(name):
    description = SAMPLERS[name].description
    assert 10 < len(description) < 80
    assert "\n" not in description
    assert not description.endswith(".")


# ---------------------------------------------------------------- in the loop


class FakeRewardModel:
    """Members that predict fixed random linear rewards of the observations."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.weights = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
        self.num_segments = 0

    def segment_returns(self, observations, actions):
        self.num_segments += len(observations)
        # One at a time: the sum of a segment must not depend on which others it came with.
        return np.stack([self.weights @ segment.sum(axis=0) for segment in observations], axis=1)


def make_loop(name, folder, version=1, num_episodes=30, num_steps=25):
    settings = ["env.id=Pendulum-v1", f"feedback.sampler={name}", "feedback.segment_length=10", "num_env_steps=9000"]
    config, spec = resolve(load_config(None, [*settings, "feedback.newest_num_episodes=4"]))
    loop = PreferenceLoop(config, spec, folder, FakeRewardModel(version), None)
    rng = np.random.default_rng(0)
    for episode in range(num_episodes):
        observations = rng.normal(size=(num_steps, 3)).astype(np.float32)
        actions, rewards = np.zeros((num_steps, 1), np.float32), rng.normal(size=num_steps)
        loop.pool.add(EpisodeChunk(f"e{episode}", 0, observations, actions, rewards, True))
    return loop


def ids(queries) -> list[str]:
    return [query.id for query in queries]


@sampler_names
@pytest.mark.parametrize("version", [0, 1])
def test_every_session_asks_as_many_queries_as_are_due(name, version, tmp_path):
    loop, same = (make_loop(name, tmp_path / folder, version) for folder in ("a", "b"))
    for _ in range(3):
        queries = loop._choose_queries(7)
        assert ids(queries) == ids(same._choose_queries(7))
        assert len(queries) == 7 == len(set(ids(queries)))
        assert all(query.left.id != query.right.id for query in queries)
        loop._ask(7, 0)
        same._ask(7, 0)


@sampler_names
@pytest.mark.parametrize("version", [0, 1])
def test_no_session_about_a_small_pool_asks_about_a_pair_twice(name, version, tmp_path):
    # Each episode holds one segment, so that the newest four give six pairs.
    loop = make_loop(name, tmp_path, version, num_episodes=10, num_steps=10)
    for _ in range(5):
        queries = loop._choose_queries(5)
        assert len(queries) == 5 == len({frozenset((query.left.id, query.right.id)) for query in queries})


@sampler_names
def test_before_the_first_fit_the_model_is_not_asked(name, tmp_path):
    loop = make_loop(name, tmp_path / "a", version=0)
    queries = loop._choose_queries(9)
    assert loop.reward_model.num_segments == 0
    if SAMPLERS[name].needs_model:
        assert ids(queries) == ids(make_loop("uniform", tmp_path / "b")._choose_queries(9))


@pytest.mark.parametrize("version", [0, 1])
def test_kcenter_works_from_the_first_session_on(version, tmp_path):
    loop = make_loop("kcenter", tmp_path, version)
    centres = []
    for _ in range(3):
        stream = loop.streams["sampler"]
        copy = np.random.default_rng(0)
        copy.bit_generator.state = stream.bit_generator.state
        drawn = loop.pool.sample_queries(60, 10, copy)
        asked = loop._choose_queries(6)
        points = {query.id: np.append(query.left.observations, query.right.observations) for query in drawn}
        for query in asked:
            distances = {i: min((np.linalg.norm(x - c) for c in centres), default=0.0) for i, x in points.items()}
            assert distances[query.id] == max(distances.values())
            centres.append(points.pop(query.id))
        stream.bit_generator.state = loop.streams["sampler"].bit_generator.state
        store(loop, asked)


def store(loop, queries):
    """Have these queries answered, and no others."""
    loop._choose_queries = lambda _: queries
    loop._ask(len(queries), 0)
    del loop._choose_queries


def test_newest_asks_about_every_start_of_the_newest_episodes_and_no_other(tmp_path):
    loop = make_loop("newest", tmp_path)
    segments = [side for query in loop._choose_queries(1000) for side in (query.left, query.right)]
    starts = {(segment.episode_id, segment.start_step) for segment in segments}
    assert starts == {(f"e{episode}", start) for episode in range(26, 30) for start in range(16)}


def test_the_tournament_lets_neighbours_meet_and_nobody_twice(tmp_path):
    loop = make_loop("swiss_information_gain", tmp_path, num_episodes=1)
    segments = loop.pool.sample_segments(500, 10, np.random.default_rng(0))
    assert len({segment.id for segment in segments}) == 16
    met = set()
    for _ in range(4):
        queries = loop._choose_queries(12)
        store(loop, queries)
        pairs = {frozenset((query.left.id, query.right.id)) for query in queries}
        assert len(pairs) == 12
        assert not pairs & met
        score = {
            segment.id: loop.reward_model.segment_returns([segment.observations], None).mean() for segment in segments
        }
        standing = sorted(score, key=score.__getitem__, reverse=True)
        for query in queries:
            high, low = sorted((standing.index(query.left.id), standing.index(query.right.id)))
            assert all(frozenset((standing[high], other)) in met for other in standing[high + 1 : low])
        met |= pairs


def test_a_tournament_of_too_few_players_is_filled_up_with_drawn_queries(tmp_path):
    loop = make_loop("swiss_information_gain", tmp_path, num_episodes=1, num_steps=11)
    queries = loop._choose_queries(5)
    assert len(queries) == 5
    assert len({frozenset((query.left.id, query.right.id)) for query in queries}) == 1


@pytest.mark.parametrize("name", [name for name in sorted(SAMPLERS) if SAMPLERS[name].needs_model])
def test_a_segment_is_predicted_once_and_in_parts_of_bounded_size(name, tmp_path, monkeypatch):
    whole = make_loop(name, tmp_path / "a", num_episodes=1)
    queries = whole._choose_queries(20)
    assert whole.reward_model.num_segments == 16
    monkeypatch.setattr("themis_ray.rllib.looks.SEGMENT_CHUNK_BYTES", 3 * 10 * 3 * 4)
    assert ids(make_loop(name, tmp_path / "b", num_episodes=1)._choose_queries(20)) == ids(queries)
