"""A sweep on several nodes: who runs where, and what is left when a node is lost in the middle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import BASE, write_sweep

from themis_ray.data import PreferenceDataset
from themis_ray.sweeping import Outcome, Progress, SweepFolder, expand, load_sweep, run_sweep

pytestmark = pytest.mark.cluster

# Room for one trial's part on each node: head, what learns, what predicts, what steps environments.
HEAD = {"num_cpus": 1, "resources": {"head_node": 1}}
LEARNER = {"num_cpus": 1, "num_gpus": 1, "resources": {"learner_node": 1}}
REWARD = {"num_cpus": 1, "resources": {"reward_node": 1}}
ENV_RUNNER = {"num_cpus": 1, "resources": {"env_runner_node": 1}}
RESOURCES = {
    "num_fit_threads": 1,
    "main_process_custom_resources": {"head_node": 1},
    "num_env_runners": 2,
    "num_cpus_per_env_runner": 0.5,
    "env_runner_custom_resources": {"env_runner_node": 0.5},
    "num_learners": 1,
    "num_gpus_per_learner": 1,
    "learner_custom_resources": {"learner_node": 1},
    "reward_actor_num_cpus": 0.5,
    "reward_actor_custom_resources": {"reward_node": 1},
}
ACTORS = {"learner": "WrappedExecutable", "reward": "RewardModelActor", "runner": "EnvRunner", "trial": "ImplicitFunc"}


PPO = {"name": "ppo", "hidden_sizes": [16], "batch_size": 200, "num_envs": 2}


def write(folder: Path, algorithm: dict[str, Any] | None = None, **resources: Any) -> Path:
    """Write a sweep of one trial that is spread over the nodes above."""
    feedback = {"budget": 24, "session_size": 4, "segment_length": 10}
    base = {**BASE, "num_env_steps": 3000, "feedback": feedback, "resources": {**RESOURCES, **resources}}
    if algorithm is not None:
        base = {**base, "algorithm": algorithm, "exploration": {"num_env_steps": 100}}
    return write_sweep(folder, base=base)


def answers_of(path: Path) -> set[tuple[str, str]]:
    """Return query and choice of all that is stored of a trial."""
    dataset = PreferenceDataset(path)
    return {(preference.query_id, str(preference.choice)) for preference in dataset.preferences}


def run(path: Path, out: Path, report: Callable[[Progress], None]) -> tuple[SweepFolder, list[Outcome]]:
    settings = load_sweep(path)
    folder = SweepFolder.create(out, settings)
    return folder, run_sweep(settings, folder, expand(settings), report)


def test_learners_land_on_gpu_nodes_and_env_runners_on_cpu_nodes(start_nodes: Any, tmp_path: Path) -> None:
    nodes = start_nodes(head=HEAD, gpu=LEARNER, reward=REWARD, cpu=ENV_RUNNER)
    seen: dict[str, set[str]] = {kind: set() for kind in ACTORS}

    def look(event: Progress) -> None:
        for kind, name in ACTORS.items():
            seen[kind].update(nodes.of(name))

    _, (outcome,) = run(write(tmp_path), tmp_path / "sweep", look)
    assert outcome.status == "finished", outcome
    assert seen == {"learner": {"gpu"}, "reward": {"reward"}, "runner": {"cpu"}, "trial": {"head"}}


@pytest.mark.parametrize(
    ("kind", "lost", "algorithm"),
    [
        ("learner", LEARNER, None),
        ("reward", REWARD, None),
        ("runner", ENV_RUNNER, None),
        ("runner", ENV_RUNNER, PPO),  # which samples until a batch is full
    ],
)
def test_a_sweep_outlives_a_node(
    kind: str, lost: dict[str, Any], algorithm: dict[str, Any] | None, start_nodes: Any, tmp_path: Path
) -> None:
    kinds = {"learner": LEARNER, "reward": REWARD, "runner": ENV_RUNNER}
    nodes = start_nodes(head=HEAD, **kinds)
    out = tmp_path / "sweep"
    stored: set[tuple[str, str]] = set()

    def lose(event: Progress) -> None:
        if event.share >= 0.4 and not stored:
            assert nodes.of(ACTORS[kind])[0] == kind
            nodes.remove(kind)
            stored.update(answers_of(out / event.name))
            # As a cluster that is told to keep so many nodes does.
            nodes.add("another", **lost)

    folder, (outcome,) = run(write(tmp_path, algorithm), out, lose)
    assert outcome.status == "finished", outcome
    assert outcome.num_env_steps >= 3000
    if kind == "runner":
        assert "Resumed" not in (folder.path / outcome.name / "run.log").read_text(), "the run itself went on"
    assert stored
    assert stored <= answers_of(folder.path / outcome.name)
    assert outcome.num_labels == 24


def test_a_sweep_outlives_the_node_that_steers_a_trial(start_nodes: Any, tmp_path: Path) -> None:
    steering = {"num_cpus": 1, "resources": {"steering_node": 1}}
    nodes = start_nodes(head=HEAD, trial=steering, learner=LEARNER, reward=REWARD, runner=ENV_RUNNER)
    out = tmp_path / "sweep"
    stored: set[tuple[str, str]] = set()

    def lose(event: Progress) -> None:
        if event.share >= 0.4 and not stored:
            assert nodes.of(ACTORS["trial"]) == ["trial"]
            nodes.remove("trial")
            stored.update(answers_of(out / event.name))
            nodes.add("another", **steering)

    path = write(tmp_path, main_process_custom_resources={"steering_node": 1})
    folder, (outcome,) = run(path, out, lose)
    assert outcome.status == "finished", outcome
    assert stored
    assert stored <= answers_of(folder.path / outcome.name)
    assert outcome.num_labels == 24
    assert "Resumed from checkpoint_" in (folder.path / outcome.name / "run.log").read_text()
