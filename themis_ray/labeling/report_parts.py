"""The parts of a study's report, as they are sent and drawn."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AgreementReport",
    "AnnotatorReport",
    "ArmReport",
    "Bucket",
    "Counts",
    "Share",
    "StudyReport",
    "TimesReport",
]


class Row(BaseModel):
    """Every part of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(Row):
    """How many of so many, with Wilson's 95 % interval."""

    num_hits: int
    num_trials: int
    share: float | None = Field(description="None where there were no trials.")
    low: float
    high: float
    p_value: float | None = Field(
        default=None, description="Of position bias: how probable a share so far from 1/2 is by chance."
    )


class Counts(Row):
    """How many there are. Answers that were undone and practice count nowhere else."""

    num_answers: int = Field(description="Answers that count: ordinary, gold and repeated ones.")
    num_ordinary: int
    num_gold: int
    num_repeats: int
    num_practice: int
    num_undone: int
    num_skips: int = Field(description="Those of num_answers that say can't tell.")
    choices: dict[str, int] = Field(description="Of pairwise: how often each of the four was chosen.")
    num_annotators: int = Field(description="People with at least one answer that counts.")
    num_queries: int = Field(description="Queries with at least one.")
    num_waiting: int = Field(description="Places of ordinary queries without an answer.")


class Bucket(Row):
    """Answers in a stretch of time."""

    starts_at: datetime
    num_answers: int
    answers_per_hour: float


class AgreementReport(Row):
    """Krippendorff's alpha, of nominal data for choices and of interval data for ratings."""

    alpha: float | None = Field(description="None where it is not known.")
    low: float | None = Field(default=None, description="Lower end of the 95 % bootstrap interval.")
    high: float | None = None
    num_queries: int = Field(description="Queries that two people or more have answered.")
    until: datetime | None = Field(default=None, description="Over time: when the last of these queries was answered.")


class TimesReport(Row):
    """How long people take, from the first frame shown to the answer."""

    quantiles_s: dict[str, float | None] = Field(description="5, 25, 50, 75 and 95 %.")
    edges_s: tuple[float, ...] = Field(description="Left edges of the histogram; the last bin has no end.")
    counts: tuple[int, ...]


class AnnotatorReport(Row):
    """One person."""

    annotator_id: str
    arm: str
    num_answers: int
    num_compared: int = Field(description="Answers that were compared with those of others or with gold.")
    reliability: float | None = Field(description="1 always right, 0.5 knows nothing; None where it is not known.")
    weight: float = Field(description="In the loss of the reward model; 1 where reliability is not known.")
    gold: Share
    position_bias: Share = Field(description="The share of the clip shown left.")
    consistency: Share = Field(description="Repeats that were answered as before.")
    skip_share: float
    median_s: float | None
    last_answered_at: datetime


class ArmReport(Row):
    """One arm."""

    arm: str
    num_annotators: int
    num_answers: int
    agreement: AgreementReport
    gold: Share
    position_bias: Share
    consistency: Share
    median_s: float | None
    num_explained: int = Field(description="Answers with which an explanation was shown.")
    median_overlay_s: float | None = Field(
        description="How long clips moved with it, the median of these answers; None where there are none."
    )


class StudyReport(Row):
    """All of it."""

    study: str
    title: str
    made_at: datetime
    counts: Counts
    bucket_s: int = Field(description="Seconds in each of the stretches of time.")
    rate: tuple[Bucket, ...]
    agreement: AgreementReport
    agreement_over_time: tuple[AgreementReport, ...]
    position_bias: Share
    gold: Share
    consistency: Share
    times: TimesReport
    annotators: tuple[AnnotatorReport, ...] = Field(description="Those with most answers first.")
    arms: tuple[ArmReport, ...]
