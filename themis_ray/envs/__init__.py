"""What is acted in: environment families, one way to make them, and the wrappers they share."""

from themis_ray.envs.actions import action_names
from themis_ray.envs.families import FAMILIES, Family, find_family
from themis_ray.envs.meanings import differing_meanings, read_env_config
from themis_ray.envs.names import observation_names
from themis_ray.envs.observations import (
    ImagePart,
    MixedBox,
    ObservationKind,
    image_parts,
    infer_observation_kind,
    observation_scale,
)
from themis_ray.envs.registry import (
    EnvConfig,
    EnvSpec,
    get_env_spec,
    installed_families,
    list_envs,
    make_env,
    resolve_env,
)
from themis_ray.envs.seeding import RESET_SEED, SeedEpisodes
from themis_ray.envs.wrappers import FixedHorizon, first_choices, num_choices

__all__ = [
    "FAMILIES",
    "RESET_SEED",
    "EnvConfig",
    "EnvSpec",
    "Family",
    "FixedHorizon",
    "ImagePart",
    "MixedBox",
    "ObservationKind",
    "SeedEpisodes",
    "action_names",
    "differing_meanings",
    "find_family",
    "first_choices",
    "get_env_spec",
    "image_parts",
    "infer_observation_kind",
    "installed_families",
    "list_envs",
    "make_env",
    "num_choices",
    "observation_names",
    "observation_scale",
    "read_env_config",
    "resolve_env",
]
