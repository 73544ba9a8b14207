import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from themis_ray.feedback import (
    disagreement,
    entropy,
    information_gain,
    play_tournament,
    swiss_pairs,
    value_of_information,
)
from themis_ray.reward import left_probabilities

probabilities = arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(0, 20)), elements=st.floats(0.0, 1.0, width=16)
)
MEASURES = {"disagreement": disagreement, "entropy": entropy, "information_gain": information_gain}


def binary_entropy(p: float) -> float:
    return float(sum(-q * np.log(q) for q in (p, 1.0 - p) if q > 0.0))


def random_returns(num_members: int, num_candidates: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.random.default_rng(seed).normal(size=(2, num_members, num_candidates))
    return left, right


# ---------------------------------------------------------------- measures of one probability


@given(column=arrays(np.float64, st.integers(1, 20), elements=st.floats(0.0, 1.0)), num_members=st.integers(1, 7))
def test_equal_members_never_disagree_and_no_answer_tells_them_apart(column, num_members):
    same = np.tile(column, (num_members, 1))
    assert not disagreement(same).any()
    assert not information_gain(same).any()


@pytest.mark.parametrize("name", MEASURES)
@given(left_probabilities=probabilities)
def test_measures_do_not_depend_on_which_side_is_left(name, left_probabilities):
    measure = MEASURES[name]
    np.testing.assert_allclose(measure(left_probabilities), measure(1.0 - left_probabilities), atol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
@given(left_probabilities=probabilities, seed=st.integers(0, 99))
def test_measures_do_not_depend_on_the_order_of_members(name, left_probabilities, seed):
    order = np.random.default_rng(seed).permutation(len(left_probabilities))
    measure = MEASURES[name]
    np.testing.assert_allclose(measure(left_probabilities), measure(left_probabilities[order]), atol=1e-12)


def test_entropy_is_largest_at_a_half_and_zero_at_the_ends():
    np.testing.assert_allclose(entropy(np.array([[0.0, 1.0, 0.5]])), [0.0, 0.0, np.log(2.0)])


@given(left_probabilities=probabilities)
def test_information_gain_is_the_mutual_information_of_answer_and_member(left_probabilities):
    """By the definition of mutual information, from the joint distribution of member and answer."""
    num_members = len(left_probabilities)
    expected = []
    for column in left_probabilities.T:
        joint = [(float(p) / num_members, (1.0 - float(p)) / num_members) for p in column]
        answers = [sum(row[a] for row in joint) for a in (0, 1)]
        terms = (q * np.log(q / (answers[a] / num_members)) for row in joint for a, q in enumerate(row) if q > 0.0)
        expected.append(sum(terms))
    np.testing.assert_allclose(information_gain(left_probabilities), expected, atol=1e-9)


def test_information_gain_golden_values():
    gains = information_gain(np.array([[1.0, 0.5, 0.9], [0.0, 0.5, 0.1]]))
    np.testing.assert_allclose(gains, [np.log(2.0), 0.0, np.log(2.0) - binary_entropy(0.9)])


# ---------------------------------------------------------------- value of information


def slow_value_of_information(left_probabilities, left_returns, right_returns):
    """Posterior weights, posterior means and their maximum, one answer at a time."""
    num_candidates = left_probabilities.shape[1]
    segments = [side[:, j] for side in (left_returns, right_returns) for j in range(num_candidates)]
    now = max(float(np.mean(returns)) for returns in segments)
    values = []
    for n in range(num_candidates):
        value = 0.0
        for likelihood in (left_probabilities[:, n], 1.0 - left_probabilities[:, n]):
            probability = float(np.mean(likelihood))
            if probability > 0.0:
                weights = likelihood / likelihood.sum()
                value += probability * max(float(np.sum(weights * returns)) for returns in segments)
        values.append(value - now)
    return np.array(values)


@given(num_members=st.integers(1, 5), num_candidates=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=60)
def test_value_of_information_agrees_with_bayes_rule(num_members, num_candidates, seed):
    left, right = random_returns(num_members, num_candidates, seed)
    p = left_probabilities(left, right)
    values = value_of_information(p, left, right)
    assert np.all(values >= 0.0)
    np.testing.assert_allclose(values, slow_value_of_information(p, left, right), atol=1e-9)


def test_value_of_information_by_hand():
    """One answer tells for sure which member is right; each then knows a segment worth 1 instead of 0.5."""
    left, right = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    values = value_of_information(np.array([[1.0, 0.5], [0.0, 0.5]]), left, right)
    np.testing.assert_allclose(values, [0.5, 0.0])


@given(num_candidates=st.integers(1, 12), seed=st.integers(0, 999))
def test_value_of_information_ignores_what_a_member_adds_to_all_returns(num_candidates, seed):
    left, right = random_returns(3, num_candidates, seed)
    p = left_probabilities(left, right)
    offsets = np.array([[10.0], [-3.0], [0.5]])
    np.testing.assert_allclose(
        value_of_information(p, left + offsets, right + offsets), value_of_information(p, left, right), atol=1e-9
    )


@given(num_candidates=st.integers(1, 12), seed=st.integers(0, 999))
def test_an_answer_is_worth_exactly_nothing_where_all_members_agree(num_candidates, seed):
    left, right = (np.repeat(side[:1], 3, axis=0) for side in random_returns(3, num_candidates, seed))
    assert not value_of_information(left_probabilities(left, right), left, right).any()


def test_an_answer_that_cannot_change_the_best_segment_is_worth_exactly_nothing():
    left, right = random_returns(3, 20, 0)
    left[:, 0] = 100.0
    assert not value_of_information(left_probabilities(left, right), left, right).any()


def test_chunks_of_candidates_change_nothing(monkeypatch):
    left, right = random_returns(3, 40, 0)
    p = left_probabilities(left, right)
    whole = value_of_information(p, left, right)
    monkeypatch.setattr("themis_ray.feedback.information._MAX_CHUNK_BYTES", 8 * 80 * 7)
    np.testing.assert_allclose(value_of_information(p, left, right), whole, atol=1e-12)


# ---------------------------------------------------------------- Swiss tournament


def slow_swiss_pairs(scores, met):
    """Distinct scores: the unordered pairs, from the top."""
    standing = sorted(range(len(scores)), key=lambda player: -scores[player])
    pairs = []
    for i in range(len(standing)):
        for j in range(i + 1, len(standing)):
            if tuple(sorted((standing[i], standing[j]))) not in met:
                pairs.append({standing[i], standing[j]})
                break
    return pairs


@given(
    scores=st.lists(st.integers(-50, 50), min_size=0, max_size=12, unique=True),
    met=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda pair: pair[0] < pair[1])),
    seed=st.integers(0, 99),
)
def test_neighbours_in_the_standing_meet_once(scores, met, seed):
    pairs = swiss_pairs(np.array(scores, np.float64), met, np.random.default_rng(seed))
    assert pairs.shape == (len(pairs), 2)
    assert pairs.dtype == np.int64
    assert [set(pair) for pair in pairs.tolist()] == slow_swiss_pairs(scores, met)
    assert all(left != right and tuple(sorted((left, right))) not in met for left, right in pairs.tolist())


