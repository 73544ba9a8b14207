"""RLlib's env runners and their episodes."""

from ray.rllib.env.env_context import EnvContext

from themis_ray.envs import RESET_SEED, EnvConfig, SeedEpisodes, make_env
from themis_ray.rllib.algorithms import _make_env

CART_POLE = EnvConfig(id="CartPole-v1")


def test_env_runners_that_are_reset_with_the_same_seed_have_other_episodes() -> None:
    contexts = [EnvContext(CART_POLE.model_dump(), worker_index=worker_index) for worker_index in (0, 1, 2)]
    seeds = [_make_env(context).reset(seed=5)[1][RESET_SEED] for context in contexts]
    assert len(set(seeds)) == 3
    assert seeds[0] == SeedEpisodes(make_env(CART_POLE)).reset(seed=5)[1][RESET_SEED], "the driver's are others now"
