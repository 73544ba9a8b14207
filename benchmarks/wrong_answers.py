"""Measures which settings of a fit hold up against wrong answers: `python -m benchmarks.wrong_answers RUN...`.

Whole runs are bimodal and take minutes, so they tell little about a setting of the fit. This takes the queries of
finished runs with a synthetic teacher, in the order in which they were asked, answers them anew by their true returns
with a share of the answers wrong, fits after every session as a run does, and looks at queries that are in no fit:

    accuracy      share of all pairs of their segments that the mean over members ranks as their true returns do
    correlation   of predicted and true rewards over the steps of these segments

Both are means over the sessions of the second half, over runs of a task and over draws of the wrong answers. Queries of
the next session are among those looked at: what is learned has to hold for what the learner does next. What the learner
would have done with another reward is not simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from themis_ray.config import load_config, resolve
from themis_ray.data import Choice, LabelledPairs, PreferenceDataset
from themis_ray.envs import EnvSpec
from themis_ray.reward import DEFAULT_LABEL_MARGIN, RewardConfig, RewardEnsemble, fit, make_optimizer

OUT = Path(__file__).resolve().parent / "out"
FIGURES = ("accuracy", "correlation")
# One in so many queries is in no fit.
TEST_SHARE = 4
MAX_SESSIONS = 6

# Name in the table -> settings of the fit over those of the run's task; from scratch where nothing else is said.
_GOING_ON: dict[str, Any] = {"from_scratch": False, "weight_decay": 0.0, "mistake_rate": 0.0, "label_margin": 0.0}
_MARGIN = {"label_margin": DEFAULT_LABEL_MARGIN}
_MEMBERS_7 = _GOING_ON | {"ensemble_size": 7, "num_epochs": 20, "from_scratch": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "going on": _GOING_ON | {"ensemble_size": 3, "num_epochs": 50},
    "going on, 7 members, 3 passes": _GOING_ON | {"ensemble_size": 7, "num_epochs": 3},
    "3 members, 50 passes": _GOING_ON | {"ensemble_size": 3, "num_epochs": 50, "from_scratch": True},
    "defaults": _GOING_ON | {"ensemble_size": 3, "num_epochs": 50, "from_scratch": True, **_MARGIN},
    "7 members, 5 passes": _MEMBERS_7 | {"num_epochs": 5},
    "7 members, 10 passes": _MEMBERS_7 | {"num_epochs": 10},
    "7 members, 20 passes": _MEMBERS_7,
    "7 members, 20 passes, weight_decay 0.3": _MEMBERS_7 | {"weight_decay": 0.3},
    "7 members, 20 passes, weight_decay 1": _MEMBERS_7 | {"weight_decay": 1.0},
    "robust": _MEMBERS_7 | {"weight_decay": 1.0, **_MARGIN},
    "7 members, 50 passes, weight_decay 1": _MEMBERS_7 | {"num_epochs": 50, "weight_decay": 1.0},
    "7 members, 20 passes, mistake_rate 0.1": _MEMBERS_7 | {"mistake_rate": 0.1},
    "7 members, 20 passes, mistake_rate 0.3": _MEMBERS_7 | {"mistake_rate": 0.3},
}


@dataclass(frozen=True)
class Answered:
    """The queries of one run, by segments (S, L, ...), in the order in which they were asked."""

    task: str
    spec: EnvSpec
    config: RewardConfig
    observations: NDArray[Any]
    actions: NDArray[Any]
    true_rewards: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    session: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.float32]:
        """What a teacher who is never wrong says."""
        returns = self.true_rewards.sum(axis=1)
        return (returns[self.left] > returns[self.right]).astype(np.float32)


def read_run(path: Path) -> Answered:
    """Returns what a run has asked; queries whose sides are worth the same are left out."""
    config, spec = resolve(load_config(path / "config.yaml"))
    dataset = PreferenceDataset(path)
    rows = {segment.id: row for row, segment in enumerate(dataset.segments)}
    segments = dataset.segments
    true_rewards = np.stack([segment.true_rewards for segment in segments])
    returns = true_rewards.sum(axis=1)
    asked = [p for p in dataset.preferences if p.choice is not Choice.SKIP]
    asked = [p for p in asked if returns[rows[p.left_id]] != returns[rows[p.right_id]]]
    sessions = np.array([preference.feedback_session for preference in asked])
    merged = sessions * min(MAX_SESSIONS, sessions.max() + 1) // (sessions.max() + 1)
    plain = config.reward.model_copy(update={"ensemble_size": 3, "num_epochs": None})
    return Answered(
        spec.id,
        spec,
        plain,
        np.stack([segment.observations for segment in segments]),
        np.stack([segment.actions for segment in segments]),
        true_rewards,
        np.array([rows[preference.left_id] for preference in asked]),
        np.array([rows[preference.right_id] for preference in asked]),
        merged,
    )


def measure(run: Answered, settings: Mapping[str, Any], mistake_rate: float, seed: int) -> tuple[float, float]:
    """Returns accuracy and correlation, means over the sessions of the second half."""
    config = run.config.model_copy(update=dict(settings))
    rng = np.random.default_rng(seed)
    is_test = np.arange(len(run.session)) % TEST_SHARE == 0
    given = np.where(rng.random(len(run.session)) < mistake_rate, 1 - run.labels, run.labels)
    given = np.where(given > 0.5, 1 - config.label_margin, config.label_margin).astype(np.float32)
    spec = run.spec
    found = []
    last = int(run.session.max())
    for session in range(last + 1):
        if session == 0 or config.from_scratch:
            ensemble = RewardEnsemble(
                spec.observation_space, spec.action_space, spec.observation_kind, config, seed + 1000 * session
            )
            optimizer = make_optimizer(ensemble, config)
        learnt = ~is_test & (run.session <= session)
        pairs = LabelledPairs(run.observations, run.actions, run.left[learnt], run.right[learnt], given[learnt])
        fit(ensemble, optimizer, _used(pairs), config, rng)
        if 2 * session >= last:
            found.append(_look(run, ensemble, is_test & (run.session <= session + 1)))
    accuracy, correlation = np.mean(found, axis=0)
    return float(accuracy), float(correlation)


def _used(pairs: LabelledPairs) -> LabelledPairs:
    rows, sides = np.unique(np.stack([pairs.left, pairs.right]), return_inverse=True)
    left, right = sides.reshape(2, -1)
    return LabelledPairs(pairs.observations[rows], pairs.actions[rows], left, right, pairs.labels)


def _look(run: Answered, ensemble: RewardEnsemble, looked_at: NDArray[np.bool_]) -> tuple[float, float]:
    rows = np.unique(np.concatenate([run.left[looked_at], run.right[looked_at]]))
    steps = run.observations[rows].reshape(-1, *run.observations.shape[2:])
    rewards = ensemble.predict(steps, run.actions[rows].reshape(-1, *run.actions.shape[2:]))
    true = run.true_rewards[rows]
    first, second = np.triu_indices(len(rows), 1)
    predicted_returns, true_returns = rewards.reshape(len(rows), -1).sum(axis=1), true.sum(axis=1)
    differs = true_returns[first] != true_returns[second]
    is_right = (predicted_returns[first] > predicted_returns[second]) == (true_returns[first] > true_returns[second])
    correlation = np.corrcoef(rewards, true.ravel())[0, 1] if rewards.std() > 0 else 0.0
    return float(is_right[differs].mean()), float(correlation)


def report(rows: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], console: Console) -> dict[str, Any]:
    """Prints means by setting and task, and returns them."""
    tasks = sorted({task for found in rows.values() for task in found})
    table = Table(title="accuracy / correlation on queries that are in no fit", title_justify="left")
    table.add_column("settings")
    for column in (*tasks, "mean"):
        table.add_column(column, justify="right")
    figures: dict[str, Any] = {}
    for name, found in rows.items():
        means = {task: np.mean(found[task], axis=0).tolist() for task in tasks}
        means["mean"] = np.mean(list(means.values()), axis=0).tolist()
        figures[name] = {task: dict(zip(FIGURES, pair, strict=True)) for task, pair in means.items()}
        table.add_row(name, *(f"{accuracy:.3f} / {correlation:.2f}" for accuracy, correlation in means.values()))
    console.print(table)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs with a synthetic teacher")
    parser.add_argument("--mistake-rate", type=float, default=0.3, help="share of wrong answers (default 0.3)")
    parser.add_argument("--draws", type=int, default=2, help="draws of the wrong answers for each run (default 2)")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    names = arguments.settings
    runs = [read_run(path) for path in arguments.runs]
    console = Console()
    jobs = [(name, run, draw) for run in runs for draw in range(arguments.draws) for name in names]
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {name: defaultdict(list) for name in names}
    for name, run, draw in track(jobs, "fitting", console=console):
        rows[name][run.task].append(measure(run, SETTINGS[name], arguments.mistake_rate, draw))
    OUT.mkdir(exist_ok=True)
    figures = {"mistake_rate": arguments.mistake_rate, "draws": arguments.draws, "settings": report(rows, console)}
    (OUT / "wrong_answers.json").write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
