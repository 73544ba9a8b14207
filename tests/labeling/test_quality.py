"""Measures against published examples, against crowd-kit, and against what they have to hold for any data."""

import time

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene as CrowdKitDawidSkene
from crowdkit.metrics.data import alpha_krippendorff
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.labeling.quality import (
    CLASSES,
    alpha_interval,
    binomial_p_value,
    consistency_counts,
    dawid_skene,
    interval_alpha,
    is_shared,
    krippendorff_alpha,
    reliability,
    response_quantiles,
    reward_weight,
    shown_left,
    wilson_interval,
)

# A person who knows the truth, and one who says anything.
PERFECT = np.eye(3)
GUESSING = np.tile([0.45, 0.45, 0.1], (3, 1))


def long_form(table):
    """Turns rows of annotators, in which a dot is a missing answer, into three columns."""
    cells = [
        (f"a{annotator}", f"q{query:02d}", value)
        for annotator, row in enumerate(table)
        for query, value in enumerate(row.split())
        if value != "."
    ]
    return tuple(list(column) for column in zip(*cells, strict=True))


def random_answers(seed, num_annotators=8, num_queries=60, overlap=4, skip_share=0.05, accuracy=0.75):
    rng = np.random.default_rng(seed)
    truths = rng.integers(3, size=num_queries)
    people, queries, choices = [], [], []
    for query, truth in enumerate(truths):
        for person in rng.choice(num_annotators, overlap, replace=False):
            word = CLASSES[truth] if rng.random() < accuracy else CLASSES[rng.integers(3)]
            people.append(f"a{person}")
            queries.append(f"q{query:04d}")
            choices.append("skip" if rng.random() < skip_share else word)
    return people, queries, choices


def simulated(confusions, prior, num_queries, overlap, seed=0):
    """Draws from the model itself: returns the three columns, and the truths by query."""
    rng = np.random.default_rng(seed)
    truths = rng.choice(3, num_queries, p=prior)
    people = np.argsort(rng.random((num_queries, len(confusions))), axis=1)[:, :overlap]
    queries = np.repeat(np.arange(num_queries), overlap)
    people = people.ravel()
    cumulated = confusions[people, truths[queries]].cumsum(axis=1)
    answers = (rng.random(len(queries))[:, None] > cumulated).sum(axis=1).clip(max=2)
    columns = (
        np.char.add("a", np.char.zfill(people.astype(str), 4)),
        np.char.add("q", np.char.zfill(queries.astype(str), 6)),
        np.array(CLASSES)[answers],
    )
    return columns, {f"q{query:06d}": CLASSES[truth] for query, truth in enumerate(truths)}


# ---------------------------------------------------------------- alpha

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections A, B and C.
PUBLISHED = [
    (["0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"], 0.095),
    (["a a b b d c c c e d d a", "b a b b b c c c e d d d"], 0.692),
    (
        [
            "1 2 3 3 2 1 4 1 2 . . .",
            "1 2 3 3 2 2 4 1 2 5 . 3",
            ". 3 3 3 2 3 4 2 2 5 1 .",
            "1 2 3 3 2 4 4 1 2 5 1 .",
        ],
        0.743,
    ),
]


@pytest.mark.parametrize(("table", "alpha"), PUBLISHED)
def test_alpha_is_that_of_krippendorffs_examples(table, alpha):
    assert krippendorff_alpha(*long_form(table)) == pytest.approx(alpha, abs=5e-4)


