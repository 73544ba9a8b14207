"""The six invariants of ARCHITECTURE.md, read off the source where no behaviour shows them."""

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

import themis_ray
from themis_ray.config import load_config, resolve
from themis_ray.data.parquet import preference_schema
from themis_ray.rllib import build_algorithm_config

PACKAGE = Path(themis_ray.__file__).parent
SCIENCE = ("data", "envs", "clips", "reward", "feedback", "labeling")
WEB_STACK = {"fastapi", "sqlalchemy"}
# Where a web service would be; the rest of the package stays free of it.
WEB_ROOMS = ("labeling/", "serve/")

# The global generators of RLlib and torch are seeded in one place and saved and restored in another.
GLOBAL_GENERATOR_FILES = {"randomness.py", "rllib/loop.py", "explain/seeding.py"}
ALLOWED_GLOBAL_CALLS = {"seed", "get_state", "set_state", "getstate", "setstate"}
# Policy noise: networks draw where RLlib's learners and env runners run, from torch's saved generator.
POLICY_NOISE_FILES = {"rllib/modules.py", "rllib/updates.py"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "multinomial"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yields (path below the package, syntax tree) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    """Returns the names of the packages that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def dotted(node: ast.AST) -> str:
    """Returns `a.b.c` for such an expression, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        parent = dotted(node.value)
        return f"{parent}.{node.attr}" if parent else ""
    return ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def test_the_sources_are_found() -> None:
    names = {name for name, _ in sources()}
    assert {"cli/__init__.py", "data/preferences.py", "rllib/connectors.py", "rllib/off_policy.py"} <= names


# ---------------------------------------------------------------- 1 and 2: who may import what


def test_the_science_runs_without_ray() -> None:
    for name, tree in sources():
        if name.startswith(tuple(f"{room}/" for room in SCIENCE)):
            assert "ray" not in imported(tree), name
    modules = ", ".join(f"themis_ray.{room}" for room in SCIENCE)
    code = f"import sys, {modules}\nassert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_web_stack_stays_inside_labeling() -> None:
    for name, tree in sources():
        if not name.startswith(WEB_ROOMS):
            assert not imported(tree) & WEB_STACK, name


# ---------------------------------------------------------------- 3 and 4: labels and segments


def test_only_one_function_encodes_labels() -> None:
    definitions, sides, encoding_dicts = [], set(), []
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "left_probability":
                definitions.append(name)
            if dotted(node) in ("Choice.LEFT", "Choice.RIGHT", "Choice.EQUAL"):
                sides.add(name)
            if isinstance(node, ast.Dict):
                words = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                is_encoding = {"left", "right"} <= words
                if is_encoding and any(isinstance(value, ast.Constant) for value in node.values):
                    encoding_dicts.append(name)
    assert definitions == ["data/preferences.py"]
    # Imports turn the labels of other programs into words.
    words_only = {"feedback/teachers.py", "data/exchange/foreign.py"}
    assert sides == {"data/preferences.py", *words_only}, "one encodes, the others answer in words"
    assert encoding_dicts == []


def test_preferences_hold_ids_and_no_arrays() -> None:
    kinds = {field.name: field.type for field in preference_schema()}
    assert {kinds["left_id"], kinds["right_id"], kinds["choice"]} == {pa.string()}
    assert not any(pa.types.is_nested(kind) for kind in kinds.values())


# ---------------------------------------------------------------- 5: true and predicted reward


def _writes_rewards(node: ast.AST) -> bool:
    """Tells whether a node puts a value under `Columns.REWARDS`."""
    if isinstance(node, ast.Assign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(t, ast.Subscript) and dotted(t.slice) == "Columns.REWARDS" for t in targets)
    return isinstance(node, ast.Dict) and any(key and dotted(key) == "Columns.REWARDS" for key in node.keys)


def test_rewards_are_swapped_in_one_place_per_kind_of_learner() -> None:
    places = [name for name, tree in sources() for node in ast.walk(tree) if _writes_rewards(node)]
    assert places == ["rllib/connectors.py", "rllib/off_policy.py"]
    for name, tree in sources():
        assert not [called for called, _ in calls(tree) if called.endswith(".set_rewards")], name


@pytest.mark.ray
@pytest.mark.parametrize("learner", ["ppo", "dqn"])
def test_rllibs_own_return_stays_the_true_one(learner: str, tmp_path: Path, ray_cluster: None) -> None:
    settings = [
        "env.id=CartPole-v1",
        f"algorithm.name={learner}",
        "env.horizon=40",
        "num_env_steps=320",
        "feedback.budget=4",
        "feedback.session_size=4",
        "feedback.segment_length=10",
        "exploration.num_env_steps=0",
        "algorithm.hidden_sizes=[8]",
        "algorithm.num_envs=1",
        "reward.hidden_sizes=[8]",
        "reward.num_epochs=2",
    ]
    config, _ = resolve(load_config(None, settings))
    algorithm: Any = build_algorithm_config(config, tmp_path).build_algo()
    try:
        told = 0.0
        while algorithm.env_steps < config.num_env_steps:
            result = algorithm.train()["env_runners"]
            if result["num_episodes"]:
                told += result["num_episodes"] * result["episode_return_mean"]
        true_returns, _ = algorithm.loop.pool.recent_returns(100)
        assert algorithm.loop.has_fitted_reward
        assert 2 < len(true_returns) < 100
        assert np.all(true_returns == np.round(true_returns)), "CartPole pays 1 for each step and nothing else"
        assert told == pytest.approx(true_returns.sum())
    finally:
        algorithm.stop()


# ---------------------------------------------------------------- 6: random draws


def test_no_draw_from_global_generators() -> None:
    for name, tree in sources():
        if "random" in imported(tree):
            assert name in GLOBAL_GENERATOR_FILES, f"{name} imports random; take an rng argument"
        for called, _ in calls(tree):
            *parents, function = called.split(".")
            if parents in (["np", "random"], ["numpy", "random"], ["random"]):
                is_generator = function in ("default_rng", "SeedSequence")
                is_kept = name in GLOBAL_GENERATOR_FILES and function in ALLOWED_GLOBAL_CALLS
                assert is_generator or is_kept, f"{name} calls {called}; take an rng argument"
            if parents == ["torch"] and function in TORCH_DRAWS:
                assert name in POLICY_NOISE_FILES, f"{name} calls {called}; draw from a generator of its own"


def test_every_generator_is_seeded() -> None:
    seen = 0
    for name, tree in sources():
        for called, call in calls(tree):
            if called.endswith(("default_rng", "SeedSequence")):
                seen += 1
                assert call.args, f"{name} calls {called} without a seed"
                assert not isinstance(call.args[0], ast.Constant), f"{name} calls {called} with a fixed seed"
    assert seen >= 2


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("rllib", {"captum", "matplotlib"}),
        ("reward_actor", {"captum", "matplotlib", "pandas", "ray.rllib"}),
        ("cli.report", {"captum", "ray.rllib", "ray.tune"}),
        ("cli.studies", {"captum", "ray.rllib", "ray.tune"}),
    ],
)
def test_processes_import_only_what_they_use(package: str, unwanted: set[str]) -> None:
    # Every env runner, every reward actor and every command would pay for the rest with time and memory.
    code = f"import sys, themis_ray.{package}; print({unwanted} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_a_process_may_use_ray_again_after_it_has_ended() -> None:
    code = """
import ray
from themis_ray.config import load_config, resolve
from themis_ray.experiment import quieten
from themis_ray.sessions import ray_session
from themis_ray.rllib import build_algorithm_config
quieten()
for _ in range(2):
    with ray_session():
        config, _ = resolve(load_config(None, ["env.id=CartPole-v1", "learn_reward=false", "num_env_steps=500"]))
        algorithm = build_algorithm_config(config).build_algo()
        algorithm.train()
        print("trained", algorithm.env_steps > 0)
        algorithm.stop()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout.count("trained True") == 2, done.stderr


@pytest.mark.ray
def test_a_cluster_that_somebody_else_runs_on_the_machine_is_left_alone(ray_cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    code = """
import ray
from themis_ray.experiment import quieten
from themis_ray.sessions import ray_session
quieten()
with ray_session():
    print("address", ray.get_runtime_context().gcs_address)
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as folder:  # Ray's sockets need short paths
        mark = Path(folder, "ray", "ray_current_cluster")  # where `ray start` says what it started
        mark.parent.mkdir()
        mark.write_text(address)
        command = [sys.executable, "-c", code]
        environment["RAY_TMPDIR"] = folder
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("address ")
    assert address not in done.stdout
