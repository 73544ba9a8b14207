"""Who is asked, about what, and how often."""

from themis_ray.feedback.coverage import distances_to_nearest, farthest_first, query_embeddings
from themis_ray.feedback.evaluators import check_choices, judge_steps, open_demonstrations, rate_segments
from themis_ray.feedback.information import (
    disagreement,
    entropy,
    information_gain,
    play_tournament,
    swiss_pairs,
    value_of_information,
)
from themis_ray.feedback.samplers import (
    SAMPLERS,
    Candidates,
    Sampler,
    SamplerSpec,
    choose_queries,
    draw_distinct,
    without_repeats,
)
from themis_ray.feedback.schedules import (
    SCHEDULE_DESCRIPTIONS,
    SCHEDULES,
    FeedbackConfig,
    Session,
    queries_due,
    session_plan,
)
from themis_ray.feedback.scripted import ScriptedTeacher
from themis_ray.feedback.teacher_config import TeacherConfig, check_teacher, make_human_teacher, make_teacher
from themis_ray.feedback.teachers import (
    TEACHER_DESCRIPTIONS,
    TEACHERS,
    BPrefTeacher,
    RecentReturns,
    SyntheticTeacher,
    Teacher,
    TeacherParameters,
)

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "SCHEDULE_DESCRIPTIONS",
    "TEACHERS",
    "TEACHER_DESCRIPTIONS",
    "BPrefTeacher",
    "Candidates",
    "FeedbackConfig",
    "RecentReturns",
    "Sampler",
    "SamplerSpec",
    "ScriptedTeacher",
    "Session",
    "SyntheticTeacher",
    "Teacher",
    "TeacherConfig",
    "TeacherParameters",
    "check_choices",
    "check_teacher",
    "choose_queries",
    "disagreement",
    "distances_to_nearest",
    "draw_distinct",
    "entropy",
    "farthest_first",
    "information_gain",
    "judge_steps",
    "make_human_teacher",
    "make_teacher",
    "open_demonstrations",
    "play_tournament",
    "queries_due",
    "query_embeddings",
    "rate_segments",
    "session_plan",
    "swiss_pairs",
    "value_of_information",
    "without_repeats",
]