def test_interval_alpha_is_that_of_krippendorffs_example():
    _, queries, values = long_form(PUBLISHED[2][0])
    assert interval_alpha(queries, [float(value) for value in values]) == pytest.approx(0.849, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_crowd_kits(seed):
    people, queries, choices = random_answers(seed, skip_share=0)
    frame = pd.DataFrame({"worker": people, "task": queries, "label": choices})
    assert krippendorff_alpha(people, queries, choices) == pytest.approx(alpha_krippendorff(frame), abs=1e-9)


def test_alpha_of_full_agreement_is_one_and_of_full_disagreement_below_zero():
    assert krippendorff_alpha(["a", "b", "a", "b"], ["1", "1", "2", "2"], ["left", "left", "right", "right"]) == 1
    assert krippendorff_alpha(["a", "b", "a", "b"], ["1", "1", "2", "2"], ["left", "right", "right", "left"]) < 0


@pytest.mark.parametrize(
    "columns",
    [
        ([], [], []),
        (["a"], ["1"], ["left"]),
        (["a", "b"], ["1", "1"], ["left"] * 2),
        (["a", "b"], ["1", "1"], ["skip"] * 2),
    ],
    ids=["nothing", "one answer", "no variation", "skips"],
)
def test_alpha_of_what_says_nothing_is_nan(columns):
    assert np.isnan(krippendorff_alpha(*columns))
    assert np.isnan(alpha_interval(*columns, np.random.default_rng(0))).all()
    assert np.isnan(interval_alpha(columns[1], [0.5] * len(columns[1])))


def test_answers_of_chance_have_an_alpha_near_zero_and_the_interval_holds_it():
    columns, _ = simulated(np.stack([GUESSING] * 10), [0.45, 0.45, 0.1], 2000, 3)
    alpha = krippendorff_alpha(*columns)
    low, high = alpha_interval(*columns, np.random.default_rng(1))
    assert abs(alpha) < 0.03
    assert low < alpha < high
    assert low < 0.01
    assert high > -0.01


def test_the_interval_of_alpha_holds_the_true_one_as_often_as_it_says():
    confusions = np.stack([0.7 * PERFECT + 0.3 * GUESSING] * 20)
    prior = [0.45, 0.45, 0.1]
    truth = krippendorff_alpha(*simulated(confusions, prior, 40_000, 3, seed=1)[0])
    hits = 0
    for seed in range(100):
        columns, _ = simulated(confusions, prior, 80, 3, seed=seed + 10)
        low, high = alpha_interval(*columns, np.random.default_rng(seed), num_samples=200)
        hits += low <= truth <= high
    assert 87 <= hits <= 100


def test_the_second_answer_of_a_person_to_a_query_does_not_count_as_another_person():
    once = krippendorff_alpha(["a", "b", "a", "b"], ["1", "1", "2", "2"], ["left", "left", "right", "left"])
    twice = krippendorff_alpha(
        ["a", "b", "a", "b", "a"], ["1", "1", "2", "2", "1"], ["left", "left", "right", "left", "right"]
    )
    assert once == twice


def test_shared_answers_are_those_to_a_query_that_two_people_answered():
    assert is_shared(["a", "a", "b", "a"], ["1", "2", "2", "1"]).tolist() == [False, True, True, False]
    assert is_shared([], []).tolist() == []


# ---------------------------------------------------------------- Dawid and Skene


@pytest.mark.parametrize("seed", range(6))
def test_without_smoothing_it_is_crowd_kits(seed):
    people, queries, choices = random_answers(seed, num_queries=120, skip_share=0)
    frame = pd.DataFrame({"worker": people, "task": queries, "label": choices})
    theirs = CrowdKitDawidSkene(n_iter=100).fit(frame)
    # As many rounds: it moves slowly where two truths are nearly as likely.
    ours = dawid_skene(people, queries, choices, smoothing=0, tolerance=0.0, max_iterations=len(theirs.loss_history_))
    posteriors = theirs.probas_.loc[list(ours.query_ids), list(CLASSES)].to_numpy()
    np.testing.assert_allclose(ours.posteriors, posteriors, atol=1e-7)
    np.testing.assert_allclose(ours.prior, theirs.priors_.loc[list(CLASSES)].to_numpy(), atol=1e-7)
    for person, confusion in zip(ours.annotator_ids, ours.confusions, strict=True):
        # Theirs has a row for each answer and a column for each truth, and no row for words never said.
        errors = theirs.errors_.loc[person].reindex(index=list(CLASSES), columns=list(CLASSES)).fillna(0).to_numpy()
        np.testing.assert_allclose(confusion, errors.T, atol=1e-7)


def test_one_round_by_hand():
    # Two people on two queries: agreed left, disputed.
    fit = dawid_skene(
        ["a", "b", "a", "b"], ["1", "1", "2", "2"], ["left", "left", "left", "right"], smoothing=0, max_iterations=1
    )
    # Votes: q1 (1, 0), q2 (1/2, 1/2). a answers left whatever is true; b left 1 of 1.5 where left is true, else right.
    # q2: left 3/4 x 1 x 1/3, right 1/4 x 1 x 1; q1: left 3/4 x 1 x 2/3, right 1/4 x 1 x 0.
    np.testing.assert_allclose(fit.posteriors[0], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(fit.posteriors[1], [0.5, 0.5, 0], atol=1e-6)


def test_known_confusions_are_recovered():
    confusions = np.stack(
        [
            np.array([[0.95, 0.03, 0.02], [0.03, 0.95, 0.02], [0.1, 0.1, 0.8]]),
            np.array([[0.9, 0.05, 0.05], [0.2, 0.75, 0.05], [0.3, 0.2, 0.5]]),
            np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]),
            np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]),
            np.array([[0.7, 0.1, 0.2], [0.1, 0.7, 0.2], [0.05, 0.05, 0.9]]),
        ]
    )
    prior = np.array([0.4, 0.4, 0.2])
    columns, truths = simulated(confusions, prior, 20_000, 4)
    fit = dawid_skene(*columns, smoothing=0)
    assert fit.has_converged
    # About 3200 answers behind the rarest row: three standard errors of a share are 0.027.
    np.testing.assert_allclose(fit.confusions, confusions, atol=0.03)
    np.testing.assert_allclose(fit.prior, prior, atol=0.015)
    guesses = np.array(CLASSES)[fit.posteriors.argmax(axis=1)]
    assert np.mean(guesses == [truths[query] for query in fit.query_ids]) > 0.94
    # Calibrated: among queries thought p sure, about p are right.
    sure = fit.posteriors.max(axis=1)
    is_right = guesses == [truths[query] for query in fit.query_ids]
    for low, high in ((0.5, 0.8), (0.8, 0.95), (0.95, 1.0)):
        inside = (sure >= low) & (sure <= high)
        assert is_right[inside].mean() == pytest.approx(sure[inside].mean(), abs=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_and_the_names_of_people_and_queries_change_nothing(seed):
    people, queries, choices = random_answers(seed, num_queries=30)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(people))
    names = dict(zip(sorted(set(people)), rng.permutation([f"b{i}" for i in range(len(set(people)))]), strict=True))
    numbers = dict(zip(sorted(set(queries)), rng.permutation(sorted(set(queries))), strict=True))
    shuffled = (
        [names[people[i]] for i in order],
        [numbers[queries[i]] for i in order],
        [choices[i] for i in order],
    )
    assert krippendorff_alpha(*shuffled) == pytest.approx(krippendorff_alpha(people, queries, choices), abs=1e-12)
    one, other = dawid_skene(people, queries, choices), dawid_skene(*shuffled)
    for person, confusion in zip(one.annotator_ids, one.confusions, strict=True):
        np.testing.assert_allclose(other.confusions[other.annotator_ids.index(names[person])], confusion, atol=1e-3)


