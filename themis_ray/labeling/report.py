"""What an experimenter wants to know of a study: how far it is, and how far its answers can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import Choice
from themis_ray.labeling import quality
from themis_ray.labeling.report_parts import (
    AgreementReport,
    AnnotatorReport,
    ArmReport,
    Bucket,
    Counts,
    Share,
    StudyReport,
    TimesReport,
)
from themis_ray.labeling.study import StudyConfig
from themis_ray.wire import StoredAnswer

__all__ = ["study_report"]

# Fewer answers that can be compared with those of others, or with gold, say too little about a person.
MIN_COMPARED = 5
MIN_GOLD = 5
MAX_BUCKETS = 48
BUCKET_S = (60, 300, 900, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600)
MAX_AGREEMENT_POINTS = 12
MIN_QUERIES_PER_POINT = 10
HISTOGRAM_STEPS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
MAX_BINS = 24


@dataclass(frozen=True, eq=False)
class _Columns:
    """Answers that count, as arrays in the order of arrival."""

    people: NDArray[np.str_]
    arms: NDArray[np.str_]
    queries: NDArray[np.str_]
    choices: NDArray[np.str_]
    ratings: NDArray[np.float64]
    is_flipped: NDArray[np.bool_]
    repeats: NDArray[np.int64]
    response_ms: NDArray[np.int64]
    is_explained: NDArray[np.bool_]
    overlay_ms: NDArray[np.int64]
    times: NDArray[np.float64]
    gold: NDArray[np.str_]

    @classmethod
    def of(cls, answers: Sequence[StoredAnswer], gold: Mapping[str, str]) -> _Columns:
        def words(values: Iterable[str]) -> NDArray[np.str_]:
            return np.array(list(values), np.str_)

        return cls(
            people=words(row.annotator_id for row in answers),
            arms=words(row.arm for row in answers),
            queries=words(row.query_id for row in answers),
            # What is no choice says as little as a skip.
            choices=words(str(row.choice or Choice.SKIP) for row in answers),
            ratings=np.array([np.nan if row.rating is None else row.rating for row in answers], np.float64),
            is_flipped=np.array([row.is_flipped for row in answers], np.bool_),
            repeats=np.array([row.repeat for row in answers], np.int64),
            response_ms=np.array([row.response_ms for row in answers], np.int64),
            is_explained=np.array([bool(row.overlay) for row in answers], np.bool_),
            overlay_ms=np.array([row.overlay_ms for row in answers], np.int64),
            times=np.array([row.answered_at.timestamp() for row in answers], np.float64),
            gold=words(gold.get(row.query_id, "") for row in answers),
        )

    def where(self, mask: NDArray[Any]) -> _Columns:
        return _Columns(**{name: column[mask] for name, column in vars(self).items()})

    def __len__(self) -> int:
        return len(self.people)


def study_report(
    answers: Sequence[StoredAnswer],
    study: StudyConfig,
    *,
    gold: Mapping[str, str] | None = None,
    num_waiting: int = 0,
    now: datetime | None = None,
) -> StudyReport:
    """Sums up what a study has brought so far.

    Args:
        answers: All of the study, also those that were undone; those of people who withdrew are gone.
        study: Its settings.
        gold: The right choice of gold queries by id; the same answers of a query of kind gold are compared with it.
        num_waiting: Places of ordinary queries without an answer.
        now: When the report is made; None: at this moment.
    """
    made_at = now or datetime.now(UTC)
    counted = _counted(answers)
    columns = _Columns.of(counted, gold or {})
    bucket_s, rate = _rate(columns.times, made_at)
    return StudyReport(
        study=study.id,
        title=study.title,
        made_at=made_at,
        counts=_counts(answers, counted, columns, num_waiting),
        bucket_s=bucket_s,
        rate=rate,
        agreement=_agreement(columns, study, has_interval=True),
        agreement_over_time=_agreement_over_time(columns, study),
        position_bias=_position_bias(columns),
        gold=_gold(columns),
        consistency=_consistency(columns),
        times=_times(columns.response_ms),
        annotators=_annotators(columns, study),
        arms=_arms(columns, study),
    )


def _counted(answers: Sequence[StoredAnswer]) -> list[StoredAnswer]:
    return [row for row in answers if not row.is_undone and row.kind != "practice"]


def _counts(
    answers: Sequence[StoredAnswer], counted: Sequence[StoredAnswer], columns: _Columns, num_waiting: int
) -> Counts:
    num_gold = sum(row.kind == "gold" for row in counted)
    num_repeats = int((columns.repeats > 0).sum())
    is_pairwise = any(row.choice is not None for row in counted)
    choices = {str(choice): int((columns.choices == choice).sum()) if is_pairwise else 0 for choice in Choice}
    return Counts(
        num_answers=len(counted),
        num_ordinary=sum(row.kind == "ordinary" and not row.repeat for row in counted),
        num_gold=num_gold,
        num_repeats=num_repeats,
        num_practice=sum(row.kind == "practice" and not row.is_undone for row in answers),
        num_undone=sum(row.is_undone for row in answers),
        num_skips=choices[Choice.SKIP],
        choices=choices,
        num_annotators=len(np.unique(columns.people)),
        num_queries=len(np.unique(columns.queries)),
        num_waiting=num_waiting,
    )


# ---------------------------------------------------------------- over time


def _rate(times: NDArray[np.float64], now: datetime) -> tuple[int, tuple[Bucket, ...]]:
    """Returns the length of a bucket and all of them from the first answer to the last; gaps are there with 0."""
    if not len(times):
        return BUCKET_S[0], ()
    first, last = float(times.min()), float(times.max())
    fitting = [size for size in BUCKET_S if last // size - first // size < MAX_BUCKETS]
    size = fitting[0] if fitting else BUCKET_S[-1]
    numbers = (times // size).astype(np.int64) - int(first // size)
    counts = np.bincount(numbers)
    begin = int(first // size) * size
    # The bucket that is not over yet is measured by what has passed of it.
    passed = min(size, max(1.0, now.timestamp() - (begin + size * (len(counts) - 1))))
    lengths = [float(size)] * (len(counts) - 1) + [max(passed, size / 4)]
    return size, tuple(
        Bucket(
            starts_at=datetime.fromtimestamp(begin + size * number, UTC),
            num_answers=int(count),
            answers_per_hour=float(count) * 3600 / length,
        )
        for number, (count, length) in enumerate(zip(counts, lengths, strict=True))
    )


def _agreement(columns: _Columns, study: StudyConfig, *, has_interval: bool = False) -> AgreementReport:
    first = columns.where(columns.repeats == 0)
    if study.feedback == "rating":
        rated = first.where(~np.isnan(first.ratings))
        shared = quality.is_shared(rated.people, rated.queries)
        alpha = quality.interval_alpha(rated.queries, rated.ratings)
        return AgreementReport(alpha=_known(alpha), num_queries=len(np.unique(rated.queries[shared])))
    said = first.where(first.choices != Choice.SKIP)
    shared = quality.is_shared(said.people, said.queries)
    votes = (said.people, said.queries, said.choices)
    # The same answers give the same interval.
    rng = np.random.default_rng(list(study.id.encode()))
    low, high = quality.alpha_interval(*votes, rng) if has_interval else (np.nan, np.nan)
    return AgreementReport(
        alpha=_known(quality.krippendorff_alpha(*votes)),
        low=_known(low),
        high=_known(high),
        num_queries=len(np.unique(said.queries[shared])),
    )


def _agreement_over_time(columns: _Columns, study: StudyConfig) -> tuple[AgreementReport, ...]:
    """Returns the agreement of queries in the order in which they were done, equally many in each point."""
    first = columns.where(columns.repeats == 0)
    first = first.where(quality.is_shared(first.people, first.queries))
    queries, rows = np.unique(first.queries, return_inverse=True)
    num_points = min(MAX_AGREEMENT_POINTS, len(queries) // MIN_QUERIES_PER_POINT)
    if num_points < 2:
        return ()
    done_at = np.full(len(queries), -np.inf)
    np.maximum.at(done_at, rows, first.times)
    point_of = np.empty(len(queries), np.int64)
    point_of[np.argsort(done_at, kind="stable")] = np.arange(len(queries)) * num_points // len(queries)
    return tuple(
        _agreement(first.where(point_of[rows] == point), study, has_interval=True).model_copy(
            update={"until": datetime.fromtimestamp(float(done_at[point_of == point].max()), UTC)}
        )
        for point in range(num_points)
    )


def _times(response_ms: NDArray[np.int64]) -> TimesReport:
    quantiles = dict(
        zip(("5%", "25%", "50%", "75%", "95%"), map(_known, quality.response_quantiles(response_ms)), strict=True)
    )
    if not len(response_ms):
        return TimesReport(quantiles_s=quantiles, edges_s=(), counts=())
    seconds = response_ms / 1000.0
    end = float(np.quantile(seconds, 0.97))
    step = next((size for size in HISTOGRAM_STEPS_S if end / size <= MAX_BINS - 1), HISTOGRAM_STEPS_S[-1])
    numbers = np.minimum(seconds // step, min(MAX_BINS - 1, end // step + 1)).astype(np.int64)
    counts = np.bincount(numbers)
    return TimesReport(
        quantiles_s=quantiles,
        edges_s=tuple(round(step * number, 3) for number in range(len(counts))),
        counts=tuple(int(count) for count in counts),
    )


# ---------------------------------------------------------------- shares


def _share(num_hits: int, num_trials: int, *, is_bias: bool = False) -> Share:
    return _shares([num_hits], [num_trials], is_bias=is_bias)[0]


def _shares(hits: Sequence[int], trials: Sequence[int], *, is_bias: bool = False) -> list[Share]:
    lows, highs = quality.wilson_interval(hits, trials)
    return [
        Share(
            num_hits=num_hits,
            num_trials=num_trials,
            share=num_hits / num_trials if num_trials else None,
            low=low,
            high=high,
            p_value=quality.binomial_p_value(num_hits, num_trials) if is_bias and num_trials else None,
        )
        for num_hits, num_trials, low, high in zip(hits, trials, lows.tolist(), highs.tolist(), strict=True)
    ]


def _position_bias(columns: _Columns) -> Share:
    is_left, is_decided = quality.shown_left(columns.choices, columns.is_flipped)
    return _share(int(is_left.sum()), int(is_decided.sum()), is_bias=True)


def _gold_masks(columns: _Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which answers are right, and which can be: a skip is neither."""
    is_trial = (columns.gold != "") & (columns.choices != Choice.SKIP) & (columns.repeats == 0)
    return is_trial & (columns.choices == columns.gold), is_trial


