import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from themis_ray.data import EpisodeChunk, EpisodePool, Query
from themis_ray.errors import DataError
from themis_ray.feedback import (
    SAMPLERS,
    Candidates,
    FeedbackConfig,
    SamplerSpec,
    choose_queries,
    disagreement,
    draw_distinct,
    value_of_information,
    without_repeats,
)
from themis_ray.reward import left_probabilities

probabilities = arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(0, 30)), elements=st.floats(0.0, 1.0, width=16)
)


def binary_entropy(p: float) -> float:
    return sum(-q * np.log(q) for q in (p, 1.0 - p) if q > 0.0)


def slow_scores(name, left_probabilities):
    columns = [[float(p) for p in column] for column in left_probabilities.T]
    if name == "disagreement":
        return [np.sqrt(np.mean([(p - np.mean(column)) ** 2 for p in column])) for column in columns]
    return [np.mean([binary_entropy(p) for p in column]) for column in columns]


@pytest.mark.parametrize("name", ["disagreement", "entropy"])
@given(left_probabilities=probabilities, n=st.integers(0, 30), seed=st.integers(0, 1000))
@settings(max_examples=100)
def test_measured_samplers_agree_with_brute_force(name, left_probabilities, n, seed):
    scores = slow_scores(name, left_probabilities)
    chosen = SAMPLERS[name].sample(Candidates(left_probabilities), n, np.random.default_rng(seed))
    expected = sorted(scores, reverse=True)[:n]
    np.testing.assert_allclose([scores[i] for i in chosen], expected, atol=1e-9)


def test_golden_choice():
    candidates = Candidates(np.array([[0.9, 0.5, 0.1, 0.6], [0.9, 0.5, 0.9, 0.4]], np.float32))
    rng = np.random.default_rng(0)
    assert SAMPLERS["disagreement"].sample(candidates, 2, rng).tolist() == [2, 3]
    assert SAMPLERS["entropy"].sample(candidates, 2, rng).tolist() == [1, 3]


def test_uniform_ignores_the_probabilities():
    certain = Candidates(np.zeros((3, 50)))
    mixed = Candidates(np.random.default_rng(0).random((3, 50)))
    chosen = [
        SAMPLERS["uniform"].sample(candidates, 10, np.random.default_rng(3)).tolist() for candidates in (certain, mixed)
    ]
    assert chosen[0] == chosen[1]


# ---------------------------------------------------------------- k-center of the better half


@pytest.mark.parametrize("measure", ["disagreement", "entropy"])
@pytest.mark.parametrize("num_candidates", [20, 21])
@pytest.mark.parametrize("seed", range(5))
def test_kcenter_of_the_better_half_agrees_with_brute_force(measure, num_candidates, seed):
    rng = np.random.default_rng(seed)
    p = rng.random((3, num_candidates))
    points, centres = rng.normal(size=(num_candidates, 6)), rng.normal(size=(4, 6))
    candidates = Candidates(p, embeddings=points.astype(np.float32), labelled_embeddings=centres.astype(np.float32))
    chosen = SAMPLERS[f"kcenter_{measure}"].sample(candidates, 6, rng)
    scores = slow_scores(measure, p)
    better = sorted(range(num_candidates), key=lambda i: -scores[i])[: (num_candidates + 1) // 2]
    expected = []
    for _ in range(6):
        there = [*centres, *points[expected]]
        left = [i for i in better if i not in expected]
        expected.append(max(left, key=lambda i: min(np.linalg.norm(points[i] - c) for c in there)))
    assert chosen.tolist() == expected


def test_more_than_half_are_still_picked_by_score():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(10, 3)).astype(np.float32)
    p = rng.random((3, 10))
    chosen = SAMPLERS["kcenter_disagreement"].sample(
        Candidates(p, embeddings=points, labelled_embeddings=points[:0]), 8, rng
    )
    assert set(chosen.tolist()) == set(np.argsort(-disagreement(p))[:8].tolist())


# ---------------------------------------------------------------- by information


def test_swiss_prefers_information_and_lets_nobody_play_twice_in_a_round():
    # Gains fall from the first to the last; the second shares a player with the first.
    p = np.array([[0.95, 0.9, 0.8, 0.5], [0.05, 0.1, 0.2, 0.5]])
    candidates = Candidates(p, left_segments=np.array([0, 0, 2, 4]), right_segments=np.array([1, 2, 3, 5]))
    chosen = SAMPLERS["swiss_information_gain"].sample(candidates, 4, np.random.default_rng(0))
    assert chosen.tolist() == [0, 2, 3, 1]


