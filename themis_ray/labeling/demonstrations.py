"""Environments that people act in: an episode is its reset seed and its actions, and nothing else is kept for good.

Whoever has those two can act the episode again, so any replica can take the next step, and one that has the episode
open takes it at once.
"""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from themis_ray.clips import upscale
from themis_ray.envs import EnvConfig, action_names, find_family, make_env
from themis_ray.envs.display import prepare_drawing
from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.labeling.store import WrongError

__all__ = ["EpisodeView", "OpenEpisodes"]

MAX_OPEN = 16
FRAME_SIDE = 512


@dataclass(frozen=True)
class EpisodeView:
    """An episode as far as it has been acted.

    Attributes:
        reset_seed: What its environment was reset with.
        action_names: One for each action, in their order.
        frame: (H, W, 3) uint8, what the environment draws now.
        is_over: Whether it has ended.
    """

    reset_seed: int
    action_names: tuple[str, ...]
    frame: NDArray[np.uint8]
    is_over: bool

    @property
    def frame_address(self) -> str:
        """The frame as a data: address that a page shows."""
        frame = upscale(self.frame[None], FRAME_SIDE)[0]
        is_written, png = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        assert is_written
        return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()


@dataclass
class _Episode:
    env: Any
    action_names: tuple[str, ...]
    actions: list[int] = field(default_factory=list)
    is_over: bool = False

    def act(self, action: int) -> None:
        _, _, is_terminated, is_truncated, _ = self.env.step(action)
        self.actions.append(action)
        self.is_over = bool(is_terminated or is_truncated)


class OpenEpisodes:
    """Keeps the episodes that were acted in last open, and steps one at a time: simulators share state.

    Args:
        num_open: How many.
    """

    def __init__(self, num_open: int = MAX_OPEN) -> None:
        self._num_open = num_open
        self._open: OrderedDict[str, _Episode] = OrderedDict()
        self._num_actions: dict[str, int | None] = {}
        self._lock = threading.Lock()

    def act(self, env_config: EnvConfig, assignment_id: str, reset_seed: int, actions: Sequence[int]) -> EpisodeView:
        """Brings an episode to where these actions lead.

        Args:
            env_config: Where it takes place.
            assignment_id: What it is done for.
            reset_seed: Of the environment.
            actions: All of them, from the reset on.

        Raises:
            ConfigError: The environment cannot be made, or has no discrete actions.
            UnknownNameError: There is no such environment.
            WrongError: There is no such action, or the episode ends before the last of them.
        """
        key = f"{assignment_id}/{reset_seed}"
        with self._lock:
            episode = self._open.pop(key, None)
            if episode is None or episode.actions != list(actions[: len(episode.actions)]):
                if episode is not None:
                    episode.env.close()
                episode = _begin(env_config, reset_seed)
            try:
                for action in actions[len(episode.actions) :]:
                    if not 0 <= action < len(episode.action_names):
                        raise WrongError(f"action {action}: give one from 0 to {len(episode.action_names) - 1}.")
                    if episode.is_over:
                        raise WrongError("the episode was over before. Send it, or start again.")
                    episode.act(action)
            finally:
                self._open[key] = episode
                while len(self._open) > self._num_open:
                    self._open.popitem(last=False)[1].env.close()
            frame = np.asarray(episode.env.render(), np.uint8)
            return EpisodeView(reset_seed, episode.action_names, frame, episode.is_over)

    def num_actions(self, env_config: EnvConfig) -> int | None:
        """Returns how many actions an environment has; None where it cannot be made here."""
        key = env_config.model_dump_json()
        with self._lock:
            if key not in self._num_actions:
                try:
                    episode = _begin(env_config, seed=0)
                except (ConfigError, UnknownNameError):
                    self._num_actions[key] = None
                else:
                    self._num_actions[key] = len(episode.action_names)
                    episode.env.close()
            return self._num_actions[key]

    def close(self) -> None:
        """Ends all episodes."""
        with self._lock:
            for episode in self._open.values():
                episode.env.close()
            self._open.clear()


def _begin(env_config: EnvConfig, seed: int) -> _Episode:
    prepare_drawing("pygame")
    env = make_env(env_config, render_mode="rgb_array")
    space = env.action_space
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        env.close()  # type: ignore[no-untyped-call]
        raise ConfigError(f"{env_config.id} has actions {space}. Demonstrations need Discrete ones.")
    names = action_names(env, env_config.id, find_family(env_config.id).name)
    env.reset(seed=seed)
    return _Episode(env, names or tuple(f"action {number + 1}" for number in range(int(space.n))))
