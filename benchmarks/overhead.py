"""What learning from predicted reward costs: ratios measured side by side in one process, medians.

    python -m benchmarks.overhead [--repeats N]

Prints a table and writes benchmarks/out/overhead.json:

* ppo_overhead, sac_overhead: seconds per env step paid in predicted reward, over seconds per env step paid in the
  environment's own reward; same learner, settings and machine, iterations in turn. Fits are not in it.
* sac_update_vs_torch: one SAC update through the RLlib learner (replay sample included) over the same in bare torch.
* relabel_vs_torch: relabelling a replay through the reward actor over a bare torch forward pass of as many rows.
* relabel_per_s: transitions relabelled per second, reward ensemble 3 x (256, 256, 256), one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from themis_ray.config import load_config, resolve
from themis_ray.reward_actor import prepare_process
from themis_ray.rllib import build_algorithm_config
from themis_ray.sessions import ray_session

OUT = Path(__file__).parent / "out" / "overhead.json"
BOUNDS = {"ppo_overhead": 1.10, "sac_overhead": 1.10, "sac_update_vs_torch": 1.6, "relabel_vs_torch": 1.3}
NUM_RELABELLED = 60_000
NUM_UPDATES = 32


def build(settings: list[str]) -> Any:
    """Build an algorithm that asks its whole budget once and then only learns."""
    feedback = ["feedback.budget=10", "feedback.session_size=10", "feedback.until_share=0.01", "reward.num_epochs=5"]
    config, _ = resolve(load_config(None, [*settings, *feedback]))
    return build_algorithm_config(config, Path(tempfile.mkdtemp())).build_algo()


def seconds_per_env_step(algorithm: Any) -> float:
    """Run one iteration."""
    steps, start = algorithm.env_steps, time.perf_counter()
    algorithm.train()
    return (time.perf_counter() - start) / (algorithm.env_steps - steps)


def measure_overhead(settings: list[str], num_repeats: int, num_warm_up_steps: int, what: str) -> dict[str, float]:
    """Train the same learner on both rewards in turn and return medians of seconds per env step."""
    algorithms = {
        "predicted": build(settings),
        "own": build([*settings, "learn_reward=false"]),
    }
    for algorithm in algorithms.values():
        while algorithm.env_steps < num_warm_up_steps:
            algorithm.train()
    assert algorithms["predicted"].loop.has_fitted_reward
    times: dict[str, list[float]] = {name: [] for name in algorithms}
    for i in track(range(num_repeats), description=what, transient=True):
        for name in sorted(algorithms, reverse=bool(i % 2)):
            times[name].append(seconds_per_env_step(algorithms[name]))
    for algorithm in algorithms.values():
        algorithm.stop()
    ratios = [p / o for p, o in zip(times["predicted"], times["own"], strict=True)]
    return {
        "predicted_ms": 1e3 * statistics.median(times["predicted"]),
        "own_ms": 1e3 * statistics.median(times["own"]),
        "ratio": statistics.median(ratios),
    }


def mlp(num_inputs: int, hidden_sizes: tuple[int, ...], num_outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Build a plain network."""
    sizes = [num_inputs, *hidden_sizes]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_outputs))