@given(num_candidates=st.integers(1, 15), seed=st.integers(0, 999))
def test_value_of_information_picks_the_largest_and_then_by_disagreement(num_candidates, seed):
    left, right = np.random.default_rng(seed).normal(size=(2, 3, num_candidates))
    p = left_probabilities(left, right)
    candidates = Candidates(p, left_returns=left, right_returns=right)
    chosen = SAMPLERS["value_of_information"].sample(candidates, num_candidates, np.random.default_rng(0))
    scores = list(zip(value_of_information(p, left, right), disagreement(p), strict=True))
    assert [scores[i] for i in chosen] == sorted(scores, reverse=True)


# ---------------------------------------------------------------- the newest episodes


def make_pool(lengths):
    pool = EpisodePool("Test-v0", 10_000)
    for episode, length in enumerate(lengths):
        steps = np.arange(length)
        observations = np.stack([np.full(length, episode), steps], axis=1)
        pool.add(EpisodeChunk(f"e{episode}", 0, observations, steps, np.zeros(length), True))
    return pool


def starts_of(queries):
    return {(side.episode_id, side.start_step) for query in queries for side in (query.left, query.right)}


def test_newest_starts_are_uniform_up_to_and_with_the_last():
    pool = make_pool([50, 50, 6, 10, 4])
    queries = pool.sample_queries(7000, 4, np.random.default_rng(0), newest_num_episodes=3)
    sides = [f"{side.episode_id} {side.start_step}" for query in queries for side in (query.left, query.right)]
    names, counts = np.unique(sides, return_counts=True)
    assert set(names) == {*(f"e2 {i}" for i in range(3)), *(f"e3 {i}" for i in range(7)), "e4 0"}
    # Chi-square with 10 degrees of freedom is above 29.6 once in a thousand seeds. Sides are nearly independent.
    assert ((counts - 14_000 / 11) ** 2 / (14_000 / 11)).sum() < 29.6


def test_newest_are_the_episodes_that_were_extended_last():
    pool = EpisodePool("Test-v0", 1000)
    for episode, start in ((0, 0), (1, 0), (2, 0), (0, 5)):
        steps = np.arange(start, start + 5)
        pool.add(EpisodeChunk(f"e{episode}", start, steps + 100 * episode, steps, np.zeros(5), False))
    queries = pool.sample_queries(200, 2, np.random.default_rng(0), newest_num_episodes=2)
    assert {name for name, _ in starts_of(queries)} == {"e0", "e2"}


def test_episodes_too_short_for_a_segment_do_not_count():
    queries = make_pool([9, 9, 2, 3, 9, 1]).sample_queries(200, 4, np.random.default_rng(0), newest_num_episodes=2)
    assert {name for name, _ in starts_of(queries)} == {"e1", "e4"}


def test_older_episodes_help_where_the_newest_hold_one_segment_only():
    queries = make_pool([9, 4, 4]).sample_queries(50, 4, np.random.default_rng(0), newest_num_episodes=1)
    assert starts_of(queries) == {("e1", 0), ("e2", 0)}


def test_more_newest_episodes_than_there_are_is_the_whole_pool():
    pool = make_pool([9, 12])
    ids = [
        [query.id for query in pool.sample_queries(20, 4, np.random.default_rng(0), number)]
        for number in (2, 100, None)
    ]
    assert ids[0] == ids[1] == ids[2]


def test_newest_of_too_little_is_the_same_error():
    with pytest.raises(DataError, match="2 distinct segments"):
        make_pool([4]).sample_queries(1, 4, np.random.default_rng(0), newest_num_episodes=1)
    with pytest.raises(ValueError, match="newest_num_episodes"):
        make_pool([9]).sample_queries(1, 4, np.random.default_rng(0), newest_num_episodes=0)


# ---------------------------------------------------------------- what samplers are told


@pytest.mark.parametrize("pairs_players", [False, True])
def test_candidates_describe_the_queries_they_stand_for(pairs_players):
    pool = make_pool([15, 12])
    queries = pool.sample_queries(40, 4, np.random.default_rng(0))
    labelled = pool.sample_queries(5, 4, np.random.default_rng(1))
    told = []

    def record(candidates, n, rng):
        told.append(candidates)
        return np.arange(n)

    def predict_returns(segments):
        return np.array([[k * side.start_step - int(side.episode_id[1:]) for side in segments] for k in (0.1, 0.3)])

    chosen = choose_queries(
        SamplerSpec(record, "records", needs_model=True, needs_embeddings=True, pairs_players=pairs_players),
        queries,
        10,
        np.random.default_rng(2),
        labelled=labelled,
        observation_kind="vector",
        predict_returns=predict_returns,
    )
    (candidates,) = told
    if not pairs_players:
        assert [query.id for query in chosen] == [query.id for query in queries[:10]]
    lefts, rights = [query.left for query in chosen], [query.right for query in chosen]
    left_returns, right_returns = predict_returns(lefts), predict_returns(rights)
    np.testing.assert_array_equal(candidates.left_returns[:, :10], left_returns)
    np.testing.assert_array_equal(candidates.right_returns[:, :10], right_returns)
    np.testing.assert_allclose(
        candidates.left_probabilities[:, :10], 1.0 / (1.0 + np.exp(right_returns - left_returns)), rtol=1e-9
    )
    sides = [*lefts, *rights]
    numbers = [*candidates.left_segments[:10].tolist(), *candidates.right_segments[:10].tolist()]
    for i, j in itertools.combinations(range(20), 2):
        assert (numbers[i] == numbers[j]) == (sides[i].id == sides[j].id)
    for table, described in ((candidates.embeddings[:10], chosen), (candidates.labelled_embeddings, labelled)):
        expected = [np.append(query.left.observations, query.right.observations) for query in described]
        np.testing.assert_array_equal(table, expected)


