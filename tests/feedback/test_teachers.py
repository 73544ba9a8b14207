from math import erf, exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.data import Choice, Query, Segment
from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.feedback import (
    TEACHER_DESCRIPTIONS,
    TEACHERS,
    BPrefTeacher,
    SyntheticTeacher,
    TeacherConfig,
    TeacherParameters,
    make_teacher,
)

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


def ask(teacher, queries, returns=NO_RETURNS, seed: int = 0, feedback_session: int = 0) -> list[Choice]:
    return teacher.answer(queries, np.random.default_rng(seed), returns, feedback_session)


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


@pytest.mark.parametrize("gamma", [0.9, 0.5])
def test_myopic_share_follows_the_formula(gamma):
    """W of left - W of right is normal with mean lead * gamma ** (L - 1) and variance 2 * sum of gamma ** (2 k)."""
    rng = np.random.default_rng(0)
    length, lead = 5, 0.5
    rewards = rng.normal(size=(NUM_DRAWS, 2, length))
    rewards[:, 0, 0] += lead
    choices = ask(preset("myopic", gamma=gamma), [query(left, right) for left, right in rewards])
    std = np.sqrt(2 * np.sum(gamma ** (2 * np.arange(length))))
    assert_share(choices, Choice.LEFT, 0.5 * (1 + erf(lead * gamma ** (length - 1) / std / np.sqrt(2))))


def test_myopic_and_noisy_teacher_is_noisy_about_the_weighted_sum():
    choices = ask(preset("noisy", gamma=0.5, beta=2.0), [query([1.0, 0.0, 0.25], [0.0, 0.0, 0.0])] * NUM_DRAWS)
    assert_share(choices, Choice.LEFT, 1.0 / (1.0 + np.exp(-2.0 * (0.25 * 1.0 + 0.25))))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("margin", "choice"), [(1.99, Choice.EQUAL), (2.01, Choice.LEFT)])
def test_equal_threshold_is_scaled_once_and_by_magnitude(sign, margin, choice):
    # 0.1 * mean |return| 200 * segment length 10 / mean episode length 100 = 2
    returns = (sign * np.array([100.0, 300.0]), np.array([50, 150]))
    left = np.full(10, sign)
    right = left.copy()
    right[0] -= margin
    for feedback_session in range(3):  # B-Pref's threshold shrinks at the second session.
        assert ask(preset("equal"), [query(left, right)], returns, feedback_session=feedback_session) == [choice]


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


@pytest.mark.parametrize("session_size", [2, 3, 5, 7, 12, 20])
@pytest.mark.parametrize("eps", [0.1, 0.35])
def test_skip_share_is_eps_for_any_size_of_the_session(session_size, eps):
    rng = np.random.default_rng(5)
    teacher, skipped = preset("skip", eps_skip=eps), []
    queries = random_queries(NUM_DRAWS)
    for start in range(0, NUM_DRAWS, session_size):
        asked = queries[start : start + session_size]
        is_skip = [choice == Choice.SKIP for choice in teacher.answer(asked, rng, NO_RETURNS)]
        assert sum(is_skip) in (int(eps * len(asked)), int(eps * len(asked)) + 1)
        skipped += is_skip
    assert abs(np.mean(skipped) - eps) <= 4.5 * np.sqrt(eps * (1 - eps) / NUM_DRAWS), np.mean(skipped)


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


# ---------------------------------------------------------------- B-Pref as published


def compat(name: str = "oracle", **parameters: float):
    teacher = make_teacher(TeacherConfig(name=name, bpref_compat=True, **parameters))
    assert isinstance(teacher, BPrefTeacher)
    return teacher