def test_sides_and_equal_scores_are_drawn():
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(itertools.permutations(range(3), 2), 0)
    for _ in range(3000):
        counts[tuple(swiss_pairs(np.zeros(3), set(), rng)[0].tolist())] += 1
    # Chi-square with 5 degrees of freedom is above 20.5 once in a thousand seeds.
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 20.5


def test_the_better_player_is_left_as_often_as_right():
    rng = np.random.default_rng(0)
    num_left = sum(int(swiss_pairs(np.array([1.0, 2.0]), set(), rng)[0, 0]) for _ in range(1000))
    # Five standard deviations of a fair coin.
    assert abs(num_left - 500) < 80


GAMES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda game: game[0] != game[1]), min_size=0, max_size=25
)


def slow_tournament(order, players):
    """Rounds of games that are looked for one at a time, each the first whose two players are free."""
    different = [game for i, game in enumerate(order) if not any(met(players, game, other) for other in order[:i])]
    played = []
    while len(played) < len(different):
        busy = set()
        while free := [game for game in different if game not in played and not busy & set(players[game])]:
            played.append(free[0])
            busy |= set(players[free[0]])
    return [*played, *(game for game in order if game not in different)]


def met(players, game, other):
    return set(players[game]) == set(players[other])


@given(players=GAMES, n=st.integers(0, 30), seed=st.integers(0, 99))
def test_a_tournament_is_played_in_rounds_and_return_games_come_last(players, n, seed):
    order = np.random.default_rng(seed).permutation(len(players)).tolist()
    chosen = play_tournament(order, players, n)
    assert chosen.dtype == np.int64
    assert len(chosen) == min(n, len(players)) == len(set(chosen.tolist()))
    assert chosen.tolist() == slow_tournament(order, players)[:n]


def test_a_tournament_by_hand():
    """The first round takes 0-1 and 2-3, the second 1-2; the return game of 0 and 1 is last."""
    players = [(0, 1), (1, 2), (2, 3), (1, 0)]
    assert play_tournament([0, 1, 2, 3], players, 4).tolist() == [0, 2, 1, 3]
    assert play_tournament([1, 3, 0, 2], players, 3).tolist() == [1, 3, 2]
