"""The frames of a segment, drawn by the simulator in the states that the agent was in."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from themis_ray.data import Origin, Segment
from themis_ray.envs import EnvConfig, action_names, find_family, make_env
from themis_ray.errors import ConfigError, DataError

__all__ = ["Replayer", "check_drawing", "replay_order", "to_env_action"]


def check_drawing(env_config: EnvConfig) -> None:
    """Checks that an environment can be reset and draws what a clip needs.

    Raises:
        UnknownNameError: There is no such environment.
        ConfigError: It cannot be made to draw, or what it draws is no frame.
    """
    env = make_env(env_config, render_mode="rgb_array")
    try:
        env.reset(seed=0)
        frame = np.asarray(env.render())
    except Exception as error:  # The environment's own code, which the user chose.
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{env_config.id} draws no frames ({told}). Choose one that draws rgb_array.") from error
    finally:
        env.close()  # type: ignore[no-untyped-call]
    if not _is_frame(frame):
        raise ConfigError(_no_frame(env_config.id, frame))


def replay_order(segment: Segment) -> tuple[str, int]:
    """Returns a key to sort segments by, so that those of one episode cost its steps once."""
    return segment.episode_id, segment.start_step


def to_env_action(action: NDArray[Any], space: spaces.Space[Any]) -> Any:
    """Returns a stored action as the environment takes it, with the very arithmetic that RLlib uses when it acts.

    Args:
        action: For a Box with bounds from -1 to 1, mapped to the bounds of `space` and clipped there; everything else
            stays as it is.
        space: The environment's action space.
    """
    if not isinstance(space, spaces.Box) or not (space.bounded_below.all() and space.bounded_above.all()):
        return action
    return np.clip(space.low + (action + 1.0) * (space.high - space.low) / 2.0, space.low, space.high)


def stored_action_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Returns the space of stored actions: from -1 to 1 for a Box with bounds, else that of the environment."""
    if not isinstance(space, spaces.Box) or not (space.bounded_below.all() and space.bounded_above.all()):
        return space
    return spaces.Box(-1.0, 1.0, space.shape, np.float32)


class Replayer:
    """Brings segments back by acting their episodes again, from the reset on, and draws what the agent saw.

    Nothing is drawn while a learner acts, which would cost more than acting itself; the seed of the reset and the
    actions are enough where an environment is reproducible. Whether it is, every step tells: the observation has to be
    the stored one, number for number, or the frame is refused. So a frame is the state that the agent was in, or there
    is none.

    Not safe for use by several threads. A context manager: leaving it closes the simulator.

    Args:
        env_config: Where the segments come from.

    Attributes:
        action_space: What the actions of segments are in.
        action_names: What its actions are called; None where that is not known.

    Raises:
        ConfigError: The environment cannot be made or draws no frames.
    """

    def __init__(self, env_config: EnvConfig) -> None:
        self._env = make_env(env_config, render_mode="rgb_array")
        self._id = env_config.id
        family = find_family(env_config.id.rpartition(":")[2])
        self._is_animated = family.is_animated
        self.action_space = stored_action_space(self._env.action_space)
        self.action_names = action_names(self._env, env_config.id, family.name)
        # Some cameras look at where things are when the first frame is drawn: always the same one, then.
        self._env.reset(seed=0)
        self._env.render()
        self._reset_seed: int | None = None
        self._acted: list[NDArray[Any]] = []
        self._observation: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the simulator."""
        self._env.close()  # type: ignore[no-untyped-call]

    def replay(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, NDArray[np.uint8]]]:
        """Yields each segment and its frames; those of one episode follow each other and cost its steps once.

        Raises:
            DataError: As in `frames`.
        """
        for segment in sorted(segments, key=replay_order):
            yield segment, self.frames(segment)

    def frames(self, segment: Segment, steps: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Returns one frame for each step, what there was to see before its action, (N, H, W, 3) uint8.

        Steps in the absorbing state of a fixed horizon show the state in which the episode ended.

        Args:
            segment: What is acted again, from its first step to the last one that is drawn.
            steps: Which of its steps are drawn, from 0 and at least one, in any order; None for all.

        Raises:
            ValueError: The segment has no such steps.
            DataError: The segment has no origin, or the episode takes another course this time.
        """
        if segment.origin is None:
            raise DataError(
                f"segment {segment.id} of {self._id} has no origin, as if it was imported or stored by an earlier "
                "version; only segments of themis train can be replayed."
            )
        chosen = range(len(segment)) if steps is None else steps
        if not chosen or min(chosen) < 0 or max(chosen) >= len(segment):
            raise ValueError(f"steps must be from 0 to {len(segment) - 1} and at least one, not {list(chosen)}")
        self._go_to(segment.origin)
        frames = {}
        for step in range(max(chosen) + 1):
            self._check(segment, step)
            if step in chosen:
                frames[step] = self._draw()
            elif self._is_animated:
                self._env.render()
            self._act(segment.actions[step])
        return np.stack([frames[step] for step in chosen])

    def _go_to(self, origin: Origin) -> None:
        """Acts up to a segment, from where the simulator is if that is on the way, else from the reset on."""
        num_acted = len(self._acted)
        # All actions since the reset count, as two episodes of one seed may begin alike and differ later.
        is_on_the_way = self._reset_seed == origin.reset_seed and (
            not num_acted or np.array_equal(self._acted, origin.earlier_actions[:num_acted])
        )
        if not is_on_the_way:
            self._observation, _ = self._env.reset(seed=origin.reset_seed)
            self._reset_seed, self._acted = origin.reset_seed, []
        for action in origin.earlier_actions[len(self._acted) :]:
            if self._is_animated:
                self._env.render()
            self._act(action)

    def _act(self, action: NDArray[Any]) -> None:
        self._observation, *_ = self._env.step(to_env_action(action, self._env.action_space))
        self._acted.append(action)

    def _check(self, segment: Segment, step: int) -> None:
        if not np.array_equal(self._observation, segment.observations[step], equal_nan=True):
            raise DataError(
                f"segment {segment.id} of {self._id} cannot be replayed: step {segment.start_step + step} of its "
                "episode looks different this time. The environment is not reproducible from a seed, or this machine "
                "or a package computes differently from the one that recorded it."
            )

    def _draw(self) -> NDArray[np.uint8]:
        frame: Sequence[Any] | NDArray[Any] | None = self._env.render()
        drawn = np.asarray(frame)
        if not _is_frame(drawn):
            raise DataError(_no_frame(self._id, drawn))
        return drawn.copy()


def _is_frame(drawn: NDArray[Any]) -> bool:
    return drawn.ndim == 3 and drawn.shape[2] == 3 and drawn.dtype == np.uint8


def _no_frame(env_id: str, drawn: NDArray[Any]) -> str:
    return f"{env_id} draws {drawn.dtype} {drawn.shape}. A clip needs frames of uint8 (height, width, 3)."