# ---------------------------------------------------------------- repeats


def choose(name, queries, n, rng, labelled=()):
    weights = np.random.default_rng(5).normal(size=(3, 2))

    def predict_returns(segments):
        return np.stack([weights @ side.observations.sum(axis=0) for side in segments], axis=1) * 0.1

    return choose_queries(
        SAMPLERS[name], queries, n, rng, labelled=labelled, observation_kind="vector", predict_returns=predict_returns
    )


def pairs_of(queries):
    return [frozenset((query.left.id, query.right.id)) for query in queries]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_no_pair_is_asked_twice_in_a_session_while_there_are_others(name):
    pool = make_pool([4] * 10)
    num_with_repeats = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        candidates = pool.sample_queries(50, 4, rng)
        num_with_repeats += len(set(pairs_of(candidates))) < 50
        assert len(set(pairs_of(choose(name, candidates, 10, rng)))) == 10
    assert num_with_repeats == 40


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_repeats_fill_up_where_too_few_pairs_differ(name):
    pool = make_pool([4] * 3)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        chosen = choose(name, pool.sample_queries(50, 4, rng), 10, rng)
        assert len(chosen) == 10
        assert len(set(pairs_of(chosen))) == 3


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_repeat_changes_nothing_for_the_others(name):
    candidates = make_pool([30, 40]).sample_queries(30, 4, np.random.default_rng(0))
    assert without_repeats(candidates, 10) == candidates
    repeats = [*candidates[3:9], *(Query(query.right, query.left) for query in candidates[:5])]
    chosen = [
        [query.id for query in choose(name, queries, 10, np.random.default_rng(1))]
        for queries in (candidates, [*candidates, *repeats])
    ]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_of_no_candidates_nothing_is_chosen(name):
    assert choose(name, [], 3, np.random.default_rng(0)) == []


@pytest.mark.parametrize("newest", [None, 10])
def test_repeats_among_drawn_queries_are_replaced_and_only_they(newest):
    pool, num_repeated = make_pool([4] * 15), 0
    for seed in range(40):
        once, rng = np.random.default_rng(seed), np.random.default_rng(seed)
        plain = pool.sample_queries(10, 4, once, newest)
        drawn = draw_distinct(lambda n, rng=rng: pool.sample_queries(n, 4, rng, newest), 10, 100)
        assert len(set(pairs_of(drawn))) == len(drawn) == 10
        kept = without_repeats(plain, 0)
        assert [query.id for query in drawn[: len(kept)]] == [query.id for query in kept]
        if len(kept) == 10:
            assert rng.bit_generator.state == once.bit_generator.state
        else:
            num_repeated += 1
    assert 0 < num_repeated < 40


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), 1.5), np.full((2, 2), np.nan)])
def test_candidates_refuse_what_is_no_probability(wrong):
    with pytest.raises(ValueError, match="left_probabilities"):
        Candidates(wrong)


def test_candidates_refuse_a_pair_of_a_segment_with_itself():
    with pytest.raises(ValueError, match="compared with itself"):
        Candidates(left_segments=np.array([0, 1]), right_segments=np.array([2, 1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"left_probabilities": np.zeros((3, 4)), "embeddings": np.zeros((5, 2), np.float32)},
        {"left_returns": np.zeros((3, 4))},
        {"left_segments": np.arange(4)},
    ],
)
def test_candidates_refuse_what_does_not_go_together(wrong):
    with pytest.raises(ValueError, match=r"same number|go together"):
        Candidates(**wrong)


def test_every_sampler_is_a_setting():
    assert {FeedbackConfig(sampler=name).sampler for name in SAMPLERS} == set(SAMPLERS)
    description = FeedbackConfig.model_fields["sampler"].description
    assert all(name in description for name in SAMPLERS)
