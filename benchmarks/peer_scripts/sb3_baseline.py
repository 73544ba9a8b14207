"""Stable-Baselines3 on the environment's own reward: the upper reference of `benchmarks.peers` and `benchmarks.labels`.

Runs in the virtual environment of `requirements-sb3.txt`, never in ours, and prints one JSON line at the end.
`imitation_preferences.py` takes the clock and the evaluation from here, so that both peers are measured alike.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version

import gymnasium
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

ENV_ID = "Pendulum-v1"
EVALUATION_SEED = 10_000
NUM_EVALUATION_EPISODES = 10
NUM_EVALUATIONS = 10  # while training goes on, with the clocks stopped

# rl-baselines3-zoo's settings for Pendulum-v1 (hyperparams/sac.yml and ppo.yml); what is not named is SB3's default,
# and so is everything in other environments.
ZOO_SAC = {"learning_rate": 1e-3}
ZOO_PPO = {
    "n_steps": 1024,
    "gae_lambda": 0.95,
    "gamma": 0.9,
    "n_epochs": 10,
    "ent_coef": 0.0,
    "learning_rate": 1e-3,
    "clip_range": 0.2,
    "use_sde": True,
    "sde_sample_freq": 4,
}
ZOO_PPO_NUM_ENVS = 4


def parse_arguments(systems: Iterable[str]) -> argparse.Namespace:
    """Reads the flags that every peer script takes, and gives torch one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", required=True, choices=list(systems))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--num-env-steps", type=int, required=True)
    parser.add_argument("--num-labels", type=int, default=0)
    parser.add_argument("--env-id", default=ENV_ID)
    torch.set_num_threads(1)
    return parser.parse_args()


def count_steps(optimizers: Iterable[torch.optim.Optimizer]) -> Callable[[], int]:
    """Returns a function that says how many steps the optimizers have taken since this call."""
    num_steps = 0

    def add_one(*_: object) -> None:
        nonlocal num_steps
        num_steps += 1

    for optimizer in optimizers:
        optimizer.register_step_post_hook(add_one)
    return lambda: num_steps


def policy_optimizer(agent: BaseAlgorithm) -> torch.optim.Optimizer:
    """The optimizer whose steps count as the learner's gradient updates: SAC's critic, PPO's policy."""
    return agent.critic.optimizer if isinstance(agent, SAC) else agent.policy.optimizer


def evaluate(agent: BaseAlgorithm, env_id: str) -> float:
    """Plays fresh episodes with the deterministic policy.

    Returns:
        Mean undiscounted true return over the episodes of seeds 10000 to 10009.
    """
    env = gymnasium.make(env_id)
    returns = []
    for episode in range(NUM_EVALUATION_EPISODES):
        obs, _ = env.reset(seed=EVALUATION_SEED + episode)
        episode_return, is_done = 0.0, False
        while not is_done:
            action, _ = agent.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            episode_return += float(reward)
            is_done = terminated or truncated
        returns.append(episode_return)
    return statistics.fmean(returns)


class Stopwatch:
    """Wall-clock and CPU seconds since it was made; imports and evaluations stay outside.

    `curve` holds (wall-clock seconds, mean true return) of every evaluation.
    """

    def __init__(self, env_id: str = ENV_ID) -> None:
        self._env_id = env_id
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self.curve: list[tuple[float, float]] = []

    def read(self) -> dict[str, float]:
        """The seconds, under the names that the report uses."""
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}

    def evaluate(self, agent: BaseAlgorithm) -> None:
        """Adds a point to the curve; the clocks stand still meanwhile."""
        before = self.read()
        self.curve.append((before["wall_s"], evaluate(agent, self._env_id)))
        after = self.read()
        self._wall += after["wall_s"] - before["wall_s"]
        self._cpu += after["cpu_s"] - before["cpu_s"]


class EvaluationCallback(BaseCallback):
    """Evaluates every `interval` env steps, between two updates."""

    def __init__(self, stopwatch: Stopwatch, interval: int) -> None:
        super().__init__()
        self._stopwatch, self._interval, self._next = stopwatch, interval, interval

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next += self._interval
            self._stopwatch.evaluate(self.model)
        return True


def print_result(agent: BaseAlgorithm, stopwatch: Stopwatch, packages: Iterable[str], **measured: float) -> None:
    """Stops the clocks, evaluates the final agent and prints the line that `benchmarks.peers` reads."""
    seconds = stopwatch.read()
    stopwatch.evaluate(agent)
    versions = {name: version(name) for name in ("torch", "gymnasium", "numpy", "stable_baselines3", *packages)}
    curve = stopwatch.curve
    print(json.dumps({"true_return": curve[-1][1], "curve": curve, **measured, **seconds, "versions": versions}))


def main() -> None:
    arguments = parse_arguments(["sb3_sac", "sb3_ppo"])
    is_sac, is_pendulum = arguments.system == "sb3_sac", arguments.env_id == ENV_ID
    stopwatch = Stopwatch(arguments.env_id)
    if is_sac:
        venv = make_vec_env(arguments.env_id, n_envs=1, seed=arguments.seed)
        agent = SAC("MlpPolicy", venv, seed=arguments.seed, device="cpu", **(ZOO_SAC if is_pendulum else {}))
    else:
        venv = make_vec_env(arguments.env_id, n_envs=ZOO_PPO_NUM_ENVS, seed=arguments.seed)
        agent = PPO("MlpPolicy", venv, seed=arguments.seed, device="cpu", **(ZOO_PPO if is_pendulum else {}))
    num_updates = count_steps([policy_optimizer(agent)])
    callback = EvaluationCallback(stopwatch, arguments.num_env_steps // NUM_EVALUATIONS)
    agent.learn(total_timesteps=arguments.num_env_steps, callback=callback)
    print_result(
        agent,
        stopwatch,
        packages=(),
        num_env_steps=agent.num_timesteps,
        num_learner_steps=agent.num_timesteps,
        num_labels=0,
        num_updates=num_updates(),
        num_reward_updates=0,
    )


if __name__ == "__main__":
    main()
