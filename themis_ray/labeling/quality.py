"""How far answers can be trusted: agreement, reliability, bias, consistency. Pure functions over arrays.

Every measure takes parallel sequences, one entry for each answer, and works on the choices in the order of the query.
A skip is no answer: it counts as missing everywhere but in the position of the clips, where it says nothing either.
Whatever cannot be known, such as the agreement of a single person, is NaN.
`docs/labelling-quality.md` says what each measure means and how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from themis_ray.data import Choice, left_probability

__all__ = [
    "CLASSES",
    "DawidSkene",
    "alpha_interval",
    "binomial_p_value",
    "consistency_counts",
    "dawid_skene",
    "interval_alpha",
    "is_shared",
    "krippendorff_alpha",
    "reliability",
    "response_quantiles",
    "reward_weight",
    "shown_left",
    "wilson_interval",
]

# The classes of Dawid-Skene, in the order of every axis that runs over them, and the label that each stands for.
_LABELS = {str(choice): left_probability(choice) for choice in Choice}
CLASSES = tuple(word for word, label in _LABELS.items() if label is not None)
LABELS = np.array([_LABELS[word] for word in CLASSES], np.float64)
LEFT, RIGHT, _ = CLASSES
# The classes when sides are swapped.
MIRROR = np.array([1, 0, 2])
MISSING = str(Choice.SKIP)

MIN_PROBABILITY = 1e-10
MIN_WEIGHT = 0.05

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Names or words, one for each answer.
Words = Sequence[str] | NDArray[np.str_]


# ---------------------------------------------------------------- agreement


def krippendorff_alpha(annotator_ids: Words, query_ids: Words, choices: Words) -> float:
    """Returns Krippendorff's alpha for nominal data: 1 is full agreement, 0 what chance gives, below 0 worse than that.

    alpha = 1 - D_o / D_e, the disagreement that is observed among pairs of answers to the same query over the one that
    is expected if answers were dealt out anew. Queries with one answer are left out. See Krippendorff, "Computing
    Krippendorff's Alpha-Reliability" (2011).

    Args:
        annotator_ids: Who answered. Of two answers of a person to the same query the first counts.
        query_ids: What was answered.
        choices: What was chosen; any words, of which "skip" means that there is no answer.

    Returns:
        NaN where no query has two answers, or all answers are the same, which says nothing about agreement.
    """
    votes = _votes(annotator_ids, query_ids, choices)
    return float(_alpha(votes, np.ones((1, len(votes)), np.int64))[0])


def alpha_interval(
    annotator_ids: Words,
    query_ids: Words,
    choices: Words,
    rng: np.random.Generator,
    num_samples: int = 500,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Returns a percentile bootstrap interval of `krippendorff_alpha`, for which queries are drawn anew.

    Returns:
        Lower and upper end; NaN twice where alpha is NaN.
    """
    votes = _votes(annotator_ids, query_ids, choices)
    if np.isnan(krippendorff_alpha(annotator_ids, query_ids, choices)):
        return np.nan, np.nan
    # Few patterns of votes occur, so drawing how often each does is drawing all queries.
    patterns, counts = np.unique(votes, axis=0, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=num_samples)
    alphas = _alpha(patterns, drawn)
    alphas = alphas[~np.isnan(alphas)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(alphas, [tail, 1 - tail])
    return float(low), float(high)


def interval_alpha(query_ids: Words, values: ArrayLike) -> float:
    """Returns Krippendorff's alpha for numbers, such as ratings, whose distance is the square of their difference.

    Returns:
        NaN where no query has two answers, or all answers are the same.
    """
    numbers = np.asarray(values, np.float64)
    queries, rows = np.unique(np.asarray(query_ids, str), return_inverse=True)
    counts = np.bincount(rows, minlength=len(queries))
    is_pairable = (counts > 1)[rows]
    rows, numbers = rows[is_pairable], numbers[is_pairable]
    num_values = len(numbers)
    expected = num_values * np.square(numbers - numbers.mean()).sum() / (num_values - 1) if num_values else 0.0
    if not expected:
        return np.nan
    sums = np.bincount(rows, numbers, len(queries))
    squares = np.square(numbers - (sums / np.maximum(counts, 1))[rows])
    spread = np.bincount(rows, squares, len(queries))
    observed = (counts * spread / np.maximum(counts - 1, 1)).sum()
    return float(1.0 - observed / expected)


def is_shared(annotator_ids: Words, query_ids: Words) -> NDArray[np.bool_]:
    """Returns which answers are to a query that another person answered too."""
    queries, rows = np.unique(np.asarray(query_ids, str), return_inverse=True)
    _, people = np.unique(np.asarray(annotator_ids, str), return_inverse=True)
    pairs = np.unique(np.stack([rows, people]), axis=1) if len(rows) else np.empty((2, 0), np.int64)
    shared: NDArray[np.bool_] = (np.bincount(pairs[0], minlength=len(queries)) > 1)[rows]
    return shared


def _votes(annotator_ids: Words, query_ids: Words, choices: Words) -> Ints:
    """Returns (queries with at least two answers, values) how many people gave which answer."""
    words = np.asarray(choices, str)
    is_given = words != MISSING
    values, columns = np.unique(words[is_given], return_inverse=True)
    queries, rows = np.unique(np.asarray(query_ids, str)[is_given], return_inverse=True)
    people, numbers = np.unique(np.asarray(annotator_ids, str)[is_given], return_inverse=True)
    _, first = np.unique(rows * max(1, len(people)) + numbers, return_index=True)
    flat = np.bincount(rows[first] * len(values) + columns[first], minlength=len(queries) * len(values))
    votes = flat.reshape(len(queries), len(values))
    return np.asarray(votes[votes.sum(axis=1) > 1], np.int64)


def _alpha(votes: Ints, times: Ints) -> Floats:
    """Returns alpha of each sample.

    Args:
        votes: (queries, values), as `_votes` counts them.
        times: (samples, queries), how often each query occurs.
    """
    sizes = votes.sum(axis=1)
    disagreeing = (sizes**2 - (votes**2).sum(axis=1)) / np.maximum(sizes - 1, 1)
    observed = times @ disagreeing
    totals = (times @ votes).astype(np.float64)
    num_values = totals.sum(axis=1)
    expected = (num_values**2 - (totals**2).sum(axis=1)) / np.maximum(num_values - 1, 1)
    alphas = np.full(len(times), np.nan)
    return np.asarray(1.0 - np.divide(observed, expected, out=alphas, where=expected > 0), np.float64)


# ---------------------------------------------------------------- reliability


@dataclass(frozen=True, eq=False)
class DawidSkene:
    """What Dawid and Skene's model says of the people and of the queries.

    Attributes:
        annotator_ids: Sorted.
        query_ids: Sorted.
        confusions: (annotators, 3, 3): probability that a person answers [.., .., column] where the truth is row.
        posteriors: (queries, 3): probability of each truth.
        prior: (3,): how frequent each truth is.
        num_answers: (annotators,): answers that each estimate rests on, skips left out.
        num_iterations: Rounds until nothing moved any more.
        has_converged: Whether that was reached.
    """

    annotator_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    confusions: Floats
    posteriors: Floats
    prior: Floats
    num_answers: Ints
    num_iterations: int
    has_converged: bool


@dataclass(frozen=True, eq=False)
class _Rows:
    """Answers as numbers: who, about what, which class, and who said which class as one number."""

    annotators: Ints
    queries: Ints
    classes: Ints
    cells: Ints
    num_annotators: int
    num_queries: int


def dawid_skene(
    annotator_ids: Words,
    query_ids: Words,
    choices: Words,
    *,
    known: Mapping[str, str] | None = None,
    smoothing: float = 2.0,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> DawidSkene:
    """Estimates together what is true of each query and how each person errs, by expectation-maximisation.

    Each query has a hidden truth k, drawn with probability p_k; person j answers l with probability pi_jkl. It starts
    from the share of votes of each query, so that the same answers give the same result. See Dawid and Skene, "Maximum
    likelihood estimation of observer error-rates using the EM algorithm" (1979).

    Args:
        annotator_ids: Who answered.
        query_ids: What was answered.
        choices: left, right, equal or skip.
        known: Truth of some queries, such as gold pairs; these stay as they are.
        smoothing: Each row of a person's matrix gets so many answers more that are spread as those of all people
            together, sides swapped too, so that somebody with few answers is taken to be like the others. 0: maximum
            likelihood.
        tolerance: It ends when no probability of a truth moves by more.
        max_iterations: It ends at the latest after so many rounds.

    Raises:
        ValueError: A choice or truth is none of the words.
    """
    rows, people, queries = _encode(annotator_ids, query_ids, choices)
    # Inside, truths are the first axis, over which numpy is quick.
    fixed = _one_hot(queries, known or {})
    posteriors = _clamp(_majority(rows), fixed)
    confusions, prior = _maximise(rows, posteriors, smoothing)
    has_converged = not len(queries)
    num_iterations = 0
    while not has_converged and num_iterations < max_iterations:
        updated = _clamp(_expect(rows, confusions, prior), fixed)
        has_converged = bool(np.abs(updated - posteriors).max() < tolerance)
        posteriors = updated
        confusions, prior = _maximise(rows, posteriors, smoothing)
        num_iterations += 1
    return DawidSkene(
        annotator_ids=people,
        query_ids=queries,
        confusions=confusions,
        posteriors=np.ascontiguousarray(posteriors.T),
        prior=prior,
        num_answers=np.bincount(rows.annotators, minlength=len(people)),
        num_iterations=num_iterations,
        has_converged=has_converged,
    )


def reliability(confusions: ArrayLike, prior: ArrayLike) -> Floats:
    """Returns how near a person's labels are to the truth: 1 always right, 0.5 knows nothing, 0 always the opposite.

    1 - sum_k q_k sum_l pi_kl |y_k - y_l|, where y is 1, 0 and 0.5 for left, right and equal: to call a clear pair equal
    is half an error. q is the prior with left and right made equally likely, as which clip of a pair is called left is
    chance: so somebody who always says left knows nothing, whatever the share of left is.

    Args:
        confusions: (..., 3, 3), of `DawidSkene`.
        prior: (3,), of `DawidSkene`.
    """
    frequency = np.asarray(prior, np.float64)
    side = (frequency[0] + frequency[1]) / 2
    balanced = np.array([side, side, frequency[2]])
    distances = np.abs(LABELS[:, None] - LABELS[None, :])
    errors = np.einsum("k,...kl,kl->...", balanced, np.asarray(confusions, np.float64), distances)
    return np.asarray(np.clip(1.0 - errors, 0.0, 1.0), np.float64)


def reward_weight(reliabilities: ArrayLike) -> Floats:
    """Returns the weight of a person's answers in the loss of the reward model, in [0.05, 1].

    w = 2 r - 1, at least 0.05. If a label is turned round with probability e = 1 - r, then the expected gradient of the
    cross-entropy is (1 - 2e) times that of the right label, plus e times a pull towards p = 1/2 that does not depend on
    the truth (Natarajan et al., "Learning with noisy labels", 2013): 1 - 2e = 2r - 1 is what the label is worth.
    """
    return np.asarray(np.clip(2.0 * np.asarray(reliabilities, np.float64) - 1.0, MIN_WEIGHT, 1.0), np.float64)


def _encode(annotator_ids: Words, query_ids: Words, choices: Words) -> tuple[_Rows, tuple[str, ...], tuple[str, ...]]:
    words = np.asarray(choices, str)
    is_given = words != MISSING
    people, annotators = np.unique(np.asarray(annotator_ids, str)[is_given], return_inverse=True)
    queries, numbers = np.unique(np.asarray(query_ids, str)[is_given], return_inverse=True)
    classes = _to_classes(words[is_given])
    rows = _Rows(annotators, numbers, classes, annotators * 3 + classes, len(people), len(queries))
    return rows, tuple(people.tolist()), tuple(queries.tolist())


def _to_classes(words: NDArray[np.str_]) -> Ints:
    classes = np.full(len(words), -1, np.int64)
    for number, word in enumerate(CLASSES):
        classes[words == word] = number
    if (classes < 0).any():
        raise ValueError(f"choice {str(words[classes < 0][0])!r} is none of {', '.join((*CLASSES, MISSING))}")
    return classes


def _one_hot(queries: tuple[str, ...], known: Mapping[str, str]) -> Floats:
    """Returns (3, queries), all zero where the truth is not known."""
    fixed = np.zeros((len(CLASSES), len(queries)))
    rows = [row for row, query in enumerate(queries) if known.get(query, MISSING) != MISSING]
    if rows:
        fixed[_to_classes(np.array([str(known[queries[row]]) for row in rows])), rows] = 1.0
    return fixed


def _clamp(posteriors: Floats, fixed: Floats) -> Floats:
    return np.where(fixed.any(axis=0), fixed, posteriors)


def _majority(rows: _Rows) -> Floats:
    num_cells = 3 * rows.num_queries
    votes = np.bincount(rows.classes * rows.num_queries + rows.queries, minlength=num_cells).reshape(3, -1)
    return np.asarray(votes / votes.sum(axis=0), np.float64)


def _maximise(rows: _Rows, posteriors: Floats, smoothing: float) -> tuple[Floats, Floats]:
    """Returns confusion matrices and prior, given the truths."""
    by_truth = [np.bincount(rows.cells, truth[rows.queries], 3 * rows.num_annotators) for truth in posteriors]
    counts = np.stack([counted.reshape(-1, 3) for counted in by_truth], axis=1)
    pooled = counts.sum(axis=0)
    pooled = pooled + pooled[MIRROR][:, MIRROR] + MIN_PROBABILITY
    pooled /= pooled.sum(axis=1, keepdims=True)
    counts = counts + max(smoothing, MIN_PROBABILITY) * pooled
    confusions = counts / counts.sum(axis=2, keepdims=True)
    prior = posteriors.mean(axis=1) if rows.num_queries else np.full(3, 1 / 3)
    return confusions, prior


def _expect(rows: _Rows, confusions: Floats, prior: Floats) -> Floats:
    """Returns the probability of each truth, given confusion matrices and prior."""
    logs = np.log(np.maximum(confusions, MIN_PROBABILITY)).transpose(1, 0, 2).reshape(3, -1)
    scores = np.stack([np.bincount(rows.queries, log[rows.cells], rows.num_queries) for log in logs])
    scores += np.log(np.maximum(prior, MIN_PROBABILITY))[:, None]
    likelihoods = np.exp(scores - scores.max(axis=0))
    return np.asarray(likelihoods / likelihoods.sum(axis=0), np.float64)


# ---------------------------------------------------------------- shares of counts


def wilson_interval(num_hits: ArrayLike, num_trials: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Returns Wilson's score interval of a share, which stays within [0, 1] and holds for few trials.

    See Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    Returns:
        Lower and upper ends; 0 and 1 where there were no trials.
    """
    hits, trials = np.asarray(num_hits, np.float64), np.asarray(num_trials, np.float64)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    # With no trials the formula has the value 1/2 -+ 1/2 in the limit of few.
    share = np.divide(hits, trials, out=np.full(np.broadcast(hits, trials).shape, 0.5), where=trials > 0)
    denominator = trials + z**2
    centre = (trials * share + z**2 / 2) / denominator
    half = z * np.sqrt(trials * share * (1 - share) + z**2 / 4) / denominator
    # Rounding moves ends that are 0 or 1.
    low = np.where(hits == 0, 0.0, np.clip(centre - half, 0.0, 1.0))
    high = np.where(hits == trials, 1.0, np.clip(centre + half, 0.0, 1.0))
    return low, high


def binomial_p_value(num_hits: int, num_trials: int) -> float:
    """Returns how probable a count at least so far from one half is if both outcomes are equally likely; exact.

    min(1, 2 P[X <= min(k, n - k)]) for X binomial with n trials and probability 1/2; 1 where there were no trials.
    """
    if not 0 <= num_hits <= num_trials:
        raise ValueError(f"{num_hits} hits of {num_trials} trials cannot be")
    tail = min(num_hits, num_trials - num_hits)
    numbers = np.arange(1, tail + 1, dtype=np.float64)
    # Logarithms of the binomial coefficients, each from the one before.
    logs = np.concatenate([[0.0], np.cumsum(np.log(num_trials - numbers + 1) - np.log(numbers))])
    below = np.exp(logs - num_trials * np.log(2.0)).sum()
    return float(min(1.0, 2.0 * below))


def shown_left(choices: Words, is_flipped: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tells where the chosen clip stood on the screen.

    Args:
        choices: In the order of the query.
        is_flipped: Whether the query's left was shown on the right.

    Returns:
        Whether the clip shown left was chosen, and whether one of the two was chosen at all.
    """
    words = np.asarray(choices, str)
    is_decided = (words == LEFT) | (words == RIGHT)
    return is_decided & ((words == LEFT) != np.asarray(is_flipped, bool)), is_decided


def consistency_counts(
    annotator_ids: Words, query_ids: Words, choices: Words, repeats: ArrayLike
) -> dict[str, tuple[int, int]]:
    """Compares the repeated answers of each person with the first one to the same query.

    Args:
        annotator_ids: Who answered.
        query_ids: What was answered.
        choices: In the order of the query, so that swapped sides make no difference.
        repeats: 0 of the first answer, more of those after it.

    Returns:
        Of each person with a repeated answer: how many were as before, and how many there were. Skips are left out.
    """
    words = np.asarray(choices, str)
    is_given = words != MISSING
    words, numbers = words[is_given], np.asarray(repeats, np.int64)[is_given]
    people, annotators = np.unique(np.asarray(annotator_ids, str)[is_given], return_inverse=True)
    queries, rows = np.unique(np.asarray(query_ids, str)[is_given], return_inverse=True)
    keys = annotators * max(1, len(queries)) + rows
    is_first = numbers == 0
    first_keys, places = np.unique(keys[is_first], return_index=True)
    first_words = words[is_first][places]
    again_keys, again_words, again_people = (column[~is_first] for column in (keys, words, annotators))
    where = np.minimum(np.searchsorted(first_keys, again_keys), max(0, len(first_keys) - 1))
    has_first = first_keys[where] == again_keys if len(first_keys) else np.zeros(len(again_keys), bool)
    is_same = np.zeros(len(again_keys), bool)
    is_same[has_first] = first_words[where[has_first]] == again_words[has_first]
    nums = np.bincount(again_people[has_first], minlength=len(people))
    sames = np.bincount(again_people[is_same], minlength=len(people))
    return {str(people[i]): (int(sames[i]), int(nums[i])) for i in np.flatnonzero(nums)}


def response_quantiles(response_ms: ArrayLike, shares: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> list[float]:
    """Returns quantiles of the response times in seconds; NaN where there are none."""
    times: NDArray[Any] = np.asarray(response_ms, np.float64) / 1000.0
    if not times.size:
        return [np.nan] * len(shares)
    return [float(value) for value in np.quantile(times, shares)]
