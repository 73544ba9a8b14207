import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.config import PRESET_DESCRIPTIONS, PRESETS, ExperimentConfig, dump_config, load_config, resolve
from themis_ray.errors import ConfigError, ThemisError, UnknownNameError

ROOT = Path(__file__).parents[1]
PENDULUM = "env.id=Pendulum-v1"
SHIPPED = sorted(
    path for path in (ROOT / "tune_configs").rglob("*.yaml") if "base" not in (yaml.safe_load(path.read_text()) or {})
)


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return path


def load(*overrides: str) -> ExperimentConfig:
    return load_config(None, overrides)


def refusal(*overrides: str, path: Path | None = None) -> str:
    """Return the one line that refuses these settings."""
    with pytest.raises(ThemisError) as caught:
        resolve(load_config(path, overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# ---------------------------------------------------------------- reading


def test_overrides_are_dotted_and_go_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "env: {id: Pendulum-v1}\nseed: 1\nteacher: {name: noisy, beta: 2}\n")
    config = load_config(path, ["seed=3", "teacher.eps_mistake=0.1", "feedback.budget=7"])
    assert (config.env.id, config.seed, config.feedback.budget) == ("Pendulum-v1", 3, 7)
    assert (config.teacher.name, config.teacher.beta, config.teacher.eps_mistake) == ("noisy", 2.0, 0.1)


def test_the_last_override_counts() -> None:
    assert load(PENDULUM, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learn_reward=false", False),
        ("learn_reward=true", True),
        ("algorithm.hidden_sizes=[32,16]", (32, 16)),
        ("algorithm.gamma=", None),
        ("algorithm.gamma=null", None),
        ("env.kwargs={g: 9.81}", {"g": 9.81}),
        ("env.kwargs.g=9.81", {"g": 9.81}),
        ("tracking.wandb_group=a=b", "a=b"),
        ("tracking.run_name=2024-13-45", "2024-13-45"),
        ("env.kwargs={limits: [0.7, .inf, -.inf]}", {"limits": [0.7, math.inf, -math.inf]}),
    ],
)
def test_an_override_is_read_as_yaml(override: str, expected: Any) -> None:
    value: Any = load(PENDULUM, override)
    for name in override.partition("=")[0].split(".")[:2]:
        value = getattr(value, name)
    assert value == expected


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_small_numbers_are_read_however_written(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"env: {{id: Pendulum-v1}}\nalgorithm: {{learning_rate: {text}}}\n")
    assert load_config(path).algorithm.learning_rate == 1e-4
    assert load(PENDULUM, f"algorithm.learning_rate={text}").algorithm.learning_rate == 1e-4


@pytest.mark.parametrize("text", ["1e6", "1.0e6", "1E+6", "1000000", "1_000_000"])
def test_large_counts_are_read_however_written(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"env: {{id: Pendulum-v1}}\nnum_env_steps: {text}\n")
    for config in (load_config(path), load(PENDULUM, f"num_env_steps={text}")):
        assert config.num_env_steps == 1_000_000
        assert type(config.num_env_steps) is int


def test_numbers_inside_lists_and_mappings_are_read_too() -> None:
    config = load(PENDULUM, "algorithm.hidden_sizes=[1e2, 64]", "env.kwargs={g: 1e1}")
    assert config.algorithm.hidden_sizes == (100, 64)
    assert config.env.kwargs == {"g": 10.0}


