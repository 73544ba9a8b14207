"""The labelling service for a Ray cluster: `serve run serve/labeling.yaml`, `serve deploy serve/labeling.yaml`.

The application itself is `themis_ray.serving.labelling`, part of the installed package: `themis serve` needs no copy of
this repository.
"""

from themis_ray.serving import LabellingSettings, labelling

__all__ = ["LabellingSettings", "labelling"]
