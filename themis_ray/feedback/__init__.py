"""Who is asked, about what, and how often."""

from themis_ray.feedback.samplers import SAMPLERS, Candidates, Sampler, disagreement, entropy
from themis_ray.feedback.schedules import SCHEDULES, FeedbackConfig, Session, queries_due, session_plan
from themis_ray.feedback.teachers import (
    TEACHERS,
    RecentReturns,
    SyntheticTeacher,
    Teacher,
    TeacherConfig,
    TeacherParameters,
    make_teacher,
)

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "TEACHERS",
    "Candidates",
    "FeedbackConfig",
    "RecentReturns",
    "Sampler",
    "Session",
    "SyntheticTeacher",
    "Teacher",
    "TeacherConfig",
    "TeacherParameters",
    "disagreement",
    "entropy",
    "make_teacher",
    "queries_due",
    "session_plan",
]
