"""A sweep file becomes named trials, and what is wrong with it is said in one line before anything starts."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tiny_sweep import BASE, write_sweep

from themis_ray.cli import main
from themis_ray.cli.sweep import print_outcomes
from themis_ray.config import ExperimentConfig, dump_config, load_config, resolve
from themis_ray.envs import EnvSpec, list_envs
from themis_ray.errors import ConfigError, ThemisError
from themis_ray.sweeping import SweepFolder, expand, load_sweep
from themis_ray.sweeping.process import _settings
from themis_ray.sweeping.trials import draw, name_point

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "smoke": 4,
    "teachers_x_samplers": 111,
    "bpref_locomotion": 210,
    "bpref_manipulation": 210,
    "themis_atari": 45,
    "label_budget": 18,
    "ensemble_size": 51,
    "all_envs": 2 * len(list_envs("classic")),
    "pbt_reward": 8,
}


PBT = {"kind": "pbt", "mutations": {"reward.learning_rate": {"loguniform": [1e-4, 1e-2]}}}
TWO_TASKS = {"env.id": ["Pendulum-v1", "MountainCarContinuous-v0"]}


def names(path: Path, *overrides: str) -> list[str]:
    return [trial.name for trial in expand(load_sweep(path, overrides))]


# ---------------------------------------------------------------- shipped files


def test_every_shipped_sweep_is_known() -> None:
    found = {path.stem for path in (ROOT / "tune_configs").glob("*.yaml") if "base" in yaml.safe_load(path.read_text())}
    assert found == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_sweep_is_commented_loads_and_expands(name: str) -> None:
    path = ROOT / "tune_configs" / f"{name}.yaml"
    assert path.read_text().startswith("# ")
    assert f"themis sweep tune_configs/{name}.yaml" in path.read_text()
    settings = load_sweep(path)
    if name == "themis_atari":
        pong = {**settings.space, "env.id": ["ALE/Pong-v5"]}
        settings = settings.model_copy(update={"seeds": settings.seeds[:1], "space": pong})
    elif name.startswith("bpref"):
        # Its environments are an extra. All else of it is checked with some that are there.
        installed = ("HalfCheetah-v5", "Walker2d-v5", "Ant-v5")
        variants = zip(settings.variants.items(), installed, strict=True)
        here = {task: {**given, "env.id": env_id} for (task, given), env_id in variants}
        settings = settings.model_copy(update={"seeds": settings.seeds[:1], "variants": here})
    trials = expand(settings)
    assert len({trial.name for trial in trials}) == len(trials)
    expected = {"themis_atari": 3, "bpref_locomotion": 21, "bpref_manipulation": 21}
    assert len(trials) == expected.get(name, SHIPPED[name])
    for trial in trials:
        assert trial.name.endswith(f"s{trial.config.seed}")
        assert trial.bundles


def test_names_are_readable() -> None:
    shipped = ROOT / "tune_configs"
    assert "pendulum/mistake/disagreement/s2" in names(shipped / "teachers_x_samplers.yaml")
    assert "pendulum/ensemble_size-5/mistake/uniform/s1" in names(shipped / "ensemble_size.yaml")
    assert "pendulum/budget-25/s0" in names(shipped / "label_budget.yaml")
    assert "pendulum/true-reward/s1" in names(shipped / "label_budget.yaml")
    assert "mountaincarcontinuous/s0" in names(shipped / "all_envs.yaml")


# ---------------------------------------------------------------- expanding


def test_a_trial_is_the_experiment_that_train_would_run(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space={"teacher.name": ["mistake"], "reward.num_epochs": [3]}, seeds=[7])
    (trial,) = expand(load_sweep(path))
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(BASE))
    same, _ = resolve(load_config(base, ["teacher.name=mistake", "reward.num_epochs=3", "seed=7"]))
    assert trial.config == same
    assert trial.name == "pendulum/mistake/num_epochs-3/s7"


def test_values_reach_a_trial_as_they_reach_a_run(tmp_path: Path) -> None:
    """Not through JSON, which knows no infinity and writes an emoji as two halves that are no text."""
    prompt = "go fast \N{RACING CAR}"
    teacher = {"kind": "judge", "url": "http://localhost", "model": "any", "prompt": prompt}
    base = {**BASE, "env": {**BASE["env"], "kwargs": {"g": float("inf")}}, "teacher": teacher}
    path = write_sweep(tmp_path, base=base, space={"tracking.run_name": ["slow", "\N{RACING CAR}"]})
    first, second = expand(load_sweep(path))
    assert first.config.env.kwargs == {"g": float("inf")}
    assert first.config.teacher.prompt == prompt
    assert second.config.tracking.run_name == "\N{RACING CAR}"
    with pytest.raises(ConfigError, match=r"pendulum/s0: tracking.run_name=datetime.date\(2026, 1, 1\) is not allowed"):
        expand(load_sweep(write_sweep(tmp_path), ["tracking.run_name=2026-01-01"]))


def test_what_pbt_made_of_settings_reaches_the_run_as_it_is(tmp_path: Path) -> None:
    base = {**BASE, "env": {**BASE["env"], "kwargs": {"g": float("inf")}}}
    (trial,) = expand(load_sweep(write_sweep(tmp_path, base=base, scheduler=PBT)))
    packed = {"mutable": list(trial.mutable), "settings": trial.config.model_dump(mode="json")}
    mutated = {"reward.learning_rate": 0.002}
    new = _settings(tmp_path / "new", packed, mutated)
    assert new == trial.config.model_copy(
        update={"reward": trial.config.reward.model_copy(update={"learning_rate": 0.002})}
    )
    (tmp_path / "config.yaml").write_text(dump_config(trial.config))
    assert _settings(tmp_path, packed, mutated) == new


def test_lists_are_crossed_in_order_and_a_number_counts_seeds(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space={"feedback.sampler": ["uniform", "entropy"], "feedback.budget": [4, 8]}, seeds=2)
    found = names(path)
    assert len(found) == 8
    assert found[:3] == ["pendulum/uniform/budget-4/s0", "pendulum/uniform/budget-4/s1", "pendulum/uniform/budget-8/s0"]


def test_the_true_reward_runs_once_for_all_that_differ_in_labels_only(tmp_path: Path) -> None:
    space = {"feedback.budget": [4, 8], "algorithm.batch_size": [16, 32], "teacher.name": ["oracle", "noisy"]}
    trials = expand(load_sweep(write_sweep(tmp_path, space=space, seeds=2, true_reward=True)))
    true = [trial for trial in trials if not trial.config.learn_reward]
    assert [trial.name for trial in true] == [
        f"pendulum/true-reward/batch_size-{size}/s{seed}" for size in (16, 32) for seed in (0, 1)
    ]
    assert [trial.config.algorithm.batch_size for trial in true] == [16, 16, 32, 32]
    assert [trial.config.seed for trial in true] == [0, 1, 0, 1]
    assert trials[:4] == true
    assert len(trials) == 4 + 16


def test_variants_share_the_true_reward_where_they_differ_in_labels_only(tmp_path: Path) -> None:
    labels = {"few": {"feedback.budget": 4}, "many": {"feedback": {"budget": 8}}}
    tasks = {"flat": {"env.id": "Pendulum-v1"}, "car": {"env.id": "MountainCarContinuous-v0"}}
    path = write_sweep(tmp_path, variants=labels, true_reward=True)
    assert names(path) == ["pendulum/true-reward/s0", "few/s0", "many/s0"]
    path = write_sweep(tmp_path, variants=tasks, true_reward=True)
    assert names(path) == ["flat/true-reward/s0", "car/true-reward/s0", "flat/s0", "car/s0"]


def test_keys_with_the_same_last_word_stay_apart(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space={"reward.learning_rate": [1e-3], "algorithm.learning_rate": [3e-4]})
    assert names(path) == ["pendulum/reward.learning_rate-0.001/algorithm.learning_rate-0.0003/s0"]


def test_two_versions_of_one_environment_keep_their_versions(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space={"env.id": ["HalfCheetah-v4", "HalfCheetah-v5"]})
    assert names(path) == ["halfcheetah-v4/s0", "halfcheetah-v5/s0"]


def test_random_draws_the_same_again_and_shares_them_between_grid_points(tmp_path: Path) -> None:
    space = {"feedback.sampler": ["uniform", "entropy"], "reward.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    path = write_sweep(tmp_path, search="random", num_samples=3, space=space)
    trials = expand(load_sweep(path))
    assert len(trials) == 6
    rates = [trial.config.reward.learning_rate for trial in trials]
    assert rates[:3] == rates[3:]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert [trial.name for trial in trials] == names(path)
    assert names(path, "search_seed=1") != names(path)


def test_no_two_draws_are_alike(tmp_path: Path) -> None:
    space = {"reward.num_epochs": {"randint": [1, 9]}}
    path = write_sweep(tmp_path, search="random", num_samples=8, space=space)
    found = [trial.config.reward.num_epochs for trial in expand(load_sweep(path))]
    assert sorted(found) == list(range(1, 9))
    assert len(names(path, "num_samples=20")) == 8, "there are no more"


@pytest.mark.parametrize(
    "choices",
    [
        {"uniform": [0.99, 0.9999]},
        {"uniform": [0, 0.4999]},
        {"uniform": [-0.12345, 0.12345]},
        {"uniform": [0.9999, 0.999999]},
        {"loguniform": [0.00012345, 0.00013]},
        {"loguniform": [1.2345e-4, 1e-2]},
    ],
)
def test_draws_stay_in_their_range_and_differ(choices: dict) -> None:
    ((low, high),) = choices.values()
    rng = np.random.default_rng(0)
    drawn = [draw(choices, rng) for _ in range(200)]
    assert all(isinstance(value, float) and low <= value <= high for value in drawn)
    assert len(set(drawn)) > 50
    assert len({name for value in drawn for name in name_point({"a": value})}) == len(set(drawn))


def test_dotted_keys_of_the_base_are_groups_like_any_other(tmp_path: Path) -> None:
    base = {"env": {"id": "Pendulum-v1"}, "feedback.budget": 8, "num_env_steps": 1000}
    (trial,) = expand(load_sweep(write_sweep(tmp_path, base=base), ["feedback.sampler=entropy"]))
    assert (trial.config.feedback.budget, trial.config.feedback.sampler) == (8, "entropy")


def test_a_trial_adopts_the_snapshot_that_the_base_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are resolved by the same function as the run of `themis train`."""
    asked = []

    def resolve_new(config: ExperimentConfig) -> tuple[ExperimentConfig, EnvSpec]:
        asked.append(config.snapshot)
        return resolve(config)

    monkeypatch.setattr("themis_ray.sweeping.trials.resolve_new", resolve_new)
    expand(load_sweep(write_sweep(tmp_path, seeds=2), ["snapshot=there"]))
    assert asked == ["there", "there"]


