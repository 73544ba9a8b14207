import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.data import Choice, Query, Segment
from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.feedback import TEACHERS, SyntheticTeacher, TeacherConfig, TeacherParameters, make_teacher

NO_RETURNS = (np.empty(0, np.float64), np.empty(0, np.int64))
NUM_DRAWS = 10_000


def segment(rewards, name: float) -> Segment:
    rewards = np.asarray(rewards, np.float32)
    observations = np.full((len(rewards), 1), name)
    return Segment.create("Test-v0", "0", 0, observations, np.zeros((len(rewards), 1), np.float32), rewards)


def query(left, right) -> Query:
    return Query(segment(left, 0.0), segment(right, 1.0))


def random_queries(n: int, length: int = 5, shift: float = 0.0, seed: int = 0) -> list[Query]:
    rewards = np.random.default_rng(seed).normal(shift, 1.0, (n, 2, length))
    return [query(left, right) for left, right in rewards]


def ask(teacher, queries, returns=NO_RETURNS, seed: int = 0) -> list[Choice]:
    return teacher.answer(queries, np.random.default_rng(seed), returns)


def preset(name: str, **parameters: float):
    return make_teacher(TeacherConfig(name=name, **parameters))


def assert_share(choices, choice: Choice, expected: float) -> None:
    """Fails when a share is more than 4.5 binomial standard errors off."""
    share = np.mean([given == choice for given in choices])
    assert abs(share - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / len(choices)) + 1e-12, (share, expected)


def test_oracle_prefers_the_larger_true_return():
    queries = random_queries(500)
    for asked, choice in zip(queries, ask(preset("oracle"), queries), strict=True):
        assert choice == (Choice.LEFT if asked.left.true_return > asked.right.true_return else Choice.RIGHT)


@pytest.mark.parametrize("name", sorted(set(TEACHERS) - {"skip"}))
def test_tie_is_equal_for_every_teacher(name):
    queries = [query([1.0] * 7, [1.0] * 7), query([0.1] * 7, [0.1] * 7), query([0.0] * 7, [0.0] * 7)] * 50
    assert set(ask(preset(name), queries)) == {Choice.EQUAL}


def test_permuted_rewards_tie_exactly():
    rng = np.random.default_rng(0)
    queries = []
    for _ in range(200):
        rewards = rng.normal(size=50).astype(np.float32)
        queries.append(query(rewards, rng.permutation(rewards)))
    assert set(ask(preset("oracle"), queries)) == {Choice.EQUAL}


@pytest.mark.parametrize(("beta", "margin"), [(1.0, 0.7), (1.0, -1.5), (0.2, 3.0), (5.0, 0.1), (1.0, 60.0)])
def test_noisy_teacher_follows_the_boltzmann_formula(beta, margin):
    choices = ask(preset("noisy", beta=beta), [query([margin, 0.5], [0.0, 0.5])] * NUM_DRAWS)
    expected = 1.0 / (1.0 + np.exp(-beta * np.float32(margin)))
    assert_share(choices, Choice.LEFT, expected)
    assert_share(choices, Choice.RIGHT, 1.0 - expected)


def test_noisy_teacher_survives_huge_returns():
    choices = ask(preset("noisy"), [query([1e30], [-1e30]), query([-1e30], [1e30])])
    assert choices == [Choice.LEFT, Choice.RIGHT]


@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_mistaken_teacher_flips_with_its_probability(eps):
    choices = ask(preset("mistake", eps_mistake=eps), [query([2.0], [1.0])] * NUM_DRAWS)
    assert_share(choices, Choice.RIGHT, eps)
    assert_share(choices, Choice.LEFT, 1.0 - eps)


def test_mistakes_and_noise_combine():
    choices = ask(preset("noisy", eps_mistake=0.2), [query([1.0], [0.0])] * NUM_DRAWS)
    p = 1.0 / (1.0 + np.exp(-1.0))
    assert_share(choices, Choice.LEFT, 0.8 * p + 0.2 * (1 - p))


def test_mistakes_leave_equal_and_skip_alone():
    queries = [query([-1.0], [-1.0]), query([1.0], [1.0])] * 100
    assert ask(preset("oracle", eps_mistake=1.0), queries) == [Choice.EQUAL] * 200
    queries = [query([-1.0], [-2.0]), query([2.0], [1.0])] * 100
    choices = ask(preset("skip", eps_skip=0.9, eps_mistake=1.0), queries)
    assert choices == [Choice.SKIP, Choice.RIGHT] * 100


def test_myopic_teacher_discounts_over_time():
    early_or_late = query([3.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0])
    # 0.9 ** 4 * 3 = 1.97 < 2
    assert ask(preset("oracle"), [early_or_late]) == [Choice.LEFT]
    assert ask(preset("myopic"), [early_or_late]) == [Choice.RIGHT]
    # Discounting over the batch would leave these alone and change with the position in the batch.
    for n in (1, 2, 30):
        assert ask(preset("myopic"), [early_or_late] * n) == [Choice.RIGHT] * n


def test_myopic_teacher_agrees_with_the_weighted_sum():
    queries = random_queries(500, length=20)
    weights = 0.9 ** np.arange(19, -1, -1)
    choices = ask(preset("myopic"), queries)
    for asked, choice in zip(queries, choices, strict=True):
        margin = weights @ (asked.left.true_rewards.astype(float) - asked.right.true_rewards)
        assert choice == (Choice.LEFT if margin > 0 else Choice.RIGHT)
    assert choices != ask(preset("oracle"), queries)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("margin", "choice"), [(1.99, Choice.EQUAL), (2.01, Choice.LEFT)])
