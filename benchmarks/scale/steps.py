"""Env steps per second of PPO by number of env runners, paid in predicted and in true reward."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scale.session import own_session
from themis_ray.cli.progress import progress_bar
from themis_ray.config import load_config, resolve
from themis_ray.rllib import build_algorithm_config

__all__ = ["measure", "print_tables"]

ENV_ID = "HalfCheetah-v5"
NUM_RUNNERS = (0, 1, 2, 4)
REWARDS = {"predicted": True, "true": False}
# Asks its whole budget once, as soon as it can, and then only learns.
SETTINGS = (
    *(f"env.id={ENV_ID}", "algorithm.name=ppo", "num_env_steps=1000000"),
    *("feedback.budget=10", "feedback.session_size=10", "feedback.until_share=0.01", "reward.num_epochs=5"),
)
MAX_WARM_UP_ITERATIONS = 30


class Learner:
    """One algorithm, and how fast it samples and learns.

    Args:
        num_runners: Env runners; 0 steps environments in this process.
        learn_reward: Whether it is paid in predicted reward.
    """

    def __init__(self, num_runners: int, learn_reward: bool) -> None:
        given = [*SETTINGS, f"resources.num_env_runners={num_runners}", f"learn_reward={str(learn_reward).lower()}"]
        config, _ = resolve(load_config(None, given))
        self._folder = tempfile.TemporaryDirectory(prefix="bench-scale-")
        self._algorithm: Any = build_algorithm_config(config, Path(self._folder.name)).build_algo()
        self._sampling_s = 0.0
        sample = self._algorithm._sample_round

        def timed_sample() -> Any:
            start = time.perf_counter()
            try:
                return sample()
            finally:
                self._sampling_s += time.perf_counter() - start

        self._algorithm._sample_round = timed_sample
        self.iterate()
        for _ in range(MAX_WARM_UP_ITERATIONS):
            if not learn_reward or self._algorithm.loop.has_fitted_reward:
                break
            self.iterate()
        else:
            raise RuntimeError("no reward was fitted while warming up")
        self.iterate()

    def iterate(self) -> dict[str, float]:
        """Runs one iteration and returns its env steps per second, and those of its sampling alone."""
        steps, start, self._sampling_s = self._algorithm.env_steps, time.perf_counter(), 0.0
        self._algorithm.train()
        wall_s, num_steps = time.perf_counter() - start, self._algorithm.env_steps - steps
        return {"env_steps_per_s": num_steps / wall_s, "sampled_per_s": num_steps / self._sampling_s}

    def stop(self) -> None:
        """Ends the algorithm and its actors."""
        self._algorithm.stop()
        self._folder.cleanup()


def measure(is_quick: bool, console: Console) -> dict[str, Any]:
    """Returns all that this part measures; numbers of env runners take turns, iteration by iteration."""
    num_rounds = 2 if is_quick else 15
    with own_session(max(16, os.cpu_count() or 1)), progress_bar(console) as bar:
        # For each reward, as many iterations and the time to build.
        task = bar.add_task("env runners", total=len(REWARDS) * (num_rounds + len(NUM_RUNNERS)), status="")
        found = {}
        for name, learn_reward in REWARDS.items():
            learners: dict[int, Learner] = {}
            seen: dict[int, list[dict[str, float]]] = {number: [] for number in NUM_RUNNERS}
            try:
                for number in NUM_RUNNERS:
                    bar.update(task, status=f"{name} reward: building {number}")
                    learners[number] = Learner(number, learn_reward)
                    bar.advance(task)
                for i in range(num_rounds):
                    bar.update(task, status=f"{name} reward")
                    for number in reversed(NUM_RUNNERS) if i % 2 else NUM_RUNNERS:
                        seen[number].append(learners[number].iterate())
                    bar.advance(task)
            finally:
                for learner in learners.values():
                    learner.stop()
            found[name] = {
                key: {str(number): statistics.median(each[key] for each in seen[number]) for number in NUM_RUNNERS}
                for key in ("env_steps_per_s", "sampled_per_s")
            }
    return {
        "env_id": ENV_ID,
        "algorithm": "ppo",
        "num_rounds": num_rounds,
        "env_steps_per_s": found["predicted"]["env_steps_per_s"],
        "by_reward": found,
    }


def print_tables(part: dict[str, Any], console: Console) -> None:
    """Prints what was measured."""
    table = Table(title=f"{part['algorithm']} on {part['env_id']}, {os.cpu_count()} cores", title_justify="left")
    for column in ("reward", "env runners"):
        table.add_column(column)
    for column in ("env steps per s", "sampled per s", "of 1 runner"):
        table.add_column(column, justify="right")
    for name, found in part["by_reward"].items():
        speed, sampled = found["env_steps_per_s"], found["sampled_per_s"]
        for number in map(str, NUM_RUNNERS):
            who = "0, in the learner's process" if number == "0" else number
            table.add_row(
                name, who, f"{speed[number]:.0f}", f"{sampled[number]:.0f}", f"{speed[number] / speed['1']:.2f}"
            )
        table.add_section()
    console.print(table)