def test_overrides_go_to_the_sweep_its_space_or_its_base(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space={"teacher.name": ["oracle"]})
    settings = load_sweep(
        path, ["seeds=[3]", "space.teacher.name=[skip]", "scheduler.kind=asha", "reward.num_epochs=1"]
    )
    (trial,) = expand(settings)
    assert trial.name == "pendulum/skip/s3"
    assert trial.config.reward.num_epochs == 1
    assert settings.scheduler.kind == "asha"


def test_overrides_may_say_that_they_are_of_the_base(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space={"teacher.name": ["oracle"]})
    (trial,) = expand(load_sweep(path, ["base.reward.num_epochs=1"]))
    assert trial.config.reward.num_epochs == 1


def test_a_group_in_space_leaves_the_rest_of_the_group_as_the_base_has_it(tmp_path: Path) -> None:
    space = {"reward": [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}]}
    trials = expand(load_sweep(write_sweep(tmp_path, space=space, true_reward=True)))
    assert len([trial for trial in trials if not trial.config.learn_reward]) == 1, "the reward model is all that varies"
    learned = [trial.config.reward for trial in trials if trial.config.learn_reward]
    assert [reward.learning_rate for reward in learned] == [1e-3, 1e-4]
    assert [reward.num_epochs for reward in learned] == [2, 2]


