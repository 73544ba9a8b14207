"""What explanations cost, and how far each method can be believed. `make bench-explain`, 3 to 5 minutes.

Prints two kinds of tables and writes benchmarks/out/explain.json. All times are CPU time of one thread, so that other
work on the machine counts little.

* speed, by network: on frames of ALE/Pong-v5, 84x84x4 bytes, `policy`, a PPO network as a learner starts with it, and
  `reward`, an ensemble of default size that was fitted for seconds to how high the right paddle is.
  ms_per_frame: by method, 64 frames together, or 8 where groups are left out.
  integrated_gradients: ms per frame and relative L2 error (mean over frames, against 1000 steps) of Captum's own class
  frame by frame with its defaults, of ours as it runs, and of ours with the same 50 steps.
  ig_speedup: Captum frame by frame over ours as it runs; both in turn, median of the ratios.
  kernel_shap_speedup: the same with as many samples for both; `captum_batched` evaluates 128 at once.
* ig_speedup, kernel_shap_speedup: the smaller of both networks; ms_per_frame: by network and method.
* faithfulness: rows of `themis_ray.explain.faithfulness` on a reward of two of eight numbers (`vector`), on a reward
  of 40x40 frames (`frames`) and on a policy for them (`policy`); `random` is the floor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import captum
import gymnasium as gym
import numpy as np
import torch
from captum.attr import IntegratedGradients, KernelShap
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from themis_ray.data import LabelledPairs
from themis_ray.envs import EnvConfig, EnvSpec, infer_observation_kind, make_env
from themis_ray.explain import (
    DEFAULT_METHOD,
    METHODS,
    FaithfulnessRow,
    Rows,
    Subject,
    attribute,
    baseline_inputs,
    faithfulness,
    feature_groups,
    fitting_methods,
    path_gradients,
    randomised,
    reward_subject,
)
from themis_ray.reward import RewardConfig, RewardEnsemble, fit, make_optimizer
from themis_ray.reward_actor import prepare_process
from themis_ray.rllib.modules import PPOModule
from themis_ray.rllib.subjects import policy_subject

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out" / "explain.json"
MIN_REPEATS = 3

NUM_FRAMES, NUM_FRAMES_LEFT_OUT, NUM_FRAMES_ALONE, NUM_FRAMES_SHAP = 64, 8, 8, 3
LEAVING_OUT = ("kernel_shap", "feature_ablation", "occlusion", "shapley_sampling", "permutation_importance")
CAPTUM_STEPS, MANY_STEPS = 50, 1000
LONG_ENOUGH_S = 1.0
NUM_ACTIONS = 6
PLANTED = (1, 4)

Steps = tuple[NDArray[Any], NDArray[Any]]
# Draws N frames and what counts in each, (N,).
Scenes = Callable[[int], tuple[NDArray[np.uint8], NDArray[np.int64]]]


# ---------------------------------------------------------------- what is explained


class Squares(NamedTuple):
    """Frames, and where in each the square is that pays."""

    frames: NDArray[np.uint8]
    """(N, side, side, channels)."""
    columns: NDArray[np.int64]
    """(N,), from 0 to 6; -1 where there is none."""
    blocks: NDArray[np.int64]
    """(N,), the group of `feature_groups` that it fills."""


def draw_squares(count: int, side: int, channels: int, rng: np.random.Generator, absent: float = 0.2) -> Squares:
    """Frames of dim noise with a bright square, which may be absent, and three grey ones that mean nothing.

    Each square fills one block.
    """
    block = -(-side // 8)
    cells = rng.random((count, 49)).argsort(axis=1)[:, :4]
    frames = rng.integers(0, 40, (count, side, side, channels), np.uint8)
    is_absent = rng.random(count) < absent
    rows, columns = cells // 7, cells % 7
    steps = np.arange(count)[:, None, None]
    for i, brightness in enumerate((236, 110, 110, 110)):
        down = rows[:, i, None, None] * block + np.arange(block)[:, None]
        across = columns[:, i, None, None] * block + np.arange(block)
        is_drawn = ~is_absent[:, None, None, None] if i == 0 else True
        frames[steps, down, across] = np.where(is_drawn, brightness, frames[steps, down, across])
    per_row = -(-side // block)
    return Squares(frames, np.where(is_absent, -1, columns[:, 0]), rows[:, 0] * per_row + columns[:, 0])


def make_spec(observation_space: Box, action_space: gym.Space[Any]) -> EnvSpec:
    kind = infer_observation_kind(observation_space)
    return EnvSpec("Made-v0", "made", observation_space, action_space, kind, None, False, None, "")


def frame_spec(side: int, channels: int) -> EnvSpec:
    return make_spec(Box(0, 255, (side, side, channels), np.uint8), Discrete(NUM_ACTIONS))


def make_ensemble(spec: EnvSpec, config: RewardConfig) -> RewardEnsemble:
    return RewardEnsemble(spec.observation_space, spec.action_space, spec.observation_kind, config, 0)


def fit_ensemble(
    spec: EnvSpec, steps: Steps, rewards: NDArray[Any], length: int, config: RewardConfig
) -> tuple[RewardEnsemble, dict[str, float]]:
    """Fit an ensemble to the preferences of an oracle between segments of `length` of the steps."""
    observations, actions = (part.reshape(-1, length, *part.shape[1:]) for part in steps)
    returns = rewards.reshape(-1, length).sum(axis=1)
    left, right = np.arange(0, len(returns), 2), np.arange(1, len(returns), 2)
    labels = (1 + np.sign(returns[left] - returns[right])).astype(np.float32) / 2
    ensemble = make_ensemble(spec, config)
    pairs = LabelledPairs(observations, actions, left, right, labels)
    info = fit(ensemble, make_optimizer(ensemble, config), pairs, config, np.random.default_rng(0))
    return ensemble, info


def square_scenes(side: int, channels: int, rng: np.random.Generator) -> Scenes:
    """Scenes in which the column of the bright square counts."""

    def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        squares = draw_squares(count, side, channels, rng)
        return squares.frames, squares.columns

    return draw


def pong_scenes(count: int, rng: np.random.Generator) -> Scenes:
    """Scenes of Pong, played at random, in which the height of the right paddle counts, from 0 to 5."""
    env = make_env(EnvConfig(id="ALE/Pong-v5"))
    observation, _ = env.reset(seed=0)
    frames = []
    for _ in range(count):
        observation, _, terminated, truncated, _ = env.step(int(rng.integers(NUM_ACTIONS)))
        frames.append(observation)
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()  # type: ignore[no-untyped-call]
    played = np.stack(frames)
    court = played[:, 14:76, 72:77, -1]
    rows = court.max(axis=2).argmax(axis=1)
    places = rows * NUM_ACTIONS // court.shape[1]

    def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        chosen = rng.integers(len(played), size=count)
        return played[chosen], places[chosen]

    return draw


def fit_frame_ensemble(
    spec: EnvSpec, draw: Scenes, num_pairs: int, num_epochs: int, rng: np.random.Generator
) -> tuple[RewardEnsemble, dict[str, float]]:
    frames, places = draw(4 * num_pairs)
    actions = rng.integers(NUM_ACTIONS, size=len(frames))
    config = RewardConfig(learning_rate=1e-3, num_epochs=num_epochs, target_accuracy=0.99, batch_size=32)
    return fit_ensemble(spec, (frames, actions), (1 + places) / 7, 2, config)


def fit_policy(spec: EnvSpec, draw: Scenes, num_steps: int) -> tuple[PPOModule, float]:
    """Teach a PPO network to choose the place that counts (0 where there is none), and return its accuracy as well."""
    torch.manual_seed(0)
    module = PPOModule(
        observation_space=spec.observation_space,
        action_space=spec.action_space,
        inference_only=False,
        model_config={"hidden_sizes": (64, 64)},
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    hits = []
    for _ in range(num_steps):
        frames, places = draw(64)
        target = torch.from_numpy(places.clip(0, NUM_ACTIONS - 1))
        logits = module._forward({Columns.OBS: torch.from_numpy(frames)})[Columns.ACTION_DIST_INPUTS]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        hits.append(float((logits.argmax(1) == target).float().mean()))
    return module, statistics.mean(hits[-5:]) if hits else 0.0


# ---------------------------------------------------------------- speed


def cpu_ms(function: Callable[[], object], num_rows: int) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start) / num_rows


def in_turn(ways: dict[str, tuple[Callable[[], object], int]], num_repeats: int) -> dict[str, list[float]]:
    """Time every way in turn, and return ms per row of each repetition."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(num_repeats):
        for name in ways if i % 2 else reversed(ways):
            times[name].append(cpu_ms(*ways[name]))
    return times


