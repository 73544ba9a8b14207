"""The reward ensemble as a Ray actor, and the client that keeps it alive.

Its process imports torch and Ray and not RLlib, which would take a third of its start and a fifth of its memory.
"""

from themis_ray.reward_actor.actor import RewardModelActor, RewardModelSpec
from themis_ray.reward_actor.client import PendingPrediction, RewardModel
from themis_ray.reward_actor.process import prepare_process, prepare_thread

__all__ = [
    "PendingPrediction",
    "RewardModel",
    "RewardModelActor",
    "RewardModelSpec",
    "prepare_process",
    "prepare_thread",
]