class BareSAC:
    """SAC as one would write it in torch alone: two critics, their targets, torch's default Adam."""

    def __init__(self, observation_size: int, action_size: int, learning_rate: float, gamma: float, tau: float) -> None:
        self.policy = mlp(observation_size, (256, 256), 2 * action_size, nn.ReLU)
        self.critics = [mlp(observation_size + action_size, (256, 256), 1, nn.ReLU) for _ in range(2)]
        self.targets = [mlp(observation_size + action_size, (256, 256), 1, nn.ReLU) for _ in range(2)]
        self.log_alpha = torch.zeros(1, requires_grad=True)
        critic_parameters = [p for critic in self.critics for p in critic.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic_parameters, learning_rate)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), learning_rate)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], learning_rate)
        self.gamma, self.tau, self.target_entropy = gamma, tau, -float(action_size)

    def act(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw actions with their log probabilities."""
        mean, log_std = self.policy(observations).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        unsquashed = normal.rsample()
        actions = torch.tanh(unsquashed)
        return actions, (normal.log_prob(unsquashed) - torch.log(1 - actions**2 + 1e-6)).sum(-1)

    def update(self, columns: list[torch.Tensor]) -> None:
        """Run one step of critics, policy, temperature and targets."""
        observations, next_observations, actions, rewards, terminated = columns
        with torch.no_grad():
            next_actions, log_probability = self.act(next_observations)
            inputs = torch.cat([next_observations, next_actions], 1)
            q_next = torch.min(*(target(inputs) for target in self.targets)).squeeze(-1)
            values = rewards + self.gamma * (1 - terminated) * (q_next - self.log_alpha.exp() * log_probability)
        inputs = torch.cat([observations, actions], 1)
        loss = sum(nn.functional.mse_loss(critic(inputs).squeeze(-1), values) for critic in self.critics)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        new_actions, log_probability = self.act(observations)
        inputs = torch.cat([observations, new_actions], 1)
        q_new = torch.min(*(critic(inputs) for critic in self.critics)).squeeze(-1)
        loss = (self.log_alpha.exp().detach() * log_probability - q_new).mean()
        self.policy_optimizer.zero_grad()
        loss.backward()
        self.policy_optimizer.step()
        loss = -(self.log_alpha * (log_probability.detach() + self.target_entropy)).mean()
        self.alpha_optimizer.zero_grad()
        loss.backward()
        self.alpha_optimizer.step()
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for p, t in zip(critic.parameters(), target.parameters(), strict=True):
                    t.mul_(1 - self.tau).add_(p, alpha=self.tau)


def measure_update(num_repeats: int) -> dict[str, float]:
    """Time NUM_UPDATES SAC updates of 256 rows through RLlib and in bare torch, in turn."""
    algorithm = build(["env.id=Pendulum-v1", "num_env_steps=8000"])
    while algorithm.env_steps < 1500:
        algorithm.train()
    replay, settings = algorithm.replay, algorithm.settings.algorithm
    bare = BareSAC(3, 1, settings.learning_rate, settings.gamma, settings.tau)
    rng = np.random.default_rng(0)

    def through_rllib() -> None:
        algorithm._update(NUM_UPDATES, is_exploring=False)

    def in_bare_torch() -> None:
        for _ in range(NUM_UPDATES):
            rows = rng.integers(replay.size, size=settings.batch_size)
            columns = (replay.observations, replay.next_observations, replay.actions, replay.predicted_rewards)
            bare.update([torch.from_numpy(column[rows]) for column in (*columns, replay.terminated)])

    result = in_turn(through_rllib, in_bare_torch, num_repeats, "SAC update")
    algorithm.stop()
    return {name: value if name == "ratio" else value / NUM_UPDATES for name, value in result.items()}


def measure_relabel(num_repeats: int) -> dict[str, float]:
    """Time relabelling a replay of HalfCheetah's shape through the actor, and a bare forward pass, in turn."""
    settings = ["env.id=HalfCheetah-v5", f"num_env_steps={NUM_RELABELLED}", "exploration.num_env_steps=0"]
    algorithm = build([*settings, "exploration.num_seed_steps=1000"])
    while not algorithm.loop.has_fitted_reward:
        algorithm.train()
    replay, rng = algorithm.replay, np.random.default_rng(0)
    replay.observations[:NUM_RELABELLED] = rng.standard_normal((NUM_RELABELLED, 17))
    replay.actions[:NUM_RELABELLED] = rng.uniform(-1, 1, (NUM_RELABELLED, 6))
    replay.size = NUM_RELABELLED
    members = [mlp(23, (256, 256, 256), 1, nn.LeakyReLU) for _ in range(3)]

    def through_actor() -> None:
        replay.relabel(algorithm.loop.predict)

    @torch.inference_mode()
    def in_bare_torch() -> None:
        inputs = np.concatenate([replay.observations[:NUM_RELABELLED], replay.actions[:NUM_RELABELLED]], 1)
        for rows in torch.from_numpy(inputs).split(8192):
            torch.stack([torch.tanh(member(rows)) for member in members]).mean(0)

    result = in_turn(through_actor, in_bare_torch, num_repeats, "relabelling")
    algorithm.stop()
    return result


def in_turn(ours: Callable[[], None], bare: Callable[[], None], num_repeats: int, what: str) -> dict[str, float]:
    """Time two functions alternately after a warm-up and return medians in ms and the median of the ratios."""
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    ours(), bare()
    for i in track(range(num_repeats), description=what, transient=True):
        pair = [("ours", ours), ("bare", bare)]
        for name, function in pair if i % 2 else reversed(pair):
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["ours"], times["bare"], strict=True)]
    return {
        "ours_ms": 1e3 * statistics.median(times["ours"]),
        "bare_ms": 1e3 * statistics.median(times["bare"]),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="timed repetitions of each side")
    repeats = parser.parse_args().repeats
    warnings.filterwarnings("ignore")
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    prepare_process()
    with ray_session():
        ppo = measure_overhead(
            ["env.id=CartPole-v1", "num_env_steps=1000000", "algorithm.batch_size=2000"], repeats, 8000, "PPO"
        )
        sac_settings = ["env.id=Pendulum-v1", "num_env_steps=8000", "exploration.num_env_steps=0"]
        sac = measure_overhead(sac_settings, repeats, 800, "SAC")
        update = measure_update(repeats)
        relabel = measure_relabel(max(5, repeats // 4))
    result = {
        "ppo_overhead": ppo["ratio"],
        "sac_overhead": sac["ratio"],
        "sac_update_vs_torch": update["ratio"],
        "relabel_vs_torch": relabel["ratio"],
        "relabel_per_s": NUM_RELABELLED / relabel["ours_ms"] * 1e3,
        "details": {"ppo": ppo, "sac": sac, "sac_update": update, "relabel": relabel},
        "num_repeats": repeats,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title="Cost of predicted reward (medians)", title_justify="left")
    for column in ("what", "ours, ms", "compared with, ms", "ratio", "at most"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = [
        ("ppo_overhead", "PPO, per env step, against own reward", ppo["predicted_ms"], ppo["own_ms"], ppo["ratio"]),
        ("sac_overhead", "SAC, per env step, against own reward", sac["predicted_ms"], sac["own_ms"], sac["ratio"]),
        (
            "sac_update_vs_torch",
            "SAC update of 256 rows, against bare torch",
            update["ours_ms"],
            update["bare_ms"],
            update["ratio"],
        ),
        (
            "relabel_vs_torch",
            f"relabel {NUM_RELABELLED} rows, against bare torch",
            relabel["ours_ms"],
            relabel["bare_ms"],
            relabel["ratio"],
        ),
    ]
    for key, what, ours, other, ratio in rows:
        table.add_row(what, f"{ours:.3f}", f"{other:.3f}", f"{ratio:.3f}", f"{BOUNDS[key]:.2f}")
    Console().print(table)
    print(f"relabel_per_s: {result['relabel_per_s']:.0f}\nWrote {OUT.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