def test_equal_threshold_is_scaled_once_and_by_magnitude(sign, margin, choice):
    # 0.1 * mean |return| 200 * segment length 10 / mean episode length 100 = 2
    returns = (sign * np.array([100.0, 300.0]), np.array([50, 150]))
    left = np.full(10, sign)
    right = left.copy()
    right[0] -= margin
    for _ in range(3):  # B-Pref's threshold shrinks at the second session.
        assert ask(preset("equal"), [query(left, right)], returns) == [choice]


def test_equal_share_follows_the_formula():
    queries = random_queries(NUM_DRAWS, length=1)
    returns = (np.array([-50.0]), np.array([10]))
    threshold = 0.1 * 50.0 / 10
    expected = np.mean([abs(q.left.true_return - q.right.true_return) < threshold for q in queries])
    share = np.mean([choice == Choice.EQUAL for choice in ask(preset("equal"), queries, returns)])
    assert share == expected
    assert 0.25 < share < 0.3  # P(|N(0, 2)| < 0.5) = 0.276


def test_segments_set_the_scale_before_an_episode_is_finished():
    queries = [query([10.0, 10.0], [10.0, 9.5]), query([10.0, 10.0], [10.0, 0.0])]
    assert ask(preset("equal"), queries) == [Choice.EQUAL, Choice.LEFT]


def test_equal_wins_over_noise_and_mistakes():
    returns = (np.array([1000.0]), np.array([10]))
    queries = [query([1.0], [0.0])] * 500
    assert set(ask(preset("equal", beta=1.0, eps_mistake=0.5), queries, returns)) == {Choice.EQUAL}


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_skip_share_is_eps_for_any_sign_of_the_returns(shift, eps):
    queries = random_queries(2000, shift=shift)
    choices = ask(preset("skip", eps_skip=eps), queries)
    assert abs(np.mean([choice == Choice.SKIP for choice in choices]) - eps) <= 1 / 2000
    best = np.array([max(q.left.true_return, q.right.true_return) for q in queries])
    skipped = np.array([choice == Choice.SKIP for choice in choices])
    assert best[skipped].max() < best[~skipped].min()


def test_skip_never_drops_a_single_query_or_a_batch_of_ties():
    assert ask(preset("skip"), [query([-1.0], [-2.0])]) == [Choice.LEFT]
    assert set(ask(preset("skip"), [query([0.0], [-1.0])] * 30)) == {Choice.LEFT}


@given(
    seed=st.integers(0, 2**32 - 1),
    gamma=st.floats(0.0, 1.0),
    eps_skip=st.floats(0.0, 1.0),
    eps_equal=st.floats(0.0, 2.0),
)
@settings(max_examples=50, deadline=None)
def test_swapping_sides_swaps_the_choices_of_a_rational_teacher(seed, gamma, eps_skip, eps_equal):
    teacher = SyntheticTeacher("any", TeacherParameters(gamma=gamma, eps_skip=eps_skip, eps_equal=eps_equal))
    queries = random_queries(20, seed=seed)
    swapped = [Query(asked.right, asked.left) for asked in queries]
    mirror = {Choice.LEFT: Choice.RIGHT, Choice.RIGHT: Choice.LEFT}
    assert ask(teacher, swapped) == [mirror.get(choice, choice) for choice in ask(teacher, queries)]


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_teacher_contract(name):
    teacher = preset(name)
    queries = random_queries(40)
    assert teacher.name == name
    assert ask(teacher, []) == []
    choices = ask(teacher, queries)
    assert len(choices) == len(queries)
    assert all(isinstance(choice, Choice) for choice in choices)
    assert choices == ask(teacher, queries)
    rng = np.random.default_rng(0)
    teacher.answer(queries, rng, NO_RETURNS)
    expected = np.random.default_rng(0)
    expected.random((2, 40))
    assert rng.random() == expected.random(), "teachers draw a fixed number of numbers"


def test_presets_are_those_of_b_pref():
    assert {
        "oracle": TeacherParameters(-1.0, 1.0, 0.0, 0.0, 0.0),
        "mistake": TeacherParameters(-1.0, 1.0, 0.1, 0.0, 0.0),
        "noisy": TeacherParameters(1.0, 1.0, 0.0, 0.0, 0.0),
        "skip": TeacherParameters(-1.0, 1.0, 0.0, 0.1, 0.0),
        "myopic": TeacherParameters(-1.0, 0.9, 0.0, 0.0, 0.0),
        "equal": TeacherParameters(-1.0, 1.0, 0.0, 0.0, 0.1),
    } == TEACHERS


def test_config_replaces_single_numbers_of_the_preset():
    config = TeacherConfig(name="mistake", eps_mistake=0.0, gamma=0.5)
    assert config.parameters() == TeacherParameters(gamma=0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"beta": beta} for beta in (0.0, -2.0, np.nan, np.inf)),
        *({"gamma": 1.1}, {"eps_mistake": -0.1}, {"eps_skip": 2.0}, {"eps_equal": -1.0}, {"eps_equal": np.nan}),
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"teacher {name}"):
        TeacherConfig(**wrong)


def test_unknown_teacher_suggests():
    with pytest.raises(UnknownNameError, match="Did you mean 'oracle'"):
        TeacherConfig(name="oracel")
