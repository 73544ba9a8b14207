"""How the loop plugs into RLlib: algorithms, networks, replay, and the reward model as an actor."""

# ruff: noqa: E402  (the display first)

from themis_ray.envs.display import prepare_import

# RLlib imports dm_control where it is installed, and that decides at its import how frames are drawn.
prepare_import("mujoco")

from themis_ray.rllib.algorithms import build_algorithm_config
from themis_ray.rllib.cpl import PreferenceCPL, check_cpl, open_preferences
from themis_ray.rllib.evaluation import deterministic_policy, evaluate, random_policy
from themis_ray.rllib.finished import FinishedRun, draw_queries, open_finished_run, open_networks, open_reward_history
from themis_ray.rllib.loop import PreferenceLoop
from themis_ray.rllib.off_policy import PreferenceDQN, PreferenceSAC
from themis_ray.rllib.ppo import PreferencePPO
from themis_ray.rllib.reference import ReferencePolicy, open_reference
from themis_ray.rllib.replay import ReplayBuffer, Transitions
from themis_ray.rllib.settings import (
    ALGORITHM_DESCRIPTIONS,
    AlgorithmSettings,
    ExplorationSettings,
    LoopSettings,
    ResourceSettings,
    resolve_algorithm,
)

__all__ = [
    "ALGORITHM_DESCRIPTIONS",
    "AlgorithmSettings",
    "ExplorationSettings",
    "FinishedRun",
    "LoopSettings",
    "PreferenceCPL",
    "PreferenceDQN",
    "PreferenceLoop",
    "PreferencePPO",
    "PreferenceSAC",
    "ReferencePolicy",
    "ReplayBuffer",
    "ResourceSettings",
    "Transitions",
    "build_algorithm_config",
    "check_cpl",
    "deterministic_policy",
    "draw_queries",
    "evaluate",
    "open_finished_run",
    "open_networks",
    "open_preferences",
    "open_reference",
    "open_reward_history",
    "random_policy",
    "resolve_algorithm",
]
