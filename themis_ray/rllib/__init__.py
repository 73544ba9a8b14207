"""How the loop plugs into RLlib: algorithms, networks, replay, and the reward model as an actor."""

# ruff: noqa: E402  (the display first)

from themis_ray.envs.display import prepare_import

# RLlib imports dm_control where it is installed, and that decides at its import how frames are drawn.
prepare_import("mujoco")

from themis_ray.rllib.algorithms import build_algorithm_config
from themis_ray.rllib.cpl import PreferenceCPL, open_preferences
from themis_ray.rllib.evaluation import deterministic_policy, evaluate, random_policy
from themis_ray.rllib.finished import FinishedRun, draw_queries, open_finished_run, open_networks, open_reward_history
from themis_ray.rllib.loop import PreferenceLoop
from themis_ray.rllib.off_policy import PreferenceDQN, PreferenceSAC
from themis_ray.rllib.ppo import PreferencePPO
from themis_ray.rllib.reference import ReferencePolicy, open_reference
from themis_ray.rllib.replay import ReplayBuffer, Transitions

__all__ = [
    "FinishedRun",
    "PreferenceCPL",
    "PreferenceDQN",
    "PreferenceLoop",
    "PreferencePPO",
    "PreferenceSAC",
    "ReferencePolicy",
    "ReplayBuffer",
    "Transitions",
    "build_algorithm_config",
    "deterministic_policy",
    "draw_queries",
    "evaluate",
    "open_finished_run",
    "open_networks",
    "open_preferences",
    "open_reference",
    "open_reward_history",
    "random_policy",
]
