import pytest
from pydantic import ValidationError

from themis_ray.errors import ConfigError
from themis_ray.loop_settings import (
    LEARNER_DEFAULTS,
    AlgorithmSettings,
    ExplorationSettings,
    LoopSettings,
    ResourceSettings,
    resolve_algorithm,
)
from themis_ray.rllib import build_algorithm_config

SETTINGS = [name for name in AlgorithmSettings.model_fields if name != "name"]
VALUES = {
    "hidden_sizes": (8,),
    "gamma": 0.5,
    "tau": 0.5,
    "gae_lambda": 0.5,
    "final_epsilon": 0.5,
    "epsilon_share": 0.5,
    "reference": "runs/x",
}


@pytest.mark.parametrize("learner", LEARNER_DEFAULTS)
def test_defaults_are_complete_and_allowed(learner: str) -> None:
    resolved = resolve_algorithm(AlgorithmSettings(), learner)
    assert resolved.name == learner
    given = {name for name, value in resolved.model_dump().items() if value is not None} - {"name"}
    assert given == {name for name, value in LEARNER_DEFAULTS[learner].items() if value is not None}
    assert resolve_algorithm(resolved, learner) == resolved


def test_every_setting_is_used_by_a_learner() -> None:
    assert set(SETTINGS) == set().union(*LEARNER_DEFAULTS.values())


@pytest.mark.parametrize("learner", LEARNER_DEFAULTS)
def test_the_description_of_a_setting_names_the_learners_that_use_it(learner: str) -> None:
    for name in SETTINGS:
        learners, colon, _ = AlgorithmSettings.model_fields[name].description.partition(":")
        named = learners.split(", ") if colon else list(LEARNER_DEFAULTS)
        if "ppo: env steps per iteration" in AlgorithmSettings.model_fields[name].description:
            continue  # batch_size says what it means to each
        assert (learner in named) == (name in LEARNER_DEFAULTS[learner]), name


@pytest.mark.parametrize("learner", LEARNER_DEFAULTS)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_another_learner_are_refused_in_one_line(learner: str, name: str) -> None:
    given = {name: VALUES.get(name, 1)}
    if name == "kl_coefficient" and name in LEARNER_DEFAULTS[learner]:
        given["reference"] = "runs/x"  # it weighs nothing without one
    settings = AlgorithmSettings(**given)
    if name in LEARNER_DEFAULTS[learner]:
        assert getattr(resolve_algorithm(settings, learner), name) == VALUES.get(name, 1)
        return
    with pytest.raises(ConfigError) as caught:
        resolve_algorithm(settings, learner)
    message = str(caught.value)
    assert message.startswith(f"algorithm.{name} was given, but the learner is {learner}")
    users = [other for other, known in LEARNER_DEFAULTS.items() if name in known]
    assert users
    assert all(user in message for user in users)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (AlgorithmSettings, {"learning_rate": 0}),
        (AlgorithmSettings, {"gamma": 1.1}),
        (AlgorithmSettings, {"name": "a2c"}),
        (AlgorithmSettings, {"hiden_sizes": (3,)}),
        (AlgorithmSettings, {"hidden_sizes": (32, 0)}),
        (LoopSettings, {"env": {"id": "Pendulum-v1"}, "seed": 2**32}),
        (ExplorationSettings, {"num_seed_steps": -1}),
        (ResourceSettings, {"num_env_runners": -1}),
        (LoopSettings, {}),
        (LoopSettings, {"env": {"id": "Pendulum-v1"}, "num_env_steps": 0}),
    ],
)
def test_values_out_of_range_are_refused(model, values: dict) -> None:
    with pytest.raises(ValidationError):
        model(**values)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AlgorithmSettings().gamma = 0.5


@pytest.mark.parametrize("learner", ["sac", "dqn"])
def test_replay_learners_refuse_more_than_one_learner(learner: str) -> None:
    settings = LoopSettings(
        env={"id": "CartPole-v1"},
        algorithm=resolve_algorithm(AlgorithmSettings(), learner),
        resources=ResourceSettings(num_learners=2),
    )
    with pytest.raises(ConfigError, match="num_learners=2 was given"):
        build_algorithm_config(settings)


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [5, 100, 2048])
def test_ppo_collects_close_to_its_batch_size_in_rounds(num_envs: int, batch_size: int) -> None:
    given = AlgorithmSettings(num_envs=num_envs, batch_size=batch_size)
    settings = LoopSettings(
        env={"id": "CartPole-v1"},
        algorithm=resolve_algorithm(given, "ppo"),
        exploration=ExplorationSettings(num_seed_steps=0, num_env_steps=0),
    )
    config = build_algorithm_config(settings)
    per_round = config.rollout_fragment_length * num_envs
    assert config.total_train_batch_size % per_round == 0
    assert abs(config.total_train_batch_size - batch_size) <= max(per_round / 2, num_envs)
    assert config.minibatch_size <= config.total_train_batch_size
    assert config.loop_settings == settings.model_dump()


@pytest.mark.parametrize(
    ("num_envs", "batch_size", "fragment"),
    [(8, 2000, 50), (4, 1800, 150), (4, 2000, 125), (8, 1600, 50), (1, 7, 7), (2, 22, 11), (3, 2048, 171)],
)
def test_a_batch_that_environments_share_evenly_is_kept_to_the_step(
    num_envs: int, batch_size: int, fragment: int
) -> None:
    given = AlgorithmSettings(num_envs=num_envs, batch_size=batch_size)
    settings = LoopSettings(env={"id": "CartPole-v1"}, algorithm=resolve_algorithm(given, "ppo"))
    config = build_algorithm_config(settings)
    assert config.rollout_fragment_length == fragment
    assert (config.total_train_batch_size == batch_size) == (batch_size % num_envs == 0)


def test_a_minibatch_is_no_larger_than_the_share_of_a_learner() -> None:
    given = AlgorithmSettings(num_envs=2, batch_size=256, minibatch_size=200)
    settings = LoopSettings(
        env={"id": "CartPole-v1"},
        algorithm=resolve_algorithm(given, "ppo"),
        resources=ResourceSettings(num_learners=2),
    )
    config = build_algorithm_config(settings)
    assert (config.minibatch_size, config.train_batch_size_per_learner) == (128, 128)


@pytest.mark.parametrize("learner", LEARNER_DEFAULTS)
def test_rllib_gets_what_the_settings_say(learner: str) -> None:
    values = {"learning_rate": 1e-3, "gamma": 0.7, "hidden_sizes": (9, 7)}
    settings = LoopSettings(
        env={"id": "CartPole-v1"},
        seed=5,
        algorithm=resolve_algorithm(AlgorithmSettings(**values), learner),
        exploration=ExplorationSettings(num_seed_steps=4, num_env_steps=0),
    )
    config = build_algorithm_config(settings)
    assert config.gamma == 0.7
    assert config.seed == 5
    assert config.rl_module_spec.model_config["hidden_sizes"] == [9, 7]
    rates = (config.actor_lr, config.critic_lr, config.alpha_lr) if learner == "sac" else (config.lr,)
    assert set(rates) == {1e-3}
    if learner in ("sac", "dqn"):
        assert config.rl_module_spec.model_config["num_seed_steps"] == 4
        assert config.tau == settings.algorithm.tau
        assert config.rollout_fragment_length == settings.algorithm.round_num_env_steps