def test_swapping_left_and_right_swaps_the_matrices_and_keeps_the_reliability():
    people, queries, choices = random_answers(3)
    swap = {"left": "right", "right": "left", "equal": "equal", "skip": "skip"}
    one, other = dawid_skene(people, queries, choices), dawid_skene(people, queries, [swap[word] for word in choices])
    np.testing.assert_allclose(other.confusions, one.confusions[:, [1, 0, 2]][:, :, [1, 0, 2]], atol=1e-6)
    np.testing.assert_allclose(
        reliability(one.confusions, one.prior), reliability(other.confusions, other.prior), atol=1e-6
    )


def test_one_perfect_annotator_among_weak_ones_gets_the_greatest_weight():
    weak = 0.4 * PERFECT + 0.6 * GUESSING
    columns, _ = simulated(np.stack([*[weak] * 6, PERFECT, *[weak] * 5]), [0.45, 0.45, 0.1], 1500, 5, seed=4)
    fit = dawid_skene(*columns)
    weights = reward_weight(reliability(fit.confusions, fit.prior))
    assert weights.argmax() == 6
    assert weights[6] > 0.9
    assert np.delete(weights, 6).max() < 0.6


def test_gold_tells_the_perfect_annotator_from_those_who_guess():
    # Without gold this cannot be known: answers of people who guess say nothing about each other's.
    columns, truths = simulated(np.stack([*[GUESSING] * 6, PERFECT]), [0.45, 0.45, 0.1], 600, 3, seed=5)
    gold = {query: truths[query] for query in sorted(truths)[:60]}
    fit = dawid_skene(*columns, known=gold)
    values = reliability(fit.confusions, fit.prior)
    assert values.argmax() == 6
    assert values[6] > 0.9
    assert np.abs(np.delete(values, 6) - 0.5).max() < 0.15
    for query, truth in gold.items():
        if query in fit.query_ids:
            assert fit.posteriors[fit.query_ids.index(query), CLASSES.index(truth)] == 1


