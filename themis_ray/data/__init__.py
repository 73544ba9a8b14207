"""What feedback is: segments, queries, preferences, and where they are kept."""

from themis_ray.data.dataset import LabelledPairs, PreferenceDataset
from themis_ray.data.episodes import EpisodeChunk, EpisodePool
from themis_ray.data.preferences import Choice, Preference, left_probability
from themis_ray.data.segments import Query, Segment

__all__ = [
    "Choice",
    "EpisodeChunk",
    "EpisodePool",
    "LabelledPairs",
    "Preference",
    "PreferenceDataset",
    "Query",
    "Segment",
    "left_probability",
]
