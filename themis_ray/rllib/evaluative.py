"""What the preference loop does about single segments: asks for ratings and good steps, and takes demonstrations."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from themis_ray.data import Demonstration, EpisodePool, Evaluation, PreferenceDataset, Rating, Segment, StepFeedback
from themis_ray.envs import EnvSpec
from themis_ray.feedback import judge_steps, open_demonstrations, rate_segments
from themis_ray.loop_settings import LoopSettings, required
from themis_ray.randomness import RandomStreams

__all__ = ["ask_about_segments", "own_segments", "restore_evaluations", "take_demonstrations"]

NUM_RECENT_SEGMENTS = 200
NUM_OWN_PER_DEMONSTRATION = 10


def ask_about_segments(
    settings: LoopSettings,
    pool: EpisodePool,
    dataset: PreferenceDataset,
    streams: RandomStreams,
    num_segments: int,
    env_step: int,
) -> None:
    """Put `num_segments` segments, drawn uniformly from the pool, to the synthetic teacher and store its answers."""
    feedback, parameters, rng = settings.feedback, settings.teacher.parameters(), streams["teacher"]
    length = required(feedback.segment_length)
    segments = pool.sample_segments(num_segments, length, streams["sampler"])
    asked_at = datetime.now(UTC)
    recent = pool.sample_segments(NUM_RECENT_SEGMENTS, length, rng)
    about = settings.teacher.teacher_name, dataset.last_feedback_session + 1, env_step, asked_at
    evaluations: list[Evaluation]
    if feedback.kind == "rating":
        levels = rate_segments(segments, recent, feedback.num_levels, parameters.eps_mistake, rng)
        answered_at = max(asked_at, datetime.now(UTC))  # The machine's clock may be set back.
        evaluations = [
            Rating(segment.id, level, feedback.num_levels, *about, answered_at)
            for segment, level in zip(segments, levels, strict=True)
        ]
    else:
        values = judge_steps(segments, recent, parameters.eps_equal, parameters.eps_mistake, rng)
        answered_at = max(asked_at, datetime.now(UTC))
        evaluations = [
            StepFeedback(segment.id, steps, *about, answered_at)
            for segment, steps in zip(segments, values, strict=True)
        ]
    dataset.append_evaluations(segments, evaluations)


def take_demonstrations(settings: LoopSettings, spec: EnvSpec, dataset: PreferenceDataset, env_step: int) -> None:
    """Copy what `feedback.demonstrations` names into the run's own dataset, once.

    Raises:
        DataError: It cannot be read or does not fit the environment.
    """
    feedback = settings.feedback
    if feedback.demonstrations is None or dataset.demonstrations:
        return
    path = Path(feedback.demonstrations)
    segments = open_demonstrations(
        path, feedback.num_demonstrations, settings.env, spec, required(feedback.segment_length)
    )
    now = datetime.now(UTC)
    about = path.name or "demonstrations", 0, env_step, now, now
    dataset.append_evaluations(segments, [Demonstration(segment.id, *about) for segment in segments])


def own_segments(pool: EpisodePool, dataset: PreferenceDataset, length: int, streams: RandomStreams) -> list[Segment]:
    """Return segments of the learner that demonstrations are preferred to; nothing is drawn without demonstrations."""
    num_segments = NUM_OWN_PER_DEMONSTRATION * len(dataset.demonstrations)
    if num_segments == 0 or pool.num_starts(length) == 0:
        return []
    return pool.sample_segments(num_segments, length, streams["demonstrations"])


def restore_evaluations(dataset: PreferenceDataset, segments: Sequence[Segment], rows: Sequence[Evaluation]) -> int:
    """Store the evaluations that miss in the dataset; return how many it holds beyond those given."""
    num_newer = 0
    for kind in (Rating, StepFeedback, Demonstration):
        given = [(segment, row) for segment, row in zip(segments, rows, strict=True) if isinstance(row, kind)]
        num_stored = sum(isinstance(row, kind) for row in dataset.evaluations)
        num_newer += max(0, num_stored - len(given))
        for part in _sessions(given[num_stored:]):
            dataset.append_evaluations([segment for segment, _ in part], [row for _, row in part])
    return num_newer


def _sessions(rows: Iterable[tuple[Segment, Evaluation]]) -> Iterable[list[tuple[Segment, Evaluation]]]:
    return [list(part) for _, part in groupby(rows, key=lambda pair: pair[1].feedback_session)]
