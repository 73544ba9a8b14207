"""Episodes that can be had again: every reset has a seed of its own, which is told."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from themis_ray.envs.wrappers import AnyEnv

__all__ = ["RESET_SEED", "RenewWorld", "RestoreSimulator", "SeedEpisodes", "SeedGoal"]

RESET_SEED = "reset_seed"
MAX_SEED = 2**31 - 1


class SeedEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Resets the environment with a new seed for every episode and tells it as `info["reset_seed"]`.

    An environment that is reset without a seed goes on with random numbers that depend on all episodes before. With a
    seed of its own an episode depends on that seed and on its actions alone, so that both together bring it back: every
    frame of it can be drawn later, exactly as it was, and nobody has to draw them all while it happens.

    A reset with a seed starts the sequence of seeds anew; the same seed gives the same episodes again. The first reset
    has to have one.

    Env runners are reset with seeds that overlap: the second environment of one has the seed of the first environment
    of the next. Their indices keep them apart.

    Args:
        env: The environment.
        worker_index: Of the env runner that steps it, from 1; 0 where the driver does.
    """

    def __init__(self, env: AnyEnv, worker_index: int = 0) -> None:
        super().__init__(env)
        self._worker_index = worker_index
        self._rng: np.random.Generator | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode with the next seed of the sequence.

        Raises:
            ValueError: No seed was ever given.
        """
        if seed is not None:
            self._rng = np.random.default_rng([seed, self._worker_index] if self._worker_index else seed)
        if self._rng is None:
            raise ValueError("the first reset needs a seed")
        reset_seed = int(self._rng.integers(MAX_SEED))
        observation, info = self.env.reset(seed=reset_seed, options=options)
        return observation, {**info, RESET_SEED: reset_seed}


class RenewWorld(gym.Wrapper[Any, Any, Any, Any]):
    """Gives every episode of BipedalWalker and CarRacing a Box2D world of its own.

    They empty one world and fill it again, and what has been in it before decides in which order Box2D solves contacts:
    the same seed and actions then end elsewhere. LunarLander makes a new world by itself.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in a new world."""
        import Box2D
        from gymnasium.envs.box2d.bipedal_walker import BipedalWalker
        from gymnasium.envs.box2d.car_racing import CarRacing

        inner: Any = self.unwrapped
        if isinstance(inner, BipedalWalker):
            inner._destroy()  # type: ignore[no-untyped-call]
            inner.world = Box2D.b2World()
        elif isinstance(inner, CarRacing):
            inner._destroy()  # type: ignore[no-untyped-call]
            inner.world = Box2D.b2World((0, 0), contactListener=inner.contactListener_keepref)
        return self.env.reset(seed=seed, options=options)


class SeedGoal(gym.Wrapper[Any, Any, Any, Any]):
    """Lets the seed of a reset choose Meta-World's goal, which it otherwise draws as it goes on.

    Observations get a space without bounds: Meta-World's own says that the goal is 0, also where it is shown.
    """

    def __init__(self, env: AnyEnv) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; the simulator is seeded first, as Meta-World passes over the seed of a reset."""
        if seed is not None:
            inner: Any = self.unwrapped
            inner.seed(seed)
        return self.env.reset(seed=seed, options=options)


class RestoreSimulator(gym.Wrapper[Any, Any, Any, Any]):
    """Lets every episode of a Fetch or Shadow-hand environment begin from the simulator's first state.

    Their resets put back where things are, and leave in the simulator what its solver starts from and where the last
    episode pulled the gripper, so that the same seed and actions end elsewhere. So does drawing a frame, after which
    the state is put back too.
    """

    def __init__(self, env: AnyEnv) -> None:
        super().__init__(env)
        from gymnasium_robotics.envs.robot_env import MujocoRobotEnv

        inner: Any = self.unwrapped
        self._has_simulator = isinstance(inner, MujocoRobotEnv)
        self._first = copy.copy(inner.data) if self._has_simulator else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode from the first state."""
        if self._has_simulator:
            self._put_back(self._first)
        return self.env.reset(seed=seed, options=options)

    def render(self) -> Any:
        """Draws a frame and leaves the simulator as it was, with all that it has computed."""
        if not self._has_simulator:
            return self.env.render()
        inner: Any = self.unwrapped
        before = copy.copy(inner.data)
        frame: Any = self.env.render()
        self._put_back(before)
        return frame

    def _put_back(self, data: Any) -> None:
        import mujoco

        inner: Any = self.unwrapped
        mujoco.mj_copyData(inner.data, inner.model, data)