def median_ratio(times: dict[str, list[float]], theirs: str, ours: str) -> float:
    return statistics.median(their / our for their, our in zip(times[theirs], times[ours], strict=True))


def frame_by_frame(method: Any, rows: Rows, baseline: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
    """Attribute with a class of Captum, each frame by itself."""
    parts = []
    for i in range(len(rows)):
        row = rows.take(slice(i, i + 1))
        parts.append(method.attribute(row.inputs, baseline, additional_forward_args=row.context or None, **options))
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def relative_error(parts: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Return the mean over rows of |parts - exact| / |exact|."""
    near, true = (torch.cat([part.detach().flatten(1) for part in each], dim=1) for each in (parts, exact))
    return float(((near - true).norm(dim=1) / true.norm(dim=1)).mean())


def explain(subject: Subject, steps: Steps, method: str, count: int = NUM_FRAMES) -> tuple[Tensor, ...]:
    """Attribute the first `count` steps as `themis explain` does."""
    some = (part[:count] for part in steps)
    result = attribute(subject, *some, method=method, references=steps, rng=np.random.default_rng(0))
    parts = (result.observations,) if result.actions is None else (result.observations, result.actions)
    return tuple(torch.from_numpy(part) for part in parts)


def measure_integrated_gradients(subject: Subject, steps: Steps, num_repeats: int) -> dict[str, Any]:
    """Time integrated gradients next to Captum's own class, and compare both with those of many steps."""
    rows = subject.read(*steps)
    baseline = baseline_inputs(subject, rows)
    few = rows.take(slice(0, NUM_FRAMES_ALONE))
    explain(subject, steps, DEFAULT_METHOD, 2)  # Warms up.
    ways: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "captum": lambda: frame_by_frame(IntegratedGradients(subject.function), few, baseline),
        "ours": lambda: explain(subject, steps, DEFAULT_METHOD),
        "ours_50_steps": lambda: path_gradients(subject, rows, baseline, CAPTUM_STEPS),
    }
    counts = {"captum": NUM_FRAMES_ALONE, "ours": NUM_FRAMES, "ours_50_steps": NUM_FRAMES}
    times = in_turn({name: (way, counts[name]) for name, way in ways.items()}, num_repeats)
    exact = path_gradients(subject, few, baseline, MANY_STEPS)
    errors = {name: relative_error(tuple(part[: len(few)] for part in way()), exact) for name, way in ways.items()}
    return {
        "speedup": median_ratio(times, "captum", "ours"),
        "speedup_50_steps": median_ratio(times, "captum", "ours_50_steps"),
        "ways": {
            name: {"ms_per_frame": statistics.median(times[name]), "relative_error": errors[name]} for name in ways
        },
    }


def measure_kernel_shap(subject: Subject, steps: Steps, num_repeats: int) -> dict[str, Any]:
    """Time KernelSHAP next to Captum's own class, all with as many samples."""
    rows = subject.read(*steps)
    baseline = baseline_inputs(subject, rows)
    groups = feature_groups(subject, rows)
    num_samples = 2 * (1 + max(int(group.max()) for group in groups)) + 256
    shap = KernelShap(subject.function)
    options = {"feature_mask": groups, "n_samples": num_samples}
    few = rows.take(slice(0, NUM_FRAMES_SHAP))
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "captum": (lambda: frame_by_frame(shap, few, baseline, **options), NUM_FRAMES_SHAP),
        "captum_batched": (
            lambda: frame_by_frame(shap, few, baseline, perturbations_per_eval=128, **options),
            NUM_FRAMES_SHAP,
        ),
        "ours": (lambda: explain(subject, steps, "kernel_shap", NUM_FRAMES_LEFT_OUT), NUM_FRAMES_LEFT_OUT),
    }
    times = in_turn(ways, num_repeats)
    return {
        "speedup": median_ratio(times, "captum", "ours"),
        "speedup_batched": median_ratio(times, "captum_batched", "ours"),
        "ways": {name: {"ms_per_frame": statistics.median(values)} for name, values in times.items()},
        "num_samples": num_samples,
    }


