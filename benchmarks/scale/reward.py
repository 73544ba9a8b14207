"""What the reward actor predicts per second for several callers, next to a forward pass in torch alone."""

from __future__ import annotations

import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.overhead import mlp
from benchmarks.scale.callers import Caller, draw_steps
from benchmarks.scale.session import own_session
from themis_ray.cli.progress import progress_bar
from themis_ray.envs import EnvConfig, get_env_spec
from themis_ray.reward import RewardConfig, RewardEnsemble
from themis_ray.reward_actor import RewardModel, RewardModelSpec

__all__ = ["measure", "print_tables"]

NUM_CALLERS = (1, 2, 4, 8)
# What a learner sends in one call: a round of SAC, a quarter of a batch of PPO, a chunk of a replay to relabel.
ROWS = {"sac_round": 32, "ppo_round": 512, "relabel": 32_768}
MAIN = "ppo_round"
# Rows that bare torch takes at once, as in benchmarks/overhead.py.
BARE_ROWS = 8192
# Until all callers have drawn their steps.
START_S = 0.5


def measure(is_quick: bool, console: Console) -> dict[str, Any]:
    """Returns all that this part measures; bare torch and each number of callers take turns."""
    num_rounds, seconds = (1, 0.5) if is_quick else (5, 1.5)
    spec = get_env_spec(EnvConfig(id="HalfCheetah-v5"))
    config = RewardConfig()
    space = (spec.observation_space, spec.action_space, spec.observation_kind)
    ensemble = RewardEnsemble(*space, config, 0)
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {what: [] for what in ROWS}
    with own_session(max(16, os.cpu_count() or 1)), progress_bar(console) as bar:
        name = f"reward-model-{uuid.uuid4().hex[:8]}"
        model = RewardModel(RewardModelSpec(*space, config, 0), name, num_cpus=0)
        make = ray.remote(Caller).options(num_cpus=0)
        callers = [make.remote(name) for _ in range(NUM_CALLERS[-1])]
        task = bar.add_task("reward actor", total=num_rounds * len(ROWS), status="starting callers")
        for num_rows in ROWS.values():
            ray.get([caller.ask.remote(num_rows, 0.0, 0.0) for caller in callers])
        for number in range(num_rounds):
            for what, num_rows in ROWS.items():
                bar.update(task, status=f"{what}: {num_rows} rows")
                rounds[what].append(_one_round(model, callers, ensemble, num_rows, seconds, bool(number % 2)))
                bar.advance(task)
        model.stop()
    by_rows = {what: _summarise(rounds[what], num_rows) for what, num_rows in ROWS.items()}
    ratios = {what: {str(n): ways[str(n)]["vs_torch"] for n in NUM_CALLERS} for what, ways in by_rows.items()}
    return {
        "reward_actor_vs_torch": ratios[MAIN],
        "reward_actor_vs_torch_by_call": ratios,
        "main_call": MAIN,
        "rows_per_call": ROWS,
        "ensemble": f"{config.ensemble_size} x {config.hidden_sizes}",
        "num_rounds": num_rounds,
        "seconds_each": seconds,
        "calls": by_rows,
    }


def _one_round(
    model: RewardModel, callers: Sequence[Any], ensemble: RewardEnsemble, num_rows: int, seconds: float, is_odd: bool
) -> dict[str, dict[str, float]]:
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "torch": lambda: _alone(_bare(num_rows), seconds),
        "ensemble": lambda: _alone(_of_ours(ensemble, num_rows), seconds),
        **{str(n): lambda n=n: _asked(model, callers[:n], num_rows, seconds) for n in NUM_CALLERS},  # type: ignore[misc]
    }
    return {key: ways[key]() for key in (reversed(ways) if is_odd else ways)}


def _bare(num_rows: int) -> Callable[[], Any]:
    """Returns the same networks in torch alone: each member by itself, as one would write it."""
    members: list[nn.Module] = [mlp(23, (256, 256, 256), 1, nn.LeakyReLU) for _ in range(3)]
    observations, actions = draw_steps(num_rows)

    @torch.inference_mode()
    def predict() -> Any:
        inputs = torch.from_numpy(np.concatenate([observations, actions], 1))
        parts = [torch.stack([member(rows).tanh() for member in members]).mean(0) for rows in inputs.split(BARE_ROWS)]
        return torch.cat(parts).numpy()

    return predict


def _of_ours(ensemble: RewardEnsemble, num_rows: int) -> Callable[[], Any]:
    steps = draw_steps(num_rows)
    return lambda: ensemble.predict(*steps)


def _alone(predict: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Returns how often a function runs per second in this process, on one thread."""
    predict()
    times, end_at = [], time.perf_counter() + seconds
    while time.perf_counter() < end_at:
        start = time.perf_counter()
        predict()
        times.append(time.perf_counter() - start)
    return _describe(times, sum(times))


def _asked(model: RewardModel, callers: Sequence[Any], num_rows: int, seconds: float) -> dict[str, float]:
    """Returns how many calls are answered per second, all callers together."""
    forwards_before = model.status()["num_forwards"]
    begin_at = time.time() + START_S
    answers = ray.get([caller.ask.remote(num_rows, begin_at, begin_at + seconds) for caller in callers])
    num_forwards = model.status()["num_forwards"] - forwards_before
    times = [t for each in answers for t in each]
    # A call that begins in time counts whole, with the time that it takes beyond the end.
    longest = max(sum(each) for each in answers)
    return {**_describe(times, longest), "calls_per_forward": len(times) / num_forwards}


def _describe(times: Sequence[float], seconds: float) -> dict[str, float]:
    """Returns calls per second and how long a call takes."""
    p50, p95 = (1e3 * float(value) for value in np.quantile(times, [0.5, 0.95]))
    return {"calls_per_s": len(times) / seconds, "p50_ms": p50, "p95_ms": p95}


def _summarise(rounds: Sequence[dict[str, dict[str, float]]], num_rows: int) -> dict[str, dict[str, float]]:
    """Returns medians over rounds by way, with rows per second, and the median of the ratios to bare torch."""
    found = {}
    for key in ("torch", "ensemble", *(str(n) for n in NUM_CALLERS)):
        medians = {name: statistics.median(each[key][name] for each in rounds) for name in rounds[0][key]}
        ratio = statistics.median(each["torch"]["calls_per_s"] / each[key]["calls_per_s"] for each in rounds)
        found[key] = {**medians, "rows_per_s": num_rows * medians["calls_per_s"], "vs_torch": ratio}
    return found


def print_tables(part: dict[str, Any], console: Console) -> None:
    """Prints what was measured."""
    for what, ways in part["calls"].items():
        num_rows = part["rows_per_call"][what]
        table = Table(title=f"Calls of {num_rows} rows ({what}), {os.cpu_count()} cores", title_justify="left")
        table.add_column("who")
        for column in ("calls per s", "rows per s", "p50 ms", "p95 ms", "calls per forward", "time per row / torch"):
            table.add_column(column, justify="right")
        for key, way in ways.items():
            who = {"torch": "bare torch", "ensemble": "our ensemble, no actor"}.get(key, f"actor, {key} callers")
            shared = f"{way['calls_per_forward']:.2f}" if "calls_per_forward" in way else ""
            figures = (f"{way[name]:.2f}" for name in ("p50_ms", "p95_ms"))
            table.add_row(
                who, f"{way['calls_per_s']:.0f}", f"{way['rows_per_s']:.0f}", *figures, shared, f"{way['vs_torch']:.2f}"
            )
        console.print(table)