def slow_bpref(queries, parameters, returns, feedback_session, draws) -> list[str]:
    """B-Pref's teacher written down step by step from the description of its code, one query after the other."""
    episode_returns, episode_lengths = returns
    length = len(queries[0].left)
    margin = 0.0
    if len(episode_returns):
        margin = sum(episode_returns) / len(episode_returns) * length / (sum(episode_lengths) / len(episode_lengths))
    thr_skip, thr_equal = margin * parameters.eps_skip, margin * parameters.eps_equal
    if feedback_session > 0:
        thr_skip, thr_equal = thr_skip * parameters.eps_skip, thr_equal * parameters.eps_equal
    words = []
    for number, asked in enumerate(queries):
        sums = [sum(float(reward) for reward in side.true_rewards) for side in (asked.left, asked.right)]
        if thr_skip > 0 and not max(sums) > thr_skip:
            words.append("skip")
            continue
        weighted = [0.0, 0.0]
        for i, side in enumerate((asked.left, asked.right)):
            for reward in side.true_rewards:
                weighted[i] = weighted[i] * parameters.gamma + float(reward)
        # Label 1 says that right is better.
        label = 1 if weighted[0] < weighted[1] else 0
        if parameters.beta > 0:
            scaled = [parameters.beta * value for value in weighted]
            p_left = exp(scaled[0] - max(scaled)) / sum(exp(value - max(scaled)) for value in scaled)
            label = 0 if draws[0][number] < p_left else 1
        if draws[1][number] < parameters.eps_mistake:
            label = 1 - label
        is_equal = abs(sums[0] - sums[1]) < thr_equal
        words.append("equal" if is_equal else ("left", "right")[label])
    return words