def _gold(columns: _Columns) -> Share:
    is_right, is_trial = _gold_masks(columns)
    return _share(int(is_right.sum()), int(is_trial.sum()))


def _gold_counts(
    columns: _Columns, rows: NDArray[np.int64], num_people: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    is_right, is_trial = _gold_masks(columns)
    return np.bincount(rows[is_right], minlength=num_people), np.bincount(rows[is_trial], minlength=num_people)


def _consistency(columns: _Columns) -> Share:
    counts = _consistency_counts(columns).values()
    return _share(sum(same for same, _ in counts), sum(num for _, num in counts))


def _consistency_counts(columns: _Columns) -> dict[str, tuple[int, int]]:
    return quality.consistency_counts(columns.people, columns.queries, columns.choices, columns.repeats)


# ---------------------------------------------------------------- people and arms


def _reliabilities(columns: _Columns, people: NDArray[np.str_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns each person's reliability, NaN where it is not known, and how many answers were compared."""
    said = columns.where((columns.repeats == 0) & (columns.choices != Choice.SKIP))
    # The only answer to a query would confirm itself.
    compared = said.where(quality.is_shared(said.people, said.queries) | (said.gold != ""))
    values, nums = np.full(len(people), np.nan), np.zeros(len(people), np.int64)
    if len(compared):
        known = dict(zip(compared.queries.tolist(), compared.gold.tolist(), strict=True))
        fit = quality.dawid_skene(
            compared.people,
            compared.queries,
            compared.choices,
            known={query: choice for query, choice in known.items() if choice},
        )
        places = np.searchsorted(people, np.array(fit.annotator_ids))
        nums[places] = fit.num_answers
        values[places] = quality.reliability(fit.confusions, fit.prior)
    return np.where(nums >= MIN_COMPARED, values, np.nan), nums


def _weights(
    reliabilities: NDArray[np.float64], hits: NDArray[np.int64], trials: NDArray[np.int64], study: StudyConfig
) -> NDArray[np.float64]:
    weights = np.where(np.isnan(reliabilities), 1.0, quality.reward_weight(np.nan_to_num(reliabilities)))
    if study.min_gold_accuracy is not None:
        failed = (trials >= MIN_GOLD) & (hits < study.min_gold_accuracy * trials)
        weights = np.where(failed, 0.0, weights)
    return weights


def _annotators(columns: _Columns, study: StudyConfig) -> tuple[AnnotatorReport, ...]:
    people, rows = np.unique(columns.people, return_inverse=True)
    values, num_compared = _reliabilities(columns, people)
    hits, trials = _gold_counts(columns, rows, len(people))
    weights = _weights(values, hits, trials, study)
    is_left, is_decided = quality.shown_left(columns.choices, columns.is_flipped)
    lefts = np.bincount(rows[is_left], minlength=len(people))
    decided = np.bincount(rows[is_decided], minlength=len(people))
    found = _consistency_counts(columns)
    consistent = [found.get(str(name), (0, 0)) for name in people]
    gold_shares = _shares(hits.tolist(), trials.tolist())
    bias_shares = _shares(lefts.tolist(), decided.tolist(), is_bias=True)
    consistency_shares = _shares([same for same, _ in consistent], [num for _, num in consistent])
    order = np.argsort(rows, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(rows, minlength=len(people)))[:-1]) if len(people) else []
    is_pairwise = study.feedback == "pairwise"
    reports = [
        AnnotatorReport(
            annotator_id=str(people[i]),
            arm=str(columns.arms[group[-1]]),
            num_answers=len(group),
            num_compared=int(num_compared[i]),
            reliability=_known(values[i]),
            weight=float(weights[i]),
            gold=gold_shares[i],
            position_bias=bias_shares[i],
            consistency=consistency_shares[i],
            skip_share=float(np.mean(columns.choices[group] == Choice.SKIP)) if is_pairwise else 0.0,
            median_s=float(np.median(columns.response_ms[group])) / 1000.0,
            last_answered_at=datetime.fromtimestamp(float(columns.times[group].max()), UTC),
        )
        for i, group in enumerate(groups)
    ]
    return tuple(sorted(reports, key=lambda row: (-row.num_answers, row.annotator_id)))


def _arms(columns: _Columns, study: StudyConfig) -> tuple[ArmReport, ...]:
    """Returns the arms in the order of the study, also those without answers."""
    names = list(dict.fromkeys([arm.name for arm in study.arms] + sorted(set(columns.arms.tolist()) - {""})))
    reports = []
    for name in names:
        part = columns.where(columns.arms == name)
        reports.append(
            ArmReport(
                arm=name,
                num_annotators=len(np.unique(part.people)),
                num_answers=len(part),
                agreement=_agreement(part, study, has_interval=True),
                gold=_gold(part),
                position_bias=_position_bias(part),
                consistency=_consistency(part),
                median_s=_median_s(part.response_ms),
                num_explained=int(part.is_explained.sum()),
                median_overlay_s=_median_s(part.overlay_ms[part.is_explained]),
            )
        )
    return tuple(reports)


def _median_s(ms: NDArray[np.int64]) -> float | None:
    return float(np.median(ms)) / 1000.0 if len(ms) else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
