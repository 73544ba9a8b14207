import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from themis_ray.feedback import SAMPLERS, Candidates, disagreement, entropy

probabilities = arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(0, 30)), elements=st.floats(0.0, 1.0, width=16)
)


def binary_entropy(p: float) -> float:
    return sum(-q * np.log(q) for q in (p, 1.0 - p) if q > 0.0)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@given(left_probabilities=probabilities, n=st.integers(0, 40), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_sampler_returns_distinct_valid_indices(name, left_probabilities, n, seed):
    candidates = Candidates(left_probabilities)
    chosen = SAMPLERS[name](candidates, n, np.random.default_rng(seed))
    assert chosen.dtype == np.int64
    assert len(chosen) == min(n, len(candidates)) == len(set(chosen.tolist()))
    assert set(chosen.tolist()) <= set(range(len(candidates)))
    np.testing.assert_array_equal(chosen, SAMPLERS[name](candidates, n, np.random.default_rng(seed)))


@pytest.mark.parametrize("name", ["disagreement", "entropy"])
@given(left_probabilities=probabilities, n=st.integers(0, 30), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_measured_samplers_agree_with_brute_force(name, left_probabilities, n, seed):
    columns = [[float(p) for p in column] for column in left_probabilities.T]
    if name == "disagreement":
        scores = [np.sqrt(np.mean([(p - np.mean(column)) ** 2 for p in column])) for column in columns]
    else:
        scores = [np.mean([binary_entropy(p) for p in column]) for column in columns]
    chosen = SAMPLERS[name](Candidates(left_probabilities), n, np.random.default_rng(seed))
    expected = sorted(scores, reverse=True)[:n]
    np.testing.assert_allclose([scores[i] for i in chosen], expected, atol=1e-9)


def test_golden_choice():
    candidates = Candidates(np.array([[0.9, 0.5, 0.1, 0.6], [0.9, 0.5, 0.9, 0.4]], np.float32))
    rng = np.random.default_rng(0)
    assert SAMPLERS["disagreement"](candidates, 2, rng).tolist() == [2, 3]
    assert SAMPLERS["entropy"](candidates, 2, rng).tolist() == [1, 3]


@given(column=arrays(np.float64, st.integers(1, 20), elements=st.floats(0.0, 1.0)), num_members=st.integers(1, 7))
@settings(deadline=None)
def test_equal_members_never_disagree(column, num_members):
    assert not disagreement(np.tile(column, (num_members, 1))).any()


@given(left_probabilities=probabilities)
@settings(deadline=None)
def test_measures_do_not_depend_on_which_side_is_left(left_probabilities):
    for measure in (disagreement, entropy):
        np.testing.assert_allclose(measure(left_probabilities), measure(1.0 - left_probabilities), atol=1e-12)


def test_entropy_is_largest_at_a_half_and_zero_at_the_ends():
    np.testing.assert_allclose(entropy(np.array([[0.0, 1.0, 0.5]])), [0.0, 0.0, np.log(2.0)])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_uniform_choice_and_ties_are_equally_likely(name):
    num_candidates, n, num_trials = 8, 3, 8000
    candidates = Candidates(np.full((3, num_candidates), 0.3))
    rng = np.random.default_rng(1)
    counts = np.zeros((n, num_candidates))
    for _ in range(num_trials):
        counts[np.arange(n), SAMPLERS[name](candidates, n, rng)] += 1
    # Each place of the result is one of 8 with equal probability: chi-squared with 7 degrees of freedom, p = 1e-4.
    expected = num_trials / num_candidates
    assert (((counts - expected) ** 2) / expected).sum(axis=1).max() < 29.9


def test_uniform_ignores_the_probabilities():
    certain = Candidates(np.zeros((3, 50)))
    mixed = Candidates(np.random.default_rng(0).random((3, 50)))
    chosen = [SAMPLERS["uniform"](candidates, 10, np.random.default_rng(3)).tolist() for candidates in (certain, mixed)]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), 1.5), np.full((2, 2), np.nan)])
def test_candidates_refuse_what_is_no_probability(wrong):
    with pytest.raises(ValueError, match="left_probabilities"):
        Candidates(wrong)