def test_twenty_answers_tell_those_who_guess_from_the_careful():
    # What docs/labelling-quality.md says of its simulation.
    careful = 0.85 * PERFECT + 0.15 * GUESSING
    columns, _ = simulated(np.stack([careful] * 80 + [GUESSING] * 20), [0.45, 0.45, 0.1], 666, 3, seed=7)
    fit = dawid_skene(*columns)
    values = reliability(fit.confusions, fit.prior)
    is_guessing = np.array([int(name[1:]) >= 80 for name in fit.annotator_ids])
    assert (values[~is_guessing][:, None] > values[is_guessing]).mean() > 0.97
    assert reward_weight(values)[~is_guessing].mean() == pytest.approx(0.81, abs=0.05)
    assert reward_weight(values)[is_guessing].mean() == pytest.approx(0.24, abs=0.1)


def test_somebody_with_few_answers_is_taken_to_be_like_the_others():
    columns, _ = simulated(np.stack([0.9 * PERFECT + 0.1 * GUESSING] * 5), [0.45, 0.45, 0.1], 400, 3, seed=6)
    people, queries, choices = (list(column) for column in columns)
    wrong = {"left": "right", "right": "left", "equal": "equal"}
    fit = dawid_skene([*people, "new"], [*queries, queries[0]], [*choices, wrong[choices[0]]])
    values = dict(zip(fit.annotator_ids, reliability(fit.confusions, fit.prior), strict=True))
    others = np.mean([value for name, value in values.items() if name != "new"])
    assert others - 0.25 < values["new"] < others
    harsh = dawid_skene([*people, "new"], [*queries, queries[0]], [*choices, wrong[choices[0]]], smoothing=0)
    assert (
        dict(zip(harsh.annotator_ids, reliability(harsh.confusions, harsh.prior), strict=True))["new"] < values["new"]
    )


def test_no_answers_give_an_empty_fit():
    for columns in (([], [], []), (["a"], ["1"], ["skip"])):
        fit = dawid_skene(*columns)
        assert fit.confusions.shape == (0, 3, 3)
        assert fit.posteriors.shape == (0, 3)
        assert fit.has_converged


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="'up' is none of left, right, equal, skip"):
        dawid_skene(["a"], ["1"], ["up"])


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        (PERFECT, 1.0),
        (PERFECT[[1, 0, 2]], 0.2),
        (np.tile([1.0, 0.0, 0.0], (3, 1)), 0.5),
        (np.tile([0.0, 0.0, 1.0], (3, 1)), 0.6),
        (np.tile([0.5, 0.5, 0.0], (3, 1)), 0.5),
    ],
    ids=["perfect", "reversed", "always left", "always equal", "coin"],
)
def test_reliability_by_hand(confusion, expected):
    # A fifth of the queries is equal. However often left is right, always saying left knows nothing.
    for left in (0.4, 0.7):
        assert reliability(confusion, [left, 0.8 - left, 0.2]) == pytest.approx(expected)


def test_weights_are_what_a_label_is_worth():
    np.testing.assert_allclose(reward_weight([1.0, 0.9, 0.75, 0.5, 0.0]), [1.0, 0.8, 0.5, 0.05, 0.05])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_reliability_and_weight_stay_within_their_bounds(seed):
    rng = np.random.default_rng(seed)
    values = reliability(rng.dirichlet([0.3] * 3, size=(7, 3)), rng.dirichlet([0.5] * 3))
    weights = reward_weight(values)
    assert ((values >= 0) & (values <= 1)).all()
    assert ((weights > 0) & (weights <= 1)).all()