def measure_methods(subject: Subject, steps: Steps, num_repeats: int) -> dict[str, float]:
    """Time every method that fits, in ms per frame."""
    medians = {}
    for method in fitting_methods(subject):
        count = NUM_FRAMES_LEFT_OUT if method in LEAVING_OUT else NUM_FRAMES
        times: list[float] = []
        while len(times) < num_repeats and sum(times) * count < 1e3 * LONG_ENOUGH_S:
            times.append(cpu_ms(lambda method=method, count=count: explain(subject, steps, method, count), count))
        medians[method] = statistics.median(times)
    return medians


def measure_speed(num_repeats: int) -> dict[str, dict[str, Any]]:
    spec, rng = frame_spec(84, 4), np.random.default_rng(0)
    draw = pong_scenes(1000, rng)
    steps = (draw(NUM_FRAMES)[0], rng.integers(NUM_ACTIONS, size=NUM_FRAMES))
    subjects = {
        "policy": policy_subject(fit_policy(spec, draw, num_steps=0)[0], spec),
        "reward": reward_subject(fit_frame_ensemble(spec, draw, 200, 30, rng)[0], spec),
    }
    speed = {}
    for name, subject in track(subjects.items(), description="speed", transient=True):
        gradients, shap = (
            measure(subject, steps, num_repeats) for measure in (measure_integrated_gradients, measure_kernel_shap)
        )
        speed[name] = {
            "ig_speedup": gradients["speedup"],
            "kernel_shap_speedup": shap["speedup"],
            "ms_per_frame": measure_methods(subject, steps, num_repeats),
            "integrated_gradients": gradients,
            "kernel_shap": shap,
        }
    return speed


