"""The API of demonstrations: an annotator acts, the service steps the environment."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache

from fastapi import APIRouter
from pydantic import Field

from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.labeling.callers import AnnotatorCaller, ServiceOf
from themis_ray.labeling.demonstrations import OpenEpisodes
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import ConflictError, NotFoundError, WrongError
from themis_ray.wire import MAX_CLIP_FRAMES, LongId, Wire

__all__ = ["check_actions", "router"]

router = APIRouter(tags=["annotators"])

STEPS_PER_MINUTE = 1200
MAX_SEED = 2**31


class DemonstrationRequest(Wire):
    """An episode: its seed and all its actions, the newest last."""

    assignment_id: LongId
    reset_seed: int | None = Field(default=None, ge=0, lt=MAX_SEED, description="None: the service chooses one.")
    actions: tuple[int, ...] = Field(default=(), max_length=MAX_CLIP_FRAMES)


class DemonstrationView(Wire):
    """Where the episode has come to."""

    reset_seed: int
    action_names: tuple[str, ...]
    frame: str = Field(description="What the environment draws, as a data: address.")
    is_over: bool


@lru_cache(maxsize=1)
def _episodes() -> OpenEpisodes:
    return OpenEpisodes()


def check_actions(service: Service, annotator_id: str, actions: Sequence[int]) -> None:
    """Checks that the environment of a person's study has these actions, where it is known here.

    Raises:
        WrongError: It has no such action.
        NotFoundError: There is no such annotator.
    """
    config = service.store.people.get(annotator_id).study.config
    if config.feedback != "demonstration":
        return
    num_actions = _episodes().num_actions(EnvConfig(id=config.env_id, kwargs=config.env_kwargs))
    if num_actions is not None and actions and max(actions) >= num_actions:
        raise WrongError(f"action {max(actions)}: give one from 0 to {num_actions - 1}.")


@router.post("/demonstrations")
def act(service: ServiceOf, annotator_id: AnnotatorCaller, request: DemonstrationRequest) -> DemonstrationView:
    """Brings the episode of an assignment to where its actions lead, and shows it. Twice is as once."""
    service.store.access.count_hit(f"demonstrations:{annotator_id}", STEPS_PER_MINUTE, 60.0)
    config = service.store.work.keep(annotator_id, request.assignment_id).study.config
    if config.feedback != "demonstration":
        raise NotFoundError("there is no such demonstration on your desk. Load the page again.")
    env_config = EnvConfig(id=config.env_id, kwargs=config.env_kwargs)
    seed = secrets.randbelow(MAX_SEED) if request.reset_seed is None else request.reset_seed
    try:
        view = _episodes().act(env_config, request.assignment_id, seed, request.actions)
    except (ConfigError, UnknownNameError) as error:
        raise ConflictError(str(error)) from error
    return DemonstrationView(
        reset_seed=view.reset_seed,
        action_names=view.action_names,
        frame=view.frame_address,
        is_over=view.is_over,
    )
