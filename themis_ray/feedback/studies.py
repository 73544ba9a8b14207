"""Moved to themis_ray.wire; this name goes once nothing imports it."""

from themis_ray.wire import *  # noqa: F403