# ---------------------------------------------------------------- faithfulness


def planted_table(rng: np.random.Generator) -> tuple[list[FaithfulnessRow], float]:
    """Measure methods on a reward x1 - 1.5 x4 of eight numbers, each about -1 or about 1."""
    spec = make_spec(Box(-np.inf, np.inf, (6,), np.float32), Box(-1.0, 1.0, (2,), np.float32))

    def draw(num_segments: int) -> Steps:
        centres = rng.choice([-1.0, 1.0], (num_segments, 1, 8)) * rng.uniform(0.5, 1.5, (num_segments, 1, 8))
        steps = (centres + 0.1 * rng.standard_normal((num_segments, 10, 8))).astype(np.float32).reshape(-1, 8)
        return steps[:, :6], steps[:, 6:].clip(-1, 1)

    stored = draw(1000)
    rewards = stored[0][:, 1] - 1.5 * stored[0][:, 4]
    config = RewardConfig(hidden_sizes=(64, 64), learning_rate=1e-3, target_accuracy=0.99)
    ensemble, info = fit_ensemble(spec, stored, rewards, 10, config)
    subject, other = (reward_subject(each, spec) for each in (ensemble, randomised(ensemble, rng)))
    is_true = np.isin(np.arange(8), PLANTED)
    table = faithfulness(subject, other, *draw(20), stored, rng, fitting_methods(subject), is_true_input=is_true)
    return table, info["accuracy"]