def test_base_may_be_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(BASE))
    path = tmp_path / "sweep.yaml"
    path.write_text("base: experiment.yaml\nseeds: 2\n")
    assert names(path) == ["pendulum/s0", "pendulum/s1"]


def test_settings_are_stored_and_read_back(tmp_path: Path) -> None:
    settings = load_sweep(ROOT / "tune_configs" / "pbt_reward.yaml", ["algorithm.learning_rate=1e-5"])
    SweepFolder.create(tmp_path / "sweep", settings)
    assert SweepFolder.open(tmp_path / "sweep")[1] == settings


def test_settings_that_yaml_reads_in_two_ways_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        'base: {env: {id: Pendulum-v1, kwargs: {g: .inf, since: 2026-01-01}}, tracking: {run_name: "1e5"}}\n'
        "space: {algorithm.target_entropy: [-.inf, 1e-3]}\nstop: {true_return_mean: .inf}\n"
    )
    settings = load_sweep(path)
    SweepFolder.create(tmp_path / "sweep", settings)
    found = SweepFolder.open(tmp_path / "sweep")[1]
    assert found == settings
    assert found.base["tracking"]["run_name"] == "1e5"
    assert found.base["env"]["kwargs"] == {"g": float("inf"), "since": date(2026, 1, 1)}