@pytest.mark.parametrize("group", ["7", "1e5", "2024-01-01", "null", "true", "0x10", "a: b", "", "é"])
def test_texts_that_look_like_something_else_survive_dump_and_load(group: str, tmp_path: Path) -> None:
    config = ExperimentConfig(env={"id": "Pendulum-v1"}, tracking={"wandb_group": group})
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_infinite_arguments_survive_dump_and_load(tmp_path: Path) -> None:
    config = load("env.id=Hopper-v5", "env.kwargs={healthy_z_range: [0.7, .inf]}")
    assert config.env.kwargs == {"healthy_z_range": [0.7, math.inf]}
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_every_shipped_file_loads(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    if "env" in values:
        resolve(load_config(path))


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sede=3", ["unknown setting 'sede'", "Did you mean 'seed'?", "Known here: env, algorithm"]),
        ("feedback.buget=3", ["unknown setting 'feedback.buget'", "Did you mean 'budget'?", "session_size"]),
        ("algorithm.lr=3", ["unknown setting 'algorithm.lr'", "learning_rate"]),
        ("tracking.wand=true", ["unknown setting 'tracking.wand'", "Did you mean 'wandb'?"]),
        ("zzz.a.b=3", ["unknown setting 'zzz'", "Known here"]),
        ("env.id=Pendulum-v9", ["no environment 'Pendulum-v9'", "Did you mean 'Pendulum-v1'"]),
        ("feedback.sampler=disagrement", ["no sampler 'disagrement'", "Did you mean 'disagreement'?", "uniform"]),
        ("teacher.name=oracel", ["no teacher 'oracel'", "Did you mean 'oracle'?", "mistake", "noisy"]),
        ("feedback.schedule=constnt", ["no schedule 'constnt'", "'constant'"]),
        ("feedback.budget=-1", ["feedback.budget=-1", "greater than or equal to 0"]),
        ("feedback.segment_length=201", ["feedback.segment_length=201", "200", "Give at most 200"]),
        ("feedback.segment_length=0", ["feedback.segment_length=0"]),
        ("teacher.eps_mistake=1.5", ["eps_mistake", "1.5", "0 to 1"]),
        ("teacher.beta=0", ["beta", "0", "-1"]),
        ("algorithm.name=dqn", ["algorithm.name=dqn", "Pendulum-v1", "ppo, sac"]),
        ("algorithm.name=a2c", ["algorithm.name='a2c'", "'ppo'", "'sac'", "'dqn'"]),
        ("algorithm.num_epochs=3", ["algorithm.num_epochs", "sac", "Used by: ppo"]),
        ("num_env_steps=0", ["num_env_steps=0"]),
        ("num_env_steps=2.5", ["num_env_steps=2.5", "integer"]),
        ("seed=-1", ["seed=-1"]),
        ("seed=4294967296", ["seed=4294967296", "4294967295"]),
        ("algorithm.hidden_sizes=[-5]", ["algorithm.hidden_sizes", "-5", "greater than 0"]),
        ("algorithm.replay_capacity=50", ["algorithm.replay_capacity=50", "two rounds of sampling", "64"]),
        ("seed=three", ["seed='three'", "integer"]),
        ("exploration.num_seed_steps=20000", ["20000", "num_env_steps=20000"]),
        ("env.id.x=3", ["env.id.x=3", "id is a value"]),
        ("env.horizon=0", ["env.horizon=0"]),
        ("seed", ["'seed'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(override: str, parts: list[str]) -> None:
    message = refusal(PENDULUM, override)
    for part in parts:
        assert part in message, message


def test_a_missing_environment_says_how_to_give_one() -> None:
    for overrides in ((), ("env.horizon=5",)):
        assert "env.id=Pendulum-v1" in refusal(*overrides)


def test_an_unknown_environment_has_an_error_of_its_own() -> None:
    with pytest.raises(UnknownNameError):
        resolve(load("env.id=Nothing-v0"))


def test_seed_steps_are_refused_for_ppo() -> None:
    assert "ppo takes no random steps" in refusal("env.id=CartPole-v1", "exploration.num_seed_steps=5")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("env: [", "no valid YAML"),
        ("env: {id: Pendulum-v1}\ntracking: {run_name: 2024-13-45}\n", "no valid YAML: month must be in 1..12"),
        ("env: {id: Pendulum-v1}\n---\nseed: 1\n", "no valid YAML"),
        ("- env\n", "holds a list"),
        ("just words\n", "holds a str"),
        ("1: 2\nenv: {id: Pendulum-v1}\n", "1"),
        ("", "env"),
        ("env: null\n", "env"),
        ("env: Pendulum-v1\n", "env='Pendulum-v1'"),
        ("env: {id: Pendulum-v1}\nteacher: oracle\n", "teacher='oracle'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, part: str, tmp_path: Path) -> None:
    assert part in refusal(path=write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(path=tmp_path / "none.yaml")
    assert "cannot be read" in refusal(path=tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert "no valid YAML" in refusal(path=binary)


# ---------------------------------------------------------------- resolving


@pytest.mark.parametrize(
    ("env_id", "learner"),
    [
        ("Pendulum-v1", "sac"),
        ("HalfCheetah-v5", "sac"),
        ("CartPole-v1", "ppo"),
        ("MiniGrid-Empty-5x5-v0", "ppo"),
        ("ALE/Pong-v5", "ppo"),
    ],
)
def test_the_learner_is_chosen_from_the_actions(env_id: str, learner: str) -> None:
    config, spec = resolve(load(f"env.id={env_id}"))
    assert config.algorithm.name == learner
    assert spec.id == env_id


@pytest.mark.parametrize(
    ("env_id", "learner"),
    [("Pendulum-v1", "ppo"), ("CartPole-v1", "dqn"), ("CartPole-v1", "sac"), ("CartPole-v1", "ppo")],
)
def test_other_learners_that_fit_are_taken_by_name(env_id: str, learner: str) -> None:
    assert resolve(load(f"env.id={env_id}", f"algorithm.name={learner}"))[0].algorithm.name == learner


def test_nothing_stays_open_in_a_resolved_configuration() -> None:
    lengths = {"Pendulum-v1": 50, "CartPole-v1": 50, "ALE/Pong-v5": 25, "MiniGrid-Empty-8x8-v0": 100}
    for env_id, length in lengths.items():
        config, _ = resolve(load(f"env.id={env_id}"))
        assert config.feedback.segment_length == length
        assert config.exploration.num_seed_steps is not None
        assert config.exploration.num_env_steps is not None
        assert config.checkpoint_interval == 2000
        assert resolve(config)[0] == config


def test_what_a_run_starts_from_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = resolve(load(PENDULUM, "algorithm.reference=runs/a", "feedback.demonstrations=runs/b"))
    monkeypatch.chdir("/")
    assert config.algorithm.reference == str(tmp_path.resolve() / "runs" / "a")
    assert config.feedback.demonstrations == str(tmp_path.resolve() / "runs" / "b")
    assert resolve(config)[0] == config


def test_a_segment_is_at_most_as_long_as_an_episode() -> None:
    assert resolve(load(PENDULUM, "env.horizon=30"))[0].feedback.segment_length == 30
    assert resolve(load(PENDULUM, "env.horizon=30", "feedback.segment_length=30"))[0].feedback.segment_length == 30


def test_given_values_stay() -> None:
    given = ("exploration.num_seed_steps=3", "exploration.num_env_steps=0", "checkpoint_interval=17", "algorithm.tau=1")
    config, _ = resolve(load(PENDULUM, *given))
    assert config.exploration.num_seed_steps == 3
    assert config.exploration.num_env_steps == 0
    assert config.checkpoint_interval == 17
    assert config.algorithm.tau == 1.0


def test_a_short_ppo_run_has_at_least_ten_iterations() -> None:
    free = ("env.id=CartPole-v1", "env.fixed_horizon=false")
    assert resolve(load(*free, "num_env_steps=2000"))[0].algorithm.batch_size == 200
    assert resolve(load(*free, "num_env_steps=1e6"))[0].algorithm.batch_size == 2048
    given, _ = resolve(load(*free, "num_env_steps=2000", "algorithm.batch_size=1000"))
    assert given.algorithm.batch_size == 1000


@pytest.mark.parametrize(("horizon", "num_envs"), [(500, 4), (100, 8), (3000, 8)])
def test_a_ppo_batch_holds_whole_episodes_where_they_are_short(horizon: int, num_envs: int) -> None:
    config, _ = resolve(load("env.id=CartPole-v1", f"env.horizon={horizon}", "num_env_steps=1e6"))
    algorithm = config.algorithm
    assert algorithm.num_envs == num_envs
    if horizon <= 1024:
        assert algorithm.batch_size % (num_envs * horizon) == 0
        assert 1024 < algorithm.batch_size <= 2048
    given, _ = resolve(load("env.id=CartPole-v1", "algorithm.num_envs=3", "algorithm.batch_size=700"))
    assert (given.algorithm.num_envs, given.algorithm.batch_size) == (3, 700)


def test_images_are_learned_with_smaller_steps_by_ppo() -> None:
    assert resolve(load("env.id=ALE/Pong-v5"))[0].algorithm.learning_rate == 2.5e-4
    assert resolve(load("env.id=ALE/Pong-v5", "algorithm.learning_rate=0.1"))[0].algorithm.learning_rate == 0.1


OVERRIDES = st.fixed_dictionaries(
    {
        "env": st.sampled_from([{"id": "Pendulum-v1"}, {"id": "CartPole-v1", "horizon": 77, "fixed_horizon": False}]),
        "seed": st.integers(0, 2**32 - 1),
        "num_env_steps": st.integers(1000, 10**8),
        "learn_reward": st.booleans(),
        "teacher": st.fixed_dictionaries(
            {"name": st.sampled_from(["oracle", "noisy"]), "eps_mistake": st.none() | st.floats(0, 1)}
        ),
        "feedback": st.fixed_dictionaries({"budget": st.integers(0, 10**6), "until_share": st.floats(1e-9, 1)}),
        "algorithm": st.fixed_dictionaries(
            {"learning_rate": st.none() | st.floats(1e-12, 1e3), "hidden_sizes": st.none() | st.just((8, 4))}
        ),
        "tracking": st.fixed_dictionaries({"wandb_project": st.text(st.characters(codec="ascii"), max_size=8)}),
    }
)


@settings(max_examples=60, deadline=None)
@given(values=OVERRIDES)
def test_dump_and_load_give_the_same_resolved_configuration(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, _ = resolve(ExperimentConfig(**values))
    path = write(tmp_path_factory.mktemp("config"), dump_config(config))
    assert load_config(path) == config
    assert resolve(load_config(path))[0] == config


def test_config_error_is_what_a_wrong_key_raises() -> None:
    with pytest.raises(ConfigError):
        load("nothing.at.all=1")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_settings_and_no_other(name: str) -> None:
    plain = load_config(None, ["env.id=Pendulum-v1"]).model_dump()
    for group, preset in PRESETS[name].items():
        assert all(plain[group][key] != value for key, value in preset.items()), "a preset that sets a default"
        plain[group] |= preset
    assert load_config(None, ["env.id=Pendulum-v1", f"preset={name}"]).model_dump() == {**plain, "preset": name}
    assert PRESET_DESCRIPTIONS.keys() == PRESETS.keys()


def test_a_setting_that_is_given_wins_over_its_preset(tmp_path: Path) -> None:
    config = load_config(None, ["env.id=Pendulum-v1", "preset=robust", "reward.num_epochs=50"])
    assert config.reward.num_epochs == 50
    assert config.reward.ensemble_size == PRESETS["robust"]["reward"]["ensemble_size"]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no preset 'robuts'. Did you mean 'robust'\? Known: default, robust"):
        load_config(None, ["env.id=Pendulum-v1", "preset=robuts"])
