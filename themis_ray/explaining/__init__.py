"""Runs that are asked why: networks and steps of a run in; clips, stills, numbers and a page out."""

from themis_ray.explaining.folder import LEGENDS, explain_run, legend
from themis_ray.explaining.overlays import OverlayClips
from themis_ray.explaining.run import INFLUENCE, INFLUENCE_SUMMARY, SUBJECTS, ExplainedRun, Explanation
from themis_ray.explaining.studio import Output, Studio

__all__ = [
    "INFLUENCE",
    "INFLUENCE_SUMMARY",
    "LEGENDS",
    "SUBJECTS",
    "ExplainedRun",
    "Explanation",
    "Output",
    "OverlayClips",
    "Studio",
    "explain_run",
    "legend",
]
