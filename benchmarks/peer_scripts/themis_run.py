"""Our own row of `python -m benchmarks.peers`: one `themis train`, evaluated on the seeds that the peers get.

Runs in our virtual environment and prints the same JSON line as the peers' scripts. Training is the plain command with
the learning rate that every SAC gets here, the reward fit held to one thread and every checkpoint kept. The checkpoints
are then evaluated on the peers' seeds, and the metrics tell the wall-clock second at which each was reached.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.rl_module import RLModule

from themis_ray.envs import EnvConfig
from themis_ray.rllib.evaluation import deterministic_policy, evaluate

ENV_ID = "Pendulum-v1"
EVALUATION_SEEDS = range(10_000, 10_010)
NUM_CHECKPOINTS = 10
LEARNING_RATE = 1e-3  # rl-baselines3-zoo's for SAC on Pendulum-v1, as in sb3_baseline.py


def train(arguments: argparse.Namespace, run_folder: Path) -> dict[str, Any]:
    """Runs `themis train` and returns its summary."""
    overrides = {
        "env.id": ENV_ID,
        "num_env_steps": arguments.num_env_steps,
        "feedback.budget": arguments.num_labels,
        "seed": arguments.seed,
        "algorithm.learning_rate": LEARNING_RATE,
        "resources.num_fit_threads": 1,
        "checkpoint_interval": arguments.num_env_steps // NUM_CHECKPOINTS,
        "num_checkpoints_kept": NUM_CHECKPOINTS + 1,
    }
    command = [sys.executable, "-m", "themis_ray.cli", "train", *(f"{key}={value}" for key, value in overrides.items())]
    subprocess.run([*command, "--out", str(run_folder)], check=True)
    summary: dict[str, Any] = json.loads((run_folder / "summary.json").read_text())
    return summary


def count_updates(learner: Path) -> int:
    """How many updates SAC has made: the steps of its policy's Adam, which a critic reset leaves alone."""
    state = pickle.loads((learner / "state.pkl").read_bytes())
    return int(state["optimizer"]["default_policy_policy"]["state"]["state"][0]["step"])


def learner_of(checkpoint: Path) -> Path:
    """The part of a checkpoint that holds networks and optimisers."""
    return checkpoint / "learner_group" / "learner"


def learning_curve(run_folder: Path) -> list[tuple[float, float]]:
    """(wall-clock seconds of training, mean true return) at each checkpoint."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    wall_s = {row["num_env_steps"]: row["wall_s"] for row in rows}
    curve = []
    for checkpoint in sorted((run_folder / "checkpoints").glob("checkpoint_*")):
        module = RLModule.from_checkpoint(learner_of(checkpoint) / "rl_module" / "default_policy")
        returns = evaluate(deterministic_policy(module), EnvConfig(id=ENV_ID), EVALUATION_SEEDS)
        curve.append((wall_s[int(checkpoint.name.rpartition("_")[2])], float(returns.mean())))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", required=True, choices=["ours"])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--num-env-steps", type=int, required=True)
    parser.add_argument("--num-labels", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="themis-peers-") as folder:
        run_folder = Path(folder) / "run"
        summary = train(arguments, run_folder)
        num_updates = count_updates(learner_of(sorted((run_folder / "checkpoints").glob("checkpoint_*"))[-1]))
        curve = learning_curve(run_folder)
    result = {
        "true_return": curve[-1][1],
        "curve": curve,
        "own_true_return": summary["true_return_mean"],
        "num_env_steps": summary["num_env_steps"],
        "num_learner_steps": summary["num_env_steps"],
        "num_labels": summary["num_preferences"],
        "num_updates": num_updates,
        "wall_s": summary["wall_s"],
        "versions": summary["versions"],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