def frame_tables(rng: np.random.Generator, num_rows: int = 32) -> dict[str, tuple[list[FaithfulnessRow], float]]:
    """Measure methods on a reward and on a policy that depend on where a bright square is."""
    spec = frame_spec(40, 1)
    draw = square_scenes(40, 1, rng)
    ensemble, info = fit_frame_ensemble(spec, draw, 400, 30, rng)
    module, accuracy = fit_policy(spec, draw, 200)
    subjects = {
        "frames": (reward_subject(ensemble, spec), reward_subject(randomised(ensemble, rng), spec), info["accuracy"]),
        "policy": (policy_subject(module, spec), policy_subject(randomised(module, rng), spec), accuracy),
    }
    squares, stored = draw_squares(num_rows, 40, 1, rng, absent=0.0), draw_squares(256, 40, 1, rng)
    steps = (squares.frames, squares.columns.clip(0, NUM_ACTIONS - 1))
    references = (stored.frames, stored.columns.clip(0, NUM_ACTIONS - 1))
    tables = {}
    for name, (subject, other, known) in track(subjects.items(), description="faithfulness", transient=True):
        groups = feature_groups(subject, subject.read(*steps))
        is_true = np.arange(1 + max(int(group.max()) for group in groups)) == squares.blocks[:, None]
        rows = faithfulness(subject, other, *steps, references, rng, fitting_methods(subject), is_true_input=is_true)
        tables[name] = (rows, known)
    return tables


# ---------------------------------------------------------------- tables


def print_speed(speed: dict[str, dict[str, Any]]) -> None:
    table = Table(title="ms of CPU time per frame of 84x84x4, many frames together", title_justify="left")
    table.add_column("method")
    for name in speed:
        table.add_column(name, justify="right")
    for method in METHODS:
        times = [network["ms_per_frame"].get(method) for network in speed.values()]
        table.add_row(method, *("-" if ms is None else f"{ms:.2f}" for ms in times))
    Console(width=120).print(table)
    table = Table(title="Next to Captum frame by frame", title_justify="left")
    for column in ("network", "method", "way", "ms per frame", "error, %", "faster"):
        table.add_column(column, justify="left" if column in ("network", "method", "way") else "right")
    for name, network in speed.items():
        for method in ("integrated_gradients", "kernel_shap"):
            ways = network[method]["ways"]
            for way, figures in ways.items():
                error = figures.get("relative_error")
                faster = ways["captum"]["ms_per_frame"] / figures["ms_per_frame"]
                shown = "" if error is None else f"{100 * error:.2f}"
                table.add_row(name, method, way, f"{figures['ms_per_frame']:.2f}", shown, f"{faster:.1f}")
    Console(width=120).print(table)


def print_faithfulness(name: str, rows: list[FaithfulnessRow], accuracy: float) -> None:
    table = Table(title=f"Faithfulness, {name} (fitted with accuracy {accuracy:.2f})", title_justify="left")
    for field in dataclasses.fields(FaithfulnessRow):
        table.add_column(field.name, justify="left" if field.name == "method" else "right")
    for row in rows:
        method, *figures, ms_per_row = dataclasses.astuple(row)
        table.add_row(method, *("" if value is None else f"{value:.2f}" for value in figures), f"{ms_per_row:.2f}")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help=f"timed repetitions, at least {MIN_REPEATS}")
    repeats = max(MIN_REPEATS, parser.parse_args().repeats)
    prepare_process()
    rng = np.random.default_rng(1)
    tables = {"vector": planted_table(rng), **frame_tables(rng)}
    for name, (rows, accuracy) in tables.items():
        print_faithfulness(name, rows, accuracy)
    speed = measure_speed(repeats)
    print_speed(speed)
    result = {
        "ig_speedup": min(network["ig_speedup"] for network in speed.values()),
        "kernel_shap_speedup": min(network["kernel_shap_speedup"] for network in speed.values()),
        "ms_per_frame": {name: network["ms_per_frame"] for name, network in speed.items()},
        "speed": speed,
        "faithfulness": {name: [dataclasses.asdict(row) for row in rows] for name, (rows, _) in tables.items()},
        "accuracy": {name: accuracy for name, (_, accuracy) in tables.items()},
        "num_frames": NUM_FRAMES,
        "num_repeats": repeats,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "captum": captum.__version__},
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Integrated gradients: {result['ig_speedup']:.1f} times Captum frame by frame or more")
    print(f"Wrote {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
