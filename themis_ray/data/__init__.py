"""What feedback is: segments, queries, preferences, and where they are kept."""

from themis_ray.data.dataset import LabelledPairs, PreferenceDataset
from themis_ray.data.episodes import EpisodeChunk, EpisodePool
from themis_ray.data.evaluations import Demonstration, EvaluatedSegments, Evaluation, Rating, StepFeedback
from themis_ray.data.preferences import Choice, Preference, left_probability
from themis_ray.data.segments import Origin, Query, Segment

__all__ = [
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
    "left_probability",
]