# ---------------------------------------------------------------- shares


def test_wilsons_interval_by_hand():
    # 8 of 10, z = 1.96: (0.8 + 0.19207 -+ 1.96 sqrt(0.016 + 0.0096036)) / 1.38415
    low, high = wilson_interval(8, 10)
    assert (float(low), float(high)) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    low, high = wilson_interval([0, 0, 5], [0, 5, 5])
    assert (low[0], high[0], low[1], high[2]) == (0, 1, 0, 1)
    assert 0.3 < high[1] < 0.5


def test_wilsons_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.9):
        low, high = wilson_interval(rng.binomial(40, share, 20_000), 40)
        assert 0.92 < np.mean((low <= share) & (share <= high)) < 0.98


@pytest.mark.parametrize(
    ("hits", "trials", "p_value"),
    [(0, 0, 1.0), (5, 10, 1.0), (0, 10, 2 / 1024), (10, 10, 2 / 1024), (2, 10, 2 * 56 / 1024), (1, 3, 1.0)],
)
def test_binomial_p_values_by_hand(hits, trials, p_value):
    assert binomial_p_value(hits, trials) == pytest.approx(p_value, rel=1e-9)


def test_binomial_p_values_are_right_for_many_trials():
    # The normal approximation with continuity correction: z = (50_000 - 49_500 - 0.5) / sqrt(25_000).
    assert binomial_p_value(49_500, 100_000) == pytest.approx(0.00158, abs=2e-5)
    assert binomial_p_value(0, 100_000) == 0
    with pytest.raises(ValueError, match="4 hits of 3 trials"):
        binomial_p_value(4, 3)


def test_p_values_of_fair_coins_are_below_five_percent_at_most_so_often():
    rng = np.random.default_rng(0)
    values = [binomial_p_value(int(hits), 60) for hits in rng.binomial(60, 0.5, 4000)]
    assert 0.02 < np.mean(np.array(values) < 0.05) < 0.055


def test_the_side_on_the_screen_is_the_side_of_the_query_unless_flipped():
    is_left, is_decided = shown_left(
        ["left", "left", "right", "right", "equal", "skip"], [False, True, False, True, False, True]
    )
    assert is_left.tolist() == [True, False, False, True, False, False]
    assert is_decided.tolist() == [True, True, True, True, False, False]


def test_consistency_compares_repeats_with_the_first_answer():
    rows = [
        ("a", "1", "left", 0),
        ("b", "1", "right", 0),
        ("a", "1", "left", 1),
        ("a", "2", "equal", 0),
        ("a", "2", "left", 1),
        ("b", "1", "right", 1),
        ("b", "2", "skip", 0),
        ("b", "2", "left", 1),
        ("c", "1", "left", 0),
        ("d", "9", "left", 1),
    ]
    assert consistency_counts(*zip(*rows, strict=True)) == {"a": (1, 2), "b": (1, 1)}
    assert consistency_counts([], [], [], []) == {}


def test_response_times_are_seconds():
    assert response_quantiles([1000, 2000, 3000], (0, 0.5, 1)) == [1, 2, 3]
    assert np.isnan(response_quantiles([])).all()


def test_a_hundred_thousand_answers_take_well_under_a_second_each():
    confusions = np.stack([0.7 * PERFECT + 0.3 * GUESSING] * 1000)
    columns, _ = simulated(confusions, [0.45, 0.45, 0.1], 33_334, 3)
    took = {}
    for name, measure in (
        ("alpha", lambda: krippendorff_alpha(*columns)),
        ("interval", lambda: alpha_interval(*columns, np.random.default_rng(0))),
        ("dawid_skene", lambda: dawid_skene(*columns)),
        ("consistency", lambda: consistency_counts(*columns, np.zeros(len(columns[0]), int))),
        ("position", lambda: shown_left(columns[2], np.zeros(len(columns[0]), bool))),
    ):
        # Processor time, as the machine may be busy.
        start = time.process_time()
        measure()
        took[name] = round(time.process_time() - start, 3)
    print(took)
    assert max(took.values()) < 2.5, took