def test_bundles_have_room_for_every_actor(tmp_path: Path) -> None:
    plain, many = (
        expand(load_sweep(write_sweep(tmp_path), overrides))[0]
        for overrides in ([], ["resources.num_env_runners=2", "resources.reward_actor_num_cpus=1"])
    )
    assert plain.num_cpus == 1.5
    assert many.num_cpus == 4


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("settings", "overrides", "words"),
    [
        ({"space": {"reward.sise": [1]}}, [], ["pendulum/sise-1/s0", "reward.sise", "Known here"]),
        ({"space": {"teacher.name": ["orakle"]}}, [], ["orakle", "'oracle'"]),
        ({"space": {"teacher.name": "oracle"}}, [], ["space.teacher.name", "a list"]),
        ({"space": {"teacher.name": []}}, [], ["empty list"]),
        ({"space": {"reward.learning_rate": {"uniform": [1e-3, 1e-4]}}, "search": "random"}, [], ["[low, high]"]),
        ({"space": {"reward.learning_rate": {"uniform": [1e-4, 1e-3]}}}, [], ["search=random"]),
        ({"search": "random"}, [], ["no distribution"]),
        ({"search": "optuna", "space": {"feedback.budget": [4, 8]}, "seeds": 2}, [], ["one seed"]),
        ({"scheduler": {"kind": "pbt"}}, [], ["scheduler.mutations"]),
        ({"scheduler": {"kind": "pbt", "mutations": {"env.horizon": [5]}}}, [], ["env.horizon", "while a run goes on"]),
        ({"sheduler": {}}, [], ["sheduler", "'scheduler'"]),
        ({"metric": "true_return"}, [], ["true_return", "true_return_mean"]),
        ({"stop": {"reward": 1}}, [], ["metric 'reward'"]),
        ({"seeds": [1, 1]}, [], ["twice"]),
        ({"space": {"feedback.budget": [4, 4]}}, [], ["pendulum/budget-4/s0"]),
        ({"space": {"feedback.budget": [4]}}, ["feedback.budget=8"], ["space.feedback.budget"]),
        ({"space": {"env.id": {"family": "clasic"}}}, [], ["clasic", "'classic'"]),
        ({"space": {"seed": [1, 2]}}, [], ["seeds=[0, 1, 2]"]),
        ({"variants": {"a": {"seed": 1}}}, [], ["seeds=[0, 1, 2]"]),
        ({}, ["seed=7"], ["seeds=[0, 1, 2]"]),
        (
            {"variants": {"a": {"feedback": {"budget": 4}}}},
            ["feedback.budget=8"],
            ["feedback.budget varies", "variants"],
        ),
        ({"space": {"feedback.budget": [4]}}, ["base.feedback.budget=8"], ["feedback.budget varies", "space"]),
        ({}, ["base.seeds=2"], ["unknown setting 'seeds'"]),
        ({"space": {"feedback.budget": [4]}}, ["feedback={budget: 8}"], ["feedback.budget varies", "space"]),
        ({"variants": {"a": {"feedback.budget": 4}}, "space": {"feedback.budget": [8]}}, [], ["space and in variants"]),
        ({"scheduler": PBT}, ["reward.learning_rate=1e-3"], ["scheduler.mutations"]),
        ({"variants": ["a", "b"]}, ["feedback.budget=8"], ["variants"]),
        ({"variants": {"a": None}}, ["feedback.budget=8"], ["variants.a"]),
        ({"base": {"env": "Pendulum-v1", "env.id": "Pendulum-v1"}}, [], ["env.id", "no group"]),
        ({"space": {"env.id": [5]}}, [], ["env.id=5"]),
        ({"space": {"reward.num_epochs": {"randint": [0.2, 0.7]}}, "search": "random"}, [], ["whole numbers"]),
        (
            {"space": {"reward.learning_rate": {"uniform": [0.1, float("inf")]}}, "search": "random"},
            [],
            ["[low, high]"],
        ),
        ({"space": {"env.id": [date(2026, 1, 1)]}}, [], ["space.env.id", "numbers, words"]),
        ({"storage_path": "runs"}, [], ["storage_path=runs", "s3://"]),
        ({"scheduler": {"kind": "asha", "grace_num_env_steps": 600}}, [], ["grace_num_env_steps=600", "600 env steps"]),
        ({"scheduler": {"kind": "asha"}, "space": TWO_TASKS}, [], ["MountainCarContinuous-v0", "common scale"]),
        ({"scheduler": PBT, "space": TWO_TASKS}, [], ["env.id", "scheduler.kind=pbt"]),
        ({"scheduler": PBT, "variants": {"a": {"algorithm.hidden_sizes": [8]}}}, [], ["algorithm.hidden_sizes"]),
        ({}, ["algorithm.reference=/nowhere"], ["/nowhere"]),
        ({}, ["snapshot=/nowhere"], ["/nowhere is no snapshot"]),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, settings: dict, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ThemisError) as caught:
        expand(load_sweep(write_sweep(tmp_path, **settings), overrides))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_sweep_runs_once_at_a_time(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path / "out", load_sweep(write_sweep(tmp_path)))
    with folder.held(), pytest.raises(ThemisError, match="another themis sweep works in"), folder.held():
        pass
    with folder.held():
        pass