@given(
    rewards=st.lists(st.tuples(*[st.lists(st.integers(-3, 6), min_size=4, max_size=4)] * 2), min_size=1, max_size=25),
    beta=st.sampled_from([-1.0, 0.3, 1.0, 10.0]),
    gamma=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    eps=st.tuples(st.sampled_from([0.0, 0.25, 1.0]), *[st.sampled_from([0.0, 0.1, 0.5, 1.0])] * 2),
    episodes=st.lists(st.tuples(st.integers(-40, 80), st.integers(4, 20)), max_size=4),
    feedback_session=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_compatible_teacher_is_b_prefs(rewards, beta, gamma, eps, episodes, feedback_session, seed):
    """Whole rewards and gammas that are powers of two leave no rounding in sums, so that ties are ties in both."""
    parameters = TeacherParameters(beta, gamma, *eps)
    queries = [query(left, right) for left, right in rewards]
    returns = tuple(np.array([episode[i] for episode in episodes], kind) for i, kind in ((0, float), (1, np.int64)))
    draws = np.random.default_rng(seed).random((2, len(queries)))
    choices = ask(BPrefTeacher("any", parameters), queries, returns, seed, feedback_session)
    assert choices == slow_bpref(queries, parameters, returns, feedback_session, draws)


@pytest.mark.parametrize("name", sorted(TEACHERS))
@pytest.mark.parametrize("feedback_session", [0, 1])
def test_compatible_presets_are_b_prefs(name, feedback_session):
    queries = random_queries(500, length=7)
    returns = (np.array([30.0, 10.0]), np.array([50, 150]))
    draws = np.random.default_rng(5).random((2, 500))
    expected = slow_bpref(queries, TEACHERS[name], returns, feedback_session, draws)
    assert ask(compat(name), queries, returns, 5, feedback_session) == expected


@pytest.mark.parametrize("name", ["equal", "skip"])
def test_compatible_thresholds_are_multiplied_by_eps_twice_from_the_second_session_on(name):
    # 0.1 * mean return 200 * segment length 10 / mean episode length 100 = 2, then 0.1 * 2 = 0.2
    returns = (np.array([100.0, 300.0]), np.array([50, 150]))
    queries = [query([best] + [0.0] * 9, [0.0] * 10) for best in (0.19, 0.21, 1.99, 2.01)]
    word = Choice(name)
    answers = [ask(compat(name), queries, returns, feedback_session=number) for number in range(4)]
    assert answers[0] == [word] * 3 + [Choice.LEFT]
    assert answers[1] == answers[2] == answers[3] == [word] + [Choice.LEFT] * 3


def test_compatible_thresholds_include_skips_and_exclude_ties():
    # 0.5 * return 8 * segment length 2 / episode length 4 = 2
    returns, queries = (np.array([8.0]), np.array([4])), [query([2.0, 0.0], [0.0, 0.0])]
    assert ask(compat(eps_skip=0.5), queries, returns) == [Choice.SKIP]
    assert ask(compat(eps_equal=0.5), queries, returns) == [Choice.LEFT]


@pytest.mark.parametrize("name", ["equal", "skip"])
@pytest.mark.parametrize("returns", [(np.array([-200.0]), np.array([100])), NO_RETURNS], ids=["negative", "none"])
def test_compatible_thresholds_are_off_for_negative_returns_and_before_the_first(name, returns):
    queries = random_queries(500, shift=-1.0)
    assert ask(compat(name), queries, returns) == ask(compat("oracle"), queries, returns)


def test_compatible_ties_are_left():
    tie = query([1.0, 0.0], [0.0, 1.0])
    assert set(ask(compat("oracle"), [tie] * 100)) == {Choice.LEFT}
    assert_share(ask(compat("mistake"), [tie] * NUM_DRAWS), Choice.RIGHT, 0.1)
    assert_share(ask(compat("noisy"), [tie] * NUM_DRAWS), Choice.LEFT, 0.5)


def test_compatible_teachers_draw_the_same_numbers():
    rngs = [np.random.default_rng(0), np.random.default_rng(0)]
    queries = random_queries(9)
    for teacher, rng in zip((compat("noisy"), preset("noisy")), rngs, strict=True):
        teacher.answer(queries, rng, NO_RETURNS)
    assert rngs[0].random() == rngs[1].random()


# ---------------------------------------------------------------- settings of all kinds

JUDGE = {"kind": "judge", "url": "https://example.com/v1", "model": "m", "prompt": "p"}


def test_every_preset_and_kind_has_one_line():
    assert list(TEACHER_DESCRIPTIONS) == [*TEACHERS, "synthetic", "scripted", "judge", "human"]
    assert all(text and "\n" not in text and len(text) < 110 for text in TEACHER_DESCRIPTIONS.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"kind": "scripted", "function": "a:b", "eps_mistake": 0.1},
            "teacher.eps_mistake was given.*scripted.*Used by: synthetic",
        ),
        ({"kind": "scripted", "function": "a:b", "name": "noisy"}, "teacher.name was given"),
        ({"kind": "scripted", "function": "a:b", "num_frames": 3}, "teacher.num_frames.*teacher.kind=judge"),
        ({"function": "a:b"}, "teacher.function was given, but teacher.kind is synthetic.*teacher.kind=scripted"),
        ({"url": "http://localhost"}, "teacher.url was given"),
        ({**JUDGE, "beta": 1.0}, "teacher.beta was given, but teacher.kind is judge"),
        ({**JUDGE, "bpref_compat": True}, "teacher.bpref_compat was given"),
        ({"kind": "scripted"}, "needs teacher.function.*package.module:function"),
        *(({**JUDGE, name: None}, f"teacher.kind=judge needs teacher.{name}") for name in ("url", "model", "prompt")),
        *(
            ({**JUDGE, "url": url}, "is no address")
            for url in (
                *("example.com/v1", "ftp://example.com", "http://", "http://[", "http://a..b/v1", "http://xn--a"),
                *("http://a\x7fb", "http://a\u200bb", f"http://{'a' * 64}.com", "http://localhost:0", "http://a:b"),
            )
        ),
        ({**JUDGE, "url": "https://me:secret@example.com/v1"}, "holds a user name"),
        ({**JUDGE, "url": "https://example.com/v1?key=secret"}, "holds a user name"),
        ({**JUDGE, "api_key_env": "sk-secret"}, "no name of an environment variable"),
        ({**JUDGE, "max_cost": 1.0}, "without prices"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(wrong, message):
    with pytest.raises(ConfigError, match=message) as raised:
        TeacherConfig(**wrong)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "oracle"),
        ({"name": "noisy", "bpref_compat": True}, "noisy"),
        ({"kind": "scripted", "function": "a.b:c"}, "a.b:c"),
        (JUDGE, "judge:m"),
    ],
)
def test_the_name_that_is_stored(config, name):
    assert TeacherConfig(**config).teacher_name == name


def test_settings_survive_being_stored():
    for config in (TeacherConfig(), TeacherConfig(kind="scripted", function="a:b"), TeacherConfig(**JUDGE)):
        assert TeacherConfig.model_validate_json(config.model_dump_json()) == config
