"""What feedback is: segments, queries, preferences, and where they are kept."""

from themis_ray.data.asked import AskedQuery, Withdrawal
from themis_ray.data.dataset import PreferenceDataset
from themis_ray.data.episodes import EpisodeChunk, EpisodePool
from themis_ray.data.evaluations import Demonstration, EvaluatedSegments, Evaluation, Rating, StepFeedback
from themis_ray.data.pairs import LabelledPairs
from themis_ray.data.preferences import Choice, Preference, left_probability, mirrored
from themis_ray.data.segments import Origin, Query, Segment

__all__ = [
    "AskedQuery",
    "Choice",
    "Demonstration",
    "EpisodeChunk",
    "EpisodePool",
    "EvaluatedSegments",
    "Evaluation",
    "LabelledPairs",
    "Origin",
    "Preference",
    "PreferenceDataset",
    "Query",
    "Rating",
    "Segment",
    "StepFeedback",
    "Withdrawal",
    "left_probability",
    "mirrored",
]