@pytest.mark.ray
def test_a_sweep_that_finds_no_room_leaves_no_folder(tmp_path: Path, ray_cluster: None) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    nowhere = "resources.main_process_custom_resources={nowhere: 1}"
    result = CliRunner().invoke(main, ["sweep", str(path), nowhere, "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert "reserves 1 nowhere, but there is 0" in result.output
    assert not out.exists()


def test_a_folder_that_holds_something_is_not_written_over(tmp_path: Path) -> None:
    settings = load_sweep(write_sweep(tmp_path))
    SweepFolder.create(tmp_path / "out", settings)
    with pytest.raises(ThemisError, match="--resume"):
        SweepFolder.create(tmp_path / "out", settings)
    with pytest.raises(ThemisError, match="no sweep"):
        SweepFolder.open(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Traceback\nValueError: [/usr/lib/x.so] for [cuda]\n", "failed: ValueError: [/usr/lib/x.so] for [cuda]"),
        ("", "failed: error.txt is empty"),
    ],
)
def test_the_table_shows_errors_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = SweepFolder(tmp_path / "[b] sweep")
    (folder.path / "pendulum" / "s0").mkdir(parents=True)
    (folder.path / "pendulum" / "s0" / "error.txt").write_text(text)
    print_outcomes([folder.outcome("pendulum/s0")], folder.path)
    output = capsys.readouterr().out
    assert shown in output
    assert output.startswith("[b] sweep · 1 trials")


@pytest.mark.parametrize(
    "arguments", [[], ["nowhere.yaml"], ["seeds=2"], ["--resume", "nowhere"], ["a.yaml", "--resume", "b"]]
)
def test_the_command_answers_a_mistake_with_one_line_and_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["sweep", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
